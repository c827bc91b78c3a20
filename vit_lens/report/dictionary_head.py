"""What pages say of a dictionary as a whole: where it belongs, and its statistics beside those of its controls."""

__all__ = ["dictionary_head"]

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from vit_lens.dictionaries import Dictionary, Origin, Verdict, compared, verdicts
from vit_lens.report.feature_parts import in_digits, site_address

_COLUMNS = {"fvu": "FVU", "fvu_standardised": "FVU, std.", "l0": "L0", "dead": "dead", "dense": "dense"}


def dictionary_head(dictionary: Dictionary) -> dict[str, Any]:
    """Return what ``dictionary_head.html.j2`` shows, by name.

    Args:
        dictionary: The dictionary; one without controls gets a page that says so.
    """
    rows = compared(dictionary)
    curve_ks, curve, curve_n, curve_metric = _curve(dictionary)
    held_out = next(iter(rows.values()), {})
    return {
        "model": dictionary.origin.model or "a model that it does not name", "n_features": dictionary.n_features,
        "lede": _lede(dictionary), "facts": _facts(dictionary), "verdicts": _verdicts(dictionary),
        "meaning": _meaning(dictionary), "columns": list(_COLUMNS.values()),
        "rows": [(name, [in_digits(numbers.get(key)) for key in _COLUMNS]) for name, numbers in rows.items()],
        "held_out": f"{held_out.get('n_tokens')} held-out tokens of {held_out.get('n_inputs')} inputs",
        "curve": curve, "curve_ks": curve_ks, "curve_n": curve_n, "curve_metric": curve_metric,
    }  # fmt: skip


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
        (
            "Site",
            (site_address(dictionary) or origin.site or "not said")
            + (" (update)" if origin.stream == "update" else ""),
        ),
        ("Tokens", origin.tokens),
        *([] if origin.at_steps is None else [("Read at", _when(origin))]),
        ("Features", f"{dictionary.n_features:,} of width {dictionary.d}"),
        ("Encoder", encoder),
        ("Learnt", origin.learnt or "not said"),
    ]


def _when(origin: Origin) -> str:
    steps, of = ", ".join(map(str, origin.at_steps or ())), (origin.run or {}).get("steps")
    return f"step {steps}" + (f" of {of}" if of else "") + (f", {origin.branch}" if origin.branch else "")


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
    rows = [(name, [in_digits(points.get(k)) for k in ks]) for name, points in by_name.items()]
    return ["its own" if k is None else str(k) for k in ks], rows, int(found["n"]), str(found.get("metric", ""))
