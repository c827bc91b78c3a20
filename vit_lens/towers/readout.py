"""How an output is read off the last residual stream: which rows, through which norm and pooling, to what width.

A read-out has three forms. ``rows`` and ``read`` take states of any run, without hooks and with fresh statistics; the
tower's own forward pass goes through ``pool``, past every hook point; ``frozen`` is the linear map that the read-out
was in one run, with every scale (and pattern) held at the value that it had there.
"""

__all__ = [
    "Activations", "AllTokens", "AttentionPooling", "ClassToken", "EndOfText", "FrozenAttentionPooling",
    "FrozenPooling", "FrozenTokens", "MeanOfPatches", "PooledMean", "Readout", "readout_kind",
]  # fmt: skip

from abc import ABC
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.utilities import Slice  # pyright: ignore[reportPrivateImportUsage]

from vit_lens.conditions import Condition
from vit_lens.config import TowerConfig
from vit_lens.errors import VitLensError
from vit_lens.towers.layers import AttentionPool, LayerNorm, Unembed, wide

_PATTERN, _POOL_SCALE = "attn_pool.attn.hook_pattern", "attn_pool.ln_post.hook_scale"


@runtime_checkable
class Activations(Protocol):
    """What a read-out needs of the cache of a run."""

    cache_dict: dict[str, Tensor]

    @property
    def model(self) -> Any: ...
    @property
    def read_out(self) -> "Readout": ...
    def __getitem__(self, key: str) -> Tensor: ...
    def readout(self, name: str) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Readout(ABC):
    """How a tower's output is read; a kind of read-out says which rows count, and what becomes of them.

    Attributes:
        cfg: The config of the tower.
        ln_final: The norm behind the last block.
        unembed: The projection; None where the output is the pooled vector itself.
        attn_pool: The layers of attention pooling; None where there is none.
        n_prefix: The number of tokens before an image's patches.
        ends: The position at which each text ends, counted from 0; None where the output is not read at an end.
        ids: The ids of the texts of the run; None for images, and where they are not known.

    >>> readout, resid = model.readout, cache["resid_post", 7]
    >>> readout.kind, readout.rows(resid).shape
    ('cls', torch.Size([2, 1, 128]))
    >>> bool(torch.allclose(readout.read(readout.rows(resid)), model(pixels), atol=1e-4))
    True
    """

    cfg: TowerConfig
    ln_final: LayerNorm
    unembed: Unembed | None
    attn_pool: AttentionPool | None = None
    n_prefix: int = 0
    ends: Int[Tensor, " batch"] | None = None
    ids: Int[Tensor, "batch pos"] | None = None

    kind: ClassVar[str]
    """What the rows are: ``cls``, ``patches``, ``pooled`` (their mean), ``tokens`` (all) or ``eos``."""
    words: ClassVar[str]
    """The same, for messages."""
    is_linear: ClassVar[bool] = True
    """Whether the output is the projection of one normed row, or of the mean of normed rows."""
    sees_one_row: ClassVar[bool] = False
    """Whether one row is normed and projected, which is a place of the residual stream or a mean of such."""
    places: ClassVar[slice] = slice(None)

    @property
    def pools_first(self) -> bool:
        """Whether pooling comes before ``ln_final``, which then acts on the one pooled row."""
        return self.cfg.ln_final == "after_pool"

    def rows(self, x: Float[Tensor, "batch pos *axes"]) -> Float[Tensor, "batch row *axes"]:
        """Return the rows of a residual-like activation that the output is read from; they may share its memory."""
        return x[:, self.places]

    def gradient_rows(self, x: Float[Tensor, "batch pos *axes"]) -> Float[Tensor, "batch row *axes"]:
        """Return the gradient with respect to those rows, from the gradient with respect to the activation."""
        return self.rows(x)

    def with_rows(
        self, x: Float[Tensor, "batch pos *axes"], rows: Float[Tensor, "#batch row *axes"]
    ) -> Float[Tensor, "batch pos *axes"]:
        """Return a copy of an activation in which the read-out finds ``rows``; a mean row goes to every patch."""
        out = x.clone()
        out[:, self.places] = rows.to(x)
        return out

    def positions(self, n_ctx: int) -> range:
        """Return the token positions that the rows are, of ``n_ctx``; none where a row is their mean."""
        return range(*self.places.indices(n_ctx))

    def pool(self, resid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch *row d_pooled"]:
        """Return what the projection reads of the tower's last residual, past the hook points."""
        if self.pools_first:
            return self.ln_final(self.rows(resid))[:, 0]
        return self.ln_final(resid)[:, self.places].mean(1)

    def read(self, rows: Float[Tensor, "*batch row d_model"]) -> Float[Tensor, "*batch_out d_embed"]:
        """Return what the tower would output if the read-out rows of its last residual were ``rows``.

        The final norm takes fresh statistics; nothing is hooked. Half precision is computed in float32. Any number of
        rows is allowed, so a single token can be read alone.
        """
        return self.read_pooled(self.pooled(rows))

    def pooled(self, rows: Float[Tensor, "*batch row d_model"]) -> Float[Tensor, "*batch d_pooled"]:
        """Return what the projection reads where the read-out rows are ``rows``; as :meth:`read`, without hooks."""
        return self._normed(rows).mean(-2)

    def read_pooled(self, pooled: Float[Tensor, "*batch d_pooled"]) -> Float[Tensor, "*batch d_embed"]:
        """Return the output of a pooled vector (``hook_pooled``), without hooks, in the dtype of ``pooled``."""
        if self.unembed is None:
            return pooled.clone()
        out = pooled @ self.unembed.W_U.to(pooled)
        return out if self.unembed.b_U is None else out + self.unembed.b_U.to(pooled)

    def of(self, images: Slice) -> "Readout":
        """Return the read-out of some of the images or texts of a run."""
        if images.mode == "int":
            return self
        ends, ids = (x if x is None else images.apply(x, dim=0) for x in (self.ends, self.ids))
        return replace(self, ends=ends, ids=ids)

    def condition(self, rows: Float[Tensor, "*batch row d_model"]) -> Condition:
        """Return what :meth:`read` gives as a decoder takes it: a pooled vector for each entry of the batch."""
        return Condition(pooled=self.read(rows))

    def frozen(self, cache: Activations) -> Any:
        """Return the linear map that the read-out was in a run: a :class:`FrozenPooling`.

        Raises:
            UnknownHookError: The cache lacks an activation; the message names it.
        """
        return FrozenPooling(self, cache)

    def _normed(self, rows: Float[Tensor, "*batch row d_model"]) -> Float[Tensor, "*batch row d_model"]:
        if rows.shape[-1] != self.cfg.d_model:
            raise VitLensError(f"rows of shape {tuple(rows.shape)}; expected d_model={self.cfg.d_model} at last")
        return self.ln_final.read(wide(rows, self.ln_final.w.device))


class ClassToken(Readout):
    """The class token is normed and projected (CLIP).

    >>> isinstance(model.readout, ClassToken), model.readout.positions(model.cfg.n_ctx)
    (True, range(0, 1))
    """

    kind = "cls"
    sees_one_row = True
    words = "the class token"
    places = slice(0, 1)


class MeanOfPatches(Readout):
    """Every patch is normed; their mean is projected."""

    kind = "patches"
    words = "the patches"

    @property
    def places(self) -> slice:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The patches, behind class token and registers."""
        return slice(self.n_prefix, None)


class PooledMean(MeanOfPatches):
    """The mean of the patches is normed and projected."""

    kind = "pooled"
    sees_one_row = True
    words = "the mean of the patches"

    def rows(self, x: Float[Tensor, "batch pos *axes"]) -> Float[Tensor, "batch 1 *axes"]:
        return x[:, self.places].mean(1, keepdim=True)

    def gradient_rows(self, x: Float[Tensor, "batch pos *axes"]) -> Float[Tensor, "batch 1 *axes"]:
        return x[:, self.places].sum(1, keepdim=True)  # the gradient of a mean is the sum of theirs

    def positions(self, n_ctx: int) -> range:
        return range(0)


class AttentionPooling(Readout):
    """All tokens are normed, and one learned query attends to them (SigLIP's MAP head, CoCa's pooler)."""

    kind = "tokens"
    words = "every token"
    is_linear = False

    def pool(self, resid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch d_pooled"]:
        return self._attention(self.ln_final(resid))

    def pooled(self, rows: Float[Tensor, "*batch row d_model"]) -> Float[Tensor, "*batch d_pooled"]:
        return self._attention.read(self._normed(rows))

    def frozen(self, cache: Activations) -> "FrozenAttentionPooling":
        return FrozenAttentionPooling(self, cache)

    @property
    def _attention(self) -> AttentionPool:
        if self.attn_pool is None:
            raise VitLensError("attention pooling without its layers: the config says pool='attn'")
        return self.attn_pool


class EndOfText(Readout):
    """The token that ends a text is normed and projected; where that is differs from text to text."""

    kind = "eos"
    sees_one_row = True
    words = "the end of the text"

    def rows(self, x: Float[Tensor, "batch pos *axes"]) -> Float[Tensor, "batch 1 *axes"]:
        return x[torch.arange(len(x), device=x.device), self._ends(x)][:, None]

    def with_rows(
        self, x: Float[Tensor, "batch pos *axes"], rows: Float[Tensor, "#batch 1 *axes"]
    ) -> Float[Tensor, "batch pos *axes"]:
        out = x.clone()
        out[torch.arange(len(x), device=x.device), self._ends(x)] = rows[:, 0].to(x)
        return out

    def positions(self, n_ctx: int) -> range:
        return range(0)

    def pool(self, resid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch d_pooled"]:
        return self.rows(self.ln_final(resid))[:, 0]

    def _ends(self, x: Tensor) -> Int[Tensor, " batch"]:
        if self.ends is None or len(self.ends) != len(x):
            given = "nowhere" if self.ends is None else f"known of {len(self.ends)} texts"
            raise VitLensError(
                f"where {len(x)} texts end is {given}: take the read-out of their run, model.readout_of(tokens)"
            )
        return self.ends.to(x.device)


class AllTokens(Readout):
    """Every token is normed and projected, and the output has all of them: what most text encoders give."""

    kind = "tokens"
    words = "every token"

    def pool(self, resid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_pooled"]:
        return self.ln_final(resid)

    def read(self, rows: Float[Tensor, "*batch row d_model"]) -> Float[Tensor, "*batch row d_embed"]:
        return self.read_pooled(self._normed(rows))

    def condition(self, rows: Float[Tensor, "*batch row d_model"]) -> Condition:
        """Return what :meth:`read` gives as a decoder takes it: tokens."""
        return Condition(tokens=self.read(rows))

    def frozen(self, cache: Activations) -> "FrozenTokens":
        return FrozenTokens(self, cache)


def readout_kind(cfg: TowerConfig) -> type[Readout]:
    """Return the kind of read-out that a config asks for."""
    kinds = {"cls": ClassToken, "avg": MeanOfPatches, "attn": AttentionPooling, "eos": EndOfText, "all": AllTokens}
    return PooledMean if (cfg.pool, cfg.ln_final) == ("avg", "after_pool") else kinds[cfg.pool]


# ---- frozen forms ---------------------------------------------------------------------------------------------------


class FrozenPooling:
    """What comes between normed rows and the output, as a linear map: here their mean, and the projection.

    Args:
        readout: The read-out of the tower.
        cache: The cache of the run.
    """

    def __init__(self, readout: Readout, cache: Activations):
        self.readout = readout

    def weights(self, scale: Float[Tensor, "batch row"]) -> Float[Tensor, "batch pool_head row"]:
        """Return what each row counts for each pooling head (one, without attention pooling), over the norm's scale."""
        return 1 / (scale.shape[1] * scale)[:, None]

    def to_pooled(self, x: Float[Tensor, "*part batch pool_head d_model"]) -> Float[Tensor, "*part batch d_pooled"]:
        """Map weighted sums of normed rows to the pooled vector, before any norm behind pooling."""
        return x[..., 0, :]

    def to_embed(self, pooled: Float[Tensor, "*part #batch d_pooled"]) -> Float[Tensor, "*part #batch d_embed"]:
        """Map a part of the pooled vector to the output."""
        unembed = self.readout.unembed
        return pooled.clone() if unembed is None else pooled @ unembed.W_U.detach().to(pooled)

    def from_embed(
        self, directions: Float[Tensor, "*direction d_embed"]
    ) -> Float[Tensor, "*direction batch_or_1 pool_head d_model"]:
        """Return the transpose of :meth:`to_embed` after :meth:`to_pooled`."""
        unembed = self.readout.unembed
        back = directions if unembed is None else directions @ unembed.W_U.detach().to(directions).T
        return back[..., None, None, :]

    def constants(self, normed_bias: Float[Tensor, " d_model"], n: int) -> dict[str, Float[Tensor, "#batch d_embed"]]:
        """Return every bias behind the last residual, pushed through what follows it, by name, for ``n`` images."""
        terms = {"ln_final.b": self.to_embed(self.to_pooled(normed_bias.expand(n, 1, -1)))}
        return terms | self._of_projection(normed_bias)

    def _of_projection(self, like: Tensor) -> dict[str, Float[Tensor, "1 d_embed"]]:
        unembed = self.readout.unembed
        return {} if unembed is None or unembed.b_U is None else {"b_U": unembed.b_U.detach().to(like, copy=True)[None]}


class FrozenAttentionPooling(FrozenPooling):
    """Attention pooling at the pattern of a run, and at the scale of the norm behind it.

    Args:
        readout: The read-out of the tower, which pools by attention.
        cache: The cache of the run.

    Attributes:
        pattern: How much attention each head gave to each token.
        scale: What the norm behind pooling divided the pooled vector by, [batch 1]; None where there is no such norm.
        mlp_out: What the MLP added to the pooled vector, [batch d_pooled]; None where there is no MLP.

    Raises:
        UnknownHookError: The cache lacks an activation; the message names it.

    >>> from dataclasses import replace
    >>> from vit_lens.config import AttentionPoolConfig
    >>> sizes = AttentionPoolConfig(n_heads=4, d_head=32, d_model=128, d_mlp=None, has_ln_post=True)
    >>> pooling = vl.HookedViT(replace(model.cfg, pool="attn", attn_pool=sizes))
    >>> pooling.readout.frozen(pooling.run_with_cache(pixels)[1]).pattern.shape
    torch.Size([2, 4, 17])
    """

    def __init__(self, readout: AttentionPooling, cache: Activations):
        super().__init__(readout, cache)
        self.pool = readout._attention
        self.pattern: Float[Tensor, "batch pool_head row"] = self._held(cache, _PATTERN)[:, :, 0]
        self.scale = None if self.pool.ln_post is None else self._held(cache, _POOL_SCALE)[:, 0]
        self.mlp_out = None if self.pool.mlp is None else self._held(cache, "attn_pool.hook_mlp_out")[:, 0]

    def _held(self, cache: Activations, name: str) -> Tensor:
        return wide(cache[name].detach().clone(), self.pool.query.device)

    def weights(self, scale: Float[Tensor, "batch row"]) -> Float[Tensor, "batch pool_head row"]:
        return self.pattern / scale[:, None]

    def to_pooled(self, x: Float[Tensor, "*part batch pool_head d_model"]) -> Float[Tensor, "*part batch d_pooled"]:
        values = einsum(x, self.pool.attn.W_V.detach().to(x), "... h d, h d k -> ... h k")
        return einsum(values, self.pool.attn.W_O.detach().to(x), "... h k, h k p -> ... p")

    def to_embed(self, pooled: Float[Tensor, "*part #batch d_pooled"]) -> Float[Tensor, "*part #batch d_embed"]:
        if self.pool.ln_post is not None and self.scale is not None:
            pooled = self.pool.ln_post.centre(pooled) / self.scale * self.pool.ln_post.w.detach().to(pooled)
        return super().to_embed(pooled)

    def from_embed(
        self, directions: Float[Tensor, "*direction d_embed"]
    ) -> Float[Tensor, "*direction batch_or_1 pool_head d_model"]:
        back = super().from_embed(directions)[..., 0, :]
        if self.pool.ln_post is not None and self.scale is not None:
            back = self.pool.ln_post.centre(back * self.pool.ln_post.w.detach().to(back)) / self.scale
        back = einsum(back, self.pool.attn.W_O.detach().to(back), "... b p, h k p -> ... b h k")
        return einsum(back, self.pool.attn.W_V.detach().to(back), "... b h k, h d k -> ... b h d")

    def constants(self, normed_bias: Float[Tensor, " d_model"], n: int) -> dict[str, Float[Tensor, "#batch d_embed"]]:
        attn, mass = self.pool.attn, self.pattern.sum(-1)  # the attention that each pooling head gives out
        values = mass[..., None] * attn.b_V.detach().to(mass)
        terms = {
            "ln_final.b": self.to_embed(self.to_pooled(mass[..., None] * normed_bias)),
            "pool.b_V": self.to_embed(einsum(values, attn.W_O.detach().to(mass), "b h k, h k p -> b p")),
            "pool.b_O": self.to_embed(attn.b_O.detach().to(mass)[None]),
        }
        if self.mlp_out is not None:
            terms["pool.mlp"] = self.to_embed(self.mlp_out)
        if self.pool.ln_post is not None:
            terms["pool.ln_post.b"] = super().to_embed(self.pool.ln_post.b.detach().to(mass)[None])
        return terms | self._of_projection(mass)


class FrozenTokens:
    """``output[token] = map(residual[token]) + constant``: every token by itself, at the norm's scale in the run.

    Args:
        readout: The read-out of the tower, which reads every token.
        cache: The cache of the run.

    Attributes:
        scale: What the last norm divided each token by.
        constant: The output of a residual stream of zeros.

    Raises:
        UnknownHookError: The cache holds neither the scale of the last norm nor what that norm reads.

    >>> every = AllTokens(model.cfg, model.ln_final, model.unembed)
    >>> frozen, resid = every.frozen(cache), cache["resid_post", 7]
    >>> bool(torch.allclose(frozen(resid) + frozen.constant, every.read(resid), atol=1e-4))
    True
    """

    def __init__(self, readout: AllTokens, cache: Activations):
        self._ends = FrozenPooling(readout, cache)
        self._norm = readout.ln_final
        if "ln_final.hook_scale" in cache.cache_dict:
            scale = cache["ln_final.hook_scale"].detach().clone()
        else:
            scale = self._norm.split(cache[f"blocks.{readout.cfg.n_layers - 1}.hook_resid_post"].detach())[1]
        self.scale: Float[Tensor, "batch pos 1"] = wide(scale, self._norm.w.device)
        bias = self._norm.b.detach().to(self.scale)[None]
        self.constant: Float[Tensor, " d_embed"] = sum(
            self._ends._of_projection(bias).values(), start=self._ends.to_embed(bias)
        )[0]

    def __call__(self, residual: Float[Tensor, "*part batch pos d_model"]) -> Float[Tensor, "*part batch pos d_embed"]:
        """Return what a part of the last residual contributes to every token of the output."""
        normed = self._norm.centre(residual.to(self.scale)) / self.scale * self._norm.w.detach().to(self.scale)
        return self._ends.to_embed(normed)
