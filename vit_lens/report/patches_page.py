"""The page of a record of patch lenses: what a site writes at every patch, laid out as the patches lie in the image."""

__all__ = ["write_patches_page"]

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.controls import CONTROLS
from vit_lens.errors import InterventionError, RecordError
from vit_lens.records import Reading, Record
from vit_lens.report.one_file import page_path, write_page
from vit_lens.report.thumbs import BUDGET, inline_pictures
from vit_lens.tokens import read_token

_HERE = "vit_lens.report"
_STEERED, _ALONE = "patch-dsl", "patch-diffusion"
_OPAQUE, _STRONGEST = 0.7, 3


class Cell(NamedTuple):
    """One patch: its place, what is drawn when only its write counts, the controls of that, how far its token moves."""

    row: int
    column: int
    name: str
    picture: str
    controls: list[str]
    moved: str
    opacity: str


class SitePanel(NamedTuple):
    """One site: pictures of all its writes together, of their controls, of the site alone, a cell for each patch."""

    site: str
    anchor: str
    words: str
    span: str
    start: str
    whole: str
    controls: list[str]
    alone: str
    cells: list[Cell]
    lines: list[list[Cell]]


class ImagePanel(NamedTuple):
    """One input: what the model saw, what is drawn of the model's own patch tokens, and of those of the mean."""

    name: str
    picture: str
    again: str
    again_words: str
    mean: str
    sites: list[SitePanel]


def write_patches_page(record: Record | str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Path:
    """Write the page of a record of :class:`vit_lens.PatchSteeringLens` with ``at`` each patch, as one file.

    Args:
        record: A record, or the directory that holds one; an unfinished one is shown as far as it goes.
        out: The file to write, ending in .html; None writes ``patches.html`` beside the pictures.

    Returns:
        The path of the page.

    Raises:
        RecordError: A directory holds no readable record, or it holds no lens of single patches.
        OutputError: The page cannot be written, or ``out`` is not an .html file.

    >>> rae = vl.load_decoder("mini-rae")
    >>> lens = ["patch-dsl-mean:alpha=5", "patch-dsl-mean:alpha=5:at=each", "patch-diffusion"]
    >>> record = vl.sweep(model, rae, images[:1], lens=lens, sites=["L7.mlp", "L7.resid_post"], out=tmp / "patches")
    >>> vl.report.write_patches_page(record).relative_to(tmp).as_posix()
    'patches/patches.html'
    """
    record = record if isinstance(record, Record) else Record.load(record)
    target = page_path(record.path / "patches.html" if out is None else out)
    held = _Held(record)
    if not held.single:
        raise RecordError(
            f"{record.path} holds no lens of single patches; sweep one of 'patch-dsl-mean:alpha=5:at=each', as "
            "`vit-lens patches` does"
        )
    decoder, model = record.manifest["decoder"], record.manifest["model"]
    return write_page(
        target, (_HERE, "patches.html.j2"), styles=[(_HERE, "page.css"), (_HERE, "patches.css")],
        model=str(model["encoder_id"]), decoder=str(decoder["decoder_id"]) if decoder else "none",
        lens=next(iter(held.whole.values())).label if held.whole else "", grid=held.grid,
        inputs=[held.image(int(entry["index"]), str(entry["name"])) for entry in record.manifest["inputs"]],
        kinds=list(held.kinds.values()), has_alone=held.alone is not None, complete=record.complete,
        notes=[str(note) for note in record.manifest["notes"]],
    )  # fmt: skip


class _Held:
    """What of a record the page shows: its readings sorted, its rows by input, site and reading."""

    def __init__(self, record: Record):
        self.record, config = record, record.manifest["model"].get("config", {})
        self.grid = _grid(config, record.path)
        self.last = f"L{config['n_layers'] - 1}.resid_post"
        self.whole: dict[str, Reading] = {}  # by what a lens is but for its patches
        self.single: dict[str, dict[int, Reading]] = {}
        self.controls: dict[tuple[str, str], Reading] = {}  # by the reading that they belong to, and their kind
        self.kinds: dict[str, str] = {}  # what stands in, in words
        self.alone: Reading | None = None
        self.mean: Reading | None = None
        for one in record.readings.values():
            self._sort(one)
        table = record.table
        keys = zip(table["input"], table["site"], table["reading"], strict=True)
        self.rows: dict[tuple[int, str, str], int] = {}
        for (index, site, reading), row in zip(keys, table["row"], strict=True):
            self.rows.setdefault((int(index), str(site), str(reading)), int(row))  # of the first noise seed
        shown = {row for (_, _, reading), row in self.rows.items() if self._is_shown(reading)}
        shown |= {
            row for entry in record.manifest["inputs"] if (row := self._mean_row(int(entry["index"]))) is not None
        }
        self.thumbs = inline_pictures(record.picture, sorted(shown), BUDGET)
        self.inputs = inline_pictures(record.input, [int(entry["index"]) for entry in record.manifest["inputs"]])

    def _sort(self, one: Reading) -> None:
        if one.control:
            kind = one.id.removeprefix(f"{one.of}.")
            self.controls[one.of, kind] = one
            self.kinds.setdefault(kind, _kind_words(one))
        elif one.lens == _ALONE:
            self.alone = one
        elif one.lens == _STEERED:
            if one.settings["anchor"] == "mean" and one.settings["alpha"] == 0:
                self.mean = one  # whatever the site
                return
            plain = {name: value for name, value in one.settings.items() if name != "at"}
            key = repr(sorted(plain.items()))
            if "at" not in one.settings:
                self.whole[key] = one
            elif (place := _place(str(one.settings["at"]), self.grid)) is not None:
                self.single.setdefault(key, {})[place] = one

    def _is_shown(self, reading: str) -> bool:
        one = self.record.readings[reading]
        is_mean = self.mean is not None and self.mean.id in (one.id, one.of)
        return one.lens in (_STEERED, _ALONE) and not is_mean

    def _mean_row(self, index: int) -> int | None:
        of_mean = (row for (at, _, id), row in self.rows.items() if self.mean and (at, id) == (index, self.mean.id))
        return next(of_mean, None)

    def _row(self, index: int, site: str, reading: Reading | None) -> int | None:
        return None if reading is None else self.rows.get((index, site, reading.id))

    def picture(self, index: int, site: str, reading: Reading | None) -> str:
        """Return the picture of a row as a data URI; empty where there is none."""
        row = self._row(index, site, reading)
        return "" if row is None else self.thumbs.get(row, "")

    def _control_pictures(self, index: int, site: str, reading: Reading | None) -> list[str]:
        of = "" if reading is None else reading.id
        return [self.picture(index, site, self.controls.get((of, kind))) for kind in self.kinds]

    def image(self, index: int, name: str) -> ImagePanel:
        found = []
        for key, single in self.single.items():
            any_of = next(iter(single.values()))
            sites = dict.fromkeys(site for at, site, reading in self.rows if at == index and reading == any_of.id)
            found += [(key, site, self._moved(index, site, key)) for site in sites]
        again, words = self._again(index)
        mean = self.thumbs.get(row, "") if (row := self._mean_row(index)) is not None else ""
        starts = {"mean": f"mean-{index}" if mean else "", "clean": f"own-{index}" if again else ""}
        panels = [self._site(index, site, key, moved, starts) for key, site, moved in found]
        return ImagePanel(name, self.inputs.get(index, ""), again, words, mean, panels)

    def _again(self, index: int) -> tuple[str, str]:
        row = self._row(index, self.last, self.alone)
        if row is None or not self.thumbs.get(row):
            return "", ""
        drawn, seen = self.record.picture(row), self.record.input(index)
        if drawn.size != seen.size:
            return self.thumbs[row], ""
        error = (np.asarray(drawn.convert("RGB"), dtype=float) - np.asarray(seen.convert("RGB"), dtype=float)) / 255
        square = float(np.mean(error**2))
        return self.thumbs[row], f"PSNR {-10 * math.log10(square):.1f} dB" if square else "equal"

    def _tokens(self, index: int, site: str, readings: Mapping[int, Reading]) -> dict[int, Float[Tensor, "patch d"]]:
        rows = {place: row for place, one in readings.items() if (row := self._row(index, site, one)) is not None}
        if not rows:
            return {}
        tokens = self.record.conditions["lens"][list(rows.values())].tokens
        return dict(zip(rows, tokens, strict=True))

    def _moved(self, index: int, site: str, key: str) -> np.ndarray:
        """Return how far the site's write moves each patch token, as a share of its length; nan where it is not known.

        Of lenses of single patches, all rows but one are at the anchor.
        """
        single = self._tokens(index, site, self.single[key])
        whole = self._tokens(index, site, {-1: self.whole[key]} if key in self.whole else {})
        n = self.grid[0] * self.grid[1]
        moved = np.full(n, math.nan)
        for place in range(n):
            anchor = next((tokens[place] for other, tokens in single.items() if other != place), None)
            own = single.get(place, whole.get(-1))
            if anchor is not None and own is not None and torch.isfinite(own).all() and torch.isfinite(anchor).all():
                moved[place] = float((own[place] - anchor).norm() / anchor.norm())
        return moved

    def _site(self, index: int, site: str, key: str, moved: np.ndarray, starts: Mapping[str, str]) -> SitePanel:
        cells, known = [], moved[~np.isnan(moved)]
        least, most = (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
        for place in range(self.grid[0] * self.grid[1]):
            reading = self.single[key].get(place)
            row, column = divmod(place, self.grid[1])
            there = not math.isnan(moved[place])
            cells.append(Cell(
                row, column, f"({row}, {column})", self.picture(index, site, reading),
                self._control_pictures(index, site, reading), f"{moved[place]:.2f}" if there else "",
                f"{_OPAQUE * (moved[place] - least) / (most - least):.2f}" if there and most > least else "0",
            ))  # fmt: skip
        whole = self.whole.get(key)
        lines = [cells[start : start + self.grid[1]] for start in range(0, len(cells), self.grid[1])]
        return SitePanel(
            site, f"s{index}-{site}".replace(".", "-"), _strongest(moved, self.grid[1]),
            f"{least:.2f} to {most:.2f}" if len(known) else "not known",
            starts[str(next(iter(self.single[key].values())).settings["anchor"])],
            self.picture(index, site, whole), self._control_pictures(index, site, whole),
            self.picture(index, site, self.alone), cells, lines,
        )  # fmt: skip


def _kind_words(control: Reading) -> str:
    known, normalise = CONTROLS.get(control.control), control.settings.get("control_normalise")
    return (known.words if known else control.control) + (f" ({normalise})" if normalise else "")


def _strongest(moved: np.ndarray, columns: int) -> str:
    known = [int(place) for place in np.argsort(-np.nan_to_num(moved))[:_STRONGEST] if not math.isnan(moved[place])]
    if not known:
        return ""
    said = ", ".join(f"({place // columns}, {place % columns}) {moved[place]:.2f}" for place in known)
    return f"Moves most the tokens at {said}; their median is {np.nanmedian(moved):.2f}."


def _grid(config: Mapping[str, Any], path: Path) -> tuple[int, int]:
    try:
        rows, columns = (int(a) // int(b) for a, b in zip(config["image_size"], config["patch_size"], strict=True))
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise RecordError(f"{path} does not say which patches its encoder sees: a record of images does") from error
    return rows, columns


def _place(at: str, grid: tuple[int, int]) -> int | None:
    """Return the number of the one patch that a setting names; None where it names several."""
    try:
        kind, value = read_token(at)
    except InterventionError:
        return None
    if kind == "place" and isinstance(value, tuple):
        return value[0] * grid[1] + value[1]
    return value if kind == "patch" and isinstance(value, int) else None
