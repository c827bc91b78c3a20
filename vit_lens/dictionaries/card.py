"""What a dictionary is worth beside its controls, in numbers and in words."""

__all__ = ["Verdict", "card", "compared", "verdicts", "with_controls"]

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, Literal, NamedTuple

from torch import Tensor

from vit_lens.dictionaries.controls import data_points_control, pca_control, untrained_control
from vit_lens.dictionaries.denoiser_tokens import DenoiserTokens
from vit_lens.dictionaries.denoising_fidelity import PictureMetric, denoising_fidelity
from vit_lens.dictionaries.dictionary import Dictionary
from vit_lens.dictionaries.fidelity import Metric, fidelity
from vit_lens.dictionaries.reading import ModelTokens
from vit_lens.dictionaries.semantics import COUNTED, PURSUITS
from vit_lens.dictionaries.source import ActivationSource
from vit_lens.dictionaries.statistics import evaluate, refuse_other
from vit_lens.errors import DictionaryError

_OWN, _PURSUED, _POINTS, _UNTRAINED = "dictionary", "dictionary, by pursuit", "random data points", "untrained"
_PCA = "principal components"
_ENOUGH, _MANY_DEAD = 0.9, 0.1
_COLUMNS = {"fvu": "FVU", "fvu_standardised": "FVU, standardised", "l0": "L0", "dead": "dead", "dense": "dense"}


class Verdict(NamedTuple):
    """One thing that the numbers say: whether it is what one hopes for, and in words.

    >>> Verdict(False, "It explains less than random data points.").holds
    False
    """

    holds: bool
    words: str


def with_controls(
    dictionary: Dictionary, train: ActivationSource, held_out: ActivationSource, *,
    metric: Metric | PictureMetric | None = None, n_inputs: int = 256, seed: int = 0,
    live: ActivationSource | None = None,
) -> Dictionary:  # fmt: skip
    """Return the dictionary with the statistics of its controls beside its own, and what the model makes of each.

    Controls have as many codes and features: random directions, principal components, random data points, these encoded
    by pursuit, for which the dictionary is encoded by pursuit too. Where the sources run a model, each is put into it
    without its error, with a quarter, half, once and twice as many codes: :func:`fidelity`, or of a diffusion model
    :func:`denoising_fidelity`.

    Args:
        dictionary: The dictionary.
        train: What it was learnt from, or more of its kind: what controls are made of.
        held_out: Inputs that neither saw.
        metric: As :func:`fidelity` takes it, or :func:`denoising_fidelity`; it is given the first ``n_inputs`` held-out
            inputs.
        n_inputs: How many held-out inputs the model is run on at most.
        seed: The seed of the controls.
        live: The source that runs the model, where ``held_out`` is a part of what it has written; None where
            ``held_out`` is one.

    Raises:
        DictionaryError: The sources are of another model, hook point or width.

    >>> source = vl.ActivationSource.of_array(torch.randn(300, 8, generator=torch.Generator().manual_seed(0)))
    >>> found = vl.dictionaries.random_dictionary(8, 20, k=3)
    >>> measured = with_controls(found, *source.split(0.2))
    >>> list(measured.statistics["controls"])
    ['dictionary, by pursuit', 'untrained', 'random data points', 'principal components']
    """
    refuse_other(dictionary, train)
    own = evaluate(dictionary, held_out)
    known = replace(
        dictionary, frequency=own.frequency, statistics={**dictionary.statistics, "held_out": own.numbers()}
    )
    k = dictionary.semantics.k or max(1, round(own.l0))
    kind = dictionary.semantics.encoder
    pursuit: Literal["pursuit", "signed"] = "signed" if kind == "signed" else "pursuit"
    controls: dict[str, Dictionary] = {_UNTRAINED: untrained_control(known, train, seed=seed)}
    left_out = ""
    if (n := sum(len(batch.tokens) for batch in train.in_order())) < dictionary.n_features:
        left_out = f"{n} tokens are fewer than {dictionary.n_features} features, so there are no random data points"
    else:
        controls[_POINTS] = data_points_control(known, train, seed=seed)
    controls[_PCA] = pca_control(known, train)
    numbers = {_PURSUED: own if kind in PURSUITS else evaluate(dictionary, held_out, method=pursuit, k=k)}
    numbers |= {name: evaluate(one, held_out) for name, one in controls.items()}
    found = {"held_out": own.numbers(), "controls": {name: one.numbers() for name, one in numbers.items()}}
    if left_out:
        found["left_out"] = left_out
    reader, chosen = (live or held_out).reader, list(held_out.inputs[:n_inputs])
    if live is not None and (live.provenance, list(reader.keys)) != (held_out.provenance, list(held_out.reader.keys)):
        raise DictionaryError("live= is of other inputs, or another run, than held_out")
    if isinstance(reader, ModelTokens):
        inputs: Any = reader.inputs[chosen] if isinstance(reader.inputs, Tensor) else [reader.inputs[i] for i in chosen]
        ks = sorted({max(1, min(value, dictionary.n_features)) for value in (k // 4, k // 2, k, 2 * k)})
        measure: Any = fidelity
        if isinstance(reader, DenoiserTokens):
            inputs, measure = replace(live or held_out, inputs=tuple(chosen)), denoising_fidelity
        curve = measure(reader.model, {_OWN: dictionary}, inputs, metric, ks=ks)
        rest = measure(reader.model, controls, inputs, metric, ks=[one for one in ks if one <= dictionary.d])
        points = [asdict(point) for point in (*curve.points, *rest.points)]
        said = {"clean": curve.clean, "ablated": curve.ablated, "n": curve.n}
        found["fidelity"] = said | {"metric": curve.metric, "is_loss": curve.is_loss, "points": points}
    return replace(known, statistics={**dictionary.statistics, **found})


def compared(dictionary: Dictionary) -> dict[str, dict[str, Any]]:
    """Return the statistics of the dictionary, and those of its controls, by name.

    >>> compared(vl.dictionaries.random_dictionary(8, 20, k=3))
    {}
    """
    own = dictionary.statistics.get("held_out")
    controls = dictionary.statistics.get("controls")
    found = {_OWN: own} if isinstance(own, Mapping) else {}
    found |= controls if isinstance(controls, Mapping) else {}
    return {str(name): dict(numbers) for name, numbers in found.items() if isinstance(numbers, Mapping)}


def verdicts(dictionary: Dictionary) -> list[Verdict]:
    """Say what the statistics of :func:`with_controls` come to.

    >>> source = vl.ActivationSource.of_array(torch.randn(300, 8, generator=torch.Generator().manual_seed(0)))
    >>> measured = with_controls(vl.dictionaries.random_dictionary(8, 20, k=3), *source.split(0.2))
    >>> for one in verdicts(measured):
    ...     print(one.words)
    It explains ... than as many random data points under the same encoder: standardised FVU ... against ....
    It explains no more than random directions do: standardised FVU ... against ....
    ...% of its features fired on no held-out token.
    """
    rows, found = compared(dictionary), []
    own, pursued, points, untrained = (rows.get(name, {}) for name in (_OWN, _PURSUED, _POINTS, _UNTRAINED))
    name = "fvu_standardised"
    if all(isinstance(one.get(name), float) for one in (pursued, points)):
        more = _less(pursued[name], points[name])
        found.append(Verdict(more, (
            f"It explains {'more' if more else 'no more'} than as many random data points under the same encoder: "
            f"standardised FVU {pursued[name]:.2f} against {points[name]:.2f}."
        )))  # fmt: skip
    if all(isinstance(one.get(name), float) for one in (own, untrained)):
        more = _less(own[name], untrained[name])
        found.append(Verdict(more, (
            f"It explains {'more' if more else 'no more'} than random directions do: standardised FVU {own[name]:.2f} "
            f"against {untrained[name]:.2f}."
        )))  # fmt: skip
    curve = dictionary.statistics.get("fidelity")
    if isinstance(curve, Mapping) and curve.get("is_loss") and curve["ablated"] <= curve["clean"]:
        found.append(Verdict(False, (
            f"Mean ablation does not raise the model's loss ({curve['ablated']:.3g} against {curve['clean']:.3g}): "
            "what is kept of it says nothing here."
        )))  # fmt: skip
    elif (recovered := _recovered(dictionary)) is not None:
        enough = recovered >= _ENOUGH
        said = "" if enough else " A model with so much missing is another model; read its features with care."
        found.append(Verdict(enough, (
            f"With the dictionary alone in its place the model keeps {recovered:.2f} of what mean ablation takes away."
            + said
        )))  # fmt: skip
    if isinstance(dead := own.get("dead"), float):
        few = dead <= _MANY_DEAD
        found.append(Verdict(few, f"{dead:.0%} of its features fired on no held-out token."))
    if isinstance(words := dictionary.statistics.get("left_out"), str):
        found.append(Verdict(False, f"A control is missing: {words}."))
    return found


def card(dictionary: Dictionary) -> str:
    """Return what a dictionary is and what it is worth, as a page of Markdown.

    >>> print(card(vl.dictionaries.random_dictionary(8, 20, k=3)).splitlines()[0])
    # Dictionary of 20 features
    """
    origin = dictionary.origin
    lines = [f"# Dictionary of {dictionary.n_features} features", ""]
    said = {
        "model": origin.model, "weights": origin.fingerprint, "site": origin.site, "stream": origin.stream,
        "tokens": origin.tokens, "at_steps": _listed(origin.at_steps), "noise_levels": _listed(origin.sigmas),
        "branch": origin.branch, "run": origin.run and ", ".join(f"{k}={v}" for k, v in origin.run.items()),
        "width": dictionary.d, "learnt": origin.learnt, **asdict(dictionary.semantics),
    }  # fmt: skip
    lines += [f"- {name.replace('_', ' ')}: {value}" for name, value in said.items() if value not in (None, "")]
    if found := verdicts(dictionary):
        lines += ["", "## What the numbers say", "", *(f"- {one.words}" for one in found)]
    if rows := compared(dictionary):
        numbers = next(iter(rows.values()))
        lines += ["", f"## On {numbers.get('n_tokens')} held-out tokens of {numbers.get('n_inputs')} inputs", ""]
        lines += [f"| | {' | '.join(_COLUMNS.values())} |", f"|---|{'---|' * len(_COLUMNS)}"]
        for name, row in rows.items():
            lines.append(f"| {name} | {' | '.join(_number(row.get(column)) for column in _COLUMNS)} |")
    if isinstance(curve := dictionary.statistics.get("fidelity"), Mapping):
        lines += ["", f"## In the model, without its error, on {curve['n']} held-out inputs", ""]
        lines += ["1 is the model itself, 0 the mean token in the place of every token that it is of.", ""]
        lines += [f"Measured: {curve['metric']}.", ""] if curve.get("metric") else []
        lines += ["| | codes of a token | fidelity |", "|---|---|---|"]
        lines += [f"| {p['name']} | {p['l0']:.1f} | {p['fidelity']:.3f} |" for p in curve["points"]]
    return "\n".join(lines) + "\n"


def _less(one: float, other: float) -> bool:
    """Whether a number is less by what a reader would see: two decimals."""
    return round(one, 2) < round(other, 2)


def _listed(values: tuple[int | float | None, ...] | None) -> str | None:
    return None if values is None else ", ".join("none" if one is None else f"{one:.4g}" for one in values)


def _number(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else "" if value is None else str(value)


def _recovered(dictionary: Dictionary) -> float | None:
    """Return what the model keeps with the dictionary's own number of codes; None where that was not measured."""
    curve = dictionary.statistics.get("fidelity")
    if not isinstance(curve, Mapping):
        return None
    k = dictionary.semantics.k if dictionary.semantics.encoder in COUNTED else None
    found = [point["fidelity"] for point in curve["points"] if point["name"] == _OWN and point["k"] == k]
    if len(found) != 1:
        raise DictionaryError("statistics['fidelity'] has no point of the dictionary with its own number of codes")
    return float(found[0])
