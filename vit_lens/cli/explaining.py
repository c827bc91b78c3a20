"""The command `vit-lens dict explain`: what features fire on, in words, and whether that holds."""

__all__ = ["explain"]

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vit_lens.cli import flags
from vit_lens.cli.dictionaries import own_folder, refuse_foreign
from vit_lens.cli.dictionary_inputs import Reads
from vit_lens.cli.explaining_inputs import of_model
from vit_lens.cli.feature_pages import draws_of, write_pages
from vit_lens.errors import ExplanationError, nearest

if TYPE_CHECKING:
    from vit_lens.explaining import EndpointVLM, Explanations, PipelineVLM

_KINDS = ("oracle", "vlm", "endpoint")


def explain(
    dictionary: Annotated[
        str, typer.Argument(metavar="DICTIONARY", help="A dictionary: mini-topk, a Hub id, a file or its folder.")
    ],
    out: flags.Out,
    reads: Reads,
    paths: flags.ImagePaths = None,
    images: flags.Images = None,
    prompts: flags.Prompts = None,
    protocol: Annotated[
        Literal["mended", "paper"],
        typer.Option(help="mended: tested on images that did not explain. paper: as published, on the same ones."),
    ] = "mended",
    explainer: Annotated[
        str,
        typer.Option(
            help="Who explains and judges: oracle (of the embedded worlds, exact), vlm:DIR (a folder with an "
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
        int | None,
        typer.Option(
            min=50,
            help="Scenes of the embedded world, where it gives the images, or captions, where it gives the prompts.",
        ),
    ] = None,
    explaining_seed: Annotated[int, typer.Option(min=0, help="Of scenes, halves, negatives and controls.")] = 0,
    strips: Annotated[int, typer.Option(min=0, help="Of how many features, the best first, steering is drawn.")] = 12,
    decoder: flags.Decoder = "mini",
) -> None:
    """Say what the features of a dictionary fire on, and test it, beside units that were not learnt.

    Without images, mini reads 5000 scenes of its own world. A dictionary of a diffusion model's image stream is
    explained on pictures that the model draws of --prompts, each from noise of its own; mini-flux and mini-sd have 2000
    captions of their own world, and the oracle reads what they draw. index.html has a page of each feature. Run it
    again to go on after an interruption: pictures, activations and what a model has answered are kept.
    """
    from vit_lens import Dictionary
    from vit_lens.explaining import Halves, Units, units_beside
    from vit_lens.explaining import explain as run
    from vit_lens.files import make_directory
    from vit_lens.identity import fingerprint

    refuse_foreign(out)
    _spelled(explainer)
    if base_url is not None and not explainer.startswith("endpoint:"):
        raise ExplanationError(f"--base-url would have no effect: --explainer {explainer} asks no endpoint")
    if not strips and decoder not in ("mini", "none"):
        raise ExplanationError(f"--decoder {decoder} would have no effect with --strips 0")
    names = _kinds(beside)
    found = Dictionary.from_pretrained(dictionary)
    given = of_model(dictionary, found, reads, paths, images, prompts, explainer, scenes, explaining_seed, beside)
    draws = draws_of(given, decoder) if strips else None
    model = None if explainer == "oracle" else _model(explainer, base_url, reads.device, out)
    anywhere = Units.of_dictionary(found, given.whole)
    wanted = None if feature is None else [anywhere.unit(one) for one in feature]
    make_directory(out)
    own_folder(out, {
        "command": "explain", "dictionary": fingerprint({"W_dec": found.W_dec}), "images": given.whole.content,
        "protocol": protocol,
        "explainer": explainer, "features": feature, "units": units, "least": least, "beside": beside,
        "explaining_seed": explaining_seed,
    })  # fmt: skip
    shown = given.read(out)
    who: Any = shown.oracle if model is None else model
    units_shown = Units.of_dictionary(found, shown.source)
    against = units_beside(
        found, shown.source, shown.train, inputs=Halves.of(len(shown.images), seed=explaining_seed).explain,
        neurons=shown.neurons, model=given.model, seed=explaining_seed, names=names,
    )  # fmt: skip
    results = run(
        [units_shown, *against], shown.images, who, protocol=protocol, features=wanted,
        n=units, least=least, seed=explaining_seed, grid=shown.grid, progress=True,
    )  # fmt: skip
    results = replace(results, images=tuple(shown.names), no_scene=shown.no_scene)
    _write(results, out)
    page = write_pages(found, given, shown, units_shown, results, out, strips=strips, draws=draws, decoder=decoder)
    typer.echo(f"page: {page}")


def _kinds(beside: list[str] | None) -> list[str]:
    """Return the kinds that stand beside a dictionary.

    Raises:
        ExplanationError: There is no such kind.
    """
    from vit_lens.explaining import BESIDE

    for name in beside or ():
        if name not in (*BESIDE, "none"):
            raise ExplanationError(f"--beside {name}: nearest: {nearest(name, (*BESIDE, 'none'))}")
    if "none" in (beside or ()) and len(set(beside or ())) > 1:
        raise ExplanationError("--beside none with other kinds: give it alone, or leave it out")
    return [name for name in dict.fromkeys(BESIDE if beside is None else beside) if name != "none"]


def _spelled(explainer: str) -> tuple[str, str]:
    kind, _, what = explainer.partition(":")
    if kind not in _KINDS or (kind == "oracle") == bool(what):
        raise ExplanationError(
            f"--explainer {explainer}: expected oracle, vlm:DIR or endpoint:MODEL; nearest: {nearest(kind, _KINDS)}"
        )
    return kind, what


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
