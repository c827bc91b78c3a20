"""What of a representation autoencoder turns patch tokens into pictures: diffusers' own decoder, and its statistics."""

__all__ = ["RAEParts", "is_rae"]

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_lens.errors import DecoderError

_EPS = 1e-5  # as AutoencoderRAE has it


class RAEParts(nn.Module):
    """The decoding half of diffusers' ``AutoencoderRAE``, computed as it does to the bit.

    That class brings tokens to the statistics of latents and back, which is the identity but for rounding; so is this.

    Args:
        decoder: diffusers' ``RAEDecoder``.
        latents: The mean and standard deviation of latents; tensors that broadcast to [d side side], of a decoder whose
            latents are flat to [token d].
        pixels: The mean and standard deviation that the encoder's pixels were normalised with, [1 3 1 1].
        scaling: What latents are multiplied with.
        flat: Whether latents are [token d].

    >>> parts = vl.load_decoder("mini-rae").part
    >>> parts.n_tokens, parts.d_token, parts.side
    (16, 128, 64)
    """

    latents_mean: Tensor
    latents_std: Tensor
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self, decoder: Any, *, latents: tuple[Tensor, Tensor], pixels: tuple[Tensor, Tensor], scaling: float, flat: bool
    ):
        super().__init__()
        self.decoder, self.scaling, self.flat = decoder, scaling, flat
        for name, value in zip(("latents_mean", "latents_std"), latents, strict=True):
            self.register_buffer(name, value)
        for name, value in zip(("pixel_mean", "pixel_std"), pixels, strict=True):
            self.register_buffer(name, value)
        shape = (1, self.n_tokens, self.d_token) if flat else (1, self.d_token, self.grid, self.grid)
        for name in ("latents_mean", "latents_std"):
            given = tuple(getattr(self, name).shape)
            try:
                fits = torch.broadcast_shapes(given, shape) == shape
            except RuntimeError:
                fits = False
            if not fits:
                raise DecoderError(f"{name} is {list(given)}, which does not broadcast to latents {list(shape)}")

    @classmethod
    def of(cls, autoencoder: Any) -> "RAEParts":
        """Return the decoding half of an ``AutoencoderRAE`` in memory, whose weights are shared.

        Args:
            autoencoder: An ``AutoencoderRAE`` of diffusers.

        Raises:
            DecoderError: It is none.
        """
        if not is_rae(autoencoder):
            raise DecoderError(
                f"a {type(autoencoder).__name__} is no AutoencoderRAE of diffusers; the pipeline's "
                "autoencoder, pipeline.vae, is one"
            )
        return cls(
            autoencoder.decoder, latents=(autoencoder._latents_mean, autoencoder._latents_std),
            pixels=(autoencoder.encoder_mean, autoencoder.encoder_std),
            scaling=float(autoencoder.config.scaling_factor), flat=not autoencoder.reshape_to_2d,
        )  # fmt: skip

    @property
    def n_tokens(self) -> int:
        """How many patch tokens a picture is drawn from."""
        return int(self.decoder.num_patches)

    @property
    def grid(self) -> int:
        """How many of them lie along a side."""
        return math.isqrt(self.n_tokens)

    @property
    def d_token(self) -> int:
        """How wide a token is."""
        return int(self.decoder.decoder_embed.in_features)

    @property
    def side(self) -> int:
        """The height and width of a picture, in pixels."""
        return int(self.decoder.image_size)

    @property
    def weight(self) -> Tensor:
        """A weight, which says the dtype and device."""
        return self.decoder.decoder_embed.weight

    def forward(self, tokens: Float[Tensor, "row token d"]) -> Float[Tensor, "row 3 height width"]:
        """Return pictures, of which [0, 1] is to be kept: what ``AutoencoderRAE.decode`` gives of these tokens."""
        tokens = tokens.to(self.weight)
        rows, (mean, std) = len(tokens), (x.to(self.weight) for x in (self.latents_mean, self.latents_std))
        z = tokens
        if not self.flat:
            z = z.transpose(1, 2).contiguous().view(rows, self.d_token, self.grid, self.grid)
        z = (z - mean) / (std + _EPS)
        if self.scaling != 1.0:
            z = z * self.scaling / self.scaling
        z = z * (std + _EPS) + mean
        if not self.flat:
            z = z.view(rows, self.d_token, self.n_tokens).transpose(1, 2).contiguous()
        pixels = self.decoder.unpatchify(self.decoder(z, return_dict=True).logits)
        return pixels * self.pixel_std.to(self.weight) + self.pixel_mean.to(self.weight)


def is_rae(given: object) -> bool:
    """Return whether something is diffusers' ``AutoencoderRAE``; diffusers is not imported for it."""
    return any(
        cls.__name__ == "AutoencoderRAE" and cls.__module__.startswith("diffusers.") for cls in type(given).__mro__
    )
