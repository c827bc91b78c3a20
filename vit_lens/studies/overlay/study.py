"""Overlay study: which lens finds the heads that carry an overlay? (Takatsuki et al. 2025, second study, our reading.)

Heads are ranked by how much their lens result shows the overlay, on selection images; then they are taken away one
after the other on other images, and the order is judged by how well that gives the image without the overlay back.
"""

__all__ = ["overlay_study"]

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vit_lens.addresses import Site
from vit_lens.errors import StudyError
from vit_lens.studies.findings import Score, StudyResult
from vit_lens.studies.overlay.orders import Ranking, by_effects, by_embeddings, by_norms, by_pictures
from vit_lens.studies.overlay.pasting import Overlay
from vit_lens.studies.overlay.ranking import Scenes, compose
from vit_lens.studies.overlay.removal import STEPS, Order, Removal, random_orders
from vit_lens.studies.overlay.scoring import Trial
from vit_lens.studies.statistics import MIN_FOR_INTERVAL
from vit_lens.studies.study_setup import StudySetup
from vit_lens.studies.untrained import with_random_weights
from vit_lens.studies.usual_lenses import DECODED

_PLACEBO = ("dsl-mean:alpha=5",)
_ORDERS, _WEIGHTS = 30, 33  # random streams
_UNTRAINED_SHARE = 5  # of the bases, a control of which few give the direction
_NOTES = (
    "T is the cosine with the image without the overlay minus that with the overlay alone on the mean colour of the "
    "anchor images; a head is taken away by setting it to its mean over images without overlays, at every position.",
    "The interval is over base images, with the orders as they were chosen on the selection images; one encoder.",
    "Greedy is chosen on other images than it is judged by, so an order may pass it by chance.",
)


def overlay_study(
    setup: StudySetup,
    overlays: Sequence[Overlay],
    *,
    n: int = 50,
    decoded: Sequence[str] = DECODED,
    decoded_placebos: Sequence[str] | None = None,
    n_rank: int = 4,
    greedy_steps: int = 16,
    draws: int = 20,
    untrained: bool = True,
    command: str | None = None,
) -> StudyResult:
    """Rank heads on selection images, take them away on ``n`` others, and score the orders.

    The first ``n`` test images are the bases. The others choose the orders: lenses and norms rank heads on the first
    ``n_rank`` of them, effects and greedy, which bound what can be had, on all. None of the setup's images may hold an
    overlay: means over images that hold one put it back.

    Args:
        setup: The setup, with a decoder unless ``decoded`` is empty.
        overlays: Pictures with transparency, each of which is pasted on every image.
        n: How many of the test images, from the first on, are bases.
        decoded: Spellings of the lenses that are ranked by decoded pictures, too.
        decoded_placebos: Those of ``decoded`` that have a decoded placebo: as many pictures again. None takes
            ``dsl-mean:alpha=5``, if it is one.
        n_rank: Selection images on which lenses and norms rank heads; pictures are of these, with and without each
            overlay, at every head.
        greedy_steps: How many heads are chosen greedily; the others follow by their own effect.
        draws: How many random orders there are, and draws of the equal-norm placebo of each lens before decoding.
        untrained: Whether heads are taken away from a model with random weights, too: a control of what is ranked by
            embeddings.
        command: The command that makes the result again; None where there is none.

    Raises:
        StudyError: Too few images, no overlay or two of one name, an overlay that does not fit, an unknown lens, or
            pictures are asked for without a decoder.
    """
    if decoded_placebos is None:
        decoded_placebos = [spec for spec in _PLACEBO if spec in decoded]
    setup.accept("overlay", pooled_only=True)
    _check(setup, overlays, n, n_rank, decoded, decoded_placebos)
    _check_counts(n_rank=n_rank, greedy_steps=greedy_steps, draws=draws)
    bases, chosen = (compose(setup, some, overlays) for some in (setup.images.test[:n], setup.images.test[n:]))
    sites, ranked = Site.heads(setup.model), _first(chosen, n_rank)
    rankings = [
        *by_embeddings(setup, ranked, sites, draws),
        *by_pictures(setup, ranked, sites, decoded, decoded_placebos),
        *by_norms(setup, ranked, sites),
    ]
    trial, rankings = _run(setup, bases, chosen, rankings, greedy_steps, draws)
    scores = [score for ranking in rankings for score in trial.scores(ranking)]
    if untrained:
        bare = with_random_weights(setup, seed=setup.number(_WEIGHTS))
        some = _first(bases, max(MIN_FOR_INTERVAL, n // _UNTRAINED_SHARE))
        scores = _beside(scores, _of_untrained(bare, some, ranked, greedy_steps, draws))
    options = {
        "overlays": [{"name": o.name, "at": o.at, "scale": o.scale, "content": o.content} for o in overlays],
        "n": n, "n_rank": n_rank, "n_select": len(chosen.base), "greedy_steps": greedy_steps, "draws": draws,
        "decoded": list(decoded), "decoded_placebos": list(decoded_placebos), "untrained": untrained,
        "steps": trial.steps,
    }  # fmt: skip
    tables = {"trajectories": trial.trajectories, "heads": _heads(rankings, overlays, sites, trial.greedy)}
    return StudyResult(
        study="overlay", setup=setup.describe(), options=options, scores=tuple(scores), tables=tables, notes=_NOTES,
        command=command,
    )  # fmt: skip


def _run(
    setup: StudySetup, bases: Scenes, chosen: Scenes, rankings: list[Ranking], greedy_steps: int, draws: int
) -> tuple[Trial, list[Ranking]]:
    """Return what measures orders on the bases, and the rankings with those by effects on all selection images."""
    sites = Site.heads(setup.model)
    helper, removal = (
        Removal(setup.model, some, sites, setup.ablation, folder=setup.out / "removed", progress=setup.progress)
        for some in (chosen, bases)
    )
    generator = np.random.default_rng([setup.seed, _ORDERS])
    randoms = random_orders(draws, len(bases.both), len(sites), generator)
    steps = [step for step in STEPS if step <= len(sites)]
    trial = Trial(removal, helper.greedy(greedy_steps), randoms, steps=steps, seed=setup.seed)
    return trial, [*rankings, *by_effects(helper)]


def _of_untrained(setup: StudySetup, bases: Scenes, ranked: Scenes, greedy_steps: int, draws: int) -> list[Score]:
    sites = Site.heads(setup.model)
    rankings = [*by_embeddings(setup, ranked, sites, 0), *by_norms(setup, ranked, sites)]
    trial, rankings = _run(setup, bases, ranked, rankings, greedy_steps, draws)
    return [score for ranking in rankings for score in trial.scores(ranking)]


def _beside(scores: Sequence[Score], untrained: Sequence[Score]) -> list[Score]:
    """Return the scores, those of the untrained encoder as a control of the same ones."""
    known = {(score.measure, score.reading, score.level): score.estimate.value for score in untrained}
    found = []
    for score in scores:
        key = (score.measure, score.reading, score.level)
        controls = {**score.controls, "untrained encoder": known[key]} if key in known else score.controls
        found.append(replace(score, controls=controls))
    return found


def _check(
    setup: StudySetup,
    overlays: Sequence[Overlay],
    n: int,
    n_select: int,
    decoded: Sequence[str],
    decoded_placebos: Sequence[str],
) -> None:
    names = [overlay.name for overlay in overlays]
    if not names or len(set(names)) < len(names):
        raise StudyError(f"overlays {names}: give at least one, each under a name of its own")
    if n < MIN_FOR_INTERVAL or len(setup.images.test) - n < n_select:
        raise StudyError(
            f"{len(setup.images.test)} test images for {n} bases and at least {n_select} others that choose orders; "
            f"give {max(n, MIN_FOR_INTERVAL) + n_select} or more, of which at least {MIN_FOR_INTERVAL} are bases"
        )
    if unknown := [spec for spec in decoded if spec not in setup.lenses]:
        raise StudyError(f"decoded={unknown}: the setup's lenses are {', '.join(setup.lenses)}")
    if unread := [spec for spec in decoded_placebos if spec not in decoded]:
        raise StudyError(f"decoded_placebos={unread}: these are not among decoded={list(decoded)}")
    if decoded:
        setup.drawing("overlay")


def _check_counts(**counts: int) -> None:
    if wrong := {name: count for name, count in counts.items() if count < 1}:
        raise StudyError(f"{', '.join(f'{name}={count}' for name, count in wrong.items())}: give at least 1")


def _first(scenes: Scenes, n: int) -> Scenes:
    return replace(scenes, base=scenes.base[:n], both=scenes.both[:, :n])


def _heads(
    rankings: Sequence[Ranking], overlays: Sequence[Overlay], sites: list[Site], greedy: Order
) -> list[dict[str, Any]]:
    """Return every head's score by every reading, and its place in the greedy order, for each overlay."""
    places = greedy.argsort(axis=1)
    return [
        {"overlay": overlay.name, "site": str(site), "greedy place": int(places[i, j]) + 1}
        | {ranking.name: float(ranking.scores[i, j]) for ranking in rankings}
        for i, overlay in enumerate(overlays)
        for j, site in enumerate(sites)
    ]
