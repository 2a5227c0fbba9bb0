"""Deletion curve: does the prediction use the regions that the attention shows?

Attention is not proof of use (Jain and Wallace, NAACL 2019), so the regions are taken away: if the connectome without
the k most attended regions predicts no worse than without k random ones, the map does not explain the prediction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score
from torch import Tensor

from medprism.cohort import UNKNOWN, Batch, Cohort
from medprism.explain.brain import BLUE, GREY, LABEL, VERMILLION, headed
from medprism.explain.regions import MeanMaps, NothingToShow

SHARES = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7)
"""Shares of the regions that are masked by default."""


def mask_regions(batch: Batch, regions: Tensor) -> Batch:
    """The batch with the rows and columns of `regions` (indices from 0) of every connectome set to 0.

    The batch that is passed in stays as it is.
    """
    connectome = batch["connectome"].clone()
    connectome[:, regions, :] = 0
    connectome[:, :, regions] = 0
    return {**batch, "connectome": connectome}


def ranking_map(target: MeanMaps) -> Tensor:
    """`(N,)` map whose leading regions are masked: the mean map of the target's classes but the first (the control).

    For a binary target that is the disease map, and not disease minus control: the score of the disease is read
    through exactly these weights. A difference cancels the regions that both phrases read, though they carry both
    scores, and its negative half would never be masked.

    Raises:
        NothingToShow: when none of those classes has a subject.
    """
    shown = [code for code in target.shown if code > 0]
    if not shown:
        raise NothingToShow(
            f"no correctly classified subject of {' or '.join(target.factor.classes[1:])}, so no map to rank regions by"
        )
    return target.weights[shown].mean(0)


def deletion_curve(
    predict: Callable[[Batch], Tensor],
    batches: Iterable[Batch],
    ranking: Tensor,
    *,
    draws: int = 10,
    seed: int = 0,
    shares: Sequence[float] = SHARES,
) -> pd.DataFrame:
    """AUROC of the target against the share of regions masked, most attended first and in random order.

    Each random draw is one order of all regions, so that its masks grow like those of the ranking. The batches are
    read once; nothing is trained again, so masked connectomes are out of distribution for the random masks too. A
    ranking that was averaged over the same test subjects flatters its curve a little; the curve is a check of the
    map, not a result.

    Args:
        predict: batch to `(B, classes)` logits of the target; called `1 + draws` times a share and batch.
        batches: batches with `connectome` `(B, R, R)` and `target` `(B,)`; targets of -1 are left out.
        ranking: `(R,)` weights; larger ones are masked first.
        draws: number of random orders.
        seed: seed of those orders.
        shares: shares of the R regions to mask, in [0, 1].

    Returns:
        A row a share: `masked_share` (exact, regions / R), `masked_regions`, `auroc_top`, `auroc_random_mean`,
        `auroc_random_sd` (ddof 1 over draws; NaN for one draw), `draws`, `subjects`. AUROC is that of the last class
        for two classes, and the unweighted mean of one-vs-rest over the classes present for more.

    Raises:
        ValueError: when `draws` or `shares` are out of range, or the ranking has another length than the connectome.
        NothingToShow: when the subjects are all of one class.
    """
    if draws < 1 or not shares or not all(0 <= share <= 1 for share in shares):
        raise ValueError(f"give at least one draw and shares between 0 and 1; got draws={draws}, shares={list(shares)}")
    n = len(ranking)
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.argsort(ranking.cpu(), descending=True, stable=True)]
    orders += [torch.randperm(n, generator=generator) for _ in range(draws)]
    counts = [round(share * n) for share in shares]
    scores: dict[tuple[int, int], list[Tensor]] = {
        (order, count): [] for order in range(len(orders)) for count in sorted(set(counts))
    }
    targets: list[Tensor] = []
    with torch.no_grad():
        for batch in batches:
            if batch["connectome"].shape[-1] != n:
                raise ValueError(f"the ranking has {n} regions, the connectome {batch['connectome'].shape[-1]}")
            known = batch["target"].cpu() != UNKNOWN
            targets.append(batch["target"].cpu()[known])
            for (order, count), parts in scores.items():
                masked = mask_regions(batch, orders[order][:count].to(batch["connectome"].device))
                parts.append(predict(masked).detach().double().cpu()[known])
    target = torch.cat(targets) if targets else torch.empty(0, dtype=torch.long)
    aurocs = {key: auroc(torch.cat(parts), target) for key, parts in scores.items()} if targets else {}
    if not aurocs:
        raise NothingToShow("the test set is empty, so there is no deletion curve")
    rows = []
    for count in counts:
        random = np.array([aurocs[order, count] for order in range(1, len(orders))])
        rows.append(
            {
                "masked_share": count / n,
                "masked_regions": count,
                "auroc_top": aurocs[0, count],
                "auroc_random_mean": random.mean(),
                "auroc_random_sd": random.std(ddof=1) if draws > 1 else math.nan,
                "draws": draws,
                "subjects": len(target),
            }
        )
    return pd.DataFrame(rows)


def auroc(logits: Tensor, target: Tensor) -> float:
    """AUROC of the last class for two classes, unweighted mean of one-vs-rest over the classes present for more.

    Ranks subjects by log-odds in double precision: probabilities saturate at 1 and would make ties.

    Args:
        logits: `(B, classes)`.
        target: `(B,)` long.

    Raises:
        NothingToShow: when all subjects are of one class.
    """
    present = torch.unique(target).tolist()
    if len(present) < 2:
        raise NothingToShow(f"AUROC needs subjects of two classes; the {len(target)} tested here are all of one")
    classes = logits.shape[1]
    values = []
    for code in [classes - 1] if classes == 2 else present:
        others = [other for other in range(classes) if other != code]
        log_odds = logits[:, code] - logits[:, others].logsumexp(1)
        values.append(float(roc_auc_score((target == code).numpy(), log_odds.numpy())))
    return float(np.mean(values))


def deletion_figure(curve: pd.DataFrame, cohort: Cohort, phrase: str) -> Figure:
    """The curve of the most attended regions against the mean and standard deviation of the random draws.

    Args:
        curve: result of `deletion_curve`.
        cohort: for the title.
        phrase: the phrase or class whose map ranks the regions.
    """
    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axes = figure.subplots()
    share, mean = 100 * curve["masked_share"], curve["auroc_random_mean"]
    deviation, draws = curve["auroc_random_sd"].fillna(0), int(curve["draws"].iloc[0])
    axes.fill_between(
        share, (mean - deviation).clip(0), (mean + deviation).clip(upper=1), color=BLUE, alpha=0.25, linewidth=0
    )
    random_label = f"random regions: mean ± SD of {draws} draws" if draws > 1 else "random regions: one draw"
    axes.plot(share, mean, color=BLUE, marker="s", linestyle="--", label=random_label)
    axes.plot(share, curve["auroc_top"], color=VERMILLION, marker="o", label="most attended regions first")
    axes.axhline(0.5, color=GREY, linewidth=1, linestyle=":", label="chance")
    axes.set_xlabel(f"masked regions (% of {cohort.input_shape[0]})", fontsize=LABEL)
    axes.set_ylabel(f"AUROC of {cohort.target.name}", fontsize=LABEL)
    axes.legend(fontsize=LABEL - 1, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    headed(figure, cohort, f"Deletion curve, regions ranked by attention to {phrase}", int(curve["subjects"].iloc[0]))
    return figure
