"""What a site does to an attribute, and what its lens or picture says of it: one change for each pair."""

__all__ = ["Changes", "caption_changes", "direct_effects", "total_effects"]

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from vit_lens.addresses import Site
from vit_lens.interventions import patch, run_many
from vit_lens.lenses import site_outputs
from vit_lens.models import HookedViT
from vit_lens.studies.content.pairs import AttributePairs
from vit_lens.texts import TextBank
from vit_lens.towers import by_stream

_BATCH = 64


@torch.no_grad()
def total_effects(
    model: HookedViT,
    pixels: Float[Tensor, "image channel height width"],
    pairs: AttributePairs,
    texts: TextBank,
    sites: list[Site],
    *,
    progress: bool = False,
) -> Float[np.ndarray, "pair site"]:
    """Return the change of each pair's caption contrast when a site's output comes from the partner.

    The output is patched at every position and everything behind it is computed anew.
    """
    names = list(dict.fromkeys(site.hook_name for site in sites))
    found = []
    for some in tqdm(torch.arange(len(pairs)).split(_BATCH), desc="total effects", disable=not progress):
        rows = some.tolist()
        base, partner = (pixels[[side[i] for i in rows]] for side in (pairs.base, pairs.partner))
        _, cache = model.run_with_cache(partner, names_filter=names)
        sets = [[], *(patch(model, site, cache) for site in sites)]
        embeds = run_many(model, base, sets, batch_size=4 * _BATCH)
        contrast = _contrast(texts, embeds.transpose(0, 1), pairs, rows)
        found.append(contrast[:, 1:] - contrast[:, :1])
    return torch.cat(found).double().numpy()


@torch.no_grad()
def direct_effects(
    model: HookedViT,
    pixels: Float[Tensor, "image channel height width"],
    pairs: AttributePairs,
    texts: TextBank,
    sites: list[Site],
) -> Float[np.ndarray, "pair site"]:
    """Return the same with everything behind the site held at the base: ``LN(r_L + h(partner) - h(base)) proj``."""
    found = []
    for some in torch.arange(len(pairs)).split(_BATCH):
        rows = some.tolist()
        base, partner = (
            model.run_with_cache(pixels[[side[i] for i in rows]], rows="readout")[1]
            for side in (pairs.base, pairs.partner)
        )
        columns: dict[Site, Tensor] = {}
        for stream, group in by_stream(model.streams, sites):
            last = stream.last(base)[:, None]
            moved = last + site_outputs(partner, group) - site_outputs(base, group)
            contrast = _contrast(texts, torch.cat([stream.read(last), stream.read(moved)], dim=1), pairs, rows)
            columns |= dict(zip(group, (contrast[:, 1:] - contrast[:, :1]).unbind(1), strict=True))
        found.append(torch.stack([columns[site] for site in sites], dim=1))
    return torch.cat(found).double().numpy()


def caption_changes(
    texts: TextBank,
    embeds: Float[Tensor, "image site d_embed"],
    pairs: AttributePairs,
    *,
    shown: tuple[int, ...] | None = None,
) -> Float[np.ndarray, "pair site"]:
    """Return how each pair's caption contrast changes from what is shown of its base to what is shown of its partner.

    Args:
        texts: Reads ``embeds``.
        embeds: Of every image and site: lens embeddings, or pictures embedded again.
        pairs: Whose captions are read.
        shown: The pair whose two images are looked at, for each pair; its own by default.
    """
    shown = tuple(range(len(pairs))) if shown is None else shown
    rows = list(range(len(pairs)))
    base, partner = (embeds[[side[i] for i in shown]] for side in (pairs.base, pairs.partner))
    change = _contrast(texts, partner, pairs, rows) - _contrast(texts, base, pairs, rows)
    return change.double().numpy()


@dataclass(frozen=True, eq=False, kw_only=True)
class Changes:
    """Changes of caption contrasts, summed over the pairs of each base and attribute.

    Attributes:
        sums: Of the changes.
        counts: Of the pairs.
        full: What the whole image changes, as a mean over all pairs of an attribute: the unit of every share.
    """

    sums: Float[np.ndarray, "base site attribute"]
    counts: Int[np.ndarray, "base attribute"]
    full: Float[np.ndarray, " attribute"]

    @classmethod
    def of(
        cls,
        changes: Float[np.ndarray, "pair site"],
        pairs: AttributePairs,
        attributes: list[str],
        full: Float[np.ndarray, " attribute"],
    ) -> "Changes":
        """Sum pairs; those of other attributes are left out."""
        bases = list(pairs.bases)
        sums = np.zeros((len(bases), changes.shape[1], len(attributes)))
        counts = np.zeros((len(bases), len(attributes)), dtype=np.int64)
        for pair, change in enumerate(changes):
            if pairs.attribute[pair] in attributes:
                place = bases.index(pairs.base[pair]), attributes.index(pairs.attribute[pair])
                sums[place[0], :, place[1]] += change
                counts[place] += 1
        return cls(sums=sums, counts=counts, full=full)

    @classmethod
    def mean(cls, parts: "Sequence[Changes]") -> "Changes":
        """Return the mean of several readings of the same pairs: those of a lens from each of its anchors."""
        return replace(parts[0], sums=np.mean([part.sums for part in parts], axis=0))

    def shares(self, bases: Int[np.ndarray, " row"] | None = None) -> Float[np.ndarray, "site attribute"] | None:
        """Return the mean change of each attribute as a share of the whole image's.

        None if the bases (indices, with repeats; all by default) lack an attribute.
        """
        rows = np.arange(len(self.sums)) if bases is None else bases
        weight = np.bincount(rows, minlength=len(self.sums)).astype(float)
        counts = weight @ self.counts
        if (counts == 0).any():
            return None
        return np.tensordot(weight, self.sums, 1) / counts / self.full

    def take(self, sites: list[int]) -> "Changes":
        """Return the changes of some sites."""
        return Changes(sums=self.sums[:, sites], counts=self.counts, full=self.full)


def _contrast(
    texts: TextBank, embeds: Float[Tensor, "row site d_embed"], pairs: AttributePairs, rows: list[int]
) -> Float[Tensor, "row site"]:
    """Return the logit of the partner's caption minus that of the base's, with the captions of pairs ``rows``."""
    logits = texts.logits(embeds)
    sides = ([texts.index(side[i]) for i in rows] for side in (pairs.partner_caption, pairs.caption))
    toward, away = (
        logits.gather(-1, torch.tensor(side, device=logits.device)[:, None, None].expand(*logits.shape[:2], 1))[..., 0]
        for side in sides
    )
    return (toward - away).cpu()
