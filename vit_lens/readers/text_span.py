"""TEXTSPAN: a few captions whose directions span what a head writes (Gandelsman et al. 2024, arXiv 2310.05916)."""

__all__ = ["TextSpan", "TextSpans", "head_contributions", "text_span", "text_spans"]

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.addresses import Site, as_index
from vit_lens.attribution import Brief, check_model, check_tensor, hook_names, split_embedding, split_pooling
from vit_lens.errors import LensError, TextError, UnknownSiteError, expect, nearest
from vit_lens.models import HookedViT, pixel_batches, several
from vit_lens.numerics import without_autocast
from vit_lens.readers.embeddings import BANK_ADVICE
from vit_lens.texts import TextBank
from vit_lens.towers import ViTActivationCache

_ROUNDING = 64  # contributions that differ by fewer units in the last place are the same
_UNIT = 0.01  # half precision rounds a length by less
_NOTHING_LEFT = 1e-6  # of a text's length: below this it lies in the span of the texts already chosen


@dataclass(frozen=True, eq=False, repr=False)
class TextSpan(Brief):
    """Captions in the order in which they were chosen, with their directions.

    Attributes:
        captions: The chosen captions.
        indices: The place of each in the list that was given.
        directions: Unit vectors: each caption's text embedding, projected on the head's span, less what the earlier
            ones cover. They are orthogonal.
        explained: The share of the variance over images along each direction; they add up to at most 1.
        mean: The mean of the contributions over images.

    >>> contributions = torch.tensor([[3.0, 0.0, 0.0], [-3.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, -1.0, 0.0]])
    >>> span = vl.readers.text_span(contributions, torch.eye(3), ["far", "near", "never"], k=2)
    >>> [(row["caption"], round(row["explained"], 2)) for row in span.rows()]
    [('far', 0.9), ('near', 0.1)]
    >>> torch.allclose(span.reconstruct(contributions), contributions.double())
    True
    """

    captions: tuple[str, ...]
    indices: tuple[int, ...]
    directions: Float[Tensor, "direction d_embed"]
    explained: Float[Tensor, " direction"]
    mean: Float[Tensor, " d_embed"]

    @without_autocast()
    def reconstruct(self, contributions: Float[Tensor, "image d_embed"]) -> Float[Tensor, "image d_embed"]:
        """Return the mean, and of every deviation from it what lies in the span of the directions.

        Raises:
            LensError: They are no contributions of this width.
        """
        check_tensor("contributions", contributions, f"image {len(self.mean)}")
        deviation = contributions.to(self.directions) - self.mean
        return self.mean + deviation @ self.directions.T @ self.directions

    def rows(self) -> list[dict[str, Any]]:
        """Return the captions as rows of a table: rank, caption, explained, cumulative."""
        shares, sums = self.explained.tolist(), self.explained.cumsum(0).tolist()
        return [
            {"rank": rank, "caption": caption, "explained": shares[rank], "cumulative": sums[rank]}
            for rank, caption in enumerate(self.captions)
        ]


class TextSpans(dict[Site, TextSpan]):
    """Spans by head, which may be written: ``spans["L7H0"]``.

    >>> span = vl.readers.text_span(torch.eye(3), torch.eye(3), ["one", "two", "three"], k=1)
    >>> vl.readers.TextSpans({vl.Site.parse("L7H0"): span})["L7H0"] is span
    True
    """

    def __repr__(self) -> str:
        return f"TextSpans(<{len(self)}>)"

    def __missing__(self, key: Site | str) -> TextSpan:
        site = Site.parse(key) if isinstance(key, str) else key
        if site not in self:
            raise UnknownSiteError(f"no span of {site}; nearest: {nearest(str(site), map(str, self))}")
        return self[site]


@without_autocast()
def text_span(
    contributions: Float[Tensor, "image d_embed"],
    texts: Float[Tensor, "caption d_embed"],
    captions: Sequence[str],
    *,
    k: int = 10,
    rank: int | None = None,
) -> TextSpan:
    """Choose captions greedily by how much of the contributions' variance their directions carry.

    Algorithm 1 of the paper, in the order of its released code: the texts are projected on the span of the first
    ``rank`` right singular vectors of the contributions (not centred); the contributions are centred; then, ``k``
    times, the caption whose text (as it is by then, not rescaled) has the largest variance of dot products over the
    images is chosen, and its direction is removed from every text. (The code removes it from the contributions as
    well, which changes no dot product.)

    Computed in float64 on the CPU. Fewer captions come back where no text is left outside the span of the chosen.

    Args:
        contributions: What one head adds to the embedding of every image.
        texts: Text embeddings at length 1.
        captions: The text of each.
        k: The number of captions to choose, at least 1.
        rank: The dimension of the head's span; None takes the numerical rank, which a head that is read at the CLS
            token keeps at its width or below. The released code takes the first 80.

    Raises:
        LensError: There are not two images, the contributions do not vary or are not finite, the texts are not of
            length 1, or ``k`` or ``rank`` is out of range.

    Source: Gandelsman et al. 2024 (arXiv 2310.05916), algorithm 1.

    >>> spread = torch.tensor([[0.0, 2.0], [0.0, -2.0], [1.0, 0.0]])
    >>> vl.readers.text_span(spread, torch.eye(2), ["across", "along"], k=2).captions
    ('along', 'across')
    """
    for name, rows in (("contributions", contributions), ("texts", texts)):
        check_tensor(name, rows, "row d_embed")
        if not rows.isfinite().all():
            raise LensError(f"{name} hold nan or infinity")
    if isinstance(captions, str) or not isinstance(captions, Sequence):
        raise LensError(f"captions={captions!r}; expected a list with the text of each")
    data, words = contributions.detach().cpu().double(), texts.detach().cpu().double()
    if len(data) < 2 or words.shape != (len(captions), data.shape[1]):
        raise LensError(
            f"contributions of shape {tuple(data.shape)} and {len(captions)} texts of shape {tuple(words.shape)}; "
            "expected [image d_embed] of at least two images, and [caption d_embed]"
        )
    if not ((words.norm(dim=-1) - 1).abs() < _UNIT).all():
        raise LensError(
            "texts are not of length 1, and longer ones would be chosen; pass texts / texts.norm(dim=-1, keepdim=True)"
        )
    if as_index(k) not in range(1, len(captions) + 1):
        raise LensError(f"k={k!r}: there are {len(captions)} captions")
    eps = torch.finfo(contributions.dtype).eps
    basis = _span(data, rank, eps)
    words = words @ basis.T @ basis
    mean = data.mean(0)
    data = data - mean
    total = data.square().sum()
    if total <= (_ROUNDING * eps * mean.norm()) ** 2 * len(data):
        raise LensError("the contributions are the same for all images: there is no variance to span")
    floor = _NOTHING_LEFT * words.norm(dim=-1).amax()
    chosen: list[int] = []
    directions, explained = [], []
    for _ in range(k):
        spread = (data @ words.T).var(0)
        spread[words.norm(dim=-1) <= floor] = -torch.inf
        best = int(spread.argmax())
        if spread[best] == -torch.inf:
            break
        unit = words[best] / words[best].norm()
        along = data @ unit
        chosen.append(best)
        directions.append(unit)
        explained.append(along.square().sum() / total)
        words = words - (words @ unit)[:, None] * unit
    return TextSpan(
        tuple(captions[i] for i in chosen), tuple(chosen), torch.stack(directions), torch.stack(explained), mean
    )


@without_autocast()
def head_contributions(
    model: HookedViT, images: Any, sites: Sequence[Site | str] | str, *, batch_size: int = 32, progress: bool = False
) -> Float[Tensor, "site image d_embed"]:
    """Return what heads add to the embeddings of images: their terms of the exact split, in float32 or wider.

    The final LayerNorm's scale is each image's own (:func:`vit_lens.attribution.split_embedding`). Memory: heads x
    images x d_embed, 1 GB for 200 heads, 1,000 images and ViT-bigG; take the layers that you look at.

    Args:
        model: The model that is run.
        images: Paths, PIL images, arrays, or preprocessed pixels.
        sites: Heads, such as ``["L7H3", "L6H6"]``; ``"heads"`` means all.
        batch_size: The number of images in one run.
        progress: Whether to show a bar.

    Raises:
        LensError: A site is not a head, or there are no images.
        VitLensError: A batch would hold no image.
        UnknownSiteError: A site is not one of the model's.

    >>> vl.readers.head_contributions(model, images, ["L7H3", "L6H6"]).shape
    torch.Size([2, 2, 128])
    """
    check_model(model)
    chosen = Site.resolve(sites, model.cfg)
    if other := [str(site) for site in chosen if site.head is None]:
        raise LensError(f"TEXTSPAN is about heads, not {', '.join(other[:4])}")
    images = several(images)
    # With attention pooling every token is a read-out row, and the split needs its pattern too.
    kept: dict[str, Any] = {"rows": "readout"} if model.readout.is_linear else {"names_filter": hook_names(model)}
    parts = []
    for _, pixels in pixel_batches(model, images, batch_size, label="contributions", progress=progress):
        with torch.no_grad():
            _, cache = model.run_with_cache(pixels, **kept)
            parts.append(_terms(cache, chosen).cpu())
    if not parts:
        raise LensError("no images given; a few hundred give a stable span")
    return torch.cat(parts, dim=1)


@without_autocast()
def text_spans(
    model: HookedViT,
    images: Any,
    bank: TextBank,
    sites: Sequence[Site | str] | str,
    *,
    k: int = 10,
    rank: int | None = None,
    batch_size: int = 32,
    progress: bool = False,
) -> tuple[TextSpans, pd.DataFrame]:
    """Describe heads by the captions that span what they write.

    Args:
        model: The model, without hooks.
        images: Paths, PIL images, arrays, or preprocessed pixels; a few hundred give a stable span.
        bank: Captions, embedded for this encoder: hundreds to thousands, since only what they say can be found.
        sites: Heads, such as ``["L7H3", "L6H6"]``; ``"heads"`` means all.
        k: The number of captions for each head.
        rank: The dimension of a head's span, as for :func:`text_span`; None takes the numerical rank.
        batch_size: The number of images in one run.
        progress: Whether to show a bar.

    Returns:
        The spans by head, and a table: site, layer, head, rank, caption, explained, cumulative.

    Raises:
        TextError: The captions belong to another encoder.
        UnknownSiteError: A site is not one of the model's.
        LensError: A site is not a head, there are not two images, or ``k`` or ``rank`` is out of range.
        VitLensError: There are hooks on the model.

    Source: Gandelsman et al. 2024 (arXiv 2310.05916), section 4.

    >>> from vit_lens.mini import world
    >>> pictures = list(world.render(world.sample_scenes(12, np.random.default_rng(0))))
    >>> spans, table = vl.readers.text_spans(model, pictures, bank, ["L7H3", "L6H6"], k=2)
    >>> len(spans["L7H3"].captions), table.columns.tolist()
    (2, ['site', 'layer', 'head', 'rank', 'caption', 'explained', 'cumulative'])
    """
    expect(bank, TextBank, "bank", TextError, BANK_ADVICE)
    bank.check(model)
    model.refuse_hooks("a table of spans")
    values = head_contributions(model, images, sites, batch_size=batch_size, progress=progress)
    chosen = Site.resolve(sites, model.cfg)
    spans = TextSpans(
        (site, text_span(of_head, bank.unit, bank.captions, k=k, rank=rank))
        for site, of_head in zip(chosen, values, strict=True)
    )
    rows = [
        {"site": str(site), "layer": site.layer, "head": site.head} | row
        for site, span in spans.items()
        for row in span.rows()
    ]
    return spans, pd.DataFrame(rows).astype({"layer": "Int64", "head": "Int64"})


def _span(data: Float[Tensor, "image d_embed"], rank: int | None, eps: float | int) -> Float[Tensor, "rank d_embed"]:
    """Return the first right singular vectors; those that rounding alone may have made are none."""
    singular, vectors = torch.linalg.svd(data, full_matrices=False)[1:]
    numerical = int((singular > singular[0] * max(data.shape) * eps).sum())
    if rank is not None and as_index(rank) not in range(1, numerical + 1):
        raise LensError(f"rank={rank!r}: the contributions span {numerical} dimensions")
    return vectors[: numerical if rank is None else rank]


def _terms(cache: ViTActivationCache, sites: list[Site]) -> Float[Tensor, "site batch d_embed"]:
    parts = [split(cache) for split in {split_pooling if site.is_pool else split_embedding for site in sites}]
    terms = {label: value for part in parts for label, value in zip(part.labels, part.values, strict=True)}
    return torch.stack([terms[str(site)] for site in sites])
