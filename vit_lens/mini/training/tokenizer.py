"""The word-level tokenizer of the world's captions."""

__all__ = ["MAX_TOKENS", "build_tokenizer"]

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from vit_lens.mini import world

MAX_TOKENS = 32
_SPECIAL = ("<pad>", "<start>", "<unk>", "<end>")
_GLUE = ("a", "an", "object", "at", "the", "on", "before", "background", "with", "without", "symbol", "in", "corner")


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer; its vocabulary is the world's words, in a fixed order."""
    values = (word for names in world.ATTRIBUTES.values() for value in names for word in value.split())
    words = list(dict.fromkeys((*_SPECIAL, *_GLUE, *values)))
    vocabulary = {word: index for index, word in enumerate(words)}
    model = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    model.normalizer = Lowercase()
    model.pre_tokenizer = WhitespaceSplit()
    model.post_processor = TemplateProcessing(
        single="<start> $A <end>", special_tokens=[(name, vocabulary[name]) for name in ("<start>", "<end>")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        pad_token="<pad>",
        bos_token="<start>",
        unk_token="<unk>",
        eos_token="<end>",
        model_max_length=MAX_TOKENS,
    )
