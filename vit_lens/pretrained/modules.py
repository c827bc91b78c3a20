"""Read a tower that is in memory."""

__all__ = ["read_module"]

from typing import Any

import torch
from torch import Tensor, nn

from vit_lens.convert import from_hf_clip, from_open_clip
from vit_lens.errors import CheckpointError
from vit_lens.identity import aliases, fingerprint
from vit_lens.pretrained.checks import kind, refuse
from vit_lens.pretrained.hf_towers import hf_config, hf_state_dict
from vit_lens.pretrained.open_clip_towers import open_clip_config, open_clip_spec
from vit_lens.pretrained.source import TowerSource


def read_module(tower: nn.Module, *, encoder_id: str | None = None) -> TowerSource:
    """Read an open_clip or Hugging Face CLIP model, or its vision tower.

    The weights are copied: the tower is left as it is, in training mode too, and later training does not reach
    the copy. Dtype and device are those of the patch embedding; of a mixed half-precision model the float32
    norms are cast as well.

    Args:
        tower: open_clip's ``CLIP``, ``CustomTextCLIP`` or ``CoCa`` or their ``.visual``; Hugging Face's
            ``CLIPModel``, ``CLIPVisionModelWithProjection`` or ``CLIPVisionModel``.
        encoder_id: The id of the weights if it is known; else one made from their content.

    Raises:
        UnsupportedTowerError: The tower is not a plain CLIP ViT.
        CheckpointError: The tower has no weights, or parts that the conversion does not know.
    """
    packages = {cls.__module__.split(".")[0] for cls in type(tower).__mro__}
    if "open_clip" in packages:
        visual: Any = getattr(tower, "visual", tower)
        cfg, spec = open_clip_config(visual), open_clip_spec(visual)
        state_dict = from_open_clip(_one_dtype(visual.state_dict(), visual.conv1.weight), cfg)
    elif "transformers" in packages:
        cfg, spec, tensors = hf_config(tower), None, hf_state_dict(tower)
        state_dict = from_hf_clip(_one_dtype(tensors, tensors["embeddings.patch_embedding.weight"]), cfg)
    else:
        refuse(f"a {kind(tower)} from {type(tower).__module__}; hand over the open_clip or transformers model itself")
    name = encoder_id or f"module@{fingerprint(state_dict)}"
    return TowerSource(cfg=cfg, state_dict=state_dict, preprocess_spec=spec, encoder_id=name, aliases=aliases(name))


def _one_dtype(tensors: dict[str, Tensor], like: Tensor) -> dict[str, Tensor]:
    if like.is_meta:
        raise CheckpointError("the tower is on the meta device and has no weights; load them first")
    if like.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise CheckpointError(
            f"the tower's weights are {like.dtype}; expected a floating-point tower, not a quantised one"
        )
    return {name: t.to(like.dtype) if t.is_floating_point() else t for name, t in tensors.items()}
