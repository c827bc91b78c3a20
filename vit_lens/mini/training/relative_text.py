"""Text encoders of the small world in T5's format, causal or not, and words that are hidden from one."""

__all__ = ["build_relative_encoder", "hide_words"]

from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

# Softmax in float32 makes exactly nothing of it, and float16 holds it.
_NEVER = -1e4


def build_relative_encoder(
    tokenizer: PreTrainedTokenizerFast, *, width: int, n_layers: int, n_heads: int, causal: bool, seed: int
) -> T5EncoderModel:
    """Build an untrained text encoder in T5's format whose initial weights depend on ``seed`` alone.

    Every distance that a text can have has a bias of its own, as every place has an embedding in CLIP's format. In one
    that is ``causal`` the biases of later positions leave them no attention at all; their gradient is exactly 0, so
    that training leaves them alone.
    """
    reach = tokenizer.model_max_length
    sizes: dict[str, Any] = dict(
        vocab_size=len(tokenizer), d_model=width, d_kv=width // n_heads, d_ff=4 * width, num_layers=n_layers,
        num_heads=n_heads, relative_attention_num_buckets=4 * reach, relative_attention_max_distance=2 * reach,
        dropout_rate=0.0, feed_forward_proj="quick_gelu", pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = T5EncoderModel(T5Config(**sizes))
        nn.init.normal_(model.shared.weight, std=0.5)
    if causal:
        table: Any = model.get_parameter("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight")
        with torch.no_grad():
            table[2 * reach :] = _NEVER  # the second half of the buckets is of later positions
    return model.train()


def hide_words(
    ids: Int[Tensor, "text token"], tokenizer: PreTrainedTokenizerFast, generator: np.random.Generator, share: float
) -> tuple[Int[Tensor, "text token"], Int[Tensor, "text token"]]:
    """Return texts with words replaced by ``<unk>``, and those words; -1 where there is nothing to restore.

    A word is hidden with probability ``share``, and in every text that has words at least one is.
    """
    vocabulary = tokenizer.get_vocab()
    start, end, unknown = (vocabulary[name] for name in ("<start>", "<end>", "<unk>"))
    is_word = ids.ne(start) & ids.ne(end)
    drawn = torch.from_numpy(generator.random(ids.shape)).masked_fill(~is_word, 1.0)
    hidden = is_word & ((drawn < share) | (drawn == drawn.amin(1, keepdim=True)))
    return ids.masked_fill(hidden, unknown), ids.masked_fill(~hidden, -1)
