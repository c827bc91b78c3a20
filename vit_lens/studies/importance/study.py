"""Head importance: is the head whose lens result resembles the input the one that matters, beyond its size?

The first study of Takatsuki et al. 2025 (arXiv 2504.13763), with baselines that need no lens and two nulls beside it.
"""

__all__ = ["HEADLINES", "LENSES", "importance_study"]

from collections.abc import Sequence
from dataclasses import replace

from vit_lens.addresses import Site
from vit_lens.errors import StudyError
from vit_lens.interventions import derangement
from vit_lens.studies.findings import StudyResult
from vit_lens.studies.importance.head_correlations import HeadTables, correlations
from vit_lens.studies.importance.head_effects import total_effects
from vit_lens.studies.importance.head_outputs import check_replaceable
from vit_lens.studies.importance.head_pictures import PictureScores, picture_scores
from vit_lens.studies.importance.head_scores import read_heads
from vit_lens.studies.importance.head_tables import effects_table, heads_table
from vit_lens.studies.study_setup import StudySetup
from vit_lens.studies.untrained import with_random_weights
from vit_lens.studies.usual_lenses import DECODED

LENSES = (
    "diffusion", "dsl:alpha=2", "dsl:alpha=5", "dsl:alpha=10", "dsl:alpha=100", "dsl:share=0.25", "dsl:share=0.5",
    "dsl:share=1", "dsl:share=2", "dsl-mean:alpha=1", "dsl-mean:alpha=5", "dsl-mean:alpha=10", "dsl-mean:share=1",
)  # fmt: skip
"""Lenses at the embedding level."""

_WITH = "with total effect, mean ablation"
HEADLINES = (
    f"no lens {_WITH}", f"centred similarity {_WITH}", f"centred similarity {_WITH}, given the norms",
    f"centred similarity, judge {_WITH}", f"centred similarity, judge {_WITH}, given the norms",
)  # fmt: skip
"""The measures that the protocol decides by."""

_MIN_IMAGES = 3  # to leave one out and still have a mean over others
_DONORS, _RESAMPLES, _WEIGHTS = 24, 25, 26  # streams of random numbers, apart from those of other rooms
_NOTES = (
    "Spearman's correlations over heads of means over images; intervals are over images, for these heads and this "
    "encoder. The unit of inference is the encoder.",
    "Equal-norm placebo: what each head writes (for mean-anchored lenses and baselines, its deviation from the mean "
    "over anchor images) replaced by a random direction of the same norm, importance kept real: what size alone gives.",
    "Covariance-matched placebo: the same with a random direction that has the head's covariance over anchor images, "
    "so that it keeps which dimensions the head writes to; same head, other image: what it writes for another test "
    "image. A leak index is over images, and missing where the interval of its denominator includes 0.",
    "No content: every part of the model writes its mean and a random direction of its measured norm, and importance "
    "(direct effect) is computed from them, for total effects too: what is built in. Only what exceeds both nulls is "
    "the lens's. Of pictures there is no such null; hold them against that of their lens before decoding.",
    "Decoded scores are of the first n_decoded test images, held against effects and norms over all of them.",
    "Random weights: the same architecture, every weight drawn from a normal distribution with its tensor's mean and "
    "spread.",
)


def importance_study(
    setup: StudySetup,
    *,
    n_decoded: int = 12,
    decoded: Sequence[str] = DECODED,
    draws: int = 20,
    picture_draws: int = 1,
    untrained: bool = True,
    command: str | None = None,
) -> StudyResult:
    """Correlate each head's lens score with what ablating it does, over all heads of the blocks.

    Scores: raw and centred similarity of the lens embedding to the input, and of its pictures where the setup has
    a decoder; baselines that need no lens. Effects: total and direct, of mean, resample and zero ablation.

    Args:
        setup: The setup, whose lenses are scored at the embedding level.
        n_decoded: How many of the test images, from the first on, are drawn; unused without a decoder.
        decoded: Spellings of the setup's lenses whose pictures are drawn.
        draws: How many draws each null has at the embedding level.
        picture_draws: How many draws the equal-norm placebo has among the pictures.
        untrained: Whether a model with random weights is scored beside it, at the embedding level.
        command: The command that makes the result again; None where there is none.

    Raises:
        StudyError: There are too few images, too few draws, or a lens to decode is not one of the setup's; or a lens
            reads something else than what heads write at the read-out rows.
    """
    setup.accept("importance", pooled_only=True)
    for lens in setup.lenses.values():
        check_replaceable(lens)
    _check(setup, n_decoded, decoded, draws, picture_draws)
    tables = _tables(setup, draws, "lenses")
    if setup.pictures is not None:
        found = picture_scores(setup, tables.heads, decoded, n=n_decoded, draws=picture_draws)
        tables = replace(tables, pictures=found)
    if untrained:
        bare = with_random_weights(setup, seed=setup.number(_WEIGHTS))
        tables = replace(tables, untrained=_tables(bare, 0, "random weights: lenses"))
    return StudyResult(
        study="importance", setup=setup.describe(),
        options={
            "n_decoded": n_decoded if setup.pictures else 0, "decoded": list(decoded) if setup.pictures else [],
            "draws": draws, "picture_draws": picture_draws if setup.pictures else 0, "untrained": untrained,
        },
        scores=tuple(correlations(tables, seed=setup.number(_RESAMPLES))),
        tables={
            "heads": heads_table(tables), "effects": effects_table(tables, seed=setup.number(_RESAMPLES))
        },
        notes=_NOTES, command=command,
    )  # fmt: skip


def _tables(setup: StudySetup, draws: int, label: str) -> HeadTables:
    heads = [head for head in Site.heads(setup.model) if not head.is_pool]
    donors = derangement(len(setup.pixels), seed=setup.number(_DONORS))
    scores = read_heads(setup, heads, donors, draws=draws, label=label)
    total = total_effects(
        setup.model, setup.pixels, donors, setup.ablation, heads, folder=setup.out / "effects",
        label=label.replace("lenses", "total effects"), progress=setup.progress,
    )  # fmt: skip
    effects = {effect: values.double().numpy() for effect, values in total.items()} | scores.direct
    return HeadTables(heads=heads, effects=effects, scores=scores, pictures=PictureScores())


def _check(setup: StudySetup, n_decoded: int, decoded: Sequence[str], draws: int, picture_draws: int) -> None:
    n = len(setup.pixels)
    if n < _MIN_IMAGES:
        raise StudyError(f"{n} test images: resampling and centring need others; give {_MIN_IMAGES} or more (--n)")
    if draws < 1 or picture_draws < 1:
        raise StudyError(f"draws={draws}, picture_draws={picture_draws}: a null needs at least one draw")
    if setup.pictures is None:
        return
    if not decoded:
        raise StudyError("no lens to decode: name one of the setup's (--decode), or give no decoder (--decoder none)")
    if not _MIN_IMAGES <= n_decoded <= n:
        raise StudyError(f"n_decoded={n_decoded}: pictures are drawn of {_MIN_IMAGES} to {n} (all) of the test images")
    if missing := [spec for spec in decoded if spec not in setup.lenses]:
        raise StudyError(
            f"cannot decode {', '.join(missing)}: the setup has the lenses {', '.join(setup.lenses)}; add it there "
            "(--lens), or leave it out of decoded= (--decode)"
        )
