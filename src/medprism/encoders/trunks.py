"""Encoders of images that are trunks of timm or open_clip, with random or published weights.

Published weights are the start of a training run. A checkpoint of that run holds all weights of its own, so whoever
loads one builds the encoder under `without_pretrained_weights`: neither a network nor the original file is needed.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from medprism.encoders.base import Encoded, Encoder
from medprism.encoders.image import axes, check_input, projection

_load_weights: ContextVar[bool] = ContextVar("load_weights", default=True)


@contextmanager
def without_pretrained_weights() -> Iterator[None]:
    """Build encoders with random weights, whatever their options say; for models whose own weights are loaded next.

    Names such as `hf-hub:owner/name` still ask the hub, or its local cache, what the model looks like.
    """
    token = _load_weights.set(False)
    try:
        yield
    finally:
        _load_weights.reset(token)


def loads_weights() -> bool:
    """Whether encoders load the weights that their options name."""
    return _load_weights.get()


class TimmEncoder(Encoder):
    """Any image model of timm without its classifier; tokens are the places of its last map, or its patches.

    The pooled embedding is timm's own. Where layers after the pooling change the width (MobileNetV3, VGG), they are
    applied to each place before it instead, so that tokens and embedding share a space.

    Args:
        input_shape: `(C, H, W)` of one image; the first layer is made, or adapted, to C channels.
        model: name of the model, such as `resnet18`, `densenet121` or `vit_small_patch16_224`; a tag after a dot
            names its weights. `timm.list_models()` lists them.
        dim: width d to which a linear layer projects embedding and tokens; the model's own when left out.
        pretrained: whether to download and load the published weights.
        checkpoint: path of a file of weights of that model (safetensors, or a state dictionary of torch), instead of
            a download. Weights of its classifier are not read, everything else must fit.
        standardise: whether to bring values in [0, 1] to the mean and standard deviation of the published weights;
            false for images that are standardised already.

    Raises:
        ValueError: when the model is unknown, or cannot read images of that shape.
        OSError: when the weights cannot be had, or do not fit.
    """

    input_field = "image"

    def __init__(
        self,
        input_shape: Sequence[int],
        model: str = "resnet18",
        dim: int | None = None,
        pretrained: bool = False,
        checkpoint: str | None = None,
        standardise: bool = True,
    ) -> None:
        super().__init__()
        self.input_shape = axes(input_shape, "image")
        self.trunk = _timm_trunk(model, self.input_shape, pretrained, checkpoint)
        config = self.trunk.pretrained_cfg
        self.standardise = Standardise(self.input_shape[0], config["mean"], config["std"]) if standardise else None
        features, pooled = _tried(self._features, self.trunk, self.input_shape, model)
        self.grid = _grid(features, self.trunk, self.input_shape, model)
        native = pooled.shape[-1]
        self.head_first = native != _places(features, self.trunk).shape[-1]
        self.project = projection(native, dim)
        self.dim = dim or native

    def forward(self, image: Tensor) -> Encoded:
        """Encode `(B, C, H, W)` images into `(B, N, d)` tokens and `(B, d)` pooled embeddings."""
        image = check_input(image, self.input_shape, "image")
        image = self.standardise(image) if self.standardise else image
        if self.head_first:
            features = self.trunk.forward_features(image)
            places = _places(features, self.trunk)
            alone = self.trunk.forward_head(_each_alone(places, features, self.trunk), pre_logits=True)
            tokens = self.project(alone.unflatten(0, places.shape[:2]))
            return Encoded(tokens, tokens.mean(1))
        features, pooled = self._features(image)
        return Encoded(self.project(_places(features, self.trunk)), self.project(pooled))

    def _features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk.forward_features(image)
        return features, self.trunk.forward_head(features, pre_logits=True)


class OpenCLIPImageEncoder(Encoder):
    """The image tower of a contrastive image-text model, through open_clip; tokens lie in the space of the texts.

    A token is what the tower's own last layers make of a patch alone: the final norm and the projection of a vision
    transformer; pooling, norm and projection of a timm trunk, as if every patch were that one; value and output
    projection of the attention pooling of a ResNet (MaskCLIP, Zhou et al., ECCV 2022).

    Args:
        input_shape: `(C, H, W)` of one image; 1 channel is repeated to the 3 that these towers read. Position
            embeddings of pretrained weights are resized to it where open_clip can.
        model: name of an open_clip model, `hf-hub:owner/name` (such as BiomedCLIP), or `local-dir:/folder`.
        dim: width d to which a linear layer projects embedding and tokens; that of the texts when left out.
        pretrained: tag of published weights (`open_clip.list_pretrained()` names them); random weights when left out.
            Not read for `hf-hub:` and `local-dir:`, which have weights.
        checkpoint: path of a file of weights of the whole model, image and text, instead of a download.
        standardise: whether to bring values in [0, 1] to the mean and standard deviation of the published weights;
            false for images that are standardised already.

    Raises:
        ValueError: when the model is unknown, cannot read images of that shape, or shows no patches.
        OSError: when the model or its weights cannot be had, or do not fit.
    """

    input_field = "image"

    def __init__(
        self,
        input_shape: Sequence[int],
        model: str = "ViT-B-32",
        dim: int | None = None,
        pretrained: str | None = None,
        checkpoint: str | None = None,
        standardise: bool = True,
    ) -> None:
        super().__init__()
        self.input_shape = axes(input_shape, "image")
        if self.input_shape[0] not in (1, 3):
            raise ValueError(f"open_clip towers read 1 or 3 channels, the images have {self.input_shape[0]}")
        tower = _open_clip_tower(model, self.input_shape, pretrained, checkpoint)
        self.tower = tower
        config = tower.preprocess_cfg
        self.standardise = Standardise(3, config["mean"], config["std"]) if standardise else None
        shape = (3, *self.input_shape[1:])
        if hasattr(tower, "trunk"):
            features = _tried(tower.trunk.forward_features, tower, shape, model)
            self.grid = _grid(features, tower.trunk, shape, model)
        elif hasattr(tower, "attnpool"):
            self.grid = tuple(_tried(self._maps, tower, shape, model).shape[2:])
        else:
            if tower.attn_pool is not None or tower.pool_type == "none":
                raise ValueError(
                    f"the image tower of '{model}' shows no single patches; choose one without CoCa pooling"
                )
            _check_patches(tower.patch_size, shape, model)
            self.grid, tower.output_tokens = tuple(tower.grid_size), True
        native = _tried(self._encode, tower, shape, model).pooled.shape[-1]
        self.project = projection(native, dim)
        self.dim = dim or native

    def forward(self, image: Tensor) -> Encoded:
        """Encode `(B, C, H, W)` images into `(B, N, d)` tokens and `(B, d)` pooled embeddings."""
        image = check_input(image, self.input_shape, "image").expand(-1, 3, -1, -1)
        tokens, pooled = self._encode(self.standardise(image) if self.standardise else image)
        return Encoded(self.project(tokens), self.project(pooled))

    def _encode(self, image: Tensor) -> Encoded:
        tower: Any = self.tower
        if hasattr(tower, "trunk"):
            features = tower.trunk.forward_features(image)
            places = _places(features, tower.trunk)
            alone = tower.head(tower.trunk.forward_head(_each_alone(places, features, tower.trunk)))
            return Encoded(alone.unflatten(0, places.shape[:2]), tower.head(tower.trunk.forward_head(features)))
        if hasattr(tower, "attnpool"):
            maps, pool = self._maps(image), tower.attnpool
            return Encoded(pool.c_proj(pool.v_proj(maps.flatten(2).transpose(1, 2))), pool(maps))
        pooled, tokens = tower(image)
        if tower.final_ln_after_pool:
            tokens = tower.ln_post(tokens)
        return Encoded(tokens if tower.proj is None else tokens @ tower.proj, pooled)

    def _maps(self, image: Tensor) -> Tensor:
        tower: Any = self.tower
        maps: Tensor = tower.layer4(tower.layer3(tower.layer2(tower.layer1(tower.stem(image)))))
        return maps


class Standardise(nn.Module):
    """`(x - mean) / std` for each channel; the average of both where the images have another number of channels.

    Args:
        channels: number C of channels.
        mean: one value a channel.
        std: one value a channel.
    """

    def __init__(self, channels: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            each = torch.tensor(values, dtype=torch.float32)
            each = each if len(each) == channels else each.mean().expand(channels).clone()
            self.register_buffer(name, each.view(channels, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def forward(self, image: Tensor) -> Tensor:
        """Standardise `(B, C, H, W)`."""
        return (image - self.mean) / self.std


def _timm_trunk(model: str, input_shape: tuple[int, ...], pretrained: bool, checkpoint: str | None) -> Any:
    """A timm model without classifier, for images of that shape, with the weights that are asked for."""
    import timm  # slow to import
    from timm.layers import PatchEmbed
    from timm.models import load_state_dict

    options: dict[str, Any] = {"num_classes": 0, "in_chans": input_shape[0]}
    if ":" not in model:  # hf-hub:owner/name and local-dir:/folder say themselves what they are
        if not timm.is_model(model):
            close = difflib.get_close_matches(model, timm.list_models(), 3)
            raise ValueError(f"timm has no model '{model}'; close names: {close}; timm.list_models() lists all")
        config = timm.get_pretrained_cfg(model)
        if config.fixed_input_size:
            options["img_size"] = input_shape[1:]
    elif checkpoint:
        raise ValueError(f"'{model}' brings its own weights: leave `checkpoint` out and set `pretrained`")
    pretrained, checkpoint = _wanted(pretrained, checkpoint)
    try:
        if checkpoint:  # all that the trunk has must be in the file, so nothing is left at random unseen
            heads = (config.classifier,) if isinstance(config.classifier, str) else config.classifier or ()
            weights = load_state_dict(checkpoint, weights_only=True)
            kept = {key: value for key, value in weights.items() if key.rpartition(".")[0] not in heads}
            overlay = {"state_dict": kept, "num_classes": 0, "label_offset": 0, "custom_load": False}
            trunk = timm.create_model(model, pretrained=True, pretrained_cfg_overlay=overlay, **options)
            trunk.pretrained_cfg.pop("state_dict")  # or else the model would carry its weights twice
        else:
            trunk = timm.create_model(model, pretrained=pretrained, **options)
    except Exception as error:  # a download fails in as many ways as there are libraries below
        raise _explained(
            error, "timm", model, checkpoint or ("its published weights" if pretrained else None)
        ) from error
    embed = getattr(trunk, "patch_embed", None)
    if isinstance(embed, PatchEmbed):
        _check_patches(embed.patch_size, input_shape, model)
    return trunk


def _open_clip_tower(model: str, input_shape: tuple[int, ...], pretrained: str | None, checkpoint: str | None) -> Any:
    """The image tower of an open_clip model, for images of that shape, with the weights that are asked for."""
    import open_clip  # slow to import

    brings_weights = model.startswith(("hf-hub:", "local-dir:"))
    if brings_weights and checkpoint:
        raise ValueError(f"'{model}' brings its own weights: leave `checkpoint` out")
    if not brings_weights and model not in open_clip.list_models():
        close = difflib.get_close_matches(model, open_clip.list_models(), 3)
        raise ValueError(f"open_clip has no model '{model}'; close names: {close}; open_clip.list_models() lists all")
    rows, columns = input_shape[1:]
    if rows != columns and model.startswith("RN"):
        raise ValueError(f"'{model}' reads square images only, these are {rows} x {columns}: pad them, or choose a ViT")
    pretrained, checkpoint = _wanted(pretrained, checkpoint)
    weights = checkpoint or (None if brings_weights else pretrained)
    try:
        created = open_clip.create_model(
            model,
            weights,
            force_image_size=rows if rows == columns else (rows, columns),  # ResNets take a single number
            force_patch_dropout=0.0,  # every patch keeps its token
            pretrained_text=False,
        )
    except Exception as error:
        raise _explained(error, "open_clip", model, weights or (model if brings_weights else None)) from error
    return created.visual


def _wanted(pretrained: Any, checkpoint: str | None) -> tuple[Any, str | None]:
    """The sources of weights, or none of them under `without_pretrained_weights`.

    Raises:
        ValueError: when there are two.
    """
    if pretrained and checkpoint:
        raise ValueError(f"weights of two sources: pretrained={pretrained!r} and checkpoint={checkpoint!r}; give one")
    return (pretrained, checkpoint) if loads_weights() else (None, None)


def _explained(error: Exception, library: str, model: str, weights: str | None) -> Exception:
    """The error to raise when a library could not build a model."""
    said = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if weights is None:
        return ValueError(f"{library} cannot build '{model}' for these images ({said}): choose another size or model")
    return OSError(
        f"{library} cannot make '{model}' with weights '{weights}' ({said}). Without a network give the path of a file "
        "with weights of this very model as option `checkpoint`, or leave both `pretrained` and `checkpoint` out to "
        "start from random weights"
    )


def _tried(run: Callable[[Tensor], Any], layers: nn.Module, input_shape: tuple[int, ...], model: str) -> Any:
    """What layers make of one empty image, in evaluation mode.

    Raises:
        ValueError: when they cannot read it.
    """
    layers.eval()
    try:
        with torch.no_grad():
            return run(torch.zeros(1, *input_shape))
    except Exception as error:  # whatever their layers say of a map that is too small
        raise ValueError(
            f"'{model}' cannot read images of {input_shape[1]} x {input_shape[2]} pixels ({error}): give images of "
            "a size that it was made for, or choose another model"
        ) from error
    finally:
        layers.train()


def _channels_first(features: Tensor, trunk: Any) -> bool:
    return bool(features.shape[1] == trunk.num_features)


def _places(features: Tensor, trunk: Any) -> Tensor:
    """The features of a timm trunk as `(B, N, C)`, without class and register tokens."""
    if features.ndim == 3:
        return features[:, getattr(trunk, "num_prefix_tokens", 0) :]
    return features.flatten(2).transpose(1, 2) if _channels_first(features, trunk) else features.flatten(1, 2)


def _each_alone(places: Tensor, features: Tensor, trunk: Any) -> Tensor:
    """`B * N` feature maps, each made of one place `(B, N, C)` alone, in the layout of the trunk's features."""
    flat = places.flatten(0, 1)
    if features.ndim == 3:  # a pooling reads class tokens or patches: all are that place
        return flat[:, None].expand(-1, getattr(trunk, "num_prefix_tokens", 0) + 1, -1)
    return flat[:, :, None, None] if _channels_first(features, trunk) else flat[:, None, None]


def _grid(features: Any, trunk: Any, input_shape: tuple[int, ...], model: str) -> tuple[int, int]:
    """Rows and columns of the places of a timm trunk.

    Raises:
        ValueError: when there are none.
    """
    if isinstance(features, Tensor) and features.ndim == 4:
        first = 2 if _channels_first(features, trunk) else 1
        return features.shape[first], features.shape[first + 1]
    if isinstance(features, Tensor) and features.ndim == 3:
        count = _places(features, trunk).shape[1]
        rows = max(1, round((count * input_shape[1] / input_shape[2]) ** 0.5))
        if count % rows == 0:
            return rows, count // rows
    raise ValueError(f"'{model}' does not show its patches as one grid; choose another model")


def _check_patches(patch: tuple[int, int], input_shape: tuple[int, ...], model: str) -> None:
    if input_shape[1] % patch[0] or input_shape[2] % patch[1]:
        raise ValueError(
            f"'{model}' cuts images into patches of {patch[0]} x {patch[1]} pixels, which would leave out a border of "
            f"images of {input_shape[1]} x {input_shape[2]}; give images whose sides are multiples of that"
        )
