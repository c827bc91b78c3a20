"""Sites: places in the model whose contribution is looked at, written as researchers write them."""

__all__ = ["POOL_KINDS", "RESIDUAL_KINDS", "Indices", "Site", "SiteKind", "as_index", "as_indices"]

import operator
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, SupportsIndex, get_args, runtime_checkable

from vit_lens.config import HookedViTConfig
from vit_lens.errors import UnknownSiteError, nearest

SiteKind = Literal[
    "head", "attn", "mlp", "resid_pre", "resid_mid", "resid_post", "pool_head", "pool_attn", "pool_mlp"
]  # fmt: skip
Indices = SupportsIndex | Iterable[SupportsIndex]  # one whole number or several, of Python, numpy or torch
RESIDUAL_KINDS = ("resid_pre", "resid_mid", "resid_post")
POOL_KINDS = ("pool_head", "pool_attn", "pool_mlp")

_HEAD = re.compile(r"L(\d+)H(\d+)", re.IGNORECASE)
_OTHER = re.compile(r"L(\d+)\.(\w+)", re.IGNORECASE)
_POOL = re.compile(r"pool(?:H(\d+)|\.(attn|mlp))", re.IGNORECASE)
_HOOK = {
    "head": "blocks.{}.attn.hook_z",
    "attn": "blocks.{}.hook_attn_out",
    "mlp": "blocks.{}.hook_mlp_out",
    "resid_pre": "blocks.{}.hook_resid_pre",
    "resid_mid": "blocks.{}.hook_resid_mid",
    "resid_post": "blocks.{}.hook_resid_post",
    "pool_head": "attn_pool.attn.hook_z",
    "pool_attn": "attn_pool.hook_attn_out",
    "pool_mlp": "attn_pool.hook_mlp_out",
}


def as_index(value: object) -> int | None:
    """Return a whole number of Python, numpy or torch as an int; None for all else, for a bool too."""
    if isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool") or getattr(value, "ndim", 0):
        return None
    try:
        return operator.index(value)  # pyright: ignore[reportArgumentType]
    except TypeError:
        return None


def as_indices(value: object) -> list[int] | None:
    """Return one whole number or several as a list; None if something is none."""
    if (one := as_index(value)) is not None:
        return [one]
    if isinstance(value, str) or not isinstance(value, Iterable) or getattr(value, "ndim", 1) != 1:
        return None
    found = [as_index(item) for item in value]
    whole = [index for index in found if index is not None]
    return whole if len(whole) == len(found) else None


@runtime_checkable
class _HasConfig(Protocol):
    @property
    def cfg(self) -> HookedViTConfig: ...


@dataclass(frozen=True)
class Site:
    """One head, attention block, MLP or residual of one layer; or a head, attention or MLP of attention pooling.

    Attributes:
        layer: Of the block; None for attention pooling.
        kind: What it is.
        head: Index of a head.

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
        if self.kind not in get_args(SiteKind):
            raise UnknownSiteError(
                f"unknown kind of site {self.kind!r}; nearest: {nearest(self.kind, get_args(SiteKind))}"
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
            UnknownSiteError: The text is none of these.
        """
        if m := _HEAD.fullmatch(text.strip()):
            return cls(int(m[1]), "head", int(m[2]))
        if m := _POOL.fullmatch(text.strip()):
            return cls(None, "pool_head", int(m[1])) if m[1] else cls(None, f"pool_{m[2].lower()}")  # pyright: ignore
        if (m := _OTHER.fullmatch(text.strip())) and m[2].lower() in ("attn", "mlp", *RESIDUAL_KINDS):
            return cls(int(m[1]), m[2].lower())  # pyright: ignore[reportArgumentType]
        layer = re.match(r"L\d+", text.strip(), re.IGNORECASE)
        prefix = layer[0].upper() if layer else "L3"
        examples = [prefix + s for s in ("H0", ".attn", ".mlp", ".resid_pre", ".resid_mid", ".resid_post")]
        raise UnknownSiteError(
            f"no site {text!r}; nearest: {nearest(text, [*examples, 'poolH0', 'pool.attn', 'pool.mlp'])}. A site is a "
            "head 'L36H4', 'L12.attn', 'L12.mlp', or a residual 'L30.resid_pre', 'L30.resid_mid', 'L30.resid_post'."
        )

    @property
    def hook_name(self) -> str:
        """The hook point that holds the site's activation (``hook_z`` for a head)."""
        return _HOOK[self.kind].format(self.layer)

    @property
    def is_pool(self) -> bool:
        """Whether the site is part of attention pooling, behind the last block."""
        return self.kind in POOL_KINDS

    @property
    def is_residual(self) -> bool:
        """Whether the site is the residual stream itself, not something written to it."""
        return self.kind in RESIDUAL_KINDS

    def check(self, cfg: HookedViTConfig) -> "Site":
        """Return the site if the model has it.

        Raises:
            UnknownSiteError: Its layer or head is out of range.
        """
        if self.layer is None:
            return self._check_pool(cfg)
        if self.layer >= cfg.n_layers:
            raise UnknownSiteError(f"site {self}: the model has layers L0 to L{cfg.n_layers - 1}")
        if self.head is not None and self.head >= cfg.n_heads:
            raise UnknownSiteError(f"site {self}: layer {self.layer} has heads H0 to H{cfg.n_heads - 1}")
        return self

    def _check_pool(self, cfg: HookedViTConfig) -> "Site":
        if cfg.attn_pool is None:
            raise UnknownSiteError(f"site {self}: the model has no attention pooling (pool={cfg.pool!r})")
        if self.head is not None and self.head >= cfg.attn_pool.n_heads:
            raise UnknownSiteError(f"site {self}: attention pooling has heads H0 to H{cfg.attn_pool.n_heads - 1}")
        if self.kind == "pool_mlp" and not cfg.attn_pool.d_mlp:
            raise UnknownSiteError(f"site {self}: this attention pooling has no MLP")
        return self

    @classmethod
    def resolve(cls, sites: "Sequence[Site | str] | Site | str", cfg: HookedViTConfig) -> "list[Site]":
        """Parse, check and list sites; groups ``heads``, ``attn``, ``mlp``, ``resid_post``... are expanded.

        The group ``heads`` ends with the heads of attention pooling, where there is any; so do ``attn`` and ``mlp``.

        Raises:
            UnknownSiteError: A site is unknown, out of range, or there is none.
        """
        if not isinstance(sites, (str, Site, Iterable)):
            raise UnknownSiteError(
                f"{sites!r} is no site; expected sites such as 'L3H4', 'L3.mlp' or 'heads', or a list"
            )
        items = [sites] if isinstance(sites, (str, Site)) else list(sites)
        items = [part for item in items for part in (item.split(",") if isinstance(item, str) else [item])]
        out: list[Site] = []
        for item in items:
            if not isinstance(item, (str, Site)):
                raise UnknownSiteError(f"a site is a Site or a text such as 'L3H4', not {item!r}")
            if isinstance(item, str) and item.strip().lower() in _GROUPS:
                out += _group(cfg, _GROUPS[item.strip().lower()])
            else:
                out.append(_parsed(item, cfg) if isinstance(item, str) else item.check(cfg))
        if not out:
            raise UnknownSiteError("no sites given; for example sites=['heads', 'mlp'] or sites=['L3H4']")
        return list(dict.fromkeys(out))

    @classmethod
    def heads(cls, model: _HasConfig) -> "list[Site]":
        """Every attention head, layer by layer; those of attention pooling last."""
        return _group(model.cfg, "head")

    @classmethod
    def attns(cls, model: _HasConfig) -> "list[Site]":
        """Every layer's attention output (all heads and ``b_O``); that of attention pooling last."""
        return _group(model.cfg, "attn")

    @classmethod
    def mlps(cls, model: _HasConfig) -> "list[Site]":
        """Every layer's MLP output (with ``b_out``); that of attention pooling last."""
        return _group(model.cfg, "mlp")

    @classmethod
    def residuals(cls, model: _HasConfig, kind: SiteKind = "resid_post") -> "list[Site]":
        """The residual stream at one place of every layer."""
        return _group(model.cfg, kind)

    def __str__(self) -> str:
        where = "pool" if self.is_pool else f"L{self.layer}"
        return f"{where}.{self.kind.removeprefix('pool_')}" if self.head is None else f"{where}H{self.head}"


_GROUPS: dict[str, SiteKind] = {
    "heads": "head", "attn": "attn", "mlp": "mlp",
    "resid_pre": "resid_pre", "resid_mid": "resid_mid", "resid_post": "resid_post",
}  # fmt: skip


def _parsed(text: str, cfg: HookedViTConfig) -> Site:
    try:
        return Site.parse(text).check(cfg)
    except UnknownSiteError as error:
        if re.match(r"\s*(L\d|pool)", text, re.IGNORECASE):
            raise
        raise UnknownSiteError(
            f"no site or group of sites {text!r}; nearest: {nearest(text, [*_GROUPS, 'L0H0', 'L0.attn', 'L0.mlp'])}. "
            f"Groups are {', '.join(_GROUPS)}; one site is for example 'L0H0', 'L0.mlp' or 'L0.resid_post'"
        ) from error


def _group(cfg: HookedViTConfig, kind: SiteKind) -> list[Site]:
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
