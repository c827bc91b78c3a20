"""Lenses by name, as the library, the command line and studies spell them."""

__all__ = ["DEFAULT_LENSES", "LENS_NAMES", "check_spelling", "parse_lens", "parse_lenses", "parse_text_lenses"]

from collections.abc import Sequence
from typing import Any

from vit_lens.errors import LensError, expect, nearest
from vit_lens.lenses.contract import Lens, check_lens
from vit_lens.lenses.diffusion_lens import DiffusionLens
from vit_lens.lenses.jacobian_lens import JacobianLens
from vit_lens.lenses.steering_lens import DiffusionSteeringLens
from vit_lens.lenses.text_lens import TextDiffusionLens, TextSteeringLens
from vit_lens.lenses.text_means import TextMeans
from vit_lens.reference import Jacobians, ReferenceMeans
from vit_lens.towers import Tower

# docs/trust.md: in the content study these two tell what a site does, pictures with a clean anchor tell nothing of it.
DEFAULT_LENSES = ("dsl-mean:alpha=5", "diffusion")
LENS_NAMES = ("diffusion", "dsl", "dsl-mean", "jacobian")
_TEXT_NAMES = LENS_NAMES[:3]


def parse_lens(text: str, reference: ReferenceMeans | None, jacobians: Jacobians | None = None) -> Lens:
    """Read ``diffusion``, ``dsl:alpha=10``, ``dsl:share=1``, ``dsl-mean:alpha=5``, ``jacobian[:alpha=5]``.

    Args:
        text: The spelling of one lens.
        reference: The means that ``dsl-mean`` starts from; None where there are none.
        jacobians: The Jacobians that ``jacobian`` goes by; None where there are none.

    Raises:
        LensError: The text is none of these, ``dsl-mean`` has no reference means, or ``jacobian`` no Jacobians.

    >>> vl.lenses.parse_lens("dsl:alpha=10", None).label
    'DSL, clean-anchored, alpha 10'
    >>> vl.lenses.parse_lens("dls:alpha=10", None)
    Traceback (most recent call last):
    vit_lens.errors.LensError: no lens 'dls'; nearest: 'dsl'. Write diffusion, ...
    """
    name, strength = check_spelling(text)
    if name == "diffusion":
        return DiffusionLens()
    if name == "jacobian":
        if jacobians is None:
            raise LensError(
                "jacobian needs averaged Jacobians of this model: make them once with `vit-lens jacobian IMAGES... "
                "--model MODEL --out jacobian.safetensors`, then pass --jacobian jacobian.safetensors; in Python, "
                "lens=JacobianLens.load(path)"
            )
        return JacobianLens(jacobians=jacobians, alpha=strength.get("alpha"))
    means: dict[str, Any] = {} if name == "dsl" else {"anchor": "mean", "reference": reference}
    if means and reference is None:
        raise LensError(
            "dsl-mean needs reference means of this model: make them once with `vit-lens reference IMAGES... --model "
            "MODEL --out means.safetensors`, then pass --reference means.safetensors"
        )
    return DiffusionSteeringLens(**strength, **means)


def check_spelling(text: str) -> tuple[str, dict[str, float]]:
    """Return the name and the settings that a spelling says, whether or not there are means for it.

    Raises:
        LensError: The spelling names no lens, or its strength is no number.

    >>> vl.lenses.check_spelling("dsl-mean:alpha=5")
    ('dsl-mean', {'alpha': 5.0})
    """
    expect(text, str, "lens", LensError, "the spelling of one, such as 'dsl:alpha=10'")
    name, _, rest = text.strip().partition(":")
    if name not in LENS_NAMES:
        raise LensError(
            f"no lens {name!r}; nearest: {nearest(name, LENS_NAMES)}. Write diffusion, dsl:alpha=10, dsl-mean:alpha=5, "
            "jacobian:alpha=5"
        )
    if name == "diffusion" and rest:
        raise LensError(f"lens {text!r}: the Diffusion Lens has no settings")
    if name in ("diffusion", "jacobian") and not rest:
        return name, {}
    key, _, value = rest.partition("=")
    if name == "jacobian" and key != "alpha":
        raise LensError(f"lens {text!r}: give its strength as jacobian:alpha=NUMBER; jacobian alone is the raw write")
    if key not in ("alpha", "share"):
        raise LensError(f"lens {text!r}: give its strength as {name}:alpha=NUMBER or {name}:share=NUMBER")
    try:
        return name, {key: float(value)}
    except ValueError:
        raise LensError(f"lens {text!r}: {value!r} is not a number") from None


def parse_lenses(
    given: Sequence[Lens | str] | Lens | str | None, model: Tower, reference: ReferenceMeans | None = None,
    jacobians: Jacobians | None = None,
) -> list[Lens]:  # fmt: skip
    """Return lenses as they are, and read their spellings.

    Args:
        given: Lenses, spellings or both; None stands for :data:`DEFAULT_LENSES`.
        model: The model that will be read; its shipped means serve ``dsl-mean``, where it has some.
        reference: The means to take instead of the shipped ones.
        jacobians: The Jacobians that ``jacobian`` goes by; None where there are none.

    Raises:
        LensError: Something is no lens, ``dsl-mean`` has no reference means, or ``jacobian`` no Jacobians.

    >>> [lens.label for lens in vl.lenses.parse_lenses(None, model)]
    ['DSL, mean-anchored, alpha 5', 'Diffusion Lens']
    """
    items: Sequence[object] = DEFAULT_LENSES
    if given is not None:
        items = list(given) if isinstance(given, (list, tuple)) else [given]
    means = reference
    if means is None and any(isinstance(item, str) and item.strip().startswith("dsl-mean") for item in items):
        means = ReferenceMeans.shipped(model)
    found = [check_lens(parse_lens(item, means, jacobians) if isinstance(item, str) else item) for item in items]
    if not found:
        raise LensError("no lens given; for example lens='diffusion', or leave it out for the default")
    return found


_TEXT_SETTINGS = ("norm", "encoder", "positions", "held", "pooled")


def parse_text_lenses(
    given: Sequence[Lens | str] | Lens | str | None, reference: TextMeans | None = None
) -> list[TextDiffusionLens]:
    """Return lenses of text encoders as they are, and read their spellings.

    These are ``diffusion``, ``dsl:alpha=5`` and ``dsl-mean:alpha=5``. Behind each may stand the settings of
    :class:`TextDiffusionLens`, as ``diffusion:norm=match:positions=eos``.

    Args:
        given: Lenses, spellings or both; None stands for the Diffusion Lens.
        reference: The means that ``dsl-mean`` starts from; None where there are none.

    Raises:
        LensError: Something is no lens of text encoders, a setting is none of its, or ``dsl-mean`` has no means.

    >>> [lens.label for lens in vl.lenses.parse_text_lenses(["diffusion:positions=eos", "dsl:alpha=5"])]
    ['Diffusion Lens, positions eos', 'DSL, alpha 5']
    """
    items = [given] if given is None or isinstance(given, (str, Lens)) else list(given)
    if not items:
        raise LensError("no lens given; for example lens='diffusion', or leave it out for the default")
    return [_text_lens("diffusion" if item is None else item, reference) for item in items]


def _text_lens(item: object, reference: TextMeans | None) -> TextDiffusionLens:
    if isinstance(item, TextDiffusionLens):
        return item
    if not isinstance(item, str):
        raise LensError(f"{type(item).__name__} reads no prompts; take TextDiffusionLens(), or 'dsl:alpha=5'")
    name, *rest = item.strip().split(":")
    pairs = [part.partition("=") for part in rest]
    settings: dict[str, Any] = {key.strip(): value.strip() for key, _, value in pairs}
    known = _TEXT_SETTINGS if name == "diffusion" else ("alpha", *_TEXT_SETTINGS)
    if name not in _TEXT_NAMES:
        what = "lens jacobian is of images" if name == "jacobian" else f"no lens {name!r}"
        raise LensError(
            f"{what}; nearest: {nearest(name, _TEXT_NAMES)}. Write diffusion, dsl:alpha=5, dsl-mean:alpha=5, "
            "or diffusion:norm=match:positions=eos"
        )
    if not all(value for _, _, value in pairs):
        raise LensError(f"lens {item!r}: write settings as {name}:norm=match:positions=eos")
    if unknown := [key for key in settings if key not in known]:
        raise LensError(f"lens {item!r} has no setting {unknown[0]!r}; nearest: {nearest(unknown[0], known)}")
    if name == "diffusion":
        return TextDiffusionLens(**settings)
    means: dict[str, Any] = {} if name == "dsl" else {"reference": reference}
    if means and reference is None:
        raise LensError(
            "dsl-mean needs means over other prompts through these encoders: make them once with `vit-lens reference "
            "--prompts FILE --model PIPELINE --out means.safetensors`, then pass --reference means.safetensors"
        )
    try:
        return TextSteeringLens(alpha=float(settings.pop("alpha")), **settings, **means)
    except KeyError:
        raise LensError(f"lens {item!r}: give its strength as {name}:alpha=NUMBER") from None
    except ValueError as error:
        raise LensError(f"lens {item!r}: {error}") from None
