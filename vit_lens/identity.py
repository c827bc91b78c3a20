"""Which encoder is which: one canonical id per set of weights, whatever route they came by."""

__all__ = [
    "EMBEDDED_PIPELINES", "KANDINSKY_22_ENCODER", "MINI_ENCODER", "MINI_FILES", "MINI_FLUX", "MINI_IP",
    "MINI_IP_FILES", "MINI_RAE", "MINI_RAE_FILES", "MINI_SD", "aliases", "canonical_encoder_id", "exact_fingerprint",
    "fingerprint", "forget_fingerprints", "same_encoder", "text_side",
]  # fmt: skip

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from vit_lens.errors import VitLensError, expect

MINI_ENCODER = "vit_lens/mini"
MINI_FILES = Path(__file__).parent / "mini" / "pair"
"""Where the embedded pair's files are, the one door to them: encoder, decoder, captions, reference means."""
MINI_RAE = "vit_lens/mini-rae"
MINI_RAE_FILES = Path(__file__).parent / "mini" / "rae"
"""Where the decoder of the embedded encoder's patch tokens is, with the means of every token."""
MINI_IP, MINI_IP_FILES = "vit_lens/mini-ip", MINI_FILES.parent / "ip"
"""The second decoder of the embedded encoder, which shares nothing with the first: its id, and where its files are."""
MINI_SD, MINI_FLUX = "vit_lens/mini-sd", "vit_lens/mini-flux"
EMBEDDED_PIPELINES = {"mini-sd": MINI_FILES.parent / "sd", "mini-flux": MINI_FILES.parent / "flux"}
"""Where the embedded text-to-image models are, each in the layout of its pipeline of diffusers, by its name."""
MINI_FINGERPRINT = "64b5add7dd958fc7"  # of the shipped encoder; a test holds it
KANDINSKY_22_ENCODER = "hf/kandinsky-community/kandinsky-2-2-prior:image_encoder"

# The first id of each row is canonical. The published Kandinsky file holds the same weights in float16.
_SAME = (
    (KANDINSKY_22_ENCODER, "open_clip/ViT-bigG-14/laion2b_s39b_b160k", "hf/laion/CLIP-ViT-bigG-14-laion2B-39B-b160k"),
    (MINI_ENCODER, "mini"),
)
_CANONICAL = {alias.lower(): row[0] for row in _SAME for alias in row}


def canonical_encoder_id(encoder_id: str) -> str:
    """Return the canonical form of an encoder id; an id without aliases is its own.

    >>> canonical_encoder_id("open_clip/ViT-bigG-14/laion2b_s39b_b160k")
    'hf/kandinsky-community/kandinsky-2-2-prior:image_encoder'
    """
    expect(encoder_id, str, "an encoder's id", VitLensError, "such as 'mini', or model.encoder_id")
    return _CANONICAL.get(encoder_id.lower(), encoder_id)


def same_encoder(a: str, b: str) -> bool:
    """Whether two ids name the same weights: they are aliases, or carry the same fingerprint after an ``@``.

    >>> same_encoder("mini", f"module@{model.fingerprint}"), same_encoder("mini", "module@0123456789abcdef")
    (True, False)
    """
    if canonical_encoder_id(a) == canonical_encoder_id(b):
        return True
    print_a, print_b = _fingerprint_in(a), _fingerprint_in(b)
    return print_a is not None and print_a == print_b


def text_side(encoder_id: str) -> str:
    """Return the id of the text tower of a whole CLIP, whose id is that of its image tower.

    >>> text_side("vit_lens/mini")
    'vit_lens/mini#text'
    """
    return f"{encoder_id}#text"


def _fingerprint_in(encoder_id: str) -> str | None:
    if canonical_encoder_id(encoder_id) == MINI_ENCODER:
        return MINI_FINGERPRINT
    _, at, digits = encoder_id.rpartition("@")
    return digits if at else None


def aliases(encoder_id: str) -> tuple[str, ...]:
    """Return every other id under which the same weights are published; empty where none is known.

    >>> aliases("vit_lens/mini")
    ('mini',)
    """
    canonical = canonical_encoder_id(encoder_id)
    row = next((row for row in _SAME if row[0] == canonical), (encoder_id,))
    return tuple(i for i in row if i != encoder_id)


def fingerprint(state_dict: Mapping[str, Tensor]) -> str:
    """Return 16 hexadecimal digits that identify weights by their content.

    Every value of every tensor is hashed, rounded to bfloat16, with names and shapes. So a cast to float64,
    float32 or bfloat16 keeps the fingerprint, and any edit that bfloat16 can show changes it.

    Raises:
        VitLensError: The tensors are on the meta device and have no content.

    >>> weights = model.state_dict()
    >>> fingerprint(weights) == fingerprint({name: weight.double() for name, weight in weights.items()})
    True
    """
    return _digest(state_dict, lambda tensor: tensor.to(dtype=torch.bfloat16))


def exact_fingerprint(state_dict: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> str:
    """Return 16 hexadecimal digits that identify the values of weights to the last bit, and what they are kept in.

    Two runs with weights of one such fingerprint may be joined; :func:`fingerprint` says which encoder it is.

    Args:
        state_dict: The weights by name.
        dtype: What the weights are rounded to first; None takes them as they are.

    Raises:
        VitLensError: The tensors are on the meta device and have no content.

    >>> plain, nudged = {"w": torch.tensor(1.0)}, {"w": torch.tensor(1.000001)}
    >>> fingerprint(plain) == fingerprint(nudged), exact_fingerprint(plain) == exact_fingerprint(nudged)
    (True, False)
    """
    return _digest(state_dict, lambda tensor: tensor.to(dtype=dtype))


def forget_fingerprints(*holders: object) -> None:
    """Have the weights of models and decoders hashed anew, before something is kept that goes by them.

    Fingerprints are kept until PyTorch counts a change, and it counts none through ``.data``. Who keeps no fingerprint
    is left alone.

    >>> edited = vl.HookedViT.from_pretrained("mini")
    >>> before = edited.fingerprint
    >>> edited.W_E.data.mul_(2).shape, edited.fingerprint == before
    (torch.Size([768, 128]), True)
    >>> forget_fingerprints(edited)
    >>> edited.fingerprint == before
    False
    """
    for one in holders:
        forget = getattr(one, "forget_fingerprint", None)
        if callable(forget):
            forget()


def _digest(state_dict: Mapping[str, Tensor], kept: Callable[[Tensor], Tensor]) -> str:
    expect(state_dict, Mapping, "state_dict", VitLensError, "tensors by name, such as model.state_dict()")
    for name, tensor in state_dict.items():
        expect(tensor, Tensor, repr(name), VitLensError, "tensors by name, such as model.state_dict()")
    if any(tensor.is_meta for tensor in state_dict.values()):
        raise VitLensError("weights on the meta device have no content to identify; load them on a real device")
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        values = kept(state_dict[name].detach())
        told = "" if values.dtype == torch.bfloat16 else f"{values.dtype}"
        digest.update(f"{name}{tuple(values.shape)}{told}".encode())
        digest.update(values.contiguous().cpu().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
