"""From prompts to conditions: a pipeline's own text encoders, without what draws."""

__all__ = ["PromptEncoder"]

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vit_lens.addresses import as_index
from vit_lens.conditions import Condition
from vit_lens.decoders.known_weights import KnownWeights
from vit_lens.decoders.never_trained import never_trained
from vit_lens.decoders.numerics import stated_numerics
from vit_lens.decoders.text_to_image.drawing import (
    DRAWN,
    check_dtype,
    check_encoders,
    check_parts,
    configs_of,
    format_of,
    stock,
    text_parts,
    widths,
)  # fmt: skip
from vit_lens.errors import DecoderError, TextError
from vit_lens.models import HookedTextEncoder
from vit_lens.text_formats import Readout, TextFormat

# FLUX.1 [schnell] was distilled on fewer positions than [dev], and has no guidance to be told.
_SCHNELL_LENGTH = 256


class PromptEncoder:
    """The text half of a text-to-image pipeline: tokenizers and text encoders, called as the pipeline calls them.

    It keeps nothing of what draws, so that the encoders can be freed before a denoiser is loaded. The encoders are set
    to evaluation mode. Prompts that are too long are cut, as diffusers then warns; captions are not cleaned.

    Args:
        pipeline: A text-to-image pipeline of diffusers in memory; its denoiser may be None.
        length: The number of positions that T5 reads; None for the pipeline's own number. Formats without T5, and "if",
            leave no choice.

    Attributes:
        format: What the format reads of its encoders.
        encoders: The text encoders by name.
        length: The number of positions that T5 reads; None where there is no T5, or no choice.

    Raises:
        DecoderError: It is no such pipeline, lacks an encoder or a tokenizer, or has a T5 in float16.
        ContractError: Its encoders are of another kind or width than its denoiser was trained with.

    >>> vl.decoders.PromptEncoder(decoder)
    Traceback (most recent call last):
    vit_lens.errors.DecoderError: a KandinskyDecoder is no text-to-image pipeline that is known here; nearest: ...
    """

    def __init__(self, pipeline: Any, *, length: int | None = None):
        self.format: TextFormat = format_of(pipeline)
        given, drawn = dict(pipeline.components), DRAWN[self.format.name]
        tokenizers = text_parts(self.format)
        check_parts(given, [*tokenizers, *tokenizers.values()], f"this {self.format.pipeline}")
        denoiser = given.get(drawn.denoiser[0])
        if denoiser is not None:
            configs = configs_of({name: given[name] for name in tokenizers})
            check_encoders(self.format, configs, widths(drawn, denoiser.config))
        self.encoders: dict[str, Any] = {name: given[name].eval() for name in tokenizers}
        for one in self.format.readings:
            check_dtype(one, self.encoders[one.encoder].dtype)
        self.length = _length(self.format, length, None if denoiser is None else denoiser.config)
        parts = self.encoders | {name: given[name] for name in tokenizers.values()}
        zeros = pipeline.config.get("force_zeros_for_empty_prompt")
        options = {} if zeros is None else {"force_zeros_for_empty_prompt": zeros}
        self._weights = KnownWeights()
        self._pipe = stock(self.format.pipeline, parts, **options)

    @classmethod
    @stated_numerics()
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        length: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> "PromptEncoder":
        """Load tokenizers and text encoders of a pipeline alone (safetensors only).

        Args:
            name: A local directory that a pipeline was saved in, or a Hub id.
            length: The number of positions that T5 reads; None for the pipeline's own number.
            dtype: The dtype of the encoders.
            device: The device of the encoders.

        Raises:
            DecoderError: There is no such pipeline, or something is wrong with its files.
            CheckpointError: Weights are missing or misshapen.
            ContractError: Its encoders are of another kind or width than its denoiser was trained with.
        """
        from vit_lens.decoders.text_to_image.files import load_text

        pipeline, denoiser = load_text(name, dtype, device)
        return cls(pipeline, length=_length(format_of(pipeline), length, denoiser))

    @property
    def device(self) -> torch.device:
        """The device of the encoders."""
        return self._pipe.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first encoder."""
        return next(iter(self.encoders.values())).dtype

    @property
    def encoder_id(self) -> str:
        """An id of the encoders by their weights, to the last bit; changes through ``.data`` go unseen."""
        return f"text@{self._weights.fingerprint(self.encoders)}"

    @property
    def untrained(self) -> bool:
        """Whether an encoder shows that its weights are those that it was made with."""
        return never_trained(self.encoders.values())

    @property
    def readouts(self) -> dict[str, Readout]:
        """The final norm of each encoder, and its projection where it has one."""
        return {name: _readout(encoder) for name, encoder in self.encoders.items()}

    @property
    def towers(self) -> dict[str, HookedTextEncoder]:
        """The encoders as hooked towers, which share their weights."""
        return self._towers

    @cached_property
    def _towers(self) -> dict[str, HookedTextEncoder]:
        tokenizers = {name: self._pipe.components[each] for name, each in text_parts(self.format).items()}
        return {
            name: HookedTextEncoder.from_module(encoder, tokenizer=tokenizers[name], copy=False)
            for name, encoder in self.encoders.items()
        }

    def encode(self, prompts: Sequence[str]) -> Condition:
        """Return the condition of each prompt, as the pipeline's own ``encode_prompt`` makes it.

        Args:
            prompts: The prompts, at least one.

        Raises:
            TextError: They are no list of texts.
        """
        return self._encode(prompts, guided=False)[0]

    def negative(self) -> Condition | None:
        """Return one row that guidance leads away from when nothing is said; None where the format has no guidance."""
        return None if self.format.negative is None else self._encode([""], guided=True)[1]

    @stated_numerics()
    def _encode(self, prompts: Sequence[str], *, guided: bool) -> tuple[Condition, Condition | None]:
        if isinstance(prompts, str) or not prompts or not all(isinstance(one, str) for one in prompts):
            raise TextError(f"prompts are {str(prompts)[:80]!r}; expected a list of texts, at least one")
        arguments: dict[str, Any] = {"prompt": list(prompts), "device": self.device, "num_images_per_prompt": 1}
        more = {"flux": ["prompt_2"], "sdxl": ["prompt_2"], "sd3": ["prompt_2", "prompt_3"]}
        arguments |= dict.fromkeys(more.get(self.format.name, []))
        if self.format.negative is not None:
            arguments["do_classifier_free_guidance"] = guided
        if self.length is not None:
            arguments["max_sequence_length"] = self.length
        with torch.no_grad():
            found = self._pipe.encode_prompt(**arguments)
        if self.format.name == "flux":
            return Condition(tokens=found[0], pooled=found[1]), None
        if self.format.masked:
            pairs = [{"tokens": found[0], "mask": found[1]}, {"tokens": found[2], "mask": found[3]}]
        elif "pooled" in self.format.takes:
            pairs = [{"tokens": found[0], "pooled": found[2]}, {"tokens": found[1], "pooled": found[3]}]
        else:
            pairs = [{"tokens": found[0]}, {"tokens": found[1]}]
        return _condition(pairs[0]), _condition(pairs[1]) if guided else None

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name} of {len(_blocks(one))} blocks" for name, one in self.encoders.items())
        return f"PromptEncoder({self.format.pipeline}: {sizes})"


def _length(format: TextFormat, said: int | None, denoiser: Mapping[str, Any] | None) -> int | None:
    """Return the number of positions that T5 reads; None where there is no T5, or no choice."""
    if format.length is None or format.name == "if":
        if said is not None:
            raise DecoderError(f"format {format.name} leaves no choice of length; got length={said!r}")
        return None
    if said is not None and (as_index(said) or 0) < 1:
        raise DecoderError(f"length must be a whole number of positions, at least 1, got {said!r}")
    is_schnell = denoiser is not None and denoiser.get("guidance_embeds") is False
    return said or (_SCHNELL_LENGTH if is_schnell else format.length)


def _condition(parts: dict[str, Tensor]) -> Condition:
    return Condition(**{name: part.bool() if name == "mask" else part for name, part in parts.items()})


def _inner(encoder: Any) -> Any:
    return getattr(encoder, "text_model", encoder)  # newer releases of transformers have CLIPTextModel without it


def _blocks(encoder: Any) -> Any:
    inner = _inner(encoder).encoder
    return inner.block if hasattr(inner, "block") else inner.layers


def _readout(encoder: Any) -> Readout:
    inner = _inner(encoder)
    norm = inner.final_layer_norm if hasattr(inner, "final_layer_norm") else inner.encoder.final_layer_norm
    return Readout(norm, getattr(encoder, "text_projection", None))
