"""The null of a stream that only turns from its first layer to its last: points between them, at the layer's cosine."""

__all__ = ["InterpolationLens", "share_at_cosine"]

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vit_lens.addresses import Site
from vit_lens.errors import LensError
from vit_lens.lenses import TextRun
from vit_lens.studies.whose.states import StateLens


class InterpolationLens(StateLens):
    """Read, in a layer's place, the point between embedding and last layer that is as near to the last as the layer is.

    At every position the state is ``h_0 + t (h_L - h_0)``, with ``t`` in [0, 1] such that its cosine to ``h_L`` is that
    of ``h_l``; ``h_L`` is the residual that the format reads. All of it is before the final norm, which then follows as
    in the format. Cosines are those of what that norm sees: of CLIP, whose norm takes the mean away, without the mean.
    Where ``h_l`` is farther from ``h_L`` than ``h_0`` is, no point of the segment is as far, and ``h_0`` stands there.

    What such a picture shows is there in no layer: it is what a denoiser makes of a mixture of the first layer and the
    last. Only what the layer's own picture shows earlier, later or in another order is the encoder's.
    """

    name = "interpolation"

    @property
    def definition(self) -> str:
        """The state, in the symbols of the class."""
        return "h_0 + t (h_L - h_0) where the format reads, t in [0, 1] such that cos to h_L is that of h_l"

    @property
    def words(self) -> str:
        """A sentence on how a state is read."""
        return (
            "Puts, where the format reads its text encoder, the point between the embeddings and the last layer that "
            "is as near to the last layer as this one is."
        )

    @property
    def _title(self) -> str:
        return "interpolation between first and last layer"

    def shares(
        self, run: TextRun, output: Float[Tensor, "batch pos d"]
    ) -> tuple[Float[Tensor, "batch pos"], Bool[Tensor, "batch pos"], Float[Tensor, "batch pos"]]:
        """Return how far on the way from first to last a state lies, whether it is clamped, and its cosine to the last.

        Args:
            run: A run of prompts.
            output: What a layer holds.
        """
        seen = self._seen(run)
        start, end = self._ends(run)
        return share_at_cosine(seen(start), seen(end), seen(output.double()))

    def _ends(self, run: TextRun) -> tuple[Tensor, Tensor]:
        reading = self.moved_in(run)
        if reading.at:
            raise LensError(
                f"format {run.format.name} reads several layers of {reading.encoder} side by side, and there is no one "
                "segment to interpolate on"
            )
        layer = reading.layer(run.tower(reading.encoder).cfg.n_layers)
        return run.residual(reading.encoder, 0).double(), run.residual(reading.encoder, layer).double()

    def _state(
        self, run: TextRun, means: TextRun | None, site: Site, output: Float[Tensor, "batch pos d"]
    ) -> Float[Tensor, "batch pos d"]:
        share, _, _ = self.shares(run, output)
        return torch.lerp(*self._ends(run), share[..., None])


def share_at_cosine(
    start: Float[Tensor, "*rows d"], end: Float[Tensor, "*rows d"], own: Float[Tensor, "*rows d"]
) -> tuple[Float[Tensor, "*rows"], Bool[Tensor, "*rows"], Float[Tensor, "*rows"]]:
    """Return where on the segment from ``start`` to ``end`` the cosine to ``end`` is that of ``own``.

    With ``r`` the length of the start, ``b`` that of the end, and angles to the end ``u`` of the start and ``v`` of
    ``own``, it is ``r sin(u - v) / (b sin v + r sin(u - v))``: the law of sines in the triangle of zero, start and end.
    The angle falls all along the segment, so there is one such point wherever ``v`` is at most ``u``.

    Args:
        start: Vectors, in float64.
        end: The same.
        own: The same.

    Returns:
        The shares in [0, 1]; where they are clamped to 0, as the angle of ``own`` is larger than that of the start; and
        the cosines of ``own`` and ``end``.

    Raises:
        LensError: A vector is zero or not finite, which has no angle.

    >>> a, b = torch.tensor([1.0, 0.0]).double(), torch.tensor([0.0, 1.0]).double()
    >>> share_at_cosine(a, b, torch.tensor([3.0, 1.0]).double())[0].item()
    0.25
    """
    lengths = [x.norm(dim=-1) for x in (start, end, own)]
    if not all(bool((length.isfinite() & (length > 0)).all()) for length in lengths):
        raise LensError("a state is zero or not finite, and has no cosine: there is nothing to interpolate by")
    first, angle = _angle(start, end), _angle(own, end)
    is_farther = angle > first
    along = lengths[0] * (first - angle).clamp(min=0).sin()
    rest = lengths[1] * angle.sin()
    share = torch.where(along + rest > 0, along / (along + rest).clamp(min=torch.finfo(along.dtype).tiny), 1.0)
    return torch.where(is_farther, 0.0, share), is_farther, angle.cos()


def _angle(a: Float[Tensor, "*rows d"], b: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows"]:
    """Return the angle between vectors, exact near 0 too, where a cosine says nothing."""
    square = b.square().sum(-1)
    part = (a * b).sum(-1)
    across = a - (part / square)[..., None] * b
    return torch.atan2(across.norm(dim=-1), part / square.sqrt())
