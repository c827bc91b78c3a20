"""``Address`` and ``Site``: parts of a model."""

__all__ = [
    "POOL_KINDS", "Address", "Site", "SiteKind", "Sites", "address_of", "find_address", "listed", "spelled",
]  # fmt: skip

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from vit_lens.addresses.denoisers import ACTIVATIONS, RESIDUAL_KINDS, WITHIN, hook_point
from vit_lens.addresses.grammar import BLOCK, SHAPE, read_address, spellings, split_addresses
from vit_lens.addresses.indices import as_index
from vit_lens.addresses.positions import Position, take, written
from vit_lens.config import TowerConfig
from vit_lens.errors import UnknownSiteError, expect, nearest

SiteKind = Literal[
    "head", "attn", "mlp", "resid_pre", "resid_mid", "resid_post", "pool_head", "pool_attn", "pool_mlp"
]  # fmt: skip
POOL_KINDS = ("pool_head", "pool_attn", "pool_mlp")
_NAME = re.compile(rf"(?:({WITHIN})\.)?(?:(blocks|double|single)\.(\d+)\.)?(text\.)?hook_(\w+?)(?:_out)?")


@dataclass(frozen=True, kw_only=True)
class Address:
    """A part of a model, and where and when it is looked at; the module's docstring has the grammar.

    ``Address.parse(str(address)) == address``, always; what could not be read back is no address.

    Attributes:
        block: The kind of block: ``L``, ``D``, ``S`` or ``pool``; None for what stands outside of blocks (``embed``,
            ``b_U``, ...), and of a UNet but for ``L``, a block of one of its transformers.
        layer: The index of the block, counted from 0; None for ``pool`` and outside of blocks.
        head: The index of a head in its block, counted from 0; None where the part is no head.
        neuron: The index of a neuron of the block's MLP, counted from 0; None where the part is no neuron.
        hook: What of the block or head is meant: ``attn``, ``img.mlp``, ``resid_post``, ``b_O``, of a head ``q``; None
            for all of it.
        feature: The index in the dictionary that is spliced at ``hook``, counted from 0; see :meth:`resolve_feature`.
        within: The block of a UNet, ``down.2`` or ``mid``, or a transformer in it, ``down.2.1``; None outside of them.
        tower: The name of the tower, of several; None where there is one.
        position: Which tokens are meant; None for all.
        step: The step of a denoising loop by its index, counted from 0; None for every step.
        sigma: The step of a denoising loop by its noise level, at least 0; None for every step.

    Raises:
        UnknownSiteError: The attributes together do not make an address, such as a head without a layer.

    >>> Address.parse("vision:l3h4@cls")
    Address('vision:L3H4@cls')
    >>> str(Address(block="D", layer=5, hook="img.attn", step=3))
    'D5.img.attn~3'
    """

    block: Literal["L", "D", "S", "pool"] | None = None
    layer: int | None = None
    head: int | None = None
    neuron: int | None = None
    hook: str | None = None
    feature: int | None = None
    within: str | None = None
    tower: str | None = None
    position: Position | None = None
    step: int | None = None
    sigma: float | None = None

    def __post_init__(self) -> None:
        take(self, read_address(written(self)))

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Read an address; blanks around it and the case of its letters do not count.

        Raises:
            UnknownSiteError: The text is no address; the message names the nearest.

        >>> address = Address.parse(" l3h4@(0, 2) ")
        >>> address.layer, address.head, address.position, address.part
        (3, 4, Position(kind='place', value=(0, 2)), Address('L3H4'))
        >>> Address.parse("L3.mpl")
        Traceback (most recent call last):
        vit_lens.errors.UnknownSiteError: no address 'L3.mpl'; nearest: 'L3.mlp', ...
        """
        if found := find_address(text):
            return found
        if (shape := SHAPE.fullmatch(text.strip())) and shape["position"] is not None:
            Position.parse(shape["position"])
        part = text.strip().partition("@")[0].partition("~")[0]
        raise UnknownSiteError(
            f"no address {text!r}; nearest: {nearest(part, spellings(part))}. An address is for example 'L36H4', "
            "'L12.mlp', 'L3', 'L3N17', 'L30.resid_post', 'L0.b_O', 'vision:L5H2@cls' (docs/addresses.md)"
        )

    def __str__(self) -> str:
        block = f"{self.block or ''}{_said('', self.layer)}{_said('H', self.head)}{_said('N', self.neuron)}"
        part = ".".join(piece for piece in (self.within, block, self.hook, _said("f", self.feature)) if piece)
        sigma = "" if self.sigma is None else f"~s{float(self.sigma)!r}".replace("+", "")
        tower = "" if self.tower is None else f"{self.tower}:"
        return f"{tower}{part}{_said('@', self.position)}{_said('~', self.step)}{sigma}"

    def __repr__(self) -> str:
        return f"Address({str(self)!r})"

    @property
    def part(self) -> "Address":
        """The same part, without tower, position and step."""
        return replace(self, tower=None, position=None, step=None, sigma=None)

    @property
    def kind(self) -> str:
        """``head``, ``neuron``, ``feature``, ``block``, or the hook (``mlp``, ``b_O``); with ``pool_`` for pooling.

        >>> Address.parse("L3H4").kind, Address.parse("L3.mlp").kind, Address.parse("poolH1").kind
        ('head', 'mlp', 'pool_head')
        """
        units = [name for name in ("feature", "head", "neuron") if getattr(self, name) is not None]
        return ("pool_" if self.block == "pool" else "") + (units[0] if units else self.hook or "block")

    @property
    def site(self) -> "Site | None":
        """The part as a :class:`Site`; None if lenses and interventions know no such site (a neuron, a bias)."""
        whole = self.within is None and self.block in ("L", "pool") and (self.head is None or self.hook is None)
        return Site(self.layer, self.kind, self.head) if whole and self.kind in get_args(SiteKind) else None  # pyright: ignore[reportArgumentType]

    @property
    def hook_name(self) -> str:
        """The hook point that holds it (``hook_z`` of a head, ``hook_post`` of a neuron).

        Of a feature it is the point that a spliced dictionary adds.

        Raises:
            UnknownSiteError: There is no one hook point that does: the address is of several, of a bias, ...

        >>> Address.parse("L3H4").hook_name, Address.parse("L3N17").hook_name
        ('blocks.3.attn.hook_z', 'blocks.3.mlp.hook_post')
        >>> Address.parse("L3.mlp.f17").hook_name
        'blocks.3.hook_mlp_out.hook_sae_acts_post'
        >>> Address.parse("D5H2.txt").hook_name, Address.parse("down.2.1.update").hook_name
        ('double.5.text.attn.hook_z', 'down.2.1.hook_update')
        """
        if self.feature is not None and self.hook is not None:
            return f"{replace(self, feature=None).hook_name}.hook_sae_acts_post"
        unit = "head" if self.head is not None else "neuron" if self.neuron is not None else None
        found = hook_point(self.block, self.layer, self.hook, unit=unit, within=self.within)
        if found is None or self.feature is not None:
            raise UnknownSiteError(f"{self} is no site or neuron, whose activation one hook point would hold")
        return found

    def resolve_feature(self, spliced: "Iterable[Address | str]") -> "Address":
        """Return the full address of a feature, ``L5.f3796`` as ``L5.resid_post.f3796``.

        Args:
            spliced: The addresses at which dictionaries are spliced in.

        Raises:
            UnknownSiteError: The address is no feature, or there is not exactly one dictionary that it can be of.

        >>> Address.parse("L5.f3796").resolve_feature(["L5.resid_post", "L6.mlp"])
        Address('L5.resid_post.f3796')
        """
        if self.feature is None:
            raise UnknownSiteError(f"{self} is no feature; one is for example 'L5.f3796' or 'L5.resid_post.f3796'")
        if isinstance(spliced, (str, Address)) or not isinstance(spliced, Iterable):
            raise UnknownSiteError(f"spliced={spliced!r}; expected a list of addresses, such as ['L5.resid_post']")
        held = list(dict.fromkeys(Address.parse(str(one)) for one in spliced))
        found = [
            one
            for one in held
            if (one.within, one.block, one.layer) == (self.within, self.block, self.layer)
            and self.tower in (None, one.tower) and self.hook in (None, one.hook, str(one.hook).partition(".")[0])
        ]  # fmt: skip
        if len(found) > 1:
            raise UnknownSiteError(f"feature {self} is of several dictionaries, {', '.join(map(str, found))}: name one")
        if not found:
            names = ", ".join(map(str, held)) or "nowhere"
            raise UnknownSiteError(f"feature {self}: no dictionary is spliced there; there are dictionaries at {names}")
        return replace(self, hook=found[0].hook, tower=found[0].tower)


def find_address(text: str) -> Address | None:
    """Return the address that a text is; None if it is none.

    >>> find_address("L3H4@cls"), find_address("nose")
    (Address('L3H4@cls'), None)
    """
    return None if (found := read_address(text)) is None else Address(**found)


def address_of(hook_name: str) -> Address | None:
    """Return the address of what a hook point holds, if that is one part; heads and neurons have no one.

    >>> address_of("blocks.5.hook_mlp_out"), address_of("blocks.5.attn.hook_z")
    (Address('L5.mlp'), None)
    >>> address_of("single.5.text.hook_update"), address_of("mid.0.blocks.1.hook_cross_attn_out")
    (Address('S5.txt.update'), Address('mid.0.L1.cross_attn'))
    """
    if (m := _NAME.fullmatch(hook_name)) is None:
        return None
    within, kind, layer, text, hook = m.groups()
    block = {"blocks": "L", "double": "D", "single": "S", None: ""}[kind] + (layer or "")
    streams = ["txt"] if text else ["img", ""] if block[:1] in ("D", "S") else [""]
    for stream in streams:
        found = find_address(".".join(piece for piece in (within, block, stream, hook) if piece))
        if (
            found is not None
            and (block or within)
            and hook_point(found.block, found.layer, found.hook, within=found.within) == hook_name
        ):
            return found
    return None


def spelled(text: object) -> str:
    """Return an address or site as ``str(Address)`` writes it; any other text as it came, for messages of its reader.

    >>> spelled("l0.B_o"), spelled("nose")
    ('L0.b_O', 'nose')
    """
    return str(find_address(str(text)) or text)


def _said(sign: str, value: object) -> str:
    return "" if value is None else f"{sign}{value}"


@runtime_checkable
class _HasConfig(Protocol):
    @property
    def cfg(self) -> TowerConfig: ...


@dataclass(frozen=True)
class Site:
    """One head, attention block, MLP or residual of one layer; or a head, attention or MLP of attention pooling.

    Attributes:
        layer: The index of the block, counted from 0; None for attention pooling.
        kind: What the site is: ``head``, ``attn``, ``mlp``, ``resid_pre``, ``resid_mid`` or ``resid_post`` of a layer;
            ``pool_head``, ``pool_attn`` or ``pool_mlp`` of attention pooling.
        head: The index of the head, counted from 0, for the kinds ``head`` and ``pool_head``; None for the others.

    Raises:
        UnknownSiteError: There is no such kind, layer or head do not go with it, or an index is no whole number from 0.

    >>> Site.parse("L36H4")
    Site(layer=36, kind='head', head=4)
    >>> str(Site(12, "mlp"))
    'L12.mlp'
    >>> Site.parse("poolH3")
    Site(layer=None, kind='pool_head', head=3)
    """

    layer: int | None
    kind: SiteKind
    head: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or self.kind not in get_args(SiteKind):
            raise UnknownSiteError(
                f"unknown kind of site {self.kind!r}; nearest: {nearest(str(self.kind), get_args(SiteKind))}"
            )
        if self.kind.endswith("head") != (self.head is not None):
            raise UnknownSiteError(
                f"kind={self.kind!r} with head={self.head}: a head index goes with kind 'head' or 'pool_head' alone"
            )
        if self.is_pool != (self.layer is None):
            raise UnknownSiteError(
                f"kind={self.kind!r} with layer={self.layer}: sites of attention pooling have no layer"
            )
        for name in ("layer", "head"):
            index = as_index(getattr(self, name))
            if index is None and getattr(self, name) is not None:
                raise UnknownSiteError(f"layer={self.layer!r}, head={self.head!r}: indices are whole numbers")
            object.__setattr__(self, name, index)
        if (self.layer or 0) < 0 or (self.head or 0) < 0:
            raise UnknownSiteError(f"layer={self.layer}, head={self.head}: indices count from 0")

    @classmethod
    def parse(cls, text: str) -> "Site":
        """Read ``L36H4``, ``L12.attn``, ``L12.mlp``, ``L30.resid_post`` (also ``resid_pre``, ``resid_mid``).

        Towers with attention pooling also have ``poolH3``, ``pool.attn`` and ``pool.mlp``.

        Raises:
            UnknownSiteError: The text is none of these; the message names the nearest.

        >>> Site.parse("l12.resid_post")
        Site(layer=12, kind='resid_post', head=None)
        >>> Site.parse("L3H4@cls")
        Traceback (most recent call last):
        vit_lens.errors.UnknownSiteError: 'L3H4@cls': a site alone is asked for, without tower, position or step: ...
        """
        address = find_address(text)
        if address is not None and address.site is not None:
            if address != address.part:
                raise UnknownSiteError(
                    f"'{address}': a site alone is asked for, without tower, position or step: '{address.part}'; "
                    "tokens= says where, or the address in zero, mean, patch, resample and path"
                )
            return address.site
        known = [one for one in spellings(text.strip()) if getattr(find_address(one), "site", None)]
        raise UnknownSiteError(
            f"no site {text!r}; nearest: {nearest(text, known)}. A site is a "
            "head 'L36H4', 'L12.attn', 'L12.mlp', or a residual 'L30.resid_pre', 'L30.resid_mid', 'L30.resid_post'."
        )

    @property
    def hook_name(self) -> str:
        """The hook point that holds the site's activation (``hook_z`` for a head).

        >>> Site(3, "mlp").hook_name
        'blocks.3.hook_mlp_out'
        """
        block, unit = "pool" if self.is_pool else "L", None if self.head is None else "head"
        return str(hook_point(block, self.layer, None if unit else self.kind.removeprefix("pool_"), unit=unit))

    @property
    def address(self) -> Address:
        """The site as an address."""
        return Address.parse(str(self))

    @property
    def is_pool(self) -> bool:
        """Whether the site is part of attention pooling, behind the last block."""
        return self.kind in POOL_KINDS

    @property
    def is_residual(self) -> bool:
        """Whether the site is the residual stream itself, not something written to it."""
        return self.kind in RESIDUAL_KINDS

    def check(self, cfg: TowerConfig) -> "Site":
        """Return the site if the model has it.

        Args:
            cfg: The config of the model.

        Raises:
            UnknownSiteError: The layer or head is out of range, or the model has no attention pooling.

        >>> Site.parse("L8H0").check(model.cfg)
        Traceback (most recent call last):
        vit_lens.errors.UnknownSiteError: site L8H0: the model has layers L0 to L7
        """
        expect(cfg, TowerConfig, "cfg", UnknownSiteError, "the config of the model, model.cfg")
        if self.layer is None:
            return self._check_pool(cfg)
        if self.layer >= cfg.n_layers:
            raise UnknownSiteError(f"site {self}: the model has layers L0 to L{cfg.n_layers - 1}")
        if self.head is not None and self.head >= cfg.n_heads:
            raise UnknownSiteError(f"site {self}: layer {self.layer} has heads H0 to H{cfg.n_heads - 1}")
        return self

    def _check_pool(self, cfg: TowerConfig) -> "Site":
        if cfg.attn_pool is None:
            raise UnknownSiteError(f"site {self}: the model has no attention pooling (pool={cfg.pool!r})")
        if self.head is not None and self.head >= cfg.attn_pool.n_heads:
            raise UnknownSiteError(f"site {self}: attention pooling has heads H0 to H{cfg.attn_pool.n_heads - 1}")
        if self.kind == "pool_mlp" and not cfg.attn_pool.d_mlp:
            raise UnknownSiteError(f"site {self}: this attention pooling has no MLP")
        return self

    @classmethod
    def resolve(cls, sites: "Sites", cfg: TowerConfig) -> "list[Site]":
        """Parse, check and list sites; groups ``heads``, ``attn``, ``mlp``, ``resid_post``... are expanded.

        The group ``heads`` ends with the heads of attention pooling, where there is any; so do ``attn`` and ``mlp``.

        Args:
            sites: One site, address, text or group, or a list of them; a text may hold several, with commas between.
            cfg: The config of the model.

        Returns:
            The sites in the order in which they were given, each once.

        Raises:
            UnknownSiteError: A site is unknown, out of range, or there is none.

        >>> [str(site) for site in Site.resolve("L3H4, L3.mlp", model.cfg)]
        ['L3H4', 'L3.mlp']
        >>> len(Site.resolve(["heads", "mlp"], model.cfg))
        72
        """
        expect(cfg, TowerConfig, "cfg", UnknownSiteError, "the config of the model, model.cfg")
        out: list[Site] = []
        for item in listed(sites):
            if isinstance(item, Site):
                out.append(item.check(cfg))
            elif (group := str(item).strip().lower()) in _GROUPS:
                out += _group(cfg, _GROUPS[group])
            else:
                out.append(_parsed(str(item), cfg))
        return list(dict.fromkeys(out))

    @classmethod
    def heads(cls, model: _HasConfig) -> "list[Site]":
        """Every attention head, layer by layer; those of attention pooling last.

        >>> len(Site.heads(model)), str(Site.heads(model)[9])
        (64, 'L1H1')
        """
        return _group(_config_of(model), "head")

    @classmethod
    def attns(cls, model: _HasConfig) -> "list[Site]":
        """Every layer's attention output (all heads and ``b_O``); that of attention pooling last."""
        return _group(_config_of(model), "attn")

    @classmethod
    def mlps(cls, model: _HasConfig) -> "list[Site]":
        """Every layer's MLP output (with ``b_out``); that of attention pooling last."""
        return _group(_config_of(model), "mlp")

    @classmethod
    def residuals(cls, model: _HasConfig, kind: SiteKind = "resid_post") -> "list[Site]":
        """The residual stream at one place of every layer.

        >>> str(Site.residuals(model, "resid_pre")[2])
        'L2.resid_pre'
        """
        return _group(_config_of(model), Site(0, kind).kind)

    def __str__(self) -> str:
        where = "pool" if self.is_pool else f"L{self.layer}"
        return f"{where}.{self.kind.removeprefix('pool_')}" if self.head is None else f"{where}H{self.head}"


Sites = Sequence[Site | Address | str] | Site | Address | str  # of several, each text may be a group or a list


def listed(sites: Sites) -> list[Site | Address | str]:
    """Return sites one by one: one is a list of one, and a text is split at commas.

    Raises:
        UnknownSiteError: Something is no site and no text, or there is nothing.

    >>> listed("L3H4,heads"), listed(Site(3, "mlp"))
    (['L3H4', 'heads'], [Site(layer=3, kind='mlp', head=None)])
    """
    if not isinstance(sites, (str, Site, Address, Iterable)):
        raise UnknownSiteError(f"{sites!r} is no site; expected sites such as 'L3H4', 'L3.mlp' or 'heads', or a list")
    items = [sites] if isinstance(sites, (str, Site, Address)) else list(sites)
    if wrong := [item for item in items if not isinstance(item, (str, Site, Address))]:
        raise UnknownSiteError(f"a site is a Site or a text such as 'L3H4', not {wrong[0]!r}")
    if not items:
        raise UnknownSiteError("no sites given; for example sites=['heads', 'mlp'] or sites=['L3H4']")
    return [part for item in items for part in (split_addresses(item) if isinstance(item, str) else [item])]


_GROUPS: dict[str, Any] = {"heads": "head"} | {kind: kind for kind in ACTIVATIONS}


def _parsed(text: str, cfg: TowerConfig) -> Site:
    try:
        return Site.parse(text).check(cfg)
    except UnknownSiteError as error:
        if (start := BLOCK.match(text.strip())) and start[0]:
            raise
        raise UnknownSiteError(
            f"no site or group of sites {text!r}; nearest: {nearest(text, [*_GROUPS, 'L0H0', 'L0.attn', 'L0.mlp'])}. "
            f"Groups are {', '.join(_GROUPS)}; one site is for example 'L0H0', 'L0.mlp' or 'L0.resid_post'"
        ) from error


def _config_of(model: object) -> TowerConfig:
    if not isinstance(cfg := getattr(model, "cfg", None), TowerConfig):
        raise UnknownSiteError(
            f"expected a model, such as a HookedViT, whose sites to list; not {type(model).__name__}"
        )
    return cfg


def _group(cfg: TowerConfig, kind: SiteKind) -> list[Site]:
    pool = cfg.attn_pool
    if kind == "head":
        heads = [Site(layer, "head", head) for layer in range(cfg.n_layers) for head in range(cfg.n_heads)]
        return heads + [Site(None, "pool_head", head) for head in range(pool.n_heads if pool else 0)]
    out = [Site(layer, kind) for layer in range(cfg.n_layers)]
    if pool and kind == "attn":
        out.append(Site(None, "pool_attn"))
    if pool and pool.d_mlp and kind == "mlp":
        out.append(Site(None, "pool_mlp"))
    return out
