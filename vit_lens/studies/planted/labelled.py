"""Which images show which of two classes of an attribute, and the caption that says so."""

__all__ = ["LabelledAttribute", "LabelledImages"]

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Int

from vit_lens.errors import StudyError
from vit_lens.studies.images import StudyImages

_ANCHOR_AT_LEAST = 8
_TEST_AT_LEAST = 4


@dataclass(frozen=True, eq=False, kw_only=True)
class LabelledAttribute:
    """Two classes of an attribute, each with its caption, and the class of every image.

    Attributes:
        name: The name of the attribute.
        captions: The captions of class 0 and of class 1, in the words of the encoder and of the judge.
        anchor: The class of each anchor image, -1 for neither; at least 8 images of each class.
        test: The class of each test image, -1 for neither; at least 4 images of each class.

    Raises:
        StudyError: The captions are not two, a label is none of these, or a class has too few images.

    >>> classes = np.array([0, 1] * 8)
    >>> vl.studies.LabelledAttribute(name="size", captions=("small", "large"), anchor=classes, test=classes[:6])
    Traceback (most recent call last):
    vit_lens.errors.StudyError: attribute 'size': 3 test images say 'small' and 3 'large'; at least 4 of each ...
    """

    name: str
    captions: tuple[str, str]
    anchor: Int[np.ndarray, " anchor"]
    test: Int[np.ndarray, " image"]

    def __post_init__(self) -> None:
        if len(set(self.captions)) != 2 or not all(caption.strip() for caption in self.captions):
            raise StudyError(
                f"attribute {self.name!r} has captions {list(self.captions)}; give two that differ, one for each class"
            )
        for kind, labels, least in (("anchor", self.anchor, _ANCHOR_AT_LEAST), ("test", self.test, _TEST_AT_LEAST)):
            if not np.isin(labels, (-1, 0, 1)).all():
                raise StudyError(f"attribute {self.name!r}: {kind} labels are 0, 1, or -1 for neither, not {labels}")
            counts = [int((labels == value).sum()) for value in (0, 1)]
            if min(counts) < least:
                raise StudyError(
                    f"attribute {self.name!r}: {counts[0]} {kind} images say {self.captions[0]!r} and {counts[1]} "
                    f"{self.captions[1]!r}; at least {least} of each are needed. Give more images"
                )


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """The images of a study with the attributes that are known of them.

    Attributes:
        images: Test, anchor and ablation images, disjoint.
        attributes: What is known of the test and anchor images.

    Raises:
        StudyError: There are no attributes, two have one name, or an attribute labels other numbers of images.

    >>> scenes, classes = vl.studies.study_images(8, seed=0, n_means=16), np.array([0, 1] * 8)
    >>> size = vl.studies.LabelledAttribute(name="size", captions=("small", "large"), anchor=classes, test=classes[:8])
    >>> vl.studies.LabelledImages(scenes, (size,)).captions
    ['small', 'large']
    """

    images: StudyImages
    attributes: tuple[LabelledAttribute, ...]

    def __post_init__(self) -> None:
        names = [attribute.name for attribute in self.attributes]
        if not names or len(set(names)) < len(names):
            raise StudyError(f"attributes {names}: give at least one, and no name twice")
        for attribute in self.attributes:
            for kind in ("anchor", "test"):
                labels, images = getattr(attribute, kind), getattr(self.images, kind)
                if len(labels) != len(images):
                    raise StudyError(
                        f"attribute {attribute.name!r} labels {len(labels)} {kind} images; there are {len(images)}"
                    )

    @property
    def captions(self) -> list[str]:
        """Every caption once."""
        return list(dict.fromkeys(caption for attribute in self.attributes for caption in attribute.captions))

    @classmethod
    def from_csv(cls, path: Path, n: int, *, seed: int = 0) -> "LabelledImages":
        """Read a table with a column ``image`` and one column for each attribute, whose cells are captions.

        Each attribute has two captions; an empty cell is an image of which it is not known.

        Args:
            path: A CSV file; image paths are relative to it.
            n: How many images are drawn to test; the others are shared between the two sets of means.
            seed: The seed of that draw.

        Raises:
            StudyError: The file cannot be read, lacks a column or an image, or an attribute has not two captions.
        """
        table = _read(path)
        files = [str(path.parent / name) for name in table["image"]]
        images = StudyImages.split([Path(file) for file in files], n, seed=seed)
        row_of = {file: row for row, file in enumerate(files)}
        rows = {kind: [row_of[str(image)] for image in getattr(images, kind)] for kind in ("anchor", "test")}
        found = []
        for name in table.columns.drop("image"):
            captions = sorted({caption for caption in table[name] if caption})
            if len(captions) != 2:
                raise StudyError(
                    f"{path}: column {name!r} has the captions {captions}; an attribute has two, one for each class, "
                    "and empty cells where it is not known"
                )
            labels = np.array([captions.index(caption) if caption else -1 for caption in table[name]])
            found.append(
                LabelledAttribute(
                    name=str(name),
                    captions=(captions[0], captions[1]),
                    anchor=labels[rows["anchor"]],
                    test=labels[rows["test"]],
                )
            )
        return cls(images, tuple(found))


def _read(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise StudyError(f"{path} cannot be read as a table ({error}); give a CSV file") from error
    if "image" not in table.columns or len(table.columns) < 2:
        raise StudyError(
            f"{path} has columns {list(table.columns)}; expected 'image' and one for each attribute, whose cells are "
            "captions"
        )
    if not all(name.strip() for name in table["image"]):
        raise StudyError(f"{path} has a row without an image")
    return table.map(str.strip)
