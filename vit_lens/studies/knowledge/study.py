"""Knowledge: rare names against common ones in pictures, and the layers that know what names mean."""

__all__ = ["AVERAGED", "COMMON", "HEADLINES", "RARE", "knowledge_study"]

from collections.abc import Sequence
from typing import Any

from vit_lens.errors import StudyError, nearest
from vit_lens.studies.asked import Asked
from vit_lens.studies.findings import StudyResult
from vit_lens.studies.knowledge.concentration import CONCENTRATION, concentration_rows, concentration_scores
from vit_lens.studies.knowledge.effects import Traced, trace
from vit_lens.studies.knowledge.frequency import LATER, frequency_rows, frequency_scores
from vit_lens.studies.knowledge.name_runs import NameRuns
from vit_lens.studies.knowledge.planted_table import plant_table
from vit_lens.studies.text_setup import TextSetup

COMMON, RARE = "common name", "rare name"
HEADLINES = (LATER, CONCENTRATION)
AVERAGED = ("curves", "effects", "states", "heads")
_PARTNERS, _SHUFFLED, _PERMUTED = 21, 22, 23  # streams of random numbers
_NOTES = (
    "One encoder is described; the protocol infers over six or more (vit-lens study pool).",
    "Half-rise: the layer at which accuracy, less how often another name's part is seen at that layer, first has half "
    "of its own last value. Positive: rare names are later. Null: which names are called rare is permuted. Intervals: "
    "jackknife over names.",
    "Effects of layers are read off the text encoder alone, without pictures. Outcomes: end, the last state at the end "
    "of the text behind the final norm; whole, all that the denoiser reads. Each name has a partner, a name of as many "
    "tokens and another meaning. Restored: an activation of the name's run is put into its partner's run; the effect "
    "is <patched - partner, name - partner> / |name - partner|^2, 0 for the partner's state and 1 for the name's. "
    "Removed: 1 less that share for what is left of name - partner where both run without a part. States count by "
    "what one block adds at the end, or takes from the name (causal tracing); attention and MLP are restored alone; "
    "averaged is over the names of one length. Name: from the first to the last position at which prompts of one "
    "length differ. End: the end of the text and what is filled up behind it.",
    "Concentration: the largest effect of a layer as a share of the sum of all positive ones, the whole effect; 1/L is "
    "an even spread. Of a small whole effect it says little. "
    "Null: the layers of each name shuffled, so that none is best for all. Planted table: a copy of the encoder in "
    "which one MLP, a table of keys and values, tells names apart and every other block writes nothing; it says of "
    "these names what the encoder says. What is localised has a concentration near 1 there, at that layer.",
)


def knowledge_study(
    setup: TextSetup,
    asked: Sequence[Asked],
    *,
    common: str = COMMON,
    rare: str = RARE,
    plant: Sequence[int] | None = None,
    n_shuffles: int = 200,
    command: str | None = None,
) -> StudyResult:
    """Hold rare names against common ones layer by layer, and find the layers that tell names apart.

    Args:
        setup: The setup.
        asked: The prompts; those of other kinds are left out.
        common: The kind of prompts with common names.
        rare: The kind of prompts with rare names, asked the same.
        plant: The blocks that a table is planted in, one at a time; None takes three, at a quarter, half and three
            quarters of the depth.
        n_shuffles: How many draws each null has.
        command: The command that makes this result again; None where there is none.

    Raises:
        StudyError: A kind has no prompts or is asked something else, there is no block to plant in, no two names are of
            one length, or the encoder is hooked by TransformerLens' bridge.
    """
    names = _names(asked, common, rare)
    # First what takes seconds, and may be refused.
    runs = NameRuns.of_setup(setup, names, setup.generator(_PARTNERS))
    chosen = _chosen(plant, runs.tower.cfg.n_layers)
    own = trace(runs, progress=setup.progress)
    planted: dict[int, Traced] = {}
    notes = _left_out(names, runs)
    for layer in chosen:
        try:
            planted[layer] = trace(plant_table(runs, layer), heads=False, progress=setup.progress)
        except StudyError as error:
            notes.append(f"no positive control: {error}")
    answers = setup.answers("layers", names)
    scores = [
        *frequency_scores(answers[common], answers[rare], setup.generator(_PERMUTED), n_shuffles),
        *concentration_scores(own, planted, setup.generator(_SHUFFLED), n_shuffles),
    ]
    kinds = [names[i].kind for i in runs.kept]
    return StudyResult(
        study="knowledge", setup=setup.describe(), scores=tuple(scores), command=command, notes=(*_NOTES, *notes),
        options={
            "kinds": {kind: len(answers[kind].prompts) for kind in (common, rare)}, "plant": chosen,
            "n_shuffles": n_shuffles,
        },
        tables={
            "curves": [row for kind in (common, rare) for row in frequency_rows(answers[kind])],
            "effects": [
                *concentration_rows(own, kinds, "its own"),
                *(row for k, one in planted.items() for row in concentration_rows(one, kinds, f"table in L{k}")),
            ],
            "states": _state_rows(own), "heads": _head_rows(own),
        },
    )  # fmt: skip


def _names(asked: Sequence[Asked], common: str, rare: str) -> list[Asked]:
    if common == rare:
        raise StudyError(f"common and rare names are both of kind {common!r}; give two kinds")
    by_kind = {kind: [one for one in asked if one.kind == kind] for kind in (common, rare)}
    for kind, some in by_kind.items():
        if not some:
            near = nearest(kind, dict.fromkeys(one.kind for one in asked))
            raise StudyError(f"no prompt is of kind {kind!r}; nearest: {near}. Give --common and --rare")
    first, other = (some[0] for some in by_kind.values())
    if odd := sorted(set(first.parts) ^ set(other.parts)):
        raise StudyError(
            f"{first.prompt!r} and {other.prompt!r} are held against each other, and only one is asked {odd[0]!r}"
        )
    return [one for some in by_kind.values() for one in some]


def _chosen(plant: Sequence[int] | None, n_layers: int) -> list[int]:
    if plant is None:
        return sorted({n_layers // 4, n_layers // 2, 3 * n_layers // 4})
    if wrong := [layer for layer in plant if not 0 <= layer < n_layers]:
        raise StudyError(f"a table in block {wrong[0]}: the encoder has blocks 0 to {n_layers - 1}")
    return sorted(set(plant))


def _left_out(names: Sequence[Asked], runs: NameRuns) -> list[str]:
    n = len(names) - len(runs.kept)
    lost = next((one.prompt for i, one in enumerate(names) if i not in runs.kept), "")
    return [f"{n} names have no partner of their length and are not traced, such as {lost!r}."] if n else []


def _state_rows(traced: Traced) -> list[dict[str, Any]]:
    return [
        {"state": place, "outcome": outcome, "layer": layer, "restored": round(float(value), 6)}
        for (place, outcome), curve in traced.states.items()
        for layer, value in enumerate(curve.mean(0))
    ]


def _head_rows(traced: Traced) -> list[dict[str, Any]]:
    return [
        {"head": f"L{layer}H{head}", "outcome": outcome, "lost": round(float(value), 6)}
        for outcome, lost in traced.heads.items()
        for layer, row in enumerate(lost.mean(0))
        for head, value in enumerate(row)
    ]
