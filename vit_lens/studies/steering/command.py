"""The command `vit-lens study steering`."""

__all__ = ["steering"]

from pathlib import Path
from typing import Annotated, Any

import typer

from vit_lens.cli import flags, intake
from vit_lens.errors import StudyError
from vit_lens.studies import command_parts as parts


def steering(
    dictionary: flags.Dictionaries = None,
    model: flags.Model = "mini-flux",
    target: Annotated[
        list[str] | None,
        typer.Option(help="A colour, texture or shape that is steered to; repeat for more. Default: all 16."),
    ] = None,
    n_noises: Annotated[int, typer.Option("--n-noises", min=1, help="Noises that are studied, for each target.")] = 24,
    n_chosen: Annotated[int, typer.Option("--n-chosen", min=1, help="Noises that features are chosen on.")] = 12,
    candidates: Annotated[int, typer.Option(min=1, help="Directions of each kind that one is chosen of.")] = 8,
    dose: Annotated[
        list[float] | None,
        typer.Option(help="A strength, in mean token norms; repeat for more. Default: .1, .2, .4, .8."),
    ] = None,
    headline: Annotated[float, typer.Option(help="The dose of everything else than the curve.")] = 0.4,
    window: Annotated[int, typer.Option(min=1, help="How many steps are steered.")] = 4,
    steps: flags.Steps = None,
    prompt_seed: Annotated[int, typer.Option(min=0, help="Of prompts and of everything else at random.")] = 0,
    device: flags.Device = "cpu",
    out: flags.Out = Path("vit-lens-study-steering"),
) -> None:
    """Do features of a dictionary change what a picture shows, more than directions that nothing was learnt for?"""
    from vit_lens import Dictionary, HookedDiffusion
    from vit_lens.studies.steering.figures import figures_of, strip_figure
    from vit_lens.studies.steering.study import SteeringSetup, picture_rows
    from vit_lens.studies.steering.study import steering_study as run
    from vit_lens.studies.steering.targets import TARGETS, target_named

    limit = _limit(model)
    found = HookedDiffusion.from_pretrained(model, device=flags.torch_device(device))
    found.pipeline.set_progress_bar_config(disable=True)
    found.defaults = {**found.defaults, **flags.known(num_inference_steps=steps)}
    names = dictionary or ["mini-flux-topk"]
    more: dict[str, Any] = {} if dose is None else {"doses": tuple(dose)}
    setup = SteeringSetup(
        model=found, dictionaries={name: Dictionary.from_pretrained(name).to(device) for name in names}, limit=limit,
        out=out, targets=tuple(dict.fromkeys(map(target_named, target))) if target else TARGETS, n=n_noises,
        n_chosen=n_chosen, n_candidates=candidates, dose=headline, window=window, seed=prompt_seed, progress=True,
        **more,
    )  # fmt: skip
    result = run(setup, command=intake.command_line())
    shown = {one.kind: one for one in reversed(setup.targets)}  # the first of each kind
    strips = {f"strip-{kind}": strip_figure(picture_rows(setup, one), setup.doses, one) for kind, one in shown.items()}
    parts.finish(result, out, figures_of(result) | strips)


def _limit(model: str) -> float:
    """Return the residual above which a picture of a model of the embedded world is no scene.

    Raises:
        StudyError: It is none of these.
    """
    from vit_lens.files import read_json
    from vit_lens.identity import EMBEDDED_PIPELINES

    path = EMBEDDED_PIPELINES.get(model, Path(model).expanduser()) / "metrics.json"
    advice = "give mini-flux, mini-sd, or a folder that `vit-lens mini train-flux` made"
    limit = read_json(path, StudyError, advice).get("residual_limit")
    if not isinstance(limit, float):
        raise StudyError(f"{path} says no residual_limit; {advice}")
    return limit
