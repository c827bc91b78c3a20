"""``EndpointVLM``: a model behind an OpenAI-compatible endpoint explains and judges: the extra ``vit-lens[vlm]``."""

__all__ = ["EndpointVLM"]

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from vit_lens.errors import ExplanationError
from vit_lens.explaining.asking import explaining_words, highlighted, judging_words, locating_words, shortened
from vit_lens.explaining.replies import Replies
from vit_lens.files import parse_json
from vit_lens.images import picture_hash

_CELLS, _MOST_BYTES, _MOST_TOKENS = 4, 64_000, 500
_SURE = {"type": "number", "minimum": 0, "maximum": 1}
_FIELDS: dict[str, dict[str, Any]] = {
    "explanation": {
        "pattern_descriptions": {"type": "array", "items": {"type": "string"}}, "common_pattern": {"type": "string"},
    },
    "score": {"score": _SURE},
    "places": {"cells": {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}}},
}  # fmt: skip
_ADVICE = "take a model that answers by a JSON schema, or try again: what came before is kept"
T = TypeVar("T")


class EndpointVLM:
    """Explains and judges by a model behind an endpoint that speaks OpenAI's protocol: hosted, vLLM, llama.cpp, Ollama.

    Answers are asked for by a JSON schema at temperature 0; a reply is data: other keys, types and ranges are refused.
    Pictures leave this machine for where the endpoint is.

    Args:
        model: The model's name there.
        base_url: Where the endpoint is; None takes what the client takes, the environment's ``OPENAI_BASE_URL`` or the
            hosted one. The key is ``OPENAI_API_KEY`` of the environment, of a local server any word.
        timeout: How many seconds an answer may take.
        retries: How often the client asks again, longer apart each time.
        replies: Where replies are kept; None keeps them in memory.

    Raises:
        ExplanationError: The package openai is not installed, or has no key; later, that the endpoint cannot be
            reached, is too slow, refuses, or answers something else.

    >>> EndpointVLM("my-model", base_url="not an address")
    Traceback (most recent call last):
    vit_lens.errors.ExplanationError: base_url='not an address'; expected an address such as http://localhost:8000/v1
    """

    def __init__(
        self, model: str, base_url: str | None = None, *, timeout: float = 120.0, retries: int = 2,
        replies: Replies | None = None,
    ):  # fmt: skip
        if base_url is not None and not base_url.startswith(("http://", "https://")):
            raise ExplanationError(f"base_url={base_url!r:.100}; expected an address such as http://localhost:8000/v1")
        try:
            import openai
        except ImportError as error:
            raise ExplanationError("an endpoint needs the package openai: pip install 'vit-lens[vlm]'") from error
        try:
            self._client = openai.OpenAI(base_url=base_url, timeout=timeout, max_retries=retries)
        except openai.OpenAIError as error:
            raise ExplanationError(
                "there is no key for the endpoint: set OPENAI_API_KEY in the environment (any word, where the server "
                f"asks for none); the client says: {_line(error)}"
            ) from error
        self._openai, self._timeout = openai, timeout
        self._model, self.name = model, f"endpoint:{model}"
        self._replies = Replies() if replies is None else replies

    def explain(self, images: Sequence[Image.Image], maps: Sequence[Tensor]) -> str:
        shown = [highlighted(one, map) for one, map in zip(images, maps, strict=True)]
        words = explaining_words(len(images))
        return self._ask("explanation", words, shown, lambda said: shortened(said["common_pattern"], self.name))

    def judge(self, image: Image.Image, text: str, map: Tensor | None = None) -> float:
        shown = image if map is None else highlighted(image, map)
        return self._ask("score", judging_words(text, map is not None), [shown], lambda said: said["score"])

    def localise(self, image: Image.Image, text: str) -> Float[Tensor, "grid_row grid_column"]:
        cells = self._ask("places", locating_words(text, _CELLS), [image], lambda said: said["cells"])
        found = torch.zeros(_CELLS, _CELLS)
        for row, column in cells:
            found[row, column] = 1
        return found

    def _ask(self, kind: str, words: str, pictures: Sequence[Image.Image], read: Callable[[dict[str, Any]], T]) -> T:
        asked = [str(self._client.base_url), self._model, kind, words, *map(picture_hash, pictures)]
        return self._replies.ask(
            asked, lambda: self._reply(kind, words, pictures), lambda reply: read(self._parsed(kind, reply))
        )

    def _reply(self, kind: str, words: str, pictures: Sequence[Image.Image]) -> str:
        """Return what the endpoint answers, word for word."""
        fields = _FIELDS[kind]
        schema = {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}
        content: list[Any] = [{"type": "text", "text": words}]
        content += [{"type": "image_url", "image_url": {"url": _address(picture)}} for picture in pictures]
        where = f"the endpoint {self._client.base_url}"
        try:
            found: Any = self._client.chat.completions.create(
                model=self._model, messages=[{"role": "user", "content": content}], temperature=0,
                max_tokens=_MOST_TOKENS,
                response_format={
                    "type": "json_schema", "json_schema": {"name": kind, "schema": schema, "strict": True},
                },
            )  # fmt: skip
        except self._openai.APITimeoutError as error:
            raise ExplanationError(
                f"{where} gave no answer within {self._timeout:g} s; is the model loaded there? Give more time, or run "
                "the same command again: what came before is kept"
            ) from error
        except self._openai.APIConnectionError as error:
            raise ExplanationError(
                f"{where} cannot be reached ({_line(error.__cause__ or error)}); start the server, or name another by "
                "OPENAI_BASE_URL"
            ) from error
        except self._openai.APIStatusError as error:
            raise ExplanationError(
                f"{where} refuses with status {error.status_code} ({_line(error)}); is {self._model!r} a model that it "
                "has, that takes pictures, and the key right?"
            ) from error
        except (self._openai.OpenAIError, ValueError) as error:
            raise ExplanationError(f"{where} answers what is no reply ({_line(error)}); {_ADVICE}") from error
        try:
            reply = found.choices[0].message.content
        except (AttributeError, IndexError, TypeError) as error:
            raise ExplanationError(f"{where} answers {str(found)!r:.120}, no chat completion; {_ADVICE}") from error
        if not isinstance(reply, str):
            raise ExplanationError(f"{where} answers with no text but {reply!r:.80}; {_ADVICE}")
        return reply

    def _parsed(self, kind: str, reply: str) -> dict[str, Any]:
        """Return what a reply says, if it is of the schema that was asked for and nothing else."""
        where = f"{self.name}'s reply {reply!r:.80}"
        said = parse_json(reply, where, ExplanationError, _ADVICE, most=_MOST_BYTES)
        if set(said) != set(_FIELDS[kind]):
            raise ExplanationError(f"{where} holds {sorted(said)}; expected {list(_FIELDS[kind])}; {_ADVICE}")
        if wrong := [name for name, value in said.items() if not _FITS[name](value)]:
            raise ExplanationError(f"{where}: {wrong[0]} is {said[wrong[0]]!r:.80}; {_ADVICE}")
        return said


def _is_cell(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(x) is int and 0 <= x < _CELLS for x in value)


_FITS: Mapping[str, Callable[[Any], bool]] = {
    "pattern_descriptions": lambda value: isinstance(value, list) and all(isinstance(one, str) for one in value),
    "common_pattern": lambda value: isinstance(value, str),
    "score": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1,
    "cells": lambda value: isinstance(value, list) and all(map(_is_cell, value)),
}


def _address(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _line(error: BaseException) -> str:
    return f"{(str(error).strip().splitlines() or [type(error).__name__])[0]:.200}"
