"""Which towers are covered, by tier, and what keeps the others out."""

__all__ = ["SupportedTower", "supported_open_clip", "supported_towers"]

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vit_lens.config import HookedViTConfig
from vit_lens.errors import UnsupportedTowerError
from vit_lens.pretrained import registry
from vit_lens.pretrained.checks import reason_of
from vit_lens.pretrained.hf_towers import HF_TOWERS, NAFLEX
from vit_lens.pretrained.open_clip_towers import open_clip_blueprint

Tier = Literal["A", "B"]
# Names that older versions of transformers give to the same towers.
_OLD_HF_NAMES = ("CLIPVisionTransformer", "SiglipVisionTransformer")


@dataclass(frozen=True, kw_only=True)
class SupportedTower:
    """A row of the table of towers.

    Attributes:
        name: open_clip's model name, or a class of transformers.
        library: Where the name is from.
        tier: ``A``: CLIP's own equations (CLS or mean pooling, GELU or QuickGELU). ``B``: attention pooling, no class
            token, registers, a patch bias or tanh GELU as well. None: not covered.
        reason: Why a tower is not covered; empty where it is.
        tags: Pretrained tags of open_clip.
    """

    name: str
    library: Literal["open_clip", "transformers"]
    tier: Tier | None
    reason: str
    tags: tuple[str, ...]

    @property
    def supported(self) -> bool:
        """Whether HookedViT covers it."""
        return self.tier is not None


def supported_towers() -> list[SupportedTower]:
    """Return a row for every configuration of the installed open_clip and for Hugging Face's classes.

    Nothing is downloaded. A config of a timm ViT is built without memory for its weights and read, because only the
    object says what it computes.
    """
    import open_clip

    rows = []
    for name in registry.known_models():
        tier, reason = _verdict(json.dumps(registry.model_config(name), sort_keys=True, default=str))
        tags = tuple(open_clip.list_pretrained_tags_by_model(name))
        rows.append(SupportedTower(name=name, library="open_clip", tier=tier, reason=reason, tags=tags))
    for name, family in HF_TOWERS.items():
        if name not in _OLD_HF_NAMES:
            tier = "A" if family == "clip" else "B"
            rows.append(SupportedTower(name=name, library="transformers", tier=tier, reason="", tags=()))
    rows.append(SupportedTower(name="Siglip2Model", library="transformers", tier=None, reason=NAFLEX, tags=()))
    return rows


def supported_open_clip() -> list[str]:
    """Return the names of open_clip's configurations that HookedViT covers, read from the installed version."""
    return [row.name for row in supported_towers() if row.library == "open_clip" and row.supported]


@functools.cache
def _verdict(config: str) -> tuple[Tier | None, str]:
    model_cfg: dict[str, Any] = json.loads(config)
    reason = registry.obstacle(model_cfg["vision_cfg"])
    if reason:
        return None, reason
    if not registry.is_timm(model_cfg):
        return _native_tier(model_cfg["vision_cfg"]), ""
    try:
        cfg = open_clip_blueprint(registry.build_visual(model_cfg, quick_gelu=False)).cfg
    except UnsupportedTowerError as error:
        return None, reason_of(error)
    return _tier(cfg), ""


def _native_tier(vision_cfg: Mapping[str, Any]) -> Tier:
    return "B" if vision_cfg.get("attentional_pool") else "A"


def _tier(cfg: HookedViTConfig) -> Tier:
    plain = cfg.has_cls and not cfg.n_registers and not cfg.has_patch_bias and cfg.attn_pool is None
    return "A" if plain and cfg.act_fn != "gelu_pytorch_tanh" else "B"
