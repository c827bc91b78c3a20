"""Files beside the table: captions, nearest images and live numbers, written whole and read back checked."""

__all__ = [
    "LIVE_FILE",
    "READOUTS_FILE",
    "gallery_name",
    "live_bytes_of",
    "load_live",
    "load_readouts",
    "readouts_bytes",
]

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from vit_lens.errors import RecordError
from vit_lens.files import to_bytes
from vit_lens.records.answers import FORMS, Found, Readouts
from vit_lens.records.live import LiveNumbers

READOUTS_FILE, LIVE_FILE = "readouts.safetensors", "live.safetensors"
_WHAT = {"captions": "by_caption", "images": "by_image"}


def gallery_name(index: int) -> str:
    """Return where a small copy of a gallery's picture lies, relative to the record."""
    return f"gallery/{index:06d}.png"


def readouts_bytes(readouts: Readouts) -> bytes:
    """Return captions and neighbours as the bytes of a file."""
    tensors = {} if readouts.texts is None else {"texts": readouts.texts}
    for what, attribute in _WHAT.items():
        for form, found in getattr(readouts, attribute).items():
            tensors |= {f"{what}.{form}.index": found.index, f"{what}.{form}.cosine": found.cosine}
    described: dict[str, Any] = {
        "captions": readouts.captions, "logit_scale": readouts.logit_scale, "logit_bias": readouts.logit_bias,
        "groups": dict(readouts.groups), "names": sorted(readouts.names.items()), "means": readouts.means,
    }  # fmt: skip
    return to_bytes(tensors, {"described": json.dumps(described)})


def load_readouts(path: Path, n_rows: int) -> Readouts | None:
    """Read captions and neighbours; None if the record has none, RecordError if they are damaged."""
    read = _read(path / READOUTS_FILE)
    if read is None:
        return None
    tensors, described = read
    by: dict[str, dict[str, Found]] = {what: {} for what in _WHAT}
    for what in _WHAT:
        for form in FORMS:
            if f"{what}.{form}.index" in tensors:
                found = Found(tensors[f"{what}.{form}.index"], tensors[f"{what}.{form}.cosine"])
                if len(found.index) != n_rows:
                    raise RecordError(
                        f"{path / READOUTS_FILE} has {len(found.index)} rows, the table {n_rows}; sweep again"
                    )
                by[what][form] = found
    described["captions"], described["names"] = tuple(described["captions"]), dict(map(tuple, described["names"]))
    return Readouts(
        texts=tensors.get("texts"), by_caption=by["captions"], by_image=by["images"], **described
    )  # fmt: skip


def live_bytes_of(live: LiveNumbers) -> bytes:
    """Return live numbers as the bytes of a file."""
    values = {f.name: getattr(live, f.name) for f in fields(live)}
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    plain = ("labels", "images", "recomputed", "eps")
    return to_bytes(tensors, {"described": json.dumps({name: values[name] for name in plain})})


def load_live(path: Path) -> LiveNumbers | None:
    """Read live numbers; None if the record has none, RecordError if they are damaged."""
    read = _read(path / LIVE_FILE)
    if read is None:
        return None
    tensors, described = read
    described["labels"], described["images"] = tuple(described["labels"]), tuple(described["images"])
    return LiveNumbers(**tensors, **described)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            described = json.loads((file.metadata() or {})["described"])
            return {name: file.get_tensor(name) for name in file.keys()}, described
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise RecordError(f"{path} cannot be read ({error}); the record is damaged, sweep again") from error
