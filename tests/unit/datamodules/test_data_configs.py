from __future__ import annotations

from pathlib import Path

import pytest
from jsonargparse import ArgumentParser

import medprism.datamodules
from medprism.data.base import CohortDataModule

CONFIGS = Path(__file__).parents[3] / "configs" / "data"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_config_constructs_its_datamodule(name: str) -> None:
    parser = ArgumentParser()
    parser.add_subclass_arguments(CohortDataModule, "data")
    config = parser.parse_args([f"--data={CONFIGS / name}.yaml"])
    data = parser.instantiate_classes(config).data
    assert type(data) is getattr(medprism.datamodules, config.data.class_path.split(".")[-1])
    assert data.batch_size == config.data.init_args.batch_size


@pytest.mark.parametrize("name", medprism.datamodules.__all__)
def test_help_documents_every_argument(name: str, capsys) -> None:
    parser = ArgumentParser()
    parser.add_argument("--data", type=CohortDataModule)
    with pytest.raises(SystemExit):
        parser.parse_args([f"--data.help={name}"])
    text = capsys.readouterr().out
    # The arguments of the bases are there too, with types, defaults and help.
    assert "--data.batch_size" in text and "--data.cache_dir" in text and "--data.split_file" in text
    blocks = ("\n" + text).split("\n  --data.")[1:]
    assert len(blocks) > 20
    for block in blocks:
        described = block.split("(required" if "(required" in block else "(type:")[0].split(maxsplit=2)
        assert len(described) == 3, f"{name}: no help for {block.split()[0]}"
        assert "type:" in block
