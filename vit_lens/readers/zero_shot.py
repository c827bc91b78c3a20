"""The zero-shot lens: what captions say about every layer, head, attention block and MLP."""

__all__ = ["ZeroShot", "top_captions", "zero_shot_lens"]

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_lens.addresses import as_index
from vit_lens.attribution import Brief, check_tensor
from vit_lens.controls import Others
from vit_lens.errors import LensError, TextError, expect
from vit_lens.lenses import Lens, Sites
from vit_lens.readers.cosines import deviations
from vit_lens.readers.embeddings import BANK_ADVICE, SiteEmbeddings, site_embeddings
from vit_lens.readers.site_means import SiteMeans, check_means
from vit_lens.texts import TextBank
from vit_lens.towers import ViTActivationCache


@dataclass(frozen=True, eq=False, repr=False)
class ZeroShot(Brief):
    """Captions for lens embeddings, in two forms.

    ``raw``: the cosine of the lens embedding ``e`` with each caption's text embedding. ``centred``: the cosine of
    ``e - mu``, where ``mu`` is the mean lens embedding of that site over a reference set
    (:class:`vit_lens.readers.SiteMeans`). The texts are not centred: a vector that all captions share moves all
    logits of one embedding by (nearly) the same amount, which a softmax and a ranking do not see; a sigmoid does.

    What each is exact for: ``raw`` at the last residual is the model's own zero-shot result, to rounding. ``centred``
    does not change when a constant vector is added to the site's embeddings of all images; it is a reading of what
    is special about this image, and at no site the model's own probability. Where a site holds the same for all
    images, so that nothing but rounding is left, it is nan, and tables name no caption.

    Attributes:
        embeddings: The lens embeddings that were compared.
        bank: The captions along the last axis.
        cosines: The cosines by form and control; ``("raw", "")`` is the site itself.

    >>> found = vl.readers.zero_shot_lens(cache, bank, controls=["random"])
    >>> found.probs().shape, found.logits(control="random").shape
    (torch.Size([2, 9, 6]), torch.Size([2, 9, 6]))
    >>> found.to_frame(k=1).query("image == 0 and site == 'L7.resid_post' and control == ''")["caption"].item()
    'a blue star'
    """

    embeddings: SiteEmbeddings
    bank: TextBank
    cosines: dict[tuple[str, str], Float[Tensor, "batch site caption"]]

    def of(self, form: str = "raw", control: str = "") -> Float[Tensor, "batch site caption"]:
        """Return the cosines of one form and control.

        Args:
            form: The form: ``raw``, or ``centred`` where there were means.
            control: The control: ``""`` for the site itself, ``random``, ``other`` or ``covariance`` where they were
                asked for.

        Raises:
            LensError: That form or control was not computed.
        """
        if (str(form), str(control)) not in self.cosines:
            raise LensError(
                f"no form {form!r} with control {control!r} here; there are {sorted(self.cosines)}. The centred form "
                "needs means=, controls need controls="
            )
        return self.cosines[form, control]

    def logits(self, form: str = "raw", control: str = "") -> Float[Tensor, "batch site caption"]:
        """Return scaled cosines, with the bias of SigLIP."""
        return self.bank.to_logits(self.of(form, control))

    def probs(self, form: str = "raw", control: str = "") -> Float[Tensor, "batch site caption"]:
        """Return the softmax over the captions, or for SigLIP a sigmoid of each."""
        return self.bank.to_probs(self.logits(form, control))

    def to_frame(self, k: int | None = None) -> pd.DataFrame:
        """Return one row per image, site, form, control and caption, best first.

        Columns: image, site, site_type, layer, head, lens, control, form, rank, caption, cosine, logit, prob.

        Args:
            k: The number of best captions to keep; None means all.

        Raises:
            LensError: ``k`` is not from 1 to the number of captions.
        """
        rows: list[dict[str, Any]] = []
        for form, control in self.cosines:
            best = top_captions(self.of(form, control), self.bank, k)
            for image in range(len(best.index)):
                for site in range(len(self.embeddings.sites)):
                    place = self.embeddings.describe(image, site, control) | {"form": form}
                    rows += [place | row for row in best.rows(self.bank, image, site)]
        return pd.DataFrame(rows).astype({"layer": "Int64", "head": "Int64"})


@dataclass(frozen=True, eq=False, repr=False)
class TopCaptions(Brief):
    """The best captions, best first, with their numbers."""

    index: Int[Tensor, "*batch k"]
    cosine: Float[Tensor, "*batch k"]
    logit: Float[Tensor, "*batch k"]
    prob: Float[Tensor, "*batch k"]

    def rows(self, bank: TextBank, *place: int) -> list[dict[str, Any]]:
        """Return the captions of one embedding as rows of a table."""
        parts = (self.index, self.cosine, self.logit, self.prob)
        numbers = zip(*(part[place].tolist() for part in parts), strict=True)
        return [
            {
                "rank": rank, "caption": None if math.isnan(cosine) else bank.captions[index],
                "cosine": cosine, "logit": logit, "prob": prob,
            }
            for rank, (index, cosine, logit, prob) in enumerate(numbers)
        ]  # fmt: skip


def zero_shot_lens(
    cache: ViTActivationCache,
    bank: TextBank,
    sites: Sites = ("L0.resid_pre", "resid_post"),
    *,
    lens: Lens | None = None,
    means: SiteMeans | None = None,
    controls: Sequence[str] = (),
    generator: torch.Generator | None = None,
    others: Others | None = None,
    normalise: str | None = None,
) -> ZeroShot:
    """Read sites through a lens and compare the embeddings with captions.

    The default sites, with the Diffusion Lens, are the logit lens over layers: every state of the residual stream
    is read as if it were the last. Heads, attention blocks and MLPs go through any lens. Of a lens with several anchors
    the raw form is the mean of the cosines that each gives.

    Args:
        cache: The cache of the images; ``rows="readout"`` is enough.
        bank: Captions, embedded for this encoder. For a tower tuned towards its text tower, say so first:
            ``dataclasses.replace(bank, encoder_id=model.encoder_id)``.
        sites: Sites as ``Site.resolve`` takes them.
        lens: The lens; None for the Diffusion Lens.
        means: Means of the same lens and sites, which add the form ``centred``, see :class:`ZeroShot`; None for the
            raw form alone.
        controls: Any of ``random``, ``other`` and ``covariance``; see :func:`vit_lens.readers.site_embeddings`.
        generator: The source of the random directions, on the CPU; None for one seeded with 0.
        others: The other images that controls are made of; None takes those of the cache.
        normalise: The coordinates in which controls are made; None takes outputs as they are.

    Raises:
        TextError: The captions belong to another encoder.
        UnknownSiteError: A site is not one of the model's.
        LensError: The lens is not defined on a site, or the means are of another lens or lack a site.
        ReferenceMismatchError: The means are another model's.

    >>> found = vl.readers.zero_shot_lens(cache, bank, "L7.resid_post")
    >>> own = bank.to_probs(bank.to_logits(bank.cosines(model(pixels))))  # the model's own zero-shot result
    >>> torch.allclose(found.probs()[:, 0], own, atol=1e-4)
    True
    """
    expect(bank, TextBank, "bank", TextError, BANK_ADVICE)
    before = generator.get_state() if isinstance(generator, torch.Generator) else None
    held = {"controls": controls, "generator": generator, "others": others, "normalise": normalise}
    read = site_embeddings(cache, sites, lens=lens, **held)
    bank.check(cache.model)
    apart = [read]
    if len(each := read.lens.each()) > 1:
        apart = []
        for one in each:
            if generator is not None and before is not None:
                generator.set_state(before)  # all anchors are held against the same directions
            apart.append(site_embeddings(cache, read.sites, lens=one, **held))
    origin = None if means is None else check_means(means).of(cache.model, read.lens, read.sites)
    cosines = {}
    for control, values in read.values.items():
        cosines["raw", control] = torch.stack([bank.cosines(one.values[control]) for one in apart]).mean(0)
        if origin is not None:
            cosines["centred", control] = bank.cosines(deviations(values, origin))
    return ZeroShot(read, bank, cosines)


def top_captions(cosines: Float[Tensor, "*batch caption"], bank: TextBank, k: int | None = None) -> TopCaptions:
    """Return the ``k`` best captions of every embedding; probabilities are over all captions of the bank.

    Args:
        cosines: The cosines of embeddings with the captions of the bank, as :meth:`TextBank.cosines` returns them.
        bank: The captions along the last axis.
        k: The number of captions to keep; None means all.

    Raises:
        LensError: ``k`` is not from 1 to the number of captions, or the cosines are not of the captions of the bank.

    >>> best = vl.readers.top_captions(bank.cosines(model(pixels)), bank, k=2)
    >>> [row["caption"] for row in best.rows(bank, 0)]
    ['a blue star', 'a yellow square']
    """
    expect(bank, TextBank, "bank", TextError, BANK_ADVICE)
    check_tensor("cosines", cosines, f"*batch {len(bank)}")
    k = len(bank) if k is None else k
    if as_index(k) not in range(1, len(bank) + 1):
        raise LensError(f"k={k!r}: the text bank has {len(bank)} captions")
    probs = bank.to_probs(bank.to_logits(cosines))
    best = cosines.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    found = cosines.gather(-1, best)
    return TopCaptions(best, found, bank.to_logits(found), probs.gather(-1, best))
