"""What stands beside the pictures of a record: captions and nearest images of every row, raw and centred."""

__all__ = ["FORMS", "Found", "Readouts"]

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from vit_lens.errors import RecordError

FORMS = ("raw", "centred")


@dataclass(frozen=True, eq=False)
class Found:
    """The best answers of every row, best first; index -1 and cosine nan where an embedding has no direction."""

    index: Int[Tensor, "row k"]
    cosine: Float[Tensor, "row k"]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Readouts:
    """Captions and nearest images of every row of a record, without the text tower and the gallery.

    Attributes:
        captions: The texts.
        texts: Their embeddings at length 1.
        logit_scale: Turns cosines into logits.
        logit_bias: Added to them, where the model takes sigmoids; None where it takes a softmax.
        groups: Captions that are alternatives of each other, by name: what a softmax runs over.
        names: Of the gallery's pictures that occur in an answer, by their index in the gallery.
        means: What the centred form takes away, in words.
        by_caption: By form: which captions.
        by_image: By form: which pictures of the gallery.
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
        return {
            "captions": {
                form: [{"caption": self.captions[i], "cosine": cosine} for i, cosine in self._best(found, row)]
                for form, found in self.by_caption.items()
            },
            "images": {
                form: [{"name": self.names[i], "index": i, "cosine": cosine} for i, cosine in self._best(found, row)]
                for form, found in self.by_image.items()
            },
        }

    def _best(self, found: Found, row: int) -> list[tuple[int, float]]:
        if not 0 <= row < len(found.index):
            raise RecordError(f"no row {row}; the record has {len(found.index)} rows")
        pairs = zip(found.index[row].tolist(), found.cosine[row].tolist(), strict=True)
        return [(index, cosine) for index, cosine in pairs if index >= 0]
