"""What commands of dictionaries read: a tower and images, a text encoder and prompts, a pipeline that draws prompts.

And the options that several of them have.
"""

__all__ = [
    "AtSteps",
    "Branch",
    "HeldOut",
    "K",
    "LearningSeed",
    "NFeatures",
    "NTokens",
    "Reads",
    "Threshold",
    "Tokens",
    "captions",
    "draws",
    "given",
    "load_pipeline",
]

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from vit_lens.cli import flags, intake, prompting
from vit_lens.errors import VitLensError

_IN_VAIN = 200  # draws without a caption that is new, after which there are none
_SCENES = 1000  # of the embedded models' worlds, where nothing is given
_EMBEDDED = {"mini-flux": {"height": 64, "width": 64}, "mini-sd": {}}  # pipelines, and what theirs do not say
_INDEX = "model_index.json"  # of a folder that a pipeline was saved in
_OF_TOWERS = re.compile(r"L\d|blocks\.|hook_")  # what sites of a tower begin with

Tokens = Annotated[
    str | None,
    typer.Option(
        help="Which tokens: patches, cls, all; of a pipeline positions, such as 0,5. Default: patches of images, all "
        "of prompts."
    ),
]
NTokens = Annotated[
    int, typer.Option("--n-tokens", min=1, help="Tokens that are learnt from at most, over all passes.")
]
HeldOut = Annotated[float, typer.Option(help="The share of images or prompts that is held out.")]
LearningSeed = Annotated[int, typer.Option(min=0, help="Of the split, the order, the start and the controls.")]
K = Annotated[int, typer.Option("--k", min=1, help="Codes of a token.")]
NFeatures = Annotated[int, typer.Option("--features", min=1, help="Features.")]
Threshold = Annotated[
    float, typer.Option(help="The share of the variance that is unexplained above which a token becomes an atom.")
]


AtSteps = Annotated[
    list[int] | None,
    typer.Option(
        min=0,
        help="Of a pipeline: denoising steps that are read (steer: steered), from 0; repeat. Default: all; steer and "
        "explain: those of the dictionary.",
    ),
]
Branch = Annotated[
    str | None,
    typer.Option(
        help="Of a pipeline: the branch of guidance that is read (steer: steered), cond or uncond (steer: or both). "
        "Default: cond; steer and explain: that of the dictionary."
    ),
]


@dataclass(kw_only=True)
class Reads(flags.Tower):
    """Options that name a model, and for a pipeline how it draws."""

    at_steps: AtSteps = None
    branch: Branch = None
    steps: flags.Steps = None
    guidance: flags.Guidance = None
    size: flags.Size = None
    decoder_seed: flags.DecoderSeeds = None
    batch_size: flags.BatchSize = None

    def run(self) -> dict[str, Any]:
        """Return how a pipeline draws, as sources take it."""
        seed = flags.one(self.decoder_seed, "--decoder-seed")
        return flags.known(
            at_steps=self.at_steps, branch=self.branch, steps=self.steps, guidance_scale=self.guidance,
            height=self.size, width=self.size, noise_seed=seed, inputs_at_once=self.batch_size,
        )  # fmt: skip

    def refuse_run(self) -> None:
        """Refuse options that are of pipelines alone.

        Raises:
            VitLensError: One of them was given.
        """
        names = ("at_steps", "branch", "steps", "guidance", "size", "decoder_seed", "batch_size")
        said = [f"--{name.replace('_', '-')}" for name in names if getattr(self, name)]
        if said:
            raise VitLensError(
                f"{', '.join(said)} would have no effect here: --model {self.model} with this site draws nothing. A "
                f"pipeline is a folder with {_INDEX}, or {' or '.join(_EMBEDDED)}, and its sites are such as "
                "double.1.hook_resid_post or mid.0.hook_update"
            )


def given(
    reads: Reads, site: str, paths: list[Path] | None, images: list[Path] | None, prompts: Sequence[str] | None
) -> tuple[Any, list[Any], dict[str, Any], str]:
    """Return the model, what it runs on, how it runs, and the tokens that are read by default.

    Where nothing is given, mini reads scenes of its own world, and an embedded pipeline captions of its.

    Raises:
        VitLensError: An option is of another kind of model.
    """
    if draws(reads.model, site):
        prompting.refuse_images_words(images=paths or images, tag=reads.tag)
        texts = captions(reads, prompts, _SCENES)
        return load_pipeline(reads.model, reads.device), texts, reads.run(), "all"
    reads.refuse_run()
    if prompts is not None:
        from vit_lens import HookedTextEncoder

        prompting.refuse_images_words(images=paths or images, tag=reads.tag)
        texts = prompting.read_prompts(prompts)
        model = HookedTextEncoder.from_pretrained(reads.model, device=flags.torch_device(reads.device))
        return model.requires_grad_(False), texts, {}, "all"
    if not (paths or images) and reads.model == "mini":
        import numpy as np

        from vit_lens.mini import world

        typer.echo(f"no images were given: {_SCENES} scenes of mini's own world")
        found: list[Any] = list(world.render(world.sample_scenes(_SCENES, np.random.default_rng(0))))
    else:
        found = list(intake.find_given(paths, images))
    return reads.load().requires_grad_(False), found, {}, "patches"


def draws(name: str, site: str) -> bool:
    """Whether a name is a pipeline's, and the site its denoiser's: an embedded one has a text encoder of that name."""
    if name in _EMBEDDED:
        return _OF_TOWERS.match(site) is None
    return (Path(name).expanduser() / _INDEX).is_file()


def load_pipeline(name: str, device: str) -> Any:
    """Load a pipeline, which draws in its own size and without a bar.

    Raises:
        DecoderError: There is no such pipeline, or something is wrong with its files.
    """
    from vit_lens import HookedDiffusion

    model = HookedDiffusion.from_pretrained(name, device=flags.torch_device(device))
    model.pipeline.set_progress_bar_config(disable=True)
    model.defaults = {**model.text_length(), **_EMBEDDED.get(name, {}), **model.defaults}
    return model


def captions(
    reads: Reads, prompts: Sequence[str] | None, n: int, *, seed: int | Sequence[int] = 0, once: bool = False
) -> list[str]:
    """Return the prompts that are given, or ``n`` captions of an embedded model's world.

    Args:
        reads: Which model.
        prompts: What was given; None for captions.
        n: How many captions.
        seed: Of their draw.
        once: Whether captions are all different.

    Raises:
        VitLensError: Nothing was given, and the model has no world of its own.
    """
    if prompts is not None:
        return prompting.read_prompts(prompts)
    if reads.model not in _EMBEDDED:
        raise VitLensError(f"--model {reads.model} draws prompts; give --prompts, a file with one a line")
    import numpy as np

    from vit_lens.mini import still_life

    typer.echo(f"no prompts were given: {n} captions of {reads.model}'s own world")
    generator, found, in_vain = np.random.default_rng(seed), [], 0
    while len(found) < n:
        known = len(found)
        found += [one.text for one in still_life.sample(n - len(found), generator, still_life.Lexicon(0))]
        found = list(dict.fromkeys(found)) if once else found
        in_vain = in_vain + 1 if len(found) == known else 0
        if in_vain > _IN_VAIN:
            raise VitLensError(f"{n} captions that all differ were asked for, and {reads.model}'s world has {known}")
    return found
