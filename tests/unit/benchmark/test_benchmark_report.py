import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_runs import COHORT, finished, predictions_of, write_suite
from fake_worker import fake_fit
from made_results import results_of
from PIL import Image

from medprism.benchmark.collect import write
from medprism.benchmark.plan import Plan
from medprism.benchmark.report import publish, report
from medprism.benchmark.results import ReportError, Results
from medprism.benchmark.suite import Suite
from medprism.benchmark.tables import escape
from medprism.benchmark.webpage import page
from medprism.cli import main

FILES = (
    "summary.csv",
    "extras.csv",
    "groups.csv",
    "pareto.csv",
    "ranks.csv",
    "summary.md",
    "tables.tex",
    "report.html",
)


def plan_of(folder: Path, **changes) -> Plan:
    suite = Suite.read(write_suite(folder / "made.yaml", {"erm": {}, "other": {}, "oracle": {}}, **changes))
    return Plan.of(suite, "lightning benchmark --config made.yaml")


def runs_of(runs: Path, seeds=(0, 1), **options):
    ids = predictions_of(0).ids
    sets = {"same": ids[:30], "inverted": ids[20:], "balanced": ids[10:50]}
    return [
        finished(runs, method, s, predictions_of(10 * k + s, 0.4 + k), sets=sets, **options)
        for s in seeds
        for k, method in enumerate(("erm", "other", "oracle"))
    ]


@pytest.fixture(autouse=True)
def no_figures(request, monkeypatch):
    """They take most of the time: one test draws them."""
    if "with_figures" not in request.node.name:
        monkeypatch.setattr("medprism.benchmark.charts.draw", lambda *args: None)


def embedded(html: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)[1])


def test_a_report_from_the_results_alone_is_the_same_with_figures(tmp_path, capsys):
    out = tmp_path / "out"
    write(plan_of(tmp_path, ceiling="oracle"), runs_of(tmp_path / "runs"), out, 20)
    figures = {path.name for path in (out / "figures").iterdir()}
    wanted = {"made_same_minus_inverted", "made_shift", "made_sex_equalized_odds_difference"}
    assert figures == {f"{n}.{k}" for n in [*wanted, "made_site_equalized_odds_difference"] for k in ("png", "svg")}
    first = {name: (out / name).read_bytes() for name in FILES}
    for name in ("pareto.csv", "ranks.csv", "summary.md", "tables.tex", "report.html"):
        (out / name).unlink()
    (out / "figures" / "made_shift.png").unlink()
    assert report([str(out)]) == 0
    assert str(out / "report.html") in capsys.readouterr().out
    assert {name: (out / name).read_bytes() for name in FILES} == first
    assert {path.name for path in (out / "figures").iterdir()} == figures


def test_results_are_read_as_they_were_written(tmp_path):
    write(plan_of(tmp_path), runs_of(tmp_path / "runs"), tmp_path / "out", 9)
    results = Results.load(tmp_path / "out")
    results.save(tmp_path / "again")
    again = Results.load(tmp_path / "again")
    for key, value in vars(results).items():
        if isinstance(value, pd.DataFrame):
            pd.testing.assert_frame_equal(value, getattr(again, key))
        else:
            assert value == getattr(again, key), key


def test_names_that_look_like_numbers_or_nothing_stay_names(tmp_path):
    results = results_of({("1e5", "test", m, "accuracy"): 0.5 for m in ("NA", "007")})
    results.save(tmp_path)
    found = Results.load(tmp_path).summary
    assert found["method"].tolist() == ["NA", "007"] and set(found["cohort"]) == {"1e5"}


def test_rebuilding_needs_no_torch(tmp_path):
    results_of({("a", "test", "erm", "accuracy"): 0.5}).save(tmp_path)
    code = "import sys; from medprism.cli import main; main(['report', sys.argv[1]]); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, tmp_path], check=False).returncode == 0
    assert (tmp_path / "report.html").exists()


def test_a_report_from_the_runs_needs_no_suite_file(tmp_path, monkeypatch):
    fake_fit(monkeypatch, tmp_path)
    write_suite(tmp_path / "made.yaml")
    assert main(["benchmark", "--config", "made.yaml"]) == 0
    runs = Path("runs", "benchmark", "made")
    first = {name: (runs / "results" / name).read_bytes() for name in FILES}
    (tmp_path / "made.yaml").unlink()
    assert main(["report", str(runs), "--results", "elsewhere"]) == 0
    for name in ("summary.csv", "groups.csv", "summary.md", "pareto.csv"):
        assert Path("elsewhere", name).read_bytes() == first[name]
    # within the folder of the runs the page leads to them, elsewhere it names them
    linked = embedded(first["report.html"].decode())["cells"][0]["runs"][0]
    assert linked["links"]["predictions"] == f"../{linked['name']}/predictions.csv"
    assert (runs / "results" / linked["links"]["predictions"]).is_file()
    named = embedded(Path("elsewhere", "report.html").read_text())["cells"][0]
    assert named["runs"][0]["links"] == {} and "class_path: M" in named["settings"]
    # a run that is gone shows as missing
    gone = next(runs.glob("made/other/*/done.json"))
    gone.unlink()
    assert main(["report", str(runs)]) == 0
    assert "1 of 4 runs missing" in (runs / "results" / "summary.md").read_text()


def test_folders_that_no_report_can_be_made_from(tmp_path, capsys):
    for words, message in (
        ([tmp_path / "nowhere"], "nowhere has no report.json: expected the folder of a suite's runs, with suite.json"),
        ([tmp_path, "--results", tmp_path], f"--results is for a folder of runs, and {tmp_path} has no suite.json"),
    ):
        with pytest.raises(SystemExit) as ended:
            report([str(word) for word in words])
        assert ended.value.code == 2
        assert message in " ".join(capsys.readouterr().err.split())
    results_of({("a", "test", "erm", "accuracy"): 0.5}).save(tmp_path)
    (tmp_path / "groups.csv").unlink()
    with pytest.raises(ReportError, match=r"has no groups\.csv.*--tables-only"):
        publish(tmp_path)


def test_no_place_of_this_machine_reaches_the_results(tmp_path):
    place = tmp_path / "my data"
    plan = plan_of(tmp_path)
    plan = Plan(**{**vars(plan), "data": str(place)})
    made = runs_of(tmp_path / "runs", config={"data": {"init_args": {"root": f"{place}/xrays", "split_seed": 3}}})
    write(plan, made, tmp_path / "out", 5)
    record = json.loads((tmp_path / "out" / "report.json").read_text())
    assert "root: '{data}/xrays'" in record["cells"][0]["settings"]
    assert "seed" not in record["cells"][0]["settings"].replace("seed: 0", "")
    for name in ("report.json", "report.html", "environment.json"):
        assert str(tmp_path) not in (tmp_path / "out" / name).read_text()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("50 % of a_b & c#1", r"50 \% of a\_b \& c\#1"),
        ("\\x{y}$^~", r"\textbackslash{}x\{y\}\$\textasciicircum{}\textasciitilde{}"),
        ("0.5 ± 0.1 [0.4, 0.6] <1", r"0.5 $\pm$ 0.1 {[}0.4, 0.6{]} \textless{}1"),
        ("two\nlines", "two lines"),
    ],
)
def test_latex_shows_text_word_for_word(text, wanted):
    assert escape(text) == wanted


def test_latex_has_the_numbers_of_markdown(tmp_path):
    plan = Plan(**{**vars(plan_of(tmp_path)), "labels": {"erm": "50 % & more", "other": "o|ther"}})
    text = write(plan, runs_of(tmp_path / "runs"), tmp_path / "out", 9)
    tex = (tmp_path / "out" / "tables.tex").read_text()
    for rule in ("toprule", "midrule", "bottomrule"):
        assert tex.count(rf"\{rule}") == 2  # metrics and cost
    line = next(line for line in tex.splitlines() if line.startswith(r"50 \% \& more & 2 & "))
    cells = line.removesuffix(r" \\").replace(r"$\pm$", "±").replace("{[}", "[").replace("{]}", "]").split(" & ")
    row = next(line for line in text.splitlines() if line.startswith("| 50 % & more"))
    assert cells[1:] == row.strip("| ").split(" | ")[1:] and len(cells) == 8
    assert r"| o\|ther | 2 |" in text
    widths = {
        line.count("&") - line.count(r"\&")
        for line in tex.split(r"\bottomrule")[0].splitlines()
        if line.endswith(r"\\")
    }
    assert widths == {7}


def test_cost_stands_beside_quality(tmp_path):
    made = runs_of(tmp_path / "runs")
    for s, outcome in enumerate(o for o in made if o.job.method == "erm"):
        cost = {"parameters": 1234567, "trained_parameters": 1200000, "seconds_per_epoch": 1.5 + s}
        (outcome.folder / "cost.json").write_text(json.dumps(cost))
    text = write(plan_of(tmp_path), made, tmp_path / "out", 9)
    last = text[text.index("Cost on") :]
    titles = "| method | parameters | trained parameters | seconds per epoch | seconds per run | peak memory, MB |"
    assert titles in last
    assert "| erm | 1,234,567 | 1,200,000 | 2.00 ± 0.71 | 2 ± 1 | 100 ± 0 |" in last
    assert "| other |  |  |  | 2 ± 1 | 100 ± 0 |" in last  # written before costs were recorded


def test_figures_of_runs_come_along_small_and_few(tmp_path):
    made = runs_of(tmp_path / "runs")
    folder = made[0].folder / "figures"
    folder.mkdir()
    names = ["deletion", "disease_maps", "overlap_sex", "reading_1", "reading_2", "zzz"]
    for name in names:
        Image.fromarray(np.full((800, 3000, 3), 200, dtype=np.uint8)).save(folder / f"{name}.png")
    out = tmp_path / "out"
    write(plan_of(tmp_path), made, out, 5)
    results = Results.load(out)
    assert [each.name for each in results.maps] == ["disease_maps", "reading_1", "reading_2", "overlap_sex"]
    assert results.maps_left_out == 2
    with Image.open(out / results.maps[0].file) as picture:
        assert picture.size == (1000, 267)
    assert (out / "report.html").read_text().count("data:image/webp;base64,") == 4
    write(plan_of(tmp_path), runs_of(tmp_path / "others"), out, 5)
    assert not list((out / "maps").glob("*")) and not Results.load(out).maps


def test_names_cannot_break_out_of_the_page(tmp_path):
    bad = "</script><script>alert(1)</script>\u2028"
    results = results_of({("a", "test", "erm", "accuracy"): 0.5}, title=bad, labels={"erm": bad}, name=bad)
    results.save(tmp_path)
    html = page(results, pd.DataFrame(columns=["gap"]), pd.DataFrame(columns=["set", "metric"]), [], tmp_path)
    assert html.count("<script") == 2 and html.count("</script>") == 2
    assert embedded(html)["labels"]["erm"] == bad
    assert "\u2028" not in html.partition('id="data"')[2]
    assert "{{" not in html


def test_simulated_cohorts_and_the_rules_are_in_the_data_of_the_page(tmp_path):
    write(plan_of(tmp_path), runs_of(tmp_path / "runs"), tmp_path / "out", 9)
    found = embedded((tmp_path / "out" / "report.html").read_text())
    assert COHORT.simulated and found["cohorts"][0]["simulated"] is True
    assert (found["selection"], found["resamples"], found["seeds"]) == (["val/auroc"], 9, [0, 1])
