"""Read a tower by name, one tensor at a time; or load it with its own library, to compare with."""

__all__ = ["load_module", "read_pretrained", "stored_config"]

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vit_lens.config import HookedViTConfig
from vit_lens.errors import CheckpointError
from vit_lens.files import read_json
from vit_lens.identity import text_side
from vit_lens.images import PreprocessSpec
from vit_lens.sources.catalogue import (
    OpenClipName,
    build_text,
    build_visual,
    create_text,
    create_visual,
    is_timm,
    open_clip_tokenizer,
    open_clip_weights,
)
from vit_lens.sources.families import families, known_family, refuse_kind
from vit_lens.sources.families.family import Blueprint, Family, Kind
from vit_lens.sources.folders import TowerFolder
from vit_lens.sources.naming import resolve_name
from vit_lens.sources.recipe import build
from vit_lens.sources.refusals import refuse, refuse_float16, require_device, require_dtype, require_spec, size_pair
from vit_lens.sources.tensors import ADVICE, StoredTensors, open_tensors
from vit_lens.sources.tower_source import TowerSource, source_of

Size = tuple[int, int]


def read_pretrained(
    name: str | Path,
    *,
    kind: Kind = "image",
    tag: str | Path | None = None,
    quick_gelu: bool | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    preprocess_spec: PreprocessSpec | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    image_size: int | tuple[int, int] | None = None,
) -> TowerSource:
    """Read a tower by name. Local paths never touch the network.

    A name is read as the first of these that fits: ``mini``; ``open_clip/...`` and ``hf/...``, which leave nothing
    open; an open_clip model name with ``tag=``, or ``model/tag``; a path (a ``Path``, or a string that starts with
    ``.``, ``/`` or ``~`` or names a directory here); a Hub id. Directories and Hub ids take ``:subfolder``.

    Args:
        name: The name, in one of the forms above.
        kind: Which tower is read: ``image`` or ``text``.
        tag: The pretrained tag of an open_clip name, or the path of a checkpoint (a ``Path`` is always a path); None
            for any other name.
        quick_gelu: Whether a local open_clip checkpoint was trained with QuickGELU, where its model name leaves that
            open; None where something else says it.
        dtype: The floating-point type that the weights are cast to.
        device: Where the weights go; on ``meta`` names and shapes are checked and no value is read.
        preprocess_spec: How images become pixels; None takes what the source says.
        revision: The branch, tag or commit on the Hub; None takes the main branch.
        cache_dir: Where downloads are kept; None takes the default of the library that downloads.
        image_size: The side, or (height, width), in pixels at which the ``interpolate_pos_encoding`` of Hugging Face's
            towers gives the positions. None takes what DINOv2's image processor crops, else the size in the config.

    Raises:
        CheckpointError: The name is unknown or ambiguous, files cannot be had, or tensors do not fit.
        UnsupportedTowerError: The tower is not a plain ViT.
        PreprocessError: The source's preprocessing is one that cannot be reproduced.

    >>> read_pretrained("mini", device="meta").state_dict["unembed.W_U"]
    tensor(..., device='meta', size=(128, 128))
    """
    size, dtype, device = size_pair(image_size), require_dtype(dtype), require_device(device)
    require_spec(preprocess_spec)
    found = resolve_name(name, tag=tag, revision=revision, cache_dir=cache_dir)
    if isinstance(found, OpenClipName):
        opened = _named(found, kind, quick_gelu, preprocess_spec, size, cache_dir)
    elif quick_gelu is None:
        opened = _folder(found, kind, preprocess_spec, size)
    else:
        raise CheckpointError(
            f"quick_gelu= belongs to open_clip checkpoints; the config of {name} names the activation"
        )
    state_dict, label = _fitted(opened, dtype, device), f"local/{opened.label}"
    return source_of(
        opened.blueprint.cfg, state_dict, opened.spec, encoder_id=opened.encoder_id, label=label,
        tokenizer=opened.tokenizer,
    )  # fmt: skip


def load_module(
    found: OpenClipName | TowerFolder, *, quick_gelu: bool, cache_dir: str | Path | None = None, kind: Kind = "image"
) -> nn.Module:
    """Load a tower with the library that published it, and none of our readers of weights.

    Args:
        found: What a name means, by :func:`vit_lens.sources.resolve_name`.
        quick_gelu: Whether a local open_clip checkpoint, which does not say it, is run with QuickGELU.
        cache_dir: Where open_clip's downloads are kept; None takes open_clip's default.
        kind: Which tower is meant: ``image`` or ``text``.

    Raises:
        CheckpointError: There is nothing there that a family knows, or its library misses weights.

    >>> type(load_module(resolve_name("mini"), quick_gelu=False)).__name__
    'CLIPModel'
    """
    if isinstance(found, OpenClipName):
        create = create_visual if kind == "image" else create_text
        return create(found, file_quick_gelu=quick_gelu, cache_dir=cache_dir)
    family, _, config = _recognised(found, kind)
    return family.load(found, config)


def stored_config(folder: TowerFolder) -> Any:
    """Return the config of transformers that a directory or Hub id stands for: known keys alone, in plausible ranges.

    Args:
        folder: What :func:`vit_lens.sources.resolve_name` says of a name.

    Raises:
        CheckpointError: There is none, or it describes no tower.
        UnsupportedTowerError: It describes one that would not be exact.

    >>> stored_config(resolve_name("mini")).model_type
    'clip'
    """
    family, path, config = _recognised(folder, "image")
    return family.library_config(config, path)


class _Opened(NamedTuple):
    """A tower whose values are not read yet."""

    blueprint: Blueprint
    tensors: StoredTensors
    paths: Sequence[Path]
    spec: PreprocessSpec | None
    encoder_id: str | None
    label: str
    tokenizer: Any = None


def _named(
    name: OpenClipName,
    kind: Kind,
    quick_gelu: bool | None,
    spec: PreprocessSpec | None,
    size: Size | None,
    cache_dir: str | Path | None,
) -> _Opened:
    weights = open_clip_weights(name, quick_gelu)
    if quick_gelu is not None and kind == "image" and is_timm(weights.config):
        raise CheckpointError(
            f"quick_gelu={quick_gelu} would have no effect on {name.model}: a timm trunk has its own activation"
        )
    make = build_visual if kind == "image" else build_text
    tower = make(weights.config, name.model, quick_gelu=weights.quick_gelu)
    family = known_family(tower, kind)
    blueprint = family.blueprint(tower, family.size(size, spec, f"the open_clip tower {name.model}"))
    path = weights.fetch(cache_dir)
    tensors = open_tensors([path])
    tensors = tensors.under(family.names(tensors.header))
    encoder_id = weights.encoder_id
    if isinstance(blueprint.cfg, HookedViTConfig):
        return _Opened(
            blueprint, tensors, [path], spec or weights.spec(blueprint.cfg.image_size), encoder_id, path.name
        )
    encoder_id, tokenizer = encoder_id and text_side(encoder_id), open_clip_tokenizer(name.model)
    return _Opened(blueprint, tensors, [path], None, encoder_id, path.name, tokenizer)


def _folder(folder: TowerFolder, kind: Kind, given: PreprocessSpec | None, size: Size | None) -> _Opened:
    family, path, config = _recognised(folder, kind)
    spec = given or family.stored_spec(folder, config)
    positions = family.size(size, spec, f"the tower in {folder.label}")
    if spec is not None and size not in (None, spec.size):
        if given is not None:
            raise CheckpointError(f"preprocess_spec of size {given.size} with image_size={size}; give one size")
        spec = spec.at(size)
    paths = folder.weights(family.weight_files)
    tensors = open_tensors(paths)
    tensors = tensors.under(family.names(tensors.header))
    blueprint = family.blueprint(family.build(config, path, tensors.header), positions)
    encoder_id = folder.encoder_id
    if encoder_id is not None and kind == "text" and _of_kind("image", path.name, config) is not None:
        encoder_id = text_side(encoder_id)  # the image tower has the id of the whole
    tokenizer = family.tokenizer(folder, config)
    return _Opened(blueprint, tensors, paths, spec, encoder_id, folder.name, tokenizer)


def _of_kind(kind: Kind, file: str, config: Mapping[str, Any]) -> Family | None:
    """Return the family of a kind that a config file describes a tower of, if there is any."""
    return next((each for each in families(kind) if each.config_file == file and each.reads(config)), None)


def _recognised(folder: TowerFolder, kind: Kind) -> tuple[Family, Path, Mapping[str, Any]]:
    """Return the family that a folder's config describes a tower of, the config's path and its content."""
    for name in dict.fromkeys(family.config_file for family in families()):
        path = folder.find(name)
        if path is None:
            continue
        config = read_json(path, CheckpointError, ADVICE)
        if (found := _of_kind(kind, name, config)) is not None:
            return found, path, config
        if (other := _of_kind("text" if kind == "image" else "image", name, config)) is not None:
            refuse_kind(folder.label, other, "from_pretrained")
        members = [family for family in families(kind) if family.config_file == name]
        known = ", ".join(repr(model_type) for family in members for model_type in family.model_types)
        refuse(f"{folder.label} of model_type {str(config.get('model_type'))!r}; expected {known}")
    if (path := folder.find("model_index.json")) is not None:
        parts = [name for name in read_json(path, CheckpointError, ADVICE) if name.startswith(("text_", "image_enc"))]
        part = (parts or ["..."])[0]
        raise CheckpointError(
            f"{folder.label} is a whole pipeline; name one of its parts: subfolder={part!r}, or '{folder.label}:{part}'"
        )
    raise CheckpointError(f"{folder.label} has no config.json; expected a tower in Hugging Face's format")


def _fitted(opened: _Opened, dtype: torch.dtype, device: str | torch.device) -> dict[str, Tensor]:
    """Check names and shapes from the headers, then read, cast and place one tensor at a time.

    On the meta device no value is read.

    Raises:
        CheckpointError: The tensors do not fit; the message names the file.
    """
    try:
        recipe = opened.blueprint.recipe(opened.tensors.header)
        recipe.check(opened.tensors.header)
    except CheckpointError as error:
        raise CheckpointError(f"{', '.join(map(str, opened.paths))}: {error}") from None
    refuse_float16(opened.blueprint.cfg, dtype)
    is_meta = torch.device(device).type == "meta"
    return build(recipe, opened.tensors.header if is_meta else opened.tensors, dtype, device=device)
