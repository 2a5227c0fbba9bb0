import math

import pytest
import torch
from sklearn.metrics import mutual_info_score

from medprism.losses.information import label_information


def test_equals_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(0, 3, (200,), generator=generator)
    second = (first + (torch.rand(200, generator=generator) < 0.3)) % 4
    assert label_information(first, second).item() == pytest.approx(mutual_info_score(first, second), abs=1e-5)


def test_floor_of_ninety_to_ten():
    first = torch.tensor([0] * 100 + [1] * 100)
    second = torch.tensor([0] * 90 + [1] * 10 + [1] * 90 + [0] * 10)
    assert label_information(first, second).item() == pytest.approx(0.368, abs=5e-4)


def test_unknown_labels_do_not_count():
    first, second = torch.tensor([0, 1, 0, 1, 0]), torch.tensor([0, 1, 0, 1, -1])
    assert label_information(first, second).item() == pytest.approx(math.log(2))
    assert label_information(first, -torch.ones(5, dtype=torch.long)) == 0


def test_weights_are_counts():
    first, second = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 1, 1, 0])
    weight = torch.tensor([9.0, 9.0, 1.0, 1.0])
    assert label_information(first, second, weight).item() == pytest.approx(0.368, abs=5e-4)
    assert label_information(first, second).item() == pytest.approx(0, abs=1e-6)
