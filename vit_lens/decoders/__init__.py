"""From conditions to pictures: the contract of a decoder, its match with an encoder, and Kandinsky 2.2."""

__all__ = [
    "Cost",
    "DecodeSettings",
    "Decoder",
    "KandinskyDecoder",
    "PartInventory",
    "check_decoder",
    "denoising_error",
    "load_decoder",
    "reads_layout",
    "seeded",
    "settings_dict",
]

from vit_lens.decoders.contract import Cost, Decoder, check_decoder, seeded
from vit_lens.decoders.diagnostics import PartInventory, denoising_error
from vit_lens.decoders.kandinsky import KandinskyDecoder
from vit_lens.decoders.registry import load_decoder, reads_layout
from vit_lens.decoders.settings import DecodeSettings, settings_dict
