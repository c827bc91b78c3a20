"""The program: commands of the main path, and those that mount themselves."""

__all__ = ["app", "main"]

import io
import logging
import sys
import warnings
from importlib import import_module
from itertools import pairwise

import typer

from vit_lens.cli import flags
from vit_lens.cli.dictionaries import dictionaries
from vit_lens.cli.explaining import explain
from vit_lens.cli.jacobians import JACOBIAN_EXAMPLES, jacobian
from vit_lens.cli.maps import MAPS_EXAMPLES, maps
from vit_lens.cli.models import models
from vit_lens.cli.old_words import respell
from vit_lens.cli.patches import PATCHES_EXAMPLES, patches
from vit_lens.cli.readers import READOUT_EXAMPLES, readout
from vit_lens.cli.recording import SWEEP_EXAMPLES, demo, merge, reference, report, sweep
from vit_lens.cli.testing import doctor, verify
from vit_lens.errors import VitLensError

# Wings: the main path runs without them and never imports them. Names rather than entry points, which are read from
# installed metadata and so miss what a source checkout adds.
MOUNTED = ("vit_lens.studies.commands", "vit_lens.mini.training.command", "vit_lens.bench.command")
_INTERRUPTED = 130  # how typer leaves on Ctrl-C
app = typer.Typer(
    name="vit-lens",
    help="See, as a picture, what every part of a CLIP vision transformer contributes.\n\n"
    "Start with `vit-lens demo`: it needs no download.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
EXAMPLES = {
    sweep: SWEEP_EXAMPLES, patches: PATCHES_EXAMPLES, readout: READOUT_EXAMPLES, jacobian: JACOBIAN_EXAMPLES,
    maps: MAPS_EXAMPLES,
}  # fmt: skip
for command in (demo, sweep, patches, maps, report, reference, jacobian, merge, readout, verify, doctor, models):
    app.command(epilog=EXAMPLES.get(command))(flags.grouped(command))
dictionaries.command()(flags.grouped(explain))
app.add_typer(dictionaries, name="dict")
for wing in MOUNTED:
    import_module(wing).mount(app)


def _print_version(wanted: bool | None) -> None:
    if wanted:
        from vit_lens import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: bool | None = typer.Option(
        None, "--version", help="Print the version and stop.", is_eager=True, callback=_print_version
    ),
) -> None:
    """Options before the command."""


_SHOWN: set[str] = set()


def main() -> None:
    """Run the command line; an expected error is one line on the standard error stream, and exit status 2."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    warnings.showwarning = _show_warning
    _SHOWN.clear()
    for stream in (sys.stdout, sys.stderr):  # names of files are any bytes, and not every terminal shows every letter
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.argv[1:] = respell(sys.argv[1:])
    try:
        _check_words(sys.argv[1:])
        app()
    except VitLensError as error:
        typer.secho(f"vit-lens: {error}", err=True, fg=typer.colors.RED)
        sys.exit(2)
    except OSError as error:  # unreadable or full: what is in the way is outside of the program
        where = f" ({error.filename})" if error.filename else ""
        typer.secho(f"vit-lens: {error.strerror or error}{where}", err=True, fg=typer.colors.RED)
        sys.exit(2)
    except (SystemExit, KeyboardInterrupt) as stop:
        if isinstance(stop, SystemExit) and stop.code != _INTERRUPTED:
            raise
        typer.secho("vit-lens: interrupted; run the same command again to go on", err=True)
        sys.exit(_INTERRUPTED)


def _check_words(words: list[str]) -> None:
    """Refuse what a shell makes of a variable that is not set: an empty path would be this folder."""
    for before, word in pairwise(["the program's name", *words]):
        is_cut = word.startswith("--") and word.endswith("=") and word != "--prompts="
        if is_cut or (not word and before != "--prompts"):
            where = word if is_cut else f"behind {before}"
            raise VitLensError(
                f"an argument is empty ({where}): a variable that is not set? Leave an option out for what is usual; "
                "'.' is this folder"
            )


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    if str(message) in _SHOWN:  # one for every image, from the same words
        return
    _SHOWN.add(str(message))
    typer.secho(f"vit-lens: warning: {message}", err=True, fg=typer.colors.YELLOW)
