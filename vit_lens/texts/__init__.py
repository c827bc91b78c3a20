"""Texts beside images: captions with the embeddings of a CLIP's own text tower, and labels for an embedding."""

__all__ = [
    "ENCODER_KINDS", "EncoderKind", "KindName", "PromptTokenizer", "TextBank", "ZeroShotLabels", "check_known",
    "prompt_tokenizer", "read_captions",
]  # fmt: skip

from vit_lens.texts.bank import TextBank
from vit_lens.texts.captions import read_captions
from vit_lens.texts.encoder_kinds import ENCODER_KINDS, EncoderKind, KindName
from vit_lens.texts.prompts import PromptTokenizer, prompt_tokenizer
from vit_lens.texts.tokenising import check_known
from vit_lens.texts.zero_shot_labels import ZeroShotLabels
