"""How well a decoder's weights and its reader agree: the error of the noise it predicts for real pictures."""

__all__ = ["denoising_error"]

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.addresses import as_index
from vit_lens.attribution import whole
from vit_lens.decoders.kandinsky import KandinskyDecoder
from vit_lens.decoders.kandinsky_parts import unet_output
from vit_lens.decoders.numerics import stated_numerics
from vit_lens.decoders.sampling import predicted_noise
from vit_lens.errors import DecoderError, expect


@stated_numerics()
def denoising_error(
    decoder: KandinskyDecoder,
    images: Float[Tensor, "batch 3 height width"],
    embeds: Float[Tensor, "batch d_embed"],
    *,
    timesteps: Sequence[int] = (100, 300, 500, 700, 900),
    seed: int = 0,
) -> dict[int, float]:
    """Return the mean squared error of the predicted noise at each timestep, without guidance.

    A public run of the Kandinsky 2.2 weights has .284, .075, .021, .0046 and .00065 at the default timesteps; a model
    that is loaded wrongly is far above.

    Args:
        decoder: The decoder with the weights in question.
        images: Pictures in [-1, 1]; noise is added to their latents.
        embeds: The encoder's raw embeddings of the same pictures.
        timesteps: The timesteps to measure at.
        seed: The seed of the noise; each picture has its own, the same at every timestep.

    Raises:
        ContractError: The embeddings are not for this decoder.
        DecoderError: It is no such decoder, images and embeddings are not as many, or a size or timestep is out of
            range.

    >>> from vit_lens.images import to_display
    >>> seen = np.stack([np.asarray(picture) for picture in to_display(images, model.preprocess_spec)])
    >>> pictures = torch.from_numpy(seen).permute(0, 3, 1, 2) / 127.5 - 1
    >>> errors = vl.decoders.denoising_error(decoder, pictures, model(pixels), timesteps=(100, 900))
    >>> errors[100] > errors[900]
    True
    """
    expect(decoder, KandinskyDecoder, "decoder", DecoderError, "KandinskyDecoder.from_pretrained(name) loads one")
    expect(images, Tensor, "images", DecoderError, "[batch 3 height width], with values in [-1, 1]")
    expect(timesteps, Iterable, "timesteps", DecoderError, "a list of whole numbers")
    timesteps, seed = list(timesteps), whole("seed", seed, DecoderError, 0)
    decoder.check(embeds)
    n_timesteps = decoder.scheduler.config.num_train_timesteps
    if images.ndim != 4 or images.shape[1] != 3 or not bool((images.abs() <= 1.01).all()):
        raise DecoderError(
            f"images are {images.dtype} {list(images.shape)}; expected [batch 3 height width] with values in [-1, 1]"
        )
    if len(images) != len(embeds):
        raise DecoderError(f"{len(images)} images, but {len(embeds)} embeddings; give one per image")
    for timestep in timesteps:
        if (index := as_index(timestep)) is None or not 0 <= index < n_timesteps:
            raise DecoderError(f"timestep {timestep!r} is out of range, the decoder has 0 to {n_timesteps - 1}")
    decoder.layout.latent_shape(images.shape[2], images.shape[3])
    kind, dtype = decoder.scheduler.config.prediction_type, torch.promote_types(decoder.dtype, torch.float32)
    errors = {}
    with torch.inference_mode():
        clean = decoder.movq.encode(images.to(decoder.device, decoder.movq.dtype)).latents.to(dtype)
        generator = torch.Generator("cpu").manual_seed(seed)
        noise = torch.randn(clean.shape, generator=generator, dtype=torch.float32, device="cpu").to(clean)
        for timestep in timesteps:
            alpha = float(decoder.scheduler.alphas_cumprod[timestep])
            noisy = alpha**0.5 * clean + (1 - alpha) ** 0.5 * noise
            at = torch.tensor(timestep, device=decoder.device)
            output = unet_output(decoder.unet, noisy, at, embeds.to(decoder.device))
            errors[timestep] = float((predicted_noise(kind, output, noisy, alpha) - noise).square().mean())
    return errors
