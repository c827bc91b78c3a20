"""Strips of features at several strengths, a random direction below each, and how far the pictures moved."""

__all__ = ["STEERING"]

import base64
import io
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
import torch
from PIL import Image
from torch import Tensor

from vit_lens.dictionaries import Dictionary, random_dictionary, steer
from vit_lens.figures import picture_strips
from vit_lens.records import encode_png
from vit_lens.studies.paper.shabalin_bench import Bench, Recipe
from vit_lens.studies.paper.shabalin_figure import About, PaperFigure, Rows, Tables, estimate
from vit_lens.studies.paper.shabalin_lines import Finding, reading
from vit_lens.studies.paper.shabalin_reconstruction import block_name

_STRENGTHS, _TOLD = (0.0, 0.2, 0.4, 0.8), 0.4
_FEW, _DENSE = 4, 0.1  # features; the share of tokens above which one is dense
_INPUTS = 6
_SIDE = 128  # pixels of a picture that is kept with the numbers, at most
_FEATURE, _RANDOM = "feature", "random direction"


def recipes(bench: Bench) -> list[Recipe]:
    return bench.recipes(bench.main, bench.sizes.k, bench.sizes.width)[:1]


def n_pictures(bench: Bench) -> int:
    return len(_shown(bench)) * (1 + 2 * _FEW * sum(strength > 0 for strength in _STRENGTHS))


def _shown(bench: Bench) -> tuple[int, ...]:
    """Return the held-out inputs that are drawn."""
    return bench.live.split(bench.sizes.held_out)[1].inputs[:_INPUTS]


def measure(bench: Bench) -> Tables:
    dictionary = bench.dictionary(recipes(bench)[0])
    chosen, inputs = most_active(bench, dictionary), _shown(bench)
    others = random_dictionary(dictionary.d, len(chosen), k=1, seed=bench.sizes.seed).W_dec
    plain = bench.drawn("plain", inputs)
    strips, moved = [], {}
    for row, (feature, rate, mean) in enumerate(chosen):
        for direction, what in ((_FEATURE, dictionary.direction(feature)), (_RANDOM, others[row])):
            for strength in _STRENGTHS:
                pictures = plain
                if strength:
                    name = f"{feature}_{direction.replace(' ', '-')}_{strength:g}"
                    pictures = bench.drawn(name, inputs, steer(bench.model, dictionary, what, strength))
                    moved[feature, direction, strength] = _moved(pictures, plain)
                strips.append(
                    {
                        "feature": feature, "fires_on": rate, "mean_code": mean, "direction": direction,
                        "strength": strength, "png": _png(pictures[0]),
                    }
                )  # fmt: skip
    return {"moved": _rows(moved, bench.sizes.seed), "strips": strips}


def most_active(bench: Bench, dictionary: Dictionary) -> list[tuple[int, float, float]]:
    """Return the features with the highest mean code of held-out tokens that are not dense: number, rate, mean."""
    total, fired, n = torch.zeros(dictionary.n_features).double(), torch.zeros(dictionary.n_features).double(), 0
    with torch.no_grad():
        for batch in bench.split(bench.main)[1].in_order():
            codes = dictionary.encode(batch.tokens).double().cpu()
            total, fired, n = total + codes.sum(0), fired + (codes != 0).sum(0), n + len(codes)
    mean, rate = total / n, fired / n
    known = torch.where((rate > 0) & (rate <= _DENSE), mean, -torch.inf)
    best = known.topk(min(_FEW, len(known))).indices.tolist()
    return [(index, float(rate[index]), float(mean[index])) for index in best if known[index] > -torch.inf]


def _moved(pictures: Tensor, plain: Tensor) -> np.ndarray:
    """Return the mean absolute difference of pixels of each picture, of values in [0, 1]."""
    return ((pictures.double() - plain.double()).abs() / 255).flatten(1).mean(1).numpy()


def _rows(moved: dict[tuple[int, str, float], np.ndarray], seed: int) -> Rows:
    """Return how far pictures moved, of each feature and of all, with intervals over inputs."""
    found = []
    for direction in (_FEATURE, _RANDOM):
        for strength in _STRENGTHS[1:]:
            own = {key[0]: value for key, value in moved.items() if key[1:] == (direction, strength)}
            if own:
                own = {"all": np.mean(list(own.values()), axis=0), **own}
            for feature, values in own.items():
                found.append(
                    {
                        "feature": str(feature), "direction": direction, "strength": strength,
                        **estimate(values, seed), "n_inputs": len(values),
                    }
                )  # fmt: skip
    return found


def _png(picture: Tensor) -> str:
    image = Image.fromarray(picture.numpy())
    image.thumbnail((_SIDE, _SIDE))
    return base64.b64encode(encode_png(image)).decode("ascii")


def finding(tables: Tables, about: About) -> Finding:
    at = {(row["direction"], row["strength"]): row for row in tables["moved"] if row["feature"] == "all"}
    if not at:
        return Finding("No feature that is not dense fires", f"{about['model']} at {block_name(about['block'])}; n = 0")

    def said(direction: str) -> str:
        row = at[direction, _TOLD]
        return reading(row["value"], row["low"], row["high"], 3)

    n = at[_FEATURE, _TOLD]["n_inputs"]
    features = len({row["feature"] for row in tables["strips"]})
    return Finding(
        f"At {_TOLD:g} mean token norms pixels move by {said(_FEATURE)} with a feature, {said(_RANDOM)} with a random "
        "direction",
        f"{about['model']} at {block_name(about['block'])}, TopK, k = {about['k']}; n = {n} held-out {about['unit']}, "
        f"the {features} most active features that fire on at most {_DENSE:.0%} of tokens, values in [0, 1], 95 % "
        f"intervals over {about['unit']}; drawn: the first of them",
    )


def draw(tables: Tables, about: About) -> go.Figure:
    rows: dict[str, list[Image.Image]] = {}
    for row in tables["strips"]:
        own = f"feature {row['feature']}"
        name = own if row["direction"] == _FEATURE else f"random, below {row['feature']}"
        rows.setdefault(name, []).append(Image.open(io.BytesIO(base64.b64decode(row["png"]))).convert("RGB"))
    if not rows:
        return go.Figure(layout={"width": 700, "height": 120, "margin": {"t": 30}})
    figure = picture_strips(rows, _columns(_STRENGTHS), "")
    top = figure.layout.margin.t - 56  # there is no title of its own above
    return figure.update_layout(height=figure.layout.height - 56, margin_t=top)


def _columns(strengths: Sequence[float]) -> list[str]:
    return [f"{strength:g}" if strength else "not steered" for strength in strengths]


def lacks(bench: Bench) -> str | None:
    if bench.draws:
        return None
    if bench.unit == "prompts":
        return "a text encoder draws nothing; `vit-lens study steering` draws what it says"
    return "nothing draws its embeddings: give a --decoder that was made for it"


STEERING = PaperFigure(
    name="steering", words="What the most active features do to a picture, a random direction as long below each.",
    measure=measure, finding=finding, draw=draw, recipes=recipes, sites=lambda bench: [bench.main],
    pictures=n_pictures, lacks=lacks,
)  # fmt: skip
