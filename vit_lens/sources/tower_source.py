"""What every reader of a tower returns."""

__all__ = ["TowerSource", "source_of"]

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from vit_lens.config import TowerConfig
from vit_lens.identity import fingerprint
from vit_lens.images import PreprocessSpec


@dataclass(frozen=True, kw_only=True)
class TowerSource:
    """A tower's sizes and weights, ready for ``HookedViT`` or ``HookedTextEncoder``.

    Attributes:
        cfg: The sizes and switches, read from the instantiated tower, never from a name.
        state_dict: The weights under their names, LayerScale folded.
        preprocess_spec: How images become pixels; None if the source carries no preprocessing, or reads texts.
        encoder_id: The id that decoders and text banks know the weights by; see :mod:`vit_lens.identity`.
        tokenizer: How texts become ids; None if the source carries no tokenizer, or reads images.

    >>> from vit_lens.sources import read_pretrained
    >>> source = read_pretrained("mini")
    >>> source.encoder_id, source.cfg.n_layers, source.state_dict["blocks.0.attn.W_Q"].shape
    ('vit_lens/mini', 8, torch.Size([8, 128, 16]))
    """

    cfg: TowerConfig
    state_dict: dict[str, Tensor] = field(repr=False)
    preprocess_spec: PreprocessSpec | None
    encoder_id: str
    tokenizer: Any = field(default=None, repr=False)


def source_of(
    cfg: TowerConfig,
    state_dict: Mapping[str, Tensor],
    spec: PreprocessSpec | None,
    *,
    encoder_id: str | None,
    label: str,
    tokenizer: Any = None,
) -> TowerSource:
    """Put a source together; without an id it gets one from its label and its content.

    On the meta device there is no content, so the id is the label alone, which is no other encoder's.
    """
    if encoder_id is None:
        has_values = not any(tensor.is_meta for tensor in state_dict.values())
        encoder_id = f"{label}@{fingerprint(state_dict)}" if has_values else f"{label} (no weights)"
    read = {"preprocess_spec": spec, "tokenizer": tokenizer}
    return TowerSource(cfg=cfg, state_dict=dict(state_dict), encoder_id=encoder_id, **read)
