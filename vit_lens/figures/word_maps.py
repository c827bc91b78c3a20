"""Word maps laid over their pictures: one, and a sheet of words by layers or steps."""

__all__ = ["map_rows", "word_map_sheet", "word_overlay"]

import html
from collections.abc import Mapping, Sequence

import numpy as np
import PIL.Image
import plotly.graph_objects as go

from vit_lens.diffusion import WordMaps
from vit_lens.errors import TextError, VitLensError, expect
from vit_lens.figures.dressing import tile_figure

_PAPER = np.array([252, 251, 248])  # the page's own
_FAINTEST = 0.1  # of the picture, so that it stays visible where nothing was read
_SIDE = 224


def word_overlay(maps: WordMaps, word: str, side: int = _SIDE) -> PIL.Image.Image:
    """Lay a word's map over its picture, which is whole at the map's own highest value and fades where less was read.

    Colours of the picture stay what they are: the words may be about them.

    Args:
        maps: The maps, with a picture of Pillow.
        word: The word.
        side: The longer side of what is returned, in pixels.

    Raises:
        TextError: There is no map of the word.
        VitLensError: The picture is latents.

    >>> maps = vl.word_maps(vl.HookedUNet.from_pretrained("mini-sd"), "a red star", steps=2)
    >>> vl.figures.word_overlay(maps, "star").size
    (224, 224)
    """
    values, picture = maps[word].clamp(min=0), _sized(maps, side)
    share = PIL.Image.fromarray((values / values.max().clamp(min=1e-12)).numpy())
    share = np.asarray(share.resize(picture.size, PIL.Image.Resampling.BICUBIC)).clip(0, 1)[..., None]
    weight = _FAINTEST + (1 - _FAINTEST) * share
    made = np.asarray(picture) * weight + _PAPER * (1 - weight)
    return PIL.Image.fromarray(made.round().astype(np.uint8))


def word_map_sheet(maps: WordMaps | Mapping[str, WordMaps], words: Sequence[str] | None = None) -> go.Figure:
    """Draw maps over their pictures, words as columns; the picture itself comes first in each row.

    Args:
        maps: Of a prompt, for rows by step; or for each row its name and maps, as
            :func:`vit_lens.diffusion.lens_maps` returns them by layer.
        words: The words; None for all.

    Raises:
        TextError: There is no map of a word.
        VitLensError: There is nothing to show, or the pictures are latents.

    >>> maps = vl.word_maps(vl.HookedUNet.from_pretrained("mini-sd"), "a red star", steps=2)
    >>> figure = vl.figures.word_map_sheet(maps, ["red", "star"])
    >>> len(figure.data), figure.layout.annotations[1].text.split("<br>")[0]
    (9, 'red')
    """
    rows = map_rows(maps)
    tiles, prompt = [], ""
    for name, one in rows.items():
        prompt, shown = one.prompt, one.words if words is None else words
        tiles.append((_sized(one, _SIDE), html.escape(name)))
        share = one.mass
        tiles += [
            (word_overlay(one, word), f"{html.escape(word)}<br>{share[word]:.0%} of what the words got")
            for word in shown
        ]
    return tile_figure(tiles, f"Where words were read: {html.escape(prompt)}", columns=len(tiles) // len(rows))


def map_rows(maps: WordMaps | Mapping[str, WordMaps]) -> dict[str, WordMaps]:
    """Return rows of a sheet by name: of one prompt's maps all steps together and then each; others as they are.

    Args:
        maps: Maps of a prompt, or maps by the name of their row.

    Raises:
        TextError: A row has other words than the first.
        VitLensError: There is nothing to show.

    >>> maps = vl.word_maps(vl.HookedUNet.from_pretrained("mini-sd"), "a red star", steps=2)
    >>> list(vl.figures.map_rows(maps))
    ['all steps', 'step 0', 'step 1']
    """
    if isinstance(maps, WordMaps):
        alone = {f"step {index}": maps.at_step(index) for index in maps.steps} if len(maps.steps) > 1 else {}
        return {"all steps": maps, **alone} if alone else {f"step {next(iter(maps.steps))}": maps}
    rows = dict(maps)
    if not rows:
        raise VitLensError("no maps to show; expected maps of a prompt, or maps by the name of their row")
    first = next(iter(rows.values()))
    if other := [name for name, one in rows.items() if one.words != first.words]:
        raise TextError(f"{other[0]} has other words than the rows before it; maps of one prompt stand in one sheet")
    return rows


def _sized(maps: WordMaps, side: int) -> PIL.Image.Image:
    expect(maps.picture, PIL.Image.Image, "picture", VitLensError, 'draw it without output_type="latent"')
    picture = maps.picture.convert("RGB")
    scale = side / max(picture.size)
    width, height = (max(1, round(one * scale)) for one in picture.size)
    return picture.resize((width, height), PIL.Image.Resampling.BICUBIC)
