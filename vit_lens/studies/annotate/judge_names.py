"""Judges as the command line spells them."""

__all__ = ["named_judge"]

from typing import TYPE_CHECKING

from vit_lens.errors import StudyError

if TYPE_CHECKING:
    from vit_lens.studies.annotate.judging import PictureJudge


def named_judge(name: str, device: str = "cpu") -> "PictureJudge":
    """Load a judge.

    Args:
        name: ``exact`` or ``exact:SEED`` (of the embedded world), ``clip:NAME``, ``vqa:DIR``.
        device: Where it runs.

    Raises:
        StudyError: There is no such judge.
        CheckpointError: Its weights cannot be loaded.

    >>> from vit_lens.studies import annotate
    >>> annotate.named_judge("exact:3").name
    'exact:3'
    """
    from vit_lens.cli import flags, intake
    from vit_lens.studies.annotate.judge_clip import ClipJudge
    from vit_lens.studies.annotate.judge_exact import ExactJudge
    from vit_lens.studies.annotate.judge_vqa import VqaJudge

    kind, _, what = name.partition(":")
    if kind == "exact" and (not what or what.isdecimal()):
        return ExactJudge(int(what or 0))
    if kind == "clip" and what:
        tower = flags.Tower(model=what, device=device)
        return ClipJudge(
            tower.load().requires_grad_(False), lambda captions: intake.embed_captions(captions, tower), name
        )
    if kind == "vqa" and what:
        return VqaJudge.load(what, device=flags.torch_device(device))
    raise StudyError(f"--judge {name!r}; expected exact, exact:SEED, clip:NAME or vqa:DIR")
