"""Which encoder is which: one canonical id per set of weights, whatever route they came by."""

__all__ = [
    "KANDINSKY_22_ENCODER",
    "MINI_ENCODER",
    "aliases",
    "canonical_encoder_id",
    "fingerprint",
    "same_encoder",
]

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

MINI_ENCODER = "vit_lens/mini"
KANDINSKY_22_ENCODER = "hf/kandinsky-community/kandinsky-2-2-prior:image_encoder"

# The first id of each row is canonical. The published Kandinsky file holds the same weights in float16.
_SAME = (
    (
        KANDINSKY_22_ENCODER,
        "open_clip/ViT-bigG-14/laion2b_s39b_b160k",
        "hf/laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",
    ),
    (MINI_ENCODER, "mini"),
)
_CANONICAL = {alias.lower(): row[0] for row in _SAME for alias in row}
_SAMPLES_PER_TENSOR = 256


def canonical_encoder_id(encoder_id: str) -> str:
    """Return the canonical form of an encoder id; an id without aliases is its own."""
    return _CANONICAL.get(encoder_id.lower(), encoder_id)


def same_encoder(a: str, b: str) -> bool:
    """Whether two ids name the same weights: they are aliases, or carry the same fingerprint after an ``@``."""
    if canonical_encoder_id(a) == canonical_encoder_id(b):
        return True
    (_, at_a, print_a), (_, at_b, print_b) = a.rpartition("@"), b.rpartition("@")
    return bool(at_a and at_b) and print_a == print_b


def aliases(encoder_id: str) -> tuple[str, ...]:
    """Every other id under which the same weights are published."""
    canonical = canonical_encoder_id(encoder_id)
    row = next((row for row in _SAME if row[0] == canonical), (encoder_id,))
    return tuple(i for i in row if i != encoder_id)


def fingerprint(state_dict: Mapping[str, Tensor]) -> str:
    """Return 16 hexadecimal digits that identify weights by their content.

    Evenly spaced values of every tensor are hashed, rounded to bfloat16, with names and shapes. So a cast to
    float64, float32 or bfloat16 keeps the fingerprint, and a fine-tune changes it.
    """
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        tensor = state_dict[name]
        n_samples = min(_SAMPLES_PER_TENSOR, tensor.numel())
        index = torch.arange(n_samples) * (tensor.numel() - 1) // max(n_samples - 1, 1)  # exact in int64
        place = torch.unravel_index(index.to(tensor.device), tensor.shape)  # no copy of a strided weight
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach()[place].bfloat16().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
