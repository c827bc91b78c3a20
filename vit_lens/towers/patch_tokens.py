"""The patch tokens of a run: the last residual at the patches, behind the final norm without its gain and bias.

This is what representation autoencoders read (Zheng et al. 2025, arXiv 2510.11690): they take the affine part off the
encoder's last norm, so that every token has mean 0 and variance 1.
"""

__all__ = ["PatchTokens", "at_patches", "patch_tokens", "patches_of"]

from typing import TypeVar

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from vit_lens.conditions import Condition
from vit_lens.config import HookedViTConfig, TowerConfig
from vit_lens.errors import LensError, VitLensError
from vit_lens.towers.cache.held import HeldActivations
from vit_lens.towers.contract import Tower
from vit_lens.towers.layers import wide
from vit_lens.towers.readout import Readout
from vit_lens.towers.streams import read_wide

Held = TypeVar("Held", bound=HeldActivations)


class PatchTokens(Readout):
    """Every patch is normed, without gain and bias, and the output has all of them.

    >>> from vit_lens.towers import PatchTokens
    >>> readout = PatchTokens.at(model)
    >>> readout.rows(cache["resid_post", 7]).shape, readout.positions(17)
    (torch.Size([2, 16, 128]), range(1, 17))
    """

    kind = "patch tokens"
    words = "the patch tokens"

    @classmethod
    def at(cls, model: Tower) -> "PatchTokens":
        """Return the read-out of a tower's patch tokens.

        Args:
            model: The tower.

        Raises:
            LensError: It sees no patches.
        """
        cfg = patches_of(model.cfg)
        return cls(cfg, model.ln_final, None, n_prefix=cfg.n_prefix)

    @property
    def places(self) -> slice:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The patches, behind class token and registers."""
        return slice(self.n_prefix, None)

    def pool(self, resid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch patch d_model"]:
        return self.read(self.rows(resid))

    def read(self, rows: Float[Tensor, "*batch row d_model"]) -> Float[Tensor, "*batch row d_model"]:
        """Return the tokens that rows of a last residual are, with fresh statistics, in float32 or wider."""
        if rows.shape[-1] != self.cfg.d_model:
            raise VitLensError(f"rows of shape {tuple(rows.shape)}; expected d_model={self.cfg.d_model} at last")
        return functional.layer_norm(wide(rows, self.ln_final.w.device), (self.cfg.d_model,), eps=self.ln_final.eps)

    def condition(self, rows: Float[Tensor, "*batch row d_model"]) -> Condition:
        """Return what :meth:`read` gives as a decoder takes it: tokens."""
        return Condition(tokens=self.read(rows))


def patches_of(cfg: TowerConfig) -> HookedViTConfig:
    """Return the config as that of a tower which sees patches.

    Args:
        cfg: The config of any tower.

    Raises:
        LensError: The tower sees none.

    >>> vl.towers.patches_of(text_model.cfg)
    Traceback (most recent call last):
    vit_lens.errors.LensError: patch tokens are of a tower that sees images; this one sees none
    """
    if not isinstance(cfg, HookedViTConfig):
        raise LensError("patch tokens are of a tower that sees images; this one sees none")
    return cfg


def at_patches(cache: Held) -> Held:
    """Return a cache as if the output were read at the patches: lenses then see what parts write there.

    Args:
        cache: The whole cache of a run, of an image tower.

    Raises:
        LensError: The tower sees no patches, or the cache holds some positions alone.

    >>> from vit_lens.towers import at_patches
    >>> at_patches(cache).readout("blocks.3.hook_mlp_out").shape
    torch.Size([2, 16, 128])
    """
    readout = PatchTokens.at(cache.model)
    if cache.rows != "all" or not cache.has_batch_dim:
        raise LensError(
            f"patch tokens need every token, with a batch axis; this cache holds rows={cache.rows!r}. Make it with "
            "run_with_cache(pixels, names_filter=model.is_readout_part)"
        )
    held = {name: value for name, value in cache.cache_dict.items() if name != cache.model.output_point}
    return type(cache)(held, cache.model, True, cache.rows, cache.start_at_layer, readout)


def patch_tokens(cache: HeldActivations) -> Float[Tensor, "batch patch d_model"]:
    """Return the patch tokens of a run, in float32 or wider: what a :class:`vit_lens.decoders.RAEDecoder` draws.

    Args:
        cache: A cache with the last ``resid_post`` at every token.

    Raises:
        LensError: The tower sees no patches, or the cache holds some positions alone.
        UnknownHookError: The cache lacks the last residual.

    >>> tokens = vl.patch_tokens(cache)
    >>> tokens.shape, bool(tokens.mean(-1).abs().max() < 1e-5)
    (torch.Size([2, 16, 128]), True)
    """
    view = at_patches(cache)
    return view.read_out.read(read_wide(view, f"blocks.{cache.model.cfg.n_layers - 1}.hook_resid_post"))
