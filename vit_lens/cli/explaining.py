"""The command `vit-lens dict explain`: what features fire on, in words, and whether that holds."""

__all__ = ["explain"]

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vit_lens.cli import flags, intake
from vit_lens.cli.dictionaries import own_folder, refuse_foreign
from vit_lens.errors import ExplanationError, nearest

if TYPE_CHECKING:
    from vit_lens.explaining import AttributeOracle, EndpointVLM, Explanations, PipelineVLM

_ASIDE = 0.2  # of the images, which neither explain nor test: what controls are made of
_KINDS = ("oracle", "vlm", "endpoint")


def explain(
    dictionary: Annotated[
        str, typer.Argument(metavar="DICTIONARY", help="A dictionary: mini-topk, a Hub id, a file or its folder.")
    ],
    out: flags.Out,
    tower: flags.Tower,
    paths: flags.ImagePaths = None,
    images: flags.Images = None,
    protocol: Annotated[
        Literal["mended", "paper"],
        typer.Option(help="mended: tested on images that did not explain. paper: as published, on the same ones."),
    ] = "mended",
    explainer: Annotated[
        str,
        typer.Option(
            help="Who explains and judges: oracle (of the embedded world, exact), vlm:DIR (a folder with an "
            "image-text-to-text model of transformers), endpoint:MODEL (by `pip install 'vit-lens[vlm]'`, at "
            "OPENAI_BASE_URL or --base-url; pictures are sent there)."
        ),
    ] = "oracle",
    base_url: Annotated[
        str | None, typer.Option(help="Where the endpoint of --explainer is. Default: the environment's.")
    ] = None,
    feature: Annotated[
        list[int] | None, typer.Option("--feature", min=0, help="A feature by its number; repeat for more.")
    ] = None,
    units: Annotated[int, typer.Option(min=1, help="Units of each kind that are explained at most.")] = 512,
    least: Annotated[int, typer.Option(min=10, help="Images of each half on which a unit has to fire.")] = 40,
    beside: Annotated[
        list[str] | None,
        typer.Option(
            help="What is explained beside it: untrained, 'random directions', PCA, 'data points', neurons, or none; "
            "repeat for more. Default: all."
        ),
    ] = None,
    scenes: Annotated[
        int, typer.Option(min=50, help="Scenes of the embedded world, where it gives the images.")
    ] = 5000,
    explaining_seed: Annotated[int, typer.Option(min=0, help="Of scenes, halves, negatives and controls.")] = 0,
) -> None:
    """Say what the features of a dictionary fire on, and test it, beside units that were not learnt.

    Without images, mini reads scenes of its own world. Run it again to go on after an interruption: what a model has
    answered is kept.
    """
    from vit_lens import ActivationSource, Dictionary
    from vit_lens.explaining import Halves, Units, units_beside
    from vit_lens.explaining import explain as run
    from vit_lens.files import make_directory
    from vit_lens.identity import fingerprint
    from vit_lens.images import to_display

    refuse_foreign(out)
    _spelled(explainer)
    if base_url is not None and not explainer.startswith("endpoint:"):
        raise ExplanationError(f"--base-url would have no effect: --explainer {explainer} asks no endpoint")
    found, model = Dictionary.from_pretrained(dictionary), tower.load().requires_grad_(False)
    site = found.check(model)
    if found.origin.tokens != "patches":
        raise ExplanationError(
            f"{dictionary} is of tokens {found.origin.tokens!r}; explain reads what features do on patches of images"
        )
    mlp = f"{site.rpartition('.')[0]}.mlp.hook_post"
    if mlp not in model.hook_dict:
        if "neurons" in (beside or ()):
            raise ExplanationError(f"--beside neurons: {site} is in no block with an MLP; leave it out")
        typer.echo(f"neurons are left out: {site} is in no block with an MLP", err=True)
    oracle, given, names_of = _images(explainer, tower, paths, images, scenes, explaining_seed)
    shown = to_display(given, model.spec())
    read: dict[str, Any] = {"tokens": "patches", "stream": found.origin.stream, "seed": explaining_seed}
    whole = ActivationSource.of_model(model, shown, site, **read)
    kept, aside = whole.split(_ASIDE)
    own, rest = ([shown[i] for i in part.inputs] for part in (kept, aside))
    source, train = (ActivationSource.of_model(model, some, site, **read) for some in (own, rest))
    features = Units.of_dictionary(found, source)
    wanted = None if feature is None else [features.unit(one) for one in feature]
    make_directory(out)
    own_folder(out, {
        "command": "explain", "dictionary": fingerprint({"W_dec": found.W_dec}), "images": whole.content,
        "protocol": protocol,
        "explainer": explainer, "features": feature, "units": units, "least": least, "beside": beside,
        "explaining_seed": explaining_seed,
    })  # fmt: skip
    who = oracle or _model(explainer, base_url, tower.device, out)
    neurons = ActivationSource.of_model(model, own, mlp, tokens="patches") if mlp in model.hook_dict else None
    names = {} if beside is None else {"names": [name for name in beside if name != "none"]}
    against = units_beside(
        found, source, train, inputs=Halves.of(len(own), seed=explaining_seed).explain, neurons=neurons, model=model,
        seed=explaining_seed, **names,
    )  # fmt: skip
    results = run(
        [features, *against], own, who, protocol=protocol, features=wanted, n=units, least=least,
        seed=explaining_seed, grid=model.cfg.grid, progress=True,
    )  # fmt: skip
    _write(replace(results, images=tuple(names_of[i] for i in kept.inputs)), out)


def _spelled(explainer: str) -> tuple[str, str]:
    kind, _, what = explainer.partition(":")
    if kind not in _KINDS or (kind == "oracle") == bool(what):
        raise ExplanationError(
            f"--explainer {explainer}: expected oracle, vlm:DIR or endpoint:MODEL; nearest: {nearest(kind, _KINDS)}"
        )
    return kind, what


def _images(
    explainer: str, tower: flags.Tower, paths: list[Path] | None, images: list[Path] | None, scenes: int, seed: int
) -> "tuple[AttributeOracle | None, list[Any], list[str]]":
    """Return the oracle, where it is asked for, the images, and what they are called."""
    from vit_lens.explaining import AttributeOracle
    from vit_lens.mini import world

    if paths or images:
        if explainer == "oracle":
            raise ExplanationError(
                "--explainer oracle knows the scenes of the embedded world alone, and images were given: leave them "
                "out, or take vlm:DIR or endpoint:MODEL"
            )
        found = list(intake.find_given(paths, images))
        return None, found, list(map(str, found))
    if tower.model != "mini" and explainer != "oracle":
        list(intake.find_given(paths, images))  # which says what is missing
    typer.echo(f"no images were given: {scenes} scenes of mini's own world")
    oracle = AttributeOracle.of_world(scenes, seed=seed)
    names = [world.caption(scene) for scene in oracle.scenes]
    return (oracle if explainer == "oracle" else None), oracle.pictures, names


def _model(explainer: str, base_url: str | None, device: str, out: Path) -> "PipelineVLM | EndpointVLM":
    from vit_lens.explaining import EndpointVLM, PipelineVLM, Replies

    kind, what = _spelled(explainer)
    replies = Replies(out / "replies.jsonl")
    if kind == "vlm":
        return PipelineVLM.load(what, device=flags.torch_device(device), replies=replies)
    return EndpointVLM(what, base_url, replies=replies)


def _write(results: "Explanations", out: Path) -> None:
    from vit_lens.figures import explained_scores, save
    from vit_lens.files import write_atomic
    from vit_lens.records import csv_bytes

    path = results.save(out / "explanations.json")
    write_atomic(out / "explanations.csv", csv_bytes(results.to_frame()))
    kinds = [kind for kind in results.kinds if results.counts()[kind]["explained"]]
    first, *others = kinds
    said = [f"{results.minus(first, other)} against {other}" for other in others]
    finding = f"{first}: {results.estimate(first)}, n = {results.counts()[first]['explained']} units"
    finding += f"; {', '.join(said[:2])}" if said else ""
    figure = explained_scores(
        {kind: results.estimate(kind) for kind in kinds}, {kind: results.estimate(kind, "shuffled") for kind in kinds},
        {kind: results.counts()[kind]["explained"] for kind in kinds}, finding=finding,
        said="balanced accuracy of the judge" if results.protocol == "mended" else "mean of s, and of 1 - s",
    )  # fmt: skip
    page = save(figure, out / "scores.html")
    typer.echo(results)
    for other in others:
        typer.echo(f"{first} minus {other}: {results.minus(first, other)}")
    typer.echo(f"explanations: {path}\nfigure: {page}")
