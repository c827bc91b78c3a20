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
from vit_lens.decoders.text_to_image.encoding import check_words, encode, room
from vit_lens.errors import DecoderError, TextError
from vit_lens.models import BridgedTextEncoder, HookedTextEncoder
from vit_lens.text_formats import Reading, Readout, TextFormat
from vit_lens.texts import ENCODER_KINDS

# FLUX.1 [schnell] was distilled on fewer positions than [dev], and has no guidance to be told.
_SCHNELL_LENGTH = 256


class PromptEncoder:
    """The text half of a text-to-image pipeline: tokenizers and text encoders, called as the pipeline calls them.

    It keeps nothing of what draws, so that the encoders can be freed before a denoiser is loaded. The encoders are set
    to evaluation mode. Prompts that are too long are cut, as diffusers then warns; captions are not cleaned.

    Args:
        pipeline: A text-to-image pipeline of diffusers in memory; its denoiser may be None.
        length: The number of positions that are read of T5 or of a decoder-only encoder; None for the pipeline's own
            number. Formats of CLIP alone, "if", "hunyuandit" and "qwenimage" leave no choice.

    Attributes:
        format: What the format reads of its encoders.
        encoders: The text encoders by name.
        length: The number of positions that are read; None where there is no choice.

    Raises:
        DecoderError: It is no such pipeline, lacks an encoder or a tokenizer, or has a T5 or Gemma in float16.
        ContractError: Its encoders are of another kind or width than its denoiser was trained with.

    >>> vl.decoders.PromptEncoder(decoder)
    Traceback (most recent call last):
    vit_lens.errors.DecoderError: a KandinskyDecoder is no text-to-image pipeline that is known here; nearest: ...
    """

    def __init__(self, pipeline: Any, *, length: int | None = None):
        format = format_of(pipeline)
        given, drawn = dict(pipeline.components), DRAWN[format.name]
        tokenizers = text_parts(format)
        check_parts(given, [*tokenizers, *tokenizers.values()], f"this {format.pipeline}")
        configs = configs_of({name: given[name] for name in tokenizers})
        self.format: TextFormat = format.read_by({name: one.get("model_type") for name, one in configs.items()})
        denoiser = given.get(drawn.denoiser[0])
        if denoiser is not None:
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
            length: The number of positions that are read; None for the number that its card says (``vit_lens.json``),
                or the pipeline's own.
            dtype: The dtype of the encoders.
            device: The device of the encoders.

        Raises:
            DecoderError: There is no such pipeline, or something is wrong with its files.
            CheckpointError: Weights are missing or misshapen.
            ContractError: Its encoders are of another kind or width than its denoiser was trained with.
        """
        from vit_lens.decoders.text_to_image.files import load_text

        pipeline, denoiser, said = load_text(name, dtype, device)
        if length is None:
            length = said.get("length")
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

    def forget_fingerprint(self) -> None:
        """Hash the weights anew when they are next asked for; see :func:`vit_lens.identity.forget_fingerprints`."""
        self._weights.forget()

    @property
    def untrained(self) -> bool:
        """Whether an encoder shows that its weights are those that it was made with."""
        return never_trained(self.encoders.values())

    @property
    def readouts(self) -> dict[str, Readout]:
        """The final norm of each encoder, and its projection where it has one."""
        return {one.encoder: _readout(one, self.encoders[one.encoder]) for one in self.format.readings}

    @property
    def towers(self) -> dict[str, HookedTextEncoder | BridgedTextEncoder]:
        """The encoders as hooked towers, which share their weights: our own of CLIP and T5, others through the bridge.

        Raises:
            UnsupportedTowerError: TransformerLens' bridge does not take an encoder; everything else here goes without.
        """
        return self._towers

    def __getstate__(self) -> dict[str, Any]:
        """Leave the hooked towers out of a copy, which makes its own: parameters that are copied are shared no more."""
        return {name: value for name, value in self.__dict__.items() if name != "_towers"}

    @cached_property
    def _towers(self) -> dict[str, HookedTextEncoder | BridgedTextEncoder]:
        tokenizers = {name: self._pipe.components[each] for name, each in text_parts(self.format).items()}
        made = {}
        for one in self.format.readings:
            hooked = BridgedTextEncoder if ENCODER_KINDS[one.kind].is_bridged else HookedTextEncoder
            name = one.encoder
            made[name] = hooked.from_module(self.encoders[name], tokenizer=tokenizers[name], copy=False)
        return made

    def room(self, encoder: str, prompt: str) -> tuple[int, int]:
        """Return how many tokens an encoder gets of a prompt, those of a template included, and how many it reads.

        Args:
            encoder: The name of the encoder.
            prompt: The prompt.
        """
        reading = next(one for one in self.format.readings if one.encoder == encoder)
        return room(self.format, self._pipe, reading, prompt, self.length)

    def check_words(self, prompts: Sequence[str]) -> None:
        """Refuse prompts with words that a tokenizer does not know.

        Args:
            prompts: The prompts.

        Raises:
            TextError: There is such a word; the message names it.

        >>> vl.decoders.PromptEncoder.from_pretrained("mini-sd").check_words(["a red star", "a purple star"])
        Traceback (most recent call last):
        vit_lens.errors.TextError: the tokenizer does not know 'purple' ...
        """
        check_words(self.format, self._pipe, prompts)

    def encode(self, prompts: Sequence[str]) -> Condition:
        """Return the condition of each prompt, as the pipeline's own ``encode_prompt`` makes it.

        Args:
            prompts: The prompts, at least one.

        Raises:
            TextError: They are no list of texts, or have a word that a tokenizer does not know.
        """
        return self._encode(prompts, guided=False)[0]

    def negative(self) -> Condition | None:
        """Return one row that guidance leads away from when nothing is said; None where the format has no guidance."""
        return None if self.format.negative is None else self._encode([""], guided=True)[1]

    @stated_numerics()
    def _encode(self, prompts: Sequence[str], *, guided: bool) -> tuple[Condition, Condition | None]:
        if isinstance(prompts, str) or not prompts or not all(isinstance(one, str) for one in prompts):
            raise TextError(f"prompts are {str(prompts)[:80]!r}; expected a list of texts, at least one")
        check_words(self.format, self._pipe, prompts)
        with torch.no_grad():
            return encode(self.format, self._pipe, prompts, guided=guided, length=self.length)

    def __repr__(self) -> str:
        sizes = ", ".join(
            f"{one.encoder} of {len(ENCODER_KINDS[one.kind].blocks_of(self.encoders[one.encoder]))} blocks"
            for one in self.format.readings
        )
        return f"PromptEncoder({self.format.pipeline}: {sizes})"


def _length(format: TextFormat, said: int | None, denoiser: Mapping[str, Any] | None) -> int | None:
    """Return the number of positions that are read; None where there is no choice."""
    if format.length is None or format.name == "if":
        if said is not None:
            raise DecoderError(f"format {format.name} leaves no choice of length; got length={said!r}")
        return None
    if said is not None and (as_index(said) or 0) < 1:
        raise DecoderError(f"length must be a whole number of positions, at least 1, got {said!r}")
    is_schnell = format.name == "flux" and denoiser is not None and denoiser.get("guidance_embeds") is False
    return said or (_SCHNELL_LENGTH if is_schnell else format.length)


def _readout(one: Reading, encoder: Any) -> Readout:
    norm = ENCODER_KINDS[one.kind].norm_of(encoder)
    if norm is None:
        return Readout(_as_it_is)
    centre = _centred if isinstance(norm, torch.nn.LayerNorm) else _as_it_is
    return Readout(norm, getattr(encoder, "text_projection", None), centre)


def _as_it_is(x: Tensor) -> Tensor:
    return x


def _centred(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)
