"""What an intervention replaces: the slice of a hook point that a site, a layer or a neuron is."""

__all__ = ["Target", "Targets", "refuse_shadowed", "resolve_targets"]

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vit_lens.addresses import Site
from vit_lens.config import HookedViTConfig
from vit_lens.errors import InterventionError, UnknownSiteError
from vit_lens.models import HookedViT

Targets = Sequence[Site | str] | Site | str

_LAYER = re.compile(r"L(\d+)", re.IGNORECASE)
_NEURON = re.compile(r"L(\d+)N(\d+)", re.IGNORECASE)
_ORDER = {"resid_pre": 0, "head": 1, "attn": 2, "resid_mid": 3, "neuron": 4, "mlp": 5, "resid_post": 6}


@dataclass(frozen=True)
class Target:
    """A site, or one neuron of an MLP: a hook point and the index on the axis behind the positions.

    Attributes:
        name: As it is written.
        hook_name: The hook point.
        unit: Head or neuron; None for a whole activation.
        site: None for a neuron.
        order: When it runs: (layer, place in the block).
        whole: What would overwrite it: the attention block of a head, the MLP of a neuron.
    """

    name: str
    hook_name: str
    unit: int | None
    site: Site | None
    order: tuple[int, int]
    whole: str | None

    @property
    def is_pool(self) -> bool:
        """Whether it is part of attention pooling, which has one row and no token positions."""
        return self.site is not None and self.site.is_pool

    @property
    def stretch(self) -> int:
        """Which stretch between two attention layers it writes to: within one, no token reads another."""
        return self.order[0] - (self.order[1] == _ORDER["resid_pre"])

    @classmethod
    def of_site(cls, site: Site, cfg: HookedViTConfig) -> "Target":
        """Return the target that a site is."""
        kind = site.kind.removeprefix("pool_")
        layer = cfg.n_layers if site.layer is None else site.layer
        whole = None
        if site.head is not None:
            whole = Site(site.layer, "pool_attn" if site.is_pool else "attn").hook_name
        return cls(str(site), site.hook_name, site.head, site, (layer, _ORDER[kind]), whole)


def resolve_targets(model: HookedViT, sites: Targets) -> list[Target]:
    """Return the targets of sites, and of two more spellings: ``L3`` (attention and MLP), ``L3N17`` (a neuron).

    Raises:
        UnknownSiteError: A site, layer or neuron is not one of the model's, or there is none.
    """
    if not isinstance(sites, (str, Site, Iterable)) or not sites:
        Site.resolve(sites, model.cfg)  # refuses it
    items = [sites] if isinstance(sites, (str, Site)) else list(sites)
    items = [part for item in items for part in (item.split(",") if isinstance(item, str) else [item])]
    found = [target for item in items for target in _targets(model, item)]
    return list(dict.fromkeys(found))


def refuse_shadowed(targets: list[Target], every_token: bool) -> None:
    """Raise if one target would overwrite all that another changes.

    Args:
        targets: Replaced at the same tokens.
        every_token: Whether these are all; some tokens carry a change on through the others, from the next attention.

    Raises:
        InterventionError: It would.
    """
    hook_names = {t.hook_name: t.name for t in targets if t.unit is None}
    residuals = [t for t in targets if t.site is not None and t.site.is_residual]
    for target in targets:
        over = hook_names.get(target.whole or "")
        later = [t for t in residuals if t.order > target.order and (every_token or t.stretch == target.stretch)]
        if later:
            over = max(later, key=lambda t: t.order).name
        if over is not None:
            raise InterventionError(f"{target.name} would have no effect: {over} is replaced too, and runs after it")


def _targets(model: HookedViT, item: Site | str) -> list[Target]:
    cfg = model.cfg
    if isinstance(item, str):
        text = item.strip()
        if layer := _LAYER.fullmatch(text):
            return [Target.of_site(Site(int(layer[1]), kind).check(cfg), cfg) for kind in ("attn", "mlp")]
        if neuron := _NEURON.fullmatch(text):
            return [_neuron(int(neuron[1]), int(neuron[2]), cfg)]
    return [Target.of_site(site, cfg) for site in Site.resolve([item], cfg)]


def _neuron(layer: int, unit: int, cfg: HookedViTConfig) -> Target:
    whole = Site(layer, "mlp").check(cfg).hook_name
    if unit >= cfg.d_mlp:
        raise UnknownSiteError(f"neuron L{layer}N{unit}: the MLP has neurons N0 to N{cfg.d_mlp - 1}")
    order = (layer, _ORDER["neuron"])
    return Target(f"L{layer}N{unit}", f"blocks.{layer}.mlp.hook_post", unit, None, order, whole)
