"""What stands beside the pictures on the page: captions, nearest images and the numbers of the live panel."""

__all__ = ["beside_data", "live_data", "strings", "texts_data"]

import base64
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from vit_lens.records import LIVE_BUDGET, Found, LiveNumbers, Record
from vit_lens.report.thumbs import inline_pictures

_NEIGHBOURS = 2_000_000  # bytes of small copies of the gallery's pictures
_TENSORS = ("contributions", "constant", "embedding", "gram", "along", "variance")


def texts_data(record: Record) -> dict[str, Any] | None:
    """Return the captions; with live numbers also their embeddings, where they are small enough for a page."""
    beside = record.readouts
    if beside is None or beside.texts is None:
        return None
    unit = _encode(beside.texts) if record.live is not None else ""
    return {
        "captions": list(beside.captions), "groups": dict(beside.groups), "scale": beside.logit_scale,
        "bias": beside.logit_bias, "unit": unit if len(unit) <= LIVE_BUDGET // 2 else "",
    }  # fmt: skip


def beside_data(record: Record) -> dict[str, Any] | None:
    """Return captions and nearest images of every row."""
    beside = record.readouts
    if beside is None:
        return None
    indices = sorted(beside.names)
    return {
        "captions": {form: _flat(found) for form, found in beside.by_caption.items()},
        "images": {form: _flat(found) for form, found in beside.by_image.items()},
        "names": {str(index): beside.names[index] for index in indices},
        "thumbs": {str(i): uri for i, uri in inline_pictures(record.neighbour, indices, _NEIGHBOURS).items()},
        "means": beside.means,
    }


def live_data(record: Record) -> dict[str, Any] | None:
    """Return the live numbers of as many images as fit."""
    live = record.live
    if live is None:
        return None
    images: dict[str, dict[str, str]] = {}
    spent = 0
    for place, image in enumerate(live.images):
        numbers = {name: _encode(value[place]) for name in _TENSORS if (value := getattr(live, name)) is not None}
        spent += sum(map(len, numbers.values()))
        if spent > LIVE_BUDGET:
            break
        images[str(image)] = numbers
    return _described(live) | {"images": images}


def strings(value: Any) -> Iterator[str]:
    """Yield every text in nested data, for the size of it."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from strings(inner)
    elif isinstance(value, list) and value and not isinstance(value[0], (int, float)):
        for inner in value:
            yield from strings(inner)


def _described(live: LiveNumbers) -> dict[str, Any]:
    return {"labels": list(live.labels), "recomputed": live.recomputed, "eps": live.eps}


def _flat(found: Found) -> dict[str, Any]:
    cosines = torch.nan_to_num(found.cosine, nan=0.0).flatten().tolist()
    return {
        "k": found.index.shape[1], "index": found.index.flatten().tolist(), "cosine": [round(c, 3) for c in cosines]
    }  # fmt: skip


def _encode(values: Tensor) -> str:
    """Return float32 numbers, low byte first, as base64."""
    return base64.b64encode(values.detach().cpu().contiguous().numpy().astype("<f4").tobytes()).decode("ascii")
