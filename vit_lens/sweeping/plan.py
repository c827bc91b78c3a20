"""The plan of a sweep: which rows there are, in which order, and what identifies the sweep."""

__all__ = [
    "Image",
    "Reading",
    "as_list",
    "check_arguments",
    "describe_images",
    "make_manifest",
    "make_readings",
    "plan_batches",
    "plan_rows",
    "stored_plan",
]

import hashlib
import os
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens import __version__
from vit_lens.decoders import DecodeSettings, KandinskyDecoder
from vit_lens.errors import ImageError, LensError, RecordError, VitLensError
from vit_lens.images import find_images, load_image
from vit_lens.lenses import Lens
from vit_lens.model import HookedViT
from vit_lens.names import Site
from vit_lens.records.reading import read_manifest
from vit_lens.sweeping.budget import Budget, coarse_settings

Image = Any  # a path, a PIL image or an array: see vit_lens.images.load_image
_WITHOUT_DECODER = 32
_PACKAGES = ("torch", "diffusers", "transformers", "transformer-lens", "numpy", "pillow")


@dataclass(frozen=True)
class Reading:
    """One lens on the sites it is asked for; a control replaces the sites' outputs by a placebo."""

    lens: Lens
    sites: list[Site]
    control: Literal["", "random"] = ""

    def embed(self, cache: Any, image_hash: str, seed: int) -> Float[Tensor, "site d_embed"]:
        if not self.control:
            return self.lens.embed(cache, self.sites)[0]
        generator = torch.Generator().manual_seed((int(image_hash[:12], 16) + seed) % 2**63)
        return self.lens.placebo(cache, self.sites, generator=generator)[0]


def make_readings(model: HookedViT, lens: Any, sites: Any, controls: bool) -> list[Reading]:
    """Return what each lens reads; of several lenses, each reads the sites that it is defined on.

    Raises:
        LensError: A lens is none, or no lens is defined on some site.
    """
    if isinstance(lens, str):
        raise LensError(f"lens={lens!r} is a string; for example DiffusionLens() or DiffusionSteeringLens(alpha=5)")
    several = not isinstance(lens, Lens)
    lenses = list(lens) if several else [lens]
    resolved = Site.resolve(sites, model.cfg)
    out: list[Reading] = []
    for one in lenses:
        if not isinstance(one, Lens):
            raise LensError(
                f"lens={one!r} is not a lens; for example DiffusionLens() or DiffusionSteeringLens(alpha=5)"
            )
        own = [s for s in resolved if one.reads(s)] if several else one.check_sites(model, sites)
        if own:
            one.check_sites(model, own)
            out.append(Reading(one, own))
            free = [s for s in own if not s.is_residual]
            out += [Reading(one, free, "random")] if controls and free else []
    read = {site for reading in out for site in reading.sites}
    if unread := [str(s) for s in resolved if s not in read]:
        raise LensError(
            f"none of the lenses is defined on {', '.join(unread[:4])}; add DiffusionLens() for residual sites"
        )
    return out


def plan_rows(image: dict[str, Any], seed: int, readings: list[Reading]) -> list[dict[str, Any]]:
    """Return the planned rows of one image and noise seed."""
    return [
        {
            "image": image["index"], "image_name": image["name"], "seed": seed,
            "kind": "control" if reading.control else "site", "control": reading.control,
            "site": str(site), "site_type": site.kind, "layer": site.layer, "head": site.head,
            **{key: reading.lens.record()[key] for key in ("lens", "definition", "alpha", "share", "anchor")},
        }
        for reading in readings
        for site in reading.sites
    ]  # fmt: skip


def make_manifest(
    model: HookedViT,
    decoder: KandinskyDecoder | None,
    settings: DecodeSettings | None,
    readings: list[Reading],
    described: list[dict[str, Any]],
    seeds: list[int],
    control_seed: int,
    batch_plan: dict[str, Any],
) -> dict[str, Any]:
    """Return what identifies the sweep, and what a reader of its record must know."""
    return {
        "format": 1,
        "model": {
            "encoder_id": model.encoder_id, "fingerprint": model.fingerprint, "device": str(model.device),
            "dtype": _plain(model.dtype), "config": model.cfg.to_dict(),
            "preprocess": model.preprocess_spec and model.preprocess_spec.to_dict(),
        },
        "decoder": decoder and settings and {
            "decoder_id": decoder.decoder_id, "fingerprint": decoder.fingerprint,
            "encoder_id": decoder.encoder_id, "dtype": _plain(decoder.dtype),
            "device": str(decoder.device), "settings": settings.to_dict(),
            **({"compiled": True} if decoder.compiled else {}),
        },
        "lenses": [reading.lens.record() for reading in readings if not reading.control],
        "images": described,
        "versions": {"vit-lens": __version__, **{package: version(package) for package in _PACKAGES}},
        "batch_plan": batch_plan,
        "seeds": {"decoder": seeds, "control": control_seed},
        "complete": False,
    }  # fmt: skip


def stored_plan(out: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the batch plan of the record in a directory; empty if there is no record yet.

    Raises:
        RecordError: The record is damaged.
    """
    return read_manifest(Path(out))["batch_plan"] if (Path(out) / "record.json").exists() else {}


def plan_batches(
    n_rows: int,
    n_seeds: int,
    batch_size: int | None,
    budget: Budget | None,
    decoder: KandinskyDecoder | None,
    settings: DecodeSettings | None,
    stored: dict[str, Any],
) -> dict[str, Any]:
    """Return which rows are drawn together, and how a budget spends its first pass.

    Args:
        n_rows: Of the table.
        n_seeds: Noise seeds, which share no batch.
        batch_size: Pictures that are decoded together; None: what is stored, or what memory has room for.
        budget: Of this run; None goes on with the plan that is stored.
        decoder: Knows what memory has room for.
        settings: How to decode.
        stored: The plan on disk; empty for a new record.

    Raises:
        RecordError: There is a budget, and the record on disk was begun without one.
    """
    if budget is not None and stored and "budget" not in stored:
        raise RecordError(
            "the record was begun without a budget, with every picture at full settings; go on with the same call "
            "without a budget, or choose another directory"
        )
    size: int | None = batch_size or stored.get("batch_size")
    if size is None:
        size = decoder.batch_size_for(settings) if decoder and settings else _WITHOUT_DECODER
    size = min(size, n_rows // n_seeds)  # no batch is padded beyond the sweep itself
    plan = {"n_rows": n_rows, "batch_size": size, "order": "row", "padded": True}
    if budget is None or settings is None:
        return plan | ({"budget": stored["budget"]} if "budget" in stored else {})
    coarse = coarse_settings(settings)
    given = {"same_above": budget.same_above, "coarse": coarse and coarse.to_dict(), "order": "information"}
    return plan | {"budget": given}


def check_arguments(images: list[Image], batch_size: int | None, shard: tuple[int, int] | None) -> None:
    """Raise if there is nothing to sweep, or a number is out of range.

    Raises:
        ImageError: There are no images.
        VitLensError: The batch size or the shard is out of range.
    """
    if not images:
        raise ImageError("no images given")
    if batch_size is not None and batch_size < 1:
        raise VitLensError(f"batch_size={batch_size}; expected at least 1")
    if shard is not None and not (0 <= shard[0] < shard[1] <= len(images)):
        raise VitLensError(f"shard={shard} of {len(images)} images; expected (i, n) with 0 <= i < n <= {len(images)}")


def as_list(images: Any) -> list[Image]:
    """Return the images as a list; one image alone counts as one, a folder as the images in it."""
    items = list(images) if isinstance(images, (list, tuple)) else [images]
    folders = (isinstance(item, (str, os.PathLike)) and Path(item).is_dir() for item in items)
    groups = [find_images([item]) if is_folder else [item] for item, is_folder in zip(items, folders, strict=True)]
    return [image for group in groups for image in group]


def _name(image: Image, index: int) -> str:
    return Path(image).name if isinstance(image, (str, os.PathLike)) else f"image {index}"


def _hash(image: Image) -> str:
    if isinstance(image, (str, os.PathLike)):
        try:
            return hashlib.sha256(Path(image).read_bytes()).hexdigest()
        except OSError as error:
            raise ImageError(f"cannot read {image}: {error.strerror}") from error
    picture = load_image(image)
    return hashlib.sha256(f"{picture.mode}{picture.size}".encode() + picture.tobytes()).hexdigest()


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def describe_images(images: list[Image], index: list[int]) -> list[dict[str, Any]]:
    """Return number, name and content hash of the chosen images; each is read whole, so a broken one is found now.

    Raises:
        ImageError: One cannot be read.
    """
    for i in index:
        load_image(images[i])
    return [{"index": i, "name": _name(images[i], i), "sha256": _hash(images[i])} for i in index]
