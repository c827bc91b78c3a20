"""Options that had other names: what was typed or written down once goes on to work."""

__all__ = ["OLD_SPELLINGS", "respell"]

from collections.abc import Sequence
from itertools import islice

import typer

_STUDY = {"--seed": "--image-seed", "--noise-seed": "--decoder-seed", "--encoder": "--decoder-encoder"}
_PAPER = {
    "--image": "--images", "--noise-seed": "--decoder-seed", "--encoder": "--decoder-encoder",
    "--seed": "--control-seed --image-seed",
}  # fmt: skip
OLD_SPELLINGS: dict[str, dict[str, str]] = {
    "sweep": {"--seed": "--decoder-seed", "--dtype": "--decoder-dtype", "--encoder": "--decoder-encoder"},
    "readout": {"--means": "--reference-images", "--dtype": "--encoder-dtype"},
    "verify": {"--image": "--images", "--dtype": "--encoder-dtype"},
    "doctor": {
        "--image": "--images", "--encoder": "--decoder-encoder", "--dtype": "--encoder-dtype --decoder-dtype",
    },
    "study content": _STUDY,
    "study importance": _STUDY,
    "study overlay": _STUDY | {"--size": "--scale"},
    "study planted": _STUDY,
    "study faithfulness": _STUDY,
    **{f"paper {figure}": _PAPER for figure in ("fig2", "fig3", "fig4", "fig5")},
    "mini train": {"--seed": "--training-seed"},
    "mini replica": {"--seed": "--training-seed"},
    "mini train-text": {"--seed": "--text-seed"},
}  # fmt: skip
"""For each command: old name, new name. Two new names divide what the old one meant."""


def respell(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of a command line in today's words, and say on the standard error stream which changed."""
    paths = (" ".join(arguments[:length]) for length in (1, 2))
    names = next((OLD_SPELLINGS[path] for path in paths if path in OLD_SPELLINGS), {})
    words, respelt, said = iter(arguments), [], set()
    for word in words:
        old, equals, value = word.partition("=")
        if word == "--":
            return [*respelt, word, *words]
        if old not in names:
            respelt.append(word)
            continue
        given = [value] if equals else [*islice(words, 1)]
        respelt += [part for new in names[old].split() for part in (new, *given)]
        if old not in said:
            typer.echo(f"vit-lens: {old} is {names[old].replace(' ', ' and ')} now", err=True)
        said.add(old)
    return respelt
