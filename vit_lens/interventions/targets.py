"""What an intervention replaces: an address, as a slice of a hook point."""

__all__ = ["Target", "refuse_shadowed", "resolve_targets"]

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from vit_lens.addresses import Address, Site, Sites, find_address, listed
from vit_lens.attribution import check_model
from vit_lens.config import HookedTextConfig, TowerConfig
from vit_lens.errors import InterventionError, UnknownSiteError
from vit_lens.hooking import find_feature
from vit_lens.interventions.in_prompts import Places, places_in
from vit_lens.tokens import Tokens, resolve_tokens
from vit_lens.towers import Tower

_ORDER = {"resid_pre": 0, "head": 1, "attn": 2, "resid_mid": 3, "neuron": 4, "mlp": 5, "resid_post": 6}


@dataclass(frozen=True)
class Target:
    """A site, one neuron of an MLP, or a feature, at some tokens: a hook point and an index behind the positions.

    Attributes:
        address: The part alone.
        positions: On the axis ``pos``, the same of every image; None for every token, or where ``places`` says which.
        places: The positions of each prompt that is run; None where all have the same.
        sources: The positions of each cached prompt that a value is taken from; None for the same.
        ids: The tokens of the prompts that ``places`` are of; None where a mask says them.
    """

    address: Address
    positions: tuple[int, ...] | None
    places: Places | None = None
    sources: Places | None = None
    ids: Places | None = None

    @cached_property
    def hook_name(self) -> str:
        """The hook point."""
        return self.address.hook_name

    @property
    def unit(self) -> int | None:
        """Head, neuron or feature; None for a whole activation."""
        named = (self.address.head, self.address.neuron, self.address.feature)
        return next((unit for unit in named if unit is not None), None)

    @property
    def site(self) -> Site | None:
        """None for a neuron or a feature."""
        return self.address.site

    @cached_property
    def whole(self) -> str | None:
        """What would overwrite it: the attention block of a head, the MLP of a neuron, where a feature is written."""
        if self.unit is None:
            return None
        if self.address.feature is not None:
            return replace(self.address, feature=None).hook_name
        return replace(self.address, head=None, neuron=None, hook="mlp" if self.site is None else "attn").hook_name

    @property
    def where(self) -> tuple[tuple[int, ...] | None, Places | None, Places | None]:
        """All that says which tokens: positions, places and sources."""
        return self.positions, self.places, self.sources

    def tokens(self, image: int, n_ctx: int) -> Sequence[int]:
        """Return the positions of one image or prompt, of ``n_ctx``."""
        if self.places is not None:
            return self.places[image] if image < len(self.places) else ()
        return range(n_ctx) if self.positions is None else self.positions

    @property
    def is_pool(self) -> bool:
        """Whether it is part of attention pooling, which has one row and no token positions."""
        return self.address.block == "pool"

    @cached_property
    def order(self) -> tuple[float | int, int]:
        """When it runs: (layer, place in the block)."""
        layer = math.inf if self.address.layer is None else self.address.layer
        kind = self.address.kind if self.address.feature is None else str(self.address.hook)
        return layer, _ORDER[kind.removeprefix("pool_")]

    @property
    def stretch(self) -> float | int:
        """Which stretch between two attention layers it writes to: within one, no token reads another."""
        return self.order[0] - (self.order[1] == _ORDER["resid_pre"])


def resolve_targets(
    model: Tower, sites: Sites, tokens: Tokens | None = None, prompts: Any = None, cached: Any = None
) -> list[Target]:
    """Return the targets of sites; also of ``L3`` (attention and MLP), ``L3N17`` (a neuron), ``L3H4@cls``.

    ``L5.f17`` is a feature of the dictionary that is spliced into the model.

    Args:
        model: The model.
        sites: What is replaced.
        tokens: Where, for sites that do not say so; None for every token.
        prompts: The prompts that are run, as texts or ids, where positions are words or ends; None for images.
        cached: The ids of the prompts that values are taken from; None where they are the same, or none.

    Raises:
        UnknownSiteError: A site, layer or neuron is not one of the model's, or there is none.
        InterventionError: It is no model, a token is not one of the model's, or an address says others than ``tokens``.
    """
    check_model(model, InterventionError)
    every = _Where(model, tokens, prompts, cached)
    found: list[Target] = []
    for item in listed(sites):
        address, where = find_address(str(item)), every
        if address is not None and address.position is not None:
            where = _Where(model, address.position, prompts, cached)
            if tokens is not None and where.cells != every.cells:
                raise InterventionError(f"{address} says at which tokens, and tokens={tokens!r} says others: give one")
            item = replace(address, position=None)
        parts = _parts(item, model.cfg) if address is None or address.feature is None else [
            _feature(model, replace(address, position=None), where)
        ]  # fmt: skip
        found += [Target(part, *where.of_target) for part in parts]
    return list(dict.fromkeys(found))


class _Where:
    """Which tokens are meant: the same of all, or places of each prompt."""

    def __init__(self, model: Tower, where: Tokens | None, prompts: Any, cached: Any):
        self.positions: tuple[int, ...] | None = None
        self.places: Places | None = None
        self.sources: Places | None = None
        self.ids: Places | None = None
        is_mask = isinstance(where, Tensor) and isinstance(model.cfg, HookedTextConfig) and where.ndim == 2
        if where is not None and (is_mask or prompts is not None):
            self.places, self.sources = places_in(model, where, prompts, cached)
            if prompts is not None:
                self.ids = tuple(map(tuple, model.to_tokens(prompts).tolist()))  # pyright: ignore[reportAttributeAccessIssue]
        elif where is not None:
            self.positions = tuple(resolve_tokens(where, model.cfg))

    @property
    def of_target(self) -> tuple[tuple[int, ...] | None, Places | None, Places | None, Places | None]:
        return self.positions, self.places, self.sources, self.ids

    @property
    def cells(self) -> set[Any]:
        return {frozenset(row) for row in self.places} if self.places else set(self.positions or ())


def refuse_shadowed(targets: list[Target], n_ctx: int) -> None:
    """Raise if one target would overwrite all that another changes.

    Args:
        targets: Replaced in one run.
        n_ctx: How many tokens there are; some carry a change on through the others, from the next attention.

    Raises:
        InterventionError: It would.
    """
    n = max([len(t.places) for t in targets if t.places is not None], default=1)
    rows = {t: {(image, p) for image in range(n) for p in t.tokens(image, n_ctx)} for t in targets}
    wholes = [t for t in targets if t.unit is None]
    residuals = [t for t in wholes if t.site is not None and t.site.is_residual]
    for target in targets:
        whole = [t for t in wholes if t.hook_name == target.whole and rows[t] >= rows[target]]
        later = [t for t in residuals if t.order > target.order and rows[t] >= rows[target]]
        later = [t for t in later if len(rows[t]) == n * n_ctx or t.stretch == target.stretch]
        if later or whole:
            last = max(later or whole, key=lambda t: t.order).address
            raise InterventionError(f"{target.address} would have no effect: {last} is replaced too, and runs after it")


def _feature(model: Tower, address: Address, where: "_Where") -> Address:
    found, point = find_feature(model.hook_dict, address)
    if point.positions is not None and (outside := set(where.positions or ()) - set(point.positions)):
        raise InterventionError(
            f"{found} has no code at tokens {sorted(outside)}: its dictionary is of tokens {list(point.positions)} "
            "alone"
        )
    return found


def _parts(item: Site | Address | str, cfg: TowerConfig) -> list[Address]:
    address = find_address(str(item))
    if (
        address is None
        or address != address.part
        or (address.within, address.block) != (None, "L")
        or address.kind not in ("block", "neuron")
    ):
        return [site.address for site in Site.resolve(item, cfg)]
    attn, mlp = (Site(address.layer, kind).check(cfg) for kind in ("attn", "mlp"))
    if address.neuron is None:
        return [attn.address, mlp.address]
    if address.neuron >= cfg.d_mlp:
        raise UnknownSiteError(f"neuron {address}: the MLP has neurons N0 to N{cfg.d_mlp - 1}")
    return [address]
