from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from test_evaluator import Data, Toy, trainer_for

from medprism.cohort import Cohort
from medprism.evaluation import Evaluator, Predictions, evaluate
from medprism.evaluation.sets import divide, evaluate_sets, sets_table

Make = Callable[..., Predictions]
MakeCohort = Callable[..., Cohort]


class WithSets(Data):
    def __init__(self, sets: dict[str, tuple[str, ...]] | None) -> None:
        super().__init__()
        self.test_sets = sets


SETS = {"inverted": ("s1", "s4", "s8", "s5"), "balanced": ("s0", "s1", "s2", "s3")}


def measured(folder: Path, sets: Any, **settings: Any) -> tuple[pl.Trainer, Evaluator]:
    evaluator = Evaluator(bootstrap=20)
    trainer = trainer_for(folder, evaluator, **settings)
    trainer.test(Toy(), datamodule=WithSets(sets), verbose=False)
    return trainer, evaluator


@pytest.mark.filterwarnings("ignore")
def test_each_set_is_measured_logged_written_and_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer, _ = measured(tmp_path, SETS)
    metrics = json.loads((tmp_path / "metrics.json").read_text())["test"]
    assert list(metrics["sets"]) == ["inverted", "balanced"] and metrics["n"] == 9
    inverted = metrics["sets"]["inverted"]
    assert inverted["n"] == 4 and inverted["leakage"] == {} and metrics["leakage"]
    value = inverted["performance"]["accuracy"]["value"]
    assert inverted["performance"]["accuracy"]["low"] <= value
    assert float(trainer.callback_metrics["test/inverted/accuracy"]) == pytest.approx(value)
    assert (
        "test/balanced/worst_cell/accuracy" in trainer.callback_metrics and "test/accuracy" in trainer.callback_metrics
    )
    frame = pd.read_csv(tmp_path / "predictions.csv", keep_default_na=False).set_index("id")
    assert frame["sets"].to_dict() == {
        "s0": "balanced", "s1": "inverted;balanced", "s2": "balanced", "s3": "balanced", "s4": "inverted",
        "s5": "inverted", "s6": "", "s7": "", "s8": "inverted",
    }  # fmt: skip
    printed = capsys.readouterr().out
    assert "on each test set" in printed and "inverted" in printed
    # the number is that of these rows alone
    right = [name for name in SETS["inverted"] if frame.loc[name, "target"] == frame.loc[name, "predicted"]]
    assert value == len(right) / 4


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("sets", [None, {}])
def test_without_sets_nothing_changes(tmp_path: Path, sets: Any) -> None:
    _, evaluator = measured(tmp_path, sets)
    assert evaluator.metrics["test"]["sets"] == {}
    assert "sets" not in pd.read_csv(tmp_path / "predictions.csv")


@pytest.mark.filterwarnings("ignore")
def test_unknown_ids_are_refused_unless_batches_were_limited(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"test set 'a' has 1 of 2 ids that were not tested, such as 'nobody'"):
        measured(tmp_path, {"a": ("s0", "nobody")})
    _, evaluator = measured(tmp_path / "limited", {"a": ("s0", "s8"), "b": ("s7",)}, limit_test_batches=1)
    notes = evaluator.metrics["test"]["notes"]
    assert "test set a: 1 of 2 samples were not tested (limited batches)" in notes
    assert "test set b: no sample with a known disease; not measured" in notes
    assert list(evaluator.metrics["test"]["sets"]) == ["a"]


def test_empty_sets_and_bad_names(cohort_of: MakeCohort, predictions_of: Make) -> None:
    p, cohort = predictions_of(), cohort_of()
    blind = dataclasses.replace(p, target=np.where(np.arange(len(p)) < 3, -1, p.target))
    found, notes = divide(blind, {"empty": (), "blind": p.ids[:3], "rest": p.ids[3:9]}, cohort)
    assert list(found) == ["rest"]
    assert notes == [f"test set {name}: no sample with a known disease; not measured" for name in ("empty", "blind")]
    for name in ("sex", "leakage", "a/b", "a;b", ""):
        with pytest.raises(ValueError, match=f"a test set is called '{name}'"):
            divide(p, {name: p.ids[:3]}, cohort)


@pytest.mark.parametrize(("kind", "classes"), [("classes", 2), ("labels", 2), ("value", 0)])
def test_the_table_of_every_kind_of_target(
    kind: str, classes: int, cohort_of: MakeCohort, predictions_of: Make
) -> None:
    p, cohort = predictions_of(classes=classes, kind=kind), cohort_of(tuple("ab"[:classes]), kind)
    heads = np.eye(2)[p.attributes["sex"]]
    p = dataclasses.replace(p, heads={"sex": heads})
    metrics = evaluate(p, cohort, bootstrap=10)
    metrics["sets"] = evaluate_sets(
        divide(p, {"same": p.ids[:60], "other": p.ids[60:]}, cohort)[0], cohort, bootstrap=10
    )
    file = io.StringIO()
    Console(file=file, width=250).print(sets_table(metrics))
    printed = file.getvalue()
    assert "(simulated)" in printed and "head of sex, accuracy" in printed and "1.000" in printed
    assert ("worst cell (disease x sex)" in printed) == (kind == "classes")
    assert ("mae" in printed) == (kind == "value")
