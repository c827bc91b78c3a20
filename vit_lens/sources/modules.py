"""Towers that are in memory: read as a model, or taken as a source to compare with."""

__all__ = ["read_module", "source_tower"]


from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from vit_lens.errors import CheckpointError
from vit_lens.images import PreprocessSpec
from vit_lens.sources.families import families, known_family
from vit_lens.sources.families.family import Blueprint, Family, Kind
from vit_lens.sources.recipe import FLOATS, build
from vit_lens.sources.refusals import kind as class_of
from vit_lens.sources.refusals import refuse, refuse_float16, require_spec, size_pair
from vit_lens.sources.source_tower import SourceTower
from vit_lens.sources.tower_source import TowerSource, source_of


def read_module(
    tower: nn.Module,
    *,
    kind: Kind = "image",
    encoder_id: str | None = None,
    copy: bool = True,
    image_size: int | tuple[int, int] | None = None,
    preprocess_spec: PreprocessSpec | None = None,
) -> TowerSource:
    """Read a model of a known family, or its tower.

    The weights are copied: the tower is left as it is, in training mode too, and later training does not reach
    the copy. Dtype and device are those of the patch embedding; of a mixed half-precision model the float32
    norms are cast as well.

    Args:
        tower: open_clip's ``CLIP``, ``CustomTextCLIP`` or ``CoCa`` or their ``.visual``; timm's
            ``VisionTransformer``; Hugging Face's CLIP, SigLIP and DINOv2 models and vision models. Of text towers
            open_clip's and its ``.text``, Hugging Face's CLIP and T5.
        kind: Which tower is read: ``image`` or ``text``.
        encoder_id: The id of the weights if it is known; None makes one from their content.
        copy: Whether the weights are copied. False makes the result share the tower's memory: an edit or a training
            step of either shows in the other. Towers whose conversion computes (LayerScale, CoCa's query) refuse it.
        image_size: The side, or (height, width), in pixels at which the ``interpolate_pos_encoding`` of Hugging Face's
            towers gives the positions. None takes the size of ``preprocess_spec`` for DINOv2, else the tower's own.
        preprocess_spec: How images become pixels; None takes what the tower carries, if it carries any.

    Raises:
        UnsupportedTowerError: The tower is not a plain ViT, or hooks or other code are on it.
        CheckpointError: The tower has no weights, parts that the conversion does not know, or cannot be shared.

    >>> from transformers import CLIPVisionConfig, CLIPVisionModel
    >>> sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    >>> source = read_module(CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=20, patch_size=5)))
    >>> source.cfg.n_ctx, source.preprocess_spec
    (17, None)
    >>> read_module(nn.Linear(2, 2))
    Traceback (most recent call last):
    vit_lens.errors.UnsupportedTowerError: ...a Linear from torch.nn.modules.linear; known are ...
    """
    size, family = size_pair(image_size), known_family(tower, kind)
    require_spec(preprocess_spec)
    blueprint = family.blueprint(tower, family.size(size, preprocess_spec, f"a {type(tower).__name__}"))
    _require_own_code(family.part(tower), [family], family.unused)
    state_dict = _converted(blueprint, family.tensors(tower), copy)
    spec = preprocess_spec or family.spec(tower)
    return source_of(blueprint.cfg, state_dict, spec, encoder_id=encoder_id, label="module")


def source_tower(module: nn.Module, kind: Kind = "image") -> SourceTower:
    """Return a tower in memory as something to listen to. The module is not changed.

    Args:
        module: The whole model, or its tower.
        kind: Which tower is meant: ``image`` or ``text``.

    Raises:
        UnsupportedTowerError: The module is of no known kind, or hooks or other code are on it, which a copy would not
            run.

    >>> from vit_lens.sources import load_module, resolve_name
    >>> source_tower(load_module(resolve_name("mini"), quick_gelu=False)).kind
    'transformers CLIPModel'
    """
    if isinstance(module, SourceTower):
        _require_own_code(module.parts, families())
        return module
    family = known_family(module, kind)
    found = family.listen(module)
    _require_own_code(family.part(module), [family], family.unused)
    return found


def _require_own_code(tower: nn.Module, known: Sequence[Family], unused: tuple[str, ...] = ()) -> None:
    """Check that the tower runs its library's code: weights and sizes do not show what was put on top.

    That is a forward hook, a ``forward`` set on one module, or a part of a class that no library of towers made.

    Raises:
        UnsupportedTowerError: The message names the parts.
    """
    libraries = {"torch", *(home.split(".")[0] for family in known for home in (*family.homes, *family.built_from))}
    parts = {name: part for name, part in tower.named_modules() if not name.startswith(unused)}
    found = [
        f"{name or class_of(part)} ({why})" for name, part in parts.items() if (why := _foreign_code(part, libraries))
    ]
    if found:
        more = f", and {len(found) - 3} more" if len(found) > 3 else ""
        refuse(
            f"code on the tower that a hooked one would not run: {', '.join(found[:3])}{more}; merge an adapter into "
            "the weights (merge_and_unload() of PEFT), take other code off"
        )


def _foreign_code(part: nn.Module, libraries: set[str]) -> str:
    hooks = [*part._forward_hooks.values(), *part._forward_pre_hooks.values()]
    # transformers keeps hooks of its own on models that were asked for hidden states.
    if any(getattr(hook, "__module__", "") != "transformers.utils.output_capturing" for hook in hooks):
        return "a forward hook"
    if "forward" in vars(part):
        return "a forward of its own"
    is_linear = type(part) in (nn.Linear, NonDynamicallyQuantizableLinear) or not isinstance(part, nn.Linear)
    if not is_linear or type(part).__module__.split(".")[0] not in libraries:
        return f"of type {type(part).__module__}.{class_of(part)}"
    return ""


def _converted(blueprint: Blueprint, tensors: dict[str, Tensor], copy: bool) -> dict[str, Tensor]:
    recipe = blueprint.recipe(tensors)
    embedding = next((step.sources[0] for step in recipe.steps if step.target == "embed.W_E"), "")
    like = tensors.get(embedding, next(iter(tensors.values())))  # says which dtype a tower of several has
    if like.is_meta:
        raise CheckpointError("the tower is on the meta device and has no weights; load them first")
    if like.dtype not in FLOATS:
        raise CheckpointError(
            f"the tower's weights are {like.dtype}; expected a floating-point tower, not a quantised one"
        )
    refuse_float16(blueprint.cfg, like.dtype)
    recipe.check(tensors)
    mixed = sorted({str(tensors[name].dtype) for name in recipe.shapes} - {str(like.dtype)})
    if mixed and not copy:
        raise CheckpointError(
            f"copy=False cannot share memory with a tower of several dtypes ({like.dtype}, {', '.join(mixed)}): some "
            "would have to be cast; leave copy=True"
        )
    return build(recipe, tensors, like.dtype, copy=copy)
