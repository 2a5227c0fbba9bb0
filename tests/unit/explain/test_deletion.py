"""The deletion curve, against plain loops and on scores with a known source."""

import math

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from medprism.cohort import Batch, Cohort, Factor
from medprism.explain.deletion import auroc, deletion_curve, deletion_figure, mask_regions, ranking_map
from medprism.explain.regions import MeanMaps, NothingToShow

R = 20
USED = [3, 11]


def batches(subjects: int = 40, size: int = 16) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    target = torch.arange(subjects) % 2
    connectome = torch.randn(subjects, R, R, generator=generator)
    connectome[:, USED, USED] += 4.0 * target[:, None]
    return [
        {
            "id": [f"s{i}" for i in range(start, min(start + size, subjects))],
            "connectome": connectome[start : start + size],
            "target": target[start : start + size],
        }
        for start in range(0, subjects, size)
    ]


def predict(batch: Batch) -> Tensor:
    score = batch["connectome"][:, USED, USED].sum(1)
    return torch.stack([-score, score], 1)


def test_masking_zeroes_rows_and_columns_of_a_copy() -> None:
    batch = batches(3)[0]
    before = batch["connectome"].clone()
    masked = mask_regions(batch, torch.tensor([1, 4]))["connectome"]
    for row in range(R):
        for column in range(R):
            gone = row in (1, 4) or column in (1, 4)
            assert torch.equal(masked[:, row, column], torch.zeros(3) if gone else before[:, row, column])
    assert torch.equal(batch["connectome"], before)


def test_curve_falls_at_once_when_the_used_regions_lead() -> None:
    ranking = torch.zeros(R)
    ranking[USED] = 0.5
    curve = deletion_curve(predict, batches(), ranking, draws=10, shares=(0, 0.1, 0.5, 1))
    assert curve["masked_regions"].tolist() == [0, 2, 10, 20]
    assert curve["masked_share"].tolist() == [0, 0.1, 0.5, 1]
    assert curve["auroc_top"][0] > 0.95 and curve["auroc_top"][1] == 0.5  # constant scores: all ties
    assert curve["auroc_random_mean"][1] > 0.85
    assert curve["auroc_random_mean"][0] == curve["auroc_top"][0] and curve["auroc_random_sd"][0] == 0
    assert curve["auroc_random_mean"][3] == 0.5
    assert (curve["subjects"] == 40).all() and (curve["draws"] == 10).all()


def test_curve_is_that_of_a_plain_loop() -> None:
    ranking = torch.rand(R, generator=torch.Generator().manual_seed(2))
    draws, shares = 3, (0.0, 0.2, 0.6)
    curve = deletion_curve(predict, batches(), ranking, draws=draws, seed=5, shares=shares)
    whole = batches(size=40)[0]

    def value(regions: list[int]) -> float:
        connectome = whole["connectome"].clone()
        for region in regions:
            connectome[:, region] = 0
            connectome[:, :, region] = 0
        scores = predict({**whole, "connectome": connectome})
        return float(roc_auc_score(whole["target"], (scores[:, 1] - scores[:, 0]).double()))

    generator = torch.Generator().manual_seed(5)
    orders = [torch.randperm(R, generator=generator).tolist() for _ in range(draws)]
    leading = sorted(range(R), key=lambda region: -float(ranking[region]))
    for row, share in enumerate(shares):
        k = round(share * R)
        values = [value(order[:k]) for order in orders]
        mean = sum(values) / draws
        assert curve["auroc_top"][row] == pytest.approx(value(leading[:k]))
        assert curve["auroc_random_mean"][row] == pytest.approx(mean)
        deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (draws - 1))
        assert curve["auroc_random_sd"][row] == pytest.approx(deviation)


def test_curve_repeats_and_ignores_the_global_seed() -> None:
    ranking = torch.linspace(0, 1, R)
    torch.manual_seed(0)
    first = deletion_curve(predict, batches(), ranking, draws=2, seed=1)
    torch.manual_seed(9)
    state = torch.get_rng_state()
    assert deletion_curve(predict, batches(size=7), ranking, draws=2, seed=1).equals(first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not deletion_curve(predict, batches(), ranking, draws=2, seed=2).equals(first)


def test_unknown_targets_are_left_out() -> None:
    data = batches(size=40)
    data[0]["target"] = data[0]["target"].clone()
    data[0]["target"][:6] = -1
    assert deletion_curve(predict, data, torch.ones(R), draws=1)["subjects"][0] == 34


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one draw"):
        deletion_curve(predict, batches(), torch.ones(R), draws=0)
    with pytest.raises(ValueError, match="ranking has 21 regions, the connectome 20"):
        deletion_curve(predict, batches(), torch.ones(R + 1))
    with pytest.raises(NothingToShow, match="empty"):
        deletion_curve(predict, [], torch.ones(R))
    with pytest.raises(NothingToShow, match="two classes"):
        deletion_curve(predict, [{**b, "target": torch.ones_like(b["target"])} for b in batches()], torch.ones(R))


def test_auroc_of_saturated_and_of_several_classes() -> None:
    # Probabilities of these logits are all exactly 1 in single precision; their order still counts.
    logits = torch.tensor([[0.0, 100.0], [0.0, 200.0], [0.0, 300.0], [0.0, 400.0]])
    assert auroc(logits, torch.tensor([0, 0, 1, 1])) == 1
    assert auroc(logits, torch.tensor([1, 0, 1, 0])) == 0.25
    generator = torch.Generator().manual_seed(0)
    three, target = torch.randn(50, 3, generator=generator).double(), torch.arange(50) % 3
    expected = roc_auc_score(target, three.softmax(1), multi_class="ovr", average="macro")
    assert auroc(three, target) == pytest.approx(expected)


def test_ranking_is_the_mean_map_of_the_diseases() -> None:
    weights = torch.eye(3, dtype=torch.double)
    factor = Factor("diagnosis", ("control", "ADHD", "ASD"))
    assert ranking_map(MeanMaps(factor, weights, (4, 5, 6))).tolist() == [0, 0.5, 0.5]
    assert ranking_map(MeanMaps(factor, weights, (4, 0, 6))).tolist() == [0, 0, 1]
    with pytest.raises(NothingToShow, match="ADHD or ASD"):
        ranking_map(MeanMaps(factor, weights, (4, 0, 0)))


def test_figure_says_what_it_shows() -> None:
    cohort = Cohort("tiny", ("connectome",), (R, R), Factor("diagnosis", ("control", "ASD")), simulated=True)
    curve = deletion_curve(predict, batches(), torch.ones(R), draws=2)
    figure = deletion_figure(curve, cohort, "“autism”")
    (axes,) = figure.axes
    assert "tiny, simulated data, n = 40 subjects" in figure.get_suptitle()
    assert axes.get_xlabel() == "masked regions (% of 20)" and axes.get_ylabel() == "AUROC of diagnosis"
    assert axes.get_legend_handles_labels()[1][0] == "random regions: mean ± SD of 2 draws"
