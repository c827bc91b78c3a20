"""Commands that test a model: doctor."""

__all__ = ["doctor"]

import json
from pathlib import Path
from typing import Annotated

import typer

from vit_lens.cli.options import Device, Dtype, find_images, torch_device, torch_dtype
from vit_lens.cli.sweeps import Model, QuickGelu, Tag


def doctor(
    model: Model = "mini",
    decoder: Annotated[str, typer.Option(help="mini, a Hub id or a local directory.")] = "mini",
    tag: Tag = None,
    quick_gelu: QuickGelu = None,
    encoder: Annotated[
        str | None, typer.Option(help="Which encoder the decoder was made for, where its files do not say it.")
    ] = None,
    image: Annotated[list[Path] | None, typer.Option(help="Sample image or folder; repeat for more.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps of the round trip.")] = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    out: Annotated[Path | None, typer.Option(help="Also write the report as JSON.")] = None,
) -> None:
    """Check real weights before you trust a picture: inventory, parity with the source, pipeline, round trip."""
    from vit_lens.doctor import examine
    from vit_lens.files import make_directory, write_atomic

    found = find_images(image) if image else None
    result = examine(
        model, decoder, tag=tag, quick_gelu=quick_gelu, encoder=encoder, images=found, dtype=torch_dtype(dtype),
        device=torch_device(device), steps=steps, progress=True,
    )  # fmt: skip
    typer.echo(result.to_text())
    if out is not None:
        make_directory(out.parent)
        write_atomic(out, (json.dumps(result.to_dict(), indent=1) + "\n").encode())
    if not result.passed:
        raise typer.Exit(1)
