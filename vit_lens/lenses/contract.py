"""What a lens is: from a cached run and sites to what a decoder is asked to draw. It describes itself once."""

__all__ = [
    "Addressed", "HookFn", "Lens", "LensDescription", "check_lens", "checked_clean", "checked_read", "no_control",
    "run_for",
]  # fmt: skip

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vit_lens.addresses import Site, Sites
from vit_lens.attribution import check_model
from vit_lens.conditions import Condition
from vit_lens.config import TowerConfig
from vit_lens.controls import Against, Change
from vit_lens.errors import LensError
from vit_lens.identity import fingerprint
from vit_lens.towers import Tower, ViTActivationCache

HookFn = Callable[..., Tensor]


@dataclass(frozen=True, kw_only=True)
class LensDescription:
    """What results carry of a lens.

    Attributes:
        lens: The name of the lens, such as ``diffusion``.
        settings: Everything that changes what the lens reads, as plain values; equal settings are the same lens.
        label: A few words for legends and menus.
        words: A sentence or two for people who look at the lens's pictures.

    >>> said = vl.DiffusionSteeringLens(alpha=5).describe()
    >>> said.lens, said.label, said.id
    ('dsl', 'DSL, clean-anchored, alpha 5', 'dsl-bd7423bc')
    """

    lens: str
    settings: Mapping[str, Any]
    label: str
    words: str

    @property
    def id(self) -> str:
        """The lens's name and eight digits that follow from its settings: the same in every record."""
        said = json.dumps(dict(self.settings), sort_keys=True, allow_nan=False)
        return f"{self.lens}-{hashlib.sha256(said.encode()).hexdigest()[:8]}"


@runtime_checkable
class Addressed(Protocol):
    """What sites are of: a hooked model that says the sizes of its tower.

    Attributes:
        cfg: The sizes.
        hook_dict: The hook points by name.

    >>> isinstance(model, Addressed)
    True
    """

    hook_dict: dict[str, HookPoint]

    @property
    def cfg(self) -> TowerConfig: ...


class Lens(ABC):
    """A reading of sites; subclass it and write :meth:`reads` and :meth:`read` (docs/own_lens.md).

    >>> class Half(vl.Lens):
    ...     "Half of what the Diffusion Lens reads."
    ...     def reads(self, site):
    ...         return True
    ...     def read(self, cache, sites):
    ...         return vl.Condition(pooled=vl.DiffusionLens().embed(cache, sites) / 2)
    >>> Half().read(cache, ["L3H4", "L5.mlp"])
    Condition([2, 2] rows of pooled [128])
    """

    name: str = ""
    """The lens's name in records; by default that of the class."""
    parts: tuple[str, ...] = ("pooled",)
    """Which parts of a condition it reads: ``pooled``, ``tokens``, or both."""
    rows: Literal["readout", "all"] = "readout"
    """At which positions it needs the cache: where the embedding is read from, or everywhere."""

    @abstractmethod
    def reads(self, site: Site) -> bool:
        """Return whether the lens is defined on a site."""

    @abstractmethod
    def read(self, cache: ViTActivationCache, sites: Sites) -> Condition:
        """Return what a decoder is to draw of every site, with rows [batch site].

        Args:
            cache: The cache of one run of the images, at the positions that :attr:`rows` names.
            sites: Sites as ``Site.resolve`` takes them: ``L3H4``, ``["L5.mlp", "L7.resid_post"]``, ``heads``.

        Raises:
            UnknownSiteError: A site is not one of the model's.
            LensError: The lens is not defined on a site.
        """

    def read_control(self, cache: ViTActivationCache, sites: Sites, *, generator: torch.Generator) -> Condition:
        """Return the control: what is read when a random direction of equal norm stands in for each site's output.

        Args:
            cache: The cache that :meth:`read` takes.
            sites: Sites as :meth:`read` takes them.
            generator: The source of the random directions, on the CPU.

        Raises:
            LensError: The lens has no control.
        """
        if type(self).read_changed is Lens.read_changed:
            raise no_control(self)
        return self.read_against(cache, sites, Against(control="random", generator=generator))

    def read_changed(self, cache: ViTActivationCache, sites: Sites, change: Change) -> Condition:
        """Return what is read where something else stands in for each site's output; with it come all controls.

        Args:
            cache: The cache that :meth:`read` takes.
            sites: Sites as :meth:`read` takes them.
            change: Called as ``change(outputs, origin, sites, outputs_of)``, it returns what stands in: ``outputs``
                [batch site row d_model] at whatever rows the lens reads, ``origin`` what the lens measures them from
                or None, ``outputs_of(cache)`` the same outputs of another cache.

        Raises:
            LensError: The lens reads no outputs that could be changed.
        """
        raise LensError(
            f"{self.describe().label} has no control but 'random': give it read_changed(cache, sites, change), with "
            "which come all of them (docs/own_lens.md)"
        )

    def read_against(self, cache: ViTActivationCache, sites: Sites, against: Against) -> Condition:
        """Return a control of any kind; see :class:`vit_lens.controls.Against`.

        Args:
            cache: The cache that :meth:`read` takes.
            sites: Sites as :meth:`read` takes them.
            against: What stands in.

        Raises:
            LensError: The lens has no such control, or it cannot be made of what there is.
            ReferenceMismatchError: The bank of other images is another model's.
        """
        if against.others is not None:
            against.others.bank.check(cache.model)
        if against.is_plain and type(self).read_control is not Lens.read_control:
            return self.read_control(cache, sites, generator=against.generator)
        return self.read_changed(cache, sites, against)

    @property
    def has_control(self) -> bool:
        """Whether the lens says what its control is."""
        return type(self).read_control is not Lens.read_control or self.has_controls

    @property
    def has_controls(self) -> bool:
        """Whether the lens has all controls, and not the isotropic one alone."""
        return type(self).read_changed is not Lens.read_changed

    def each(self) -> "list[Lens]":
        """Return the lenses that a sweep draws in this one's place; itself, unless it starts from several things.

        >>> vl.DiffusionLens().each()
        [DiffusionLens()]
        """
        return [self]

    def starts(self) -> dict[str, Image.Image]:
        """Return the pictures that the lens starts from, by digits of their content, to look at beside its own."""
        return {}

    def knows(self, cache: ViTActivationCache) -> list[bool]:
        """Return which inputs of a run are part of the lens itself, as its anchors are, and no fair test of it.

        Args:
            cache: The cache that :meth:`read` takes.
        """
        return [False] * len(cache.model.streams[-1].last(cache))

    def clean(self, embeds: Float[Tensor, "batch d_embed"], cache: ViTActivationCache) -> Condition:
        """Return what the model itself outputs, as this lens reads it: what its sites are compared with.

        Args:
            embeds: The model's output, not normalised.
            cache: The cache of the run that gave it.
        """
        return Condition(pooled=embeds)

    def hooks(self, cache: ViTActivationCache, site: Site | str) -> list[tuple[str, HookFn]]:
        """Return forward hooks under which the model outputs the site's reading, for the cached images.

        They hold what the cache holds, and no copy: what is edited in the cache afterwards, they set.

        Args:
            cache: The cache of the images that will be run under the hooks.
            site: One site, such as ``L3H4``.

        Raises:
            LensError: The lens exists in closed form alone.
        """
        raise LensError(f"{self.describe().label} has no hook functions; read(cache, sites) is its closed form")

    def other_image(self, cache: ViTActivationCache, sites: Sites) -> Float[Tensor, "batch site d_embed"]:
        """Return the pooled control "other": each site's output is that of the next image, at the norm of its own.

        Raises:
            LensError: The lens has no such control.
        """
        raise LensError(f"{self.describe().label} has no control 'other'; take 'random'")

    def written_norms(self, cache: ViTActivationCache, sites: Sites) -> Float[Tensor, "batch site"] | None:
        """Return how long what each site writes is; None, by default, where that is of the read-out rows.

        Args:
            cache: The cache that :meth:`read` takes.
            sites: Sites as :meth:`read` takes them.
        """
        return None

    def numbers(self, model: Tower) -> int:
        """Return how many numbers the condition of a row has, for the estimate of a plan.

        Args:
            model: The model that will be read.
        """
        return model.cfg.d_embed

    # ---- how it describes itself

    def settings(self) -> dict[str, Any]:
        """Return everything that changes what the lens reads; by default its public attributes.

        Raises:
            LensError: An attribute has no plain value.
        """
        return {name: self._plain(name, value) for name, value in vars(self).items() if not name.startswith("_")}

    @property
    def label(self) -> str:
        """The lens's name and settings in a few words, for legends."""
        said = [f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in
                self.settings().items() if value is not None]  # fmt: skip
        return ", ".join([self.name or type(self).__name__, *said])

    @property
    def words(self) -> str:
        """What the lens draws, in a sentence; by default the first of its docstring."""
        return (type(self).__doc__ or "").strip().split("\n")[0]

    def describe(self) -> LensDescription:
        """Return what results carry of this lens.

        Raises:
            LensError: A setting has no plain value.
        """
        return LensDescription(
            lens=self.name or type(self).__name__, settings=self.settings(), label=self.label, words=self.words
        )

    def _plain(self, name: str, value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            raise LensError(f"{name}={value} of {type(self).__name__} is not a finite number")
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, Tensor):
            return f"tensor {fingerprint({name: value.double()})}"
        if isinstance(value, (list, tuple)):
            return [self._plain(name, item) for item in value]
        if isinstance(value, Mapping):
            return {str(key): self._plain(name, item) for key, item in value.items()}
        content = getattr(value, "content", None) or getattr(value, "fingerprint", None)
        if isinstance(content, str):
            return content
        raise LensError(
            f"{type(self).__name__}.{name} is a {type(value).__name__}, which a record cannot hold: give the lens "
            "settings() with plain values that tell it from its like, or begin the attribute's name with an underscore"
        )

    # ---- shorthands

    def embed(self, cache: ViTActivationCache, sites: Sites) -> Float[Tensor, "batch site *pos d_embed"]:
        """Return the pooled part of :meth:`read`: the lens embedding of every site.

        Args:
            cache: The cache that :meth:`read` takes.
            sites: Sites as :meth:`read` takes them.

        Raises:
            UnknownSiteError: A site is not one of the model's.
            LensError: The lens is not defined on a site, or reads tokens alone.
        """
        return self._pooled(self.read(cache, sites))

    def placebo(
        self, cache: ViTActivationCache, sites: Sites, *, generator: torch.Generator
    ) -> Float[Tensor, "batch site *pos d_embed"]:
        """Return the pooled part of :meth:`read_control`: the control's embedding of every site.

        Args:
            cache: The cache that :meth:`read` takes.
            sites: Sites as :meth:`read` takes them.
            generator: The source of the random directions, on the CPU.

        Raises:
            UnknownSiteError: A site is not one of the model's.
            LensError: The lens is not defined on a site, has no control, or reads tokens alone.
        """
        return self._pooled(self.read_control(cache, sites, generator=generator))

    def pooled_against(
        self, cache: ViTActivationCache, sites: Sites, against: Against
    ) -> Float[Tensor, "batch site *pos d_embed"]:
        """Return the pooled part of :meth:`read_against`: a control's embedding of every site.

        Args:
            cache: The cache that :meth:`read` takes.
            sites: Sites as :meth:`read` takes them.
            against: What stands in.

        Raises:
            LensError: The lens has no such control, it cannot be made of what there is, or the lens reads tokens alone.
            ReferenceMismatchError: The bank of other images is another model's.
        """
        return self._pooled(self.read_against(cache, sites, against))

    def _pooled(self, found: Condition) -> Tensor:
        _check_parts(self, found)
        if found.pooled is None:
            raise LensError(f"{self.describe().label} reads {found.words()}, no pooled embedding: use read()")
        return found.pooled

    def check_sites(self, model: Addressed, sites: Sites) -> list[Site]:
        """Return the sites, parsed and in range, if the lens is defined on all of them for this model.

        Raises:
            UnknownSiteError: A site is not one of the model's.
            LensError: The lens is not defined on a site.
        """
        check_model(model)
        resolved = Site.resolve(sites, model.cfg)
        if unread := [str(site) for site in resolved if not self.reads(site)]:
            raise LensError(f"{self.describe().label} is not defined on {', '.join(unread[:4])}")
        return resolved

    def check_site(self, model: Addressed, site: Site | str) -> Site:
        """Return the one site that hooks are made for; see :meth:`check_sites`.

        Raises:
            UnknownSiteError: The site is not one of the model's.
            LensError: The lens is not defined on it, or several sites were given.
        """
        found = self.check_sites(model, site)
        if len(found) != 1:
            raise LensError(f"{site!r} is {len(found)} sites, and hooks show one: lens.hooks(cache, '{found[0]}')")
        return found[0]


def no_control(lens: Lens) -> LensError:
    """Return the error that a lens without a control raises, naming what to give it."""
    return LensError(
        f"{lens.describe().label} has no control: give it read_control(cache, sites, generator=), or sweep without "
        "controls"
    )


def run_for(
    model: Tower, pixels: Float[Tensor, "batch channel height width"], lenses: Iterable[Lens] | Lens
) -> tuple[Float[Tensor, "batch d_embed"], ViTActivationCache]:
    """Run a model and keep what lenses need: the parts of the residual stream, at the positions that they read.

    Args:
        model: The model, on the device of the pixels.
        pixels: Preprocessed images.
        lenses: The lenses that will read the cache; one with ``rows="all"`` makes it hold every position.

    Raises:
        LensError: One of them is no lens, or it is no model.

    >>> embeds, small = vl.lenses.run_for(model, pixels, [vl.DiffusionLens()])
    >>> embeds.shape, small.rows
    (torch.Size([2, 128]), 'readout')
    """
    lenses = [check_lens(lens) for lens in ([lenses] if isinstance(lenses, Lens) else lenses)]
    if all(lens.rows == "readout" for lens in lenses):
        return model.run_with_cache(pixels, rows="readout")
    return model.run_with_cache(pixels, names_filter=model.is_readout_part)


def check_lens(lens: object) -> Lens:
    """Return a lens of anybody's, if it says of itself what a lens has to say.

    Raises:
        LensError: It is no subclass of ``Lens``, or its parts, rows or settings are not what a lens may say.
    """
    if not isinstance(lens, Lens):
        raise LensError(
            f"lens={lens!r} is not a lens; for example DiffusionLens(), 'dsl:alpha=5', or a subclass of vit_lens.Lens "
            "(docs/own_lens.md)"
        )
    who = type(lens).__name__
    if not isinstance(lens.parts, tuple) or not lens.parts or set(lens.parts) - {"pooled", "tokens"}:
        raise LensError(f"{who}.parts is {lens.parts!r}; expected ('pooled',), ('tokens',) or both in a tuple")
    if lens.rows not in ("readout", "all"):
        raise LensError(f"{who}.rows is {lens.rows!r}; expected 'readout' or 'all'")
    settings = lens.settings()
    if not isinstance(settings, Mapping):
        raise LensError(f"{who}.settings() is a {type(settings).__name__}; expected a dict of plain values")
    try:
        json.dumps(dict(settings), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise LensError(f"{who}.settings() cannot be kept in a record ({error}); give plain numbers") from error
    return lens


def checked_read(lens: Lens, found: Any, n_batch: int, n_sites: int) -> Condition:
    """Return what a lens of anybody's read, if it is what a lens has to return.

    Args:
        lens: The lens that read it.
        found: What its ``read`` or ``read_control`` returned.
        n_batch: The number of images in the cache.
        n_sites: The number of sites that were read.

    Raises:
        LensError: What was returned is no condition, lacks a part, has other rows than the cache and the sites, or is
            not finite.
    """
    if not isinstance(found, Condition):
        raise LensError(
            f"{type(lens).__name__} read a {type(found).__name__}; a lens returns a vit_lens.Condition, such as "
            "Condition(pooled=embeds)"
        )
    _check_parts(lens, found)
    if missing := [name for name in lens.parts if name not in found.parts()]:
        raise LensError(
            f"{type(lens).__name__} says that it reads {' and '.join(lens.parts)}, and read {found.words()}: it lacks "
            f"{missing[0]}; say parts = (...) of the lens, or read them"
        )
    if found.rows != (n_batch, n_sites):
        raise LensError(
            f"{type(lens).__name__} read rows {list(found.rows)} of {n_batch} images and {n_sites} sites; expected "
            f"[{n_batch}, {n_sites}]"
        )
    return found


def checked_clean(lens: Lens, found: Any, n_batch: int) -> Condition:
    """Return what a lens of anybody's says of the whole image, if it is what ``clean`` has to return.

    Args:
        lens: The lens that said it.
        found: What its ``clean`` returned.
        n_batch: The number of images in the cache.

    Raises:
        LensError: What was returned is no condition, has other rows than the cache, or is not finite.
    """
    if not isinstance(found, Condition) or found.rows != (n_batch,):
        said = f"rows {list(found.rows)}" if isinstance(found, Condition) else f"a {type(found).__name__}"
        raise LensError(
            f"{type(lens).__name__}.clean returned {said}; expected a vit_lens.Condition with rows [{n_batch}], as "
            "Condition(pooled=embeds)"
        )
    _check_parts(lens, found)
    return found


def _check_parts(lens: Lens, found: Condition) -> None:
    for name, part in found.parts().items():
        if name != "mask" and not part.is_floating_point():
            raise LensError(f"{type(lens).__name__} read {name} as {part.dtype}; expected a floating-point tensor")
        if not part.is_meta and not part.isfinite().all():
            raise LensError(f"{type(lens).__name__} read {name} that hold nan or infinity, which nothing can draw")
