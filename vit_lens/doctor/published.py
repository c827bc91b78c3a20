"""Numbers of others, and bars of ours, that an examination compares with."""

__all__ = [
    "COLLAPSED_COSINE", "DENOISING_FACTOR", "FLAT_PICTURE", "KANDINSKY_22", "PIPELINE_BAR", "ROUND_TRIP_BAR",
    "ROUND_TRIP_MARGIN", "UNIT_NORM_TOLERANCE", "Published", "published_decoder", "published_encoder",
]  # fmt: skip

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vit_lens.config import HookedViTConfig
from vit_lens.decoders import PUBLISHED, Decoder, KandinskyDecoder
from vit_lens.identity import KANDINSKY_22_ENCODER, same_encoder

PIPELINE_BAR = 1e-4
"""Largest difference from the stock pipeline on [-1, 1], in float32: roundings of a few dozen steps."""

FLAT_PICTURE = 1e-3
"""Below this standard deviation a picture is one colour, and equality with it says nothing."""

DENOISING_FACTOR = 1.5
"""How far a denoising error may be from the published one, either way.

Chosen before this project ran real weights. It leaves room for other photographs, sizes and noise; the published
values are 3.6 to 7 times apart from one timestep to the next, so that a shifted schedule, latents of another scale
or a part without its weights fall outside.
"""

ROUND_TRIP_BAR = 0.6
"""Least mean cosine of a picture's embedding with the embedding that it was decoded from."""

ROUND_TRIP_MARGIN = 0.1
"""How far that cosine must lie above the one with other pictures' embeddings, which differs between encoders."""

UNIT_NORM_TOLERANCE = 1e-3
"""Norms this close to 1, all of them, were normalised."""

COLLAPSED_COSINE = 0.9999
"""At this mean cosine the embeddings of different pictures are the same."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """What is known of a pair of published weights.

    Attributes:
        parts: Tensors and parameters of each part.
        scheduler: Settings of the scheduler that change a picture.
        denoising: Mean squared error of the predicted noise on photographs, by timestep (a public run in float16).
    """

    parts: Mapping[str, tuple[int, int]]
    scheduler: Mapping[str, Any]
    denoising: Mapping[int, float]


KANDINSKY_22 = Published(
    parts={"encoder": (776, 1_844_907_264), "unet": (724, 1_253_057_288), "movq": (431, 67_832_495)},
    scheduler={
        "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear", "num_train_timesteps": 1000,
        "clip_sample": True, "clip_sample_range": 1.0, "thresholding": False, "variance_type": "fixed_small",
        "prediction_type": "epsilon", "timestep_spacing": "leading", "steps_offset": 1,
    },
    denoising={100: 0.284, 300: 0.075, 500: 0.021, 700: 0.0046, 900: 0.00065},
)  # fmt: skip

_BIGG = {"n_layers": 48, "d_model": 1664, "n_heads": 16, "d_mlp": 8192, "d_embed": 1280}
_UNET_CHANNELS = (384, 768, 1152, 1536)


def published_encoder(encoder_id: str, cfg: HookedViTConfig) -> Published | None:
    """Return what is known of an encoder: Kandinsky 2.2's, by its id or by its sizes."""
    by_size = all(getattr(cfg, name) == value for name, value in _BIGG.items())
    return KANDINSKY_22 if by_size or same_encoder(encoder_id, KANDINSKY_22_ENCODER) else None


def published_decoder(decoder: Decoder) -> Published | None:
    """Return what is known of a decoder: Kandinsky 2.2's, by its id or by its encoder and sizes."""
    if not isinstance(decoder, KandinskyDecoder):
        return None
    by_id = decoder.decoder_id.removeprefix("hf/") in PUBLISHED
    by_size = tuple(decoder.unet.config.block_out_channels) == _UNET_CHANNELS
    made_for = decoder.encoder_id is not None and same_encoder(decoder.encoder_id, KANDINSKY_22_ENCODER)
    return KANDINSKY_22 if by_id or (by_size and made_for) else None
