"""The numbers behind the live page: an embedding as a function of a factor for every part of the tower."""

__all__ = ["LIVE_BUDGET", "LiveNumbers", "live_bytes", "live_bytes_of", "live_labels", "load_live"]

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float, jaxtyped
from torch import Tensor

from vit_lens.addresses import Address, spelled
from vit_lens.config import HookedViTConfig
from vit_lens.errors import RecordError, UnknownSiteError, nearest
from vit_lens.files import check_fields, damaged, to_bytes
from vit_lens.records.opening import AGAIN, RecordFiles
from vit_lens.records.schema import LIVE_FILE

LIVE_BUDGET = 8_000_000
"""Bytes of a page that live numbers take at most, as base64: one image of ViT-bigG, or a dozen of ViT-B."""


def live_labels(cfg: HookedViTConfig) -> tuple[str, ...]:
    """Return the components of an embedding: ``start`` (tokens and positions), heads, ``b_O`` and MLPs by layer.

    >>> labels = vl.records.live_labels(model.cfg)
    >>> len(labels), labels[:3], labels[-2:]
    (81, ('start', 'L0H0', 'L0H1'), ('L7.b_O', 'L7.mlp'))
    """
    labels = ["start"]
    for layer in range(cfg.n_layers):
        part = partial(Address, block="L", layer=layer)
        labels += [str(part(head=head)) for head in range(cfg.n_heads)]
        labels += [str(part(hook=hook)) for hook in ("b_O", "mlp")]
    has_pool_mlp = cfg.attn_pool is not None and bool(cfg.attn_pool.d_mlp)
    return (*labels, "pool.mlp") if has_pool_mlp else tuple(labels)


def live_bytes(n_components: int, d_embed: int, *, recomputed: bool) -> int:
    """Return how many bytes of a page the live numbers of one image take, as base64.

    Args:
        n_components: The number of components; see :func:`live_labels`.
        d_embed: The width of the embedding.
        recomputed: Whether LayerNorm's scale follows the factors, which needs products of all pairs of components.

    >>> vl.records.live_bytes(81, 128, recomputed=True)
    74812
    """
    numbers = (n_components + 2) * d_embed
    if recomputed:
        numbers += n_components * (n_components + 3) // 2 + 1
    return -(-4 * numbers // 3) * 4


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class LiveNumbers:
    """What is needed to scale parts of a tower and know the embedding at once, for some images of a record.

    With ``h_i`` what part ``i`` wrote to the last residual, ``x`` their sum and ``g_i`` a factor for each, the
    embedding is ``LN(sum_i g_i h_i) proj``: a direct effect, since nothing later reads the change. LayerNorm
    divides by ``s(g)``, whose square is a quadratic form of the factors, so with ``delta = g - 1``

    ``embed(g) = s(1) / s(g) (embedding - constant + sum_i delta_i contributions_i) + constant``
    ``s(g)^2  = variance + 2 delta . along + delta gram delta``

    Where the read-out has a scale for every token (a mean over normed patches, attention pooling), ``recomputed`` is
    false and the scale stays that of the image.

    Attributes:
        labels: The names of the components; see :func:`live_labels`.
        images: The indices of the images in the record.
        recomputed: Whether LayerNorm's scale follows the factors.
        eps: The epsilon of LayerNorm.
        contributions: What each component adds to the embedding, with the image's own scale.
        constant: The part of the embedding that no component causes: biases.
        embedding: The embedding of each image.
        gram: Scalar products of the centred parts, over d_model: the upper triangle, row by row. None where the scale
            stays.
        along: Scalar products of the centred parts with their sum, over d_model. None where the scale stays.
        variance: The variance of the last residual, eps included. None where the scale stays.

    >>> live = vl.Beside(live=True)
    >>> record = vl.sweep(model, None, images[:1], lens="diffusion", sites="mlp", beside=live, out=tmp / "live")
    >>> record.live
    LiveNumbers(81 parts, 1 images)
    >>> unchanged, without = record.live.embed(0, {}), record.live.embed(0, {"L7H0": 0, "L3.mlp": 0})
    >>> torch.allclose(unchanged.float(), model(pixels[:1])[0], atol=1e-5), without.shape
    (True, torch.Size([128]))
    """

    labels: tuple[str, ...]
    images: tuple[int, ...]
    recomputed: bool
    eps: float
    contributions: Float[Tensor, "image component d_embed"]
    constant: Float[Tensor, "image d_embed"]
    embedding: Float[Tensor, "image d_embed"]
    gram: Float[Tensor, "image pair"] | None = None
    along: Float[Tensor, "image component"] | None = None
    variance: Float[Tensor, " image"] | None = None

    def __repr__(self) -> str:
        return f"LiveNumbers({len(self.labels)} parts, {len(self.images)} images)"

    def tensors(self) -> dict[str, Tensor]:
        """Return what there is for each image, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def by_image(self) -> dict[int, dict[str, Tensor]]:
        """Return the tensors of each image, without their first axis."""
        return {
            image: {name: value[place] for name, value in self.tensors().items()}
            for place, image in enumerate(self.images)
        }

    def holding(self, found: Mapping[int, Mapping[str, Tensor]]) -> "LiveNumbers":
        """Return the numbers of other images, as :meth:`by_image` has them."""
        order = sorted(found)
        tensors = {name: torch.stack([found[image][name] for image in order]) for name in self.tensors()}
        return replace(self, images=tuple(order), **tensors)

    def embed(self, image: int, factors: Mapping[str, float | int]) -> Float[Tensor, " d_embed"]:
        """Return the embedding of an image with parts scaled, in float64.

        Args:
            image: The index of the image in the record.
            factors: Factors by site: heads, attention blocks (a head's factor is its own times its block's), MLPs,
                ``start`` and ``pool.mlp``; parts that are not named keep the factor 1.

        Raises:
            RecordError: There are no numbers for this image, or a factor is no finite number.
            UnknownSiteError: A site is not one of these.
        """
        if image not in self.images:
            raise RecordError(f"no live numbers for image {image}; there are for {list(self.images)}")
        place = self.images.index(image)
        delta = self.component_factors(factors) - 1
        constant = self.constant[place].double()
        varying = self.embedding[place].double() - constant + delta @ self.contributions[place].double()
        if self.gram is None or self.along is None or self.variance is None:
            return varying + constant
        before = self.variance[place].double()
        after = before + 2 * delta @ self.along[place].double() + delta @ _square(self.gram[place], len(delta)) @ delta
        return (before / after.clamp(min=self.eps)).sqrt() * varying + constant

    def component_factors(self, factors: Mapping[str, float | int]) -> Float[Tensor, " component"]:
        """Return the factor of every component, in float64.

        Raises:
            UnknownSiteError: A site is not one that can be scaled.
            RecordError: A factor is no finite number.
        """
        parts = [_scaled_with(label) for label in self.labels]
        given = {spelled(site): _factor(site, factor) for site, factor in factors.items()}
        known = dict.fromkeys(own for own, *_ in parts)
        if unknown := [site for site in given if site not in known]:
            raise UnknownSiteError(f"no part {unknown[0]!r} to scale; nearest: {nearest(unknown[0], list(known))}")
        found = [math.prod(given.get(site, 1.0) for site in part) for part in parts]
        return torch.tensor(found, dtype=torch.float64)


def _factor(site: object, given: object) -> float:
    try:
        factor = float(given)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError):
        factor = math.nan
    if not math.isfinite(factor):
        raise RecordError(f"the factor of {site} is {given!r:.40}; expected a finite number, as 0 for without it")
    return factor


def live_bytes_of(live: LiveNumbers) -> bytes:
    """Return live numbers as the bytes of a file."""
    said = {name: getattr(live, name) for name in ("labels", "images", "recomputed", "eps")}
    return to_bytes(live.tensors(), {"described": json.dumps(said)})


def load_live(files: RecordFiles) -> LiveNumbers | None:
    """Read the live numbers of a record; None if it has none.

    Raises:
        RecordError: They are damaged.
    """
    if not files.exists(LIVE_FILE):
        return None
    tensors, said = files.tensors(LIVE_FILE)
    where = str(files.path / LIVE_FILE)
    with damaged(RecordError, f"{where} cannot be read", AGAIN), jaxtyped("context"):  # pyright: ignore[reportArgumentType]
        live = LiveNumbers(**check_fields(LiveNumbers, {**said, **tensors}, where, RecordError))
        shape = [len(live.images), len(live.labels)]
        if list(live.contributions.shape[:2]) != shape or not all(isinstance(at, int) for at in live.images):
            raise ValueError(f"{shape} images and parts, and contributions of {list(live.contributions.shape[:2])}")
        try:
            live.component_factors({})
        except UnknownSiteError as error:
            raise ValueError(error) from error
    return live


def _scaled_with(label: str) -> list[str]:
    """Return the parts whose factors a component has: its own, a head's block's too; ``b_O`` its block's alone."""
    part = Address.parse(label)
    block = [str(Address(block="L", layer=part.layer, hook="attn"))] if part.kind in ("head", "b_O") else []
    return block if part.kind == "b_O" else [label, *block]


def _square(packed: Float[Tensor, " pair"], n: int) -> Float[Tensor, "component component"]:
    upper = torch.zeros(n, n, dtype=torch.float64)
    rows, columns = torch.triu_indices(n, n)
    upper[rows, columns] = packed.double()
    return upper + upper.triu(1).T
