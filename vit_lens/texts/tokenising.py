"""Tokens that hold the whole caption: unknown words and cut ends are errors, not silent losses."""

__all__ = ["HFTokens", "check_fits", "check_known", "check_open_clip_tokens", "hf_tokens"]

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Int
from torch import Tensor

from vit_lens.errors import TextError, nearest

HFTokens = Mapping[str, Tensor]

_MANY_WORDS = 200
_SHARE_OF_VOCABULARY = 0.9  # towers round their tables up


def hf_tokens(tokenizer: Any, texts: list[str], max_tokens: int, *, vocabulary: int, to_longest: bool) -> HFTokens:
    """Tokenise with a Hugging Face tokenizer and check that nothing is lost.

    Args:
        tokenizer: Of the text tower.
        texts: What to say.
        max_tokens: Positions of the text tower.
        vocabulary: Tokens that the text tower embeds.
        to_longest: Pad to the longest text, as for CLIP, not to ``max_tokens``, as SigLIP was trained.

    Raises:
        TextError: The tokenizer is not the tower's, or a text has an unknown word or more tokens than the tower has
            positions.
    """
    check_fits(tokenizer, vocabulary)
    rows = tokenizer(texts, verbose=False)["input_ids"]
    check_known(tokenizer, texts, rows)
    for text, row in zip(texts, rows, strict=True):
        if len(row) > max_tokens:
            raise _cut(text, max_tokens, f"{len(row)} tokens")
    if to_longest:
        return tokenizer(texts, padding=True, return_tensors="pt")
    return tokenizer(texts, padding="max_length", max_length=max_tokens, return_tensors="pt")


def check_fits(tokenizer: Any, vocabulary: int) -> None:
    """Raise unless a tokenizer of Hugging Face's may be that of a text tower.

    Args:
        tokenizer: The tokenizer.
        vocabulary: The number of tokens that the tower embeds.

    Raises:
        TextError: It is none, or has many fewer tokens or more.
    """
    if not hasattr(tokenizer, "unk_token_id"):
        raise TextError(f"{type(tokenizer).__name__} is not a Hugging Face tokenizer; use AutoTokenizer's")
    # From a folder without a tokenizer, transformers makes an empty one without a word.
    if not _SHARE_OF_VOCABULARY * vocabulary <= len(tokenizer) <= vocabulary:
        raise TextError(
            f"the tokenizer has {len(tokenizer)} tokens, the text tower {vocabulary}: it is not this tower's, or its "
            "files (tokenizer.json, or vocab.json and merges.txt) are missing"
        )


def check_open_clip_tokens(
    tokenizer: Any, texts: list[str], tokens: Int[Tensor, "text token"], vocabulary: int | None
) -> None:
    """Raise if open_clip's tokenizer cut a text, did not know a word, or has tokens that the tower lacks.

    Raises:
        TextError: It did.
    """
    if vocabulary is not None and int(tokens.max()) >= vocabulary:
        raise TextError(f"the tokenizer made token {int(tokens.max())}, the text tower has {vocabulary}: not its own")
    n_tokens = tokens.shape[1]
    if hasattr(tokenizer, "context_length"):  # open_clip's own; another callable says nothing about its cuts
        longer = tokenizer(texts, context_length=4 * n_tokens)[:, :n_tokens]
        cut = (longer != tokens).any(1)
        if cut.any():
            raise _cut(texts[int(cut.nonzero()[0])], n_tokens, "more")
    inner = getattr(tokenizer, "tokenizer", None)  # HFTokenizer and SigLipTokenizer wrap one of Hugging Face
    if hasattr(inner, "unk_token_id"):
        check_known(inner, texts, tokens.tolist())


def check_known(tokenizer: Any, texts: Sequence[str], rows: Sequence[Sequence[int]], what: str = "caption") -> None:
    """Raise if a text has a word that the tokenizer does not know; ``what`` is what a text is called.

    Raises:
        TextError: One has; the message names the words, and those that are known where these are few.

    >>> check_known(text_model.tokenizer, ["a reed star"], text_model.tokenizer(["a reed star"])["input_ids"])
    Traceback (most recent call last):
    vit_lens.errors.TextError: the tokenizer does not know 'reed' (nearest: ...
    """
    unknown = tokenizer.unk_token_id
    # CLIP's byte-level tokenizer knows every text and uses its end token where others have an unknown one.
    if unknown is None or unknown in (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id):
        return
    for text, row in zip(texts, rows, strict=True):
        if unknown in row:
            raise TextError(f"{_unknown_words(tokenizer, text)} in the {what} {text!r}. {_known_words(tokenizer)}")


def _unknown_words(tokenizer: Any, text: str) -> str:
    lost = [word for word in text.split() if tokenizer.unk_token_id in tokenizer(word)["input_ids"]]
    vocabulary = tokenizer.get_vocab()
    if not lost:
        return "the tokenizer does not know a part"
    near = f" (nearest: {nearest(lost[0], vocabulary)})" if len(vocabulary) <= _MANY_WORDS else ""
    return f"the tokenizer does not know {', '.join(map(repr, lost))}{near}"


def _known_words(tokenizer: Any) -> str:
    special = set(tokenizer.all_special_tokens)
    words = sorted(word for word in tokenizer.get_vocab() if word not in special)
    return f"It knows: {' '.join(words)}" if len(words) <= _MANY_WORDS else "Say it in other words"


def _cut(text: str, max_tokens: int, has: str) -> TextError:
    return TextError(f"the caption {text!r} has {has}; the text tower reads {max_tokens} tokens. Shorten it")
