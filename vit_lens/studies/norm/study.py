"""Norm: pictures of every layer under the final norm, without one, and matched in length."""

__all__ = ["AVERAGED", "HEADLINES", "NORMS", "norm_study"]

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from vit_lens.lenses import TextDiffusionLens, TextRun
from vit_lens.studies.asked import Asked
from vit_lens.studies.findings import Score, StudyResult
from vit_lens.studies.layer_answers import LayerAnswers
from vit_lens.studies.layer_statistics import NO_RISE, excess, half_rise
from vit_lens.studies.statistics import jackknife
from vit_lens.studies.text_setup import TextSetup

NORMS = ("format", "final", "match", "none")
"""How a state leaves the encoder, as :class:`vit_lens.TextDiffusionLens` has it."""
MEAN, HALF = "accuracy above mismatched prompts, mean over layers", "half-rise above mismatched prompts"
HEADLINES = (MEAN, HALF)
AVERAGED = ("curves", "lengths")
_NOTES = (
    "format: what the format does with its own layer (of Stable Diffusion the final norm); final: the final norm; "
    "match: each position as long as the layer that is read has it there, then as the format; none: as it is. "
    "A layer norm takes length away, so that of an encoder that ends in one match differs from format by epsilon.",
    "Lengths: the root mean square over positions and prompts of the norm of a state, and its share of that of the "
    "last layer. A denoiser that never saw states of another length answers for what length alone does.",
)


def norm_study(
    setup: TextSetup, asked: Sequence[Asked], *, norms: Sequence[str] = NORMS, command: str | None = None
) -> StudyResult:  # fmt: skip
    """Draw every layer under each norm, and say how often each part is right and how long the states are.

    Args:
        setup: The setup.
        asked: The prompts, two or more of each kind.
        norms: The norms.
        command: The command that makes this result again; None where there is none.

    Raises:
        LensError: There is no such norm.
    """
    lenses = {norm: TextDiffusionLens(norm=norm) for norm in norms}  # pyright: ignore[reportArgumentType]
    scores, rows = [], []
    for norm, lens in lenses.items():
        for kind, found in setup.answers(norm, asked, lens=lens).items():
            for part in found.parts:
                scores += _scores(norm, kind, part, found)
                rows += _rows(norm, kind, part, found)
    return StudyResult(
        study="norm", setup=setup.describe(), scores=tuple(scores), command=command,
        options={"norms": list(norms), "n": len(asked)}, tables={"curves": rows, "lengths": _lengths(setup, asked)},
        notes=_NOTES,
    )  # fmt: skip


def _scores(norm: str, kind: str, part: str, found: LayerAnswers) -> list[Score]:
    right, chance = found.of(part), found.chance(part)
    n, _, layers = right.shape
    return [
        Score(
            measure=measure, reading=f"{norm}; {kind}: {part}", level="decoded", n=n, unit="prompts",
            estimate=jackknife(of, n, most=most, why=NO_RISE),
        )
        for measure, of, most in (
            (MEAN, lambda rows: float(excess(right[rows], chance[rows]).mean()), 1.0),
            (HALF, lambda rows: half_rise(excess(right[rows], chance[rows])), float(layers)),
        )
    ]  # fmt: skip


def _rows(norm: str, kind: str, part: str, found: LayerAnswers) -> list[dict[str, Any]]:
    chance = found.chance(part).mean((0, 1))
    return [
        {
            "norm": norm,
            "kind": kind,
            "part": part,
            "site": site,
            **found.told(part, i),
            "mismatched": round(float(chance[i]), 5),
        }
        for i, site in enumerate(found.sites)
    ]  # fmt: skip


@torch.no_grad()
def _lengths(setup: TextSetup, asked: Sequence[Asked]) -> list[dict[str, Any]]:
    """Give the length of states by layer, and its share of the last layer's."""
    run = TextRun.of(setup.reader, [one.prompt for one in asked])
    reading = TextDiffusionLens().moved_in(run)
    n_layers = run.tower(reading.encoder).cfg.n_layers
    found = [run.residual(reading.encoder, layer).float() for layer in range(n_layers + 1)]
    lengths = np.array([float(state.square().sum(-1).mean().sqrt()) for state in found])
    return [
        {"layer": layer, "length": float(length), "share of the last": float(length / lengths[-1])}
        for layer, length in enumerate(lengths)
    ]
