"""Small ``AutoencoderRAE`` of diffusers, of every encoder type, with random weights, biases and statistics."""

import torch

ENCODERS = {"dinov2": (14, 42), "siglip2": (16, 48), "mae": (16, 48)}  # patch and input size: a grid of 3 x 3


def stock_class(monkeypatch=None):
    """``AutoencoderRAE``, which with transformers 5 finds no ``vision_model`` in the SigLIP that it builds itself."""
    from diffusers import AutoencoderRAE
    from transformers import SiglipVisionModel

    if not hasattr(SiglipVisionModel, "vision_model"):
        SiglipVisionModel.vision_model = property(lambda self: self)
    return AutoencoderRAE


def tiny_rae(kind="dinov2", *, seed=0, width=128, layers=2, statistics=True, dtype=torch.float32, **more):
    patch, size = ENCODERS[kind]
    generator = torch.Generator().manual_seed(seed)
    latents = {}
    if statistics:
        latents = {
            "latents_mean": torch.randn(width, 3, 3, generator=generator).tolist(),
            "latents_std": (torch.rand(width, 3, 3, generator=generator) + 0.5).tolist(),
        }
    torch.manual_seed(seed)
    made = stock_class()(
        encoder_type=kind, encoder_hidden_size=width, encoder_patch_size=patch, encoder_num_hidden_layers=layers,
        decoder_hidden_size=24, decoder_num_hidden_layers=2, decoder_num_attention_heads=3,
        decoder_intermediate_size=40, patch_size=5, encoder_input_size=size, noise_tau=0.4,
        **{"scaling_factor": 1.3, **latents, **more},
    )  # fmt: skip
    with torch.no_grad():
        for name, weight in made.named_parameters():
            noise = torch.randn(weight.shape, generator=generator) * 0.15
            weight.copy_(noise + (name.endswith("weight") and weight.ndim == 1) + ("lambda1" in name))
    return made.to(dtype).eval().requires_grad_(False)


def pictures_for(rae, n=2, seed=1):
    size = rae.config.encoder_input_size
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, size, size, generator=generator, dtype=torch.float32).to(rae.dtype)


def pixels_for(rae, pictures):
    return (pictures - rae.encoder_mean) / rae.encoder_std
