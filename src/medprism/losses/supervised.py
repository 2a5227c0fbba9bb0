"""The loss of a supervised head."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from medprism.cohort import UNKNOWN
from medprism.losses.reduction import mean_over_samples


def target_loss(
    logits: Tensor,
    target: Tensor,
    kind: Literal["classes", "labels", "value"] = "classes",
    class_weight: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of classes, binary cross-entropy of labels, or squared error of a value.

    Args:
        logits: `(B, classes)`, `(B, K)` or `(B, 1)`.
        target: `(B,)` long with -1 where unknown, `(B, K)` float, or `(B,)` float.
        kind: what the target is.
        class_weight: `(classes,)` weights of the classes; the loss is the weighted sum over the number of samples.
        weight: `(B,)` weights of the samples, with mean 1 over the data; likewise.

    Returns:
        Scalar, the mean over the known samples of all ranks.
    """
    logits = logits.float()
    if kind == "value":
        return mean_over_samples((logits.squeeze(-1) - target).square(), weight=weight)
    if kind == "labels":
        labels = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(-1)
        return mean_over_samples(labels, weight=weight)
    each = F.cross_entropy(logits, target, weight=class_weight, reduction="none", ignore_index=UNKNOWN)
    return mean_over_samples(each, target != UNKNOWN, weight)
