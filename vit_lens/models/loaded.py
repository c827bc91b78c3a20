"""What loaded models share: where they came from, other weights for the same function, a check of the source."""

__all__ = ["LoadedTower", "uncompiled"]

from functools import cache
from typing import Any, TypeVar

import torch

from vit_lens.towers import HookedTower, process
from vit_lens.verification import exact_float32, verify

Loaded = TypeVar("Loaded", bound="LoadedTower")


class LoadedTower(HookedTower):
    """A tower that is made of a source's config and weights, and of what else it needs to read its inputs.

    Args:
        cfg: The sizes and switches of the tower.
        encoder_id: The id that decoders and text banks know the weights by; None for one of their content.
    """

    _source: dict[str, Any] | None = None

    @classmethod
    def _made_of(cls: type[Loaded], cfg: Any, state_dict: dict[str, torch.Tensor], **carried: Any) -> Loaded:
        with torch.device("meta"):  # the tensors of the source become the parameters: one copy in memory
            model = cls(cfg, **carried)
        model.load_weights(state_dict)
        return model.requires_grad_(True)

    def _carried(self) -> dict[str, Any]:
        """Return what a model of the same source is made of beside its config."""
        return {"encoder_id": self.encoder_id}

    @property
    def source(self) -> dict[str, Any] | None:
        """Arguments of :meth:`from_pretrained` that make this model elsewhere; None for one made or changed here.

        >>> model.source["name"], model.source["dtype"]
        ('mini', torch.float32)
        """
        if self._source is None or self.edited:
            return None
        return {**self._source, "dtype": self.dtype, "device": str(self.device)}

    def process_weights(
        self: Loaded, *, fold_ln: bool = True, fold_value_biases: bool = True, center_writing_weights: bool = True
    ) -> Loaded:
        """Return a new model that computes the same function with weights that are easier to read.

        Names as in TransformerLens; :mod:`vit_lens.towers.processing` says what each step does and what CLIP forbids.
        The ``encoder_id`` stays; the :attr:`fingerprint` changes, so reference means must be made again. The new
        model's ``processing`` lists every hook point that means something else. Half-precision weights are
        rounded once more: process in float32, then cast.

        Args:
            fold_ln: Whether the weight and bias of norms go into the matrices that read them.
            fold_value_biases: Whether value biases go into ``b_O``.
            center_writing_weights: Whether what is written to the residual stream loses its mean over ``d_model``.

        Raises:
            VitLensError: No step is asked for, one does not hold for this tower, or hooks are on the model.

        >>> processed = model.process_weights()
        >>> bool(torch.allclose(processed(pixels), model(pixels), atol=1e-3))
        True
        >>> bool(processed.blocks[0].ln1.b.any())  # folded into the matrices that read it
        False
        >>> processed.processing.changed["hook_pooled"]
        "without the LayerNorm's weight and bias"
        """
        asked = {
            "fold_ln": fold_ln, "fold_value_biases": fold_value_biases,
            "center_writing_weights": center_writing_weights,
        }  # fmt: skip
        self.refuse_hooks("the processed model, which has none,")
        steps = [step for step, on in asked.items() if on]
        with exact_float32():
            state_dict, cfg, processing = process(self.state_dict(), self.cfg, steps, self.processing)  # pyright: ignore[reportArgumentType]
        with torch.device("meta"):
            made = type(self)(cfg, **self._carried())
        made.take_weights(state_dict)
        made.requires_grad_(any(parameter.requires_grad for parameter in self.parameters()))
        made.vocabulary, made.processing = self.vocabulary, processing
        return made

    verify = verify


@cache
def uncompiled(forward: Any) -> Any:
    """Return a ``forward`` as a compiler leaves it alone; made late, since making it imports the compiler."""
    return torch.compiler.disable(forward, reason="hooks are on the model, and a graph could keep old ones")
