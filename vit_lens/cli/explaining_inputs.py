"""What `vit-lens dict explain` shows: images of an encoder, or pictures that a diffusion model draws."""

__all__ = ["Drawn", "Given", "Shown", "of_model"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from vit_lens.cli import intake, prompting
from vit_lens.cli.dictionary_inputs import Reads, captions, draws, load_pipeline
from vit_lens.errors import ExplanationError
from vit_lens.identity import EMBEDDED_PIPELINES

if TYPE_CHECKING:
    from vit_lens import ActivationSource, Dictionary
    from vit_lens.explaining import AttributeOracle, StillLifeOracle

_ASIDE = 0.2  # of the images, which neither explain nor test: what controls are made of
_SCENES, _CAPTIONS = 5000, 2000  # of the embedded worlds, where nothing is given
_OURS = "vit_lens/"  # what embedded models' ids begin with
_NOISE = 27_000  # apart from the noise that dictionaries are learnt from


@dataclass(frozen=True, kw_only=True)
class Shown:
    """Images or pictures, and what a dictionary's model does on them.

    Attributes:
        images: What explainer and judge see.
        names: What each is called.
        source: The tokens of these.
        train: Those of others, which controls are made of.
        neurons: What the same block's neurons do on the images; None where there are none, or none are asked for.
        grid: Rows and columns of patches.
        oracle: The exact explainer and judge, where it is asked for.
        no_scene: How many pictures were left out since they are no scene; None where nobody looked.
    """

    images: Sequence[Any]
    names: Sequence[str]
    source: "ActivationSource"
    train: "ActivationSource"
    neurons: "ActivationSource | None"
    grid: tuple[int, int]
    oracle: "AttributeOracle | StillLifeOracle | None"
    no_scene: int | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Given:
    """Images of an encoder.

    Attributes:
        model: The encoder.
        whole: The patches of all images.
        mlp: The hook point of the same block's neurons; None for none.
        shown: All images, as the encoder sees them.
        names: What each is called.
        oracle: The oracle of these, where it is asked for.
    """

    model: Any
    whole: "ActivationSource"
    mlp: str | None
    shown: Sequence[Any]
    names: Sequence[str]
    oracle: "AttributeOracle | None"

    def read(self, out: Path) -> Shown:
        """Set a part aside; nothing is read before it is asked for."""
        from vit_lens import ActivationSource

        site, stream, seed = self.whole.provenance.site, self.whole.provenance.stream, self.whole.seed
        kept, aside = self.whole.split(_ASIDE)
        own, rest = ([self.shown[i] for i in part.inputs] for part in (kept, aside))
        source, train = (
            ActivationSource.of_model(self.model, some, str(site), tokens="patches", stream=stream, seed=seed)
            for some in (own, rest)
        )
        neurons = None if self.mlp is None else ActivationSource.of_model(self.model, own, self.mlp, tokens="patches")
        numbers: tuple[int, ...] = kept.inputs
        return Shown(
            images=own, names=[self.names[i] for i in numbers], source=source, train=train, neurons=neurons,
            grid=self.model.cfg.grid, oracle=self.oracle,
        )  # fmt: skip


@dataclass(frozen=True, eq=False, kw_only=True)
class Drawn:
    """Pictures that a diffusion model draws of prompts, each from noise of its own.

    Attributes:
        model: The diffusion model.
        whole: The image tokens of all pictures.
        mlp: The hook point of the same block's neurons; None for none.
        names: The prompts.
        world: The model whose pictures the exact oracle reads; None where another explainer was asked for.
        dictionary: The dictionary.
        how: How pictures are drawn and tokens read, where that is not as the dictionary says.
    """

    model: Any
    dictionary: "Dictionary"
    how: Mapping[str, Any]
    whole: "ActivationSource"
    mlp: str | None
    names: Sequence[str]
    world: str | None

    def read(self, out: Path) -> Shown:
        """Draw, read and keep; what is in the folder is neither drawn nor read again."""
        from vit_lens.dictionaries import drawn_pictures, patch_grid, source_like
        from vit_lens.explaining import StillLifeOracle

        grid = patch_grid(self.whole)
        if grid is None:
            raise ExplanationError(f"{self.whole!r} has no positions that are cells of a picture, row by row")
        typer.echo(f"drawing {len(self.names)} prompts")
        pictures = drawn_pictures(self.whole, out / "pictures")
        oracle, kept, no_scene = None, self.whole.inputs, None
        if self.world is not None:
            oracle = StillLifeOracle.of_drawn(pictures, self.world, grid=grid)
            kept, no_scene = oracle.kept, len(pictures) - len(oracle.kept)
            typer.echo(f"{no_scene} of {len(pictures)} pictures are no scene, and are left out")
        source = self._kept(self.whole, out / "activations")
        own, aside = replace(source, inputs=kept).split(_ASIDE)
        neurons = None
        if self.mlp is not None:
            live = source_like(self.dictionary, self.model, self.names, self.mlp, **self.how)
            neurons = replace(self._kept(live, out / "neurons"), inputs=own.inputs)
        numbers: tuple[int, ...] = own.inputs
        return Shown(
            images=[pictures[i] for i in numbers], names=[self.names[i] for i in numbers], source=own, train=aside,
            neurons=neurons, grid=grid, oracle=oracle, no_scene=no_scene,
        )  # fmt: skip

    @staticmethod
    def _kept(live: "ActivationSource", folder: Path) -> "ActivationSource":
        """Return tokens from a folder, into which they are written first; one that was stopped goes on."""
        import torch

        return type(live).open(live.write(folder, dtype=torch.float32), seed=live.seed)


def of_model(
    dictionary: str, found: "Dictionary", reads: Reads, paths: list[Path] | None, images: list[Path] | None,
    prompts: list[str] | None, explainer: str, scenes: int | None, seed: int, beside: Sequence[str] | None,
) -> Given | Drawn:  # fmt: skip
    """Return what a dictionary is explained on, before anything is drawn.

    Raises:
        ExplanationError: The dictionary is of words or of some tokens alone, or the oracle does not know the images.
        VitLensError: An option is of another kind of model.
    """
    own, site = (found.origin.model or "").removeprefix(_OURS), str(found.origin.site)
    if own.endswith("#text") or (own in EMBEDDED_PIPELINES and not draws(own, site)):
        raise ExplanationError(
            f"{dictionary} is of {site} of a text encoder, {found.origin.model}, whose inputs are words; expected one "
            "of patches of an image encoder, or of the image stream of a diffusion model: explain shows pictures"
        )
    if reads.model == "mini" and own in EMBEDDED_PIPELINES:
        reads = replace(reads, model=own)
    if draws(reads.model, site):
        return _of_pipeline(dictionary, found, reads, paths, images, prompts, explainer, scenes, seed, beside)
    reads.refuse_run()
    if prompts:
        raise ExplanationError(f"--prompts would have no effect: {dictionary} is of {site} of an image encoder")
    return _of_tower(dictionary, found, reads, paths, images, explainer, scenes, seed, beside)


# ---- an encoder's images


def _of_tower(
    dictionary: str, found: "Dictionary", reads: Reads, paths: list[Path] | None, images: list[Path] | None,
    explainer: str, scenes: int | None, seed: int, beside: Sequence[str] | None,
) -> Given:  # fmt: skip
    from vit_lens import ActivationSource
    from vit_lens.images import to_display

    model = reads.load().requires_grad_(False)
    site = found.check(model)
    if found.origin.tokens != "patches":
        raise ExplanationError(
            f"{dictionary} is of tokens {found.origin.tokens!r}; explain reads what features do on patches of images"
        )
    mlp = _neurons(model, site, beside)
    oracle, given, names = _images(explainer, reads, paths, images, scenes, seed)
    shown = to_display(given, model.spec())
    whole = ActivationSource.of_model(model, shown, site, tokens="patches", stream=found.origin.stream, seed=seed)
    return Given(model=model, whole=whole, mlp=mlp, shown=shown, names=names, oracle=oracle)


def _images(
    explainer: str,
    reads: Reads,
    paths: list[Path] | None,
    images: list[Path] | None,
    scenes: int | None,
    seed: int,
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
        if scenes is not None:
            raise ExplanationError(f"--scenes {scenes} would have no effect: images were given; leave one of them out")
        found = list(intake.find_given(paths, images))
        return None, found, list(map(str, found))
    if reads.model != "mini" and explainer != "oracle":
        list(intake.find_given(paths, images))  # which says what is missing
    typer.echo(f"no images were given: {scenes or _SCENES} scenes of mini's own world")
    oracle = AttributeOracle.of_world(scenes or _SCENES, seed=seed)
    names = [world.caption(scene) for scene in oracle.scenes]
    return (oracle if explainer == "oracle" else None), oracle.pictures, names


def _neurons(model: Any, site: str, beside: Sequence[str] | None) -> str | None:
    """Return the hook point of the neurons of a site's block; where there are none, say so, or refuse."""
    from vit_lens.explaining import neurons_site

    asked = beside is None or "neurons" in beside
    if (mlp := neurons_site(model, site)) is None:
        if "neurons" in (beside or ()):
            raise ExplanationError(f"--beside neurons: {site} is in no block with an MLP; leave it out")
        typer.echo(f"neurons are left out: {site} is in no block with an MLP", err=True)
    return mlp if asked else None


# ---- a diffusion model's pictures


def _of_pipeline(
    dictionary: str, found: "Dictionary", reads: Reads, paths: list[Path] | None, images: list[Path] | None,
    prompts: list[str] | None, explainer: str, scenes: int | None, seed: int, beside: Sequence[str] | None,
) -> Drawn:  # fmt: skip
    from vit_lens.dictionaries import source_like
    from vit_lens.mini import inspection

    prompting.refuse_images_words(images=paths or images, tag=reads.tag)
    world = reads.model if explainer == "oracle" else None
    if world is not None:
        inspection.residual_limit(world, _OracleKnowsNot)
    model = load_pipeline(reads.model, reads.device)
    site = found.check(model)
    if model.is_text(site):
        raise ExplanationError(
            f"{dictionary} is of {site}, the text stream of {found.origin.model or reads.model}, whose tokens are "
            f"words; expected one of the image stream, such as {site.replace('.text.', '.')}: explain shows pictures"
        )
    if found.origin.tokens != "all":
        raise ExplanationError(
            f"{dictionary} is of tokens {found.origin.tokens!r}; explain reads what features do on all of a picture"
        )
    if prompts and scenes is not None:
        raise ExplanationError(f"--scenes {scenes} would have no effect: --prompts were given; leave one of them out")
    mlp = _neurons(model, site, beside)
    names = _prompts(reads, prompts, scenes or _CAPTIONS, seed)
    how = {"noise_seed": _NOISE + seed, **reads.run(), "seed": seed}
    whole = source_like(found, model, names, site, **how)
    return Drawn(model=model, dictionary=found, how=how, whole=whole, mlp=mlp, names=names, world=world)


class _OracleKnowsNot(ExplanationError):
    def __init__(self, words: str):
        super().__init__(
            f"--explainer oracle reads pictures of the embedded models alone: {words}; or take vlm:DIR or "
            "endpoint:MODEL"
        )


def _prompts(reads: Reads, prompts: list[str] | None, n: int, seed: int) -> list[str]:
    """Return prompts, each once: what is drawn twice would be among the images that explain and those that test."""
    given = captions(reads, prompts, n, seed=[seed, 27], once=True)
    found = list(dict.fromkeys(given))
    if len(found) < len(given):
        typer.echo(f"{len(given) - len(found)} prompts are others again; {len(found)} are drawn, each once")
    return found
