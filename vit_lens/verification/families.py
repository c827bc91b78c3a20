"""Source towers: how to run each kind of tower of another library, and where to listen in it.

Another family is one more reader in ``_READERS``.
"""

__all__ = ["SourceTower", "source_tower"]

from collections.abc import Callable, Iterable
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from vit_lens.errors import UnsupportedTowerError
from vit_lens.pretrained.checks import require_own_code
from vit_lens.pretrained.positions import config_size

Embed = Callable[[Any, Tensor], Tensor]

_SUPPORTED = (
    "open_clip models and their visual (native ViTs, CoCa, timm trunks), timm VisionTransformers, and Hugging Face "
    "CLIP, SigLIP and DINOv2 (with registers too)"
)
_FOLDED = ("LayerScale", "AttentionalPooler")
_HF_CLIP = ("CLIPModel", "CLIPVisionModelWithProjection", "CLIPVisionModel", "CLIPVisionTransformer")
_HF_SIGLIP = ("SiglipModel", "SiglipVisionModel", "SiglipVisionTransformer")
_HF_DINO = ("Dinov2Model", "Dinov2WithRegistersModel")


class SourceTower(nn.Module):
    """A tower of another library: pixels in, embedding out.

    Args:
        kind: Library and class, for people.
        parts: What the embedding is computed with, and nothing else.
        embed: From ``parts`` and pixels to the embedding; it must not close over modules, which are copied.
        blocks: The transformer blocks.
        final_norm: The LayerNorm that HookedViT calls ``ln_final``.
        tokens_first: Whether blocks pass [pos batch d_model].
        own_size: Image size (height, width) of its stored positions, where it interpolates them to another.

    Attributes:
        is_folded: Whether HookedViT multiplies weights of it with each other when it loads them (LayerScale; the
            query of CoCa's pooler), which rounds once more.
    """

    def __init__(
        self,
        kind: str,
        parts: nn.Module,
        embed: Embed,
        *,
        blocks: Iterable[nn.Module],
        final_norm: nn.Module,
        tokens_first: bool = False,
        own_size: tuple[int, int] | None = None,
    ):
        super().__init__()
        self.kind, self.parts, self.embed = kind, parts, embed
        self.blocks, self.final_norm, self.tokens_first = nn.ModuleList(blocks), final_norm, tokens_first
        self.own_size = own_size
        self.is_folded = any(type(part).__name__.endswith(_FOLDED) for part in self.modules())

    def forward(self, pixels: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch d_embed"]:
        return self.embed(self.parts, pixels)


def source_tower(module: nn.Module) -> SourceTower:
    """Return a tower in memory as something to listen to. The module is not changed.

    Raises:
        UnsupportedTowerError: It is of no known kind, or hooks or other code are on it, which a copy would not run.
    """
    if isinstance(module, SourceTower):
        require_own_code(module.parts)
        return module
    for read in _READERS:
        found = read(module)
        if found is not None:
            require_own_code(module)
            return found
    kind = type(module)
    raise UnsupportedTowerError(
        f"cannot verify against a {kind.__name__} from {kind.__module__}; known are {_SUPPORTED}. Hand over the "
        "model itself, not a wrapper (torch.compile, DataParallel, an adapter) around it"
    )


def _open_clip(module: Any) -> SourceTower | None:
    if not _comes_from(module, "open_clip"):
        return None
    visual = getattr(module, "visual", module)
    kind = f"open_clip {type(visual).__name__}"
    if _is(visual, "open_clip", "TimmModel"):
        trunk = visual.trunk
        if not _is(trunk, "timm", "VisionTransformer"):
            return None
        return SourceTower(
            f"{kind} ({type(trunk).__name__})", visual, _first, blocks=trunk.blocks, final_norm=_timm_norm(trunk)
        )
    if not _is(visual, "open_clip", "VisionTransformer"):
        return None
    pool = visual.attn_pool  # CoCa norms the tokens inside its pooler; its ln_post comes after pooling
    return SourceTower(
        kind, visual, _first,
        blocks=visual.transformer.resblocks,
        final_norm=visual.ln_post if pool is None else pool.ln_k,
        tokens_first=not getattr(visual.transformer, "batch_first", False),
    )  # fmt: skip


def _timm(module: Any) -> SourceTower | None:
    if not _is(module, "timm", "VisionTransformer"):
        return None
    kind = f"timm {type(module).__name__}"
    return SourceTower(kind, module, _first, blocks=module.blocks, final_norm=_timm_norm(module))


def _hf_clip(module: Any) -> SourceTower | None:
    if not _is(module, "transformers", *_HF_CLIP):
        return None
    core, project = _core(module), getattr(module, "visual_projection", nn.Identity())
    parts = nn.ModuleDict({"core": core, "project": project})
    return SourceTower(
        _hf_kind(module), parts, _projected, blocks=core.encoder.layers, final_norm=core.post_layernorm,
        own_size=config_size(core.embeddings.image_size),
    )  # fmt: skip


def _hf_siglip(module: Any) -> SourceTower | None:
    if not _is(module, "transformers", *_HF_SIGLIP):
        return None
    core = _core(module)
    return SourceTower(
        _hf_kind(module), core, _interpolated, blocks=core.encoder.layers, final_norm=core.post_layernorm,
        own_size=config_size(core.embeddings.image_size),
    )  # fmt: skip


def _hf_dino(module: Any) -> SourceTower | None:
    if not _is(module, "transformers", *_HF_DINO):
        return None
    encoder = module.encoder
    blocks = encoder.layers if hasattr(encoder, "layers") else encoder.layer
    own_size = config_size(module.embeddings.patch_embeddings.image_size)
    return SourceTower(
        _hf_kind(module), module, _pooler_output, blocks=blocks, final_norm=module.layernorm, own_size=own_size
    )


_READERS = (_open_clip, _timm, _hf_clip, _hf_siglip, _hf_dino)


def _first(tower: Any, pixels: Tensor) -> Tensor:
    out = tower(pixels)
    return out[0] if isinstance(out, tuple) else out  # with output_tokens, open_clip returns the tokens too


def _pooler_output(core: Any, pixels: Tensor, **options: bool) -> Tensor:
    pooled = core(pixel_values=pixels, **options).pooler_output
    if pooled is None:
        raise UnsupportedTowerError(f"the {_hf_kind(core)} has no pooling head, so it gives no embedding to compare")
    return pooled


def _interpolated(core: Any, pixels: Tensor) -> Tensor:
    """Let CLIP and SigLIP fit their positions to the pixels, as DINOv2 always does; at their own size they stay."""
    return _pooler_output(core, pixels, interpolate_pos_encoding=True)


def _projected(parts: Any, pixels: Tensor) -> Tensor:
    return parts["project"](_interpolated(parts["core"], pixels))


def _core(module: Any) -> Any:
    """Return the module that holds embeddings and layers; whole models and older versions nest it."""
    while not hasattr(module, "embeddings"):
        module = module.vision_model
    return module


def _timm_norm(trunk: Any) -> nn.Module:
    return trunk.fc_norm if isinstance(trunk.norm, nn.Identity) else trunk.norm


def _hf_kind(module: nn.Module) -> str:
    return f"transformers {type(module).__name__}"


def _comes_from(module: nn.Module, package: str) -> bool:
    return any(cls.__module__.split(".")[0] == package for cls in type(module).__mro__)


def _is(module: nn.Module, package: str, *names: str) -> bool:
    """Whether a module is of a class, or of a subclass, without importing the package."""
    found = ((cls.__module__.split(".")[0], cls.__name__) for cls in type(module).__mro__)
    return any(home == package and name in names for home, name in found)
