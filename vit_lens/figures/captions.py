"""Figures of read-outs: captions by layer, by head and by patch, and the nearest images."""

__all__ = ["caption_atlas", "contact_sheet", "zero_shot_layers", "zero_shot_patches"]

import html
import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
import torch
from PIL import Image
from plotly.subplots import make_subplots
from torch import Tensor

from vit_lens.addresses import Site, spelled
from vit_lens.controls import CONTROLS
from vit_lens.errors import LensError
from vit_lens.figures.dressing import SEQUENTIAL, TILE, check_image, colours, dress, picture_uri, tile_figure
from vit_lens.images import PreprocessSpec, load_image, to_display
from vit_lens.readers import Neighbours, ZeroShot, ZeroShotMaps

_MEANING = {"raw": "raw", "centred": "centred (the site's mean removed)"}
_WHAT = {"": "", **{name: control.words.removeprefix("a ") for name, control in CONTROLS.items()}}


def zero_shot_layers(
    read: ZeroShot, image: int = 0, *, value: str = "prob", captions: Sequence[str] | None = None, control: str = ""
) -> go.Figure:
    """Draw sites x captions as heat maps on one scale, raw beside centred where that was read.

    An empty line is a site that holds the same for all images: nothing is left when its mean is removed.

    Args:
        read: What :func:`vit_lens.readers.zero_shot_lens` returned.
        image: The index of the image in the run.
        value: ``prob`` or ``cosine``.
        captions: The captions to show; None shows the twelve that are highest at any site, in the raw form.
        control: The control to draw in place of the sites, such as ``random``; empty draws the sites.

    Raises:
        LensError: There is no such image, value, or control.
        TextError: A caption is unknown.

    >>> from vit_lens.readers import zero_shot_lens
    >>> figure = vl.figures.zero_shot_layers(zero_shot_lens(cache, bank), captions=["a red ring", "a blue star"])
    >>> figure.data[0].x
    ('a red ring', 'a blue star')
    """
    forms = [form for form, of in read.cosines if of == control]
    tables = [_numbers(read, value, image, form, control) for form in forms]
    if not tables:
        read.of("raw", control)  # says what there is
    chosen = _columns(read, tables[0], captions)
    names = [html.escape(read.bank.captions[index]) for index in chosen]
    sites = [str(site) for site in read.embeddings.sites]
    figure = make_subplots(cols=len(forms), shared_yaxes=True, subplot_titles=forms, horizontal_spacing=0.04)
    colours = _colours(value, torch.stack(tables)[..., chosen])
    for place, (form, table) in enumerate(zip(forms, tables, strict=True), start=1):
        numbers = table[:, chosen]
        figure.add_trace(
            go.Heatmap(
                z=numbers.tolist(), x=names, y=sites, **colours, xgap=1, ygap=1,
                showscale=place == len(forms), colorbar={"title": {"text": value}},
                hovertemplate=f"%{{y}}, %{{x}}: %{{z:.3f}}<extra>{form}</extra>",
            ),
            row=1, col=place,
        )  # fmt: skip
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False)
    title = f"Captions by site, image {image}" + (f", control: {_WHAT[control]}" if control else "")
    width = 260 + len(forms) * (60 + 34 * len(names))
    return dress(figure, title, width, 300 + 26 * len(sites))


def caption_atlas(read: ZeroShot, image: int = 0, *, form: str = "raw", control: str = "") -> go.Figure:
    """Draw every head's best caption in a layer x head grid, coloured by its cosine.

    Args:
        read: What :func:`vit_lens.readers.zero_shot_lens` returned for heads.
        image: The index of the image in the run.
        form: ``raw`` or ``centred``.
        control: The control to draw in place of the heads, such as ``random``; empty draws the heads.

    Raises:
        LensError: No head was read, or there is no such image, form or control.

    >>> from vit_lens.readers import zero_shot_lens
    >>> heads = zero_shot_lens(cache, bank, ["L6H0", "L7H0", "L7H1"], lens=vl.DiffusionSteeringLens(alpha=10))
    >>> figure = vl.figures.caption_atlas(heads)
    >>> figure.data[0].y, figure.data[0].x
    (('6', '7'), ('0', '1'))
    """
    cosines = _one_image(read.of(form, control), image)
    silent = cosines.isnan().any(-1)
    heads = {(site.layer, site.head): i for i, site in enumerate(read.embeddings.sites) if site.head is not None}
    if not heads:
        raise LensError("no head was read; zero_shot_lens(cache, bank, 'heads', lens=...)")
    rows = sorted({layer for layer, _ in heads}, key=lambda layer: math.inf if layer is None else layer)
    columns = sorted({int(head) for _, head in heads if head is not None})
    best = cosines.max(-1)
    values = [[_cell(best.values, heads.get((row, column))) for column in columns] for row in rows]
    words = [
        [_words(read, best.indices, heads.get((row, column)), silent) for column in columns] for row in rows
    ]  # fmt: skip
    figure = go.Figure(
        go.Heatmap(
            z=values, text=words, texttemplate="%{text}", x=list(map(str, columns)),
            y=["pool" if row is None else str(row) for row in rows], colorscale=SEQUENTIAL, xgap=2, ygap=2,
            textfont={"size": 9}, colorbar={"title": {"text": "cosine"}},
            hovertemplate="L%{y}H%{x}: %{text}, %{z:.3f}<extra></extra>",
        )
    )  # fmt: skip
    figure.update_xaxes(title="head", type="category", showgrid=False)
    figure.update_yaxes(title="layer", type="category", autorange="reversed", showgrid=False)
    title = f"Best caption of every head, {_MEANING[form]}, image {image}" + (f", {_WHAT[control]}" if control else "")
    return dress(figure, title, 220 + 110 * len(columns), 190 + 54 * len(rows))


def zero_shot_patches(
    maps: ZeroShotMaps, picture: Any, caption: str, spec: PreprocessSpec | None, *, image: int = 0,
    value: str = "cosine", opacity: float | int = 0.6,
) -> go.Figure:  # fmt: skip
    """Draw one caption's patch maps over the picture that the tower sees: a column per site, a row per form.

    Args:
        maps: What :func:`vit_lens.readers.zero_shot_maps` returned.
        picture: The original image: a path, a Pillow image or an array.
        caption: A caption of the bank.
        spec: The tower's preprocessing (``model.preprocess_spec``).
        image: The index of the picture in the maps' run.
        value: ``cosine`` or ``prob``.
        opacity: The opacity of the maps, 0 to 1.

    Raises:
        LensError: There is no such image or value.
        TextError: The caption is unknown.

    >>> from vit_lens.readers import zero_shot_maps
    >>> maps = zero_shot_maps(cache, bank, ["L3.resid_post", "L7.resid_post"])
    >>> figure = vl.figures.zero_shot_patches(maps, images[0], "a blue star", model.preprocess_spec)
    >>> [trace.type for trace in figure.data]
    ['image', 'heatmap', 'image', 'heatmap']
    """
    seen = to_display([load_image(picture)], spec)[0]
    index, forms = maps.bank.index(caption), list(maps.cosines)
    sites = [str(site) for site in maps.sites]
    titles = [f"{site} {form}" for form in forms for site in sites]
    figure = make_subplots(rows=len(forms), cols=len(sites), subplot_titles=titles, horizontal_spacing=0.1 / len(sites))
    for row, form in enumerate(forms, start=1):
        numbers = _numbers(maps, value, image, form)[..., index]
        n_rows, n_columns = numbers.shape[1:]
        height, width = seen.height / n_rows, seen.width / n_columns
        colours = _colours(value, numbers)
        for column in range(len(sites)):
            figure.add_trace(go.Image(source=picture_uri(seen), hoverinfo="skip"), row=row, col=column + 1)
            figure.add_trace(
                go.Heatmap(
                    z=numbers[column].tolist(), x0=width / 2 - 0.5, dx=width, y0=height / 2 - 0.5, dy=height,
                    opacity=float(opacity), **colours, showscale=column == len(sites) - 1,
                    colorbar={"title": {"text": value}, "len": 1 / len(forms), "y": 1 - (row - 0.5) / len(forms)},
                    hovertemplate="%{z:.3f}<extra></extra>",
                ),
                row=row, col=column + 1,
            )  # fmt: skip
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    figure.update_annotations(font_size=11)
    title = f"{html.escape(caption)}, every patch read alone"
    return dress(figure, title, 160 + len(sites) * (TILE + 20), 170 + len(forms) * (TILE + 40))


def contact_sheet(
    near: Neighbours, picture: Any, image: int = 0, *, form: str = "raw", sites: Sequence[Site | str] | None = None
) -> go.Figure:
    """Draw the nearest pictures of the gallery: a line for each site, and below it one for each of its controls.

    Args:
        near: What :func:`vit_lens.readers.retrieval_lens` returned.
        picture: The image that was read, which begins each line.
        image: The index of that image in the run.
        form: ``raw`` or ``centred``.
        sites: The sites to show, of those that were read; None shows all.

    Raises:
        LensError: There is no such image, form or site.
        GalleryError: The gallery's files are gone, or it was made from memory.

    >>> from vit_lens.readers import Gallery, retrieval_lens
    >>> gallery = Gallery.from_folder(model, images[0].parent)
    >>> near = retrieval_lens(cache, gallery, ["L7.resid_post"], images=images, k=1, lens=vl.DiffusionLens())
    >>> figure = vl.figures.contact_sheet(near, images[0])
    >>> figure.layout.annotations[0].text
    'L7.resid_post'
    """
    known = [str(site) for site in near.embeddings.sites]
    chosen = known if sites is None else [spelled(site) for site in sites]
    if missing := [site for site in chosen if site not in known]:
        raise LensError(f"{missing[0]} was not read; there are {', '.join(known[:8])}")
    controls = [control for one, control in near.index if one == form]
    if not controls:
        raise LensError(f"no form {form!r}; there are {sorted({one for one, _ in near.index})}")
    seen = _small(load_image(picture).convert("RGB"))
    tiles = []
    for site in chosen:
        for control in controls:
            tiles.append((seen, site + (f"<br><i>{_WHAT[control]}</i>" if control else "")))
            cosine = _one_image(near.cosine[form, control], image)[known.index(site)].tolist()
            index = near.index[form, control][image, known.index(site)].tolist()
            for found, number in zip(index, cosine, strict=True):
                if found < 0:
                    tiles.append((Image.new("RGB", seen.size, "white"), "the same for<br>all images"))
                    continue
                name = html.escape(near.gallery.names[found].rsplit("/", 1)[-1][-24:])
                tiles.append((_small(near.gallery.picture(found)), f"{number:.3f}<br>{name}"))
    columns = 1 + near.index[form, ""].shape[-1]
    return tile_figure(tiles, f"Nearest images, {form}", columns)


def _numbers(read: ZeroShot | ZeroShotMaps, value: str, image: int, *form: str) -> Tensor:
    if value not in ("prob", "cosine"):
        raise LensError(f"value={value!r}; expected 'prob' or 'cosine'")
    return _one_image(read.probs(*form) if value == "prob" else read.of(*form), image)


def _one_image(values: Tensor, image: int) -> Tensor:
    check_image(image, len(values))
    return values[image].detach().cpu().double()


def _columns(read: ZeroShot, table: Tensor, captions: Sequence[str] | None) -> list[int]:
    if captions is not None:
        return [read.bank.index(caption) for caption in captions]
    best = table.nan_to_num().amax(0).argsort(descending=True, stable=True)[:12].tolist()
    return sorted(best)


def _colours(value: str, numbers: Tensor) -> dict[str, Any]:
    limit = 1.0 if value == "prob" else float(numbers.nan_to_num().abs().max()) or 1.0
    return colours(limit, signed=value != "prob")


def _cell(values: Tensor, index: int | None) -> float:
    return math.nan if index is None else float(values[index])


def _words(read: ZeroShot, indices: Tensor, index: int | None, silent: Tensor) -> str:
    if index is None or silent[index]:
        return ""
    words = html.escape(read.bank.captions[int(indices[index])]).split()
    return "<br>".join(" ".join(words[i : i + 3]) for i in range(0, len(words), 3))


def _small(picture: Any) -> Any:
    picture = picture.copy()
    picture.thumbnail((2 * TILE, 2 * TILE))
    return picture
