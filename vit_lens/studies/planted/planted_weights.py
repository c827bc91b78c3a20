"""Weights of encoders in which one known head alone writes one known attribute, made from those of a given one.

The contrast of two captions reads the residual stream along one direction ``p``: the difference of the two text
embeddings, drawn back through the projection and the weight of the final LayerNorm. ``p`` is removed from all that any
block writes, and given back to one head, driven by a linear probe of what that head attends to. So it is known which
head tells the attribute, and that no other does.
"""

__all__ = ["readout_direction", "remove_direction", "write_attribute"]

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.addresses import Site
from vit_lens.errors import StudyError
from vit_lens.models import HookedViT
from vit_lens.texts import TextBank
from vit_lens.towers import ClassToken

_WRITES = ("attn.W_O", "attn.b_O", "mlp.W_out", "mlp.b_out")


def readout_direction(model: HookedViT, texts: TextBank, captions: tuple[str, str]) -> Float[np.ndarray, " d_model"]:
    """Return the unit direction of the last residual along which the second caption is told from the first.

    Raises:
        StudyError: The tower does not read the class token.
        TextError: A caption is not in the bank.
    """
    if not isinstance(model.readout, ClassToken):
        raise StudyError(
            f"{model.encoder_id} is read from {model.readout.words}; a head can be planted where the class token is "
            "read, since there alone what enters block 0 is the same for every image"
        )
    first, second = (texts.unit[texts.index(caption)].double().cpu() for caption in captions)
    direction = model.ln_final.w.detach().double().cpu() * (model.W_U.detach().double().cpu() @ (second - first))
    direction = direction - direction.mean()  # LayerNorm is blind to the mean
    return (direction / direction.norm()).numpy()


def remove_direction(model: HookedViT, direction: Float[np.ndarray, " d_model"]) -> HookedViT:
    """Return the model with all that its blocks write made orthogonal to a direction."""
    away = torch.from_numpy(direction)

    def clear(weight: Tensor) -> Tensor:
        wide = weight.double().cpu()
        return wide - (wide @ away)[..., None] * away

    writes = {f"blocks.{i}.{part}" for i in range(model.cfg.n_layers) for part in _WRITES}
    return _with_weights(model, {name: clear for name in writes})


def write_attribute(
    model: HookedViT,
    site: Site,
    direction: Float[np.ndarray, " d_model"],
    reading: Float[np.ndarray, " d_head"],
    *,
    keep: float | int,
    constant: float | int,
) -> HookedViT:
    """Return the model with a head that also writes ``(z @ reading) direction``.

    What else it writes is scaled by ``keep``; the layer's ``b_O`` gets ``constant`` of the direction.
    """
    along = torch.from_numpy(direction)

    def add_to_head(weight: Tensor) -> Tensor:
        wide = weight.double().cpu()
        wide[site.head] = keep * wide[site.head] + torch.outer(torch.from_numpy(reading), along)
        return wide

    def add_to_bias(bias: Tensor) -> Tensor:
        return bias.double().cpu() + constant * along

    attn = f"blocks.{site.layer}.attn"
    return _with_weights(model, {f"{attn}.W_O": add_to_head, f"{attn}.b_O": add_to_bias})


@torch.no_grad()
def _with_weights(model: HookedViT, edits: dict[str, Callable[[Tensor], Tensor]]) -> HookedViT:
    """Return a copy with some weights changed, under the same id: its embedding space is the same, as a fine-tune's."""
    model.refuse_hooks("a planted model, which has none,")
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    state |= {name: edit(state[name].clone()).to(state[name]) for name, edit in edits.items()}
    with torch.device("meta"):
        made = type(model)(model.cfg, preprocess_spec=model.preprocess_spec, encoder_id=model.encoder_id)
    made.load_state_dict(state, assign=True)
    return made.requires_grad_(False)
