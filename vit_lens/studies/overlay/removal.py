"""What is left of an overlay when heads are taken away one after the other."""

__all__ = ["LEFT", "STEPS", "TO_BASE", "TO_OVERLAY", "Order", "Removal", "Removed", "random_orders", "sorted_by"]

import hashlib
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from vit_lens.addresses import Site
from vit_lens.interventions import mean, run_and_read
from vit_lens.metrics import cosine
from vit_lens.models import HookedViT
from vit_lens.reference import ReferenceMeans
from vit_lens.studies.kept_tensors import kept
from vit_lens.studies.overlay.pasting import pixels_of_seen
from vit_lens.studies.overlay.ranking import Scenes, ablated_directly
from vit_lens.studies.similarities import caches

STEPS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Numbers of heads that are gone when it is measured, as far as the model has so many."""
_FORMAT = "vit_lens.overlay_removal.1"
_BATCH = 64
_TOGETHER = 64  # sets of heads in one file: what an interruption can cost
TO_BASE, TO_OVERLAY, LEFT = range(3)
"""What is measured: two cosines, and what is left of the overlay."""

Order = Int[np.ndarray, "overlay site"]
Removed = Float[np.ndarray, "measure overlay base step"]


class Removal:
    """Takes heads away from images with overlays: each goes to its mean at every position, in a real forward run.

    Measured are the cosines of the embedding with that of the image without the overlay and of the overlay alone, and
    what is left of the overlay: the share of its change of the embedding that is still there along that change (1: all
    of it, 0: none).

    Args:
        model: The model.
        scenes: Images with and without overlays.
        sites: Heads.
        reference: Means of images without overlays, at every position.
        folder: Where finished runs are kept, so that an interrupted study goes on.
        progress: Show a bar.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: HookedViT,
        scenes: Scenes,
        sites: list[Site],
        reference: ReferenceMeans,
        *,
        folder: Path,
        progress: bool = False,
    ):
        self.model, self.sites, self.reference = model, sites, reference
        self.folder, self.progress = folder, progress
        self._content = _content(model, scenes, sites, reference)
        self._both = [pixels_of_seen(model, some) for some in scenes.both]
        self._base = model(pixels_of_seen(model, scenes.base))
        self._alone = model(pixels_of_seen(model, scenes.alone))
        self._whole = torch.stack([model(pixels) for pixels in self._both]) - self._base
        self._known: dict[tuple[int, frozenset[int]], Tensor] = {}

    def run(self, orders: Sequence[Order], steps: Sequence[int], *, label: str = "ablation") -> list[Removed]:
        """Take the first so many heads of each order away, and measure.

        Args:
            orders: For each overlay all heads, the first to go first.
            steps: Numbers of heads.
            label: Of the bar.
        """
        wanted = [
            (overlay, frozenset(order[overlay, :step].tolist()))
            for order in orders for overlay in range(len(self._both)) for step in steps
        ]  # fmt: skip
        self._make(wanted, label)
        found = torch.stack([self._known[key] for key in wanted])
        shape = (len(orders), len(self._both), len(steps))
        return list(found.unflatten(0, shape).permute(0, 3, 1, 4, 2).double().cpu().numpy())

    def alone(self) -> Float[np.ndarray, "overlay site"]:
        """Return how much T rises when one head is taken away by itself: its total effect."""
        return self._rises([frozenset()] * len(self._both), range(len(self.sites)), "each head")

    @torch.no_grad()
    def directly(self) -> Float[np.ndarray, "overlay site"]:
        """Return how much T rises when one head goes to its mean and later layers stay as they are."""
        reference = self.reference.at_readout(self.model)
        rises = []
        for overlay, pixels in enumerate(self._both):
            embeds = torch.cat([ablated_directly(cache, self.sites, reference) for cache in caches(self.model, pixels)])
            before = _t(self._read(overlay, self._whole[overlay] + self._base))
            after = torch.stack([_t(self._read(overlay, some)) for some in embeds.unbind(1)], dim=1)
            rises.append((after - before[:, None]).mean(0))
        return torch.stack(rises).double().cpu().numpy()

    def greedy(self, n: int) -> Order:
        """Return the order that takes the head away whose loss raises T most, re-scored after each of ``n`` heads.

        The others follow by their total effect.

        Args:
            n: Heads chosen so.
        """
        first = self.alone()
        taken = [[int(scores.argmax())] for scores in first]
        for _ in range(1, min(n, len(self.sites))):
            rises = self._rises([frozenset(some) for some in taken], range(len(self.sites)), f"greedy {len(taken[0])}")
            for some, scores in zip(taken, rises, strict=True):
                scores[some] = -np.inf
                some.append(int(scores.argmax()))
        rest = sorted_by(first)
        return np.stack([[*some, *(i for i in row if i not in some)] for some, row in zip(taken, rest, strict=True)])

    def _rises(
        self, taken: list[frozenset[int]], heads: Iterable[int], label: str
    ) -> Float[np.ndarray, "overlay site"]:
        """Return how much T rises with one more head taken away, for each overlay; 0 for one that is gone already."""
        keys = [[(overlay, some | {head}) for head in heads] for overlay, some in enumerate(taken)]
        before = list(enumerate(taken))
        self._make([key for row in keys for key in row] + before, label)
        found = [
            torch.stack([_t(self._known[key]) - _t(self._known[start]) for key in row]).mean(1)
            for row, start in zip(keys, before, strict=True)
        ]
        return torch.stack(found).double().cpu().numpy()

    def _make(self, wanted: Sequence[tuple[int, frozenset[int]]], label: str) -> None:
        new = sorted(set(wanted) - set(self._known), key=lambda key: (key[0], min(key[1], default=-1), sorted(key[1])))
        with tqdm(total=len(new), desc=label, unit="set", disable=not self.progress) as bar:
            for overlay, pixels in enumerate(self._both):
                own = [key for key in new if key[0] == overlay]
                for some in (own[i : i + _TOGETHER] for i in range(0, len(own), _TOGETHER)):
                    self._known.update(zip(some, self._run(overlay, pixels, [heads for _, heads in some]), strict=True))
                    bar.update(len(some))

    def _run(
        self, overlay: int, pixels: Float[Tensor, "base channel height width"], sets: list[frozenset[int]]
    ) -> Float[Tensor, "set measure base"]:
        chosen = [sorted(some) for some in sets]
        digits = hashlib.sha256(f"{self._content} {overlay} {chosen}".encode()).hexdigest()[:32]
        path = self.folder / f"{digits}.safetensors"

        def run() -> dict[str, Tensor]:
            hooks = [mean(self.model, [self.sites[i] for i in some], self.reference) if some else [] for some in chosen]
            read = partial(self._read, overlay)
            return {"read": run_and_read(self.model, pixels, hooks, _BATCH, read).cpu()}

        return kept(path, _FORMAT, "ablations", run)["read"]

    def _read(self, overlay: int, embeds: Float[Tensor, "base d_embed"]) -> Float[Tensor, "measure base"]:
        whole = self._whole[overlay].double()
        left = ((embeds - self._base).double() * whole).sum(-1) / whole.square().sum(-1)
        return torch.stack([cosine(embeds, self._base), cosine(embeds, self._alone[overlay]), left])


def sorted_by(scores: Float[np.ndarray, "overlay site"]) -> Order:
    """Return the order of falling scores; of equal ones the first head goes first."""
    return np.argsort(-scores, axis=1, kind="stable")


def random_orders(n: int, n_overlays: int, n_sites: int, generator: np.random.Generator) -> list[Order]:
    """Draw orders, another for each overlay."""
    return [np.stack([generator.permutation(n_sites) for _ in range(n_overlays)]) for _ in range(n)]


def _t(read: Float[Tensor, "measure base"]) -> Float[Tensor, " base"]:
    return read[TO_BASE] - read[TO_OVERLAY]


def _content(model: HookedViT, scenes: Scenes, sites: list[Site], reference: ReferenceMeans) -> str:
    digits = hashlib.sha256(f"{model.fingerprint} {reference.content} {' '.join(map(str, sites))}".encode())
    for pictures in (scenes.base, scenes.both, scenes.alone):
        digits.update(np.ascontiguousarray(pictures).tobytes())
    return digits.hexdigest()
