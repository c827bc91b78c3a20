"""The command `vit-lens study order`."""

__all__ = ["order"]

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from vit_lens.cli import flags, intake
from vit_lens.errors import StudyError
from vit_lens.studies import command_parts as parts
from vit_lens.studies.text_parts import TextStudy


def order(
    study: TextStudy,
    n: Annotated[int, parts.n_tested(2)] = 120,
    captions: Annotated[Path | None, flags.CAPTIONS] = None,
    parser: Annotated[
        str | None,
        typer.Option(
            help="Of --captions: conllu (they are parsed), stanza or spacy, with a model that is here: stanza:FOLDER, "
            "spacy:NAME_OR_FOLDER. Nothing is downloaded."
        ),
    ] = None,
    n_parsed: Annotated[int, typer.Option(min=2, help="Captions that are parsed at most, drawn at random.")] = 20_000,
    out: flags.Out = Path("vit-lens-study-order"),
) -> None:
    """Does an object appear by its place in the sentence, or by its place in the syntax?"""
    if captions is not None:
        _of_captions(study, n, captions, parser, n_parsed, out)
        return
    if parser is not None:
        raise StudyError("--parser goes with --captions; the embedded world knows the syntax of its sentences")
    from vit_lens.studies.order.figures import figures_of
    from vit_lens.studies.order.study import FRONTED, IN_ORDER
    from vit_lens.studies.order.study import order_study as run

    setup, asked = study.open(out, {IN_ORDER: n, FRONTED: n})
    result = run(setup, asked, command=intake.command_line())
    parts.finish(result, out, figures_of(result))


def _of_captions(study: TextStudy, n: int, captions: Path, parser: str | None, n_parsed: int, out: Path) -> None:
    import numpy as np

    from vit_lens.studies.order.captions import captions_order_study
    from vit_lens.studies.order.figures import figures_of
    from vit_lens.studies.order.noun_pairs import ask_of_captions, balanced, noun_pair
    from vit_lens.studies.order.parses import parse_captions

    if study.prompt_table is not None:
        raise StudyError("give --captions or --prompt-table: a table of prompts has no syntax to be read")
    if parser is None:
        raise StudyError("--captions needs --parser: conllu, stanza or spacy")
    parsed = parse_captions(captions, parser, n=n_parsed, seed=study.prompt_seed)
    pairs = [one for one in map(noun_pair, parsed) if one is not None]
    generator = np.random.default_rng([study.prompt_seed, len(pairs)])
    matches = balanced(pairs, n, generator)
    found = Counter(one.kind for one in pairs)
    about = {
        "captions": captions.name, "parser": parser.partition(":")[0], "parsed": len(parsed), "found": dict(found)
    }  # fmt: skip
    typer.echo(f"{len(parsed)} captions parsed; {', '.join(f'{kind}: {k}' for kind, k in found.items())}; "
               f"{len(matches)} of each are matched and drawn")  # fmt: skip
    setup, asked = study.open(out, {}, ask_of_captions(matches, generator))
    result = captions_order_study(setup, asked, matches, about=about, command=intake.command_line())
    parts.finish(result, out, figures_of(result))
