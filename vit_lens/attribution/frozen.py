"""The read-out of one run, frozen: a linear map from the last residual stream to the embedding."""

__all__ = ["FrozenReadout", "read_rows", "read_tokens", "same"]

import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.attribution.checks import check_cache, check_finite, check_tensor
from vit_lens.errors import LensError
from vit_lens.numerics import without_autocast
from vit_lens.towers import FrozenAttentionPooling, FrozenTokens, ViTActivationCache, read_wide


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
        cache: The cache of a run with ``rows="readout"`` or ``rows="all"``, or with the names of
            :func:`vit_lens.attribution.hook_names`.

    Attributes:
        cache: The cache that was given.
        model: The model that the cache is of.
        scale: What the last LayerNorm divided each read-out row by.
        weights: What each read-out row counts for each pooling head, divided by the frozen scale.
        constants: Terms of the embedding that no part of the residual causes, by name: biases, and what the MLP
            of attention pooling adds.

    Raises:
        LensError: The cache is no cache, or was cut; or the read-out has an output for every token.
        UnknownHookError: The cache lacks an activation; the message names it.

    >>> readout = vl.attribution.FrozenReadout(cache)
    >>> last = vl.attribution.read_rows(cache, "blocks.7.hook_resid_post")
    >>> torch.allclose(readout(last) + readout.constant, model(pixels), atol=1e-4)
    True
    >>> readout.pull_back(bank.embeds).shape  # what to look for in the last residual, caption by caption
    torch.Size([6, 2, 1, 128])
    """

    @without_autocast()
    def __init__(self, cache: ViTActivationCache):
        self.cache = check_cache(cache)
        self.model = cache.model
        readout, self._norm = cache.read_out, self.model.ln_final
        self._final = read_wide(cache, f"blocks.{self.model.cfg.n_layers - 1}.hook_resid_post").detach()
        check_finite(self._final[:, None], ["the last residual"], cache)
        edited = "ln_final.hook_scale" in cache.cache_dict  # otherwise it follows from the residual
        scale = self._wide(cache.readout("ln_final.hook_scale")) if edited else self._norm.split(self._final)[1]
        self.scale: Float[Tensor, "batch row 1"] = scale.clone()
        self._ends = readout.frozen(cache)
        if isinstance(self._ends, FrozenTokens):
            raise LensError("this read-out has an output for every token: cache.read_out.frozen(cache) maps them apart")
        self.weights: Float[Tensor, "batch pool_head row"] = self._ends.weights(self.scale[..., 0])
        constants = self._ends.constants(self._wide(self._norm.b), len(self.weights))
        self.constants: dict[str, Float[Tensor, "batch d_embed"]] = {
            name: self._of_all(value) for name, value in constants.items()
        }

    def __call__(self, residual: Float[Tensor, "*part batch row d_model"]) -> Float[Tensor, "*part batch d_embed"]:
        """Return what a part of the last residual, at the read-out rows, contributes to the embedding."""
        return self.project(self.reduce(residual))

    @without_autocast()
    def reduce(self, rows: Float[Tensor, "*part batch row d"]) -> Float[Tensor, "*part batch pool_head d"]:
        """Return the weighted sum over the read-out rows, which is all of them that the embedding sees.

        Raises:
            LensError: The rows are not those of this run.
        """
        batch, _, n_rows = self.weights.shape
        check_tensor("a part of the residual", rows, f"*part {batch} {n_rows} d")
        return self.weights @ rows.to(self.weights)

    @without_autocast()
    def project(self, reduced: Float[Tensor, "*part #batch pool_head d_model"]) -> Float[Tensor, "*part batch d_embed"]:
        """Map what :meth:`reduce` returned to the embedding.

        Raises:
            LensError: It is no such part.
        """
        check_tensor("a reduced part", reduced, f"*part batch pool_head {self.model.cfg.d_model}")
        return self.pooled_to_embed(self._ends.to_pooled(self._norm.centre(reduced) * self._wide(self._norm.w)))

    @without_autocast()
    def pull_back(
        self, directions: Float[Tensor, "*direction d_embed"]
    ) -> Float[Tensor, "*direction batch row d_model"]:
        """Return the transpose of the map: directions of the embedding, back at the read-out rows.

        ``(readout(x) * direction).sum() == (x * readout.pull_back(direction)).sum()``, image by image.
        """
        return self.weights.transpose(-1, -2) @ self.pull_back_reduced(directions)

    @without_autocast()
    def pull_back_reduced(
        self, directions: Float[Tensor, "*direction d_embed"]
    ) -> Float[Tensor, "*direction batch pool_head d_model"]:
        """Return the transpose of :meth:`project`.

        Raises:
            LensError: The directions are no embeddings of the model.
        """
        check_tensor("a direction", directions, f"*direction {self.model.cfg.d_embed}")
        back = self._norm.centre(self._ends.from_embed(directions.to(self.weights)) * self._wide(self._norm.w))
        return back.expand(*back.shape[:-3], len(self.weights), *back.shape[-2:])

    @without_autocast()
    def pooled_to_embed(self, pooled: Float[Tensor, "*part #batch d_pooled"]) -> Float[Tensor, "*part batch d_embed"]:
        """Map a part of the pooled vector (before ``ln_post``, where there is one) to the embedding.

        Raises:
            LensError: It is no such part.
        """
        check_tensor("a part of the pooled vector", pooled, f"*part batch {self.model.cfg.d_pooled}")
        return self._of_all(self._ends.to_embed(pooled))

    @property
    def final_reduced(self) -> Float[Tensor, "batch pool_head d_model"]:
        """The last residual of the run, reduced."""
        return self.reduce(self._final)

    @property
    @without_autocast()
    def constant(self) -> Float[Tensor, "batch d_embed"]:
        """The sum of :attr:`constants`: the embedding of a residual of zeros."""
        return torch.stack(list(self.constants.values())).sum(0)

    @property
    @without_autocast()
    def embedding(self) -> Float[Tensor, "batch d_embed"]:
        """The embedding of the run."""
        return self.project(self.final_reduced) + self.constant

    @property
    def pattern(self) -> Float[Tensor, "batch pool_head row"]:
        """How much attention each head of attention pooling gave to each token.

        Raises:
            LensError: The tower does not pool by attention.
        """
        if not isinstance(self._ends, FrozenAttentionPooling):
            raise LensError(
                f"this tower reads its embedding from {self.cache.read_out.words}, not by attention pooling; "
                "split_embedding and token_parts are for every tower"
            )
        return self._ends.pattern

    @property
    @without_autocast()
    def normed(self) -> Float[Tensor, "batch row d_model"]:
        """The last residual at the read-out rows, after the last LayerNorm."""
        return self._norm.centre(self._final) / self.scale * self._wide(self._norm.w) + self._wide(self._norm.b)

    @property
    def eps(self) -> float:
        """The relative rounding of the run's own numbers: eps of their dtype."""
        return torch.finfo(self.cache[f"blocks.{self.model.cfg.n_layers - 1}.hook_resid_post"].dtype).eps

    def _wide(self, x: Tensor) -> Tensor:
        return x.detach().to(device=self.model.device, dtype=self._final.dtype)

    def _of_all(self, x: Float[Tensor, "*part #batch d_embed"]) -> Float[Tensor, "*part batch d_embed"]:
        return x.expand(*x.shape[:-2], len(self.weights), x.shape[-1])


def read_rows(cache: ViTActivationCache, name: str) -> Float[Tensor, "batch row *axes"]:
    """Return an activation at the read-out rows, in float32 or wider, on the model's device: a copy.

    Args:
        cache: The cache of one run.
        name: The full name of a hook point.

    Raises:
        UnknownHookError: The cache lacks the activation.

    >>> vl.attribution.read_rows(cache, "blocks.3.attn.hook_z").shape
    torch.Size([2, 1, 8, 16])
    """
    return read_wide(check_cache(cache), name).detach().clone()


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
