"""The activations of one run: TransformerLens' ``ActivationCache`` for an image model."""

__all__ = ["ViTActivationCache"]

from typing import TYPE_CHECKING, Any, Literal

from jaxtyping import Float
from torch import Tensor
from transformer_lens import ActivationCache

from vit_lens.errors import LensError, UnknownHookError, nearest

if TYPE_CHECKING:
    from vit_lens.model import HookedViT

Rows = Literal["all", "readout"]


class ViTActivationCache(ActivationCache):
    """Activations by hook name, with the shorthand ``cache["z", 3]`` and the model that made them.

    Attributes:
        model: The model.
        rows: ``all`` positions, or only those that the model's ``readout`` uses.
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
            raise UnknownHookError(f"the cache holds no {name!r}; nearest: {nearest(name, self.cache_dict)}") from None

    def readout(self, name: str) -> Float[Tensor, "batch row *axes"]:
        """Return an activation at the positions that the read-out uses.

        Raises:
            LensError: The cache has lost its batch axis.
        """
        if not self.has_batch_dim:
            raise LensError("the cache has no batch axis; lenses need one (leave remove_batch_dim=False)")
        value = self[name]
        return value if self.rows == "readout" else self.model.readout_rows(value)
