"""Figures of attributions: maps over the original image, and parts of the model beside each other."""

__all__ = ["attribution_bars", "attribution_map", "patch_overlay"]

import html
import math
from typing import Any

import plotly.graph_objects as go

from vit_lens.attribution import Attribution, PatchMap, Placement
from vit_lens.errors import LensError
from vit_lens.figures.dressing import DIVERGING, check_image, colours, dress, layer_map, picture_uri
from vit_lens.images import PreprocessSpec, load_image

_SIDE = 520
_UNITS = {"dot": "dot product", "cosine": "cosine", "logit": "logit"}


def patch_overlay(
    picture: Any, patch_map: PatchMap, spec: PreprocessSpec | None, *, image: int = 0, layout: Any = None,
    opacity: float | int = 0.6,
) -> go.Figure:  # fmt: skip
    """Draw a map of patches over the original picture; what the tower did not see is dimmed.

    What lies on tokens that are no patches (CLS, registers) stands in the title.

    Args:
        picture: The original: a path, a Pillow image or an array.
        patch_map: A map of :func:`vit_lens.attribution.attention_map` or ``TokenAttribution.map``.
        spec: The tower's preprocessing (``model.preprocess_spec``); None for pictures that were not resized.
        image: The index of the picture in the map's run.
        layout: The order of an array's axes, as ``model.preprocess`` takes it; None lets it be found out.
        opacity: The opacity of the map, 0 to 1.

    Raises:
        LensError: There is no such image.

    >>> seen = vl.attribution.attention_map(cache, layer=3, head=1)
    >>> figure = vl.figures.patch_overlay(images[0], seen, model.preprocess_spec)
    >>> [trace.type for trace in figure.data]
    ['image', 'heatmap']
    """
    check_image(image, len(patch_map.values))
    place = Placement.of(picture, spec, layout=layout)
    down, right = place.edges(patch_map)
    values = patch_map.values[image].detach().cpu().double()
    limit = values.abs().max().item() or 1.0
    original = picture_uri(load_image(picture, layout=layout).convert("RGB"))
    figure = go.Figure(go.Image(source=original, hoverinfo="skip"))
    figure.add_heatmap(  # an image's pixel i is drawn from i - 0.5 to i + 0.5
        z=values.tolist(), x=(right - 0.5).tolist(), y=(down - 0.5).tolist(),
        customdata=[[f"({row}, {column})" for column in range(values.shape[1])] for row in range(len(values))],
        opacity=float(opacity), **colours(limit, patch_map.signed),
        colorbar={"title": {"text": html.escape(patch_map.units)}},
        hovertemplate="patch %{customdata}: %{z:.4g}<extra></extra>",
    )  # fmt: skip
    for box in _unseen(place):
        figure.add_shape(type="rect", **box, fillcolor="rgba(28,27,25,0.6)", line_width=0, layer="above")
    height, width = place.size
    figure.update_xaxes(
        visible=False, range=[min(0.0, right[0]) - 0.5, max(width, right[-1]) - 0.5], constrain="domain"
    )
    figure.update_yaxes(
        visible=False, range=[max(height, down[-1]) - 0.5, min(0.0, down[0]) - 0.5], scaleanchor="x", constrain="domain"
    )
    beside = [f"{name} {value[image].item():.3g}" for name, value in patch_map.prefix.items()]
    title = html.escape(f"{patch_map.title} ({patch_map.units})")
    if beside:
        title += f"<br><sub>not on patches: {html.escape(', '.join(beside))}</sub>"
    scale = _SIDE / max(height, width)
    return dress(figure, title, 200 + round(width * scale), 170 + round(height * scale))


def attribution_map(attribution: Attribution, image: int = 0, direction: int | str = 0) -> go.Figure:
    """Draw what every head and MLP contributes as a layer x head heat map, coloured around zero.

    What is neither (embeddings, biases, constants) is added up in the title, so that nothing is left out.

    Args:
        attribution: Contributions, of :func:`vit_lens.attribution.direct_attribution`.
        image: The index of the image in the run.
        direction: The name of the direction, such as a caption, or its index.

    Raises:
        LensError: There is no such image or direction, or nothing was attributed to heads and MLPs.

    >>> found = vl.attribution.direct_attribution(cache, bank, captions=["a blue star"])
    >>> figure = vl.figures.attribution_map(found, direction="a blue star")
    >>> len(figure.data[0].y), figure.data[0].x
    (8, ('0', '1', '2', '3', '4', '5', '6', '7', 'MLP'))
    """
    values, name = _column(attribution, image, direction)
    cells: dict[tuple[int, str], float] = {}
    rest = 0.0
    for component, value in zip(attribution.components, values, strict=True):
        column = {"head": str(component.head), "mlp": "MLP", "neuron": "MLP", "mlp_bias": "MLP"}.get(component.kind)
        if column is None or component.layer is None:
            rest += value
        else:
            cells[component.layer, column] = cells.get((component.layer, column), 0.0) + value
    if not cells:
        raise LensError("this attribution holds no head and no MLP")
    layers = sorted({layer for layer, _ in cells})
    heads = sorted({int(column) for _, column in cells if column != "MLP"})
    columns = [*map(str, heads), *(["MLP"] if any(column == "MLP" for _, column in cells) else [])]
    unit = _UNITS[attribution.units]
    title = f"Direct contributions to {html.escape(name)} ({unit})"
    title += f"<br><sub>total {sum(values):.3g}, of it embeddings, biases and constants {rest:.3g}</sub>"
    return layer_map(
        {(layer, column): cells.get((layer, column), math.nan) for layer in layers for column in columns},
        {(x, c): f"L{x}.mlp" if c == "MLP" else f"L{x}H{c}" for x in layers for c in columns},
        title=title, unit=unit, across="head, then the MLP", digits=".4g", signed=True,
        limit=max(map(abs, cells.values())),
    )  # fmt: skip


def attribution_bars(attribution: Attribution, image: int = 0, direction: int | str = 0, k: int = 20) -> go.Figure:
    """Draw the components with the largest contributions, by absolute value, and the sum of the others.

    Args:
        attribution: Contributions, of :func:`vit_lens.attribution.direct_attribution`.
        image: The index of the image in the run.
        direction: The name of the direction, such as a caption, or its index.
        k: How many components have a bar of their own, at least 1.

    Raises:
        LensError: There is no such image or direction, or ``k`` is below 1.

    >>> found = vl.attribution.direct_attribution(cache, bank, captions=["a blue star"])
    >>> figure = vl.figures.attribution_bars(found, k=3)
    >>> len(figure.data[0].y)
    4
    """
    if k < 1:
        raise LensError(f"k is {k}; ask for at least one component")
    values, name = _column(attribution, image, direction)
    order = sorted(range(len(values)), key=lambda i: -abs(values[i]))
    labels = [attribution.components[i].label for i in order[:k]]
    shown = [values[i] for i in order[:k]]
    if order[k:]:
        labels.append(f"the other {len(order) - k}")
        shown.append(sum(values[i] for i in order[k:]))
    colours = [DIVERGING[2][1] if value > 0 else DIVERGING[0][1] for value in shown]
    figure = go.Figure(
        go.Bar(x=shown, y=labels, orientation="h", marker_color=colours, hovertemplate="%{y}: %{x:.4g}<extra></extra>")
    )
    unit = _UNITS[attribution.units]
    figure.update_xaxes(title=unit, zeroline=True, zerolinecolor="#1c1b19")
    figure.update_yaxes(autorange="reversed", type="category")
    title = f"Direct contributions to {html.escape(name)} ({unit})<br><sub>total {sum(values):.3g}</sub>"
    return dress(figure, title, 640, 190 + 22 * len(shown))


def _column(attribution: Attribution, image: int, direction: int | str) -> tuple[list[float], str]:
    check_image(image, attribution.values.shape[1])
    names = attribution.names
    known = [*names, *range(len(names))]
    if direction not in known:
        raise LensError(f"direction {direction!r}; expected one of {known[:8]}")
    place = names.index(direction) if isinstance(direction, str) else direction
    return attribution.values[:, image, place].tolist(), names[place]


def _unseen(place: Placement) -> list[dict[str, float]]:
    """Return the parts of the original that were cropped away: above, below, left and right of what was seen."""
    (height, width), (top, left, bottom, right) = place.size, place.visible
    boxes = [(0, 0, top, width), (bottom, 0, height, width), (top, 0, bottom, left), (top, right, bottom, width)]
    return [
        {"y0": y0 - 0.5, "x0": x0 - 0.5, "y1": y1 - 0.5, "x1": x1 - 0.5}
        for y0, x0, y1, x1 in boxes
        if y1 > y0 and x1 > x0
    ]
