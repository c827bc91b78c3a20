"""Lenses by name, as the library, the command line and studies spell them."""

__all__ = [
    "DEFAULT_LENSES",
    "LENS_NAMES",
    "check_spelling",
    "needs_anchors",
    "parse_lens",
    "parse_lenses",
    "parse_text_lenses",
]

from collections.abc import Sequence
from typing import Any

from vit_lens.errors import LensError, VitLensError, expect, nearest
from vit_lens.lenses.anchored import check_share
from vit_lens.lenses.anchors import Anchors
from vit_lens.lenses.contract import Lens, check_lens
from vit_lens.lenses.counterfactual_lens import CounterfactualLens
from vit_lens.lenses.diffusion_lens import DiffusionLens
from vit_lens.lenses.jacobian_counterfactual import JacobianCounterfactualLens
from vit_lens.lenses.jacobian_lens import JacobianLens
from vit_lens.lenses.patch_spelling import PATCH_LENSES, check_patch_spelling, is_patch_spelling, read_patch_lenses
from vit_lens.lenses.projection import KAPPA, ProjectedLens, Targets, check_kappa
from vit_lens.lenses.steering_lens import DiffusionSteeringLens
from vit_lens.lenses.text_counterfactual import TextAnchors, TextCounterfactualLens
from vit_lens.lenses.text_lens import TextDiffusionLens, TextSteeringLens
from vit_lens.lenses.text_means import TextMeans
from vit_lens.reference import Jacobians, ReferenceMeans
from vit_lens.towers import Tower

# docs/trust.md: in the content study these two tell what a site does, pictures with a clean anchor tell nothing of it.
DEFAULT_LENSES = ("dsl-mean:alpha=5", "diffusion")
LENS_NAMES = ("diffusion", "dsl", "dsl-mean", "counterfactual", "jacobian")
_ALL_NAMES = (*LENS_NAMES, *PATCH_LENSES)
_TEXT_NAMES = LENS_NAMES[:4]
_STRENGTHS = {
    "diffusion": (), "dsl": ("alpha", "share"), "dsl-mean": ("alpha", "share"), "counterfactual": ("share",),
    "jacobian": ("alpha", "share"),
}  # fmt: skip
_STRENGTH_WORDS = {
    "diffusion": "the Diffusion Lens has no settings", "counterfactual": "give its strength as {}:share=NUMBER",
    "jacobian": "give its strength as {0}:alpha=NUMBER, or with anchors as {0}:share=NUMBER; {0} alone is the raw "
    "write",
    **dict.fromkeys(("dsl", "dsl-mean"), "give its strength as {0}:alpha=NUMBER or {0}:share=NUMBER"),
}  # fmt: skip
_PROJECT_WORDS = "behind any lens may stand :project=NUMBER"
_NEEDS_ANCHORS = (
    "{} starts from other images: give --anchors IMAGES, three or four, in Python anchors=[...]; none of them may be "
    "swept"
)
_NEEDS_MEANS = (
    "{} needs reference means of this model: make them once with `vit-lens reference IMAGES... --model MODEL --out "
    "means.safetensors`, then pass --reference means.safetensors"
)


def parse_lens(
    text: str, reference: ReferenceMeans | None, jacobians: Jacobians | None = None, *,
    anchors: Anchors | None = None, gallery: Targets | None = None,
) -> Lens:  # fmt: skip
    """Read ``diffusion``, ``dsl:alpha=10``, ``dsl:share=1``, ``dsl-mean:alpha=5``, ``counterfactual:share=0.5``.

    Another is ``jacobian``, which may be followed by ``:alpha=5``, or by ``:share=0.5`` to start from anchors. Behind
    each may stand ``:project=40``, which projects what is read on a gallery with that sharpness; ``:project`` takes the
    usual one.

    Of patches there are ``patch-diffusion``, ``patch-dsl:alpha=10`` and ``patch-dsl-mean:alpha=5``, the last two with
    ``:at=patch3`` behind them for one patch; tokens are not projected.

    Args:
        text: The spelling of one lens.
        reference: The means that ``dsl-mean`` and ``patch-dsl-mean`` start from, and whose norms ``counterfactual``
            measures by; None where there are none.
        jacobians: The Jacobians that ``jacobian`` goes by; None where there are none.
        anchors: What ``counterfactual`` starts from, and at all rows ``jacobian:share``; None where there are none.
        gallery: What ``project`` projects on; None where there is none.

    Raises:
        LensError: The text is none of these, or what its lens needs is not there.

    >>> vl.lenses.parse_lens("dsl:alpha=10", None).label
    'DSL, clean-anchored, alpha 10'
    >>> vl.lenses.parse_lens("dls:alpha=10", None)
    Traceback (most recent call last):
    vit_lens.errors.LensError: no lens 'dls'; nearest: 'dsl'. Write diffusion, ...
    """
    name, settings = check_spelling(text)
    if name in PATCH_LENSES:
        return read_patch_lenses(text, reference)[0]
    kappa = settings.pop("project", None)
    lens = _lens(name, settings, reference, jacobians, anchors)
    if kappa is None:
        return lens
    if gallery is None:
        raise LensError(
            f"lens {text!r} projects on a gallery, and there is none: give --gallery FOLDER, in Python "
            "beside=Beside(gallery=Gallery.from_folder(model, folder))"
        )
    return ProjectedLens(lens=lens, gallery=gallery, kappa=kappa)


def _lens(
    name: str, strength: dict[str, Any], reference: ReferenceMeans | None, jacobians: Jacobians | None,
    anchors: Anchors | None,
) -> Lens:  # fmt: skip
    if name == "diffusion":
        return DiffusionLens()
    if name == "jacobian":
        if jacobians is None:
            raise LensError(
                "jacobian needs averaged Jacobians of this model: make them once with `vit-lens jacobian IMAGES... "
                "--model MODEL --out jacobian.safetensors`, then pass --jacobian jacobian.safetensors; in Python, "
                "lens=JacobianLens.load(path)"
            )
        if "share" not in strength:
            return JacobianLens(jacobians=jacobians, alpha=strength.get("alpha"))
        if anchors is None:
            raise LensError(_NEEDS_ANCHORS.format("jacobian:share"))
        return JacobianCounterfactualLens(jacobians=jacobians, anchors=anchors, share=strength["share"])
    if name == "counterfactual":
        if anchors is None:
            raise LensError(_NEEDS_ANCHORS.format("counterfactual"))
        if reference is None:
            raise LensError(_NEEDS_MEANS.format("counterfactual"))
        return CounterfactualLens(anchors=anchors, norms=reference.differences, **strength)  # pyright: ignore[reportArgumentType]
    means: dict[str, Any] = {} if name == "dsl" else {"anchor": "mean", "reference": reference}
    if means and reference is None:
        raise LensError(_NEEDS_MEANS.format("dsl-mean"))
    return DiffusionSteeringLens(**strength, **means)


def check_spelling(text: str) -> tuple[str, dict[str, Any]]:
    """Return the name and the settings that a spelling says, whether or not there is what its lens needs.

    Raises:
        LensError: The spelling names no lens, a setting is none of its, or is no number.

    >>> vl.lenses.check_spelling("dsl-mean:alpha=5")
    ('dsl-mean', {'alpha': 5.0})
    >>> vl.lenses.check_spelling("counterfactual:share=0.5:project")
    ('counterfactual', {'share': 0.5, 'project': 40.0})
    """
    expect(text, str, "lens", LensError, "the spelling of one, such as 'dsl:alpha=10'")
    name, *rest = text.strip().split(":")
    if name in PATCH_LENSES:
        return check_patch_spelling(text)
    if name not in LENS_NAMES:
        raise LensError(
            f"no lens {name!r}; nearest: {nearest(name, _ALL_NAMES)}. Write diffusion, dsl:alpha=10, "
            "dsl-mean:alpha=5, counterfactual:share=0.5, jacobian:alpha=5, jacobian:share=0.5, or of patches "
            "patch-diffusion, patch-dsl-mean:alpha=5"
        )
    found: dict[str, float | int] = {}
    for part in rest:
        key, equals, value = part.partition("=")
        if key not in ("project", *_STRENGTHS[name]):
            raise LensError(f"lens {text!r}: {_STRENGTH_WORDS[name].format(name)}; {_PROJECT_WORDS}")
        if key in found:
            raise LensError(f"lens {text!r}: {key} is given twice")
        try:
            found[key] = KAPPA if (key, equals) == ("project", "") else float(value)
        except ValueError:
            raise LensError(f"lens {text!r}: {value!r} is not a number") from None
    if name.startswith("dsl") and ("alpha" in found) == ("share" in found):
        raise LensError(f"lens {text!r}: {_STRENGTH_WORDS[name].format(name)}; {_PROJECT_WORDS}")
    if "project" in found:
        check_kappa(found["project"])
    if name == "jacobian" and {"alpha", "share"} <= set(found):
        raise LensError(f"lens {text!r}: {_STRENGTH_WORDS[name].format(name)}; {_PROJECT_WORDS}")
    if not name.startswith("dsl") and "share" in found:
        check_share(found["share"])
    return name, found


def needs_anchors(text: str) -> str:
    """Return at which rows a spelt lens needs anchors, ``readout`` or ``all``; empty where it starts from none.

    Raises:
        LensError: The spelling names no lens.

    >>> vl.lenses.needs_anchors("counterfactual"), vl.lenses.needs_anchors("jacobian:share=0.5")
    ('readout', 'all')
    >>> vl.lenses.needs_anchors("jacobian:alpha=5")
    ''
    """
    name, settings = check_spelling(text)
    return {"counterfactual": "readout", "jacobian": "all" if "share" in settings else ""}.get(name, "")


def parse_lenses(
    given: Sequence[Lens | str] | Lens | str | None, model: Tower, reference: ReferenceMeans | None = None,
    jacobians: Jacobians | None = None, *, anchors: Any = None, gallery: Targets | None = None, apart: bool = True,
) -> list[Lens]:  # fmt: skip
    """Return lenses as they are, and read their spellings.

    Args:
        given: Lenses, spellings or both; None stands for :data:`DEFAULT_LENSES`. ``at=each`` in one of patches stands
            for one lens for each patch.
        model: The model that will be read. Means and Jacobians that ship with it serve the lenses that need them,
            where they are not given.
        reference: The means to take instead of the shipped ones; those of every token serve both kinds of lenses.
        jacobians: The Jacobians that ``jacobian`` goes by, instead of the shipped ones.
        anchors: What ``counterfactual`` and ``jacobian:share`` start from: images, or :class:`Anchors`.
        gallery: What ``project`` projects on.
        apart: Whether a lens of several anchors becomes one for each of them, as pictures need it.

    Raises:
        LensError: Something is no lens, a lens has not what it needs, or there are anchors that none needs.

    >>> [lens.label for lens in vl.lenses.parse_lenses(None, model)]
    ['DSL, mean-anchored, alpha 5', 'Diffusion Lens']
    >>> lenses = vl.lenses.parse_lenses("counterfactual", model, anchors=images)
    >>> [lens.label for lens in lenses]  # doctest: +NORMALIZE_WHITESPACE
    ['counterfactual, share 0.5, anchor 1_star.png', 'counterfactual, share 0.5, anchor 2_heart.png']
    """
    items: Sequence[object] = DEFAULT_LENSES
    if given is not None:
        items = list(given) if isinstance(given, (list, tuple)) else [given]
    names = [check_spelling(item)[0] for item in items if isinstance(item, str)]
    starts = [needs_anchors(item) for item in items if isinstance(item, str)]
    if anchors is not None and not any(starts):
        raise LensError(
            "anchors= serve the lenses counterfactual and jacobian:share=NUMBER alone, and neither was asked for by "
            "its spelling"
        )
    if anchors is not None and not isinstance(anchors, Anchors):
        anchors = Anchors.of(model, anchors, rows="all" if "all" in starts else "readout")
    means = _means(names, ("dsl-mean", "counterfactual"), model, reference)
    of_patches = _means(names, ("patch-dsl-mean",), model, reference)
    if jacobians is None and "jacobian" in names:
        jacobians = Jacobians.shipped(model)
    held = {"anchors": anchors, "gallery": gallery}
    found: list[Lens] = []
    for item in items:
        if isinstance(item, str) and is_patch_spelling(item):
            found += read_patch_lenses(item, of_patches, model)
        else:
            found.append(check_lens(parse_lens(item, means, jacobians, **held) if isinstance(item, str) else item))
    if not found:
        raise LensError("no lens given; for example lens='diffusion', or leave it out for the default")
    return [check_lens(one) for lens in found for one in lens.each()] if apart else found


def _means(
    names: Sequence[str], of: tuple[str, ...], model: Tower, reference: ReferenceMeans | None
) -> ReferenceMeans | None:
    """Return the means of some lenses, at the positions that they read; None where there are none, or none is asked."""
    if not set(names) & set(of):
        return reference
    is_of_patches = set(of) <= set(PATCH_LENSES)
    if reference is None:
        return ReferenceMeans.shipped(model, "all" if is_of_patches else "readout")
    return reference.at_readout(model) if reference.positions == "all" and not is_of_patches else reference


_TEXT_SETTINGS = ("norm", "encoder", "positions", "held", "pooled")


def parse_text_lenses(
    given: Sequence[Lens | str] | Lens | str | None, reference: TextMeans | None = None,
    anchors: TextAnchors | None = None,
) -> list[TextDiffusionLens]:  # fmt: skip
    """Return lenses of text encoders as they are, and read their spellings; of several anchors a lens for each.

    These are ``diffusion``, ``dsl:alpha=5``, ``dsl-mean:alpha=5`` and ``counterfactual:share=0.5``.
    Behind each may stand the settings of
    :class:`TextDiffusionLens`, as ``diffusion:norm=match:positions=eos``.

    Args:
        given: Lenses, spellings or both; None stands for the Diffusion Lens.
        reference: The means that ``dsl-mean`` starts from, and whose norms ``counterfactual`` measures by; None where
            there are none.
        anchors: The prompts that ``counterfactual`` starts from; None where there are none.

    Raises:
        LensError: Something is no lens of text encoders, a setting is none of its, a lens has not what it needs, or
            there are anchors that none needs.

    >>> [lens.label for lens in vl.lenses.parse_text_lenses(["diffusion:positions=eos", "dsl:alpha=5"])]
    ['Diffusion Lens, positions eos', 'DSL, alpha 5']
    """
    items = [given] if given is None or isinstance(given, (str, Lens)) else list(given)
    if not items:
        raise LensError("no lens given; for example lens='diffusion', or leave it out for the default")
    if anchors is not None and not any(isinstance(item, str) and item.startswith("counterfactual") for item in items):
        raise LensError("anchors= serve the lens counterfactual alone, which was not asked for by its spelling")
    found = [_text_lens("diffusion" if item is None else item, reference, anchors) for item in items]
    return [one for lens in found for one in lens.each()]  # pyright: ignore[reportReturnType]


def _text_lens(item: object, reference: TextMeans | None, anchors: TextAnchors | None) -> TextDiffusionLens:
    if isinstance(item, TextDiffusionLens):
        return item
    if not isinstance(item, str):
        raise LensError(f"{type(item).__name__} reads no prompts; take TextDiffusionLens(), or 'dsl:alpha=5'")
    name, *rest = item.strip().split(":")
    pairs = [part.partition("=") for part in rest]
    settings: dict[str, Any] = {key.strip(): value.strip() for key, _, value in pairs}
    own = {"diffusion": (), "counterfactual": ("share",)}.get(name, ("alpha",))
    known = (*own, *_TEXT_SETTINGS)
    if name not in _TEXT_NAMES:
        what = "lens jacobian is of images" if name == "jacobian" else f"no lens {name!r}"
        raise LensError(
            f"{what}; nearest: {nearest(name, _TEXT_NAMES)}. Write diffusion, dsl:alpha=5, dsl-mean:alpha=5, "
            "counterfactual:share=0.5, or diffusion:norm=match:positions=eos"
        )
    if any(part.split("=")[0].strip() == "project" for part in rest):
        raise LensError(
            f"lens {item!r}: what is read of prompts is a token for each position, and a projection is of one vector: "
            "the k-th tokens of two prompts are different words"
        )
    if not all(value for _, _, value in pairs):
        raise LensError(f"lens {item!r}: write settings as {name}:norm=match:positions=eos")
    if unknown := [key for key in settings if key not in known]:
        raise LensError(f"lens {item!r} has no setting {unknown[0]!r}; nearest: {nearest(unknown[0], known)}")
    if name == "diffusion":
        return TextDiffusionLens(**settings)
    if name != "dsl" and reference is None:
        raise LensError(
            f"{name} needs means over other prompts through these encoders: make them once with `vit-lens reference "
            "--prompts FILE --model PIPELINE --out means.safetensors`, then pass --reference means.safetensors"
        )
    if name == "counterfactual" and anchors is None:
        raise LensError(
            "counterfactual starts from other prompts: give --anchors PROMPT, in Python anchors=[...]; none of them "
            "may be swept"
        )
    means: dict[str, Any] = {} if name == "dsl" else {"reference": reference}
    try:
        if name == "counterfactual":
            strength = {"share": float(settings.pop("share"))} if "share" in settings else {}
            return TextCounterfactualLens(anchors=anchors, **strength, **settings, **means)  # pyright: ignore[reportArgumentType]
        return TextSteeringLens(alpha=float(settings.pop("alpha")), **settings, **means)
    except KeyError:
        raise LensError(f"lens {item!r}: give its strength as {name}:alpha=NUMBER") from None
    except VitLensError:
        raise
    except ValueError as error:
        raise LensError(f"lens {item!r}: {error}") from None
