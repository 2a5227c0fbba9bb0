import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_runs import finished, predictions_of, write_suite

from medprism.benchmark.collect import write
from medprism.benchmark.plan import Plan
from medprism.benchmark.suite import Suite

COMMAND = "lightning benchmark --config made.yaml"
MONITOR = {"checkpoint": {"monitor": "val/mean_cell/accuracy"}}


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    """They take most of the time, and have tests of their own."""
    monkeypatch.setattr("medprism.benchmark.charts.draw", lambda *args: None)


def suite_of(folder: Path, **changes) -> Plan:
    methods = {"erm": {}, "other": {}, "oracle": {}}
    suite = Suite.read(write_suite(folder / "made.yaml", methods, **changes))
    suite.methods["erm"]["label"] = "ERM"
    return Plan.of(suite, COMMAND)


def row_of(text: str, label: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {label}"))
    return [part.strip() for part in line.strip("|").split("|")]


def with_sets(**metrics):
    ids = predictions_of(0).ids
    return {"sets": {"inverted": ids[30:], "same": ids[:30]}, "metrics": metrics, "config": MONITOR}


def test_the_table_of_a_complete_cell(tmp_path):
    made = [finished(tmp_path, "erm", s, predictions_of(s), config=MONITOR) for s in (0, 1)]
    text = write(suite_of(tmp_path), made, tmp_path / "out", 50)
    assert text == (tmp_path / "out" / "summary.md").read_text()
    header = text.split("\n\n")[0]
    assert header.startswith(f"Written by `{COMMAND}`. Made up. Mean over seeds ± standard deviation (ddof 1)")
    assert "Epochs are chosen by `val/mean_cell/accuracy` on the validation part" in header
    assert "### made (simulated): disease" in text and "Samples of a seed: test 60." in text
    summary = pd.read_csv(tmp_path / "out" / "summary.csv").set_index("metric")
    right = [(p.probabilities.argmax(1) == p.target).mean() for p in (predictions_of(0), predictions_of(1))]
    assert summary["mean"]["accuracy"] == pytest.approx(np.mean(right), abs=1e-4)
    first = summary.loc["accuracy"]
    number = f"{first['mean']:.3f} ± {first['sd']:.3f} [{first['low']:.3f}, {first['high']:.3f}]"
    assert row_of(text, "ERM")[:3] == ["ERM", "2", number]
    record = json.loads((tmp_path / "out" / "environment.json").read_text())
    assert record["code_of_runs"] == ["now"] and record["command"] == COMMAND
    assert set(pd.read_csv(tmp_path / "out" / "extras.csv")["what"]) == {"seconds", "peak memory, MB"}


def test_the_header_names_every_rule_of_selection(tmp_path):
    made = [
        finished(tmp_path, "erm", 0, predictions_of(0), config=MONITOR),
        finished(tmp_path, "other", 0, predictions_of(1)),
    ]
    text = write(suite_of(tmp_path), made, tmp_path / "out", 5)
    assert "chosen by `val/auroc` or `val/mean_cell/accuracy` on" in text


def test_incomplete_cells_are_marked(tmp_path):
    made = [
        finished(tmp_path, "erm", 0, predictions_of(0)),
        finished(tmp_path, "erm", 1, predictions_of(1), state="missing"),
        finished(tmp_path, "other", 0, predictions_of(2), state="failed"),
        finished(tmp_path, "other", 1, predictions_of(2), state="missing"),
        finished(tmp_path, "oracle", 0, predictions_of(3), state="stale", code="old"),
    ]
    text = write(suite_of(tmp_path), made, tmp_path / "out", 9)
    assert row_of(text, "ERM")[:2] == ["ERM (1 of 2 runs missing)", "1"]
    assert row_of(text, "other")[:3] == ["other", "0", "2 of 2 runs missing; 1 failed"]
    assert row_of(text, "oracle")[0] == "oracle (code or data have changed since)"
    assert set(pd.read_csv(tmp_path / "out" / "summary.csv")["method"]) == {"erm", "oracle"}
    widths = {line.count("|") for line in text.split("Cost on")[0].splitlines() if line.startswith("|")}
    assert len(widths) == 1


def test_nothing_finished_is_said_and_the_files_can_be_read(tmp_path):
    made = [finished(tmp_path, "erm", 0, predictions_of(0), state="failed")]
    text = write(suite_of(tmp_path), made, tmp_path / "out")
    assert "### made\n\nNo seed is finished: erm, 1 of 1 runs missing; 1 failed." in text
    for name in ("summary.csv", "extras.csv"):
        assert pd.read_csv(tmp_path / "out" / name).empty


def test_what_a_method_does_not_define(tmp_path):
    one_class = predictions_of(0)
    one_class.target[:] = 0
    made = [finished(tmp_path, "erm", 0, predictions_of(1)), finished(tmp_path, "other", 0, one_class)]
    text = write(suite_of(tmp_path, shown=["auroc", "accuracy"]), made, tmp_path / "out", 9)
    assert row_of(text, "other")[2] == "not defined" and row_of(text, "ERM")[2] != "not defined"


def test_shares_of_the_ceiling(tmp_path):
    made = [
        finished(tmp_path, method, 0, predictions_of(seed, skill), **with_sets())
        for method, seed, skill in (("erm", 1, 0.3), ("other", 2, 3.0), ("oracle", 3, 1.0))
    ]
    shown = ["accuracy", "worst_cell/accuracy", "auroc"]
    text = write(suite_of(tmp_path, ceiling="oracle", shown=shown), made, tmp_path / "out", 9)
    assert "(.9 of oracle): share of its mean on the same set" in text.split("\n\n")[0]
    mean = pd.read_csv(tmp_path / "out" / "summary.csv").set_index(["set", "method", "metric"])["mean"]
    columns = [(each, metric) for each in ("same", "inverted") for metric in shown]
    for label, method in (("ERM", "erm"), ("other", "other")):
        for cell, (where, metric) in zip(row_of(text, label)[2:], columns, strict=True):
            share = mean[where, method, metric] / mean[where, "oracle", metric]
            wanted = f"({share:.2f} of oracle)".replace("(0.", "(.")
            assert cell.endswith(wanted) if metric != "auroc" else "of oracle" not in cell
    assert "(1." in text and "(." in text
    assert not any("of oracle" in cell for cell in row_of(text, "oracle"))
    assert "of oracle" not in write(suite_of(tmp_path), made, tmp_path / "out", 9)


def test_the_second_table_shows_heads_and_dominance(tmp_path):
    def measured(x):
        head = {"sex": {"accuracy": {"value": x, "low": None, "high": None}, "auroc": {"value": 0.1}, "n": 60}}
        return {
            "heads": head,
            "sets": {"same": {"heads": head}, "inverted": {"heads": head}},
            "latent": {"dominance": {"knn": {"value": x / 2, "low": None, "high": None}, "mlp": {"value": None}}},
        }

    made = [finished(tmp_path, "other", s, predictions_of(s), **with_sets(**measured(0.5 + 0.2 * s))) for s in (0, 1)]
    made.append(finished(tmp_path, "erm", 0, predictions_of(5), **with_sets()))
    text = write(suite_of(tmp_path), made, tmp_path / "out", 9)
    second = text[text.index("Accuracy of the heads") : text.index("Cost on")]
    titles = "| method | same: head of sex | inverted: head of sex | diagonal dominance, knn |"
    assert titles in second
    assert row_of(second, "other") == ["other", "0.600 ± 0.141", "0.600 ± 0.141", "0.300 ± 0.071"]
    assert "| ERM" not in second
    plain = [finished(tmp_path / "b", "erm", 0, predictions_of(5), metrics=measured(0.5))]
    assert "Accuracy of the heads" not in write(suite_of(tmp_path), plain, tmp_path / "out", 9)


def test_the_third_table_shows_images_and_texts_beside_what_needs_no_model(tmp_path):
    def measured(x):
        return {
            "alignment": {
                "zero_shot": {"macro_f1": {"value": x}, "constant": {"macro_f1": {"value": 0.1}, "class": "no"}},
                "linear_probe": {"percent_10": {"auroc": {"value": None}, "chance": {"auroc": {"value": 0.5}}}},
                "retrieval": {
                    "text_to_image": {"recall_at_5": {"value": x}, "chance": {"recall_at_5": {"value": 0.2}}}
                },
                "grounding": {"gaze": {"cc": {"value": x / 2}, "centre_bias": {"cc": {"value": 0.3}}}},
            }
        }

    made = [finished(tmp_path, "other", s, predictions_of(s), metrics=measured(0.5 + 0.2 * s)) for s in (0, 1)]
    made.append(finished(tmp_path, "erm", 0, predictions_of(5)))
    text = write(suite_of(tmp_path), made, tmp_path / "out", 9)
    third = text[text.index("Images and texts") : text.index("Cost on")]
    assert "| method | zero-shot macro F1 | R@5, text to image | correlation, gaze |" in third
    assert row_of(third, "other") == ["other", "0.600 ± 0.141", "0.600 ± 0.141", "0.300 ± 0.071"]
    assert row_of(third, "without a model") == ["without a model", "0.100", "0.200", "0.300"]
    assert "| ERM" not in third
