"""The encoder that a representation autoencoder was trained with: built, converted, held against a model's weights."""

__all__ = ["ENCODER_TYPES", "OUTSIDE", "build_encoder", "check_weights", "current_name", "hooked", "known_type"]

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vit_lens.errors import ContractError, DecoderError, nearest
from vit_lens.images import PreprocessSpec
from vit_lens.models import HookedViT

OUTSIDE = "outside"
"""The ``encoder_type`` of a folder without an encoder, whose card ``vit_lens.json`` says whose tokens it reads."""
_HEAD_WIDTH = 64  # of every encoder that AutoencoderRAE builds
_READ = (
    "embed.",
    "pos_embed.",
    "blocks.",
)  # what patch tokens depend on, beside the last norm, whose gain is taken off
_ULPS = 8  # two conversions of one file differ by rounding


class EncoderType(NamedTuple):
    """One ``encoder_type`` of ``AutoencoderRAE``.

    Attributes:
        model: The class of transformers, whose config has the same name with ``Config`` in the place of ``Model``.
        image_size: The size of the stored positions, in pixels.
        norm: The name of the norm behind the last block, which has no weights.
        published: The ids of the published encoders, by width and number of layers.
        is_hooked: Whether a :class:`vit_lens.HookedViT` can be one.
    """

    model: str
    image_size: int
    norm: str
    published: Mapping[tuple[int, int], str]
    is_hooked: bool = True


ENCODER_TYPES = {
    "dinov2": EncoderType(
        "Dinov2WithRegistersModel", 518, "layernorm",
        {(384, 12): "hf/facebook/dinov2-with-registers-small", (768, 12): "hf/facebook/dinov2-with-registers-base",
         (1024, 24): "hf/facebook/dinov2-with-registers-large"},
    ),
    "siglip2": EncoderType(
        "SiglipVisionModel", 256, "post_layernorm", {(768, 12): "hf/google/siglip2-base-patch16-256"}
    ),
    "mae": EncoderType("ViTMAEModel", 224, "layernorm", {(768, 12): "hf/facebook/vit-mae-base"}, is_hooked=False),
}  # fmt: skip
"""What ``AutoencoderRAE`` of diffusers 0.42 builds."""

# Names of older versions of transformers, which published files have, and what they are called now.
_OLDER = (
    ("vision_model.", ""), (".attention.attention.query.", ".attention.q_proj."),
    (".attention.attention.key.", ".attention.k_proj."), (".attention.attention.value.", ".attention.v_proj."),
    (".attention.output.dense.", ".attention.o_proj."), ("encoder.layer.", "layers."),
    (".intermediate.dense.", ".mlp.fc1."), (".output.dense.", ".mlp.fc2."),
)  # fmt: skip


def build_encoder(config: Mapping[str, Any]) -> nn.Module:
    """Build an encoder on the current device as a config of ``AutoencoderRAE`` says, its last norm without weights.

    diffusers 0.42 cannot build its own SigLIP with transformers 5, whose class has another layout.

    Raises:
        DecoderError: There is no such type, or its sizes cannot be.
    """
    import transformers

    kind = ENCODER_TYPES[config["encoder_type"]]
    width, layers = config["encoder_hidden_size"], config["encoder_num_hidden_layers"]
    if width % _HEAD_WIDTH:
        raise DecoderError(f"encoder_hidden_size={width}; expected a multiple of {_HEAD_WIDTH}, the width of a head")
    masked = {"mask_ratio": 0.0} if kind.model == "ViTMAEModel" else {}
    made = getattr(transformers, kind.model.replace("Model", "Config"))(
        hidden_size=width, patch_size=config["encoder_patch_size"], image_size=kind.image_size,
        num_attention_heads=width // _HEAD_WIDTH, num_hidden_layers=layers, **masked,
    )  # fmt: skip
    model = getattr(transformers, kind.model)(made)
    norm = _core(model).get_submodule(kind.norm)
    norm.weight = norm.bias = None  # pyright: ignore[reportAttributeAccessIssue]
    return model.eval().requires_grad_(False)


def current_name(name: str, expected: Mapping[str, Any]) -> str:
    """Return what a tensor of a file is called in the installed transformers."""
    if name in expected or not name.startswith("encoder."):
        return name
    inner = name.removeprefix("encoder.")
    for old, new in _OLDER:
        if f"encoder.{inner}" in expected:
            break
        inner = inner.replace(old, new)
    for prefix in ("encoder.", "encoder.vision_model."):
        if f"{prefix}{inner}" in expected:
            return f"{prefix}{inner}"
    return name


def hooked(encoder: nn.Module, config: Mapping[str, Any], encoder_id: str | None = None) -> HookedViT:
    """Return the encoder of an autoencoder as a hooked model, its weights copied; the last norm has gain 1 and bias 0.

    Args:
        encoder: What ``AutoencoderRAE`` holds under ``encoder``.
        config: The config of the autoencoder.
        encoder_id: Its id; None makes one from the weights.

    Raises:
        UnsupportedTowerError: It is of a kind that no hooked model is (MAE).
    """
    norm = _core(encoder).get_submodule(ENCODER_TYPES[config["encoder_type"]].norm)
    like = next(encoder.parameters())
    width = config["encoder_hidden_size"]
    plain = norm.weight is None
    if plain:
        norm.weight = nn.Parameter(like.new_ones(width), requires_grad=False)  # pyright: ignore[reportAttributeAccessIssue]
        norm.bias = nn.Parameter(like.new_zeros(width), requires_grad=False)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        spec, side = _spec(config), config["encoder_input_size"]
        return HookedViT.from_module(
            encoder, encoder_id=encoder_id, preprocess_spec=spec, image_size=side
        ).requires_grad_(False)
    finally:
        if plain:
            norm.weight = norm.bias = None  # pyright: ignore[reportAttributeAccessIssue]


def check_weights(decoder_id: str, own: HookedViT, model: HookedViT) -> None:
    """Refuse a model whose patch tokens are not those of an autoencoder's encoder, by comparing weights.

    The gain and bias of the last norm are left out: patch tokens have neither.

    Raises:
        ContractError: Sizes or weights differ by more than rounding.
    """
    mine, theirs = ({n: x for n, x in m.state_dict().items() if n.startswith(_READ)} for m in (own, model))
    sizes = ("image_size", "patch_size", "d_model", "n_layers", "n_heads", "n_prefix", "act_fn", "eps")
    differ = [f"{x} {getattr(model.cfg, x)}, not {getattr(own.cfg, x)}" for x in sizes
              if getattr(model.cfg, x) != getattr(own.cfg, x)]  # fmt: skip
    eps = max(torch.finfo(x.dtype).eps for x in (own, model))
    if not differ:
        if mine.keys() != theirs.keys():
            differ = [f"other parts, such as {min(mine.keys() ^ theirs.keys())}"]
        else:
            differ = [f"another {name}" for name in mine if _distance(mine[name], theirs[name]) > _ULPS * eps][:2]
    if differ:
        raise ContractError(
            f"decoder {decoder_id} draws the patch tokens of its own encoder, {own.encoder_id}, and {model.encoder_id} "
            f"has {', '.join(differ)}; take decoder.encoder, or the published encoder of that name"
        )


def _distance(mine: Tensor, theirs: Tensor) -> float:
    a, b = mine.detach().float().cpu(), theirs.detach().float().cpu()
    size = float(a.abs().max())
    return float((a - b).abs().max()) / size if size else float(b.abs().max())


def known_type(said: object, path: object) -> str:
    """Return an ``encoder_type`` that is known.

    Raises:
        DecoderError: It is none.
    """
    known = [*ENCODER_TYPES, OUTSIDE]
    if not isinstance(said, str) or said not in known:
        raise DecoderError(
            f"{path}: encoder_type is {said!r:.60}; nearest: {nearest(str(said), known)}. Known are "
            f"{', '.join(ENCODER_TYPES)} of AutoencoderRAE, and {OUTSIDE!r} with a card vit_lens.json that says "
            "whose tokens the decoder reads"
        )
    return said


def _core(model: Any) -> Any:
    """Return the module that has the norm; older versions of transformers nest it."""
    return getattr(model, "vision_model", model)


def _spec(config: Mapping[str, Any]) -> PreprocessSpec:
    side = config["encoder_input_size"]
    said = (config["encoder_norm_mean"] or IMAGENET[0], config["encoder_norm_std"] or IMAGENET[1])
    mean, std = ((float(x[0]), float(x[1]), float(x[2])) for x in said)
    return PreprocessSpec(size=(side, side), mean=mean, std=std, interpolation="bicubic", resize_mode="squash")


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of pixels where a config says none."""
