"""Which encoder a decoder was made for, said so that an embedding of another one cannot slip through."""

__all__ = ["PUBLISHED", "EncoderRef", "HasEncoderId", "agreed_encoder", "check_encoder", "check_scale", "encoder_id_of"]

import warnings
from pathlib import Path
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from vit_lens.errors import ContractError, expect
from vit_lens.identity import KANDINSKY_22_ENCODER, canonical_encoder_id, same_encoder

# A row of norm 1 to this tolerance was normalised on purpose ...
_UNIT_TOLERANCE = 1e-3
# ... if the encoder's own embedding of an empty picture is at least this long.
_RAW_NORM = 3.0


@runtime_checkable
class HasEncoderId(Protocol):
    """Whatever names its encoder, such as :class:`vit_lens.HookedViT`."""

    @property
    def encoder_id(self) -> str:
        """Id of the encoder."""
        ...


EncoderRef = str | HasEncoderId


# Decoders on the Hub whose files do not say the encoder that they were made for.
PUBLISHED: dict[str, str] = {
    "kandinsky-community/kandinsky-2-2-decoder": KANDINSKY_22_ENCODER,
    "h94/IP-Adapter:sdxl_models/ip-adapter_sdxl.safetensors": KANDINSKY_22_ENCODER,  # the same ViT-bigG-14
}


def encoder_id_of(encoder: EncoderRef) -> str:
    """Return the id of an encoder given as a model or as its id.

    Raises:
        ContractError: It is neither.

    >>> vl.decoders.encoder_id_of(model), vl.decoders.encoder_id_of("open_clip:ViT-B-32/openai")
    ('vit_lens/mini', 'open_clip:ViT-B-32/openai')
    """
    found = encoder if isinstance(encoder, str) else getattr(encoder, "encoder_id", None)
    if not isinstance(found, str):
        raise ContractError(f"an encoder is given as a model or as its id, got a {type(encoder).__name__}")
    return canonical_encoder_id(found)


def agreed_encoder(decoder_id: str, declared: str | None, said: EncoderRef | None) -> str:
    """Return the encoder that a decoder was made for, from its card or table and from what the caller says.

    Raises:
        ContractError: Neither says it, or they disagree.
    """
    if said is not None:
        if declared is not None:
            check_encoder(decoder_id, declared, said)
        return encoder_id_of(said)
    if declared is None:
        raise ContractError(
            f"decoder {decoder_id} does not say which encoder it was made for (it has no card vit_lens.json, and "
            f"is not among the published ones: {', '.join(PUBLISHED)}); pass encoder=, a model or an encoder id"
        )
    return canonical_encoder_id(declared)


def check_encoder(decoder_id: str, made_for: str, given: EncoderRef) -> None:
    """Refuse an encoder that a decoder was not made for; warn of one whose weights were changed since.

    Args:
        decoder_id: The decoder's name, for the message.
        made_for: The id of the encoder that it was made for.
        given: The encoder that the embeddings come from, as a model or an id.

    Raises:
        ContractError: The ids name different weights.

    >>> vl.decoders.check_encoder(decoder.decoder_id, decoder.encoder_id, model)
    >>> vl.decoders.check_encoder(decoder.decoder_id, decoder.encoder_id, "open_clip:ViT-B-32/openai")
    Traceback (most recent call last):
    vit_lens.errors.ContractError: decoder vit_lens/mini was made for encoder 'vit_lens/mini', but the embeddings ...
    """
    expect(made_for, str, "made_for", ContractError, "the id of an encoder")
    given_id = encoder_id_of(given)
    source = getattr(given, "source", None) or {"name": "", "tag": None}
    named = not source["tag"] and Path(source["name"]).absolute() == Path(made_for).absolute()
    if not named and not same_encoder(made_for, given_id):
        raise ContractError(
            f"decoder {decoder_id} was made for encoder {canonical_encoder_id(made_for)!r}, but the embeddings "
            f"come from {given_id!r}; use that encoder, or the decoder of this one. If they are that encoder's weights "
            "in memory, or a fine-tune that keeps its embedding space, say so: HookedViT.from_module(tower, "
            f"encoder_id={canonical_encoder_id(made_for)!r})"
        )
    if getattr(given, "edited", False):
        warnings.warn(
            f"the encoder's weights were changed since it was loaded as {given_id}; decoder {decoder_id} was made for "
            "that one, and may misread what this one writes",
            stacklevel=2,
        )


def check_scale(embeds: Float[Tensor, "batch d_embed"], negative: Float[Tensor, "1 d_embed"]) -> None:
    """Refuse L2-normalised embeddings: the decoder was trained on raw ones and mostly ignores short ones.

    Raises:
        ContractError: Every row has norm 1 while the negative is far longer.
    """
    norms = embeds.double().norm(dim=1)
    raw = float(negative.double().norm())
    if bool(((norms - 1).abs() < _UNIT_TOLERANCE).all()) and raw >= _RAW_NORM:
        raise ContractError(
            f"every embedding has norm 1, but the negative, from the same encoder, has {raw:.1f}: these look "
            "L2-normalised; the decoder takes the encoder's raw image_embeds"
        )
