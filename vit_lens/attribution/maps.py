"""Numbers of tokens, laid out as the patches lie in the image; what lies on other tokens is kept beside."""

__all__ = ["PatchMap", "attention_map", "pool_attention_map"]

from dataclasses import dataclass

from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from vit_lens.addresses import Site
from vit_lens.attribution.brief import Brief
from vit_lens.attribution.checks import check_cache, check_tensor
from vit_lens.attribution.frozen import read_tokens
from vit_lens.config import TowerConfig
from vit_lens.errors import InterventionError, LensError
from vit_lens.tokens import Token, describe_position, image_config, resolve_tokens
from vit_lens.towers import ViTActivationCache


@dataclass(frozen=True, eq=False, repr=False)
class PatchMap(Brief):
    """One number per patch, for several images, and one per token that is no patch.

    Attributes:
        values: The numbers of the patches, where these lie in the image.
        prefix: The numbers of ``cls`` and ``register0``, ``register1``, ... where the tower has them.
        title: A few words on what the numbers are.
        units: The units of the numbers, such as ``attention`` or ``cosine``.
        signed: Whether the numbers are drawn around zero.
        patch_size: The (height, width) of a patch, in pixels that the tower sees.

    >>> numbers = torch.arange(17.0).repeat(2, 1)  # one for each token of mini: cls, then 4 x 4 patches
    >>> found = vl.attribution.PatchMap.of_tokens(numbers, model.cfg, title="place", units="tokens", signed=False)
    >>> found.values[0, 1]
    tensor([5., 6., 7., 8.])
    >>> found.prefix["cls"], found.total
    (tensor([0., 0.]), tensor([136., 136.]))
    """

    values: Float[Tensor, "batch grid_row grid_column"]
    prefix: dict[str, Float[Tensor, " batch"]]
    title: str
    units: str
    signed: bool
    patch_size: tuple[int, int]

    @classmethod
    def of_tokens(
        cls, tokens: Float[Tensor, "batch token"], cfg: TowerConfig, *, title: str, units: str, signed: bool
    ) -> "PatchMap":
        """Lay out one number per token, in the order of the model's tokens; the numbers are copied.

        Args:
            tokens: The numbers, of the prefix tokens first.
            cfg: The configuration of the model that the tokens are of.
            title: A few words on what the numbers are.
            units: The units of the numbers.
            signed: Whether the numbers are drawn around zero.

        Raises:
            LensError: They are no tensor, or there is another number of tokens than the model has.
        """
        image = image_config(cfg, "a map")
        rows, columns = image.grid
        check_tensor("tokens", tokens, "batch token")
        if tokens.shape[1] != image.n_ctx:
            raise LensError(f"{tokens.shape[1]} numbers per image; the model has {image.n_ctx} tokens")
        tokens = tokens.clone()
        values = rearrange(tokens[:, image.n_prefix :], "b (y x) -> b y x", y=rows, x=columns)
        prefix = {describe_position(i, cfg): tokens[:, i] for i in range(image.n_prefix)}
        return cls(values, prefix, title, units, signed, image.patch_size)

    @property
    def total(self) -> Float[Tensor, " batch"]:
        """The sum over all tokens; 1 for attention."""
        return self.values.flatten(1).sum(1) + sum(self.prefix.values())


def attention_map(cache: ViTActivationCache, layer: int, head: int, query: Token = "cls") -> PatchMap:
    """Return where one token's attention goes.

    Args:
        cache: A cache with ``blocks.{layer}.attn.hook_pattern`` of every token.
        layer: The index of the block, counted from 0.
        head: The index of the head, counted from 0.
        query: The token that looks: ``cls``, ``register0``, ``patch17``, a patch as (row, column) of the grid, or a
            position.

    Raises:
        LensError: There is no such token, or the cache holds only some positions.
        UnknownSiteError: There is no such layer or head.
        UnknownHookError: The cache lacks the pattern.

    >>> found = vl.attribution.attention_map(cache, layer=3, head=4, query=(0, 2))
    >>> found.title, found.values.shape
    ('attention of L3H4 from patch (0, 2)', torch.Size([2, 4, 4]))
    >>> found.total.round(decimals=3)
    tensor([1., 1.])
    """
    cfg = check_cache(cache).model.cfg
    site = Site(layer, "head", head).check(cfg)
    position = _position(query, cfg)
    pattern = read_tokens(cache, f"blocks.{site.layer}.attn.hook_pattern")[:, site.head, position]
    who = ("patch " if position >= cfg.n_prefix else "") + describe_position(position, cfg)
    return PatchMap.of_tokens(pattern, cfg, title=f"attention of {site} from {who}", units="attention", signed=False)


def pool_attention_map(cache: ViTActivationCache, head: int) -> PatchMap:
    """Return where a head of attention pooling looks: the one learned query has a pattern over all tokens.

    Args:
        cache: A cache with ``attn_pool.attn.hook_pattern``.
        head: The index of the pooling head, counted from 0.

    Raises:
        LensError: The tower does not pool by attention, or the cache has lost its batch axis.
        UnknownSiteError: The head is out of range.
        UnknownHookError: The cache lacks ``attn_pool.attn.hook_pattern``.

    >>> import dataclasses, vit_lens.config
    >>> pool = vit_lens.config.AttentionPoolConfig(n_heads=2, d_head=7, d_model=128, d_mlp=None, has_ln_post=True)
    >>> pooling = vl.HookedViT(dataclasses.replace(model.cfg, pool="attn", attn_pool=pool))  # weights of zero
    >>> _, pooled = pooling.run_with_cache(pixels)
    >>> vl.attribution.pool_attention_map(pooled, head=1).title
    'attention of poolH1'
    """
    cfg, readout = check_cache(cache).model.cfg, cache.read_out
    if readout.attn_pool is None:
        raise LensError(f"this tower reads its embedding from {readout.words}: attention_map(cache, layer, head)")
    site = Site(None, "pool_head", head).check(cfg)
    if not cache.has_batch_dim:
        raise LensError("this cache has no batch axis; make it with remove_batch_dim=False")
    pattern = cache["attn_pool.attn.hook_pattern"].detach()[:, site.head, 0]
    return PatchMap.of_tokens(pattern, cfg, title=f"attention of {site}", units="attention", signed=False)


def _position(query: Token, cfg: TowerConfig) -> int:
    try:
        found = resolve_tokens(query, cfg)
    except InterventionError as error:
        raise LensError(f"query={query!r}: {error}") from None
    if len(found) > 1:
        raise LensError(
            f"query={query!r} is {len(found)} tokens; expected one, such as 'cls', 'patch17', (row, column)"
        )
    return found[0]
