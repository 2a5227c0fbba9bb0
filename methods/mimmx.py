"""MIMM-X: several spurious correlations taken apart by minimising mutual information between latent blocks.

Fay, Reguigui, Yang, Gatidis and Kuestner, "MIMM-X: Disentangling Spurious Correlations for Medical Image Analysis",
arXiv 2511.22990. The base is its predecessor MIMM (Fay et al., IEEE Access 11, 2023). The equations of the two modules
that MIMM-X adds (confounder attention weighter, dynamic loss scaling) are a reconstruction, see docs/methods/mimmx.md.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any, ClassVar, Literal, Optional

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from medprism.cohort import UNKNOWN, Batch, Cohort, Factor, Representation
from medprism.dependence import MutualInformation, build_measure
from medprism.distributed import gather_with_grad
from medprism.encoders import build_encoder, pooled
from medprism.losses.confounders import ConfounderAttention
from medprism.losses.group import group_index
from medprism.losses.information import label_information
from medprism.losses.scaling import LossScale
from medprism.losses.supervised import target_loss
from medprism.method import CohortMismatchError, Method

Pair = tuple[Tensor, Tensor]
WITHOUT_CRITICS = ("dcor", "hsic", "mmd")
CHOICES = {
    "pairs": ("pairwise", "joint", "weighted"),
    "weighter": ("attention", "terms"),
    "scaling_over": ("shared", "parameters"),
    "schedule": ("simultaneous", "alternating"),
}


def spurious_factors(cohort: Cohort, names: list[str] | None) -> tuple[Factor, ...]:
    """The attributes of these names, each once; all of the cohort for None.

    Raises:
        KeyError: when the cohort has no such attribute.
        ValueError: when there is none.
    """
    every = [factor.name for factor in cohort.attributes] if names is None else names
    if not every:
        known = [factor.name for factor in cohort.attributes]
        raise ValueError(f"spurious is empty; name at least one attribute of '{cohort.name}' ({known}), or use ERM")
    return tuple(cohort.attribute(name) for name in dict.fromkeys(every))


class MIMMX(Method):
    """One latent block for the target and for each spurious attribute; dependence between blocks is minimised.

        L = [CE_Y + eta sum_i CE_i] / (1 + eta N)  +  r lambda s L_dep,

    where r waits for the critics (`critic_warmup`) and rises over `ramp_share`, and s weighs the gradients
    (`scaling`). L_dep is the mean over all pairs of blocks (`pairwise`: MIMM), or I(F_Y; [F_1 ... F_N]) with one critic
    (`joint`), or that of blocks weighted by attention (`weighted`). Only the target's block predicts the target.

    Args:
        cohort: plain values of the cohort; the command line fills it in.
        spurious: attributes that get a block; all of the cohort when left out.
        encoder: short name of an encoder for the cohort's input, or the import path of your own.
        encoder_options: arguments of that encoder.
        block_dim: width of each latent block.
        eta: weight of each attribute's cross-entropy beside the target's.
        lambda_dep: weight of the dependence between blocks; 0 gives the multi-task baseline.
        measure: the measure of dependence: `dv`, `nwj`, `infonce`, `smile`, `js`, `club` (trained critics), `dcor`,
            `hsic` or `mmd` (without critics).
        measure_options: its arguments, such as `hidden` and `negatives`.
        pairs: which blocks are held against each other.
        weighter: how `weighted` weighs attributes: `attention` scales their blocks in one critic, `terms` weighs N
            critics by their estimates. The attention learns with critics that maximise the dependence, and is uniform
            for `club`, `dcor`, `hsic` and `mmd`.
        tau: temperature of those weights; large for uniform ones.
        beta: weight of the dependence between the attributes' blocks, for `joint` and `weighted`; one pair a step.
        conditional: whether dependence is measured within each class of the target, so that it does not fight the
            correlation of the labels.
        scaling: how the dependence is scaled to the cross-entropy: `off`, `norms` (ratio of gradient norms, never
            above 1), or `gradnorm`.
        scaling_over: where gradients are compared: at the last activation that all blocks share (`shared`), or over
            all `parameters` of the encoder, at the cost of two more backward passes. A frozen encoder has neither:
            then over those of the layer that cuts the blocks.
        scaling_momentum: share of the old value in the moving average of the norms; 0 with `parameters` is the rule of
            MIMM.
        critic_warmup: share of the epochs in which critics train and the dependence does not count yet.
        ramp_share: share of the epochs after that over which its weight rises.
        schedule: `simultaneous` updates critics and encoder in one backward pass, `alternating` in turns; the latter
            under DDP needs `ddp_find_unused_parameters_true`.
        encoder_batches: length of an encoder's turn in steps of the optimizer (batches, unless gradients are
            accumulated), for `alternating`.
        critic_batches: length of a critics' turn, likewise.
        critic_lr: learning rate of the critics; that of the optimizer when left out.
        optimizer: how to make the optimizer; AdamW with learning rate 1e-3 and weight decay 1e-4 when left out.
        scheduler: how to make the learning-rate scheduler; none when left out.

    Raises:
        CohortMismatchError: when the target is not one of several classes, or there is no attribute.
        KeyError: when an attribute is not one of the cohort's.
        ValueError: when a number makes no sense, or the measure or encoder refuses its options.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"target", "attributes"})
    uses_weight: ClassVar[bool] = True

    def __init__(
        self,
        cohort: dict[str, Any],
        spurious: list[str] | None = None,
        encoder: str = "small",
        encoder_options: dict[str, Any] | None = None,
        block_dim: int = 2,
        eta: float = 1.0,
        lambda_dep: float = 1.0,
        measure: str = "dv",
        measure_options: dict[str, Any] | None = None,
        pairs: Literal["pairwise", "joint", "weighted"] = "weighted",
        weighter: Literal["attention", "terms"] = "attention",
        tau: float = 1.0,
        beta: float = 1.0,
        conditional: bool = False,
        scaling: Literal["off", "norms", "gradnorm"] = "norms",
        scaling_over: Literal["shared", "parameters"] = "shared",
        scaling_momentum: float = 0.9,
        critic_warmup: float = 0.0,
        ramp_share: float = 0.0,
        schedule: Literal["simultaneous", "alternating"] = "simultaneous",
        encoder_batches: int = 2,
        critic_batches: int = 5,
        critic_lr: float | None = None,
        optimizer: Optional[OptimizerCallable] = None,  # noqa: UP045
        scheduler: Optional[LRSchedulerCallable] = None,  # noqa: UP045
    ) -> None:
        super().__init__(cohort, optimizer, scheduler)
        if self.cohort.target_kind != "classes" or not self.cohort.attributes:
            raise CohortMismatchError(
                f"`{self.cohort.name}` has a target of kind '{self.cohort.target_kind}' and "
                f"{len(self.cohort.attributes)} attributes; `MIMMX` needs classes and at least one attribute. "
                f"Choose such a cohort, or ERM."
            )
        for name, choices in CHOICES.items():
            if self.hparams[name] not in choices:
                raise ValueError(f"{name} is '{self.hparams[name]}'; choose one of {', '.join(choices)}")
        if not (0 <= critic_warmup <= 1 and 0 <= ramp_share <= 1 and tau > 0):
            raise ValueError(
                f"critic_warmup={critic_warmup}, ramp_share={ramp_share}, tau={tau}: the first two are shares of the "
                "epochs in [0, 1], a temperature is above 0"
            )
        if block_dim < 1 or eta < 0 or lambda_dep < 0 or beta < 0 or min(encoder_batches, critic_batches) < 1:
            raise ValueError(
                f"block_dim={block_dim}, eta={eta}, lambda_dep={lambda_dep}, beta={beta}, "
                f"encoder_batches={encoder_batches}, critic_batches={critic_batches}: "
                "widths and turns are at least 1, weights at least 0"
            )
        self.target = self.cohort.target
        self.spurious = spurious_factors(self.cohort, spurious)
        self.encoder = build_encoder(self.cohort, encoder, encoder_options)
        self.factors = (self.target, *self.spurious)
        self.cut = nn.Linear(self.encoder.dim, len(self.factors) * block_dim)
        self.heads = nn.ModuleList([nn.Linear(block_dim, len(factor.classes)) for factor in self.factors])
        self.scale = LossScale(scaling, scaling_momentum)
        self.critic_lr = critic_lr
        if lambda_dep > 0:
            self._build_critics(measure, measure_options or {})

    def _build_critics(self, measure: str, options: dict[str, Any]) -> None:
        d, count = int(self.hparams["block_dim"]), len(self.spurious)
        pairs = self.hparams["pairs"]
        if self.hparams["conditional"] and measure not in WITHOUT_CRITICS:
            options = {
                "classes": len(self.target.classes),
                **options,
            }  # critics that see the class give a tighter bound
        if pairs == "pairwise":
            dims = [(d, d)] * len(list(combinations(self.factors, 2)))
        elif pairs == "weighted" and self.hparams["weighter"] == "terms":
            dims = [(d, d)] * count
        else:
            dims = [(d, count * d)]
        self.measure = build_measure(measure, dims, **options)
        self.attention: ConfounderAttention | None = None
        if pairs == "weighted" and self.hparams["weighter"] == "attention":
            self.attention = ConfounderAttention(count, d, tau=self.hparams["tau"])
            # Only these critics are a max-player (that of `club` fits a likelihood, which small weights of wide blocks
            # would raise); and one confounder has nothing to weigh.
            self.attention.requires_grad_(isinstance(self.measure, MutualInformation) and count > 1)
        self.among = None
        if pairs != "pairwise" and count > 1 and self.hparams["beta"] > 0:
            # One critic for all pairs of attributes, told apart by their places: its cost does not grow with N.
            self.among = build_measure(measure, [(count * d, count * d)], **options)

    # ---------------------------------------------------------------------------------------------------- forward
    def represent(self, batch: Batch) -> Representation:
        """A block and logits for the target and each spurious attribute; `pooled` is what the blocks are cut from."""
        embedding = pooled(self.encoder, batch[self.cohort.input_field])  # type: ignore[literal-required]
        blocks = self.cut(embedding).chunk(len(self.factors), dim=1)
        named = {factor.name: block for factor, block in zip(self.factors, blocks, strict=True)}
        logits = {name: head(block) for (name, block), head in zip(named.items(), self.heads, strict=True)}
        return Representation(logits=logits, blocks={**named, "pooled": embedding})

    # ----------------------------------------------------------------------------------------------------- losses
    def losses(self, batch: Batch, rep: Representation) -> dict[str, Tensor]:
        """The cross-entropies `target` and `<attribute>`, and `dependence`; nothing in a critics' turn."""
        if self._critics_turn():
            return {}
        eta, weight = self.hparams["eta"], batch.get("weight")
        share = 1 / (1 + eta * len(self.spurious))
        terms = {"target": share * target_loss(rep.logits[self.target.name], batch["target"], weight=weight)}
        for factor in self.spurious:
            labels = batch["attributes"][factor.name]
            terms[factor.name] = share * eta * target_loss(rep.logits[factor.name], labels, weight=weight)
        weight_now = self.hparams["lambda_dep"] * self.ramp(self.hparams["ramp_share"], self.hparams["critic_warmup"])
        if self.hparams["lambda_dep"] > 0 and self._large_enough(batch):
            dependence = self._dependence(batch, rep)
            # The target's cross-entropy is the task; with the attributes' it is what the dependence is weighed against.
            labels_loss = torch.stack(list(terms.values())).sum()
            local = self.hparams["scaling_over"] == "shared" and rep.blocks["pooled"].requires_grad
            trained = [p for p in self.encoder.parameters() if p.requires_grad] or list(self.cut.parameters())
            shared = [rep.blocks["pooled"]] if local else trained
            floor = self._floor(batch)
            scale = self.scale(labels_loss, dependence, shared, local, floor if self.measure.trained else None)
            terms["dependence"] = weight_now * scale * dependence
            self._note(batch, {"dependence_raw": dependence, "dependence_floor": floor, "dependence_scale": scale})
        return terms

    def critic_losses(self, batch: Batch, rep: Representation) -> dict[str, Tensor]:
        """`critic` (and `critic_among` the attributes) on detached blocks; nothing in an encoder's turn."""
        if self.hparams["lambda_dep"] <= 0 or not self.measure.trained or self._encoders_turn():
            return {}
        if not self._large_enough(batch):
            return {}
        given, weight = self._given(batch), batch.get("weight")
        blocks = self._blocks(rep, detached=True)
        # The attention is part of the critics: its gradient must pass, that of the blocks has been cut.
        pairs = self._pairs(blocks, frozen=False)[0]
        terms = {"critic": self.measure.critic_loss(pairs, given, weight, detach=False)}
        if self.among is not None:
            terms["critic_among"] = self.among.critic_loss([self._pair_among(blocks)], given, weight)
        return terms

    def critic_parameters(self) -> list[nn.Parameter]:
        """Those of the critics, and of the attention that feeds them."""
        if self.hparams["lambda_dep"] <= 0:
            return []
        parts = [part for part in (self.measure, self.among, self.attention) if part is not None]
        return [p for part in parts for p in part.parameters() if p.requires_grad]

    def _dependence(self, batch: Batch, rep: Representation) -> Tensor:
        given, weight = self._given(batch), batch.get("weight")
        blocks = self._blocks(rep, detached=False)
        pairs, alpha = self._pairs(blocks, frozen=True)
        each = self.measure(pairs, given, weight)
        if self.hparams["pairs"] == "weighted" and self.hparams["weighter"] == "terms":
            share = (each.detach().clamp(min=0) / self.hparams["tau"]).softmax(0)
            alpha = share.expand(len(blocks[0]), -1)
            total: Tensor = (share * each).sum()
        else:
            total = each.mean()
        if alpha is not None:
            shares = zip(self.spurious, alpha.detach().mean(0), strict=True)
            self._note(batch, {f"attention_{factor.name}": value for factor, value in shares})
        if self.among is not None:
            total = total + self.hparams["beta"] * self.among([self._pair_among(blocks)], given, weight).mean()
        return total

    def _pairs(self, blocks: list[Tensor], frozen: bool) -> tuple[list[Pair], Tensor | None]:
        """The pairs that the measure compares, and the attention `(B, N)` where there is one."""
        target, others = blocks[0], blocks[1:]
        if self.hparams["pairs"] == "pairwise":
            return list(combinations(blocks, 2)), None
        if self.attention is not None:
            weighted, alpha = self.attention(torch.stack(others, 1), frozen)
            return [(target, weighted)], alpha
        if self.hparams["pairs"] == "weighted":
            return [(target, other) for other in others], None
        return [(target, torch.cat(others, 1))], None

    def _pair_among(self, blocks: list[Tensor]) -> Pair:
        """This step's pair of attributes' blocks, each `(B, N d)` in its own place among zeros."""
        every = list(combinations(range(len(self.spurious)), 2))
        # Each player counts its own steps: by those of both it could meet the same few pairs in all of its turns.
        first, second = every[self._turn()[1] % len(every)]
        return _placed(blocks[1:], first), _placed(blocks[1:], second)

    def _blocks(self, rep: Representation, detached: bool) -> list[Tensor]:
        blocks = [rep.blocks[factor.name] for factor in self.factors]
        return [block.detach() for block in blocks] if detached else blocks

    def _given(self, batch: Batch) -> Tensor | None:
        return batch["target"] if self.hparams["conditional"] else None

    def _floor(self, batch: Batch) -> Tensor:
        """What accurate heads force upon the dependence: the information that labels share, over the same pairs.

        Within a class of the target it is 0 for the target's pairs; there attributes are taken as independent. `terms`
        are averaged here with equal weights.
        """
        if self.hparams["conditional"]:
            return batch["target"].new_zeros((), dtype=torch.float)
        target, others = batch["target"], [batch["attributes"][factor.name] for factor in self.spurious]
        if self.hparams["pairs"] == "pairwise":
            return self._shared_by_labels(list(combinations([target, *others], 2)), batch)
        if self.hparams["pairs"] == "weighted" and self.hparams["weighter"] == "terms":
            floor = self._shared_by_labels([(target, other) for other in others], batch)
        else:
            together = group_index(others, [len(factor.classes) for factor in self.spurious])
            floor = self._shared_by_labels([(target, together)], batch)
        if self.among is not None:
            floor = floor + self.hparams["beta"] * self._shared_by_labels(list(combinations(others, 2)), batch)
        return floor

    @staticmethod
    def _shared_by_labels(pairs: list[Pair], batch: Batch) -> Tensor:
        first, second = (torch.stack(labels, 1) for labels in zip(*pairs, strict=True))
        return label_information(first, second, batch.get("weight")).mean()

    def _large_enough(self, batch: Batch) -> bool:
        """Whether the dependence can be measured; the last batch of an evaluation may be too small, and goes without.

        A training batch that is too small is an error, which the measure raises.
        """
        if self.training:
            return True
        target = gather_with_grad(batch["target"])
        sizes = target[target != UNKNOWN].bincount(minlength=1)
        return (int(sizes.max()) if self.hparams["conditional"] else len(target)) >= self.measure.minimum

    # ------------------------------------------------------------------------------------------------------ turns
    def _critics_turn(self) -> bool:
        """Whether this training batch belongs to the critics alone."""
        return self._alternates() and self._turn()[0]

    def _encoders_turn(self) -> bool:
        return self._alternates() and not self._turn()[0]

    def _alternates(self) -> bool:
        options = self.hparams
        return (
            options["schedule"] == "alternating"
            and options["lambda_dep"] > 0
            and self.measure.trained
            and self.training
        )

    def _turn(self) -> tuple[bool, int]:
        """Whether this step of the optimizer is in a critics' turn, and how many steps its player had before."""
        if self.hparams["schedule"] == "simultaneous":
            return False, self.global_step
        encoder, critics = int(self.hparams["encoder_batches"]), int(self.hparams["critic_batches"])
        cycle, place = divmod(self.global_step, encoder + critics)
        return (True, cycle * critics + place - encoder) if place >= encoder else (False, cycle * encoder + place)

    def _note(self, batch: Batch, values: dict[str, Tensor]) -> None:
        """Log what is not a term of the loss."""
        if self._trainer is not None:
            stage = "train" if self.training else "val"
            self.note(stage, values, len(batch["id"]))


def _placed(blocks: list[Tensor], index: int) -> Tensor:
    return torch.cat([block if k == index else torch.zeros_like(block) for k, block in enumerate(blocks)], 1)
