"""The command `vit-lens study decoders`."""

__all__ = ["decoders"]

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from vit_lens.cli import flags, intake
from vit_lens.errors import StudyError
from vit_lens.studies import command_parts as parts
from vit_lens.studies.usual_lenses import LENSES

_SITES = ["heads", "mlp"]


def decoders(
    study: parts.Study,
    images: flags.Images = None,
    reference_images: flags.ReferenceImages = None,
    n: Annotated[int | None, parts.n_tested(1)] = None,
    n_decoded: Annotated[int, parts.n_drawn(1)] = 3,
    out: flags.Out = Path("vit-lens-study-decoders"),
    second_decoder: flags.SecondDecoder = None,
    second_settings: flags.SecondSettings = None,
    decode: parts.Decode = None,
    sites: flags.Sites = _SITES,
    captions_from: parts.CaptionsFrom = None,
) -> None:
    """Do two decoders draw the same of a site, and is that a sign of truth? Needs captions of pairs, as study content.

    By default 24 scenes of the embedded pair's world, 3 of them drawn, with mini and mini-ip.
    """
    from vit_lens.studies.content import find_pairs
    from vit_lens.studies.decoders.study import HEADLINES
    from vit_lens.studies.decoders.study import decoders_study as run
    from vit_lens.studies.score_figures import score_figure

    named = second_decoder or ("mini-ip" if study.decoder == "mini" and study.model == "mini" else None)
    if study.decoder == "none" or named is None:
        raise StudyError("study decoders compares what two decoders draw: give --decoder and --second-decoder")
    pairs, sets = find_pairs(flags.one(images, "--images"), reference_images, n, study.image_seed)
    given = flags.split_list(study.lens or ())
    drawn = parts.decoded(decode, given, study.decoder)
    lenses = list(dict.fromkeys([*(given or LENSES), *drawn]))
    texts = parts.embed_for(study, pairs.captions, captions_from)
    setup = parts.open_setup(study, sets, out, lenses=lenses, judge_captions=pairs.captions, texts=texts)
    if captions_from is not None:  # the user says whose they are
        texts = replace(texts, encoder_id=setup.model.encoder_id)
    own = replace(study, decoder=named, decoder_encoder=None, steps=None, guidance=None)
    decoder, settings = parts.load_drawer(own, setup.model, **intake.read_settings(second_settings))
    second = replace(setup.drawing("decoders"), decoder=decoder, settings=settings)
    result = run(
        setup, second, pairs, texts, sites=flags.split_list(sites), decoded=drawn, n_decoded=n_decoded,
        command=intake.command_line(),
    )  # fmt: skip
    frame = result.frame()
    parts.finish(result, out, {f"decoders-{k}": score_figure(frame, name) for k, name in enumerate(HEADLINES)})
