"""The page of a dictionary: its statistics beside its controls, and what its features fire on."""

__all__ = ["write_dictionary_page"]

import base64
import io
import math
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.dictionaries import (
    Dictionary,
    Example,
    FeatureExamples,
    Origin,
    Verdict,
    compared,
    feature_address,
    step_and_position,
    verdicts,
)
from vit_lens.errors import DictionaryError, UnknownSiteError, expect
from vit_lens.identity import fingerprint
from vit_lens.report.one_file import page_path, write_page
from vit_lens.report.thumbs import BUDGET, inline_pictures

_HERE = "vit_lens.report"
_COLUMNS = {"fvu": "FVU", "fvu_standardised": "FVU, std.", "l0": "L0", "dead": "dead", "dense": "dense"}
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
    """One feature: its number, address, mark (dead, dense), words, neighbours and examples."""

    number: int
    name: str
    mark: str
    words: str
    near: list[Near]
    bands: list[ShownBand]


def write_dictionary_page(dictionary: Dictionary, examples: FeatureExamples, out: str | os.PathLike[str]) -> Path:
    """Write the page of a dictionary as one file, which needs no network, and return its path.

    Args:
        dictionary: The dictionary; with :func:`vit_lens.dictionaries.with_controls` its statistics stand beside those
            of its controls, and without them the page says so.
        examples: What its features fire on, by :func:`vit_lens.dictionaries.feature_examples`.
        out: The file to write, ending in .html.

    Raises:
        DictionaryError: The examples are of another dictionary.
        OutputError: The page cannot be written, or ``out`` is not an .html file.

    >>> found = vl.dictionaries.random_dictionary(128, 40, k=4, site="blocks.5.hook_resid_post")
    >>> examples = vl.dictionaries.feature_examples(found, model, images, n=3)
    >>> vl.report.write_dictionary_page(found, examples, tmp / "dictionary.html").name
    'dictionary.html'
    """
    expect(dictionary, Dictionary, "dictionary", DictionaryError, "a vl.Dictionary")
    expect(examples, FeatureExamples, "examples", DictionaryError, "vit_lens.dictionaries.feature_examples(...)")
    if examples.content != fingerprint({"W_dec": dictionary.W_dec}):
        raise DictionaryError("the examples are of another dictionary; feature_examples(dictionary, ...) makes its own")
    target = page_path(out)
    rows = compared(dictionary)
    curve_ks, curve, curve_n, curve_metric = _curve(dictionary)
    held_out = next(iter(rows.values()), {})
    return write_page(
        target, (_HERE, "dictionary.html.j2"), styles=[(_HERE, "page.css"), (_HERE, "dictionary.css")],
        model=dictionary.origin.model or "a model that it does not name", n_features=dictionary.n_features,
        lede=_lede(dictionary), facts=_facts(dictionary), verdicts=_verdicts(dictionary), meaning=_meaning(dictionary),
        columns=list(_COLUMNS.values()),
        rows=[(name, [_number(numbers.get(key)) for key in _COLUMNS]) for name, numbers in rows.items()],
        held_out=f"{held_out.get('n_tokens')} held-out tokens of {held_out.get('n_inputs')} inputs",
        curve=curve, curve_ks=curve_ks, curve_n=curve_n, curve_metric=curve_metric,
        features=_features(dictionary, examples),
        features_words=_features_words(examples), has_pictures=bool(examples.pictures),
    )  # fmt: skip


# ---- the head --------------------------------------------------------------------------------------------------


def _lede(dictionary: Dictionary) -> str:
    k = dictionary.semantics.k
    few = f"at most {k}" if k is not None else "a few"
    return (
        f"Each {dictionary.d}-dimensional activation is written as a sum of {few} of {dictionary.n_features:,} "
        "directions. Below: how much of it that explains, beside controls that learnt nothing, and what single "
        "features fire on."
    )


def _facts(dictionary: Dictionary) -> list[tuple[str, str]]:
    origin, k = dictionary.origin, dictionary.semantics.k
    encoder = dictionary.semantics.encoder + ("" if k is None else f", k = {k}")
    return [
        ("Site", (_site(dictionary) or origin.site or "not said") + (" (update)" if origin.stream == "update" else "")),
        ("Tokens", origin.tokens),
        *([] if origin.at_steps is None else [("Read at", _when(origin))]),
        ("Features", f"{dictionary.n_features:,} of width {dictionary.d}"),
        ("Encoder", encoder),
        ("Learnt", origin.learnt or "not said"),
    ]


def _when(origin: Origin) -> str:
    steps, of = ", ".join(map(str, origin.at_steps or ())), (origin.run or {}).get("steps")
    return f"step {steps}" + (f" of {of}" if of else "") + (f", {origin.branch}" if origin.branch else "")


def _site(dictionary: Dictionary) -> str:
    """Return the address of the dictionary's hook point; empty where it has none."""
    try:
        return str(feature_address(dictionary, 0)).removesuffix(".f0")
    except (DictionaryError, UnknownSiteError):
        return ""


def _meaning(dictionary: Dictionary) -> list[tuple[str, str]]:
    said = {**asdict(dictionary.origin), **asdict(dictionary.semantics)}
    training = dictionary.statistics.get("training")
    said |= {"training": ", ".join(f"{k}={v}" for k, v in training.items())} if isinstance(training, Mapping) else {}
    return [(name.replace("_", " "), str(value)) for name, value in said.items() if value not in (None, "")]


def _verdicts(dictionary: Dictionary) -> list[Verdict]:
    return verdicts(dictionary) if "controls" in dictionary.statistics else []


def _curve(dictionary: Dictionary) -> tuple[list[str], list[tuple[str, list[str]]], int, str]:
    found = dictionary.statistics.get("fidelity")
    if not isinstance(found, Mapping):
        return [], [], 0, ""
    by_name: dict[str, dict[Any, float]] = {}
    for point in found["points"]:
        by_name.setdefault(point["name"], {})[point["k"]] = point["fidelity"]
    ks = sorted({k for points in by_name.values() for k in points}, key=lambda k: math.inf if k is None else k)
    rows = [(name, [_number(points.get(k)) for k in ks]) for name, points in by_name.items()]
    return ["its own" if k is None else str(k) for k in ks], rows, int(found["n"]), str(found.get("metric", ""))


def _number(value: object) -> str:
    return f"{value:.2f}".replace("-", "\u2212") if isinstance(value, float) else "" if value is None else str(value)


# ---- features --------------------------------------------------------------------------------------------------


def _features_words(examples: FeatureExamples) -> str:
    many = "input" if examples.n_inputs == 1 else "inputs"
    where = (
        "The patch where it is strongest counts for an image." if examples.pictures else "Its strongest token counts."
    )
    hue = (
        "Colour is the activation of each patch or token, as a share of the feature's largest: orange, or blue below 0."
    )
    drawn = "" if not examples.prompts else (
        " Pictures are what the model draws of the prompts; colour, over them or over tokens of prompts, is of the "
        "step at which the feature is largest."
    )  # fmt: skip
    return f"{examples.n_inputs} held-out {many}, in the order of their activation. {where} {hue}{drawn}"


def _features(dictionary: Dictionary, examples: FeatureExamples) -> list[Feature]:
    uses = [one.input for bands in examples.bands for band in bands for one in band.examples]
    share = len(examples.pictures) / max(1, len(uses))  # a picture is in the page as often as it is shown
    pictures = inline_pictures(examples.pictures.__getitem__, sorted(examples.pictures), int(BUDGET * share))
    near = _nearest(dictionary, examples.features)
    return [_feature(dictionary, examples, k, near[k], pictures) for k in range(len(examples.features))]


def _feature(
    dictionary: Dictionary, examples: FeatureExamples, k: int, near: list[Near], pictures: Mapping[int, str]
) -> Feature:
    index, site = examples.features[k], _site(dictionary)
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
    return Feature(index, f"{site}.f{index}" if site else f"f{index}", mark, words, near, bands if every else [])


def _shown(examples: FeatureExamples, one: Example, top: float, pictures: Mapping[int, str]) -> Shown:
    step = "" if one.step is None else f"step {one.step}"
    prompt = examples.prompts[one.input] or "the empty prompt" if one.input in examples.prompts else ""
    if one.input in examples.texts:
        texts = examples.texts[one.input]
        codes = [*one.map.nan_to_num().tolist(), *[0.0] * len(texts)]
        tokens = [Token(text, _shade(code, top), f"{code:.2f}") for text, code in zip(texts, codes, strict=False)]
        return Shown(one.input, _number(one.activation), step, "", "", "", "", tokens)
    at, words = step, ""
    heat = ""
    if examples.grid is not None:
        heat = _heat_uri(examples.on_grid(one), top)
        row, column = divmod(one.position - examples.n_prefix, examples.grid[1])
        at = f"patch ({row}, {column})" if one.position >= examples.n_prefix else f"token {one.position}"
        at += f", {step}" if step else ""
        words = f", strongest at {at}"
    alt = f"input {one.input}, activation {one.activation:.2f}{words}"
    return Shown(one.input, _number(one.activation), at, alt, prompt, pictures.get(one.input, ""), heat, [])


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
