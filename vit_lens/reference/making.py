"""Jacobians and their error, made once: what is there already is gone on with."""

__all__ = ["make_jacobians", "split_held_out"]

from pathlib import Path
from typing import Any

from torch import Tensor

from vit_lens.errors import LensError
from vit_lens.files import as_path
from vit_lens.models import HookedViT, several
from vit_lens.reference.fitting import check_vit, fit_jacobians, forget_sums, seen_by
from vit_lens.reference.jacobians import Jacobians
from vit_lens.reference.patching import measure_error

_MOST_HELD_OUT = 16


def make_jacobians(
    model: HookedViT, images: Any, *, held_out: Any, test: bool, out: str | Path | None, per_row: bool,
    batch_size: int, progress: bool,
) -> Jacobians:  # fmt: skip
    """Fit, save and test, as far as that is not done; see :meth:`vit_lens.JacobianLens.fit`.

    Raises:
        LensError: There are too few images, or what is there is of other images or options.
        ReferenceMismatchError: What is there is another model's.
        OutputError: A file cannot be written.

    >>> how = dict(out=tmp / "made.safetensors", per_row=False, batch_size=8, progress=False)
    >>> made = vl.reference.make_jacobians(model, images, held_out=None, test=False, **how)
    >>> again = vl.reference.make_jacobians(model, images, held_out=None, test=False, **how)  # it is there
    >>> again.content == made.content
    True
    """
    check_vit(model)
    if held_out is not None and not test:
        raise LensError("held_out= is what the error is measured on, and test=False measures none; leave one out")
    images = several(images)
    if test and held_out is None:
        images, held_out = split_held_out(images)
    how: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
    place = None if out is None else as_path(out, LensError)
    if place is not None and place.exists():
        made = Jacobians.load(place).check(model)
        _check_same(set(made.images) == set(seen_by(model, images, batch_size)), place, f"{made.n} other images")
        _check_same((made.values.shape[1] == model.cfg.n_ctx) == per_row, place, "other groups of rows")
    else:
        made = fit_jacobians(model, images, out=place, per_row=per_row, **how)
        if place is not None:
            made.save(place)
            forget_sums(place)
    if test and made.error is not None and place is not None:
        same = made.error.images == seen_by(model, several(held_out), batch_size)
        _check_same(same, place, f"an error on {made.error.n} other held-out images")
    elif test:
        made = measure_error(made, model, held_out, **how)
        if place is not None:
            made.save(place)
    return made


def _check_same(same: bool, place: Path, what: str) -> None:
    if not same:
        raise LensError(f"{place} is there already, with {what}; remove it, or choose another name")


def split_held_out(images: Any, n: int | None = None) -> tuple[Any, Any]:
    """Return images to fit on, and images held out, evenly spread over all: folders are often sorted.

    Args:
        images: Images, or pixels.
        n: How many are held out; None for a quarter, at most 16.

    Raises:
        LensError: There are too few.

    >>> vl.reference.split_held_out(list(range(8)))
    ([0, 1, 3, 4, 5, 7], [2, 6])
    """
    total = len(images)
    n = min(_MOST_HELD_OUT, total // 4) if n is None else n
    if n < 2 or n >= total:
        raise LensError(
            f"{n} of {total} image{'s' * (total != 1)} held out: the error is measured by pairs of at least two, and "
            "one or more are fitted on. Give 8 images or more, or measure no error (--n-held-out 0; test=False)"
        )
    held = [(2 * index + 1) * total // (2 * n) for index in range(n)]
    fitted = sorted(set(range(total)) - set(held))
    if isinstance(images, Tensor):
        return images[fitted], images[held]
    return [images[index] for index in fitted], [images[index] for index in held]
