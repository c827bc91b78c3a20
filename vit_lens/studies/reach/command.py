"""The command `vit-lens study reach`."""

__all__ = ["reach"]

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from vit_lens.cli import flags, intake
from vit_lens.errors import StudyError
from vit_lens.studies import command_parts as parts

_LENSES = ("diffusion", "dsl-mean:alpha=5", "counterfactual:share=0.5", "jacobian:alpha=5", "jacobian:share=0.5")
_SITES = ["mlp"]


def reach(
    study: parts.Study,
    images: flags.Images = None,
    reference_images: flags.ReferenceImages = None,
    n: Annotated[int | None, parts.n_tested(1)] = None,
    out: flags.Out = Path("vit-lens-study-reach"),
    sites: flags.Sites = _SITES,
    captions_from: parts.CaptionsFrom = None,
) -> None:
    """Does a lens see what a site does through later layers? Needs captions of pairs, as study content; no decoder.

    By default 24 scenes of the embedded pair's world, or all of the table of --images.
    """
    from vit_lens.studies.content import find_pairs
    from vit_lens.studies.reach.study import HEADLINES
    from vit_lens.studies.reach.study import reach_study as run
    from vit_lens.studies.score_figures import score_figure

    if study.decoder not in ("mini", "none"):
        raise StudyError(f"--decoder {study.decoder}: study reach is about embeddings and draws nothing; leave it out")
    pairs, sets = find_pairs(flags.one(images, "--images"), reference_images, n, study.image_seed)
    texts = parts.embed_for(study, pairs.captions, captions_from)
    bare = replace(study, decoder="none")
    setup = parts.open_setup(bare, sets, out, lenses=flags.split_list(study.lens or ()) or _LENSES, texts=texts)
    if captions_from is not None:  # the user says whose they are
        texts = replace(texts, encoder_id=setup.model.encoder_id)
    result = run(setup, pairs, texts, sites=flags.split_list(sites), command=intake.command_line())
    frame = result.frame()
    known = [name for name in HEADLINES if name in set(frame["measure"])]
    figures = {f"reach-{k}": score_figure(frame, name) for k, name in enumerate(known)}
    parts.finish(result, out, figures)
