"""Commands that read a tower without a decoder: readout."""

__all__ = ["READOUT_EXAMPLES", "readout"]

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vit_lens.cli.options import Device, Dtype, split_list, torch_device, torch_dtype
from vit_lens.cli.sweeps import Model, QuickGelu, Tag
from vit_lens.errors import TextError, VitLensError

if TYPE_CHECKING:
    from vit_lens.model import HookedViT
    from vit_lens.texts import TextBank

_BATCH = 32
READOUT_EXAMPLES = """\b
Examples:
  vit-lens readout photo.png
  vit-lens readout photos/ --captions "a cat,a dog" --model ViT-B-32 --tag openai
  vit-lens readout photo.png --captions words.txt --gallery photos/ --sites heads --means photos/ --out read
"""


def readout(
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    captions: Annotated[
        str | None,
        typer.Option(help="A file with one caption a line, a saved text bank (.safetensors), or captions with commas."),
    ] = None,
    gallery: Annotated[Path | None, typer.Option(help="Folder of images among which the nearest are sought.")] = None,
    means: Annotated[
        list[Path] | None, typer.Option(help="Images whose mean read-out is removed in the centred form.")
    ] = None,
    sites: Annotated[list[str] | None, typer.Option(help="As for sweep. Default: L0.resid_pre,resid_post.")] = None,
    lens: Annotated[
        str, typer.Option(help="diffusion, dsl:alpha=10, dsl:share=1; with mini also dsl-mean:alpha=5.")
    ] = "diffusion",
    controls: Annotated[bool, typer.Option(help="Beside every site, a random direction of equal norm.")] = False,
    k: Annotated[int, typer.Option("-k", help="Captions and images for every site.")] = 5,
    model: Model = "mini",
    tag: Tag = None,
    quick_gelu: QuickGelu = None,
    out: Annotated[Path | None, typer.Option(help="Folder for captions.csv, images.csv and the gallery.")] = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
) -> None:
    """Name what every layer or head says, by captions and by your own images; no decoder is needed."""
    from vit_lens import HookedViT, ReferenceMeans, Site
    from vit_lens.images import find_images
    from vit_lens.lenses import parse_lens
    from vit_lens.readouts import Gallery, ReadoutMeans

    if captions is None and model != "mini" and gallery is None:
        raise VitLensError("give --captions, --gallery or both; only mini has captions of its own")
    paths, chosen_lens = find_images(images), parse_lens(lens, ReferenceMeans.load("mini") if model == "mini" else None)
    vit = HookedViT.from_pretrained(
        model, tag=tag, quick_gelu=quick_gelu, dtype=torch_dtype(dtype), device=torch_device(device)
    )
    chosen = Site.resolve(split_list(sites or ["L0.resid_pre,resid_post"]), vit.cfg)
    bank = None if captions is None and model != "mini" else _bank(captions, model, tag, quick_gelu, device)
    kept = None if out is None else out / "gallery.safetensors"
    found = None if gallery is None else Gallery.from_folder(vit, gallery, out=kept, progress=True)
    mean = ReadoutMeans.from_images(vit, find_images(means), chosen, lens=chosen_lens, progress=True) if means else None
    tables = _read(
        vit, paths, lens=chosen_lens, sites=chosen, bank=bank, gallery=found, means=[mean] if mean else [], k=k,
        controls=["random"] if controls else [],
    )  # fmt: skip
    for name, what in (("captions", "caption"), ("images", "name")):
        if name in tables:
            _show(tables[name], what, [path.name for path in paths])
            _keep(tables[name], name, out)


def _read(vit: "HookedViT", paths: list[Path], **options: Any) -> dict[str, Any]:
    import pandas as pd
    import torch

    from vit_lens.readouts import read_sites

    parts: dict[str, list[Any]] = {"captions": [], "images": []}
    for start in range(0, len(paths), _BATCH):
        some = paths[start : start + _BATCH]
        with torch.no_grad():
            _, cache = vit.run_with_cache(vit.preprocess(some), rows="readout")
        read = read_sites(cache, images=some, **options)
        for name, found in parts.items():
            table = getattr(read, name)
            if table is not None:
                image_name = table["image"].map(dict(enumerate(map(str, some))))
                found.append(table.assign(image=table["image"] + start, image_name=image_name))
    return {name: pd.concat(found, ignore_index=True) for name, found in parts.items() if found}


def _bank(captions: str | None, model: str, tag: str | None, quick_gelu: bool | None, device: str) -> "TextBank":
    from vit_lens.texts import TextBank

    if captions is None:
        return TextBank.mini()
    path = Path(captions)
    if path.suffix == ".safetensors":
        return TextBank.load(path)
    if path.suffix == ".txt" and not path.is_file():
        raise TextError(f"no file of captions at {path}")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else captions.split(",")
    texts = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    name = model.removeprefix("open_clip/")
    if tag is None and "/" in name and (model.startswith("open_clip/") or name.split("/")[0] in _open_clip_names()):
        name, tag = name.split("/", 1)
    if tag is not None:
        return TextBank.from_open_clip(name, tag, texts, quick_gelu=quick_gelu, device=device)
    return TextBank.from_pretrained(model, texts, device=device)


def _open_clip_names() -> list[str]:
    from vit_lens.pretrained.registry import known_models

    return known_models()


def _show(table: Any, what: str, names: list[str]) -> None:
    for (image, site, control, form), rows in table.groupby(["image", "site", "control", "form"], sort=False):
        best = ", ".join(f"{row[what]} ({row['cosine']:.2f})" for row in rows.to_dict("records"))
        typer.echo(f"{names[image]}  {site}{' random' if control else ''}  {form}: {best}")


def _keep(table: Any, name: str, out: Path | None) -> None:
    from vit_lens.files import make_directory, write_atomic

    if out is not None:
        make_directory(out)
        write_atomic(out / f"{name}.csv", table.to_csv(index=False).encode())
