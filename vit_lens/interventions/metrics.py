"""What a sweep measures of an embedding: one number for each image."""

__all__ = ["Metric", "cosine_to", "logit_difference", "measure"]

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from vit_lens.attribution import check_tensor, finite
from vit_lens.errors import InterventionError

Metric = Callable[[Tensor], Tensor]  # [batch d_embed] -> [batch], or a scalar over the whole batch


def cosine_to(target: Float[Tensor, "*batch d_embed"]) -> Metric:
    """Return a metric: the cosine of each image's embedding with one embedding, or with one for each image.

    Args:
        target: The embedding to compare with, of any length; one [d_embed], or one for each image.

    Raises:
        InterventionError: An embedding is zero or not finite; or, when the metric is used, of another width.

    >>> metric = vl.interventions.cosine_to(bank.embeds[1])  # "a blue star"
    >>> torch.allclose(metric(model(pixels)), bank.cosines(model(pixels))[:, 1], atol=1e-5)
    True
    """
    check_tensor("the target", target, "*batch d_embed", InterventionError)
    norms = target.detach().norm(dim=-1)
    if not (norms.isfinite() & (norms > 0)).all():
        raise InterventionError("an embedding that is zero or not finite has no cosine; give another target")
    return partial(_cosine, target=target.clone())


def logit_difference(
    toward: Float[Tensor, "*batch d_embed"], away: Float[Tensor, "*batch d_embed"], logit_scale: float | int = 1.0
) -> Metric:
    """Return a metric: the difference of two zero-shot logits, ``logit_scale * (cos(e, toward) - cos(e, away))``.

    Args:
        toward: A text embedding, of any length; one, or one for each image.
        away: The text embedding whose logit is taken away, of the same form.
        logit_scale: CLIP's factor, already exponentiated (about 100); 1 measures in cosines.

    Raises:
        InterventionError: An embedding is zero or not finite, or the scale is no number; or, when the metric is used,
            an embedding is of another width.

    >>> blue, red = bank.embeds[1], bank.embeds[0]  # "a blue star" and "a red star"
    >>> metric = vl.interventions.logit_difference(blue, red, bank.logit_scale)
    >>> metric(model(pixels)) > 0
    tensor([ True, False])
    """
    scale = finite("logit_scale", logit_scale, InterventionError)
    return partial(_difference, first=cosine_to(toward), second=cosine_to(away), scale=scale)


def _cosine(embeds: Tensor, target: Tensor) -> Tensor:
    if target.shape[-1] != embeds.shape[-1] or (target.ndim > 1 and len(target) not in (1, len(embeds))):
        raise InterventionError(
            f"a target of shape {tuple(target.shape)} for embeddings of shape {tuple(embeds.shape)}; expected one "
            "embedding of their width, or one for each"
        )
    return F.cosine_similarity(embeds, target.to(embeds), dim=-1)


def _difference(embeds: Tensor, first: Metric, second: Metric, scale: float | int) -> Tensor:
    return scale * (first(embeds) - second(embeds))


def measure(metric: Metric, embeds: Float[Tensor, "batch *pos d_embed"]) -> Float[Tensor, "*found"]:
    """Return the metric of a batch of embeddings, which it may edit; True and False count as 1 and 0.

    Raises:
        InterventionError: It is no function, or returns neither one number nor one for each image.
    """
    if not callable(metric):
        raise InterventionError(f"metric={metric!r}; expected a function of embeddings, such as cosine_to(embedding)")
    value = metric(embeds.clone())
    if not isinstance(value, Tensor) or value.shape not in ((), (len(embeds),)):
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InterventionError(
            f"the metric returned {got} for {len(embeds)} embeddings; it must return a tensor with one number for "
            "each, or a single one"
        )
    return value.detach().to(embeds.dtype if value.dtype == torch.bool else value.dtype)
