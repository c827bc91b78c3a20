"""What stands beside the pictures of a record: captions and nearest images, raw and centred, and probes' answers."""

__all__ = ["FORMS", "Found", "Readouts", "anchor_name", "gallery_name", "load_readouts", "readouts_bytes"]

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from vit_lens.errors import RecordError
from vit_lens.files import check_fields, damaged, to_bytes
from vit_lens.records.opening import AGAIN, RecordFiles
from vit_lens.records.schema import READOUTS_FILE

FORMS = ("raw", "centred", "averaged")
_WHAT = {"captions": "by_caption", "images": "by_image", "probes": "by_probe"}


def gallery_name(index: int) -> str:
    """Return where a small copy of a gallery's picture lies, relative to the record.

    >>> vl.records.gallery_name(12)
    'gallery/000012.png'
    """
    return f"gallery/{index:06d}.png"


def anchor_name(content: str) -> str:
    """Return where the picture of an anchor lies, relative to the record.

    Args:
        content: The digits of the setting ``anchor_content`` of a reading.

    Raises:
        RecordError: They are none.

    >>> vl.records.anchor_name("0123456789abcdef")
    'anchors/0123456789abcdef.png'
    """
    if not isinstance(content, str) or not re.fullmatch("[0-9a-f]{16}", content):
        raise RecordError(f"anchor_content={content!r:.40}; expected 16 hexadecimal digits")
    return f"anchors/{content}.png"


@dataclass(frozen=True, eq=False)
class Found:
    """The best answers of every row of a record, best first.

    Attributes:
        index: The indices of the captions, the gallery's pictures or a probe's answers; -1 where there is none.
        cosine: The cosines of these with the row's embedding, -1 to 1, or how sure a probe is, 0 to 1; nan for none.

    >>> texts = vl.Beside(texts=bank)
    >>> record = vl.sweep(model, None, images[:1], lens="diffusion", sites="mlp", beside=texts, out=tmp / "found")
    >>> record.readouts.by_caption["raw"].index.shape
    torch.Size([8, 4])
    """

    index: Int[Tensor, "row k"]
    cosine: Float[Tensor, "row k"]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Readouts:
    """Captions, nearest images and probes' answers of every row of a record, without text tower, gallery and probes.

    ``raw``, ``centred`` and ``averaged`` are the forms: embeddings as they are, with a mean taken away, or cosines
    averaged over the anchors that a site is read from (captions alone).

    Attributes:
        captions: The texts that were compared.
        texts: The embeddings of the captions at length 1; None without captions.
        logit_scale: The factor that turns cosines into logits; None without captions.
        logit_bias: The number that is added to them where the model takes sigmoids; None where it takes a softmax.
        groups: Indices of captions that are alternatives of each other, by name: what a softmax runs over.
        names: Names of the gallery's pictures that occur in an answer, by their index in the gallery.
        means: What the centred form takes away, in words.
        answers: The names of each probe's answers, by the probe's name.
        by_caption: The best captions of every row, by form.
        by_image: The nearest pictures of the gallery of every row, by form.
        by_probe: The best answers of every row, by the probe's name.

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
    answers: Mapping[str, list[str]] = field(default_factory=dict)
    by_caption: Mapping[str, Found] = field(default_factory=dict)
    by_image: Mapping[str, Found] = field(default_factory=dict)
    by_probe: Mapping[str, Found] = field(default_factory=dict)

    def __repr__(self) -> str:
        probes = f", {len(self.answers)} probes" if self.answers else ""
        return f"Readouts({len(self.captions)} captions, {len(self.names)} pictures{probes})"

    def of(self, row: int) -> dict[str, dict[str, list[dict[str, Any]]]]:
        """Return what stands beside the picture of a row.

        Returns:
            ``{"captions": {form: [{"caption", "cosine"}, ...]}, "images": {form: [{"name", "index", "cosine"},
            ...]}, "probes": {name: [{"answer", "probability"}, ...]}}``, best first; an embedding without a direction
            has no answer, nor has a site that a probe does not read.

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
        probes = {
            name: [{"answer": self.answers[name][i], "probability": sure} for i, sure in self._best(found, row)]
            for name, found in self.by_probe.items()
        }
        return {"captions": captions, "images": images, "probes": probes}

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
    said["answers"] = {name: list(names) for name, names in readouts.answers.items()}
    text = json.dumps(said, ensure_ascii=False).encode("utf-8", "replace").decode()
    return to_bytes(tensors, {"described": text})


def load_readouts(files: RecordFiles, n_rows: int) -> Readouts | None:
    """Read the captions and neighbours of a record, whose table has so many rows; None if it has none.

    Raises:
        RecordError: The file is damaged, or does not fit the record.
    """
    if not files.exists(READOUTS_FILE):
        return None
    tensors, said = files.tensors(READOUTS_FILE)
    where = str(files.path / READOUTS_FILE)
    with damaged(RecordError, f"{where} cannot be read", AGAIN):
        by: dict[str, dict[str, Any]] = {attribute: {} for attribute in _WHAT.values()}
        forms = [(what, form) for what in ("captions", "images") for form in FORMS if f"{what}.{form}.index" in tensors]
        for what, form in [*forms, *(("probes", name) for name in said.get("answers", {}))]:
            parts = {name: tensors.pop(f"{what}.{form}.{name}") for name in ("index", "cosine")}
            by[_WHAT[what]][form] = Found(**check_fields(Found, parts, where, RecordError))
        said["names"] = dict(map(tuple, said["names"]))
        readouts = Readouts(**check_fields(Readouts, {**said, **tensors, **by}, where, RecordError))
        if wrong := _misfit(readouts, n_rows):
            raise ValueError(wrong)
    return readouts


def _misfit(readouts: Readouts, n_rows: int) -> str:
    """Say what of some read-outs does not fit together; empty if all of it does."""
    captions, texts = readouts.captions, readouts.texts
    if not all(isinstance(text, str) for text in (*captions, *readouts.names.values())):
        return "a caption or a picture's name is no text"
    if len(captions) != (0 if texts is None else len(texts)):
        return f"it has {len(captions)} captions, and not as many embeddings of texts"
    if strangers := {i for group in readouts.groups.values() for i in group} - set(range(len(captions))):
        return f"a group names caption {min(strangers)}, of {len(captions)}"
    known_answers = [(range(len(readouts.answers[name])), {name: one}) for name, one in readouts.by_probe.items()]
    if not all(isinstance(answer, str) for names in readouts.answers.values() for answer in names):
        return "an answer of a probe is no text"
    both = [(range(len(captions)), readouts.by_caption), (readouts.names, readouts.by_image)]
    for known, by in [*both, *known_answers]:
        for one in by.values():
            if len(one.index) != n_rows or one.index.shape != one.cosine.shape:
                return f"it has {len(one.index)} rows, the table {n_rows}"
            if strangers := set(one.index.unique().tolist()) - {-1, *known}:
                return f"a row is answered by number {min(strangers)}, which is not there"
    return ""
