"""The command `vit-lens bench`."""

__all__ = ["mount"]

from pathlib import Path
from typing import Annotated

import typer

from vit_lens.cli import flags, intake
from vit_lens.errors import StudyError

_EXAMPLES = """Examples:

vit-lens bench --lens mypkg:MyLens --lens diffusion --plant-seed 1

vit-lens bench --dictionary sae.safetensors --steer mypkg:steer
"""


def mount(app: typer.Typer) -> None:
    """Add ``bench``."""
    app.command(epilog=_EXAMPLES)(bench)


def bench(
    lens: flags.Lenses = None,
    dictionary: flags.Dictionaries = None,
    steer: Annotated[
        list[str] | None,
        typer.Option(
            help="A steering function (model, target, strength) -> hooks: mypkg:function, which runs the code of that "
            "module; or one of ours, such as mean-difference. Repeat for more."
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--ours", help="Ask all of our own candidates, losers included.")] = False,
    plant_seed: Annotated[
        list[int] | None, typer.Option(min=0, help="Draws the plants; repeat for more of them. Default: 0.")
    ] = None,
    n_plants: Annotated[int, typer.Option(min=1, help="Plants of each task for each seed.")] = 6,
    out: flags.Out = Path("vit-lens-bench"),
) -> None:
    """Plant what is known, and ask a lens, dictionary or steering function of yours to find it.

    A name such as mypkg:MyLens imports that module from the current folder, or wherever Python finds it: this runs its
    code. The exit status is 1 if a candidate fails.
    """
    from vit_lens.bench.candidates import KINDS, named_candidate
    from vit_lens.bench.running import all_candidates, run_bench

    asked = [
        named_candidate(kind, spec)
        for kind, specs in zip(KINDS, (flags.split_list(lens or ()), dictionary, steer), strict=True)
        for spec in specs or ()
    ]
    if everything:
        known = {(one.kind, one.name) for one in asked}
        asked += [one for one in all_candidates() if (one.kind, one.name) not in known]
    if not asked:
        raise StudyError("nothing to ask: give --lens, --dictionary or --steer, or --ours for our own")
    typer.echo(f"{len(asked)} candidates, seeds {', '.join(map(str, plant_seed or [0]))}", err=True)

    def done(found) -> None:
        last = found.outcomes[-1]
        found.save(out)
        typer.echo(f"{last.name}: {last.error or 'done'} ({last.seconds:.0f} s)", err=True)

    found = run_bench(
        asked, seeds=plant_seed or [0], n_plants=n_plants, command=intake.command_line(), on_done=done
    )  # fmt: skip
    typer.echo(found.table())
    typer.echo(f"\nresult: {out / 'bench.json'}")
    if found.failed:
        raise typer.Exit(1)
