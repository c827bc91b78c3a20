"""ITDA: a dictionary whose atoms are data points, each of them what the atoms before it could not explain."""

__all__ = ["ITDA", "ITDAState"]

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_lens.addresses import as_index
from vit_lens.dictionaries.dictionary import Dictionary
from vit_lens.dictionaries.normalisation import Normalisation
from vit_lens.dictionaries.pursuit import gradient_pursuit, matching_pursuit
from vit_lens.dictionaries.semantics import Origin, Semantics
from vit_lens.dictionaries.source import ActivationSource, Place
from vit_lens.dictionaries.training import Checkpoint, Trainer, trainer
from vit_lens.errors import DictionaryError

_AT_ONCE = 128  # tokens that are held to one state of the dictionary
_SAVE_EVERY = 200  # batches of the source


@trainer("itda")
@dataclass(frozen=True, kw_only=True)
class ITDA(Trainer):
    """Learn by adding tokens that the dictionary explains too little of.

    Tokens are taken in their order, 128 at a time whatever the batches of the source, so that the batches do not
    matter. One whose loss is above the threshold becomes an atom, unless it is nearly one that is there.

    ``form="pursuit"`` is that of arXiv 2505.24360: non-negative gradient pursuit, and a loss that is the squared error
    as a share of the stream's variance. ``form="signed"`` is that of arXiv 2505.17769: matching pursuit with codes of
    either sign, and a loss that is the mean squared difference of token and reconstruction, both at length 1; a
    threshold is smaller by the width. Unlike there, the dictionary starts empty.

    Attributes:
        k: How many atoms explain a token at most.
        threshold: The loss above which a token is added.
        form: Which of the two.
        max_atoms: How many atoms there are at most.
        duplicate: The cosine to an atom above which a token is not added.

    Raises:
        DictionaryError: A number is out of range.

    >>> x = torch.randn(600, 8, generator=torch.Generator().manual_seed(0))
    >>> found = vl.dictionaries.fit(vl.ActivationSource.of_array(x), ITDA(k=4, threshold=0.2))
    >>> found.labels.shape == (found.n_features, 2), found.n_features < 540
    (True, True)
    """

    k: int = 32
    threshold: float = 0.3
    form: Literal["pursuit", "signed"] = "pursuit"
    max_atoms: int = 50_000
    duplicate: float = 0.8

    def __post_init__(self) -> None:
        for name in ("k", "max_atoms"):
            if (as_index(getattr(self, name)) or 0) < 1:
                raise DictionaryError(f"{name}={getattr(self, name)!r}; expected a whole number, at least 1")
        if self.form not in ("pursuit", "signed"):
            raise DictionaryError(f"form={self.form!r}; expected 'pursuit' or 'signed'")
        if not (self.threshold >= 0 and 0 < self.duplicate <= 1):
            raise DictionaryError(
                f"threshold={self.threshold}, duplicate={self.duplicate}; expected at least 0, and a cosine above 0"
            )

    def learn(
        self, source: ActivationSource, normalisation: Normalisation, checkpoint: Checkpoint
    ) -> tuple[Dictionary, dict[str, Any]]:
        state, place = ITDAState.empty(self, normalisation), Place()
        if (kept := checkpoint.load()) is not None:
            state, place = ITDAState.of(self, normalisation, *kept), Place(*kept[1]["place"])
        for index, batch in enumerate(source.stream(place, epochs=1)):
            if state.is_full or (room := self.n_tokens - state.n_tokens) <= 0:
                break
            state.add(batch.tokens[:room], batch.labels[:room])
            if (index + 1) % _SAVE_EVERY == 0:
                checkpoint.save(*state.kept(batch.then))
        state.finish()
        return state.dictionary(), {"n_tokens_seen": state.n_tokens}

    def from_random(self, source: ActivationSource, n: int) -> Dictionary:
        """Return a dictionary of ``n`` random tokens instead: what data points are worth, however they are chosen.

        Args:
            source: Where they are drawn from, with the seed of the settings.
            n: How many atoms.

        Raises:
            DictionaryError: The source has fewer tokens that are not zero.

        >>> x = torch.randn(600, 8, generator=torch.Generator().manual_seed(0))
        >>> ITDA(k=4).from_random(vl.ActivationSource.of_array(x), 20)
        Dictionary(20 features of width 8, pursuit k=4, of no site)
        """
        statistics = Normalisation.fit(
            (batch.tokens for batch in source.epoch()), self.normalisation, n_tokens=self.n_statistics
        )
        state, drawn = ITDAState.empty(self, statistics), _Draw(n, self.seed)
        for batch in source.in_order():
            drawn.offer(batch.tokens.float().cpu(), batch.labels)
        state.hold(*drawn.taken())
        return replace(
            statistics.fold(state.dictionary()),
            origin=Origin(**vars(source.provenance), learnt=f"{n} random tokens, seed {self.seed}"),
        )


class _Draw:
    """``n`` tokens of a stream, each as likely as any other, whatever its batches: those with the smallest numbers."""

    def __init__(self, n: int, seed: int):
        self.n, self._generator = n, torch.Generator().manual_seed(seed)
        self._held: list[tuple[Tensor, Tensor, Tensor]] = []

    def offer(self, tokens: Tensor, labels: Tensor) -> None:
        keys = torch.rand(len(tokens), generator=self._generator, dtype=torch.float64)
        parts = zip(*[*self._held, (keys, tokens, labels)], strict=True)
        keys, tokens, labels = (torch.cat(part) for part in parts)
        kept = keys.argsort()[: self.n]
        self._held = [(keys[kept], tokens[kept], labels[kept])]

    def taken(self) -> tuple[Tensor, Tensor]:
        _, tokens, labels = self._held[0]
        if len(tokens) < self.n:
            raise DictionaryError(f"{self.n} random tokens of a source that has {len(tokens)}; ask for fewer")
        return tokens, labels


@dataclass(eq=False)
class ITDAState:
    """A dictionary that grows: what it holds, and tokens that wait for their turn.

    Attributes:
        config: The settings.
        normalisation: What tokens are scaled by.
        n_tokens: How many tokens came.
        atoms: The atoms, of length 1, in the normalised space.
        labels: Which token each is.

    >>> x = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    >>> state = ITDAState.empty(ITDA(k=4), vl.dictionaries.Normalisation.fit(x))
    >>> state.add(x[:200])
    >>> before = len(state.atoms)
    >>> state.add(x[200:])
    >>> state.finish()
    >>> 0 < before < 200, len(state.atoms) >= before
    (True, True)
    """

    config: ITDA
    normalisation: Normalisation
    atoms: Float[Tensor, "feature d"]
    labels: Int[Tensor, "feature 2"]
    waiting: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    n_tokens: int = 0

    @classmethod
    def empty(cls, config: ITDA, normalisation: Normalisation) -> "ITDAState":
        """Return the state before the first token.

        Args:
            config: The settings.
            normalisation: What tokens are scaled by; frozen.
        """
        d = len(normalisation.mean)
        return cls(config, normalisation, torch.zeros(0, d), torch.zeros(0, 2, dtype=torch.long))

    @classmethod
    def of(
        cls, config: ITDA, normalisation: Normalisation, tensors: dict[str, Tensor], numbers: dict[str, Any]
    ) -> "ITDAState":
        """Return the state that :meth:`kept` gave, with which the same tokens lead to the same bits.

        Args:
            config: The settings.
            normalisation: What tokens are scaled by.
            tensors: The first that was given.
            numbers: The second.
        """
        waiting = [(tensors["waiting"], tensors["waiting_labels"])] if len(tensors["waiting"]) else []
        return cls(config, normalisation, tensors["atoms"], tensors["labels"], waiting, numbers["n_tokens"])

    def kept(self, place: Place | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return all that there is, as tensors and numbers.

        Args:
            place: Where the source stands; None where there is none.
        """
        tokens, labels = self._waiting()
        tensors = {"atoms": self.atoms, "labels": self.labels, "waiting": tokens, "waiting_labels": labels}
        numbers: dict[str, Any] = {"n_tokens": self.n_tokens}
        if place is not None:
            numbers["place"] = [place.epoch, place.input, place.batch]
        return tensors, numbers

    @property
    def is_full(self) -> bool:
        """Whether there are as many atoms as there may be."""
        return len(self.atoms) >= self.config.max_atoms

    def add(self, tokens: Float[Tensor, "token d"], labels: Int[Tensor, "token 2"] | None = None) -> None:
        """Take tokens in; those that do not fill a whole turn wait.

        Args:
            tokens: Activations, not normalised.
            labels: The (input, token) of each; None counts tokens, each an input of its own.
        """
        if labels is None:
            count = torch.arange(self.n_tokens, self.n_tokens + len(tokens))
            labels = torch.stack([count, torch.zeros_like(count)], 1)
        self.n_tokens += len(tokens)
        self.waiting.append((tokens.detach().float().cpu(), labels.cpu()))
        if sum(len(part) for part, _ in self.waiting) < _AT_ONCE:
            return
        waiting, named = self._waiting()
        whole = len(waiting) - len(waiting) % _AT_ONCE
        for start in range(0, whole, _AT_ONCE):
            self._turn(waiting[start : start + _AT_ONCE], named[start : start + _AT_ONCE])
        self.waiting = [(waiting[whole:], named[whole:])] if whole < len(waiting) else []

    def hold(self, tokens: Float[Tensor, "token d"], labels: Int[Tensor, "token 2"]) -> None:
        """Add tokens as atoms, whatever their loss.

        Args:
            tokens: Activations, not normalised.
            labels: The (input, token) of each.

        Raises:
            DictionaryError: A token is the mean, which has no direction.
        """
        z = self._normalised(tokens)
        length = z.norm(dim=1, keepdim=True)
        if not (length > 0).all():
            raise DictionaryError("a token that is drawn is the mean itself, which has no direction; draw fewer")
        self.atoms, self.labels = torch.cat([self.atoms, z / length]), torch.cat([self.labels, labels.cpu()])

    def _normalised(self, tokens: Tensor) -> Tensor:
        return self.normalisation.apply(tokens, self.config.clip) - self._centre

    def finish(self) -> None:
        """Take in the tokens that still wait."""
        tokens, labels = self._waiting()
        self.waiting = []
        if len(tokens):
            self._turn(tokens, labels)

    def dictionary(self) -> Dictionary:
        """Return the dictionary, of normalised activations, of all tokens that had their turn.

        Raises:
            DictionaryError: There is no atom.
        """
        if not len(self.atoms):
            raise DictionaryError(f"no token had a loss above {self.config.threshold}, so there are no atoms; lower it")
        return Dictionary(
            W_dec=self.atoms, b_dec=self._centre, semantics=Semantics.plain(self.config.form, self.config.k),
            labels=self.labels,
        )  # fmt: skip

    @property
    def _centre(self) -> Tensor:
        """The mean in the normalised space, which no atom has to explain."""
        return self.normalisation.centre.float()

    def _turn(self, tokens: Tensor, labels: Tensor) -> None:
        z = self._normalised(tokens)
        length = z.norm(dim=1)
        unit = z / length.clamp(min=torch.finfo(z.dtype).tiny)[:, None]
        hard = (self._loss(z) > self.config.threshold) & (length > 0)
        candidates, named = unit[hard], labels[hard]
        near = self._near(candidates @ self.atoms.T).any(1)
        candidates, named = candidates[~near], named[~near]
        among, room = self._near(candidates @ candidates.T), self.config.max_atoms - len(self.atoms)
        taken: list[int] = []
        for index in range(len(candidates)):
            if len(taken) < room and not among[index, taken].any():
                taken.append(index)
        self.atoms = torch.cat([self.atoms, candidates[taken]])
        self.labels = torch.cat([self.labels, named[taken]])

    def _near(self, cosines: Tensor) -> Tensor:
        """Whether a token is nearly an atom; where codes have either sign, so is its opposite."""
        return (cosines.abs() if self.config.form == "signed" else cosines) > self.config.duplicate

    def _loss(self, z: Tensor) -> Tensor:
        recons = torch.zeros_like(z)
        if len(self.atoms):
            pursue = gradient_pursuit if self.config.form == "pursuit" else matching_pursuit
            codes = pursue(z, self.atoms, self.config.k)
            recons = torch.einsum("nk,nkd->nd", codes.values, self.atoms[codes.indices])
        if self.config.form == "pursuit":
            return (z - recons).square().sum(1) / self.normalisation.variance
        return (torch.nn.functional.normalize(z, dim=1) - torch.nn.functional.normalize(recons, dim=1)).square().mean(1)

    def _waiting(self) -> tuple[Tensor, Tensor]:
        if not self.waiting:
            return torch.zeros(0, len(self.normalisation.mean)), torch.zeros(0, 2, dtype=torch.long)
        tokens, labels = zip(*self.waiting, strict=True)
        return torch.cat(tokens), torch.cat(labels)
