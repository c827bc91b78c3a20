"""Commands that test a model: verify, doctor."""

__all__ = ["doctor", "verify"]

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from vit_lens.cli.options import (
    TOWER_NAME,
    Decoder,
    DecoderDtype,
    DecoderEncoder,
    Device,
    EncoderDtype,
    EncoderDtypes,
    Images,
    MaybeOut,
    QuickGelu,
    Steps,
    Tag,
    Tower,
    split_list,
    torch_device,
    torch_dtype,
)
from vit_lens.errors import VitLensError


def verify(
    model: Annotated[str, typer.Argument(help=TOWER_NAME)],
    tag: Tag = None,
    quick_gelu: QuickGelu = None,
    encoder_dtype: EncoderDtypes = None,
    images: Images = None,
    device: Device = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    out: MaybeOut = None,
) -> None:
    """Compare a model, layer by layer, with the tower that its own library loads. Exit status 1: they differ.

    It looks at random pixels, and at --images. Dtypes by default: float32, bfloat16, float64.
    """
    from vit_lens.images import find_images

    dtypes = [torch_dtype(name) for name in split_list(encoder_dtype or ())] or None
    found = find_images(images) if images else None
    vit = Tower(model=model, tag=tag, quick_gelu=quick_gelu, device=device).load()
    result = vit.requires_grad_(False).verify(model, tag=tag, images=found, dtypes=dtypes)
    typer.echo(_json(result.to_dict()) if as_json else result.to_text())
    _write(out, result.to_dict())
    if not result.passed:
        raise typer.Exit(1)


def doctor(
    tower: Tower,
    decoder: Decoder = "mini",
    decoder_encoder: DecoderEncoder = None,
    images: Images = None,
    steps: Steps = None,
    encoder_dtype: EncoderDtype = "float32",
    decoder_dtype: DecoderDtype = "float32",
    out: MaybeOut = None,
) -> None:
    """Check real weights before you trust a picture: inventory, parity with the source, pipeline, round trip.

    With --decoder none the encoder alone.
    """
    from vit_lens.doctor import examine
    from vit_lens.images import find_images

    if decoder == "none" and (decoder_encoder is not None or steps is not None):
        raise VitLensError("with --decoder none nothing is drawn: --decoder-encoder and --steps have no effect")
    result = examine(
        tower.model, None if decoder == "none" else decoder, tag=tower.tag, quick_gelu=tower.quick_gelu,
        encoder=decoder_encoder,
        images=find_images(images) if images else None, encoder_dtype=torch_dtype(encoder_dtype),
        decoder_dtype=torch_dtype(decoder_dtype), device=torch_device(tower.device), steps=steps, progress=True,
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
