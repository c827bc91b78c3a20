"""What lenses, caches, attribution, interventions and verification need of a transformer, and of captions."""

__all__ = [
    "CaptionBank", "MadeWith", "Tower", "check_model", "other_preprocessing", "other_weights", "preprocessing_of",
]  # fmt: skip

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, SupportsIndex, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from vit_lens.addresses import Site
from vit_lens.config import TowerConfig
from vit_lens.errors import LensError, VitLensError
from vit_lens.towers.layers import Attention, LayerNorm, TransformerBlock
from vit_lens.towers.readout import Readout
from vit_lens.towers.streams import Stream


@runtime_checkable
class CaptionBank(Protocol):
    """Captions with their text embeddings, such as :class:`vit_lens.TextBank`."""

    @property
    def unit(self) -> Float[Tensor, "caption d_embed"]: ...

    def logits(self, image_embeds: Float[Tensor, "*batch d_embed"]) -> Float[Tensor, "*batch caption"]: ...

    def index(self, caption: str) -> int: ...

    def check(self, model: Any) -> "CaptionBank":
        """Return the bank itself if it is of this model's encoder; raise otherwise."""
        ...


@runtime_checkable
class Tower(Protocol):
    """A hooked transformer: blocks on a residual stream, and a read-out behind them.

    :class:`vit_lens.towers.HookedTower` keeps it for whoever gives embedding, blocks and read-out; a wrapper of
    another library's modules can keep it too.

    Attributes:
        cfg: The sizes and switches of the tower.
        hook_dict: The hook points by name.
        blocks: The transformer blocks, in the order in which they run.
        ln_final: The norm behind the last block.
        output_point: The name of the output's hook point.
        readout: How the output is read off the last residual stream.
        streams: What parts add up in: the residual stream, then that of attention pooling, where there is any.
        device: The device of the weights.
        encoder_id: The id that decoders and text banks know the weights by.
        fingerprint: Sixteen digits that identify the weights by content.

    >>> isinstance(model, Tower)
    True
    """

    hook_dict: dict[str, HookPoint]
    blocks: Sequence[TransformerBlock]
    ln_final: LayerNorm
    output_point: str

    @property
    def cfg(self) -> TowerConfig: ...
    @property
    def readout(self) -> Readout: ...
    @property
    def streams(self) -> tuple[Stream, ...]: ...
    def stream_of(self, site: Site) -> Stream: ...
    def attention_of(self, site: Site) -> Attention: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def W_U(self) -> Float[Tensor, "d_pooled d_embed"]: ...
    @property
    def b_U(self) -> Float[Tensor, " d_embed"]: ...
    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
    ) -> Float[Tensor, " d_model"]: ...
    def blocks_to_run(self, start_at_layer: SupportsIndex | None, stop_at_layer: SupportsIndex | None) -> range: ...
    def is_readout_part(self, name: str) -> bool: ...
    def beside(self, inputs: Any) -> dict[str, Tensor]: ...
    def positions_of(self, where: Any, prompts: Any) -> Bool[Tensor, "batch pos"]: ...
    def pos_axis(self, name: str) -> int | None: ...

    @property
    def vocabulary(self) -> CaptionBank | None: ...
    def to_single_token(self, caption: str) -> int: ...
    def tokens_to_residual_directions(self, tokens: int | str | Tensor) -> Float[Tensor, "*tokens d_pooled"]: ...

    def get_submodule(self, target: str) -> nn.Module: ...
    def hook_points_named(self, name: Any) -> list[tuple[str, HookPoint]]: ...
    def reaches(self, start_at_layer: Any, stop_at_layer: Any) -> Callable[[str], bool]: ...
    def __call__(self, *model_args: Any, **model_kwargs: Any) -> Any: ...
    def run_with_cache(self, *model_args: Any, **model_kwargs: Any) -> tuple[Tensor, Any]: ...
    def run_with_hooks(self, *model_args: Any, **model_kwargs: Any) -> Any: ...
    def hooks(self, fwd_hooks: Any = (), bwd_hooks: Any = ()) -> Any: ...
    def refuse_hooks(self, purpose: str) -> None: ...

    if TYPE_CHECKING:  # a check at run time asks for every attribute, and these are costly to answer

        @property
        def encoder_id(self) -> str: ...
        @property
        def fingerprint(self) -> str: ...
        def exact_fingerprint(self, dtype: torch.dtype | None = None) -> str: ...


@runtime_checkable
class MadeWith(Protocol):
    """What was made with a model and kept: means, a gallery.

    Attributes:
        encoder_id: The id of the model.
        fingerprint: Digits that identify the model's weights, rounded to bfloat16.
        weights: What identifies them to the last bit; empty in files of an earlier version.
    """

    @property
    def encoder_id(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def weights(self) -> str: ...


def other_weights(made: MadeWith, model: Tower) -> str:
    """Return how the weights that something was made with differ from a model's, in words; empty if they do not.

    A model that is kept wider has to round to the very weights; of one that is kept narrower, and for files without
    ``weights``, what bfloat16 shows has to be the same.

    >>> means = vl.ReferenceMeans.load("mini")
    >>> vl.towers.other_weights(means, model), vl.towers.other_weights(means, model.process_weights())[:28]
    ('', 'made with vit_lens/mini (64b')
    """
    if made.fingerprint != model.fingerprint:
        return (
            f"made with {made.encoder_id} ({made.fingerprint}); the model is {model.encoder_id} ({model.fingerprint})"
        )
    dtype = getattr(torch, made.weights.partition(":")[0], None)
    if not isinstance(dtype, torch.dtype) or torch.promote_types(dtype, model.dtype) != model.dtype:
        return ""
    if (own := model.exact_fingerprint(dtype)) == made.weights:
        return ""
    return (
        f"made with {made.encoder_id} ({made.weights}); the model is {model.encoder_id} ({own}), whose weights differ "
        "by less than bfloat16 shows"
    )


def preprocessing_of(model: Tower, images: object = None) -> dict[str, Any]:
    """Return how a model turns images into pixels, as plain values; empty where that is not known.

    Args:
        model: The model.
        images: What it was given; of pixels, which the caller made, nothing is known.

    >>> vl.towers.preprocessing_of(model)["size"], vl.towers.preprocessing_of(model, pixels)
    ([64, 64], {})
    """
    spec = getattr(model, "preprocess_spec", None)
    return {} if spec is None or isinstance(images, Tensor) else spec.to_dict()


def other_preprocessing(made: dict[str, Any], model: Tower) -> str:
    """Return how the preprocessing behind something differs from a model's, in words; empty if it is not known to.

    Args:
        made: The preprocessing that something was made with, as :func:`preprocessing_of` gives it.
        model: The model.

    >>> vl.towers.other_preprocessing(vl.towers.preprocessing_of(model) | {"resize_mode": "squash"}, model)[:23]
    "resize_mode 'squash', w"
    """
    own = preprocessing_of(model)
    differ = {key: (made.get(key), own.get(key)) for key in own if made and made.get(key) != own.get(key)}
    return ", ".join(f"{key} {was!r}, where the model has {now!r}" for key, (was, now) in differ.items())


def check_model(model: object, error: type[VitLensError] = LensError) -> None:
    """Raise unless something is a hooked model.

    Args:
        model: What was given as one.
        error: The error to raise.

    Raises:
        VitLensError: ``error``: it is the name of a model, another library's model, or something else.

    >>> vl.attribution.check_model("mini")
    Traceback (most recent call last):
    vit_lens.errors.LensError: expected a HookedViT, not str: HookedViT.from_pretrained(name) or ...
    """
    if not hasattr(model, "hook_dict"):
        raise error(
            f"expected a HookedViT, not {type(model).__name__}: HookedViT.from_pretrained(name) or "
            "HookedViT.from_module(tower) makes one"
        )
