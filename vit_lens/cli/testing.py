"""Commands that test a model: verify, doctor."""

__all__ = ["doctor", "verify"]

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from vit_lens.cli import flags, intake
from vit_lens.errors import OutputError


def verify(
    model: Annotated[str, typer.Argument(help=flags.TOWER_NAME)],
    tag: flags.Tag = None,
    quick_gelu: flags.QuickGelu = None,
    encoder_dtype: flags.EncoderDtypes = None,
    images: flags.Images = None,
    device: flags.Device = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    out: flags.MaybeOutFile = None,
) -> None:
    """Compare a model, layer by layer, with the tower that its own library loads. Exit status 1: they differ.

    It looks at random pixels, and at --images. Dtypes by default: float32, bfloat16, float64.
    """
    from vit_lens.images import find_images

    _check_out(out)
    dtypes = [flags.torch_dtype(name) for name in flags.split_list(encoder_dtype or ())] or None
    found = find_images(images) if images else None
    vit = flags.Tower(model=model, tag=tag, quick_gelu=quick_gelu, device=device).load()
    result = vit.requires_grad_(False).verify(model, tag=tag, images=found, dtypes=dtypes)
    typer.echo(json.dumps(result.to_dict(), indent=1) if as_json else result.to_text())
    _write(out, result.to_dict())
    if not result.passed:
        raise typer.Exit(1)


def doctor(
    tower: flags.Tower,
    decoder: flags.Decoder = "mini",
    decoder_encoder: flags.DecoderEncoder = None,
    images: flags.Images = None,
    steps: flags.Steps = None,
    encoder_dtype: flags.EncoderDtype = "float32",
    decoder_dtype: flags.DecoderDtype = "float32",
    out: flags.MaybeOutFile = None,
) -> None:
    """Check real weights before you trust a picture: inventory, parity with the source, pipeline, round trip.

    With --decoder none the encoder alone.
    """
    from vit_lens.doctor import examine
    from vit_lens.images import find_images

    _check_out(out)
    intake.check_drawn(decoder, decoder_encoder=decoder_encoder, steps=steps)
    result = examine(
        tower.model, None if decoder == "none" else decoder, tag=tower.tag, quick_gelu=tower.quick_gelu,
        encoder=decoder_encoder, images=find_images(images) if images else None,
        encoder_dtype=flags.torch_dtype(encoder_dtype), decoder_dtype=flags.torch_dtype(decoder_dtype),
        device=flags.torch_device(tower.device), steps=steps, progress=True,
    )  # fmt: skip
    typer.echo(result.to_text())
    _write(out, result.to_dict())
    if not result.passed:
        raise typer.Exit(1)


def _check_out(out: Path | None) -> None:
    """Refuse to write over what is no such result, before anything is loaded."""
    from vit_lens.files import read_json

    if out is None:
        return
    if out.suffix != ".json":
        raise OutputError(f"--out {out}: the result is JSON; name a file that ends in .json")
    if out.exists() and "passed" not in read_json(out, OutputError, "choose another name"):
        raise OutputError(f"--out {out} is there and holds something else; choose another name")


def _write(out: Path | None, found: dict[str, Any]) -> None:
    from vit_lens.files import make_directory, write_atomic

    if out is not None:
        make_directory(out.parent)
        write_atomic(out, f"{json.dumps(found, indent=1)}\n".encode())
