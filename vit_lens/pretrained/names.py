"""Find out what a name means, and read it."""

__all__ = ["FolderName", "OpenClipName", "read_pretrained", "resolve_name"]

import importlib.resources
from dataclasses import dataclass
from pathlib import Path

import torch

from vit_lens.errors import CheckpointError, nearest
from vit_lens.identity import MINI_ENCODER
from vit_lens.images import PreprocessSpec
from vit_lens.pretrained import registry
from vit_lens.pretrained.checks import refuse, require_dtype, size_pair
from vit_lens.pretrained.folders import Folder, HubFolder, LocalFolder, split_subfolder
from vit_lens.pretrained.hf_files import read_folder
from vit_lens.pretrained.open_clip_files import read_open_clip
from vit_lens.pretrained.source import TowerSource

_FORMS = (
    '"mini"; an open_clip name with tag=, or "ViT-B-32/openai"; a Hub id "owner/name" or "owner/name:subfolder"; '
    "a local directory"
)


@dataclass(frozen=True)
class OpenClipName:
    """One of open_clip's models, with a pretrained tag or the path of a checkpoint."""

    model: str
    tag: str | Path


@dataclass(frozen=True)
class FolderName:
    """A directory or a repository on the Hub.

    Attributes:
        folder: Which.
        subfolder: In it; empty if there is none.
        encoder_id: Of the weights; None for a local directory, where their content says it.
        label: A short name for a local id.
    """

    folder: Folder
    subfolder: str
    encoder_id: str | None
    label: str


def read_pretrained(
    name: str | Path,
    *,
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
        name: See above.
        tag: For an open_clip name: a pretrained tag, or the path of a checkpoint (a ``Path`` is always a path).
        quick_gelu: The activation of a local open_clip checkpoint, where its model name leaves that open.
        dtype: Of the weights.
        device: Of the weights; on ``meta`` names and shapes are checked and no value is read.
        preprocess_spec: Used instead of what the source says about preprocessing.
        revision: Branch, tag or commit on the Hub.
        cache_dir: Where downloads are kept, instead of the default.
        image_size: For Hugging Face towers: the size at which their own ``interpolate_pos_encoding`` gives the
            positions. None: what DINOv2's image processor crops, else the size in the config.

    Raises:
        CheckpointError: The name is unknown or ambiguous, files cannot be had, or tensors do not fit.
        UnsupportedTowerError: The tower is not a plain ViT.
        PreprocessError: The source's preprocessing is one that cannot be reproduced.
    """
    size = size_pair(image_size)
    common = {"dtype": require_dtype(dtype), "device": device, "preprocess_spec": preprocess_spec}
    found = resolve_name(name, tag=tag, revision=revision, cache_dir=cache_dir)
    if isinstance(found, OpenClipName):
        if size is not None:
            refuse(f"image_size= for the open_clip tower {found.model}, which has no interpolate_pos_encoding")
        return read_open_clip(found.model, found.tag, quick_gelu=quick_gelu, cache_dir=cache_dir, **common)
    if quick_gelu is not None:
        raise CheckpointError(
            f"quick_gelu= belongs to open_clip checkpoints; the config of {name} names the activation"
        )
    return read_folder(
        found.folder, found.subfolder, encoder_id=found.encoder_id, name=found.label, image_size=size, **common
    )


def resolve_name(
    name: str | Path,
    *,
    tag: str | Path | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
) -> OpenClipName | FolderName:
    """Say what a name means, by the rules of :func:`read_pretrained`; nothing is read and nothing fetched.

    Raises:
        CheckpointError: The name is unknown or ambiguous, or has no tag where it needs one.
    """
    if not isinstance(name, (str, Path)):
        raise CheckpointError(f"name={name!r} is a {type(name).__name__}; expected {_FORMS}")
    model, found_tag = _open_clip_name(name, tag)
    if model is not None:
        if revision is not None:
            raise CheckpointError(f"revision= belongs to Hub ids; {model} is an open_clip name, choose with tag=")
        return OpenClipName(model, registry.require_tag(model, found_tag))
    if tag is not None:
        raise CheckpointError(f"tag= belongs to open_clip names; {name} is none, nearest: {_near(str(name))}")
    found = _folder_name(name, revision, cache_dir)
    if revision is not None and isinstance(found.folder, LocalFolder):
        raise CheckpointError(f"revision= belongs to Hub ids; {name} is a directory here and has one content")
    return found


def _folder_name(name: str | Path, revision: str | None, cache_dir: str | Path | None) -> FolderName:
    if name in ("mini", MINI_ENCODER):
        path = Path(str(importlib.resources.files("vit_lens") / "mini" / "pair" / "encoder"))
        if not (path / "config.json").is_file():
            raise CheckpointError(f"the embedded encoder is not in this installation ({path}); install it again")
        return FolderName(LocalFolder(path), "", MINI_ENCODER, "mini")
    root, subfolder = split_subfolder(str(name))
    local = Path(root).expanduser()
    if isinstance(name, Path) or root.startswith((".", "/", "~")) or (local.is_dir() and not root.startswith("hf/")):
        _require_directory(local)
        label = local.resolve().name + (f":{subfolder}" if subfolder else "")
        return FolderName(LocalFolder(local), subfolder, None, label)
    repo_id = root.removeprefix("hf/")
    if repo_id.count("/") != 1:
        raise CheckpointError(f"unknown model {str(name)!r}; expected {_FORMS}. Nearest open_clip names: {_near(root)}")
    hub_id = f"hf/{repo_id}" + (f":{subfolder}" if subfolder else "")
    return FolderName(HubFolder(repo_id, revision, cache_dir), subfolder, hub_id, repo_id)


def _require_directory(path: Path) -> None:
    if path.is_file():
        raise CheckpointError(
            f"{path} is a file; for an open_clip checkpoint pass the model name, and the file as tag="
        )
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such directory")


def _open_clip_name(name: str | Path, tag: str | Path | None) -> tuple[str | None, str | Path | None]:
    """Return (model, tag) if the name is one of open_clip's, else (None, None)."""
    if isinstance(name, Path):
        return None, None
    explicit = name.startswith("open_clip/")
    plain = name.removeprefix("open_clip/")
    if not explicit and (name.startswith((".", "/", "~", "hf/")) or name in ("mini", MINI_ENCODER)):
        return None, None
    models = registry.known_models()
    if plain in models:
        return plain, tag
    model, _, found = plain.rpartition("/")
    if model in models:
        return model, _one_tag(name, found, tag, explicit=explicit)
    if explicit:
        raise CheckpointError(f"open_clip has no model {plain!r}; nearest: {nearest(plain, models)}")
    return None, None


def _one_tag(name: str, found: str, tag: str | Path | None, *, explicit: bool) -> str:
    if tag is not None:
        raise CheckpointError(f"{name!r} already names the tag {found!r}; leave tag={str(tag)!r} out")
    if not explicit and Path(name).is_dir():
        raise CheckpointError(
            f"{name!r} is a directory here and an open_clip tag; write './{name}' or 'open_clip/{name}'"
        )
    return found


def _near(name: str) -> str:
    return nearest(name, registry.known_models())
