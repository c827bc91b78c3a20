"""What readers of others' files share: tensors and nothing else, and a refusal of what a file does not say."""

__all__ = ["Said", "built", "config_of", "has", "only", "safe_tensors", "torch_tensors"]

import io
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vit_lens.dictionaries.dictionary import Dictionary
from vit_lens.dictionaries.semantics import Origin, Semantics
from vit_lens.errors import DictionaryError
from vit_lens.files import damaged, file_tensors, open_safetensors, read_json

Said = Mapping[str, Any]  # what the caller says where a file is silent: fields of Semantics and Origin

_BYTES = 32 * 2**30  # what a file may take in memory
_ADVICE = "download or copy it again"
_WAY_OUT = (
    "where you trust it, load it with the library that wrote it and save its tensors alone, as in "
    "torch.save(sae.state_dict(), 'weights.pt'), or make a vl.Dictionary of them"
)


def has(*names: str) -> Any:
    """Return a predicate: whether a path is a folder with these files, or one of them, with the others beside it."""

    def holds(path: Path) -> bool:
        folder = path if path.is_dir() else path.parent
        return (path.is_dir() or path.name in names) and all((folder / name).is_file() for name in names)

    return holds


def config_of(path: Path, name: str) -> tuple[Path, dict[str, Any]]:
    """Return the folder of a dictionary, and its config."""
    folder = path if path.is_dir() else path.parent
    return folder, read_json(folder / name, DictionaryError, _ADVICE)


def safe_tensors(path: Path) -> dict[str, Tensor]:
    """Return all tensors of a safetensors file."""
    _bounded(path)
    with damaged(DictionaryError, f"{path} is not a whole safetensors file", _ADVICE):
        with open_safetensors(path, DictionaryError, _ADVICE) as file:
            return file_tensors(file)


def torch_tensors(path: Path, skip: int = 0) -> dict[str, Tensor]:
    """Return the state dict in a file of ``torch.save``, behind its first ``skip`` bytes. No code in it is run.

    Raises:
        DictionaryError: It holds more than tensors, is compressed or too large, or is damaged.
    """
    _bounded(path)
    with path.open("rb") as file:
        file.seek(skip)
        data: Any = io.BytesIO(file.read()) if skip else path
    if zipfile.is_zipfile(data):
        with zipfile.ZipFile(data) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise DictionaryError(f"{path} is compressed, as torch.save leaves no file; {_ADVICE}")
        if skip:
            data.seek(0)
    try:
        held = torch.load(data, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises RuntimeError, EOFError and pickle's own
        raise DictionaryError(f"{path} holds more than tensors, or is damaged, and is not read; {_WAY_OUT}") from error
    for wrapper in ("state_dict", "model_state_dict"):
        held = held[wrapper] if isinstance(held, dict) and isinstance(held.get(wrapper), dict) else held
    if isinstance(held, Tensor):
        return {"": held}
    if not isinstance(held, dict) or not all(isinstance(k, str) and isinstance(held[k], Tensor) for k in held):
        raise DictionaryError(f"{path} does not hold tensors by name; {_WAY_OUT}")
    return held


def _bounded(path: Path) -> None:
    if not path.is_file():
        raise DictionaryError(f"{path}: no such file; {_ADVICE}")
    if (size := path.stat().st_size) > _BYTES:
        raise DictionaryError(f"{path} has {size} bytes; at most {_BYTES} are read")


def only(tensors: Mapping[str, Tensor], needed: Iterable[str], path: Path, ignored: Iterable[str] = ()) -> None:
    """Raise unless tensors are those of a layout: one too many means something that would be left out."""
    absent = sorted(set(needed) - set(tensors))
    strange = sorted(set(tensors) - set(needed) - set(ignored))
    if absent or strange:
        raise DictionaryError(
            f"{path} lacks the tensors {absent} and has {strange}, which are not known: it is of another architecture "
            "than this layout says. Make a vl.Dictionary of its tensors, with what they mean"
        )


def built(path: Path, tensors: Mapping[str, Tensor], semantics: Said, origin: Said, said: Said) -> Dictionary:
    """Return the dictionary; what is None in ``semantics`` must be said by the caller.

    Args:
        path: The file, for messages.
        tensors: The fields of a dictionary that are tensors.
        semantics: What the file says of each field of :class:`Semantics`.
        origin: What it says of :class:`Origin`.
        said: What the caller says; it may not contradict the file.

    Raises:
        DictionaryError: Something is not said, or said twice.
    """
    known = {**{name: None for name in Semantics.__dataclass_fields__}, **semantics}
    places = {name: value for name, value in origin.items() if value is not None}
    for name, value in said.items():
        if name not in known and name not in Origin.__dataclass_fields__:
            raise DictionaryError(f"{name}= is no field of Semantics or Origin: {', '.join(known)}, site, tokens, ...")
        held = known if name in known else places
        if held.get(name) is not None and held[name] != value:
            raise DictionaryError(f"{name}={value!r}, and {path} says {held[name]!r}; leave it out")
        held[name] = value
    counted = known["encoder"] in ("topk", "pursuit", "signed")
    missing = [name for name, value in known.items() if value is None and (name != "k" or counted)]
    if missing:
        raise DictionaryError(
            f"{path} does not say {', '.join(missing)}, without which its numbers mean nothing; say it: "
            f"vl.Dictionary.load(path, {', '.join(f'{name}=...' for name in missing)})"
        )
    plain: dict[str, Any] = {name: value.detach().contiguous().clone() for name, value in tensors.items()}
    return Dictionary(semantics=Semantics(**known), origin=Origin(**places), **plain)
