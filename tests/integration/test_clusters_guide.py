"""The commands of the guide to clusters are understood."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from medprism.benchmark.backends import BACKENDS
from medprism.cli import main

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "clusters.md").read_text()


def commands() -> list[list[str]]:
    """The words after `lightning`, however it is begun."""
    found = []
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.S):
        lines = [line for line in block.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]
        for words in (shlex.split(line, comments=True) for line in lines):
            at = words.index("medprism" if "medprism" in words else "lightning")
            assert words[:at] in ([], ["srun"]) or (words[0] == "torchrun" and words[at - 1] == "-m")
            found.append(words[at + 1 :])
    return found


def value(words: list[str], key: str) -> str:
    return words[words.index(key) + 1] if key in words else "1"


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_the_commands_are_understood(words, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    if words[0] == "benchmark":
        assert main([*words, "--dry-run"]) == 0
        assert " to do" in capsys.readouterr().err
        return
    with pytest.raises(SystemExit) as ended:
        main([*words, "--print_config"])
    assert ended.value.code in (0, None)
    trainer = yaml.safe_load(capsys.readouterr().out)["trainer"]
    assert str(trainer["devices"]) == value(words, "--trainer.devices")
    assert str(trainer["num_nodes"]) == value(words, "--trainer.num_nodes")


def test_every_backend_is_in_the_table_with_what_to_install():
    assert all(f"| `{name}` |" in PAGE for name in BACKENDS)
    extras = (ROOT / "pyproject.toml").read_text()
    for name in re.findall(r"pip install 'medprism\[(\w+)\]'", PAGE):
        assert f"\n{name} = [" in extras
