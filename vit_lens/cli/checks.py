"""Commands that test a model: verify, doctor."""

__all__ = ["doctor", "verify"]

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from vit_lens.cli.options import Device, Dtype, split_list, torch_device, torch_dtype
from vit_lens.cli.sweeps import Model, QuickGelu, Tag


def verify(
    model: Annotated[
        str,
        typer.Argument(
            help="mini, an open_clip name, a Hugging Face id (owner/name[:subfolder]) or a local directory."
        ),
    ],
    tag: Tag = None,
    quick_gelu: QuickGelu = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option(help="Compare in this dtype; repeat for more. Default: float32, bfloat16, float64."),
    ] = None,
    image: Annotated[
        list[Path] | None, typer.Option(help="Image or folder to look at beside random pixels; repeat for more.")
    ] = None,
    device: Device = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    out: Annotated[Path | None, typer.Option(help="Also write the result as JSON.")] = None,
) -> None:
    """Compare a model, layer by layer, with the tower that its own library loads. Exit status 1: they differ."""
    from vit_lens import HookedViT
    from vit_lens.images import find_images

    dtypes = [torch_dtype(name) for name in split_list(dtype or ())] or None
    found = find_images(image) if image else None
    vit = HookedViT.from_pretrained(model, tag=tag, quick_gelu=quick_gelu, device=torch_device(device))
    result = vit.requires_grad_(False).verify(model, tag=tag, images=found, dtypes=dtypes)
    typer.echo(_json(result.to_dict()) if as_json else result.to_text())
    _write(out, result.to_dict())
    if not result.passed:
        raise typer.Exit(1)


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
    from vit_lens.images import find_images

    found = find_images(image) if image else None
    result = examine(
        model, decoder, tag=tag, quick_gelu=quick_gelu, encoder=encoder, images=found, dtype=torch_dtype(dtype),
        device=torch_device(device), steps=steps, progress=True,
    )  # fmt: skip
    typer.echo(result.to_text())
    _write(out, result.to_dict())
    if not result.passed:
        raise typer.Exit(1)


def _write(out: Path | None, found: dict[str, Any]) -> None:
    from vit_lens.files import make_directory, write_atomic

    if out is not None:
        make_directory(out.parent)
        write_atomic(out, (_json(found) + "\n").encode())


def _json(found: dict[str, Any]) -> str:
    return json.dumps(found, indent=1)
