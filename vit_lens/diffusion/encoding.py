"""From pictures to the latents that a pipeline denoises."""

__all__ = ["encoded"]

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.errors import VitLensError


@torch.no_grad()
def encoded(pipeline: Any, pictures: Any, height: int, width: int) -> Float[Tensor, "input *latent"]:
    """Return pictures as the pipeline would leave them with ``output_type="latent"``: the mode of its VAE's encoder.

    Args:
        pipeline: The pipeline.
        pictures: What its image processor takes: PIL images, arrays, tensors.
        height: The height that they are brought to, in pixels.
        width: The width.

    Raises:
        VitLensError: The pipeline has no VAE, or one whose latents are scaled in a way that is not known here.
    """
    vae = getattr(pipeline, "vae", None)
    if vae is None or getattr(vae.config, "latents_mean", None) is not None:
        raise VitLensError(
            f"the VAE of this {type(pipeline).__name__} scales latents in a way that is not known here; encode the "
            "pictures yourself, as its output_type='latent' has them"
        )
    pixels = pipeline.image_processor.preprocess(pictures, height, width).to(pipeline._execution_device, vae.dtype)
    found = vae.encode(pixels)
    x = found.latent_dist.mode() if hasattr(found, "latent_dist") else found.latents
    x = (x - (getattr(vae.config, "shift_factor", None) or 0)) * vae.config.scaling_factor
    return x if not hasattr(pipeline, "_pack_latents") else pipeline._pack_latents(x, *x.shape)
