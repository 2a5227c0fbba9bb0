from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import metrics as sk

from medprism.cohort import Cohort, Factor
from medprism.evaluation import Predictions, evaluate, flatten
from medprism.evaluation.report import scores
from medprism.methods import ERM, NeuroLIP

from examples import make_batch, make_cohort

Make = Callable[..., Predictions]
MakeCohort = Callable[..., Cohort]


def with_heads(p: Predictions, seed: int = 0) -> Predictions:
    rng = np.random.default_rng(seed)
    heads = {}
    for name, classes in (("sex", 2), ("site", 3)):
        raw = rng.dirichlet(np.ones(classes), len(p)) + 0.7 * np.eye(classes)[p.attributes[name].clip(0)]
        heads[name] = raw / raw.sum(axis=1, keepdims=True)
    return dataclasses.replace(p, heads=heads)


def test_heads_are_measured_as_sklearn_does(cohort_of: MakeCohort, predictions_of: Make) -> None:
    p, cohort = with_heads(predictions_of()), cohort_of()
    found = evaluate(p, cohort, bootstrap=50)["heads"]
    for name in ("sex", "site"):
        known = p.attributes[name] >= 0
        truth, head = p.attributes[name][known], p.heads[name][known]
        assert found[name]["n"] == known.sum()
        assert found[name]["accuracy"]["value"] == pytest.approx(np.mean(head.argmax(1) == truth))
        assert found[name]["balanced_accuracy"]["value"] == pytest.approx(
            sk.balanced_accuracy_score(truth, head.argmax(1))
        )
        assert found[name]["accuracy"]["low"] < found[name]["accuracy"]["value"] < found[name]["accuracy"]["high"]
    assert found["sex"]["auroc"]["value"] == pytest.approx(sk.roc_auc_score(p.attributes["sex"], p.heads["sex"][:, 1]))
    flat = flatten(evaluate(p, cohort, bootstrap=0))
    assert flat["heads/site/accuracy"] == found["site"]["accuracy"]["value"]
    assert scores(p, cohort) == pytest.approx(flat, abs=1e-9)


def test_what_cannot_be_measured_is_said(cohort_of: MakeCohort, predictions_of: Make) -> None:
    p = with_heads(predictions_of())
    lone = dataclasses.replace(p, attributes={"sex": np.zeros(len(p), int), "site": np.full(len(p), -1)})
    metrics = evaluate(lone, cohort_of(), bootstrap=0)
    assert metrics["heads"]["sex"]["auroc"]["value"] is None
    assert metrics["heads"]["sex"]["balanced_accuracy"]["value"] is None
    assert "head of sex: no sample is male; metrics that need one leave it out" in metrics["notes"]
    assert "site" not in metrics["heads"]
    assert "head of site: no sample has a known site; not measured" in metrics["notes"]
    with pytest.raises(ValueError, match=r"the head of 'sex' gave .* expected 2 probabilities that sum to 1"):
        evaluate(dataclasses.replace(p, heads={"sex": p.heads["sex"] * 3}), cohort_of(), bootstrap=0)


def test_heads_travel_with_their_rows(predictions_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    p = with_heads(predictions_of(9))
    outputs = [
        {
            "id": p.ids[i : i + 3],
            "subject": p.subjects[i : i + 3],
            "probabilities": torch.tensor(p.probabilities[i : i + 3]),
            "heads": {name: torch.tensor(head[i : i + 3]) for name, head in p.heads.items()},
        }
        for i in (6, 0, 3)
    ]
    collected = Predictions.collect(outputs)  # type: ignore[arg-type]
    shares = [collected.take(np.arange(5)), collected.take(np.arange(4, 9))]  # one copy, as samplers pad
    monkeypatch.setattr("medprism.evaluation.predictions.gather_objects", lambda _: shares)
    back = collected.gather()
    assert back.ids == p.ids
    for name, head in p.heads.items():
        np.testing.assert_array_equal(back.heads[name], head)
    with pytest.raises(ValueError, match="some batches have 'heads'"):
        Predictions.collect([outputs[0], {k: v for k, v in outputs[1].items() if k != "heads"}])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"9 ids, but .*heads.*8"):
        dataclasses.replace(p, heads={"sex": p.heads["sex"][:8]})


def test_a_file_holds_heads_in_columns_that_people_can_read(
    tmp_path: Path, cohort_of: MakeCohort, predictions_of: Make
) -> None:
    p, cohort, path = with_heads(predictions_of(20)), cohort_of(), tmp_path / "predictions.csv"
    p.save(path, "test", cohort)
    predictions_of(6, seed=3).save(path, "predict", cohort)  # another stage, without heads
    columns = list(pd.read_csv(path).columns)
    assert columns[columns.index("sex") :][:3] == ["sex", "prob_sex=female", "prob_sex=male"]
    back = Predictions.load(path, "test", cohort)
    np.testing.assert_allclose(back.heads["site"], p.heads["site"], rtol=0, atol=1e-9)
    assert Predictions.load(path, "predict", cohort).heads == {}
    clash = dataclasses.replace(cohort, target=Factor("disease", ("sex=female", "b"), role="target"))
    with pytest.raises(ValueError, match="attribute 'sex' has the name of a column"):
        p.to_frame(clash)


def test_methods_give_the_heads_they_have() -> None:
    cohort = make_cohort()
    batch = make_batch(cohort, 6)
    output = NeuroLIP(cohort.to_dict()).eval().predict_step(batch, 0)
    assert set(output["heads"]) == {"sex", "age"}  # its sensitive attributes, not the target
    assert torch.allclose(output["heads"]["age"].sum(1), torch.ones(6))
    assert ERM(cohort.to_dict()).eval().predict_step(batch, 0)["heads"] == {}
