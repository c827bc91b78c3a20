"""Prompts as a text tower reads them: ids, what is padded, and at which tokens a word stands."""

__all__ = ["PromptTokenizer", "prompt_tokenizer"]

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from vit_lens.errors import InterventionError, TextError, nearest
from vit_lens.texts.tokenising import check_fits, check_known

Span = tuple[int, int]


class PromptTokenizer(ABC):
    """A tokenizer, of whichever library, seen as what a hooked text tower needs of it.

    Args:
        tokenizer: The library's object.
        n_vocab: The number of ids that the tower embeds.
        n_ctx: The number of tokens that the tower reads.

    Raises:
        TextError: It is no tokenizer, or not this tower's.

    >>> tokenizer = prompt_tokenizer(text_model.tokenizer, text_model.cfg.n_vocab, text_model.cfg.n_ctx)
    >>> tokenizer.ids(["a red star", ""], pad_to=7)
    [[1, 4, 25, 20, 3, 0, 0], [1, 3, 0, 0, 0, 0, 0]]
    >>> tokenizer.places([1, 4, 25, 20, 3], "Red star")
    [2, 3]
    """

    def __init__(self, tokenizer: Any, n_vocab: int, n_ctx: int):
        self.tokenizer, self.n_vocab, self.n_ctx = tokenizer, n_vocab, n_ctx

    @property
    @abstractmethod
    def pad_id(self) -> int | None:
        """The id that fills a prompt up; None where the tokenizer has none."""

    @abstractmethod
    def rows(self, prompts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each prompt, with those that begin and end it, uncut and without padding.

        Raises:
            TextError: A prompt has a word that the tokenizer does not know.
        """

    @abstractmethod
    def pieces(self, row: Sequence[int]) -> list[str]:
        """Return each id as text."""

    @abstractmethod
    def layout(self, prompt: str) -> tuple[str, list[Span]]:
        """Return a prompt as the tokenizer sees it, and the characters of each of its tokens, (0, 0) for none."""

    @abstractmethod
    def text(self, row: Sequence[int]) -> str:
        """Return the prompt that ids say, without those that begin, end and fill it."""

    def ids(self, prompts: Sequence[str], *, pad_to: int | None = None, truncate: bool = False) -> list[list[int]]:
        """Return the ids of prompts, filled up to one length.

        Args:
            prompts: Texts; an empty one is allowed.
            pad_to: The number of tokens that each is filled up to; None takes the longest's.
            truncate: Whether a prompt that is too long loses its last words; its last token stays the end.

        Raises:
            TextError: Something is no text, has unknown words or too many tokens, or the tokenizer has no token to
                fill up with.
        """
        if not prompts:
            raise TextError("no prompts; give at least one text, which may be empty")
        if wrong := [each for each in prompts if not isinstance(each, str)]:
            raise TextError(f"{wrong[0]!r} is no prompt; expected texts, or a tensor of ids [batch pos]")
        most = self.n_ctx if pad_to is None else pad_to
        if not 1 <= most <= self.n_ctx:
            raise TextError(f"pad_to={pad_to}; the text tower reads 1 to {self.n_ctx} tokens")
        rows = self.rows(prompts)
        for prompt, row in zip(prompts, rows, strict=True):
            if len(row) > most and not truncate:
                raise TextError(
                    f"the prompt {_short(prompt)} has {len(row)} tokens, and there is room for {most}; shorten it, or "
                    "cut its end off with model.to_tokens(prompts, truncate=True)"
                )
        rows = [row if len(row) <= most else [*row[: most - 1], row[-1]] for row in rows]
        width = max(map(len, rows)) if pad_to is None else pad_to
        short = [width - len(row) for row in rows]
        if any(short) and self.pad_id is None:
            raise TextError("the tokenizer has no pad_token, so prompts of several lengths do not go together: set one")
        return [[*row, *[self.pad_id] * n] for row, n in zip(rows, short, strict=True)]  # pyright: ignore[reportReturnType]

    def words(self, prompt: str) -> list[str]:
        """Return the words of a prompt in their order, each once, as the tokenizer sees them.

        Args:
            prompt: The prompt.

        >>> tokenizer = prompt_tokenizer(text_model.tokenizer, text_model.cfg.n_vocab, text_model.cfg.n_ctx)
        >>> tokenizer.words("a red red star")
        ['a', 'red', 'star']
        """
        return list(dict.fromkeys(re.findall(r"\w+", self.layout(prompt)[0])))

    def places(self, row: Sequence[int], word: str) -> list[int]:
        """Return the tokens of a prompt at which a word, or several in a row, stands; all places where it does.

        Args:
            row: The prompt's ids.
            word: The word, in capitals or small letters; part of a word is none.

        Raises:
            InterventionError: The prompt has no such word.
        """
        prompt = self.text(row)
        known, spans = self.layout(prompt)
        own = self.rows([prompt])[0]
        if list(row[: len(own)]) != own:
            raise InterventionError(
                f"these ids are not how the tokenizer writes {_short(prompt)}, so where {word!r} stands is not known; "
                "give the prompt as text, or positions"
            )
        found = [m.span() for m in re.finditer(rf"(?<!\w){re.escape(word.strip())}(?!\w)", known, re.IGNORECASE)]
        places = [i for i, span in enumerate(spans) if any(span[0] < stop and start < span[1] for start, stop in found)]
        if not word.strip() or not places:
            words = self.words(prompt)
            has = f"nearest: {nearest(word, words)}" if words else "it is empty"
            raise InterventionError(f'the prompt {_short(prompt)} has no word "{word}"; {has}')
        return places


class _OfHuggingFace(PromptTokenizer):
    """A tokenizer of transformers."""

    def __init__(self, tokenizer: Any, n_vocab: int, n_ctx: int):
        check_fits(tokenizer, n_vocab)
        super().__init__(tokenizer, n_vocab, n_ctx)

    @property
    def pad_id(self) -> int | None:
        return self.tokenizer.pad_token_id

    def rows(self, prompts: Sequence[str]) -> list[list[int]]:
        rows = self.tokenizer(list(prompts), verbose=False)["input_ids"]
        check_known(self.tokenizer, prompts, rows, "prompt")
        return rows

    def pieces(self, row: Sequence[int]) -> list[str]:
        return self.tokenizer.convert_ids_to_tokens(list(row))

    def layout(self, prompt: str) -> tuple[str, list[Span]]:
        if not self.tokenizer.is_fast:
            raise InterventionError(
                f"a {type(self.tokenizer).__name__} does not say where its tokens stand in a text; give positions, or "
                "a fast tokenizer: AutoTokenizer.from_pretrained(..., use_fast=True)"
            )
        return prompt, self.tokenizer(prompt, return_offsets_mapping=True, verbose=False)["offset_mapping"]

    def text(self, row: Sequence[int]) -> str:
        return self.tokenizer.decode(list(row), skip_special_tokens=True)


class _OfOpenClip(PromptTokenizer):
    """open_clip's own tokenizer, OpenAI's byte pairs."""

    def __init__(self, tokenizer: Any, n_vocab: int, n_ctx: int):
        if tokenizer.vocab_size > n_vocab:
            raise TextError(f"the tokenizer has {tokenizer.vocab_size} tokens, the text tower {n_vocab}: not its own")
        super().__init__(tokenizer, n_vocab, n_ctx)

    @property
    def pad_id(self) -> int | None:
        return 0

    def rows(self, prompts: Sequence[str]) -> list[list[int]]:
        start, end = self.tokenizer.sot_token_id, self.tokenizer.eot_token_id
        return [[start, *self.tokenizer.encode(prompt), end] for prompt in prompts]

    def pieces(self, row: Sequence[int]) -> list[str]:
        return [self.tokenizer.decoder[each] for each in row]

    def layout(self, prompt: str) -> tuple[str, list[Span]]:
        inner = self.tokenizer.encode(prompt)
        ends = [len(self._decoded(inner[:n])) for n in range(len(inner) + 1)]
        return self._decoded(inner), [(0, 0), *pairwise(ends), (0, 0)]

    def text(self, row: Sequence[int]) -> str:
        end = self.tokenizer.eot_token_id
        inner = list(row)[1 : list(row).index(end)] if end in row else list(row)[1:]
        return self._decoded(inner)

    def _decoded(self, row: Sequence[int]) -> str:
        said = "".join(self.tokenizer.decoder[each] for each in row).replace("</w>", " ")
        decoder = self.tokenizer.byte_decoder | {" ": 32}
        return bytes(decoder[letter] for letter in said).decode("utf-8", errors="ignore")


def prompt_tokenizer(tokenizer: Any, n_vocab: int, n_ctx: int) -> PromptTokenizer:
    """Return a tokenizer of transformers or open_clip as a text tower of these sizes uses it.

    Raises:
        TextError: It is of neither, or not this tower's.

    >>> tokenizer = prompt_tokenizer(text_model.tokenizer, 60, 32)
    >>> tokenizer.ids(["a red star"]), tokenizer.places([1, 4, 25, 20, 3], "star")
    ([[1, 4, 25, 20, 3]], [3])
    """
    inner = getattr(tokenizer, "tokenizer", tokenizer)  # open_clip wraps one of transformers
    if hasattr(inner, "unk_token_id"):
        return _OfHuggingFace(inner, n_vocab, n_ctx)
    if all(hasattr(tokenizer, name) for name in ("sot_token_id", "eot_token_id", "byte_decoder")):
        return _OfOpenClip(tokenizer, n_vocab, n_ctx)
    raise TextError(
        f"a {type(tokenizer).__name__} is no tokenizer of transformers or open_clip; AutoTokenizer has them"
    )


def _short(prompt: str) -> str:
    return repr(prompt if len(prompt) <= 60 else f"{prompt[:57]}...")
