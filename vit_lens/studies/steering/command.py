"""The command `vit-lens study steering`."""

__all__ = ["steering"]

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vit_lens.cli import flags, intake
from vit_lens.errors import StudyError
from vit_lens.studies import command_parts as parts

if TYPE_CHECKING:
    from vit_lens import Dictionary
    from vit_lens.studies.steering.kinds import Kind

_OURS, _INDEX = "vit_lens/", "model_index.json"
_OF_DENOISERS = "mini-flux"
_WINDOW = 4


def steering(
    dictionary: flags.Dictionaries = None,
    model: Annotated[str | None, typer.Option(help=flags.TOWER_NAME)] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(help="A value of the model's world that is steered to, such as red; repeat. Default: all."),
    ] = None,
    n_noises: Annotated[
        int, typer.Option("--n-noises", min=1, help="Noises (image encoders: scenes) that are studied of each target.")
    ] = 24,
    n_chosen: Annotated[
        int, typer.Option("--n-chosen", min=1, help="Noises (image encoders: scenes) that features are chosen on.")
    ] = 12,
    candidates: Annotated[int, typer.Option(min=1, help="Directions of each kind that one is chosen of.")] = 8,
    dose: Annotated[
        list[float] | None,
        typer.Option(help="A strength, in mean token norms; repeat for more. Default: .1, .2, .4, .8."),
    ] = None,
    headline: Annotated[float, typer.Option(help="The dose of everything else than the curve.")] = 0.4,
    window: Annotated[
        int | None, typer.Option(min=1, help="How many steps of a denoiser are steered. Default: 4.")
    ] = None,
    steps: flags.Steps = None,
    decoder: flags.Decoder = "mini",
    judge: parts.JudgeName = "mini",
    prompt_seed: Annotated[int, typer.Option(min=0, help="Of prompts and of everything else at random.")] = 0,
    device: flags.Device = "cpu",
    out: flags.Out = Path("vit-lens-study-steering"),
) -> None:
    """Do features of a dictionary change what a model shows, more than directions that nothing was learnt for?

    Of a denoiser and of a text encoder the picture is judged, of an image encoder the embedding and its picture.
    """
    from vit_lens import Dictionary
    from vit_lens.studies.steering.figures import figures_of, strip_figure
    from vit_lens.studies.steering.study import SteeringSetup, picture_rows
    from vit_lens.studies.steering.study import steering_study as run
    from vit_lens.studies.steering.targets import target_named

    names = dictionary or [_shipped(model)]
    place = flags.torch_device(device)
    found = {name: Dictionary.from_pretrained(name).to(place) for name in names}
    first = next(iter(found.values()))
    name = model or (first.origin.model or _OF_DENOISERS).removeprefix(_OURS)
    own = {"window": window, "decoder": None if decoder == "mini" else decoder}
    own["judge"] = None if judge == "mini" else judge
    kind = _kind(name, first, steps, device, own)
    targets = tuple(dict.fromkeys(target_named(word, kind.targets) for word in target)) if target else kind.targets
    more: dict[str, Any] = {} if dose is None else {"doses": tuple(dose)}
    setup = SteeringSetup(
        kind=kind, dictionaries=found, out=out, targets=targets, n=n_noises, n_chosen=n_chosen,
        n_candidates=candidates, dose=headline, seed=prompt_seed, progress=True, **more,
    )  # fmt: skip
    result = run(setup, command=intake.command_line())
    shown = {one.kind: one for one in reversed(setup.targets)}  # the first of each attribute
    rows = {attribute: picture_rows(setup, one) for attribute, one in shown.items()}
    strips = {
        f"strip-{attribute}": strip_figure(rows[attribute], setup.doses, one)
        for attribute, one in shown.items() if rows[attribute]
    }  # fmt: skip
    parts.finish(result, out, figures_of(result) | strips)


def _shipped(model: str | None) -> str:
    """Return the dictionary that is studied where none is named.

    Raises:
        StudyError: None ships for the model.
    """
    from vit_lens.identity import EMBEDDED_PIPELINES

    if model not in (None, "mini", *EMBEDDED_PIPELINES):
        raise StudyError(f"no dictionary ships for --model {model}: give --dictionary, a file or a folder")
    return f"{model or _OF_DENOISERS}-topk"


def _kind(name: str, first: "Dictionary", steps: int | None, device: str, own: dict[str, Any]) -> "Kind":
    """Load a model, and return what it is to the study: its files say it, and the dictionary's hook point.

    Raises:
        StudyError: It is of no world that is known, or an option is of another kind.
    """
    from vit_lens.identity import EMBEDDED_PIPELINES

    if name not in EMBEDDED_PIPELINES and not (Path(name).expanduser() / _INDEX).is_file():
        _refuse(name, own, "window")
        return _of_images(name, steps, device, own)
    _refuse(name, own, "decoder", "judge")
    if not str(first.origin.site).startswith("blocks."):
        return _of_denoiser(name, steps, device, own)
    _refuse(name, own, "window")
    return _of_texts(name, steps, device)


def _refuse(name: str, own: dict[str, Any], *options: str) -> None:
    if said := [f"--{option}" for option in options if own[option] is not None]:
        raise StudyError(f"{', '.join(said)} would have no effect on a dictionary of this part of {name}; leave it out")


def _pipeline(name: str, steps: int | None, device: str) -> Any:
    from vit_lens import HookedDiffusion

    found = HookedDiffusion.from_pretrained(name, device=flags.torch_device(device))
    found.pipeline.set_progress_bar_config(disable=True)
    found.defaults = {**found.defaults, **flags.known(num_inference_steps=steps)}
    return found


def _of_denoiser(name: str, steps: int | None, device: str, own: dict[str, Any]) -> "Kind":
    from vit_lens.mini import inspection
    from vit_lens.studies.steering.denoisers import Denoisers

    limit = inspection.residual_limit(name, StudyError)
    return Denoisers(pipeline=_pipeline(name, steps, device), limit=limit, window=own["window"] or _WINDOW)


def _of_texts(name: str, steps: int | None, device: str) -> "Kind":
    from vit_lens.decoders import PromptEncoder
    from vit_lens.mini import inspection
    from vit_lens.studies.steering.text_encoders import TextEncoders

    limit = inspection.residual_limit(name, StudyError)
    reader = PromptEncoder.from_pretrained(name, device=flags.torch_device(device))
    return TextEncoders(reader=reader, pipeline=_pipeline(name, steps, device), limit=limit)


def _of_images(name: str, steps: int | None, device: str, own: dict[str, Any]) -> "Kind":
    from vit_lens.mini import JUDGE
    from vit_lens.studies.seen_pictures import Judge
    from vit_lens.studies.steering.image_encoders import ImageEncoders, captions

    pair = flags.Pair(model=name, decoder=own["decoder"] or "mini", device=device, steps=steps)
    draws, reads = pair.decoder != "none", own["judge"] != "none"
    if not draws:
        intake.check_drawn("none", steps=steps, judge=own["judge"])
    model, texts = pair.load().requires_grad_(False), intake.embed_captions(captions(), pair)
    texts.check(model, other_encoder=True)
    if not draws or not reads:
        return ImageEncoders(encoder=model, texts=texts)
    drawer, settings = parts.load_drawer(pair, model)
    tower = flags.Tower(model=str(JUDGE) if own["judge"] is None else own["judge"], device=device)
    judge = Judge(tower.load().requires_grad_(False), intake.embed_captions(captions(), tower))
    return ImageEncoders(
        encoder=model, texts=texts, decoder=drawer, settings=settings, judge=judge
    )  # fmt: skip
