"""Numbers of tokens, laid out as the patches lie in the image; what lies on other tokens is kept beside."""

__all__ = ["PatchMap", "Query", "attention_map", "pool_attention_map"]

from dataclasses import dataclass

from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from vit_lens.attribution.readout import read_tokens
from vit_lens.cache import ViTActivationCache
from vit_lens.config import HookedViTConfig
from vit_lens.errors import LensError
from vit_lens.names import Site

Query = str | tuple[int, int]


@dataclass(frozen=True, eq=False)
class PatchMap:
    """One number per patch, for several images, and one per token that is no patch.

    Attributes:
        values: On the grid of patches.
        prefix: On ``cls`` and ``register0``, ``register1``, ... where the tower has them.
        title: What the numbers are.
        units: Of the numbers.
        signed: Whether they are drawn around zero.
        patch_size: (height, width) of a patch, in pixels that the tower sees.
    """

    values: Float[Tensor, "batch grid_row grid_column"]
    prefix: dict[str, Float[Tensor, " batch"]]
    title: str
    units: str
    signed: bool
    patch_size: tuple[int, int]

    @classmethod
    def of_tokens(
        cls,
        tokens: Float[Tensor, "batch token"],
        cfg: HookedViTConfig,
        *,
        title: str,
        units: str,
        signed: bool,
    ) -> "PatchMap":
        """Lay out one number per token, in the order of the model's tokens."""
        rows, columns = cfg.grid
        if tokens.shape[1] != cfg.n_ctx:
            raise LensError(f"{tokens.shape[1]} numbers per image; the model has {cfg.n_ctx} tokens")
        values = rearrange(tokens[:, cfg.n_prefix :], "b (y x) -> b y x", y=rows, x=columns)
        prefix = {name: tokens[:, i] for i, name in enumerate(prefix_names(cfg))}
        return cls(values, prefix, title, units, signed, cfg.patch_size)

    @property
    def total(self) -> Float[Tensor, " batch"]:
        """The sum over all tokens; 1 for attention."""
        return self.values.flatten(1).sum(1) + sum(self.prefix.values())


def attention_map(cache: ViTActivationCache, layer: int, head: int, query: Query = "cls") -> PatchMap:
    """Return where one token's attention goes.

    Args:
        cache: With ``blocks.{layer}.attn.hook_pattern`` of every token.
        layer: Of the block.
        head: Index of the head.
        query: Who looks: ``cls``, ``register0``, ..., or a patch as (row, column) of the grid.

    Raises:
        LensError: There is no such token, layer or head, or the cache holds only some positions.
        UnknownHookError: The cache lacks the pattern.
    """
    cfg = cache.model.cfg
    site = Site(layer, "head", head).check(cfg)
    position = _position(cfg, query)
    pattern = read_tokens(cache, f"blocks.{layer}.attn.hook_pattern")[:, head, position]
    who = f"patch {query}" if isinstance(query, tuple) else query
    return PatchMap.of_tokens(pattern, cfg, title=f"attention of {site} from {who}", units="attention", signed=False)


def pool_attention_map(cache: ViTActivationCache, head: int) -> PatchMap:
    """Return where a head of attention pooling looks: the one learned query has a pattern over all tokens.

    Raises:
        LensError: The tower does not pool by attention, or the head is out of range.
        UnknownHookError: The cache lacks ``attn_pool.attn.hook_pattern``.
    """
    cfg = cache.model.cfg
    if cfg.attn_pool is None:
        raise LensError(f"this tower reads its embedding from {cfg.readout!r}: attention_map(cache, layer, head)")
    site = Site(None, "pool_head", head).check(cfg)
    pattern = cache["attn_pool.attn.hook_pattern"].detach()[:, head, 0]
    return PatchMap.of_tokens(pattern, cfg, title=f"attention of {site}", units="attention", signed=False)


def prefix_names(cfg: HookedViTConfig) -> list[str]:
    """Return the names of the tokens before the patches, in order."""
    return [*(["cls"] if cfg.has_cls else []), *(f"register{i}" for i in range(cfg.n_registers))]


def _position(cfg: HookedViTConfig, query: Query) -> int:
    names, (rows, columns) = prefix_names(cfg), cfg.grid
    if isinstance(query, str):
        if query in names:
            return names.index(query)
        raise LensError(f"query={query!r}: this tower has {names or 'no token but patches'}; a patch is (row, column)")
    row, column = query
    if not (0 <= row < rows and 0 <= column < columns):
        raise LensError(f"query={query}: the grid has rows 0 to {rows - 1} and columns 0 to {columns - 1}")
    return cfg.n_prefix + row * columns + column
