"""Commands that read a tower without a decoder: readout."""

__all__ = ["READOUT_EXAMPLES", "readout"]

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vit_lens.cli import flags, intake
from vit_lens.errors import VitLensError

if TYPE_CHECKING:
    from vit_lens.controls import ControlBank
    from vit_lens.models import HookedViT

_BATCH = 32
_LENS, _SITES = ["diffusion"], ["L0.resid_pre", "resid_post"]
READOUT_EXAMPLES = """\b
Examples:
  vit-lens readout photo.png
  vit-lens readout photos/ --captions "a cat,a dog" --model ViT-B-32 --tag openai
  vit-lens readout photo.png --captions words.txt --gallery photos/ --sites heads --reference-images photos/ --out read
"""


def readout(
    tower: flags.Tower,
    paths: flags.ImagePaths = None,
    images: flags.Images = None,
    captions: flags.Captions = None,
    gallery: flags.GalleryFolder = None,
    reference_images: flags.ReferenceImages = None,
    sites: flags.Sites = _SITES,
    lens: flags.Lenses = _LENS,
    reference: flags.Reference = None,
    jacobian: flags.Jacobian = None,
    anchors: flags.Anchors = None,
    controls: flags.Controls = False,
    control_kind: flags.ControlKinds = None,
    control_images: flags.ControlImages = None,
    normalise: flags.Normalise = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Captions and images for every site.")] = 5,
    out: flags.MaybeOut = None,
    encoder_dtype: flags.EncoderDtype = "float32",
) -> None:
    """Name what every layer or head says, by captions and by your own images; no decoder is needed.

    With --reference-images there is a centred form too, from which their mean read-out is taken away.
    """
    from vit_lens import Site
    from vit_lens.controls import check_controls, check_normalisation
    from vit_lens.images import find_images
    from vit_lens.readers import Gallery, SiteMeans

    is_mini = tower.model == "mini"
    if captions is None and gallery is None and not is_mini:
        raise VitLensError("give --captions, --gallery or both; only mini has captions of its own")
    found = intake.find_given(paths, images)
    kinds = flags.split_list(control_kind or ()) or ["random"]
    if not controls and (control_kind or control_images or normalise):
        raise VitLensError(
            "--control-kind, --control-images and --normalise say which controls, and none are without "
            "--controls: give both"
        )
    check_controls(kinds)
    check_normalisation(normalise)
    spec = flags.one(flags.split_list(lens or ()), "--lens") or _LENS[0]
    intake.check_lenses([spec], tower, reference=reference, jacobian=jacobian, anchors=anchors, gallery=gallery)
    starts = intake.find_anchors(anchors, found)
    vit = tower.load(encoder_dtype)
    kept = None if out is None else out / "gallery.safetensors"
    near = None if gallery is None else Gallery.from_folder(vit, gallery, out=kept, progress=True)
    held = {"anchors": starts, "gallery": near}
    (chosen_lens,) = intake.read_lenses([spec], reference, vit, jacobian, **held, apart=False)
    chosen = Site.resolve(flags.split_list(sites), vit.cfg)
    bank = None if captions is None and not is_mini else intake.read_captions(captions, tower)
    others = find_images(reference_images) if reference_images else None
    means = [SiteMeans.from_images(vit, others, chosen, lens=chosen_lens, progress=True)] if others else []
    tables = _read(
        vit, found, lens=chosen_lens, sites=chosen, bank=bank, gallery=near, means=means, k=k,
        kinds=kinds if controls else [], normalise=normalise, control_images=control_images,
    )  # fmt: skip
    for name, what in (("captions", "caption"), ("images", "name")):
        if name in tables:
            _show(tables[name], what, [_text(Path(path.name)) for path in found])
            _keep(tables[name], name, out)


def _read(
    vit: "HookedViT", paths: list[Path], *, kinds: list[str], normalise: str | None,
    control_images: list[Path] | None, **options: Any,
) -> dict[str, Any]:  # fmt: skip
    import pandas as pd
    import torch

    from vit_lens.controls import CONTROLS
    from vit_lens.lenses import run_for
    from vit_lens.readers import read_sites

    needs = [name for name in kinds if CONTROLS[name].needs]
    bank = None
    if needs or normalise is not None:
        seen = control_images or ([options["gallery"].folder] if options["gallery"] is not None else paths)
        bank = intake.read_bank(vit, seen, [options["lens"]], 0)
        if lacks := next(filter(None, (CONTROLS[name].lacks(_fewest(bank, vit, paths)) for name in needs)), ""):
            raise VitLensError(lacks)
    parts: dict[str, list[Any]] = {"captions": [], "images": []}
    for start in range(0, len(paths), _BATCH):
        some = paths[start : start + _BATCH]
        with torch.no_grad():
            _, cache = run_for(vit, vit.preprocess(some), options["lens"])
        others = None if bank is None else bank.others(_hashes(vit, some))
        read = read_sites(cache, images=some, controls=kinds, others=others, normalise=normalise, **options)
        for name, found in parts.items():
            table = getattr(read, name)
            if table is not None:
                image_name = table["image"].map(dict(enumerate(map(_text, some))))
                found.append(table.assign(image=table["image"] + start, image_name=image_name))
    return {name: pd.concat(found, ignore_index=True) for name, found in parts.items() if found}


def _hashes(vit: "HookedViT", paths: list[Path]) -> list[str]:
    from vit_lens.images import picture_hash, to_display

    return list(map(picture_hash, to_display(paths, vit.spec())))


def _fewest(bank: "ControlBank", vit: "HookedViT", paths: list[Path]) -> int:
    return min(len(bank.but(digest)) for digest in _hashes(vit, paths))


def _text(path: Path) -> str:
    """Return a path as text; its bytes need not be any."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _show(table: Any, what: str, names: list[str]) -> None:
    for (image, site, control, form), rows in table.groupby(["image", "site", "control", "form"], sort=False):
        best = ", ".join(f"{row[what]} ({row['cosine']:.2f})" for row in rows.to_dict("records"))
        typer.echo(f"{names[image]}  {site}{f' {control}' if control else ''}  {form}: {best}")


def _keep(table: Any, name: str, out: Path | None) -> None:
    from vit_lens.files import make_directory, write_atomic
    from vit_lens.records import csv_bytes

    if out is not None:
        make_directory(out)
        write_atomic(out / f"{name}.csv", csv_bytes(table))
