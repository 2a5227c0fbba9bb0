"""CLIP: the global contrast of images with their texts; and `ImageTextMethod`, the base of all image-text methods.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021; Zhai et al.,
"Sigmoid Loss for Language Image Pre-Training", ICCV 2023.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Optional

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional as F

from medprism.cohort import UNKNOWN, Batch, Representation
from medprism.dependence import build_measure
from medprism.distributed import rows_of_all_ranks
from medprism.encoders import build_encoder, build_sentence_tower
from medprism.losses.finegrained import clip_loss
from medprism.method import CohortMismatchError, Method
from medprism.methods.mimmx import WITHOUT_CRITICS, spurious_factors

LARGEST_SCALE = 100.0
LARGEST_LOG = math.log(LARGEST_SCALE)
CHOICES = {"pooling": ("encoder", "patches"), "prompt_pooling": ("max", "mean"), "measure": WITHOUT_CRITICS}


class ImageTextMethod(Method):
    """Base of image-text methods: both towers, their space, and zero-shot predictions of the target.

    Image, patches and sentences are projected without bias to `dim` and have unit length. A class of the target is
    scored by t times the cosine of the image with the phrases of the class; in training, where nothing reads them,
    there are no scores. What a subclass adds is its `losses`.

    Args:
        cohort: plain values of the cohort; the command line fills it in.
        encoder: short name of an image encoder with patches (`patches`, `small`, `timm`, `open_clip`), or the import
            path of your own.
        encoder_options: arguments of that encoder.
        text_tower: how sentences are encoded: `small` (hashed words, no download), `open_clip`, `huggingface` (both
            learn), `frozen` (vectors of a language model that stays as it is), or the import path of your own.
        text_options: arguments of that tower.
        dim: width of the common space.
        pooling: what stands for the whole image: the `encoder`'s own embedding, or the mean of its `patches`, which
            losses of patches train even where the encoder's own has layers to itself.
        prompt_pooling: whether a class scores by the best of its phrases (`max`) or by their `mean`.
        initial_scale: where t, the learned scale of cosines, starts; it stays between 1 and 100.
        lambda_dep: weight of the dependence between the image's embedding and each of the `spurious` attributes.
        spurious: those attributes; all of the cohort when left out.
        measure: the measure of dependence: `hsic`, `dcor` or `mmd`.
        optimizer: how to make the optimizer; AdamW with learning rate 1e-3 and weight decay 1e-4 when left out.
        scheduler: how to make the learning-rate scheduler; none when left out.

    Raises:
        CohortMismatchError: when the cohort has no images, sentences, or classes of a target to name.
        ValueError: when an argument makes no sense, or the encoder shows no grid of patches.
        KeyError: when an attribute is not one of the cohort's.
        OSError: when the weights of a tower cannot be had.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"image", "sentences"})

    def __init__(
        self,
        cohort: dict[str, Any],
        encoder: str = "patches",
        encoder_options: dict[str, Any] | None = None,
        text_tower: str = "small",
        text_options: dict[str, Any] | None = None,
        dim: int = 512,
        pooling: Literal["encoder", "patches"] = "encoder",
        prompt_pooling: Literal["max", "mean"] = "max",
        initial_scale: float = 1 / 0.07,
        lambda_dep: float = 0.0,
        spurious: list[str] | None = None,
        measure: Literal["hsic", "dcor", "mmd"] = "hsic",
        optimizer: Optional[OptimizerCallable] = None,  # noqa: UP045
        scheduler: Optional[LRSchedulerCallable] = None,  # noqa: UP045
    ) -> None:
        super().__init__(cohort, optimizer, scheduler)
        if not self.cohort.target.classes:
            raise CohortMismatchError(
                f"the target '{self.cohort.target.name}' of `{self.cohort.name}` has no classes to describe in words; "
                f"`{type(self).__name__}` predicts from phrases: choose a cohort with classes or labels, or ERM."
            )
        for name, choices in CHOICES.items():
            if self.hparams[name] not in choices:
                raise ValueError(f"{name} is '{self.hparams[name]}'; choose one of {', '.join(choices)}")
        if not 1 <= initial_scale <= LARGEST_SCALE or lambda_dep < 0 or dim < 1:
            raise ValueError(
                f"initial_scale={initial_scale}, lambda_dep={lambda_dep}, dim={dim}: the scale lies between 1 and "
                f"{LARGEST_SCALE:g}, a weight is at least 0, a width at least 1"
            )
        self.encoder = build_encoder(self.cohort, encoder, encoder_options)
        self.grid = tuple(getattr(self.encoder, "grid", ()))
        if len(self.grid) != 2:
            raise ValueError(
                f"encoder '{encoder}' has the grid {self.grid}; `{type(self).__name__}` needs rows and columns of "
                "patches as its attribute `grid`: choose patches, small, timm or open_clip, or add it to your own"
            )
        self.projection = nn.Linear(self.encoder.dim, dim, bias=False)
        self.tower = build_sentence_tower(text_tower, dim, text_options)
        self.log_scale = nn.Parameter(torch.tensor(math.log(initial_scale)))
        self.spurious = spurious_factors(self.cohort, spurious) if lambda_dep > 0 else ()
        if self.spurious:
            self.measure = build_measure(measure, [(dim, len(factor.classes)) for factor in self.spurious])
        self._prompts: tuple[tuple[tuple[int, int], ...], Tensor] | None = None

    # ---------------------------------------------------------------------------------------------------- forward
    def represent(self, batch: Batch) -> Representation:
        """`image` and `text` blocks, tokens of patches and sentences, of a batch's boxes too unless training."""
        encoded = self.encoder(batch["image"])
        if encoded.tokens.shape[1] != math.prod(self.grid):
            raise ValueError(
                f"the encoder gave {encoded.tokens.shape[1]} patches for a grid of {self.grid[0]} x {self.grid[1]}: "
                "its attribute `grid` must name the rows and columns of its tokens"
            )
        # Times 0: plain DDP waits for every parameter, also those of a pooling that is not asked.
        means = encoded.tokens.mean(1) + 0 * encoded.pooled if self.hparams["pooling"] == "patches" else encoded.pooled
        image, patches = (unit(self.projection(x)) for x in (means, encoded.tokens))
        boxes = [] if self.training else batch.get("boxes", [])
        groups = {"sentences": batch["sentences"], "phrases": [[box[0] for box in each] for each in boxes]}
        texts = [text for group in groups.values() for sample in group for text in sample]
        # A batch without any text still passes the tower, for the same reason.
        vectors = self.embed_texts(texts or [self.cohort.target.phrases[0][0]])
        rep = Representation(logits={}, tokens={"patches": patches}, grid=self.grid)
        for name, group in groups.items():
            if group:
                rep.tokens[name], vectors = _filled(vectors, group)
        rep.blocks = {"image": image, "text": unit(rep.tokens["sentences"].sum(1))}
        if not self.training:
            rep.logits[self.cohort.target.name] = self._zero_shot(image)
        return rep

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """`(k, d)` float32 vectors of unit length of k texts, at least one; each distinct one is encoded once."""
        return unit(self.tower(texts))

    def scale(self) -> Tensor:
        """t, the scale of cosines."""
        return self.log_scale.clamp(0, LARGEST_LOG).exp()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Bring the scale back inside of its bounds, where alone it has a gradient."""
        self.log_scale.data.clamp_(1e-6, LARGEST_LOG - 1e-6)

    def _zero_shot(self, image: Tensor) -> Tensor:
        """`(B, classes)` scores of the target."""
        groups = self.cohort.target.phrases
        with torch.autocast(image.device.type, enabled=False):
            scores = self.scale() * image @ self._prompt_vectors().T  # (B, d), (d, phrases)
        of_class = torch.split(scores, [len(group) for group in groups], dim=1)
        best = self.hparams["prompt_pooling"] == "max"
        return torch.stack([part.amax(1) if best else part.mean(1) for part in of_class], 1)

    def _prompt_vectors(self) -> Tensor:
        """`(phrases, d)` of the target, encoded anew when the tower has changed."""
        state = tuple((p.data_ptr(), p._version) for p in self.tower.parameters())
        if self._prompts is None or self._prompts[0] != state:
            texts = [text for group in self.cohort.target.phrases for text in group]
            with torch.inference_mode(False), torch.no_grad():  # vectors of a test may be needed in training
                self._prompts = state, self.embed_texts(texts)
        return self._prompts[1]

    # ----------------------------------------------------------------------------------------------------- losses
    def dependence(self, batch: Batch, rep: Representation) -> dict[str, Tensor]:
        """The term `dependence`, the mean over the spurious attributes; none where it has no weight.

        The last batch of an evaluation may be too small to measure it, and goes without.
        """
        if not self.spurious:
            return {}
        image = rep.blocks["image"]
        if not self.training and sum(rows_of_all_ranks(len(image), image.device)) < self.measure.minimum:
            return {}
        codes = [batch["attributes"][factor.name] for factor in self.spurious]
        each = zip(codes, self.spurious, strict=True)
        pairs = [(image, F.one_hot(code.clamp(min=0), len(factor.classes)).float()) for code, factor in each]
        value = self.measure(pairs, known=torch.stack([code != UNKNOWN for code in codes]))
        return {"dependence": self.hparams["lambda_dep"] * value.mean()}


class CLIP(ImageTextMethod):
    """The contrast of each image with the mean of its sentences, over the samples of all ranks.

    Samples without sentences take part as images that no text means.

    Args:
        cohort: plain values of the cohort; the command line fills it in.
        contrast: `softmax` (InfoNCE both ways: CLIP) or `sigmoid` (each pair by itself: SigLIP).
        initial_bias: where the learned bias of `sigmoid` starts.
        **image_text: arguments of `ImageTextMethod`.

    Raises:
        ValueError: when there is no such contrast.
    """

    def __init__(
        self,
        cohort: dict[str, Any],
        contrast: Literal["softmax", "sigmoid"] = "softmax",
        initial_bias: float = -10.0,
        **image_text: Any,
    ) -> None:
        super().__init__(cohort, **image_text)
        if contrast not in ("softmax", "sigmoid"):
            raise ValueError(f"contrast is '{contrast}'; choose softmax or sigmoid")
        self.bias = nn.Parameter(torch.tensor(initial_bias)) if contrast == "sigmoid" else None

    def losses(self, batch: Batch, rep: Representation) -> dict[str, Tensor]:
        """The terms `contrast` and, where it has a weight, `dependence`."""
        image, text = rep.blocks["image"], rep.blocks["text"]
        known = sentence_mask(batch["sentences"], image.device).any(1)
        contrast = clip_loss(image, text, self.scale(), self.hparams["contrast"], self.bias, known)
        return {"contrast": contrast, **self.dependence(batch, rep)}


def unit(x: Tensor) -> Tensor:
    """`x` with unit length along its last axis, in float32; zeros stay zeros."""
    return F.normalize(x.float(), dim=-1)


def sentence_mask(samples: Sequence[Sequence[str]], device: torch.device | None = None) -> Tensor:
    """`(B, M)` bool: which sentences there are; M is the largest number, at least 1."""
    counts = torch.tensor([len(sample) for sample in samples], device=device)
    most = max([1, *map(len, samples)])
    return torch.arange(most, device=device) < counts[:, None]


def _filled(vectors: Tensor, samples: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor]:
    """The first vectors `(k, d)` as `(B, M, d)`, zeros after the last text of a sample; and the vectors left over."""
    mask = sentence_mask(samples, vectors.device)
    used = sum(map(len, samples))
    tokens = vectors.new_zeros(*mask.shape, vectors.shape[1])
    tokens[mask] = vectors[:used]
    return tokens, vectors[used:]
