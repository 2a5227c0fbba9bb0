from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from medprism.cohort import Cohort, Factor
from medprism.evaluation import Evaluator, Predictions, evaluate, flatten
from medprism.evaluation.critics import fresh_critic_mi
from medprism.evaluation.latent import dominance, factor_of, latent, latent_table, matrix, switched_label
from medprism.evaluation.probes import cross_probe, probe

COHORT = Cohort(
    "simulated", ("image", "target", "attributes"), (1, 4, 4), Factor("digit", ("low", "high"), role="target"),
    attributes=(Factor("stroke", ("thin", "thick")), Factor("site", ("A", "B", "C"))), simulated=True,
)  # fmt: skip


def samples(n: int = 240, ratio: float = 0.5, leak: float = 0.0, seed: int = 0, spread: float = 0.3) -> Predictions:
    """Blocks that hold their own factor, and the target's block the stroke too, as far as `leak` says."""
    rng = np.random.default_rng(seed)
    y, site = rng.integers(0, 2, n), rng.integers(0, 3, n)
    stroke = np.where(rng.random(n) < ratio, y, 1 - y)
    noise = lambda: spread * rng.normal(size=n)  # noqa: E731
    own = np.column_stack([2 * y - 1 + noise(), leak * (2 * stroke - 1) + noise()])
    positive = np.clip(0.5 + 0.4 * (2 * (stroke if leak else y) - 1), 0, 1)
    return Predictions(
        ids=[f"{seed}_{i}" for i in range(n)],
        subjects=[f"{seed}_{i // 2}" for i in range(n)],
        probabilities=np.column_stack([1 - positive, positive]),
        target=y,
        attributes={"stroke": stroke, "site": site},
        blocks={
            "target": own.astype(np.float32),
            "stroke": np.column_stack([2 * stroke - 1 + noise(), noise()]).astype(np.float32),
        },
    )


# -------------------------------------------------------------------------------------------------------- probes
def test_neighbours_are_those_of_sklearn() -> None:
    fit, score = samples(300, leak=0.4, seed=1, spread=1.0), samples(200, leak=0.4, seed=2, spread=1.0)
    found, _ = matrix(fit, score, COHORT, bootstrap=0, confidence=0.95, seed=0)
    scaler = StandardScaler().fit(fit.blocks["target"].astype(float))
    model = KNeighborsClassifier(30).fit(scaler.transform(fit.blocks["target"].astype(float)), fit.attributes["site"])
    chosen = model.predict(scaler.transform(score.blocks["target"].astype(float)))
    expected = balanced_accuracy_score(score.attributes["site"], chosen)
    assert found["target"]["site"]["knn"] == {
        "value": pytest.approx(expected), "low": None, "high": None, "chance": pytest.approx(1 / 3),
    }  # fmt: skip


def test_cross_fitting_is_that_of_plain_loops() -> None:
    p = samples(200, leak=0.4, spread=1.5)
    x, y, people = p.blocks["target"].astype(float), p.attributes["stroke"], np.repeat(np.arange(100), 2)
    result, notes = cross_probe(x, y, people, ("thin", "thick"), seed=3)
    assert result is not None and notes == []
    largest, probabilities = y.reshape(100, 2).max(axis=1), np.zeros(200)
    for fit, held_out in StratifiedKFold(5, shuffle=True, random_state=3).split(largest, largest):
        train, score = np.isin(people, fit), np.isin(people, held_out)
        assert not set(people[train]) & set(people[score])
        scaler = StandardScaler().fit(x[train])
        model = LogisticRegression().fit(scaler.transform(x[train]), y[train])
        probabilities[score] = model.predict_proba(scaler.transform(x[score]))[:, 1]
    np.testing.assert_allclose(result[1].scores[:, 0], probabilities, atol=1e-9)


def test_only_the_nonlinear_probes_see_an_exclusive_or() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 2))
    y = (x[:, 0] * x[:, 1] > 0).astype(int)
    found = {}
    for kind in ("linear", "mlp", "knn"):
        result, _ = cross_probe(x, y, np.arange(600), ("a", "b"), kind)  # type: ignore[arg-type]
        assert result is not None
        found[kind] = result[1].correct.mean()
    assert found["linear"] < 0.6 and found["mlp"] > 0.9 and found["knn"] > 0.85


def test_people_stay_on_one_side() -> None:
    rng = np.random.default_rng(0)
    people = np.repeat(np.arange(40), 10)
    x, y = rng.normal(size=(40, 8))[people], rng.integers(0, 2, 40)[people]  # a person's samples are copies
    together, _ = cross_probe(x, y, people, ("a", "b"), "mlp")
    apart, _ = cross_probe(x, y, np.arange(400), ("a", "b"), "mlp")
    assert together is not None and apart is not None
    assert together[1].correct.mean() < 0.7 < 0.8 < apart[1].correct.mean()


def test_single_and_rare_classes_are_said() -> None:
    x, people = np.random.default_rng(0).normal(size=(40, 2)), np.arange(40)
    rare = np.where(people < 3, 2, people % 2)
    result, notes = cross_probe(x, rare, people, ("a", "b", "c"))
    assert result is not None and len(result[0]) == 37 and notes == ["c has 3 subjects, fewer than 5 folds; left out"]
    result, notes = cross_probe(x, np.where(people < 20, 0, -1), people, ("a", "b"))
    assert result is None and notes == ["only a has 5 subjects or more; not probed"]
    few, _ = probe(x[:8], rare[:8] % 2, x, rare % 2, ("a", "b"), "knn")  # fewer than 30 to be neighbours
    assert few is not None


# -------------------------------------------------------------------------------------------------------- matrix
def test_blocks_that_are_taken_apart_have_a_diagonal() -> None:
    found, notes = matrix(samples(seed=1), samples(seed=2), COHORT, bootstrap=50, confidence=0.95, seed=0)
    assert notes == []
    for measure in ("knn", "linear", "mlp"):
        for block, own, other in (("target", "digit", "stroke"), ("stroke", "stroke", "digit")):
            entry = found[block][own][measure]
            assert entry["value"] > 0.97 and entry["low"] <= entry["value"] <= entry["high"]  # type: ignore[operator]
            assert found[block][other][measure]["value"] == pytest.approx(0.5, abs=0.1)
            assert found[block]["site"][measure]["chance"] == pytest.approx(1 / 3)
        assert dominance(found, COHORT, measure) > 0.85  # type: ignore[operator]
    assert "linear_within" not in found["target"]["digit"] and "mlp_within" in found["target"]["stroke"]


def test_a_planted_leak_is_found_also_within_the_class() -> None:
    leaky = matrix(samples(leak=1, seed=1), samples(leak=1, seed=2), COHORT, bootstrap=0, confidence=0.95, seed=0)[0]
    assert all(leaky["target"]["stroke"][m]["value"] > 0.97 for m in ("knn", "linear", "mlp", "mlp_within"))  # type: ignore[operator]
    # a block that knows the target alone tells a correlated attribute, but not within the class
    honest = samples(400, ratio=0.9, seed=3)
    found, _ = matrix(honest, honest, COHORT, bootstrap=0, confidence=0.95, seed=0)
    assert found["target"]["stroke"]["linear"]["value"] > 0.85  # type: ignore[operator]
    assert found["target"]["stroke"]["linear_within"]["value"] == pytest.approx(0.5, abs=0.1)


def test_dominance_has_its_closed_form() -> None:
    def entry(value: float, chance: float) -> dict[str, dict[str, float | None]]:
        return {"knn": {"value": value, "chance": chance}}

    found = {
        "target": {"digit": entry(0.9, 0.5), "stroke": entry(0.6, 0.5), "site": entry(1 / 3, 1 / 3)},
        "stroke": {"digit": entry(0.4, 0.5), "stroke": entry(1.0, 0.5), "site": entry(0.4, 1 / 3)},
        "pooled": {"digit": entry(1.0, 0.5), "stroke": entry(1.0, 0.5), "site": entry(1.0, 1 / 3)},
    }
    diagonal, beside = (0.8 + 1.0) / 2, (0.2 + 0.0 + 0.2 + 0.1) / 4
    assert dominance(found, COHORT, "knn") == pytest.approx(diagonal / (diagonal + beside))
    assert dominance({"pooled": found["pooled"]}, COHORT, "knn") is None
    everything = {"target": found["pooled"], "stroke": found["pooled"]}
    assert dominance(everything, COHORT, "knn") == pytest.approx(0.5)
    two = {b: {f: e for f, e in row.items() if f != "site"} for b, row in found.items()}  # the published form
    diagonal, beside = np.mean([0.4, 0.5]), np.mean([0.1, 0.1])
    assert dominance(two, COHORT, "knn") == pytest.approx(diagonal / (diagonal + beside))
    assert [factor_of(name, COHORT) for name in ("target", "digit", "site", "pooled")] == [
        "digit",
        "digit",
        "site",
        None,
    ]


def test_switched_labels() -> None:
    for leak, value in ((0.0, None), (1.0, 1.0)):
        p = samples(leak=leak)
        found, notes = switched_label(p, COHORT, bootstrap=30)
        assert notes == ["latent: site has 3 classes, digit has 2; no switched label"]
        agree = np.mean(p.probabilities.argmax(1) == p.attributes["stroke"])
        assert found["stroke"]["value"] == pytest.approx(agree if value is None else value)
        assert found["stroke"]["truth"] == pytest.approx(np.mean(p.target == p.attributes["stroke"]))
        assert found["stroke"]["chance"] == 0.5 and found["stroke"]["low"] <= agree <= found["stroke"]["high"]  # type: ignore[operator]
    unknown = dataclasses.replace(p, attributes={"stroke": np.full(len(p), -1)})
    assert switched_label(unknown, COHORT)[0] == {}


# ---------------------------------------------------------------------------------------------- between the blocks
def gaussians(rho: float, n: int = 2000, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(n, 2))
    return {"a": 5 * a + 3, "b": rho * a + np.sqrt(1 - rho**2) * rng.normal(size=(n, 2)), "c": rng.normal(size=(n, 1))}


def test_fresh_critics_find_what_gaussians_share() -> None:
    (related, unrelated), n = fresh_critic_mi(gaussians(0.8), [("a", "b"), ("a", "c")], np.arange(2000), steps=200)
    assert n == 400
    assert related == pytest.approx(-np.log(1 - 0.8**2), abs=0.15)  # -(d/2) log(1 - rho^2) with d = 2
    assert unrelated == pytest.approx(0, abs=0.05)


def test_a_small_cohort_is_not_learned_by_heart() -> None:
    (value,), n = fresh_critic_mi(gaussians(0.0, 60), [("a", "b")], np.arange(60), gaussians(0.0, 300, 1), steps=100)
    assert n == 300 and abs(value) < 0.1
    (elsewhere,), _ = fresh_critic_mi(
        gaussians(0.9, 500), [("a", "b")], np.arange(500), gaussians(0.0, 300, 1), steps=60
    )
    assert elsewhere < 0.1  # what holds in training alone is not there
    with pytest.raises(ValueError, match="at least 20 subjects, not 3"):
        fresh_critic_mi(gaussians(0.5, 60), [("a", "b")], np.arange(60) % 3)


def test_drawing_leaves_the_generators_of_the_run_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = fresh_critic_mi(gaussians(0.5, 100), [("a", "b")], np.arange(100), steps=20)
    assert torch.equal(torch.get_rng_state(), before)
    assert fresh_critic_mi(gaussians(0.5, 100), [("a", "b")], np.arange(100), steps=20) == first


# --------------------------------------------------------------------------------------------------------- whole
def test_the_whole_is_plain_logged_and_printed() -> None:
    reference, balanced, same = samples(300, 0.9, 0.5, 1), samples(200, 0.5, 0.5, 2), samples(100, 0.9, 0.5, 3)
    metrics = evaluate(balanced, COHORT, bootstrap=0)
    metrics["latent"], notes = latent(
        reference, balanced, COHORT, {"balanced": balanced, "same": same}, bootstrap=10, steps=40
    )
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics
    found = metrics["latent"]
    assert found["set"] == "balanced" and found["n"] == 200 and found["subjects"] == 100
    assert found["own"] == {"target": "digit", "stroke": "stroke"}
    pair = found["mutual_information"]["target, stroke"]
    joint = np.histogram2d(reference.target, reference.attributes["stroke"], 2)[0] / 300
    floor = (joint * np.log(joint / np.outer(joint.sum(1), joint.sum(0)))).sum()
    assert pair["floor"]["value"] == pytest.approx(floor) and pair["n"] == 100 and pair["set"] == "same"
    flat = flatten(metrics)
    assert flat["latent/matrix/target/stroke/knn"] == found["matrix"]["target"]["stroke"]["knn"]["value"]
    assert flat["latent/mutual_information/target, stroke/floor"] == pytest.approx(floor)
    assert flat["latent/switched_label/stroke"] == found["switched_label"]["stroke"]["value"]
    assert "latent/dominance/linear" in flat and not any("chance" in name or "truth" in name for name in flat)
    file = io.StringIO()
    Console(file=file, width=200).print(latent_table(metrics))
    printed = file.getvalue()
    for words in ("(simulated)", "test set balanced, 200 samples", "site (chance 0.33)", "diagonal dominance", "floor"):
        assert words in printed
    assert notes == ["latent: site has 3 classes, digit has 2; no switched label"]


def test_what_is_missing_is_said() -> None:
    p = samples(60)
    lone = dataclasses.replace(p, attributes={"stroke": np.zeros(60, int), "site": p.attributes["site"]},
                               blocks={"pooled": p.blocks["target"]})  # fmt: skip
    found, notes = latent(lone, lone, COHORT, bootstrap=0)
    assert found["set"] == "test" and found["mutual_information"] == {} and found["dominance"]["knn"]["value"] is None
    assert "stroke" not in found["matrix"]["pooled"] and "digit" in found["matrix"]["pooled"]
    said = "\n".join(notes)
    assert "there is no test set 'balanced'" in said and "fewer than two blocks are named after factors" in said
    assert "stroke from pooled: only thin among the reference samples; not probed" in said
    assert "stroke from pooled: within digit low: only thin has 5 subjects or more; not probed" in said


@pytest.mark.filterwarnings("ignore")
def test_the_evaluator_measures_latents_when_asked(tmp_path: Path) -> None:
    from test_evaluator import Data, Toy, trainer_for

    evaluator = Evaluator(bootstrap=0, latent=True, leakage=False)
    trainer = trainer_for(tmp_path, evaluator)
    trainer.test(Toy(), datamodule=Data(), verbose=False)
    metrics = evaluator.metrics["test"]
    assert metrics["leakage"] == {} and "knn" in metrics["latent"]["matrix"]["z"]["sex"]
    assert "test/latent/matrix/z/sex/knn" in trainer.callback_metrics
    trainer_for(tmp_path, evaluator).test(Toy(), Data().test_dataloader(), verbose=False)
    assert "latent" not in evaluator.metrics["test"]
    assert evaluator.metrics["test"]["notes"][-1] == "latent: not probed, no datamodule has reference_dataloader()"
