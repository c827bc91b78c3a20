"""The command that averages Jacobians: jacobian; and what joins their parts."""

__all__ = ["JACOBIAN_EXAMPLES", "jacobian", "join_jacobians"]

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vit_lens.cli import flags, intake
from vit_lens.errors import OutputError, VitLensError

if TYPE_CHECKING:
    from vit_lens.models import HookedViT
    from vit_lens.reference import FitCost

JACOBIAN_EXAMPLES = """\b
Examples:
  vit-lens jacobian photos/ --out jacobian.safetensors
  vit-lens sweep cat.png --lens jacobian:alpha=5 --jacobian jacobian.safetensors --controls
  vit-lens jacobian photos/ --model ViT-L-14 --tag openai --out 0.safetensors --shard 0/4
  vit-lens merge 0.safetensors 1.safetensors 2.safetensors 3.safetensors --out jacobian.safetensors
"""


def jacobian(
    out: flags.OutFile,
    tower: flags.Tower,
    paths: flags.ImagePaths = None,
    images: flags.Images = None,
    held_out: Annotated[
        int | None,
        typer.Option(
            "--n-held-out",
            min=0,
            help="So many of the images measure the error and are not fitted on; 0 for none. Default: a quarter, at "
            "most 16.",
        ),
    ] = None,
    per_row: Annotated[
        bool, typer.Option("--per-row", help="A Jacobian for every token, in place of one for all patches: far larger.")
    ] = False,
    shard: flags.Shard = None,
    encoder_dtype: flags.EncoderDtype = "float32",
    only_plan: flags.OnlyPlan = False,
) -> None:
    """Average a model's Jacobians over images, for the lens jacobian, and print their error against true patching.

    A hundred images that are not studied will do. Run it again to go on after an interruption; of joined parts, the
    same command without --shard measures the error.
    """
    from vit_lens import JacobianLens
    from vit_lens.reference import split_held_out

    part = flags.parse_shard(shard)
    if out.suffix != ".safetensors":
        raise VitLensError(f"--out {out}: name a file that ends in .safetensors")
    found = intake.find_given(paths, images)
    fitted, tested = (found, []) if held_out == 0 else split_held_out(found, held_out)
    if part is not None:
        fitted, tested = _part_of(fitted, *part), []
    is_there = out.exists() and JacobianLens.load(out).jacobians
    if is_there and (is_there.error is not None or not tested):
        raise OutputError(f"--out {out} is there already; remove it, or choose another name")
    vit = tower.load(encoder_dtype)
    typer.echo(_said(JacobianLens.cost(vit, len(fitted), per_row=per_row), vit, len(tested)))
    if only_plan:
        return
    lens = JacobianLens.fit(
        vit, fitted, held_out=tested or None, test=bool(tested), out=out, per_row=per_row, progress=True
    )
    if lens.jacobians.error is not None:
        typer.echo(str(lens.jacobians.error))
    typer.echo(f"Jacobians of {lens.jacobians.n} images: {out}{'' if tested else ' (error not measured)'}")


def join_jacobians(parts: Sequence[Path], out: Path) -> str:
    """Join files of Jacobians into one, and say where it is.

    Raises:
        VitLensError: Not all are such files, or the new one has another ending or is there.
        LensError: Two share an image, or one is damaged.
        ReferenceMismatchError: They are of different models.
    """
    from vit_lens import JacobianLens

    if other := [str(path) for path in (*parts, out) if path.suffix != ".safetensors"]:
        raise VitLensError(f"{other[0]}: files of Jacobians are joined with their like, into a .safetensors file")
    if out.exists():
        raise OutputError(f"--out {out} is there already; remove it, or choose another name")
    made = JacobianLens.merge([JacobianLens.load(path) for path in parts])
    return (
        f"Jacobians of {made.jacobians.n} images: {made.save(out)} (error not measured: give the command that made a "
        f"part, with --out {out} and without --shard)"
    )


def _part_of(paths: list[Path], index: int, of: int) -> list[Path]:
    if not index < of:
        raise VitLensError(f"--shard {index}/{of}: parts are numbered from 0 to {of - 1}")
    if not (some := paths[index::of]):
        raise VitLensError(f"--shard {index}/{of}: there are {len(paths)} images to divide; take fewer parts")
    return some


def _said(cost: "FitCost", model: "HookedViT", n_tested: int) -> str:
    from vit_lens.engine import duration_words, flops_per_second, size_words

    seconds = cost.flops / flops_per_second(model.device, model.dtype)
    tested = f"; then {2 * model.cfg.n_layers * n_tested:,} patched runs" if n_tested else ""
    return (
        f"{cost.n} images, {cost.products:,} vector-Jacobian products: about {duration_words(seconds)}{tested}; file "
        f"{size_words(cost.file_bytes)}, memory about {size_words(cost.memory_bytes)} beside the model"
    )
