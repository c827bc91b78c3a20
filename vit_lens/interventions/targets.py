"""What an intervention replaces: an address, as a slice of a hook point."""

__all__ = ["Target", "refuse_shadowed", "resolve_targets"]

import math
from dataclasses import dataclass, replace
from functools import cached_property

from vit_lens.addresses import Address, Site, Sites, find_address, listed
from vit_lens.attribution import check_model
from vit_lens.config import TowerConfig
from vit_lens.errors import InterventionError, UnknownSiteError
from vit_lens.tokens import Tokens, resolve_tokens
from vit_lens.towers import Tower

_ORDER = {"resid_pre": 0, "head": 1, "attn": 2, "resid_mid": 3, "neuron": 4, "mlp": 5, "resid_post": 6}


@dataclass(frozen=True)
class Target:
    """A site, or one neuron of an MLP, at some tokens: a hook point and the index on the axis behind the positions.

    Attributes:
        address: The part alone.
        positions: On the axis ``pos``; None for every token.
    """

    address: Address
    positions: tuple[int, ...] | None

    @cached_property
    def hook_name(self) -> str:
        """The hook point."""
        return self.address.hook_name

    @property
    def unit(self) -> int | None:
        """Head or neuron; None for a whole activation."""
        return self.address.neuron if self.address.head is None else self.address.head

    @property
    def site(self) -> Site | None:
        """None for a neuron."""
        return self.address.site

    @cached_property
    def whole(self) -> str | None:
        """What would overwrite it: the attention block of a head, the MLP of a neuron."""
        if self.unit is None:
            return None
        return replace(self.address, head=None, neuron=None, hook="mlp" if self.site is None else "attn").hook_name

    @property
    def is_pool(self) -> bool:
        """Whether it is part of attention pooling, which has one row and no token positions."""
        return self.address.block == "pool"

    @cached_property
    def order(self) -> tuple[float | int, int]:
        """When it runs: (layer, place in the block)."""
        layer = math.inf if self.address.layer is None else self.address.layer
        return layer, _ORDER[self.address.kind.removeprefix("pool_")]

    @property
    def stretch(self) -> float | int:
        """Which stretch between two attention layers it writes to: within one, no token reads another."""
        return self.order[0] - (self.order[1] == _ORDER["resid_pre"])


def resolve_targets(model: Tower, sites: Sites, tokens: Tokens | None = None) -> list[Target]:
    """Return the targets of sites; also of ``L3`` (attention and MLP), ``L3N17`` (a neuron), ``L3H4@cls``.

    Raises:
        UnknownSiteError: A site, layer or neuron is not one of the model's, or there is none.
        InterventionError: It is no model, a token is not one of the model's, or an address says others than ``tokens``.
    """
    check_model(model, InterventionError)
    positions = None if tokens is None else tuple(resolve_tokens(tokens, model.cfg))
    found: list[Target] = []
    for item in listed(sites):
        address, where = find_address(str(item)), positions
        if address is not None and address.position is not None:
            where = tuple(resolve_tokens(address.position, model.cfg))
            if positions is not None and set(positions) != set(where):
                raise InterventionError(f"{address} says at which tokens, and tokens={tokens!r} says others: give one")
            item = replace(address, position=None)
        found += [Target(part, where) for part in _parts(item, model.cfg)]
    return list(dict.fromkeys(found))


def refuse_shadowed(targets: list[Target], n_ctx: int) -> None:
    """Raise if one target would overwrite all that another changes.

    Args:
        targets: Replaced in one run.
        n_ctx: How many tokens there are; some carry a change on through the others, from the next attention.

    Raises:
        InterventionError: It would.
    """
    rows = {t: set(range(n_ctx) if t.positions is None else t.positions) for t in targets}
    wholes = [t for t in targets if t.unit is None]
    residuals = [t for t in wholes if t.site is not None and t.site.is_residual]
    for target in targets:
        whole = [t for t in wholes if t.hook_name == target.whole and rows[t] >= rows[target]]
        later = [t for t in residuals if t.order > target.order and rows[t] >= rows[target]]
        later = [t for t in later if len(rows[t]) == n_ctx or t.stretch == target.stretch]
        if later or whole:
            last = max(later or whole, key=lambda t: t.order).address
            raise InterventionError(f"{target.address} would have no effect: {last} is replaced too, and runs after it")


def _parts(item: Site | Address | str, cfg: TowerConfig) -> list[Address]:
    address = find_address(str(item))
    if address is None or address != address.part or address.block != "L" or address.kind not in ("block", "neuron"):
        return [site.address for site in Site.resolve(item, cfg)]
    attn, mlp = (Site(address.layer, kind).check(cfg) for kind in ("attn", "mlp"))
    if address.neuron is None:
        return [attn.address, mlp.address]
    if address.neuron >= cfg.d_mlp:
        raise UnknownSiteError(f"neuron {address}: the MLP has neurons N0 to N{cfg.d_mlp - 1}")
    return [address]
