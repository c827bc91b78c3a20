"""The pages that `vit-lens dict explain` writes: features with their examples, explanations and steering strips."""

__all__ = ["Draws", "draws_of", "write_pages"]

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from vit_lens.cli.explaining_inputs import Drawn, Given, Shown
from vit_lens.errors import VitLensError

if TYPE_CHECKING:
    from PIL import Image

    from vit_lens import Dictionary
    from vit_lens.explaining import Explanations, Units
    from vit_lens.report import FeatureStrip

_DOSES = {
    True: (0.0, 0.2, 0.4, 0.8),
    False: (0.0, 1.0, 2.0, 4.0),
}  # in mean token norms; of a denoiser and of an encoder
_SEED = 0
Draws = Callable[[Any, list[Any]], "Image.Image"]
"""What draws an image or a prompt, with hooks on the model."""


def draws_of(given: Given | Drawn, decoder: str) -> Draws | None:
    """Return what draws strips; None where nothing does, which is said.

    Args:
        given: What was asked for.
        decoder: What draws embeddings of an encoder; ``mini``, which nobody may have asked for, where it fits.

    Raises:
        VitLensError: Another decoder does not fit the encoder, or the model draws itself.
    """
    if isinstance(given, Drawn):
        if decoder != "mini":
            raise VitLensError(
                f"--decoder {decoder} would have no effect: the model draws itself; --strips 0 draws none"
            )
        run = {key: value for key, value in (given.whole.provenance.run or {}).items() if key != "noise_seed"}
        return lambda prompt, hooks: given.model.run_with_hooks([prompt], seed=[_SEED], fwd_hooks=hooks, **run)[0]
    if decoder == "none":
        return None
    try:
        return _of_images(given.model, decoder)
    except VitLensError as error:
        if decoder != "mini":
            raise
        typer.echo(f"no steering strips: {error}", err=True)
        return None


def _of_images(model: Any, decoder: str) -> Draws:
    import torch
    from PIL import Image

    from vit_lens import load_decoder

    drawer = load_decoder(decoder, encoder=model, device=next(model.parameters()).device)
    settings = drawer.settings(seed=_SEED)

    @torch.no_grad()
    def draw(image: Any, hooks: list[Any]) -> "Image.Image":
        embeds = model.run_with_hooks(model.preprocess([image]), fwd_hooks=hooks)
        drawn = drawer.decode(embeds, negative=drawer.negative(model), settings=settings)
        return Image.fromarray(drawn[0].cpu().numpy())

    return draw


def write_pages(
    found: "Dictionary", given: Given | Drawn, shown: Shown, units: "Units", results: "Explanations", out: Path, *,
    strips: int, draws: Draws | None, decoder: str,
) -> Path:  # fmt: skip
    """Write the pages of all features that fire and return the index; the first features are steered.

    Args:
        found: The dictionary.
        given: What was asked for.
        shown: What explainer and judge saw.
        units: The dictionary's features on these.
        results: What was said of them.
        out: The folder.
        strips: Of how many features strips are drawn.
        draws: What draws them; None for none.
        decoder: What it is called: pictures of another are not taken for its own.
    """
    from vit_lens.explaining import unit_examples
    from vit_lens.report import best_first, write_feature_pages

    own = results.kinds[0]
    order = best_first([row for row in results.rows if row.kind == own])
    rest = [one.unit for one in results.skipped if one.kind == own and one.why != "never fires"]
    names = shown.names if isinstance(given, Drawn) else ()
    examples = unit_examples(units, found, shown.images, [*order, *rest], grid=shown.grid, prompts=names)
    drawn = {} if draws is None else _strips(found, given, shown, order[:strips], out / "steered", draws, decoder)
    return write_feature_pages(found, examples, out, explanations=results, strips=drawn)


def _strips(
    found: "Dictionary",
    given: Given | Drawn,
    shown: Shown,
    features: Sequence[int],
    folder: Path,
    draws: Draws,
    decoder: str,
) -> "dict[int, FeatureStrip]":
    """Draw an image, or the shortest prompt, while features are added and a random direction; pictures are kept."""
    from vit_lens.dictionaries import random_dictionary, steer
    from vit_lens.report import FeatureStrip

    is_drawn, read = isinstance(given, Drawn), given.whole.provenance
    when = {"at_steps": list(read.at_steps or ()), "branch": read.branch} if is_drawn else {}
    least = min(shown.names, key=lambda name: len(name.split()))  # where a prompt is silent there is room to steer
    of, said = (least, f"The prompt: {least or 'the empty prompt'}.") if is_drawn else (
        shown.images[0], f"What {decoder} draws of the embedding of: {Path(shown.names[0]).name}.",
    )  # fmt: skip
    folder /= hashlib.sha256(repr([said, when, doses := _DOSES[is_drawn]]).encode()).hexdigest()[:12]
    random = random_dictionary(found.d, 1, k=1, seed=_SEED).W_dec[0]

    def row(name: str, direction: Any) -> "list[Image.Image]":
        places = ["plain" if dose == 0 else f"{name}_{dose:g}" for dose in doses]
        return [
            _kept(folder / f"{place}.png", draws, of, steer(given.model, found, direction, dose, **when))
            for place, dose in zip(places, doses, strict=True)
        ]

    columns, others = tuple(f"{dose:g}" for dose in doses), {"random direction": row("random", random)}
    return {one: FeatureStrip(said, columns, {f"f{one}": row(f"f{one}", one), **others})
            for one in features}  # fmt: skip


def _kept(path: Path, draws: Draws, of: Any, hooks: list[Any]) -> "Image.Image":
    from PIL import Image

    from vit_lens.files import make_directory, write_atomic
    from vit_lens.records import encode_png

    if not path.exists():
        make_directory(path.parent)
        write_atomic(path, encode_png(draws(of, hooks)))
    with Image.open(path) as picture:
        return picture.convert("RGB")
