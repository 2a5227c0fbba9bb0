"""NeuroLIP: interpretable and fair alignment of connectomes with phenotypic phrases.

Yang and Li, "NeuroLIP: Interpretable and Fair Cross-Modal Alignment of fMRI and Phenotypic Text", arXiv 2503.21964.
Only the abstract of the paper is public. It names the parts (text token-conditioned attention, alignment via localized
tokens, attention distance between disease and sensitive tokens, reversed sign of the alignment on sensitive
attributes); their equations here are a reconstruction, see docs/methods/neurolip.md.
"""

from __future__ import annotations

import math
from itertools import product
from typing import Any, ClassVar, Literal, Optional

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional as F

from medprism.cohort import UNKNOWN, Batch, Factor, Representation
from medprism.encoders import PhraseBank, build_encoder
from medprism.encoders.attention import TokenConditionedAttention
from medprism.losses.alignment import Contrast, alignment_loss
from medprism.losses.attention import Distance, attention_distance
from medprism.losses.gradient import reverse_gradient
from medprism.losses.reduction import mean_over_samples
from medprism.method import CohortMismatchError, Method

MAX_SCALE = 100.0
LITERAL_BOUND = 10.0
MOST_CAPTIONS = 4096


class NeuroLIP(Method):
    """Phrases of the target and of sensitive attributes attend to brain regions; fairness acts on that attention.

        L = lambda_align CALT(target) + r(lambda_dis L_dis + lambda_neg L_neg) + lambda_global L_global,

    where r rises from 0 to 1 over `warmup`. A weight of 0 removes its term and its cost. The prediction is the softmax
    over the target's phrases of their similarity with what they find in the regions; no sensitive phrase is asked.

    Args:
        cohort: plain values of the cohort; the command line fills it in.
        sensitive: attributes whose phrases are kept apart from the target's; those with the role `sensitive` when
            left out.
        encoder: short name of a connectome encoder (`region`, `transformer`, `graph`, `mlp`), or an import path.
        encoder_options: arguments of that encoder.
        text_encoder: where phrase vectors come from: `table` (seeded, says nothing about language), `open_clip`,
            `huggingface` or `minilm`.
        text_options: arguments of the text encoder, such as `level: word` for one token a word.
        captions: in training encode a target phrase together with the person's sensitive phrases as one caption. Off
            by default: the text encoder would write the attribute into the target's vector.
        heads: number of attention heads.
        attention_dim: summed width of the heads; the encoder's width when left out.
        attention_dropout: share of attention weights dropped in training.
        normalise_regions: LayerNorm on region tokens before attention.
        uniform_attention: attend to all regions alike; the control without text token-conditioned attention.
        contrast: form of the alignment loss, `sigmoid` or `softmax`.
        initial_scale: where the learned scale of the cosine starts; it stays at most 100.
        lambda_align: weight of the alignment of the target's phrases; with 0 the global term predicts.
        lambda_dis: weight of the attention distance between target and sensitive phrases.
        distance: the attention distance.
        lambda_neg: weight of the negative gradient.
        negative: what reverses the alignment of sensitive phrases: `literal` (its negative, scores bounded by 10 and
            their scale held fixed), `clamped` (its negative, no reward beyond chance), or `reversal` (the text side
            learns it in full, so that sensitive phrases find their attribute and a distance from where they look means
            something; the region encoder receives the gradient reversed, times lambda_neg).
        within_target: align sensitive phrases within each class of the target. Where attribute and target go together
            in training, phrases aligned over everybody find the target too, and both terms would act against it.
        lambda_global: weight of the alignment of the pooled embedding with the target's phrases.
        warmup: share of the epochs over which lambda_dis and lambda_neg rise.
        optimizer: how to make the optimizer; AdamW with learning rate 1e-3 and weight decay 1e-4 when left out.
        scheduler: how to make the learning-rate scheduler; none when left out.

    Raises:
        ValueError: when neither alignment nor the global term is on, or captions have too many combinations.
        KeyError: when an attribute is not one of the cohort's.
        CohortMismatchError: when the cohort lacks a field, or its target is not one of several classes.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"connectome", "target", "attributes"})

    def __init__(
        self,
        cohort: dict[str, Any],
        sensitive: list[str] | None = None,
        encoder: str = "region",
        encoder_options: dict[str, Any] | None = None,
        text_encoder: str = "table",
        text_options: dict[str, Any] | None = None,
        captions: bool = False,
        heads: int = 4,
        attention_dim: int | None = None,
        attention_dropout: float = 0.0,
        normalise_regions: bool = True,
        uniform_attention: bool = False,
        contrast: Contrast = "sigmoid",
        initial_scale: float = 1 / 0.07,
        lambda_align: float = 1.0,
        lambda_dis: float = 0.1,
        distance: Distance = "cosine",
        lambda_neg: float = 0.1,
        negative: Literal["literal", "clamped", "reversal"] = "clamped",
        within_target: bool = False,
        lambda_global: float = 0.0,
        warmup: float = 0.2,
        optimizer: Optional[OptimizerCallable] = None,  # noqa: UP045
        scheduler: Optional[LRSchedulerCallable] = None,  # noqa: UP045
    ) -> None:
        super().__init__(cohort, optimizer, scheduler)
        if lambda_align <= 0 and lambda_global <= 0:
            raise ValueError("NeuroLIP predicts from an alignment: set lambda_align or lambda_global above 0")
        if self.cohort.target_kind != "classes":
            raise CohortMismatchError(
                f"`{self.cohort.name}` has a target of kind '{self.cohort.target_kind}'; `NeuroLIP` aligns with "
                f"phrases of classes. Choose a cohort whose target is one of several classes, or ERM."
            )
        self.target = self.cohort.target
        named = sensitive if sensitive is not None else _sensitive_names(self.cohort.attributes)
        self.sensitive = tuple(self.cohort.attribute(name) for name in named)
        self.encoder = build_encoder(self.cohort, encoder, encoder_options)
        dim = self.encoder.dim
        self.attend = TokenConditionedAttention(
            dim, heads, attention_dim, normalise_regions, attention_dropout, uniform_attention
        )
        self.phrases = PhraseBank(self._texts(captions), text_encoder, text_options, dim)
        if lambda_global > 0:
            self.pooled = nn.Linear(dim, dim, bias=False)
        if lambda_align <= 0 and lambda_neg <= 0 and lambda_dis <= 0:
            self.attend.requires_grad_(False)  # nothing trains it then, and plain DDP waits for every parameter
        self.log_scale = nn.Parameter(torch.tensor(math.log(initial_scale)))
        self.bias = nn.Parameter(torch.zeros(()))

    # ------------------------------------------------------------------------------------------------------- text
    def setup(self, stage: str) -> None:
        """Encode the phrases before the optimizer is made."""
        self.phrases.materialise()

    def _texts(self, captions: bool) -> list[str]:
        texts = [text for factor in (self.target, *self.sensitive) for group in factor.phrases for text in group]
        if captions:
            _refuse_too_many_captions(self.sensitive)
            texts += [
                text for codes in _combinations(self.sensitive) for group in self._captions(codes) for text in group
            ]
        return list(dict.fromkeys(texts))

    def _captions(self, codes: tuple[int, ...]) -> list[list[str]]:
        """For each target class its captions, of a person whose sensitive attributes have these codes."""
        known = zip(self.sensitive, codes, strict=True)
        said = [factor.phrases[code][0] for factor, code in known if code != UNKNOWN]
        return [[", ".join([phrase, *said]) for phrase in group] for group in self.target.phrases]

    def _tokens(self, bank: tuple[Tensor, Tensor], groups: list[list[str]]) -> tuple[Tensor, Tensor]:
        """Tokens `(C, L, d)` and mask `(C, L)`: the phrases of each class side by side."""
        vectors, mask = bank
        most = max(len(group) for group in groups)
        rows = [[self.phrases.index(text) for text in group] for group in groups]
        index = torch.tensor([row + [row[0]] * (most - len(row)) for row in rows], device=vectors.device)
        real = torch.tensor([[k < len(row) for k in range(most)] for row in rows], device=vectors.device)
        return vectors[index].flatten(1, 2), (mask[index] & real[:, :, None]).flatten(1, 2)

    # ---------------------------------------------------------------------------------------------------- forward
    def represent(self, batch: Batch) -> Representation:
        """Region tokens, and for the target and each sensitive attribute what its phrases find in them."""
        encoded = self.encoder(batch["connectome"])
        rep = Representation(logits={}, tokens={"regions": encoded.tokens})
        bank = self._bank()
        for factor in (self.target, *self.sensitive):
            text, mask = self._tokens(bank, [list(group) for group in factor.phrases])
            answers, maps = self._ask(text, encoded.tokens)
            rep.tokens[f"{factor.name}_answers"], rep.tokens[f"{factor.name}_maps"] = answers, maps
            rep.maps[factor.name] = _over_tokens(maps, mask)
            rep.logits[factor.name] = _over_tokens(self._similarity(answers, text)[..., None], mask)[..., 0]
            if factor is self.target:
                rep.blocks["disease"] = _over_tokens(answers, mask).flatten(1)
        rep.blocks["regions"] = encoded.tokens.mean(1)
        rep.tokens["pooled"] = encoded.pooled[:, None]
        if self.hparams["lambda_align"] <= 0:
            rep.logits[self.target.name] = self._global_scores(rep, bank)
        return rep

    def _bank(self) -> tuple[Tensor, Tensor]:
        tokens = self.phrases()
        return tokens.vectors, tokens.mask

    def _ask(self, text: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Answers `(B, C, L, d)` and maps `(B, C, L, N)` of tokens `(C, L, d)` or, one set a sample, `(B, C, L, d)`."""
        classes, length = text.shape[-3:-1]
        answers, maps = self.attend(text.flatten(-3, -2), regions)
        return answers.unflatten(1, (classes, length)), maps.unflatten(1, (classes, length))

    def _similarity(self, answers: Tensor, text: Tensor, learned: bool = True) -> Tensor:
        """`(B, C, L)`: scale * cos(z, u) + bias; `learned` false holds scale and bias fixed."""
        scale = self.log_scale.exp().clamp(max=MAX_SCALE)
        cosine = F.cosine_similarity(answers, text, dim=-1)
        return scale * cosine + self.bias if learned else scale.detach() * cosine + self.bias.detach()

    def _global_scores(self, rep: Representation, bank: tuple[Tensor, Tensor]) -> Tensor:
        """`(B, C)`: similarity of the pooled embedding with the mean vector of each class's phrases."""
        text, mask = self._tokens(bank, [list(group) for group in self.target.phrases])
        pooled = self.pooled(rep.tokens["pooled"])  # (B, 1, d)
        return self._similarity(pooled, _over_tokens(text, mask))

    # ----------------------------------------------------------------------------------------------------- losses
    def losses(self, batch: Batch, rep: Representation) -> dict[str, Tensor]:
        """The terms that are switched on: `align`, `global`, `distance`, `negative`."""
        options, bank = self.hparams, self._bank()
        terms: dict[str, Tensor] = {}
        regions = rep.tokens["regions"]
        if options["lambda_align"] > 0:
            terms["align"] = options["lambda_align"] * self._alignment(batch, rep, bank)
        if options["lambda_global"] > 0:
            scores = self._global_scores(rep, bank)[..., None]
            every = torch.ones(scores.shape[1:], dtype=torch.bool, device=scores.device)
            loss = alignment_loss(scores, every, batch["target"], options["contrast"])
            terms["global"] = options["lambda_global"] * loss
        ramp = self.ramp(options["warmup"])
        if options["lambda_dis"] > 0 and self.sensitive:
            each = [self._distance(batch, rep, bank, factor) for factor in self.sensitive]
            terms["distance"] = -ramp * options["lambda_dis"] * torch.stack(each).mean()
        anchored = options["negative"] == "reversal" and options["lambda_dis"] > 0
        if self.sensitive and (options["lambda_neg"] > 0 or anchored):
            strength = ramp * options["lambda_neg"]
            each = [self._negative(batch, regions, bank, factor, strength) for factor in self.sensitive]
            terms["negative"] = torch.stack(each).mean()
        return terms

    def _alignment(self, batch: Batch, rep: Representation, bank: tuple[Tensor, Tensor]) -> Tensor:
        text, mask = self._tokens(bank, [list(group) for group in self.target.phrases])
        answers = rep.tokens[f"{self.target.name}_answers"]
        if self.hparams["captions"]:
            text, mask = self._caption_tokens(batch, bank)
            answers, _ = self._ask(text, rep.tokens["regions"])
        return alignment_loss(self._similarity(answers, text), mask, batch["target"], self.hparams["contrast"])

    def _caption_tokens(self, batch: Batch, bank: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Caption tokens `(B, C, L, d)` of each sample and their mask `(B, C, L)`."""
        every = [self._tokens(bank, self._captions(codes)) for codes in _combinations(self.sensitive)]
        which = torch.zeros(len(batch["id"]), dtype=torch.long, device=bank[0].device)
        for factor in self.sensitive:
            which = which * (len(factor.classes) + 1) + batch["attributes"][factor.name] + 1
        return torch.stack([text for text, _ in every])[which], torch.stack([mask for _, mask in every])[which]

    def _distance(self, batch: Batch, rep: Representation, bank: tuple[Tensor, Tensor], factor: Factor) -> Tensor:
        """Mean distance of the maps of a person's own target and own sensitive phrases."""
        own = []
        for each, classes in ((self.target, batch["target"]), (factor, batch["attributes"][factor.name])):
            _, mask = self._tokens(bank, [list(group) for group in each.phrases])
            rows = torch.arange(len(classes), device=classes.device)
            index = classes.clamp(min=0)
            own.append((rep.tokens[f"{each.name}_maps"][rows, index], mask[index], classes != UNKNOWN))
        (p, p_mask, p_known), (q, q_mask, q_known) = own
        pairs = (p_mask[:, :, None] & q_mask[:, None, :]).to(p.dtype)  # (B, L_p, L_q)
        apart = attention_distance(p[:, :, None], q[:, None, :], self.hparams["distance"])
        return mean_over_samples((apart * pairs).sum((1, 2)) / pairs.sum((1, 2)), p_known & q_known)

    def _negative(
        self, batch: Batch, regions: Tensor, bank: tuple[Tensor, Tensor], factor: Factor, strength: float
    ) -> Tensor:
        """The alignment of a sensitive attribute with its sign reversed, weighted, in one of three modes."""
        mode = self.hparams["negative"]
        text, mask = self._tokens(bank, [list(group) for group in factor.phrases])
        # The strength acts on the regions alone, as in Ganin and Lempitsky (2015): the text side learns in full.
        answers, _ = self._ask(text, reverse_gradient(regions, strength) if mode == "reversal" else regions)
        scores = self._similarity(answers, text, learned=mode != "literal")
        if mode == "reversal":
            return self._sensitive_alignment(batch, scores, mask, factor)
        if mode == "literal":
            bounded = scores.clamp(-LITERAL_BOUND, LITERAL_BOUND)
            return -strength * self._sensitive_alignment(batch, bounded, mask, factor)
        chance = self._sensitive_alignment(batch, torch.zeros_like(scores), mask, factor).detach()
        return -strength * torch.minimum(self._sensitive_alignment(batch, scores, mask, factor), chance)

    def _sensitive_alignment(self, batch: Batch, scores: Tensor, mask: Tensor, factor: Factor) -> Tensor:
        """CALT of a sensitive attribute over everybody, or its mean over the classes of the target."""
        known, contrast = batch["attributes"][factor.name], self.hparams["contrast"]
        if not self.hparams["within_target"]:
            return alignment_loss(scores, mask, known, contrast)
        within = [known.masked_fill(batch["target"] != code, UNKNOWN) for code in range(len(self.target.classes))]
        return torch.stack([alignment_loss(scores, mask, classes, contrast) for classes in within]).mean()


def _sensitive_names(attributes: tuple[Factor, ...]) -> list[str]:
    return [factor.name for factor in attributes if factor.role == "sensitive"]


def _combinations(factors: tuple[Factor, ...]) -> list[tuple[int, ...]]:
    """Every combination of codes of these attributes, unknown first."""
    return list(product(*(range(UNKNOWN, len(factor.classes)) for factor in factors)))


def _refuse_too_many_captions(factors: tuple[Factor, ...]) -> None:
    number = math.prod(len(factor.classes) + 1 for factor in factors)
    if number > MOST_CAPTIONS:
        raise ValueError(
            f"captions of {[factor.name for factor in factors]} come in {number:,} combinations, more than "
            f"{MOST_CAPTIONS:,}; name fewer attributes with `sensitive`, or use phrases (captions: false)"
        )


def _over_tokens(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over a class's tokens: `(..., C, L, x)` with mask `(C, L)` to `(..., C, x)`."""
    weight = mask.to(values.dtype)[..., None]
    return (values * weight).sum(-2) / weight.sum(-2)
