"""Read a tower that is in memory."""

__all__ = ["read_module"]

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vit_lens.convert import build
from vit_lens.errors import CheckpointError
from vit_lens.images import PreprocessSpec
from vit_lens.pretrained.checks import kind, refuse, require_own_code, size_pair
from vit_lens.pretrained.fitting import Blueprint
from vit_lens.pretrained.hf_towers import hf_blueprint, hf_state_dict
from vit_lens.pretrained.open_clip_towers import open_clip_blueprint, open_clip_spec
from vit_lens.pretrained.source import TowerSource, source_of
from vit_lens.pretrained.timm_towers import timm_blueprint

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_PATCHES = (  # the weights that say which dtype a tower of several has
    "conv1.weight", "trunk.patch_embed.proj.weight", "patch_embed.proj.weight", "embeddings.patch_embedding.weight",
    "embeddings.patch_embeddings.projection.weight",
)  # fmt: skip


def read_module(
    tower: nn.Module,
    *,
    encoder_id: str | None = None,
    copy: bool = True,
    image_size: int | tuple[int, int] | None = None,
    preprocess_spec: PreprocessSpec | None = None,
) -> TowerSource:
    """Read an open_clip, timm or Hugging Face model, or its vision tower.

    The weights are copied: the tower is left as it is, in training mode too, and later training does not reach
    the copy. Dtype and device are those of the patch embedding; of a mixed half-precision model the float32
    norms are cast as well.

    Args:
        tower: open_clip's ``CLIP``, ``CustomTextCLIP`` or ``CoCa`` or their ``.visual``; timm's
            ``VisionTransformer``; Hugging Face's CLIP, SigLIP and DINOv2 models and vision models.
        encoder_id: The id of the weights if it is known; else one made from their content.
        copy: False makes the result share the tower's memory: nothing is copied, and an edit or a training step
            of either shows in the other. Towers whose conversion computes (LayerScale, CoCa's query) refuse it.
        image_size: For Hugging Face towers: the size at which their own ``interpolate_pos_encoding`` gives the
            positions. None: the size of ``preprocess_spec`` for DINOv2, else the tower's own.
        preprocess_spec: Used instead of what the source says about preprocessing.

    Raises:
        UnsupportedTowerError: The tower is not a plain ViT, or hooks or other code are on it.
        CheckpointError: The tower has no weights, parts that the conversion does not know, or cannot be shared.
    """
    size = size_pair(image_size)
    packages = {cls.__module__.split(".")[0] for cls in type(tower).__mro__}
    if size is not None and "transformers" not in packages:
        refuse(f"image_size= for a {kind(tower)}, which has no interpolate_pos_encoding")
    spec = preprocess_spec
    if "open_clip" in packages:
        visual: Any = getattr(tower, "visual", tower)
        blueprint, tensors = open_clip_blueprint(visual), visual.state_dict()
        spec = preprocess_spec or open_clip_spec(visual)
    elif "transformers" in packages:
        if spec is not None and "dinov2" in type(tower).__module__:
            size = size or spec.size
        blueprint, tensors = hf_blueprint(tower, size), hf_state_dict(tower)
    elif "timm" in packages:
        blueprint, tensors = timm_blueprint(tower), tower.state_dict()
    else:
        refuse(
            f"a {kind(tower)} from {type(tower).__module__}; hand over the open_clip, timm or transformers model itself"
        )
    require_own_code(tower)
    state_dict = _converted(blueprint, tensors, copy)
    return source_of(blueprint.cfg, state_dict, spec, encoder_id=encoder_id, label="module")


def _converted(blueprint: Blueprint, tensors: Mapping[str, Tensor], copy: bool) -> dict[str, Tensor]:
    like = next((tensors[name] for name in _PATCHES if name in tensors), next(iter(tensors.values())))
    if like.is_meta:
        raise CheckpointError("the tower is on the meta device and has no weights; load them first")
    if like.dtype not in _FLOATS:
        raise CheckpointError(
            f"the tower's weights are {like.dtype}; expected a floating-point tower, not a quantised one"
        )
    recipe = blueprint.recipe(tensors)
    recipe.check(tensors)
    mixed = sorted({str(tensors[name].dtype) for name in recipe.shapes} - {str(like.dtype)})
    if mixed and not copy:
        raise CheckpointError(
            f"copy=False cannot share memory with a tower of several dtypes ({like.dtype}, {', '.join(mixed)}): some "
            "would have to be cast; leave copy=True"
        )
    return build(recipe, tensors, dtype=like.dtype, copy=copy)
