"""The command for word maps: where a picture read each word of its prompt, by step, or by layer of the text encoder."""

__all__ = ["MAPS_EXAMPLES", "maps"]

import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from vit_lens.cli import flags
from vit_lens.errors import VitLensError

MAPS_EXAMPLES = """\b
Examples:
  vit-lens maps --prompt "a red star left of a blue ring" --by-layer
  vit-lens maps --model ./stable-diffusion --prompt "a cat on a red sofa" --word cat --word "red sofa" --steps 20
  vit-lens maps --model mini-flux --prompt "a red star" --word star --word red --kind concepts
"""


@dataclass(kw_only=True)
class Pipeline:
    """Options that name a text-to-image pipeline."""

    model: flags.Model = "mini-sd"
    device: flags.Device = "cpu"
    decoder_dtype: flags.DecoderDtype = "float32"


def maps(
    pipeline: Pipeline,
    prompt: Annotated[str, typer.Option(help="The prompt that is drawn.")],
    word: Annotated[
        list[str] | None,
        typer.Option(help="A word of it, or several in a row; repeat for more. Default: all of them."),
    ] = None,
    by_layer: Annotated[
        bool, typer.Option("--by-layer", help="Rows are layers of the text encoder, as the Diffusion Lens draws them.")
    ] = False,
    kind: Annotated[
        str, typer.Option(help="attention; or concepts, of FLUX: words as tokens of their own (ConceptAttention).")
    ] = "attention",
    block: Annotated[
        list[str] | None,
        typer.Option(help="Which blocks of the denoiser are counted: up, mid.0, double.3; repeat for more."),
    ] = None,
    steps: flags.Steps = None,
    guidance: flags.Guidance = None,
    decoder_seed: flags.DecoderSeeds = None,
    out: flags.OutFile = Path("vit-lens-maps.html"),
    open_page: flags.Open = False,
) -> None:
    """Draw a prompt and write a page of where the picture read each of its words, by step or by layer."""
    from vit_lens.diffusion import HookedDiffusion, lens_maps, word_maps
    from vit_lens.report import page_path, write_word_maps_page

    page_path(out)  # refuses another suffix before anything is drawn
    seed = flags.one(decoder_seed, "--decoder-seed")
    where: dict[str, Any] = {
        "dtype": flags.torch_dtype(pipeline.decoder_dtype), "device": flags.torch_device(pipeline.device),
    }  # fmt: skip
    if by_layer:
        if kind != "attention":
            raise VitLensError(f"--kind {kind} draws prompts, and --by-layer conditions; leave one of them out")
        from vit_lens.decoders import PromptEncoder, TextDecoder

        encoder = PromptEncoder.from_pretrained(pipeline.model, **where)
        decoder = TextDecoder.from_pretrained(pipeline.model, **where)
        settings = decoder.settings(**flags.known(steps=steps, guidance=guidance))
        found: Any = lens_maps(encoder, decoder, prompt, word, settings=settings, seed=seed, blocks=block)
    else:
        model = HookedDiffusion.from_pretrained(pipeline.model, **where)
        drawn = flags.known(guidance_scale=guidance)
        found = word_maps(model, prompt, word, kind=kind, blocks=block, steps=steps, seed=seed, **drawn)  # pyright: ignore[reportArgumentType]
    page = write_word_maps_page(found, out, notes=[f"{pipeline.model}, noise {seed or 0}"])
    typer.echo(f"page: {page}")
    if open_page:
        webbrowser.open(page.resolve().as_uri())
