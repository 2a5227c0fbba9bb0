"""What holds for all tests."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # the tensors of tests are small, and threads that wait for each other cost more


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real data, for the tests that read it."""
    folder = Path(os.environ.get("MEDPRISM_DATA", ""))
    if not (folder / "ABIDE_pcp").is_dir():
        pytest.skip("needs real data: set MEDPRISM_DATA to the folder that holds ABIDE_pcp")
    return folder
