"""Lenses of patches by name, as the library and the command line spell them."""

__all__ = ["EACH_PATCH", "PATCH_LENSES", "check_patch_spelling", "is_patch_spelling", "read_patch_lenses"]

from typing import Any

from vit_lens.errors import LensError, nearest
from vit_lens.lenses.contract import Lens
from vit_lens.lenses.patch_lens import PatchDiffusionLens, PatchSteeringLens
from vit_lens.reference import ReferenceMeans
from vit_lens.towers import Tower, patches_of

PATCH_LENSES = ("patch-diffusion", "patch-dsl", "patch-dsl-mean")
EACH_PATCH = "each"
"""In the place of a patch: one lens for each patch of the model, with the write at that patch alone."""


def is_patch_spelling(text: str) -> bool:
    """Return whether a text spells a lens of patches.

    Args:
        text: The spelling of one lens.

    >>> vl.lenses.is_patch_spelling("patch-dsl:alpha=5"), vl.lenses.is_patch_spelling("dsl:alpha=5")
    (True, False)
    """
    return text.strip().partition(":")[0] in PATCH_LENSES


def check_patch_spelling(text: str) -> tuple[str, dict[str, Any]]:
    """Return the name and the settings that a spelling says.

    Raises:
        LensError: A setting is none of the lens, or its strength is no number.

    >>> from vit_lens.lenses.patch_spelling import check_patch_spelling
    >>> check_patch_spelling("patch-dsl-mean:alpha=5:at=patch3")
    ('patch-dsl-mean', {'alpha': 5.0, 'at': 'patch3'})
    """
    name, *rest = text.strip().split(":")
    if any(part.partition("=")[0].strip() == "project" for part in rest):
        raise LensError(
            f"lens {text!r}: what is read is a token for each patch, and a projection is on a gallery of embeddings"
        )
    if name == "patch-diffusion":
        if rest:
            raise LensError(f"lens {text!r}: the Diffusion Lens of patches has no settings")
        return name, {}
    said: dict[str, Any] = {}
    for part in rest:
        key, _, value = part.partition("=")
        key, value = key.strip(), value.strip()
        if key not in ("alpha", "share", "at"):
            raise LensError(f"lens {text!r} has no setting {key!r}; nearest: {nearest(key, ('alpha', 'share', 'at'))}")
        if not value:
            raise LensError(f"lens {text!r}: write settings as {name}:alpha=5:at=patch3")
        try:
            said[key] = value if key == "at" else float(value)
        except ValueError:
            raise LensError(f"lens {text!r}: {value!r} is not a number") from None
    if ("alpha" in said) == ("share" in said):
        raise LensError(f"lens {text!r}: give its strength as {name}:alpha=NUMBER or {name}:share=NUMBER")
    return name, said


def read_patch_lenses(text: str, reference: ReferenceMeans | None, model: Tower | None = None) -> list[Lens]:
    """Return the lens that a text spells; with ``at=each`` one for each patch of a model.

    Args:
        text: The spelling.
        reference: The means at every token that ``patch-dsl-mean`` starts from; None where there are none.
        model: The model whose patches ``at=each`` names; None where none is known.

    Raises:
        LensError: The text spells none, there are no means for it, or ``at=each`` without a model.
    """
    name, said = check_patch_spelling(text)
    if name == "patch-diffusion":
        return [PatchDiffusionLens()]
    if name == "patch-dsl-mean":
        if reference is None:
            raise LensError(
                "patch-dsl-mean needs means of this model at every token: make them once with `vit-lens reference "
                "IMAGES... --positions all --model MODEL --out means.safetensors`, then pass --reference "
                "means.safetensors"
            )
        said |= {"anchor": "mean", "reference": reference}
    if said.get("at") != EACH_PATCH:
        return [PatchSteeringLens(**said)]
    if model is None:
        raise LensError(f"lens {text!r}: at=each is a lens for each patch, and here one lens is read; name one patch")
    return [PatchSteeringLens(**{**said, "at": f"patch{k}"}) for k in range(patches_of(model.cfg).n_patches)]
