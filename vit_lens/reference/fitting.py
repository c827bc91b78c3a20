"""Averaged Jacobians over images: sums over batches, kept beside the file so that an interruption loses nothing."""

__all__ = ["check_once", "check_vit", "fit_jacobians", "forget_sums", "image_digits", "seen_by"]

import hashlib
import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from vit_lens.errors import LensError, OutputError, expect
from vit_lens.files import as_path, file_tensors, open_tensors, parse_json, save_tensors
from vit_lens.identity import forget_fingerprints
from vit_lens.models import HookedViT, pixel_batches, several
from vit_lens.reference.backward import sums_of_batch
from vit_lens.reference.jacobians import Jacobians
from vit_lens.reference.row_means import RowMeans, row_groups, state_width
from vit_lens.towers import check_model, preprocessing_of, working_copy

_SUMS = "vit_lens.jacobian_sums.1"
_SHARE = 10  # a checkpoint is written when this many times as long was computed as the last one took to write


def fit_jacobians(
    model: HookedViT, images: Any, *, out: str | Path | None = None, per_row: bool = False, batch_size: int = 8,
    progress: bool = False,
) -> Jacobians:  # fmt: skip
    """Average the Jacobians of a model over images; see :meth:`vit_lens.JacobianLens.fit`.

    Args:
        model: The model; its weights are not touched, and need no gradients. Weights in half precision are computed
            with in float32.
        images: Images (paths, PIL images, arrays) or preprocessed pixels, each once.
        out: The file that they will be saved as: sums are kept beside it (``FILE.partial``) and gone on with; None
            keeps none.
        per_row: Whether every row has Jacobians of its own.
        batch_size: The number of images in one run.
        progress: Whether to show a bar.

    Raises:
        LensError: It is no model of images, there are no images, or one is given twice; or sums that are there are of
            other images, another model or other options.
        OutputError: Sums cannot be written.

    >>> from vit_lens.reference import fit_jacobians
    >>> fit_jacobians(model, images).values.shape
    torch.Size([17, 2, 128, 128])
    """
    check_vit(model)
    images = several(images)
    if not len(images):
        raise LensError("averaged Jacobians need at least one image; a hundred give stable ones")
    model.refuse_hooks("averaged Jacobians")
    forget_fingerprints(model)
    groups = row_groups(model.cfg, per_row=per_row)
    bare = _in_full(model)
    digits = image_digits(bare, images, batch_size)
    check_once(digits)
    who = {
        "encoder_id": model.encoder_id, "fingerprint": model.fingerprint, "weights": model.exact_fingerprint(),
        "preprocess": preprocessing_of(model, images),
    }  # fmt: skip
    said = {**who, "per_row": per_row, "batch_size": batch_size, "images": digits}
    kept = None if out is None else _partial(as_path(out, OutputError))
    sums = _Sums.zero(bare, groups)
    if kept is not None and kept.exists():
        sums = sums.load(kept, said)
    todo = images[sums.n :]
    started, wrote, saved = time.monotonic(), 0.0, sums.n
    try:
        bar = tqdm(total=len(images), initial=sums.n, desc="Jacobians", unit="image", disable=not progress)
        for _, pixels in pixel_batches(bare, todo, batch_size, label="", progress=False):
            sums = sums.plus(bare, pixels.to(bare.W_E), groups)
            bar.update(len(pixels))
            is_due = sums.n == len(images) or time.monotonic() - started > _SHARE * wrote
            if kept is not None and is_due:  # at the end, too: the file itself may meet a full disk
                begun = time.monotonic()
                sums.save(kept, said)
                started, saved = time.monotonic(), sums.n
                wrote = started - begun
        bar.close()
    except BaseException:
        if kept is not None and sums.n > saved:
            with suppress(OutputError):  # what interrupted is what is told
                sums.save(kept, said)
        raise
    return sums.mean(groups, who, digits)


def forget_sums(out: Path) -> None:
    """Remove the sums beside a file that is whole."""
    _partial(out).unlink(missing_ok=True)


def check_vit(model: object) -> None:
    """Raise unless something is a hooked model that sees images.

    Raises:
        LensError: It reads texts, or is none.

    >>> vl.reference.check_vit(text_model)
    Traceback (most recent call last):
    vit_lens.errors.LensError: model is of type HookedTextEncoder; expected HookedViT: a model of images; of texts ...
    """
    check_model(model)
    expect(model, HookedViT, "model", LensError, "a model of images; of texts there is no such Jacobian here")


def check_once(digits: Sequence[str]) -> None:
    """Raise if an image is given twice.

    Raises:
        LensError: One is; the message numbers it.
    """
    first: dict[str, int] = {}
    for index, one in enumerate(digits):
        if first.setdefault(one, index) != index:
            raise LensError(f"images {first[one]} and {index} are the same picture; give each once")


def seen_by(model: HookedViT, images: Any, batch_size: int = 8) -> tuple[str, ...]:
    """Return the digits of images as fitting sees them: in float32 or wider, whatever the model is kept in."""
    return image_digits(_in_full(model), images, batch_size)


def _in_full(model: HookedViT) -> HookedViT:
    return working_copy(model, torch.promote_types(model.dtype, torch.float32), device=model.device)


def image_digits(model: HookedViT, images: Any, batch_size: int = 8) -> tuple[str, ...]:
    """Return sixteen digits for every image, of its pixels as the model sees them.

    Raises:
        ImageError: An image cannot be read.
    """
    found: list[str] = []
    for _, pixels in pixel_batches(model, images, batch_size, label="", progress=False):
        plain = pixels.detach().float().cpu().contiguous().numpy()
        found += [hashlib.sha256(one.tobytes()).hexdigest()[:16] for one in plain]
    return tuple(found)


# ---- sums ------------------------------------------------------------------------------------------------------------


@dataclass
class _Sums:
    """Sums over ``n`` images, in float64 on the CPU."""

    n: int
    dtype: torch.dtype
    values: Float[Tensor, "place group d_last d_model"]
    held: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def zero(cls, model: HookedViT, groups: Int[Tensor, " pos"]) -> "_Sums":
        shape = (2 * model.cfg.n_layers + 1, int(groups.max()) + 1, state_width(model), model.cfg.d_model)
        return cls(0, model.dtype, torch.zeros(shape, dtype=torch.float64, device="cpu"))

    def plus(self, model: HookedViT, pixels: Tensor, groups: Int[Tensor, " pos"]) -> "_Sums":
        """Return the sums with a batch more; these stay as they are, so that an interruption leaves whole ones."""
        values, held = sums_of_batch(model, pixels, groups)
        held = {name: value + self.held[name] if self.held else value for name, value in held.items()}
        return replace(self, n=self.n + len(pixels), values=values.add_(self.values), held=held)

    def mean(self, groups: Int[Tensor, " pos"], who: dict[str, Any], digits: tuple[str, ...]) -> Jacobians:
        found = {name: (value / self.n).to(self.dtype) for name, value in self.held.items()}
        return Jacobians(
            **who, values=(self.values / self.n).to(self.dtype), groups=groups, images=digits,
            means=RowMeans(n=self.n, **found),
        )  # fmt: skip

    def save(self, path: Path, said: dict[str, Any]) -> None:
        told = {**said, "n": self.n}
        save_tensors({"values": self.values, **self.held}, path, {"format": _SUMS, "said": json.dumps(told)})

    def load(self, path: Path, said: dict[str, Any]) -> "_Sums":
        advice = f"remove {path}, and begin anew"
        with open_tensors(path, [_SUMS], what="sums of Jacobians", error=LensError, advice=advice) as (file, meta):
            told = parse_json(meta["said"], f"the metadata of {path}", LensError, advice)
            n = int(told.pop("n"))
            wanted = json.loads(json.dumps(said))
            if differ := [name for name in wanted if told.get(name) != wanted[name]]:
                raise LensError(
                    f"{path} holds the sums of {n} images, begun with other {', '.join(differ)}: give the same command "
                    "to go on, or choose another --out; or remove it"
                )
            held = file_tensors(file)
            if (values := held.pop("values")).shape != self.values.shape or not 0 < n <= len(said["images"]):
                raise LensError(f"{path} holds sums of shape {tuple(values.shape)}, of {n} images; {advice}")
            return replace(self, n=n, values=values, held=held)


def _partial(out: Path) -> Path:
    return out.with_name(f"{out.name}.partial")
