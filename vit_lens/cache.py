"""The activations of one run: TransformerLens' ``ActivationCache`` for an image model."""

__all__ = ["ViTActivationCache"]

from typing import TYPE_CHECKING, Any, Literal

from jaxtyping import Float
from torch import Tensor
from transformer_lens import ActivationCache

from vit_lens.errors import LensError, UnknownHookError, nearest

if TYPE_CHECKING:
    from vit_lens.model import HookedViT

Rows = Literal["all", "readout", "cut"]


class ViTActivationCache(ActivationCache):
    """Activations by hook name, with the shorthand ``cache["z", 3]`` and the model that made them.

    Attributes:
        model: The model.
        rows: ``all`` positions, only those that the model's ``readout`` uses, or ``cut`` by ``pos_slice``.
    """

    model: "HookedViT"  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self,
        cache_dict: dict[str, Tensor],
        model: "HookedViT",
        has_batch_dim: bool = True,
        rows: Rows = "all",
    ):
        # Upstream types its models structurally; HookedViT offers what the cache's methods read.
        super().__init__(cache_dict, model, has_batch_dim=has_batch_dim)  # pyright: ignore[reportArgumentType]
        self.rows: Rows = rows

    def __getitem__(self, key: Any) -> Tensor:
        try:
            return super().__getitem__(key)
        except KeyError as error:
            name = str(error.args[0]) if error.args else str(key)
            if name in self.model.hook_dict:
                raise UnknownHookError(
                    f"the cache does not hold {name!r}: name it in names_filter (a gated point such as hook_result is "
                    "not cached by default; set_use_attn_result(True) and its kin change that)"
                ) from None
            raise UnknownHookError(f"the cache holds no {name!r}; nearest: {nearest(name, self.cache_dict)}") from None

    def apply_slice_to_batch_dim(self, batch_slice: Any) -> "ViTActivationCache":
        """Return the cache of some of the images; see ``ActivationCache.apply_slice_to_batch_dim``."""
        sliced = super().apply_slice_to_batch_dim(batch_slice)
        return ViTActivationCache(sliced.cache_dict, self.model, has_batch_dim=sliced.has_batch_dim, rows=self.rows)

    def readout(self, name: str) -> Float[Tensor, "batch row *axes"]:
        """Return an activation at the positions that the read-out uses.

        Raises:
            LensError: The cache has lost its batch axis, or positions.
        """
        if self.rows == "cut":
            raise LensError(
                "the cache was cut by pos_slice, so the read-out rows may be missing; lenses need a cache without "
                "pos_slice, or with rows='readout'"
            )
        if not self.has_batch_dim:
            raise LensError("the cache has no batch axis; lenses need one (leave remove_batch_dim=False)")
        value = self[name]
        return value if self.rows == "readout" else self.model.readout_rows(value)
