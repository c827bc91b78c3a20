"""What pages show of features: their examples with heat maps, their neighbours, and what is said of them."""

__all__ = ["Feature", "features_of", "features_words", "in_digits", "site_address"]

import base64
import io
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import PIL.Image
import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.dictionaries import Dictionary, Example, FeatureExamples, feature_address, step_and_position
from vit_lens.errors import DictionaryError, UnknownSiteError

_BANDS = {0.0: "strongest", 0.25: "behind a quarter", 0.5: "behind half", 0.75: "the weakest quarter"}
_DENSE, _NEAR, _SHADES, _OPAQUE = 0.1, 4, 5, 0.62
_POSITIVE, _NEGATIVE = (196, 82, 15), (35, 104, 166)  # --pos and --neg of page.css


class Near(NamedTuple):
    """A feature whose decoder row is near, and whether it is on the page."""

    number: int
    cosine: str
    shown: bool


class Token(NamedTuple):
    """A token of a prompt, its class and its activation in words; empty where it has none."""

    text: str
    shade: str
    value: str


class Shown(NamedTuple):
    """One example."""

    input: int
    activation: str
    at: str
    alt: str
    prompt: str
    picture: str
    heat: str
    tokens: list[Token]


class ShownBand(NamedTuple):
    """The examples of a part of the ranks."""

    name: str
    examples: list[Shown]


class Feature(NamedTuple):
    """One feature: its number, address, mark (dead, dense), words, neighbours and examples, and how often it fires."""

    number: int
    name: str
    mark: str
    words: str
    near: list[Near]
    bands: list[ShownBand]
    frequency: float


def features_of(dictionary: Dictionary, examples: FeatureExamples, pictures: Mapping[int, str]) -> list[Feature]:
    """Return what is shown of each feature of the examples, in their order.

    Args:
        dictionary: The dictionary.
        examples: What its features fire on.
        pictures: Where the picture of an input is, as an image's source; what is not there is shown as empty.
    """
    near = _nearest(dictionary, examples.features)
    return [_feature(dictionary, examples, k, near[k], pictures) for k in range(len(examples.features))]


def features_words(examples: FeatureExamples) -> str:
    """Return what the examples are of, and what their colours mean."""
    many = "input" if examples.n_inputs == 1 else "inputs"
    where = (
        "The patch where it is strongest counts for an image." if examples.pictures else "Its strongest token counts."
    )
    hue = (
        "Colour is the activation of each patch or token, as a share of the feature's largest: orange, or blue below 0."
    )
    steps = any(one.step is not None for bands in examples.bands for band in bands for one in band.examples)
    when = "is of the step at which the feature is largest" if steps else "is the largest of the steps that were read"
    drawn = f" Pictures are what the model draws of the prompts; colour {when}." if examples.prompts else ""
    return f"{examples.n_inputs} held-out {many}, in the order of their activation. {where} {hue}{drawn}"


def site_address(dictionary: Dictionary) -> str:
    """Return the address of the dictionary's hook point; empty where it has none."""
    try:
        return str(feature_address(dictionary, 0)).removesuffix(".f0")
    except (DictionaryError, UnknownSiteError):
        return ""


def in_digits(value: object) -> str:
    """Return a number with two decimals; empty for None."""
    return f"{value:.2f}".replace("-", "\u2212") if isinstance(value, float) else "" if value is None else str(value)


def _feature(
    dictionary: Dictionary, examples: FeatureExamples, k: int, near: list[Near], pictures: Mapping[int, str]
) -> Feature:
    index, site = examples.features[k], site_address(dictionary)
    measured = dictionary.frequency
    frequency = float(examples.frequency[k] if measured is None else measured[index])
    mark = "dead" if frequency == 0 else "dense" if frequency > _DENSE else ""
    words = (
        f"Fires on {frequency:.2%} of held-out tokens, on {examples.n_firing[k]} of {examples.n_inputs} inputs here."
        if frequency or examples.n_firing[k]
        else "It fired on no held-out token: nothing is known of it."
    )
    if dictionary.labels is not None:
        source, place = dictionary.labels[index].tolist()
        step, position = step_and_position(place) if dictionary.origin.at_steps else (None, place)
        at = "" if step is None else f" at step {step}"
        words += f" It is token {position} of input {source}{at} of those that it was made of."
    every = [one for band in examples.bands[k] for one in band.examples]
    top = max((abs(one.activation) for one in every), default=1.0)
    bands = [
        ShownBand(_BANDS[band.start], [_shown(examples, one, top, pictures) for one in band.examples])
        for band in examples.bands[k]
    ]
    return Feature(
        index, f"{site}.f{index}" if site else f"f{index}", mark, words, near, bands if every else [], frequency
    )


def _shown(examples: FeatureExamples, one: Example, top: float, pictures: Mapping[int, str]) -> Shown:
    step = "" if one.step is None else f"step {one.step}"
    prompt = examples.prompts[one.input] or "the empty prompt" if one.input in examples.prompts else ""
    if one.input in examples.texts:
        texts = examples.texts[one.input]
        codes = [*one.map.nan_to_num().tolist(), *[0.0] * len(texts)]
        tokens = [Token(text, _shade(code, top), f"{code:.2f}") for text, code in zip(texts, codes, strict=False)]
        return Shown(one.input, in_digits(one.activation), step, "", "", "", "", tokens)
    at, words = step, ""
    heat = ""
    if examples.grid is not None:
        heat = _heat_uri(examples.on_grid(one), top)
        row, column = divmod(one.position - examples.n_prefix, examples.grid[1])
        at = f"patch ({row}, {column})" if one.position >= examples.n_prefix else f"token {one.position}"
        at += f", {step}" if step else ""
        words = f", strongest at {at}"
    alt = f"input {one.input}, activation {one.activation:.2f}{words}"
    return Shown(one.input, in_digits(one.activation), at, alt, prompt, pictures.get(one.input, ""), heat, [])


def _shade(code: float, top: float) -> str:
    if not code:
        return ""
    step = max(1, math.ceil(_SHADES * min(1.0, abs(code) / top)))
    return f"t{step}" + (" negative" if code < 0 else "")


def _heat_uri(grid: Float[Tensor, "grid_row grid_column"], top: float) -> str:
    """Return the codes of patches as a picture of one pixel each, as opaque as they are large."""
    codes = grid.nan_to_num().numpy()
    pixels = np.zeros((*codes.shape, 4), dtype=np.uint8)
    pixels[..., :3] = np.where((codes < 0)[..., None], _NEGATIVE, _POSITIVE)
    pixels[..., 3] = (255 * _OPAQUE * np.minimum(1, np.abs(codes) / top)).round()
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels, "RGBA").save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _nearest(dictionary: Dictionary, features: tuple[int, ...]) -> list[list[Near]]:
    rows = torch.nn.functional.normalize(dictionary.W_dec.detach().float().cpu(), dim=1)
    cosines = rows[list(features)] @ rows.T
    cosines[torch.arange(len(features)), list(features)] = -torch.inf
    best = cosines.topk(min(_NEAR, len(rows) - 1), dim=1)
    return [
        [Near(i, f"{c:.2f}".replace("-", "\u2212"), i in features) for c, i in zip(values, indices, strict=True)]
        for values, indices in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]
