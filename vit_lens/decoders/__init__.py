"""From an embedding to a picture: the decoder protocol, its contract with an encoder, and Kandinsky 2.2."""

__all__ = [
    "Condition",
    "DecodeSettings",
    "Decoder",
    "KandinskyDecoder",
    "PartInventory",
    "denoising_error",
]

from vit_lens.decoders.contract import Condition, Decoder
from vit_lens.decoders.diagnostics import PartInventory, denoising_error
from vit_lens.decoders.kandinsky import KandinskyDecoder
from vit_lens.decoders.settings import DecodeSettings
