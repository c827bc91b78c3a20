"""The page that people answer on: one file, which knows nothing of where its pictures come from."""

__all__ = ["key_path", "write_annotation_page"]

import os
from collections.abc import Sequence
from pathlib import Path

import PIL.Image

from vit_lens.errors import OutputError
from vit_lens.figures import picture_uri
from vit_lens.records import Record, thumbnail_uri
from vit_lens.report import page_path, write_page
from vit_lens.studies.annotate.collecting import pictures_of
from vit_lens.studies.annotate.sheet import Sheet

_HERE = "vit_lens.studies.annotate"
_SHARP = 128  # pixels up to which a picture goes in as it is, to be shown with sharp pixels
_WIDE, _QUALITY = 640, 88
MOST_BYTES = 60_000_000
"""Of pictures on a page; browsers open a larger one slowly, or not at all."""


def key_path(page: Path) -> Path:
    """Return where the key of a page lies.

    >>> from pathlib import Path
    >>> from vit_lens.studies.annotate.page import key_path
    >>> key_path(Path("pictures.html")).name
    'pictures.key.json'
    """
    return page.with_suffix(".key.json")


def write_annotation_page(sheet: Sheet, records: Sequence[Record], out: str | os.PathLike[str]) -> Path:
    """Write the page of a sheet, and beside it the key that says what was shown; return the path of the page.

    The page holds pictures, questions and names that say nothing, in an order that the seed decides. Layer, site, lens,
    control, seed and record are in the key alone: do not hand it to annotators.

    Raises:
        OutputError: The page would be too large, ``out`` is not an .html file, or it cannot be written.
        StudyError: The records are not those of the sheet.
        RecordError: A picture is damaged.
    """
    target = page_path(out)
    uris, size = [], 0
    for number, picture in enumerate(pictures_of(sheet, records), start=1):
        uris.append(_uri(picture))
        if (size := size + len(uris[-1])) > MOST_BYTES:
            raise OutputError(
                f"{number - 1} of {len(sheet.items)} pictures fill a page, which holds {MOST_BYTES // 10**6} MB: give "
                f"--n {number - 1} or less, or fewer --layers, or write several pages with records of their own"
            )
    places = {item.item: place for place, item in enumerate(sheet.items)}
    asked = {
        "page": sheet.page, "pictures": uris, "items": list(places),
        "tasks": [[places[item.item], one.question, one.text] for item, one in sheet.tasks],
    }  # fmt: skip
    page = write_page(
        target, (_HERE, "page.html.j2"), styles=[("vit_lens.report", "page.css"), (_HERE, "page.css")],
        scripts=[(_HERE, "page.js")], asked=asked, n_pictures=len(uris), n_tasks=len(asked["tasks"]),
    )  # fmt: skip
    sheet.save(key_path(target))
    return page


def _uri(picture: PIL.Image.Image) -> str:
    return picture_uri(picture) if max(picture.size) <= _SHARP else thumbnail_uri(picture, _WIDE, _QUALITY)
