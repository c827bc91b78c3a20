"""What a sweep measures of an embedding: one number for each image."""

__all__ = ["Metric", "cosine_to", "logit_difference", "measure"]

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from vit_lens.errors import InterventionError

Metric = Callable[[Tensor], Tensor]  # [batch d_embed] -> [batch], or a scalar over the whole batch


def cosine_to(target: Float[Tensor, "*batch d_embed"]) -> Metric:
    """Return the cosine of each image's embedding with one embedding, or with one for each image.

    Raises:
        InterventionError: An embedding is zero or not finite; or, when the metric is used, of another width.
    """
    if not isinstance(target, Tensor):
        raise InterventionError(f"the target is a {type(target).__name__}; expected an embedding, a tensor [d_embed]")
    norms = target.detach().norm(dim=-1)
    if not (norms.isfinite() & (norms > 0)).all():
        raise InterventionError("an embedding that is zero or not finite has no cosine; give another target")

    def cosine(embeds: Tensor) -> Tensor:
        if target.shape[-1] != embeds.shape[-1] or (target.ndim > 1 and len(target) not in (1, len(embeds))):
            raise InterventionError(
                f"a target of shape {tuple(target.shape)} for embeddings of shape {tuple(embeds.shape)}; expected "
                "one embedding of their width, or one for each"
            )
        return F.cosine_similarity(embeds, target.to(embeds), dim=-1)

    return cosine


def logit_difference(
    toward: Float[Tensor, "*batch d_embed"], away: Float[Tensor, "*batch d_embed"], logit_scale: float | int = 1.0
) -> Metric:
    """Return the difference of two zero-shot logits: ``logit_scale * (cos(e, toward) - cos(e, away))``.

    Args:
        toward: Text embedding, of any length; one, or one for each image.
        away: The other.
        logit_scale: CLIP's factor, already exponentiated (about 100); 1 measures in cosines.
    """
    first, second = cosine_to(toward), cosine_to(away)

    def difference(embeds: Tensor) -> Tensor:
        return logit_scale * (first(embeds) - second(embeds))

    return difference


def measure(metric: Metric, embeds: Float[Tensor, "batch d_embed"]) -> Float[Tensor, "*batch"]:
    """Return the metric of a batch of embeddings.

    Raises:
        InterventionError: It is neither one number nor one for each image.
    """
    value = metric(embeds)
    if not isinstance(value, Tensor) or value.shape not in ((), (len(embeds),)):
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InterventionError(
            f"the metric returned {got} for {len(embeds)} embeddings; it must return a tensor with one number for "
            "each, or a single one"
        )
    return value.detach()
