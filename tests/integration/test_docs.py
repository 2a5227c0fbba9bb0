"""What README and docs tell a reader to type and to write, run as it stands; and the site that they form.

Python, tables and method files of the guides are run in full. Commands are run in full where another test does not
train the same config already (own method, testing and predicting); those that need hours or data that nobody ships are
parsed by the program that they name, with every argument and class resolved, and stopped before they start.
"""

import argparse
import contextlib
import importlib.util
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest

from medprism.checkpoint import load_method
from medprism.cli import main
from medprism.testing import DATAMODULE_CHECKS, METHOD_CHECKS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md", *sorted(DOCS.rglob("*.md"))]
PROGRAMS = ("lightning", "medprism", "torchrun", "srun", "make", "python", "source", "pip")
SMALL = ["--data.init_args.subjects", "80", "--data.init_args.regions", "16", "--data.init_args.volumes", "40"]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), re.S)


def commands(page: Path) -> list[str]:
    """Every command of a page: in blocks of bash, in indented blocks, and between backticks."""
    text = page.read_text(encoding="utf-8")
    fenced = re.findall(r"^```bash\n(.*?)^```", text, re.S | re.M)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    lines = [line for block in fenced for line in block.replace("\\\n", " ").splitlines()]
    lines += [line.strip() for line in re.findall(r"^    (?:lightning|medprism) .*", rest, re.M)]
    lines += [" ".join(found.split()) for found in re.findall(r"`([^`]+)`", rest)]
    return list(dict.fromkeys(shlex.join(shlex.split(line, comments=True)) for line in lines if is_command(line)))


def is_command(line: str) -> bool:
    words = line.split()
    least = 3 if words[:1] == ["lightning"] else 2  # `lightning fit` alone is a name, not a command
    return len(words) >= least and words[0] in PROGRAMS and words[-1] != "..."


OWN = {"method": "adversarial.yaml", "data": "my_data."}
"""What own-method.md and own-data.md make; commands with it are in `test_own_method` and `test_own_data`."""
COMMANDS = sorted({command for page in PAGES for command in commands(page)})
LATER = [command for command in COMMANDS if "--ckpt_path" in command]
"""Those that go on from a run are in `test_a_trained_run_is_tested_and_predicted_with`."""
PARSED = [command for command in COMMANDS if command not in LATER and not any(own in command for own in OWN.values())]


def test_every_fenced_block_is_known():
    """A block in another language would be run by nobody."""
    for page in PAGES:
        found = re.findall(r"^```(\S*)\n.*?^```", page.read_text(encoding="utf-8"), re.S | re.M)
        assert set(found) <= {"bash", "python", "yaml", "toml", ""}, page


def test_commands_are_found():
    assert len(PARSED) > 40
    assert "lightning fit --config configs/mimmx_digits.yaml" in PARSED and "make run" in PARSED


@pytest.mark.parametrize("command", PARSED)
def test_a_command_is_understood(command, monkeypatch, tmp_path):
    program, *words = shlex.split(command)
    monkeypatch.chdir(ROOT)
    checks = {
        "lightning": lightning_parses,
        "medprism": lightning_parses,
        "torchrun": lambda words, given: lightning_parses(words[words.index("medprism") + 1 :], given),
        "srun": lambda words, given: lightning_parses(words[1:], given),
        "make": make_has_the_target,
        "python": script_parses,
        "source": lambda *_: None,  # the environment that `make install` makes
        "pip": extra_exists,
    }
    checks[program](words, monkeypatch)


class Parsed(Exception):
    """The program has read its arguments."""


def stop_after_parsing(monkeypatch: pytest.MonkeyPatch) -> None:
    read = argparse.ArgumentParser.parse_args

    def stop(self, *given, **named):
        read(self, *given, **named)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)


def lightning_parses(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["lightning"])
    if words[0] == "benchmark":
        data = ["--data", str(ROOT)] if "--data" not in words else []
        words = [str(ROOT) if word == "DATA" else word for word in words]
        assert main([*words, *data, *([] if "--dry-run" in words else ["--dry-run"])]) == 0
    elif words[0] in ("fit", "validate", "test", "predict"):
        ends = {"--help", "--model.help", "--data.help"} & set(words)
        with contextlib.redirect_stdout(io.StringIO()) as said, pytest.raises(SystemExit) as ended:
            main([*words, *([] if ends else ["--print_config"])])
        assert not ended.value.code and said.getvalue()
    elif words[0] == "report":  # of runs that are not here; and those that are shipped stay as they are
        stop_after_parsing(monkeypatch)
        with pytest.raises(Parsed):
            main(words)
    elif words[0] == "new-method":
        with tempfile.TemporaryDirectory() as folder:
            main([*words, *([] if "--into" in words else ["--into", folder])])
    else:
        with contextlib.redirect_stdout(io.StringIO()) as said:
            main(words)
        assert said.getvalue()


def make_has_the_target(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["make", "--dry-run", *words], check=True, capture_output=True, cwd=ROOT)


def extra_exists(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    extras = re.search(r"\[project.optional-dependencies\]\n(.*?)\n\[", (ROOT / "pyproject.toml").read_text(), re.S)
    (wanted,) = re.findall(r"\[(\w+)\]", " ".join(words))
    assert re.search(rf"^{wanted} = ", extras[1], re.M)


def script_parses(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a script until its arguments are read."""
    if words[0] == "-m":
        assert importlib.util.find_spec(words[1])
        return
    stop_after_parsing(monkeypatch)
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.syspath_prepend(Path(words[0]).parent)
    if len(words) == 1:  # named as what wrote a table, perhaps without what it needs: it is there, and is Python
        assert compile(Path(words[0]).read_text(), words[0], "exec")
        return
    with pytest.raises(Parsed):
        runpy.run_path(words[0], run_name="__main__")


def test_own_method(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDPRISM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", ["lightning"])
    (code, check), (config,), (command, scaffold) = (
        blocks("own-method.md", kind) for kind in ("python", "yaml", "bash")
    )
    body = [line for line in code.splitlines() if line.strip()]
    assert len(body) < 45
    assert len(body[body.index("class Reversal(Method):") :]) < 40
    Path("my_method.py").write_text(code)
    Path("adversarial.yaml").write_text(config)
    program, *words = command.split()
    assert program == "lightning"
    main([*words, *SMALL, "--trainer.max_epochs", "2", "--evaluator.bootstrap", "10", "--run_folder", "run"])
    assert Path("run", "metrics.json").exists()
    logged = next(Path("run", "logs").rglob("metrics.csv")).read_text()
    assert "train/target" in logged and "train/adversary" in logged and "val/auroc" in logged
    for other in (each for each in COMMANDS if OWN["method"] in each):
        lightning_parses(shlex.split(other)[1:], monkeypatch)
    sys.modules.pop("my_method")
    model = load_method("run/checkpoints/best.ckpt", module="my_method")
    assert model.hparams["strength"] == 0.3
    space: dict = {}
    exec(compile(check, "own-method.md", "exec"), space)
    space["test_conformance"]()
    main(scaffold.split()[1:])
    assert Path("mymethod_suite.yaml").exists()


def test_own_data(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    code, check = blocks("own-data.md", "python")
    Path("my_data.py").write_text(code)
    row = np.arange(40)
    picture = np.random.default_rng(0).random((40, 16, 16))
    np.savez("scans.npz", id=[f"s{k}" for k in row], image=picture, target=row % 2, sex=row // 2 % 2)
    exec(compile(check, "own-data.md", "exec"), {})
    assert "second_setup" in capsys.readouterr().out
    for other in (each for each in COMMANDS if OWN["data"] in each):
        lightning_parses(shlex.split(other)[1:], monkeypatch)
    sys.modules.pop("my_data")


def test_checks_are_all_in_the_guides():
    for page, checks in (("own-method.md", METHOD_CHECKS), ("own-data.md", DATAMODULE_CHECKS)):
        rows = [line for line in (DOCS / page).read_text().splitlines() if line.startswith("| `")]
        named = {name for line in rows for name in re.findall(r"`(\w+)`", line.split("|")[1])}
        assert set(checks) <= named, page


def test_a_trained_run_is_tested_and_predicted_with(tmp_path, monkeypatch):
    """`lightning test` and `lightning predict` as README and cards have them, on a run that is made first."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDPRISM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", ["lightning"])
    fit = ["fit", "--config", str(ROOT / "configs" / "erm_simulated.yaml"), *SMALL, "--run_folder", "run"]
    main([*fit, "--trainer.max_epochs", "1", "--evaluator.bootstrap", "10", "--trainer.enable_progress_bar", "false"])
    later = {re.sub(r"'?runs/\S+/checkpoints", "run/checkpoints", command).replace("'", "") for command in LATER}
    assert {command.split()[1] for command in later} == {"test", "predict"}
    for command in sorted(later):
        main(command.split()[1:])
    assert Path("run", "metrics.json").exists() and Path("run", "predictions.csv").exists()


def test_simulated_readings_are_written_as_the_guide_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("cohorts/gaze.md", "python")
    exec(compile(code, "gaze.md", "exec"), {})
    assert Path("reflacx", "main_data", "metadata_phase_3.csv").exists()


def test_predictions_of_another_model_are_measured_as_the_first_page_says(capsys):
    (code,) = blocks("index.md", "python")
    exec(compile(code, "index.md", "exec"), {})
    auroc, gap = map(eval, capsys.readouterr().out.splitlines())
    assert auroc["low"] < auroc["value"] < auroc["high"] and 0 <= gap["value"] <= 1


def test_the_table_of_the_guide_is_read(tmp_path):
    """The columns of own-data.md, with a series for each row."""
    from medprism.datamodules import FmriManifest

    table = next(block for block in blocks("own-data.md", "") if block.startswith("id,path,target"))
    (tmp_path / "participants.csv").write_text(table)
    draw = np.random.default_rng(0)
    for row in table.splitlines()[1:]:
        path = tmp_path / row.split(",")[1]
        path.parent.mkdir(exist_ok=True)
        np.save(path, draw.normal(size=(40, 8)))
    data = FmriManifest(
        root=str(tmp_path), manifest=str(tmp_path / "participants.csv"), attributes=("sex", "site"),
        cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    assert len(data.samples) == 3 and data.samples.subject[0] == data.samples.subject[1]
    assert data.cohort.target.classes == ("control", "patient")


# ------------------------------------------------------------------------------------------------------------- the site
class Links(HTMLParser):
    """What a page links to, what it loads, and the places in it that can be linked to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.places: set[str] = set()
        self.without_words = 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.places |= {given[key] for key in ("id", "name") if given.get(key)}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        elif tag in ("script", "img", "iframe") and given.get("src"):
            self.loads.append(given["src"])
        elif tag == "link" and given.get("href") and given.get("rel") in ("stylesheet", "icon", "preconnect"):
            self.loads.append(given["href"])
        self.without_words += tag == "img" and not given.get("alt")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> dict[Path, Links]:
    pytest.importorskip("mkdocs", reason="the site needs: pip install -e '.[docs]'")
    pytest.importorskip("mkdocstrings", reason="the site needs: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert not done.returncode, done.stdout + done.stderr
    return {path: Links(path.read_text(encoding="utf-8")) for path in folder.rglob("*.html") if path.name != "404.html"}


def test_every_link_of_the_site_resolves(site):
    broken = []
    for page, found in site.items():
        for link in found.links + found.loads:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            places = site[target].places if target in site else set()
            lost = parts.fragment and target in site and unquote(parts.fragment) not in places
            if lost or not target.exists():
                broken.append(f"{page.name}: {link}")
    assert len(site) > 20 and not broken


def test_the_site_loads_nothing_from_elsewhere(site):
    assert not [(page.name, each) for page, found in site.items() for each in found.loads if urlsplit(each).netloc]


def test_every_picture_says_what_it_shows(site):
    assert not [page.name for page, found in site.items() if found.without_words]


@pytest.mark.parametrize("card", ["erm", "neurolip", "mimmx", "egma", "baselines"])
def test_a_card_has_all_its_parts(card):
    text = (DOCS / "methods" / f"{card}.md").read_text(encoding="utf-8")
    assert re.search(r"!\[[^\]]{20,}\]\(\.\./images/\w+\.svg\)", text), "a figure with words"
    assert re.search(r"^    .* = ", text, re.M), "an equation"
    assert re.search(r"^    lightning fit ", text, re.M), "a command"
    assert "What is reconstructed" in text or "what is ours" in text
    assert "When to use it, and when not" in text or ("**When:**" in text and "**When not:**" in text)
    assert "Results" in text


def test_diagrams_are_those_of_the_script(tmp_path):
    script = runpy.run_path(str(DOCS / "images" / "draw.py"))
    assert {f"{name}.svg" for name in script["DIAGRAMS"]} == {path.name for path in (DOCS / "images").glob("*.svg")}
    assert script["draw"]("erm", tmp_path).stat().st_size > 1000
