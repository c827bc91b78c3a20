"""Whose work is it: the curves of the Diffusion Lens beside everything that could make them without the encoder."""

__all__ = ["AVERAGED", "HEADLINES", "whose_study"]

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from vit_lens.errors import StudyError
from vit_lens.lenses import TextRun
from vit_lens.studies.asked import Asked
from vit_lens.studies.findings import Score, StudyResult
from vit_lens.studies.text_setup import TextSetup
from vit_lens.studies.whose import curves
from vit_lens.studies.whose.curves import LENS, RANKS, Kinds, later_than
from vit_lens.studies.whose.interpolation import InterpolationLens
from vit_lens.studies.whose.notes import NO_READERS, NOTES, RULE
from vit_lens.studies.whose.other_layers import LayerReader
from vit_lens.studies.whose.other_prompts import other_sentences
from vit_lens.studies.whose.probing import PENALTY, POSITIONS, Probing
from vit_lens.studies.whose.rates import SCENES, rate_rows, rates, with_both_orders
from vit_lens.studies.whose.states import site_of
from vit_lens.studies.whose.tuned import RIDGE, Translators, TunedLens
from vit_lens.studies.whose.untrained_encoder import with_random_weights

BETWEEN, TUNED, SHUFFLED, UNTRAINED = "interpolation", "tuned lens", "shuffled words", "random weights"
HEADLINES = (SCENES, later_than(BETWEEN), RANKS)
AVERAGED = ("curves", "rates", "interpolation")

_STREAM, _BATCH = 14, 32


def whose_study(
    setup: TextSetup, asked: Sequence[Asked], *, readers: Sequence[LayerReader] = (), n_fit: int = 600,
    n_shuffles: int = 10, ridge: float = RIDGE, command: str | None = None,
) -> StudyResult:  # fmt: skip
    """Hold every layer's pictures against other denoisers, an interpolation, a tuned lens, probes and an empty encoder.

    Args:
        setup: The setup, of an encoder of the embedded world.
        asked: Sentences of the world, two or more of each kind.
        readers: Denoisers of other layers, all different; the study runs without, too, and says so.
        n_fit: How many other sentences maps and probes are fitted on.
        n_shuffles: How many probes of shuffled labels stand beside each.
        ridge: Of the tuned lens; see :class:`vit_lens.studies.whose.Translators`.
        command: The command that makes this result again; None where there is none.

    Raises:
        StudyError: The encoder or a prompt is none of the embedded world's, or a reader comes twice.
    """
    names = [one.name for one in readers]
    if len(set(names)) < len(names):
        raise StudyError(f"the denoisers read {', '.join(names)}: give one of each")
    if setup.lexicon is None or any(one.sentence is None for one in asked):
        raise StudyError("study whose needs an encoder and prompts of the embedded world: others' truth is not known")
    if n_shuffles < 1:
        raise StudyError(f"n_shuffles={n_shuffles}: selectivity needs probes of shuffled labels, one at least")
    others = other_sentences(
        n_fit, setup.lexicon, setup.generator(_STREAM, 0), apart_from=[one.prompt for one in asked]
    )  # fmt: skip
    texts = [one.text for one in others]
    translators = Translators.of_folder(setup.out, setup.reader, texts, ridge=ridge)
    drawn = _pictures(setup, asked, translators)
    probed = Probing(reader=setup.reader, sentences=others, n_shuffles=n_shuffles).answers(
        asked, setup.generator(_STREAM, 1)
    )  # fmt: skip
    probes = {f"probe, {position}": probed[position] for position in POSITIONS}
    scores, rates_of = _of_readers(setup, asked, readers, drawn[LENS])
    scores += _of_curves(drawn, probes)
    tables = {
        "curves": [row for name, found in {**drawn, **probes}.items() for row in curves.curve_rows(name, found)],
        "order": curves.order_rows(drawn[LENS], drawn[BETWEEN]),
        "interpolation": _interpolated(setup, asked),
    }
    return StudyResult(
        study="whose", setup=setup.describe(), scores=tuple(scores), command=command,
        options={
            "readers": names, "kinds": {kind: len(found.prompts) for kind, found in drawn[LENS].items()},
            "n_fit": n_fit, "n_shuffles": n_shuffles, "ridge": ridge, "penalty": PENALTY,
        },
        tables=tables | ({"rates": rates_of} if readers else {}), notes=(RULE if readers else NO_READERS, *NOTES),
    )  # fmt: skip


def _pictures(setup: TextSetup, asked: Sequence[Asked], translators: Translators) -> dict[str, Kinds]:
    """Return what the judge says of every reading that is drawn by the own denoiser."""
    without = replace(setup, reader=with_random_weights(setup.reader, seed=setup.seed))
    return {
        LENS: setup.answers("layers", asked, controls=("shuffled",)),
        BETWEEN: setup.answers("interpolation", asked, lens=InterpolationLens()),
        TUNED: setup.answers("tuned", asked, lens=TunedLens(translators=translators)),
        SHUFFLED: setup.answers("layers", asked, controls=("shuffled",), control="shuffled"),
        UNTRAINED: without.answers("random-weights", asked),
    }


def _of_readers(
    setup: TextSetup, asked: Sequence[Asked], readers: Sequence[LayerReader], lens: Kinds
) -> tuple[list[Score], list[dict[str, Any]]]:
    scores, rows, own = [], [], with_both_orders(lens, asked)
    for reader in readers:
        shown = with_both_orders(reader.answers(setup, asked), asked)
        scores += rates(reader.name, shown, own)
        rows += rate_rows(reader.name, shown, own)
    return scores, rows


def _of_curves(drawn: Mapping[str, Kinds], probes: Mapping[str, Kinds]) -> Iterator[Score]:
    own = drawn[LENS]
    for name in (BETWEEN, TUNED):
        yield from curves.later(own, drawn[name], name, "decoded")
    for name, found in probes.items():
        yield from curves.later(own, found, name, "embedding")
    yield from curves.order_of_parts(own, drawn[BETWEEN])
    for level, readings in (("decoded", drawn), ("embedding", probes)):
        for name, found in readings.items():
            yield from curves.of_reading(name, level, found)


@torch.no_grad()
def _interpolated(setup: TextSetup, asked: Sequence[Asked]) -> list[dict[str, Any]]:
    """Give each layer: its cosine to the last, how far on the way that is, and where it is farther than the first."""
    lens, found = InterpolationLens(), {}
    for start in range(0, len(asked), _BATCH):
        run = TextRun.of(setup.reader, [one.prompt for one in asked[start : start + _BATCH]])
        name = lens.moved_in(run).encoder
        for layer in range(run.tower(name).cfg.n_layers + 1):
            parts = lens.shares(run, run.residual(name, layer))
            found.setdefault(layer, []).append([part.double().flatten() for part in parts])
    rows = []
    for layer, some in found.items():
        share, is_farther, cosine = (torch.cat(parts) for parts in zip(*some, strict=True))
        rows.append(
            {
                "layer": layer, "site": site_of(layer), "cosine to the last": float(cosine.mean()),
                "share of the way": float(share.mean()), "share of positions farther than the first":
                float(is_farther.mean()), "n positions": len(share),
            }
        )  # fmt: skip
    return rows
