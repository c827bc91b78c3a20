"""Token rows in groups, and what sites write there: what an averaged Jacobian multiplies, and starts from."""

__all__ = ["RowMeans", "group_rows", "grouped", "last_state", "read_state", "row_groups", "row_means", "state_width"]

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from vit_lens.addresses import Site
from vit_lens.config import HookedViTConfig
from vit_lens.errors import LensError
from vit_lens.identity import fingerprint
from vit_lens.reference.reference_means import ReferenceMeans
from vit_lens.towers import Tower, ViTActivationCache


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class RowMeans:
    """Mean activations of one model over ``n`` images, averaged within groups of token rows.

    Attributes:
        n: The number of images; of one alone, these are its own activations.
        last: The mean of what the output is read from: the last residual at the read-out row (of mean pooling before
            the final norm: the mean row), or what the projection reads where normed rows are pooled.
        resid_pre: The mean residual stream that enters block 0.
        z: The mean ``z`` of every head.
        mlp_out: The mean output of every layer's MLP.

    >>> means = vl.JacobianLens.fit(model, images, test=False).jacobians.means
    >>> means.n, means.last.shape, means.resid_pre.shape  # two groups of rows: the class token, the patches
    (2, torch.Size([128]), torch.Size([2, 128]))
    """

    n: int
    last: Float[Tensor, " d_last"]
    resid_pre: Float[Tensor, "group d_model"]
    z: Float[Tensor, "layer group head d_head"]
    mlp_out: Float[Tensor, "layer group d_model"]

    def output(self, model: Tower, site: Site) -> Float[Tensor, "group d_model"]:
        """Return the mean of what a site holds or writes at a row of each group.

        Raises:
            UnknownSiteError: The site is not one of the model's.
        """
        # The same algebra as that of single rows: what parts write adds up, exactly.
        means = ReferenceMeans(
            encoder_id=model.encoder_id, fingerprint="", n=self.n, resid_pre=self.resid_pre, z=self.z,
            mlp_out=self.mlp_out,
        )  # fmt: skip
        return means.output(model, site)

    def tensors(self) -> dict[str, Tensor]:
        """Return the means by name."""
        return {"last": self.last, "resid_pre": self.resid_pre, "z": self.z, "mlp_out": self.mlp_out}

    @property
    def content(self) -> str:
        """Sixteen digits that identify the means by their values."""
        return fingerprint(self.tensors())


def row_groups(cfg: HookedViTConfig, *, per_row: bool = False) -> Int[Tensor, " pos"]:
    """Return the group of every token row: the class token, the registers, the patches; or each row its own.

    >>> from vit_lens.reference import row_groups
    >>> row_groups(model.cfg).tolist()
    [0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    """
    if per_row:
        return torch.arange(cfg.n_ctx)
    sizes = [size for size in (int(cfg.has_cls), cfg.n_registers, cfg.n_patches) if size]
    return torch.cat([torch.full((size,), group) for group, size in enumerate(sizes)])


def group_rows(x: Float[Tensor, "batch pos *axes"], groups: Int[Tensor, " pos"]) -> Float[Tensor, "batch group *axes"]:
    """Return the sums of an activation over the rows of each group."""
    n_groups = int(groups.max()) + 1
    out = x.new_zeros(len(x), n_groups, *x.shape[2:])
    return out.index_add(1, groups.to(x.device), x)


def grouped(
    cache: ViTActivationCache | Mapping[str, Tensor], model: Tower, site: Site, groups: Int[Tensor, " pos"]
) -> Float[Tensor, "batch group d_model"]:
    """Return what a site holds or writes, summed over the rows of each group, in float32 or wider.

    Args:
        cache: Activations at every row, by hook point.
        model: The model that they are of.
        site: A site of a layer.
        groups: The group of every row.

    >>> from vit_lens.reference import grouped, row_groups
    >>> grouped(cache, model, Site.parse("L3H4"), row_groups(model.cfg)).shape  # the class token, the patches
    torch.Size([2, 2, 128])
    """
    act = cache[site.hook_name]
    act = act.to(device=model.device, dtype=torch.promote_types(act.dtype, torch.float32))
    if site.head is None:
        return group_rows(act, groups)
    z = group_rows(act[:, :, site.head], groups)
    return einsum(z, model.attention_of(site).W_O[site.head].detach().to(z), "b group k, k d -> b group d")


# ---- what the output is read from ------------------------------------------------------------------------------------


def state_width(model: Tower) -> int:
    """Return the width of what the output is read from, before the projection."""
    return model.cfg.d_model if model.readout.sees_one_row else model.cfg.d_pooled


def last_state(model: Tower, resid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch d_last"]:
    """Return what the output is read from: of the last residual, one row, or what is pooled of all, before projection.

    >>> from vit_lens.reference.row_means import last_state, read_state
    >>> state = last_state(model, cache["resid_post", 7])
    >>> bool(torch.allclose(read_state(model, state), model(pixels), atol=1e-4))
    True
    """
    readout = model.readout
    rows = readout.rows(resid)
    return rows[:, 0] if readout.sees_one_row else readout.pooled(rows)


def read_state(model: Tower, states: Float[Tensor, "*batch d_last"]) -> Float[Tensor, "*batch d_embed"]:
    """Return the output of such states, without hooks and with fresh statistics of the final norm.

    >>> from vit_lens.reference import read_state
    >>> read_state(model, torch.randn(2, 3, 128)).shape
    torch.Size([2, 3, 128])
    """
    readout = model.readout
    return readout.read(states[..., None, :]) if readout.sees_one_row else readout.read_pooled(states)


def row_means(model: Tower, cache: ViTActivationCache, groups: Int[Tensor, " pos"]) -> RowMeans:
    """Return the means over the images of a cached run.

    Args:
        model: The model.
        cache: The cache, at every row.
        groups: The group of every row.

    Raises:
        LensError: The cache holds no images.

    >>> from vit_lens.reference import row_groups, row_means
    >>> row_means(model, cache, row_groups(model.cfg)).z.shape
    torch.Size([8, 2, 8, 16])
    """
    layers, size = range(model.cfg.n_layers), torch.bincount(groups)

    def mean(name: str) -> Tensor:
        act = cache[name]
        if not len(act):
            raise LensError("there are no images to start from; give one or more")
        act = act.to(device=model.device, dtype=torch.promote_types(act.dtype, torch.float32))
        found = group_rows(act, groups).mean(0)
        return found / size.to(found).reshape(-1, *[1] * (found.ndim - 1))

    last = cache[f"blocks.{len(layers) - 1}.hook_resid_post"].to(model.device)
    last = last_state(model, last.to(torch.promote_types(last.dtype, torch.float32)))
    return RowMeans(
        n=len(last), last=last.mean(0), resid_pre=mean("blocks.0.hook_resid_pre"),
        z=torch.stack([mean(f"blocks.{layer}.attn.hook_z") for layer in layers]),
        mlp_out=torch.stack([mean(f"blocks.{layer}.hook_mlp_out") for layer in layers]),
    )  # fmt: skip
