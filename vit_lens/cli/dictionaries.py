"""Commands of sparse dictionaries: dict train, dict itda, dict load, dict steer."""

__all__ = ["dictionaries", "own_folder", "refuse_foreign"]

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vit_lens.cli import flags
from vit_lens.cli.dictionary_inputs import (
    HeldOut,
    K,
    LearningSeed,
    NFeatures,
    NTokens,
    Reads,
    Threshold,
    Tokens,
    given,
)
from vit_lens.cli.steering import steer
from vit_lens.errors import OutputError, VitLensError, nearest

if TYPE_CHECKING:
    from vit_lens.dictionaries import Trainer

_SETTINGS = "settings.json"  # of a folder, what it is the dictionary of
_TRAINERS = ("topk", "sae_lens")
dictionaries = typer.Typer(
    help="Sparse dictionaries: learn one from your images, measured beside its controls, with a page of its features; "
    "or read somebody's.",
    no_args_is_help=True,
)
Site = Annotated[
    str,
    typer.Option(
        help="Where: L5.resid_post, L5.mlp, L5.attn, or a hook point's name; of a pipeline's denoiser "
        "double.1.hook_resid_post, mid.0.hook_update."
    ),
]
Show = Annotated[int, typer.Option(min=1, help="Features on the page, from frequent to rare.")]


def train(
    out: flags.Out,
    site: Site,
    reads: Reads,
    paths: flags.ImagePaths = None,
    images: flags.Images = None,
    prompts: flags.Prompts = None,
    features: NFeatures = 4096,
    k: K = 32,
    trainer: Annotated[
        str, typer.Option(help="topk, trained here; or sae_lens, by `pip install 'vit-lens[sae]'`.")
    ] = "topk",
    tokens: Tokens = None,
    n_tokens: NTokens = 1_000_000,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 1e-3,
    held_out: HeldOut = 0.1,
    learning_seed: LearningSeed = 0,
    show: Show = 24,
) -> None:
    """Train a sparse autoencoder on the activations of a site. Run it again to go on after an interruption.

    Without images, mini learns from scenes of its own world. A --model that is a pipeline (a folder with
    model_index.json, mini-flux, mini-sd) draws --prompts, and its denoiser is read; the embedded ones have captions of
    their own world.
    """
    from vit_lens.dictionaries import SAELens, TopK

    if trainer not in _TRAINERS:
        raise VitLensError(f"--trainer {trainer}: nearest: {nearest(trainer, _TRAINERS)}")
    shared: dict[str, Any] = {"n_features": features, "k": k, "lr": lr, "n_tokens": n_tokens, "seed": learning_seed}
    config = TopK(**shared, device=reads.device) if trainer == "topk" else SAELens(**shared)
    resumes = trainer == "topk"
    _learn(config, out, site, reads, paths, images, prompts, tokens, held_out, learning_seed, show, resumes=resumes)


def itda(
    out: flags.Out,
    site: Site,
    reads: Reads,
    paths: flags.ImagePaths = None,
    images: flags.Images = None,
    prompts: flags.Prompts = None,
    threshold: Threshold = 0.3,
    k: K = 32,
    form: Annotated[str, typer.Option(help="pursuit (arXiv 2505.24360), or signed (arXiv 2505.17769).")] = "pursuit",
    max_atoms: Annotated[int, typer.Option(min=1, help="Atoms at most.")] = 50_000,
    tokens: Tokens = None,
    n_tokens: NTokens = 1_000_000,
    held_out: HeldOut = 0.1,
    learning_seed: LearningSeed = 0,
    show: Show = 24,
) -> None:
    """Make a dictionary of data points: tokens that those before them explain too little of (ITDA).

    Without images, mini takes scenes of its own world. A --model that is a pipeline (a folder with model_index.json,
    mini-flux, mini-sd) draws --prompts, and its denoiser is read; the embedded ones have captions of their own world.
    """
    from vit_lens.dictionaries import ITDA

    config = ITDA(k=k, threshold=threshold, form=form, max_atoms=max_atoms, n_tokens=n_tokens, seed=learning_seed)  # pyright: ignore[reportArgumentType]
    _learn(config, out, site, reads, paths, images, prompts, tokens, held_out, learning_seed, show, resumes=True)


def load(
    path: Annotated[Path, typer.Argument(help="A file, or the folder that holds it, in any known layout.")],
    layout: Annotated[str | None, typer.Option(help="The layout, where it cannot be told from the files.")] = None,
    say: Annotated[
        list[str] | None,
        typer.Option(help="What the file leaves open: subtracts_bias=true, site=blocks.5.hook_resid_post; repeat."),
    ] = None,
    out: flags.MaybeOutFile = None,
) -> None:
    """Read a dictionary of any known layout: print what it means and its statistics; --out keeps it as our file."""
    from vit_lens.dictionaries import Dictionary, card

    if out is not None:
        if out.suffix != ".safetensors":
            raise VitLensError(f"--out {out}: name a file that ends in .safetensors")
        if out.exists():
            raise OutputError(f"--out {out} is there already; remove it, or choose another name")
    found = Dictionary.load(path, layout, **_said(say or ()))
    typer.echo(card(found), nl=False)
    if out is not None:
        typer.echo(f"dictionary: {found.save(out)}")


for command in (train, itda, load, steer):
    dictionaries.command()(flags.grouped(command))


def _said(given: "list[str] | tuple[str, ...]") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise VitLensError(f"--say {text!r}: write NAME=VALUE, such as subtracts_bias=true")
        try:
            found[name.strip()] = json.loads(value)
        except ValueError:  # a word, such as the name of a site
            found[name.strip()] = value
    return found


def _learn(
    config: "Trainer", out: Path, site: str, reads: Reads, paths: list[Path] | None, images: list[Path] | None,
    prompts: list[str] | None, tokens: str | None, held_out: float, seed: int, show: int, *, resumes: bool,
) -> None:  # fmt: skip
    """Learn a dictionary, or find it done, and write what is shown of it."""
    from dataclasses import asdict

    from vit_lens.dictionaries import ActivationSource, Dictionary, card, feature_examples, fit, verdicts, with_controls
    from vit_lens.files import make_directory, write_atomic
    from vit_lens.report import write_dictionary_page

    refuse_foreign(out)
    model, inputs, how, usual = given(reads, site, paths, images, prompts)
    run = ActivationSource.of_model(model, inputs, site, tokens=tokens or usual, seed=seed, **how)
    said = {"trainer": type(config).__name__, **asdict(config), "held_out": held_out, "source": run.content}
    make_directory(out)
    own_folder(out, said)
    kept, checkpoint = out / "dictionary.safetensors", out / "checkpoint.safetensors"
    held = run.split(held_out)[1]
    if kept.exists():
        typer.echo(f"{kept} is there already, of this command")
        measured = Dictionary.load(kept)
    else:
        typer.echo(f"{run}, {len(held.inputs)} held out")
        train, kept_out = ActivationSource.open(_activations(run, out), seed=seed).split(held_out)
        found = fit((train, kept_out), config, checkpoint=checkpoint if resumes else None)
        measured = with_controls(found, train, kept_out, seed=seed, live=held)
        measured.save(kept)
        checkpoint.unlink(missing_ok=True)
    text = card(measured)
    write_atomic(out / "card.md", text.encode())
    examples = feature_examples(measured, model, [inputs[index] for index in held.inputs], n=show, **how)
    page = write_dictionary_page(measured, examples, out / "dictionary.html")
    typer.echo(text)
    for one in verdicts(measured):
        if not one.holds:
            typer.secho(f"vit-lens: weak: {one.words}", err=True, fg=typer.colors.YELLOW)
    typer.echo(f"dictionary: {kept}\npage: {page}")


def refuse_foreign(out: Path) -> None:
    """Refuse a folder that holds other things, before anything runs.

    Raises:
        OutputError: It does.
    """
    if out.is_dir() and not (out / _SETTINGS).exists() and (left := sorted(each.name for each in out.iterdir())):
        raise OutputError(f"--out {out} holds {', '.join(left[:3])} already; choose a folder of its own")


def own_folder(out: Path, said: Mapping[str, Any]) -> None:
    """Keep what a folder is of; refuse one that is of another dictionary.

    Raises:
        OutputError: It is.
    """
    from vit_lens.files import write_atomic

    path, text = out / _SETTINGS, json.dumps(said, sort_keys=True, default=str, indent=1)
    if not path.exists():
        write_atomic(path, text.encode())
    elif path.read_text() != text:
        raise OutputError(
            f"--out {out} holds a dictionary of other settings or images (settings.json); choose another folder, or "
            "run the same command"
        )


def _activations(run: Any, out: Path) -> Path:
    """Write the activations, which are read many times; float32, so that atoms are the tokens that the model has."""
    import torch

    return run.write(out / "activations", dtype=torch.float32)
