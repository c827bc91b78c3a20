"""Find out what a name means; nothing is read and nothing fetched."""

__all__ = ["embedded_encoder", "resolve_name"]

from pathlib import Path

from vit_lens.errors import CheckpointError, nearest
from vit_lens.files import damaged
from vit_lens.identity import EMBEDDED_PIPELINES, MINI_ENCODER, MINI_FILES
from vit_lens.sources.catalogue import OpenClipName, known_models, require_tag
from vit_lens.sources.folders import HubFolder, TowerFolder

_FORMS = (
    '"mini", "mini-sd" or "mini-flux"; an open_clip name with tag=, or "ViT-B-32/openai"; a Hub id "owner/name" or '
    '"owner/name:subfolder"; a local directory'
)

_READS = {"mini-sd": "text_encoder", "mini-flux": "text_encoder_2"}  # what each embedded model reads its texts with


def resolve_name(
    name: str | Path, *, tag: str | Path | None = None, revision: str | None = None, cache_dir: str | Path | None = None
) -> OpenClipName | TowerFolder:
    """Say what a name means, by the rules of :func:`vit_lens.sources.read_pretrained`.

    Args:
        name: The name of a model, a Hub id or a local directory.
        tag: The pretrained tag of an open_clip name, or the path of a checkpoint; None for any other name.
        revision: The branch, tag or commit of a Hub id; None takes its main branch.
        cache_dir: Where downloads are kept; None takes Hugging Face's default.

    Raises:
        CheckpointError: The name is unknown or ambiguous, or has no tag where it needs one.

    >>> resolve_name("ViT-B-32/openai")
    OpenClipName(model='ViT-B-32', tag='openai')
    >>> resolve_name("facebook/dinov2-base").encoder_id  # nothing is fetched
    'hf/facebook/dinov2-base'
    """
    if not isinstance(name, (str, Path)) or not str(name).strip():
        raise CheckpointError(f"name={name!r} is a {type(name).__name__}; expected {_FORMS}")
    with damaged(CheckpointError, f"{str(name)[:80]!r} cannot be looked up", "shorten it"):
        return _resolved(name, tag, revision, cache_dir)


def _resolved(
    name: str | Path, tag: str | Path | None, revision: str | None, cache_dir: str | Path | None
) -> OpenClipName | TowerFolder:
    model, found_tag = _open_clip_name(name, tag)
    if model is not None:
        if revision is not None:
            raise CheckpointError(f"revision= belongs to Hub ids; {model} is an open_clip name, choose with tag=")
        return OpenClipName(model, require_tag(model, found_tag))
    if tag is not None:
        raise CheckpointError(
            f"tag= belongs to open_clip names; {name} is none, nearest: {nearest(str(name), known_models())}"
        )
    found = _folder_name(name, revision, cache_dir)
    if revision is not None and isinstance(found.root, Path):
        raise CheckpointError(f"revision= belongs to Hub ids; {name} is a directory here and has one content")
    return found


def embedded_encoder(name: str | Path) -> Path | None:
    """Return the directory of the encoder that ships with the package, if a name is its name; else None.

    Raises:
        CheckpointError: The encoder's files are not in this installation.

    >>> embedded_encoder("mini").name, embedded_encoder("ViT-B-32")
    ('encoder', None)
    """
    if name not in ("mini", MINI_ENCODER):
        return None
    path = MINI_FILES / "encoder"
    if not (path / "config.json").is_file():
        raise CheckpointError(f"the embedded encoder is not in this installation ({path}); install it again")
    return path


def _folder_name(name: str | Path, revision: str | None, cache_dir: str | Path | None) -> TowerFolder:
    if (path := embedded_encoder(name)) is not None:
        return TowerFolder(path, "", MINI_ENCODER, "mini")
    if (label := str(name).removeprefix("vit_lens/")) in EMBEDDED_PIPELINES and not isinstance(name, Path):
        return TowerFolder(EMBEDDED_PIPELINES[label], _READS[label], f"vit_lens/{label}", label)
    root, subfolder = _cut(str(name))
    if ".." in subfolder.split("/"):
        raise CheckpointError(f"{str(name)!r}: the subfolder {subfolder!r} lies outside; name it by its own path")
    local = Path(root).expanduser()
    is_here = bool(root) and local.is_dir() and not root.startswith("hf/")
    if isinstance(name, Path) or root.startswith((".", "/", "~")) or is_here:
        _require_directory(local)
        label = local.resolve().name + (f":{subfolder}" if subfolder else "")
        return TowerFolder(local, subfolder, None, label)
    repo_id = root.removeprefix("hf/")
    if repo_id.count("/") != 1:
        near = nearest(root, ["mini", *EMBEDDED_PIPELINES, *known_models()])
        raise CheckpointError(f"unknown model {str(name)!r}; expected {_FORMS}. Nearest names: {near}")
    hub_id = f"hf/{repo_id}" + (f":{subfolder}" if subfolder else "")
    return TowerFolder(HubFolder(repo_id, revision, cache_dir), subfolder, hub_id, repo_id)


def _cut(name: str) -> tuple[str, str]:
    """Cut off a subfolder: behind a directory that is here, else at the first colon, but never behind a drive."""
    colons = [place for place, letter in enumerate(name) if letter == ":"]
    here = (place for place in (len(name), *reversed(colons)) if place and Path(name[:place]).expanduser().is_dir())
    others = (place for place in colons if place != 1 or not name[0].isalpha())
    cut = next(here, next(others, len(name)))
    return name[:cut], name[cut + 1 :].strip("/")


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
    if not explicit and (name.startswith((".", "/", "~", "hf/")) or embedded_encoder(name) is not None):
        return None, None
    models = known_models()
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
