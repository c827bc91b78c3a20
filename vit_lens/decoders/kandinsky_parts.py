"""The trained parts of a Kandinsky decoder: what they must be, the sizes they run, how they are called."""

__all__ = ["PixelLayout", "check_parts", "movq_output", "unet_output"]

from dataclasses import dataclass
from typing import Any, get_args

from jaxtyping import Float, Int
from torch import Tensor

from vit_lens.decoders.sampling import PredictionType
from vit_lens.errors import DecoderError


@dataclass(frozen=True, kw_only=True)
class PixelLayout:
    """How pixels and latents correspond.

    Attributes:
        channels: Of the latents.
        factor: Pixels per latent, along each side.
        multiple: What height and width must be multiples of, so that the UNet can halve the latents.
        default_size: Height and width that the UNet was trained for.
    """

    channels: int
    factor: int
    multiple: int
    default_size: tuple[int, int]

    @classmethod
    def of(cls, unet: Any, movq: Any) -> "PixelLayout":
        """Read the layout from the parts' configurations."""
        factor = 2 ** (len(movq.config.block_out_channels) - 1)
        size = unet.config.sample_size or 64
        sides = (size, size) if isinstance(size, int) else tuple(size)
        if len(sides) != 2:
            raise DecoderError(f"the UNet has sample_size={size}; expected a number, or height and width")
        multiple = factor * 2 ** (len(unet.config.block_out_channels) - 1)
        at = sides[0] * factor, sides[1] * factor
        return cls(channels=unet.config.in_channels, factor=factor, multiple=multiple, default_size=at)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Return the shape of one row's latents; the published pipeline rounds other sizes up silently.

        Raises:
            DecoderError: A side is not a multiple of what the decoder needs.
        """
        for name, size in (("height", height), ("width", width)):
            if size % self.multiple:
                lower = size // self.multiple * self.multiple
                valid = " or ".join(str(s) for s in (lower, lower + self.multiple) if s)
                raise DecoderError(f"{name}={size}: this decoder needs multiples of {self.multiple}; nearest: {valid}")
        return self.channels, height // self.factor, width // self.factor


def check_parts(unet: Any, movq: Any, scheduler: Any) -> None:
    """Refuse parts that are not those of a Kandinsky 2.2 text-to-image decoder.

    Raises:
        DecoderError: With what is different.
    """
    import diffusers

    expected = {"UNet2DConditionModel": unet, "VQModel": movq, "DDPMScheduler DDIMScheduler": scheduler}
    for names, part in expected.items():
        if not isinstance(part, tuple(getattr(diffusers, name) for name in names.split())):
            raise DecoderError(f"expected {' or '.join(names.split())} of diffusers, got a {type(part).__name__}")
    channels = movq.config.latent_channels
    wanted = {"encoder_hid_dim_type": "image_proj", "addition_embed_type": "image"}
    wanted |= {"in_channels": channels, "out_channels": 2 * channels}
    for key, value in wanted.items():
        if unet.config[key] != value:
            raise DecoderError(
                f"the UNet has {key}={unet.config[key]!r}, but a Kandinsky 2.2 decoder has {value!r}; "
                "inpainting and control decoders are not supported"
            )
    if movq.config.lookup_from_codebook:
        raise DecoderError("the MoVQ has lookup_from_codebook=True, but a Kandinsky 2.2 decoder skips the codebook")
    config, alphas = scheduler.config, scheduler.alphas_cumprod
    if len(alphas) != config.num_train_timesteps:
        raise DecoderError(f"the scheduler has {len(alphas)} betas for {config.num_train_timesteps} timesteps")
    if not bool(((alphas >= 0) & (alphas <= 1)).all()):
        raise DecoderError(
            f"the scheduler has beta_start {config.beta_start} and beta_end {config.beta_end}, so that what is left of "
            f"a picture runs from {float(alphas[0]):g} to {float(alphas[-1]):g}; expected numbers from 1 to 0"
        )
    if config.prediction_type not in get_args(PredictionType):
        raise DecoderError(f"prediction_type {config.prediction_type!r}, expected one of {get_args(PredictionType)}")
    if str(config.get("variance_type")).startswith("learned"):
        raise DecoderError(
            f"the scheduler has variance_type {config.variance_type!r}: sampling with the UNet's own "
            "variance is not supported, as the published decoder discards it; set variance_type to 'fixed_small'"
        )


def unet_output(
    unet: Any,
    latents: Float[Tensor, "batch channel height width"],
    timestep: Int[Tensor, ""],
    embeds: Float[Tensor, "batch d_embed"],
) -> Float[Tensor, "batch channel height width"]:
    """Run the UNet in its own dtype; return its prediction, in that of the latents, without variance."""
    given = {"image_embeds": embeds.to(unet.dtype)}
    out = unet(latents.to(unet.dtype), timestep, None, added_cond_kwargs=given, return_dict=False)[0]
    return out[:, : latents.shape[1]].to(latents.dtype)


def movq_output(
    movq: Any, latents: Float[Tensor, "batch channel height width"], decoder: Any = None
) -> Float[Tensor, "batch 3 picture_height picture_width"]:
    """Turn latents into pictures without the codebook.

    This is ``movq.decode(latents, force_not_quantize=True)`` without the loss of zeros, which is copied from the
    host to the device at every call.

    Args:
        movq: The whole of it.
        latents: In its dtype.
        decoder: Its decoder, compiled; None: as it is.
    """
    run = movq.decoder if decoder is None else decoder
    return run(movq.post_quant_conv(latents), latents if movq.config.norm_type == "spatial" else None)
