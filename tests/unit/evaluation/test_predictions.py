from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from medprism.cohort import Cohort
from medprism.evaluation import Predictions, StepOutput, evaluate
from medprism.evaluation import predictions as module

Make = Callable[..., Predictions]
MakeCohort = Callable[..., Cohort]


def batch(ids: list[str], value: float = 0.25, dtype: torch.dtype = torch.float32) -> StepOutput:
    n = len(ids)
    return {
        "id": ids,
        "subject": ["p" + name for name in ids],
        "probabilities": torch.tensor([[1 - value, value]] * n, dtype=dtype),
        "target": torch.ones(n, dtype=torch.long),
        "attributes": {"sex": torch.zeros(n, dtype=torch.long)},
        "blocks": {"z": torch.full((n, 3), value)},
    }


def test_collect_joins_batches_and_half_precision() -> None:
    joined = Predictions.collect([batch(["b", "a"]), batch(["c"], 0.5, torch.bfloat16)])
    assert joined.ids == ["b", "a", "c"] and joined.subjects == ["pb", "pa", "pc"]
    assert joined.probabilities.dtype == np.float64 and joined.probabilities[2, 1] == 0.5
    assert joined.target is not None and joined.target.dtype == np.int64
    assert joined.blocks["z"].shape == (3, 3) and joined.blocks["z"].dtype == np.float32
    assert len(Predictions.collect([])) == 0


def test_collect_refuses_copies_and_mixed_batches() -> None:
    with pytest.raises(ValueError, match="id 'a' comes twice"):
        Predictions.collect([batch(["a"]), batch(["b", "a"])])
    lacking = batch(["b"])
    del lacking["target"]
    with pytest.raises(ValueError, match="some batches have 'target'"):
        Predictions.collect([batch(["a"]), lacking])


def test_gather_drops_padding_and_sorts(monkeypatch: pytest.MonkeyPatch, predictions_of: Make) -> None:
    whole = predictions_of(11)
    empty = Predictions.collect([])
    shares = [whole.take(np.array(rows)) for rows in ([10, 0, 2, 4, 6, 8], [1, 3, 5, 7, 9, 0])]
    monkeypatch.setattr(module, "gather_objects", lambda _: [shares[0], empty, shares[1]])
    gathered = empty.gather()
    assert gathered.ids == sorted(whole.ids)
    for name in ("probabilities", "target"):
        np.testing.assert_array_equal(getattr(gathered, name), getattr(whole, name))
    np.testing.assert_array_equal(gathered.blocks["z"], whole.blocks["z"])
    other = dataclasses.replace(shares[1], subjects=["stranger"] * 6)
    monkeypatch.setattr(module, "gather_objects", lambda _: [shares[0], other])
    with pytest.raises(ValueError, match="'scan0000' stands for two different samples"):
        empty.gather()


def test_rows_must_agree() -> None:
    with pytest.raises(ValueError, match=r"2 ids, but \{'target': 3\}"):
        Predictions(["a", "b"], ["a", "b"], np.zeros((2, 2)), np.zeros(3))


@pytest.mark.parametrize(("kind", "classes"), [("classes", 2), ("classes", 3), ("labels", 3), ("value", 0)])
def test_a_saved_file_gives_the_same_metrics(
    kind: str, classes: int, tmp_path: Path, cohort_of: MakeCohort, predictions_of: Make
) -> None:
    names = ("NA", "None", "1")[:classes]  # names that a careless reader takes for numbers or holes
    cohort, predictions = cohort_of(names, kind), predictions_of(60, classes, kind)
    predictions = dataclasses.replace(predictions, ids=[f"{i:03d}" for i in range(60)])
    path = tmp_path / "deep" / "predictions.csv"
    predictions.save(path, "test", cohort)
    back = Predictions.load(path, "test", cohort)
    assert back.ids == predictions.ids and back.subjects == predictions.subjects
    np.testing.assert_allclose(back.probabilities, predictions.probabilities, rtol=0, atol=1e-9)
    assert evaluate(back, cohort, bootstrap=20) == evaluate(predictions, cohort, bootstrap=20)


def test_saving_replaces_only_its_stage(tmp_path: Path, cohort_of: MakeCohort, predictions_of: Make) -> None:
    cohort, path = cohort_of(), tmp_path / "predictions.csv"
    first, second = predictions_of(10), predictions_of(6, seed=1)
    first.save(path, "test", cohort)
    dataclasses.replace(second, target=None).save(path, "predict", cohort)
    second.save(path, "test", cohort)
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    assert frame.columns[0] == "stage" and frame["stage"].value_counts().to_dict() == {"test": 6, "predict": 6}
    assert Predictions.load(path, "predict", cohort).target is None
    np.testing.assert_array_equal(Predictions.load(path, "test", cohort).probabilities, second.probabilities)
    with pytest.raises(ValueError, match="no rows of stage 'val'"):
        Predictions.load(path, "val", cohort)


def test_frame_has_names_for_people(cohort_of: MakeCohort) -> None:
    predictions = Predictions(
        ["a", "b"], ["p", "q"], np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([1, -1]),
        {"sex": np.array([0, -1])},
    )  # fmt: skip
    frame = predictions.to_frame(cohort_of())
    assert list(frame.columns) == ["id", "subject", "target", "prob_control", "prob_autism", "predicted", "sex"]
    assert list(frame["target"]) == ["autism", ""] and list(frame["predicted"]) == ["control", "autism"]
    assert list(frame["sex"]) == ["female", ""]
    with pytest.raises(ValueError, match="'sex' has code 2, but its 2 classes"):
        dataclasses.replace(predictions, attributes={"sex": np.array([0, 2])}).to_frame(cohort_of())
