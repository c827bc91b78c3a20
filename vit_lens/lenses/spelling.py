"""Lenses by name, as the command line and studies spell them."""

__all__ = ["LENS_NAMES", "parse_lens"]

from vit_lens.errors import LensError, nearest
from vit_lens.lenses.diffusion_lens import DiffusionLens
from vit_lens.lenses.lens import Lens
from vit_lens.lenses.steering_lens import DiffusionSteeringLens
from vit_lens.reference import ReferenceMeans

LENS_NAMES = ("diffusion", "dsl", "dsl-mean")


def parse_lens(text: str, reference: ReferenceMeans | None) -> Lens:
    """Read ``diffusion``, ``dsl:alpha=10``, ``dsl:share=1`` or ``dsl-mean:alpha=5``.

    Raises:
        LensError: The text is none of these, or ``dsl-mean`` has no reference means.
    """
    name, _, rest = text.strip().partition(":")
    if name not in LENS_NAMES:
        raise LensError(
            f"no lens {name!r}; nearest: {nearest(name, LENS_NAMES)}. Write diffusion, dsl:alpha=10, dsl-mean:alpha=5"
        )
    if name == "diffusion":
        if rest:
            raise LensError(f"lens {text!r}: the Diffusion Lens has no settings")
        return DiffusionLens()
    key, _, value = rest.partition("=")
    if key not in ("alpha", "share"):
        raise LensError(f"lens {text!r}: give its strength as {name}:alpha=NUMBER or {name}:share=NUMBER")
    try:
        strength = float(value)
    except ValueError:
        raise LensError(f"lens {text!r}: {value!r} is not a number") from None
    if name == "dsl":
        return DiffusionSteeringLens(**{key: strength})  # pyright: ignore[reportArgumentType]
    if reference is None:
        raise LensError(
            "dsl-mean needs reference means of this model: make them once with `vit-lens reference IMAGES... --model "
            "MODEL --out means.safetensors`, then pass --reference means.safetensors"
        )
    return DiffusionSteeringLens(**{key: strength}, anchor="mean", reference=reference)  # pyright: ignore[reportArgumentType]
