"""The read-out of one run, frozen: a linear map from the last residual stream to the embedding."""

__all__ = ["FrozenReadout", "check_cache", "read_rows", "read_tokens", "same"]

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from vit_lens.errors import LensError
from vit_lens.towers.cache import ViTActivationCache
from vit_lens.towers.layers import AttentionPool

_PATTERN, _POOL_SCALE = "attn_pool.attn.hook_pattern", "attn_pool.ln_post.hook_scale"


class FrozenReadout:
    """``embedding = readout(residual) + readout.constant``, linear in the residual for the images of one run.

    Every scale that the read-out divides by stays at the value that it had in the run: that of the last
    LayerNorm, and for attention pooling also its pattern and the scale of ``ln_post``. Weights, biases and
    projection are applied. What such a scale would do if a part were really missing is not in it: the map gives
    direct effects, see :func:`vit_lens.attribution.split_embedding`.

    A residual is first weighted over rows (:meth:`reduce`), once for every head of attention pooling and once
    where there is none, then mapped to the embedding (:meth:`project`). Everything is computed in float32 or
    wider, on the model's device.

    Args:
        cache: Of a run with ``rows="readout"`` or ``rows="all"``, or with the names of
            :func:`vit_lens.attribution.hook_names`.

    Attributes:
        cache: The cache.
        model: Its model.
        scale: What the last LayerNorm divided by.
        weights: What each read-out row counts for each pooling head, divided by the frozen scale.
        constants: Terms of the embedding that no part of the residual causes, by name: biases, and what the MLP
            of attention pooling adds.

    Raises:
        LensError: The cache is no cache, or was cut.
        UnknownHookError: The cache lacks an activation; the message names it.
    """

    def __init__(self, cache: ViTActivationCache):
        self.cache = check_cache(cache)
        self.model = cache.model
        self._final = read_rows(cache, f"blocks.{self.model.cfg.n_layers - 1}.hook_resid_post")
        self.scale: Float[Tensor, "batch row 1"] = self._scale()
        scale = self.scale[..., 0]
        mean = 1 / (scale.shape[1] * scale)[:, None]
        pattern = None if self._pool is None else self.pattern
        self.weights: Float[Tensor, "batch pool_head row"] = mean if pattern is None else pattern / scale[:, None]
        has_norm = self._pool is not None and self._pool.ln_post is not None
        self._pool_scale = self._wide(cache[_POOL_SCALE])[:, 0] if has_norm else None
        mass = torch.ones_like(mean[..., 0]) if pattern is None else pattern.sum(-1)
        self.constants: dict[str, Float[Tensor, "batch d_embed"]] = self._constants(mass)

    def __call__(self, residual: Float[Tensor, "*part batch row d_model"]) -> Float[Tensor, "*part batch d_embed"]:
        """Return what a part of the last residual, at the read-out rows, contributes to the embedding."""
        return self.project(self.reduce(residual))

    def reduce(self, rows: Float[Tensor, "*part batch row d"]) -> Float[Tensor, "*part batch pool_head d"]:
        """Return the weighted sum over the read-out rows, which is all of them that the embedding sees."""
        return self.weights @ rows.to(self.weights)

    def project(self, reduced: Float[Tensor, "*part #batch pool_head d_model"]) -> Float[Tensor, "*part batch d_embed"]:
        """Map what :meth:`reduce` returned to the embedding."""
        gain = self._wide(self.model.ln_final.w)
        return self.pooled_to_embed(self._pool_values((reduced - reduced.mean(-1, keepdim=True)) * gain))

    def pull_back(
        self, directions: Float[Tensor, "*direction d_embed"]
    ) -> Float[Tensor, "*direction batch row d_model"]:
        """Return the transpose of the map: directions of the embedding, back at the read-out rows.

        ``(readout(x) * direction).sum() == (x * readout.pull_back(direction)).sum()``, image by image.
        """
        return self.weights.transpose(-1, -2) @ self.pull_back_reduced(directions)

    def pull_back_reduced(
        self, directions: Float[Tensor, "*direction d_embed"]
    ) -> Float[Tensor, "*direction batch pool_head d_model"]:
        """Return the transpose of :meth:`project`."""
        back = directions.to(self.weights) @ self._wide(self.model.W_U).T
        back = back[..., None, :].expand(*back.shape[:-1], len(self.weights), back.shape[-1])
        if self._pool is not None:
            if self._pool.ln_post is not None and self._pool_scale is not None:
                back = back * self._wide(self._pool.ln_post.w)
                back = (back - back.mean(-1, keepdim=True)) / self._pool_scale
            back = einsum(back, self._wide(self._pool.attn.W_O), "... b p, h k p -> ... b h k")
            back = einsum(back, self._wide(self._pool.attn.get_parameter("W_V")), "... b h k, h d k -> ... b h d")
        else:
            back = back[..., None, :]
        back = back * self._wide(self.model.ln_final.w)
        return back - back.mean(-1, keepdim=True)

    def pooled_to_embed(self, pooled: Float[Tensor, "*part #batch d_pooled"]) -> Float[Tensor, "*part batch d_embed"]:
        """Map a part of the pooled vector (before ``ln_post``, where there is one) to the embedding."""
        if self._pool is not None and self._pool.ln_post is not None and self._pool_scale is not None:
            centred = pooled - pooled.mean(-1, keepdim=True)
            pooled = centred / self._pool_scale * self._wide(self._pool.ln_post.w)
        out = pooled @ self._wide(self.model.W_U)
        return out.expand(*out.shape[:-2], len(self.weights), out.shape[-1])

    @property
    def final_reduced(self) -> Float[Tensor, "batch pool_head d_model"]:
        """The last residual of the run, reduced."""
        return self.reduce(self._final)

    @property
    def constant(self) -> Float[Tensor, "batch d_embed"]:
        """The sum of :attr:`constants`: the embedding of a residual of zeros."""
        return torch.stack(list(self.constants.values())).sum(0)

    @property
    def embedding(self) -> Float[Tensor, "batch d_embed"]:
        """The embedding of the run."""
        return self.project(self.final_reduced) + self.constant

    @property
    def pattern(self) -> Float[Tensor, "batch pool_head row"]:
        """How much attention each head of attention pooling gave to each token."""
        return self._wide(self.cache[_PATTERN])[:, :, 0]

    @property
    def normed(self) -> Float[Tensor, "batch row d_model"]:
        """The last residual at the read-out rows, after the last LayerNorm."""
        centred = self._final - self._final.mean(-1, keepdim=True)
        return centred / self.scale * self._wide(self.model.ln_final.w) + self._wide(self.model.ln_final.b)

    @property
    def eps(self) -> float:
        """Rounding of the run's own numbers."""
        return torch.finfo(self.cache[f"blocks.{self.model.cfg.n_layers - 1}.hook_resid_post"].dtype).eps

    @property
    def _pool(self) -> AttentionPool | None:
        return self.model.attn_pool

    def _wide(self, x: Tensor) -> Tensor:
        return x.detach().to(device=self.model.device, dtype=self._final.dtype)

    def _scale(self) -> Float[Tensor, "batch row 1"]:
        """Return the run's own scale; an edited one is in the cache, otherwise it follows from the residual."""
        name = "ln_final.hook_scale"
        if name not in self.cache.cache_dict:
            return self.model.ln_final.split(self._final)[1]
        scale = self.cache[name] if self.model.cfg.ln_final == "after_pool" else self.cache.readout(name)
        return self._wide(scale)

    def _pool_values(
        self, normed: Float[Tensor, "*part batch pool_head d_model"]
    ) -> Float[Tensor, "*part batch d_out"]:
        if self._pool is None:
            return normed[..., 0, :]
        values = einsum(normed, self._wide(self._pool.attn.get_parameter("W_V")), "... h d, h d k -> ... h k")
        return einsum(values, self._wide(self._pool.attn.W_O), "... h k, h k p -> ... p")

    def _constants(self, mass: Float[Tensor, "batch pool_head"]) -> dict[str, Float[Tensor, "batch d_embed"]]:
        """Push every bias through what follows it; ``mass`` is the attention that each pooling head gives out."""
        bias = self._wide(self.model.ln_final.b)
        terms = {"ln_final.b": self.pooled_to_embed(self._pool_values(mass[..., None] * bias))}
        if self._pool is not None:
            attn = self._pool.attn
            values = mass[..., None] * self._wide(attn.get_parameter("b_V"))
            through = einsum(values, self._wide(attn.W_O), "b h k, h k p -> b p")
            terms["pool.b_V"] = self.pooled_to_embed(through)
            terms["pool.b_O"] = self.pooled_to_embed(self._wide(attn.b_O)[None])
            if self._pool.mlp is not None:
                terms["pool.mlp"] = self.pooled_to_embed(self._wide(self.cache["attn_pool.hook_mlp_out"])[:, 0])
            if self._pool.ln_post is not None:
                terms["pool.ln_post.b"] = (self._wide(self._pool.ln_post.b) @ self._wide(self.model.W_U)).expand(
                    len(self.weights), -1
                )
        if self.model.cfg.has_proj_bias:
            terms["b_U"] = self._wide(self.model.b_U).expand(len(self.weights), -1)
        return terms


def check_cache(cache: object) -> ViTActivationCache:
    """Return a cache.

    Raises:
        LensError: It is a plain dict, or something else.
    """
    if not isinstance(cache, ViTActivationCache):
        raise LensError(f"attribution reads the cache of HookedViT.run_with_cache, not {type(cache).__name__}")
    return cache


def read_rows(cache: ViTActivationCache, name: str) -> Float[Tensor, "batch row *axes"]:
    """Return an activation at the read-out rows, in float32 or wider, on the model's device."""
    rows = cache.readout(name).detach()
    return rows.to(device=cache.model.device, dtype=torch.promote_types(rows.dtype, torch.float32))


def read_tokens(cache: ViTActivationCache, name: str) -> Float[Tensor, "batch *axes"]:
    """Return an activation of every token, in float32 or wider, on the model's device.

    Raises:
        LensError: The cache holds only some positions, or has lost its batch axis.
    """
    if cache.rows != "all" or not cache.has_batch_dim:
        raise LensError(
            f"{name} is needed at every token, and this cache holds rows={cache.rows!r}"
            f"{'' if cache.has_batch_dim else ' without a batch axis'}; run_with_cache(pixels, names_filter="
            "attribution.hook_names(model, tokens=True)) holds what attribution reads"
        )
    value = cache[name].detach()
    return value.to(device=cache.model.device, dtype=torch.promote_types(value.dtype, torch.float32))


def same(a: Float[Tensor, "*axes"], b: Float[Tensor, "*axes"], size: Float[Tensor, ""], eps: float | int) -> bool:
    """Whether two results differ by no more than the rounding of numbers as large as ``size``."""
    return bool((a - b).abs().amax() <= min(1e4 * eps, 0.1) * size)  # NaN is a difference
