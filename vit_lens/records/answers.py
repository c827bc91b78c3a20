"""What stands beside the pictures of a record: captions and nearest images of every row, raw and centred."""

__all__ = ["FORMS", "READOUTS_FILE", "Found", "Readouts", "gallery_name", "load_readouts", "readouts_bytes"]

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from vit_lens.errors import RecordError
from vit_lens.files import to_bytes
from vit_lens.records.opening import read_tensors

FORMS = ("raw", "centred")
READOUTS_FILE = "readouts.safetensors"
_WHAT = {"captions": "by_caption", "images": "by_image"}


def gallery_name(index: int) -> str:
    """Return where a small copy of a gallery's picture lies, relative to the record.

    >>> vl.records.gallery_name(12)
    'gallery/000012.png'
    """
    return f"gallery/{index:06d}.png"


@dataclass(frozen=True, eq=False)
class Found:
    """The best answers of every row of a record, best first.

    Attributes:
        index: The indices of the captions, or of the gallery's pictures; -1 where an embedding has no direction.
        cosine: The cosines of these with the row's embedding, -1 to 1; nan where it has no direction.

    >>> texts = vl.Beside(texts=bank)
    >>> record = vl.sweep(model, None, images[:1], lens="diffusion", sites="mlp", beside=texts, out=tmp / "found")
    >>> record.readouts.by_caption["raw"].index.shape
    torch.Size([8, 4])
    """

    index: Int[Tensor, "row k"]
    cosine: Float[Tensor, "row k"]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Readouts:
    """Captions and nearest images of every row of a record, without the text tower and the gallery.

    ``raw`` and ``centred`` are the forms: embeddings as they are, or with a mean taken away.

    Attributes:
        captions: The texts that were compared.
        texts: The embeddings of the captions at length 1; None without captions.
        logit_scale: The factor that turns cosines into logits; None without captions.
        logit_bias: The number that is added to them where the model takes sigmoids; None where it takes a softmax.
        groups: Indices of captions that are alternatives of each other, by name: what a softmax runs over.
        names: Names of the gallery's pictures that occur in an answer, by their index in the gallery.
        means: What the centred form takes away, in words.
        by_caption: The best captions of every row, by form.
        by_image: The nearest pictures of the gallery of every row, by form.

    >>> texts = vl.Beside(texts=bank)
    >>> record = vl.sweep(
    ...     model, None, images[:1], lens="diffusion", sites="resid_post", beside=texts, out=tmp / "words"
    ... )
    >>> record.readouts
    Readouts(6 captions, 0 pictures)
    >>> record.readouts.of(7)["captions"]["raw"][0]["caption"]
    'a blue star'
    """

    captions: tuple[str, ...] = ()
    texts: Float[Tensor, "caption d_embed"] | None = None
    logit_scale: float | None = None
    logit_bias: float | None = None
    groups: Mapping[str, list[int]] = field(default_factory=dict)
    names: Mapping[int, str] = field(default_factory=dict)
    means: str = ""
    by_caption: Mapping[str, Found] = field(default_factory=dict)
    by_image: Mapping[str, Found] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Readouts({len(self.captions)} captions, {len(self.names)} pictures)"

    def of(self, row: int) -> dict[str, dict[str, list[dict[str, Any]]]]:
        """Return what stands beside the picture of a row.

        Returns:
            ``{"captions": {form: [{"caption", "cosine"}, ...]}, "images": {form: [{"name", "index", "cosine"},
            ...]}}``, best first; an embedding without a direction has no answer.

        Raises:
            RecordError: There is no such row.
        """
        captions = {
            form: [{"caption": self.captions[i], "cosine": cosine} for i, cosine in self._best(found, row)]
            for form, found in self.by_caption.items()
        }
        images = {
            form: [{"name": self.names[i], "index": i, "cosine": cosine} for i, cosine in self._best(found, row)]
            for form, found in self.by_image.items()
        }
        return {"captions": captions, "images": images}

    def _best(self, found: Found, row: int) -> list[tuple[int, float]]:
        if not 0 <= row < len(found.index):
            raise RecordError(f"no row {row}; the record has {len(found.index)} rows")
        pairs = zip(found.index[row].tolist(), found.cosine[row].tolist(), strict=True)
        return [(index, cosine) for index, cosine in pairs if index >= 0]


def readouts_bytes(readouts: Readouts) -> bytes:
    """Return captions and neighbours as the bytes of a file."""
    tensors = {} if readouts.texts is None else {"texts": readouts.texts}
    for what, attribute in _WHAT.items():
        for form, found in getattr(readouts, attribute).items():
            tensors |= {f"{what}.{form}.{name}": value for name, value in vars(found).items()}
    said = {name: value for name, value in vars(readouts).items() if name not in ("texts", *_WHAT.values())}
    said |= {"groups": dict(readouts.groups), "names": sorted(readouts.names.items())}
    return to_bytes(tensors, {"described": json.dumps(said)})


def load_readouts(path: Path, n_rows: int) -> Readouts | None:
    """Read the captions and neighbours that lie in a record's folder.

    Args:
        path: The folder of the record.
        n_rows: The rows of its table.

    Returns:
        What stands beside the pictures; None if the record has none.

    Raises:
        RecordError: The file is damaged, or has another number of rows.

    >>> record = vl.sweep(model, None, images[:1], lens="diffusion", sites="resid_post", out=tmp / "without words")
    >>> vl.records.load_readouts(record.path, len(record.table)) is None
    True
    """
    if (read := read_tensors(path / READOUTS_FILE)) is None:
        return None
    tensors, said = read
    by: dict[str, Any] = {
        attribute: {
            form: Found(tensors[f"{what}.{form}.index"], tensors[f"{what}.{form}.cosine"])
            for form in FORMS
            if f"{what}.{form}.index" in tensors
        }
        for what, attribute in _WHAT.items()
    }
    if wrong := {len(found.index) for of in by.values() for found in of.values()} - {n_rows}:
        raise RecordError(f"{path / READOUTS_FILE} has {wrong.pop()} rows, the table {n_rows}; sweep again")
    said |= {"captions": tuple(said["captions"]), "names": dict(map(tuple, said["names"]))}
    return Readouts(texts=tensors.get("texts"), **by, **said)
