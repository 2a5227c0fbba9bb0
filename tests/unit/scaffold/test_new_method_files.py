"""`lightning new-method`: which files, where, and what is refused. Nothing here is trained."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from medprism.cli import main

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def path_as_it_was(monkeypatch):
    """The program looks for modules where it is called, and adds that folder."""
    monkeypatch.setattr(sys, "path", list(sys.path))


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_files_in_a_folder_of_ones_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["new-method", "PaperClip"])
    files = contents(tmp_path)
    assert set(files) == {
        "paperclip.py",
        "paperclip.yaml",
        "paperclip_suite.yaml",
        "test_paperclip.py",
        "paperclip.md",
    }
    assert "class PaperClip(Method):" in files["paperclip.py"]
    assert yaml.safe_load(files["paperclip.yaml"])["model"]["class_path"] == "paperclip.PaperClip"
    suite = yaml.safe_load(files["paperclip_suite.yaml"])
    assert suite["methods"]["paperclip"]["model"]["class_path"] == "paperclip.PaperClip"
    assert "from paperclip import PaperClip" in files["test_paperclip.py"]
    assert "lightning fit --config paperclip.yaml" in files["paperclip.md"]
    assert not any("$" in text for text in files.values())
    said = capsys.readouterr().out
    assert "  lightning benchmark --config paperclip_suite.yaml\n  python -m pytest test_paperclip.py" in said


def test_an_existing_file_is_kept(tmp_path, capsys):
    (tmp_path / "paperclip.md").write_text("mine")
    with pytest.raises(SystemExit):
        main(["new-method", "PaperClip", "--into", str(tmp_path)])
    assert "paperclip.md; nothing was written. Choose another name" in capsys.readouterr().err
    assert contents(tmp_path) == {"paperclip.md": "mine"}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("my-method", "'my-method' is no name of a class: begin with a capital and use letters and digits alone, such"),
        ("my-method", "such as MyMethod"),
        ("3D", "such as MyMethod"),
        ("NeuroLIP", "NeuroLIP is there already (Adversarial, CLIP, "),
        ("Method", "Method is there already"),
        ("Random", "there is a module 'random' already"),
        ("Yaml", "there is a module 'yaml' already"),
    ],
)
def test_names_that_cannot_be(name, said, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["new-method", name, "--into", str(tmp_path)])
    assert ended.value.code == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not contents(tmp_path)


@pytest.fixture
def checkout(tmp_path) -> Path:
    """The parts of a checkout that the command looks at."""
    for place in ("methods/__init__.py", "src/medprism/cli.py"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / place, tmp_path / place)
    return tmp_path


def test_files_in_a_checkout(checkout):
    before = contents(checkout)
    main(["new-method", "PaperClip", "--into", str(checkout)])
    files = contents(checkout)
    assert set(files) - set(before) == {
        "methods/paperclip.py",
        "configs/methods/paperclip.yaml",
        "configs/paperclip_simulated.yaml",
        "benchmarks/paperclip.yaml",
        "tests/unit/methods/test_paperclip.py",
        "docs/methods/paperclip.md",
    }
    assert "from medprism.methods import PaperClip" in files["tests/unit/methods/test_paperclip.py"]
    assert yaml.safe_load(files["configs/methods/paperclip.yaml"])["class_path"] == "PaperClip"
    assert yaml.safe_load(files["configs/paperclip_simulated.yaml"])["model"] == "methods/paperclip.yaml"
    registry = files.pop("methods/__init__.py")
    assert "from medprism.methods.paperclip import PaperClip\n" in registry
    old = ast.literal_eval(before["methods/__init__.py"].split("__all__ = ")[1])
    assert set(ast.literal_eval(registry.split("__all__ = ")[1])) == {*old, "PaperClip"}
    assert {name: files[name] for name in before if name in files} == {n: t for n, t in before.items() if n in files}
    for name, text in contents(checkout).items():
        if name.endswith(".py"):
            # The new files are not there, and ruff would take them for another package's.
            ours = "lint.isort.known-first-party = ['medprism']"
            for words in (["check", "--config", ours], ["format", "--check"]):
                command = [sys.executable, "-m", "ruff", *words, "--stdin-filename", name, "-"]
                done = subprocess.run(command, cwd=ROOT, input=text, capture_output=True, text=True)
                assert done.returncode == 0, done.stdout + done.stderr


def test_it_does_not_wait_for_torch(tmp_path):
    code = (
        "import sys; from medprism.cli import main; main(['new-method', 'PaperClip']); "
        "sys.exit('torch' in sys.modules or 'lightning' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True).returncode == 0
