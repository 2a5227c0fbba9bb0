"""Packages outside of medprism bring methods and cohorts: their metadata is installed, and the program finds them."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from medprism.testing import check_datamodule, check_method

PACKAGE = Path(__file__).parents[1] / "example_package"
SCRIPT = """
from medprism.checkpoint import load_method
from medprism.cli import main

line = main([
    "fit", "--model", "NearestPrototype", "--data", "SimulatedBlobs", "--data.init_args.batch_size", "16",
    "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--trainer.logger", "false",
    "--trainer.enable_progress_bar", "false", "--evaluator.bootstrap", "0", "--run_folder", "run",
])
print("CLASSES", type(line.model).__module__, type(line.datamodule).__module__)
print("LOADED", type(load_method("run/checkpoints/best.ckpt")).__name__)
try:
    main(["fit", "--model.help", "NearestPrototype"])
except SystemExit:
    pass
"""


def install(folder: Path, name: str, version: str, groups: dict[str, dict[str, str]]) -> None:
    """What an installer leaves beside a package: the metadata that `importlib.metadata` reads."""
    about = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [f"[{group}]\n" + "\n".join(f"{k} = {v}" for k, v in entries.items()) for group, entries in groups.items()]
    (about / "entry_points.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture
def site(tmp_path) -> Path:
    """A folder of installed packages: the example, one that cannot be imported, and one that registers no method."""
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    site = tmp_path / "site"
    shutil.copytree(PACKAGE / "example_prism", site / "example_prism", ignore=shutil.ignore_patterns("__pycache__"))
    install(site, project["name"], project["version"], project["entry-points"])
    (site / "broken_prism.py").write_text("import a_package_that_nobody_has\n")
    install(site, "broken-prism", "0.3", {"medprism.methods": {"Broken": "broken_prism:Broken"}})
    install(site, "odd-prism", "0.1", {"medprism.datamodules": {"Odd": "collections:OrderedDict"}})
    return site


def test_short_names_of_an_installed_package(site, tmp_path):
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    settings = {**os.environ, "PYTHONPATH": path, "MEDPRISM_CACHE": str(tmp_path / "cache"), "COLUMNS": "200"}
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, cwd=tmp_path, env=settings, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert "CLASSES example_prism.prototypes example_prism.blobs" in done.stdout
    assert "LOADED NearestPrototype" in done.stdout
    assert "--model.sharpness" in done.stdout and "scale of the squared distances" in done.stdout
    warned = " ".join(done.stderr.split())
    assert (
        "the package broken-prism 0.3 registers Broken = broken_prism:Broken under medprism.methods, which cannot be "
        "imported: ModuleNotFoundError: No module named 'a_package_that_nobody_has'. Mend, update or uninstall"
    ) in warned
    assert "the package odd-prism 0.1 registers Odd = collections:OrderedDict" in warned
    assert "no subclass of medprism.data.base.CohortDataModule" in warned
    assert warned.count("PluginWarning") == 2


def test_the_example_package_passes_the_checks(monkeypatch):
    monkeypatch.syspath_prepend(str(PACKAGE))
    from example_prism.blobs import SimulatedBlobs
    from example_prism.prototypes import NearestPrototype

    check_datamodule(SimulatedBlobs)
    check_method(NearestPrototype, cohort=SimulatedBlobs(batch_size=16))
