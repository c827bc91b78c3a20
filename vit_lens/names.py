"""Sites: places in the model whose contribution is looked at, written as researchers write them."""

__all__ = ["RESIDUAL_KINDS", "Site", "SiteKind"]

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args, runtime_checkable

from vit_lens.config import HookedViTConfig
from vit_lens.errors import UnknownSiteError, nearest

SiteKind = Literal["head", "attn", "mlp", "resid_pre", "resid_mid", "resid_post"]
RESIDUAL_KINDS = ("resid_pre", "resid_mid", "resid_post")

_HEAD = re.compile(r"L(\d+)H(\d+)", re.IGNORECASE)
_OTHER = re.compile(r"L(\d+)\.(\w+)", re.IGNORECASE)
_HOOK = {
    "head": "blocks.{}.attn.hook_z",
    "attn": "blocks.{}.hook_attn_out",
    "mlp": "blocks.{}.hook_mlp_out",
    "resid_pre": "blocks.{}.hook_resid_pre",
    "resid_mid": "blocks.{}.hook_resid_mid",
    "resid_post": "blocks.{}.hook_resid_post",
}


@runtime_checkable
class _HasConfig(Protocol):
    @property
    def cfg(self) -> HookedViTConfig: ...


@dataclass(frozen=True, order=True)
class Site:
    """One head, attention block, MLP or residual of one layer.

    >>> Site.parse("L36H4")
    Site(layer=36, kind='head', head=4)
    >>> str(Site(12, "mlp"))
    'L12.mlp'
    """

    layer: int
    kind: SiteKind
    head: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(SiteKind):
            raise UnknownSiteError(
                f"unknown kind of site {self.kind!r}; nearest: {nearest(self.kind, get_args(SiteKind))}"
            )
        if (self.kind == "head") != (self.head is not None):
            raise UnknownSiteError(
                f"kind={self.kind!r} with head={self.head}: a head index goes with kind 'head' alone"
            )
        if not all(isinstance(i, int) for i in (self.layer, self.head or 0)):
            raise UnknownSiteError(f"layer={self.layer!r}, head={self.head!r}: indices are whole numbers")
        if self.layer < 0 or (self.head or 0) < 0:
            raise UnknownSiteError(f"layer={self.layer}, head={self.head}: indices count from 0")

    @classmethod
    def parse(cls, text: str) -> "Site":
        """Read ``L36H4``, ``L12.attn``, ``L12.mlp``, ``L30.resid_post`` (also ``resid_pre``, ``resid_mid``).

        Raises:
            UnknownSiteError: The text is none of these.
        """
        if m := _HEAD.fullmatch(text.strip()):
            return cls(int(m[1]), "head", int(m[2]))
        if (m := _OTHER.fullmatch(text.strip())) and m[2].lower() in _HOOK and m[2].lower() != "head":
            return cls(int(m[1]), m[2].lower())  # pyright: ignore[reportArgumentType]
        layer = re.match(r"L\d+", text.strip(), re.IGNORECASE)
        prefix = layer[0].upper() if layer else "L3"
        examples = [prefix + s for s in ("H0", ".attn", ".mlp", ".resid_pre", ".resid_mid", ".resid_post")]
        raise UnknownSiteError(
            f"no site {text!r}; nearest: {nearest(text, examples)}. A site is a head 'L36H4', "
            "'L12.attn', 'L12.mlp', or a residual 'L30.resid_pre', 'L30.resid_mid', 'L30.resid_post'."
        )

    @property
    def hook_name(self) -> str:
        """The hook point that holds the site's activation (``hook_z`` for a head)."""
        return _HOOK[self.kind].format(self.layer)

    @property
    def is_residual(self) -> bool:
        """Whether the site is the residual stream itself, not something written to it."""
        return self.kind in RESIDUAL_KINDS

    def check(self, cfg: HookedViTConfig) -> "Site":
        """Return the site if the model has it.

        Raises:
            UnknownSiteError: Its layer or head is out of range.
        """
        if self.layer >= cfg.n_layers:
            raise UnknownSiteError(f"site {self}: the model has layers L0 to L{cfg.n_layers - 1}")
        if self.head is not None and self.head >= cfg.n_heads:
            raise UnknownSiteError(f"site {self}: layer {self.layer} has heads H0 to H{cfg.n_heads - 1}")
        return self

    @classmethod
    def resolve(cls, sites: "Sequence[Site | str] | Site | str", cfg: HookedViTConfig) -> "list[Site]":
        """Parse, check and list sites; groups ``heads``, ``attn``, ``mlp``, ``resid_post``... are expanded.

        Raises:
            UnknownSiteError: A site is unknown, out of range, or there is none.
        """
        items = [sites] if isinstance(sites, (str, Site)) else list(sites)
        items = [part for item in items for part in (item.split(",") if isinstance(item, str) else [item])]
        out: list[Site] = []
        for item in items:
            if not isinstance(item, (str, Site)):
                raise UnknownSiteError(f"a site is a Site or a text such as 'L3H4', not {item!r}")
            if isinstance(item, str) and item.strip().lower() in _GROUPS:
                kind = _GROUPS[item.strip().lower()]
                out += _heads(cfg) if kind == "head" else [cls(layer, kind) for layer in range(cfg.n_layers)]
            else:
                out.append((cls.parse(item) if isinstance(item, str) else item).check(cfg))
        if not out:
            raise UnknownSiteError("no sites given; for example sites=['heads', 'mlp'] or sites=['L3H4']")
        return list(dict.fromkeys(out))

    @classmethod
    def heads(cls, model: _HasConfig) -> "list[Site]":
        """Every attention head, layer by layer."""
        return _heads(model.cfg)

    @classmethod
    def attns(cls, model: _HasConfig) -> "list[Site]":
        """Every layer's attention output (all heads and ``b_O``)."""
        return [cls(layer, "attn") for layer in range(model.cfg.n_layers)]

    @classmethod
    def mlps(cls, model: _HasConfig) -> "list[Site]":
        """Every layer's MLP output (with ``b_out``)."""
        return [cls(layer, "mlp") for layer in range(model.cfg.n_layers)]

    @classmethod
    def residuals(cls, model: _HasConfig, kind: SiteKind = "resid_post") -> "list[Site]":
        """The residual stream at one place of every layer."""
        return [cls(layer, kind) for layer in range(model.cfg.n_layers)]

    def __str__(self) -> str:
        return f"L{self.layer}H{self.head}" if self.kind == "head" else f"L{self.layer}.{self.kind}"


_GROUPS: dict[str, SiteKind] = {
    "heads": "head", "attn": "attn", "mlp": "mlp",
    "resid_pre": "resid_pre", "resid_mid": "resid_mid", "resid_post": "resid_post",
}  # fmt: skip


def _heads(cfg: HookedViTConfig) -> list[Site]:
    return [Site(layer, "head", head) for layer in range(cfg.n_layers) for head in range(cfg.n_heads)]
