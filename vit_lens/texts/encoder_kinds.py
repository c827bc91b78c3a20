"""The kinds of text encoders that stand in pipelines: their classes in transformers, and where their parts are."""

__all__ = ["ENCODER_KINDS", "EncoderKind", "KindName"]

from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Literal

import torch
from torch import nn

KindName = Literal["clip", "t5", "bert", "gemma2", "qwen3", "qwen2_5_vl", "mistral3"]


@dataclass(frozen=True, kw_only=True)
class EncoderKind:
    """A kind of text encoder, as transformers has it.

    Attributes:
        classes: The names of its classes; the last is the one with a projection, where there are two.
        tokenizer: The class that its tokenizer is loaded by.
        model_types: What its configuration may call itself; the first is the usual one.
        blocks: The path from the module to its blocks.
        norm: The path to the final norm; None where the last block's output is what the encoder returns.
        bridge: The architecture by which TransformerLens' bridge knows it, and the part of that which stands below its
            language modelling head; None where it is a :class:`vit_lens.HookedTextEncoder`.

    >>> kind = ENCODER_KINDS["gemma2"]
    >>> kind.classes, kind.width({"hidden_size": 2304}), kind.is_bridged
    (('Gemma2Model',), 2304, True)
    """

    classes: tuple[str, ...]
    tokenizer: str
    model_types: tuple[str, ...]
    blocks: str
    norm: str | None
    bridge: tuple[str, str] | None = None

    @property
    def is_bridged(self) -> bool:
        """Whether TransformerLens' own bridge hooks it."""
        return self.bridge is not None

    def width(self, config: Mapping[str, Any]) -> int:
        """Return the width of its residual stream, from its configuration."""
        config = config.get("text_config") or config
        return config["d_model"] if "d_model" in config else config["hidden_size"]

    def with_head(self, encoder: nn.Module) -> nn.Module:
        """Return an encoder below its language modelling head, as the bridge knows it; a head of our own is empty."""
        import transformers

        name, part = self.bridge or ("", "")
        if type(encoder).__name__ == name or not name:
            return encoder
        with torch.device("meta"):
            whole = getattr(transformers, name)(encoder.config)
        setattr(whole, part, encoder)
        return whole

    def blocks_of(self, encoder: nn.Module) -> Any:
        """Return the blocks of an encoder of this kind, in the order in which they run."""
        return attrgetter(self.blocks)(_whole(encoder))

    def norm_of(self, encoder: nn.Module) -> Any:
        """Return the final norm of an encoder of this kind; None where there is none."""
        return None if self.norm is None else attrgetter(self.norm)(_whole(encoder))


def _whole(encoder: nn.Module) -> Any:
    return getattr(encoder, "text_model", encoder)  # newer releases of transformers have CLIPTextModel without it


_DECODER = {"blocks": "model.language_model.layers", "norm": "model.language_model.norm"}
ENCODER_KINDS: dict[KindName, EncoderKind] = {
    "clip": EncoderKind(
        classes=("CLIPTextModel", "CLIPTextModelWithProjection"), tokenizer="CLIPTokenizer",
        model_types=("clip_text_model", "clip"), blocks="encoder.layers", norm="final_layer_norm",
    ),
    "t5": EncoderKind(
        classes=("T5EncoderModel",), tokenizer="T5Tokenizer", model_types=("t5", "umt5", "mt5"), blocks="encoder.block",
        norm="encoder.final_layer_norm",
    ),
    "bert": EncoderKind(
        classes=("BertModel",), tokenizer="BertTokenizer", model_types=("bert",), blocks="encoder.layer", norm=None,
        bridge=("BertForMaskedLM", "bert"),
    ),
    "gemma2": EncoderKind(
        classes=("Gemma2Model",), tokenizer="AutoTokenizer", model_types=("gemma2",), blocks="layers", norm="norm",
        bridge=("Gemma2ForCausalLM", "model"),
    ),
    "qwen3": EncoderKind(
        classes=("Qwen3ForCausalLM",), tokenizer="AutoTokenizer", model_types=("qwen3",), blocks="model.layers",
        norm="model.norm", bridge=("Qwen3ForCausalLM", "model"),
    ),
    "qwen2_5_vl": EncoderKind(
        classes=("Qwen2_5_VLForConditionalGeneration",), tokenizer="AutoTokenizer", model_types=("qwen2_5_vl",),
        bridge=("Qwen2_5_VLForConditionalGeneration", "model"), **_DECODER,
    ),
    "mistral3": EncoderKind(
        classes=("Mistral3ForConditionalGeneration",), tokenizer="AutoProcessor", model_types=("mistral3",),
        bridge=("Mistral3ForConditionalGeneration", "model"), **_DECODER,
    ),
}  # fmt: skip
