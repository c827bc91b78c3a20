"""From conditions to pictures: a decoder's contract, its match with an encoder; Kandinsky 2.2, SDXL, patches, text."""

__all__ = [
    "PUBLISHED", "SCHEDULER_CLASSES", "Cost", "DecodeSettings", "Decoder", "EncoderRef", "IPAdapterDecoder",
    "KandinskyDecoder", "PatchSettings", "PromptEncoder", "RAEDecoder", "TextDecoder", "TextSettings",
    "UpscaledSettings", "adapter_weights", "check_decoder", "check_encoder", "check_pictures", "denoising_error",
    "encoder_id_of", "find_decoder", "free_memory", "load_decoder", "load_pipeline", "put_adapter", "reads_layout",
    "seeded", "settings_dict", "stated_numerics",
]  # fmt: skip

from vit_lens.decoders.by_name import load_decoder, reads_layout
from vit_lens.decoders.contract import Cost, Decoder, check_decoder, check_pictures, seeded
from vit_lens.decoders.diagnostics import denoising_error
from vit_lens.decoders.ip_adapter import IPAdapterDecoder
from vit_lens.decoders.ip_adapter_parts import adapter_weights, put_adapter
from vit_lens.decoders.kandinsky import KandinskyDecoder
from vit_lens.decoders.kandinsky_files import find_decoder
from vit_lens.decoders.matching import PUBLISHED, EncoderRef, check_encoder, encoder_id_of
from vit_lens.decoders.memory import free_memory
from vit_lens.decoders.numerics import stated_numerics
from vit_lens.decoders.rae import PatchSettings, RAEDecoder
from vit_lens.decoders.settings import SCHEDULER_CLASSES, DecodeSettings, settings_dict
from vit_lens.decoders.text_to_image.files import load_pipeline
from vit_lens.decoders.text_to_image.prompts import PromptEncoder
from vit_lens.decoders.text_to_image.text_decoder import TextDecoder
from vit_lens.decoders.text_to_image.text_settings import TextSettings, UpscaledSettings
