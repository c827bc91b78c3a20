"""The page of word maps: words as columns, layers or steps as rows, each map over its picture."""

__all__ = ["write_word_maps_page"]

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from vit_lens.diffusion import WordMaps
from vit_lens.figures import map_rows, word_overlay
from vit_lens.records import thumbnail_uri
from vit_lens.report.one_file import page_path, write_page

_HERE = "vit_lens.report"
_SIDE, _QUALITY = 192, 84
_MOST = 11_000_000  # bytes of pictures; what is left out of smaller ones
_READ = {
    "attention": "A picture fades where its cells read less of the word, as a share of their attention: whole is the "
    "highest of that map.",
    "concepts": "A picture fades where its cells have less of a softmax over the words for the word: whole is the "
    "highest of that map.",
}


class Cell(NamedTuple):
    """A map over its picture, and the word's share of what the words got."""

    word: str
    picture: str
    share: str
    width: str


class Row(NamedTuple):
    """A layer or a step."""

    name: str
    picture: str
    rest: str
    cells: list[Cell]


def write_word_maps_page(
    maps: WordMaps | Mapping[str, WordMaps],
    out: str | os.PathLike[str],
    *,
    words: Sequence[str] | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Write a page of the maps of one prompt, as one file.

    Args:
        maps: Of a prompt, for rows by step; or for each row its name and maps, as
            :func:`vit_lens.diffusion.lens_maps` returns them by layer.
        out: The file to write, ending in .html.
        words: The words that are shown; None for all.
        notes: What should be said above the maps, such as which model drew.

    Returns:
        The path of the page.

    Raises:
        TextError: There is no map of a word.
        OutputError: The page cannot be written, or ``out`` is not an .html file.

    >>> maps = vl.word_maps(vl.HookedUNet.from_pretrained("mini-sd"), "a red star", steps=2)
    >>> vl.report.write_word_maps_page(maps, tmp / "maps.html").name
    'maps.html'
    """
    target, held = page_path(out), map_rows(maps)
    first = next(iter(held.values()))
    shown = list(first.words if words is None else words)
    n = len(held) * (1 + len(shown))
    side = next((one for one in (_SIDE, 128, 96, 64) if n * one * one * 0.3 < _MOST), 48)
    return write_page(
        target, (_HERE, "word_maps.html.j2"), styles=[(_HERE, "page.css"), (_HERE, "word_maps.css")],
        prompt=first.prompt, words=shown, rows=[_row(name, one, shown, side) for name, one in held.items()],
        by="step" if isinstance(maps, WordMaps) else "site", read=_READ[first.kind],
        is_attention=first.kind == "attention", notes=list(notes),
    )  # fmt: skip


def _row(name: str, maps: WordMaps, words: Sequence[str], side: int) -> Row:
    share, got = maps.mass, sum(maps.attention.values())
    most = max(share.values())
    cells = [
        Cell(word, thumbnail_uri(word_overlay(maps, word, side), side, _QUALITY), f"{share[word]:.0%}",
             f"{share[word] / most * 100:.0f}" if most else "0")
        for word in words
    ]  # fmt: skip
    picture = maps.picture.convert("RGB")
    large = (
        picture
        if max(picture.size) >= side
        else picture.resize(tuple(n * side // max(picture.size) for n in picture.size))
    )
    return Row(name, thumbnail_uri(large, side, _QUALITY), f"{1 - got:.0%}", cells)
