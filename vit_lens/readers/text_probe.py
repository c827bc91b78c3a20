"""Linear probes of a text encoder, one for each site: what is there to be read, whatever a decoder makes of it."""

__all__ = ["Probe", "TextProbe"]

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from vit_lens.addresses import Site
from vit_lens.attribution import check_tensor, finite
from vit_lens.errors import LensError, OutputError, ReferenceMismatchError, TextError, nearest
from vit_lens.files import as_path, load_fields, save_fields
from vit_lens.identity import fingerprint
from vit_lens.lenses import PromptReader, Sites, TextDiffusionLens, TextRun

_FORMAT = "vit_lens.text_probe.1"
_ADVICE = "TextProbe.fit(encoder, prompts, labels).save(path) makes one"
_STEPS = 1000


@runtime_checkable
class Probe(Protocol):
    """What a sweep asks of a probe; :class:`TextProbe` is one, and any object with these will do.

    Attributes:
        answers: The names of its answers.
        encoder: The name of the encoder whose sites it reads.
        content: Digits that identify it, for records.

    >>> isinstance("a probe", vl.readers.Probe)
    False
    """

    @property
    def answers(self) -> Sequence[str]: ...
    @property
    def encoder(self) -> str: ...
    @property
    def content(self) -> str: ...
    def reads(self, site: Site) -> bool:
        """Return whether it answers at a site."""
        ...

    def scores(self, run: TextRun, site: Site) -> Float[Tensor, "batch answer"]:
        """Return how sure it is of each answer, 0 to 1, at a site of each prompt of a run."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TextProbe:
    """Probes that were fitted at each site anew, so that a basis that turns from layer to layer does not matter.

    Attributes:
        encoder_id: The id of the encoders.
        encoder: The name of the encoder whose sites are read.
        position: The position that is read, as :meth:`vit_lens.TextRun.places` takes it; of several the mean.
        answers: The names of the answers.
        sites: The sites along the site axis.
        weight: Of each answer at each site.
        bias: The same, added.
        n: The number of prompts.

    Raises:
        LensError: There is not one for each site and answer, or a number is not finite.

    >>> prompts, labels = ["a red star", "a big star", "a red ring", "a big ring"], ["star", "star", "ring", "ring"]
    >>> probe = vl.readers.TextProbe.fit(text_to_image, prompts, labels)
    >>> probe
    TextProbe(text_encoder@eos, ring or star, 4 sites, n=4)
    >>> run = vl.TextRun.of(text_to_image, "a green star")
    >>> probe.scores(run, vl.Site.parse("L2.resid_post")).shape
    torch.Size([1, 2])
    >>> vl.readers.TextProbe.load(probe.save(tmp / "shape.safetensors")).content == probe.content
    True
    """

    encoder_id: str
    encoder: str
    position: str
    answers: tuple[str, ...]
    sites: tuple[Site, ...]
    weight: Float[Tensor, "site answer d_model"]
    bias: Float[Tensor, "site answer"]
    n: int

    def __post_init__(self) -> None:
        check_tensor("weight", self.weight, f"{len(self.sites)} {len(self.answers)} d_model")
        check_tensor("bias", self.bias, f"{len(self.sites)} {len(self.answers)}")
        if not (self.weight.isfinite().all() and self.bias.isfinite().all()):
            raise LensError(f"a probe's weights are not finite; {_ADVICE}")

    @classmethod
    def fit(
        cls, reader: PromptReader, prompts: Sequence[str], labels: Sequence[str], *,
        sites: Sites = ("L0.resid_pre", "resid_post"), encoder: str | None = None, position: str = "eos",
        penalty: float | int = 1.0, progress: bool = False,
    ) -> "TextProbe":  # fmt: skip
        """Fit one probe for each site: multinomial logistic regression on standardised features, in float64.

        Args:
            reader: A :class:`vit_lens.decoders.PromptEncoder`.
            prompts: Texts; none that is swept, or a probe's answers are what it was told.
            labels: The right answer to each, two different ones at least.
            sites: Sites as ``Site.resolve`` takes them.
            encoder: The name of the encoder; None takes the one that the lens moves.
            position: The position that is read: ``"eos"``, ``4``, or a word that every prompt has, as ``'"star"'``.
            penalty: The weight of half the squared weights, against the sum over prompts of minus the log-likelihood.
            progress: Whether to show a bar.

        Raises:
            TextError: There are not as many labels as prompts, or they are all the same.
            UnknownSiteError: A site is not one of the encoder's.
            LensError: There is no such encoder, a prompt has no such position, or the penalty is not above 0.
        """
        answers = tuple(dict.fromkeys(sorted(map(str, labels))))
        if len(labels) != len(prompts) or len(answers) < 2:
            raise TextError(
                f"{len(labels)} labels with {len(answers)} different answers for {len(prompts)} prompts; expected one "
                "for each, and at least two answers"
            )
        told: dict[str, str] = {}
        for text, label in zip(prompts, map(str, labels), strict=True):
            if told.setdefault(text, label) != label:
                raise TextError(f"the prompt {text!r:.60} has two answers, {told[text]!r} and {label!r}; give it one")
        if finite("penalty", penalty, LensError) <= 0:
            raise LensError(f"penalty={penalty}; expected more than 0: weights of what can be told apart have no bound")
        layers = {name: tower.cfg.n_layers for name, tower in reader.towers.items()}
        name = TextDiffusionLens(encoder=encoder).moved(reader.format, layers).encoder
        own = Site.resolve(sites, reader.towers[name].cfg)
        features = []
        for text in tqdm(prompts, desc="probe", unit="prompt", disable=not progress):
            run = TextRun.of(reader, text)
            features.append(torch.stack([_at(run, name, str(position), site)[0].cpu().double() for site in own]))
        target = torch.tensor([answers.index(str(label)) for label in labels])
        fitted = [_logistic(x, target, len(answers), float(penalty)) for x in torch.stack(features, 1)]
        weight, bias = (torch.stack(parts) for parts in zip(*fitted, strict=True))
        return cls(
            encoder_id=reader.encoder_id, encoder=name, position=str(position), answers=answers, sites=tuple(own),
            weight=weight, bias=bias, n=len(prompts),
        )  # fmt: skip

    @classmethod
    def load(cls, path: str | Path) -> "TextProbe":
        """Read a saved probe.

        Raises:
            LensError: The file is missing, truncated, or not one of these.
        """
        fields = load_fields(cls, as_path(path, LensError), _FORMAT, what="a probe", error=LensError, advice=_ADVICE)
        fields["sites"] = tuple(map(Site.parse, fields["sites"]))
        return cls(**fields)

    def save(self, path: str | Path) -> Path:
        """Write the probe as safetensors, atomically.

        Raises:
            OutputError: The file cannot be written.
        """
        return save_fields(self, as_path(path, OutputError), _FORMAT)

    @property
    def content(self) -> str:
        """Sixteen digits that identify the probe by its numbers."""
        return fingerprint({"weight": self.weight.double(), "bias": self.bias.double()})

    def check(self, reader: PromptReader) -> "TextProbe":
        """Return the probe if it was fitted to these encoders.

        Raises:
            ReferenceMismatchError: It was fitted to others, or to the same in another precision.
        """
        if self.encoder_id != reader.encoder_id:
            raise ReferenceMismatchError(
                f"this probe was fitted to {self.encoder_id}; the encoders are {reader.encoder_id}: other weights, or "
                "the same in another precision. Fit their own: TextProbe.fit(encoder, prompts, labels)"
            )
        return self

    def reads(self, site: Site) -> bool:
        """Return whether a probe was fitted at a site."""
        return site in self.sites

    def scores(self, run: TextRun, site: Site) -> Float[Tensor, "batch answer"]:
        """Return the probability of each answer at a site of each prompt.

        Raises:
            ReferenceMismatchError: The run is of other encoders.
            LensError: No probe was fitted at the site, or a prompt has no such position.
        """
        self.check(run.encoder)
        if not self.reads(site):
            raise LensError(
                f"no probe was fitted at {site}; nearest: {nearest(str(site), map(str, self.sites))}. Name it in "
                "TextProbe.fit(..., sites=)"
            )
        place, x = self.sites.index(site), _at(run, self.encoder, self.position, site).cpu().double()
        return (x @ self.weight[place].T + self.bias[place]).softmax(-1)

    def accuracy(self, reader: PromptReader, prompts: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
        """Return the share of right answers at each site, on prompts that it was not fitted to.

        Args:
            reader: The encoders.
            prompts: Texts.
            labels: The right answer to each.

        Raises:
            TextError: There are not as many labels as prompts, or none.
        """
        if len(labels) != len(prompts) or not len(labels):
            raise TextError(f"{len(labels)} labels for {len(prompts)} prompts; expected one for each")
        right = dict.fromkeys(map(str, self.sites), 0)
        for text, label in zip(prompts, labels, strict=True):
            run = TextRun.of(reader, text)
            for site in self.sites:
                right[str(site)] += self.answers[int(self.scores(run, site).argmax())] == str(label)
        return {site: n / len(labels) for site, n in right.items()}

    def __repr__(self) -> str:
        said = f"{self.encoder}@{self.position}, {' or '.join(self.answers)}"
        return f"TextProbe({said:.80}, {len(self.sites)} sites, n={self.n})"


def _at(run: TextRun, encoder: str, position: str, site: Site) -> Float[Tensor, "batch d_model"]:
    """Return what a site holds or writes at a position; the mean, where that is several."""
    output, places = run.output(encoder, site), run.places(encoder, position)
    share = places.to(output) / places.sum(-1, keepdim=True)
    return (output * share[..., None]).sum(1)


def _logistic(
    x: Float[Tensor, "prompt d_model"], target: Int[Tensor, " prompt"], n_answers: int, penalty: float
) -> tuple[Float[Tensor, "answer d_model"], Float[Tensor, " answer"]]:
    """Return weight and bias of the convex problem's solution, for features as they are."""
    mean, spread = x.mean(0), x.std(0, correction=0)
    least = 1e-9 * x.abs().amax().clamp(min=1e-30)
    spread = torch.where(spread > least, spread, math.inf)  # what is constant but for rounding says nothing
    z = (x - mean) / spread
    weight = torch.zeros(n_answers, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(n_answers, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=_STEPS, tolerance_grad=1e-9, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        solver.zero_grad()
        found = torch.nn.functional.cross_entropy(z @ weight.T + bias, target, reduction="sum")
        found = found + penalty / 2 * weight.square().sum()
        found.backward()
        return found

    with torch.enable_grad():
        solver.step(loss)  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        return (found := weight / spread), bias - found @ mean
