"""How much of what a model does survives when a dictionary stands in for an activation."""

__all__ = ["Fidelity", "Point", "fidelity", "given_names", "mean_token", "scaled", "zero_shot_accuracy"]

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vit_lens.dictionaries.denoisers import Denoises
from vit_lens.dictionaries.dictionary import Dictionary
from vit_lens.dictionaries.semantics import Semantics
from vit_lens.dictionaries.source import ActivationSource
from vit_lens.dictionaries.tokens import reads_text
from vit_lens.errors import DictionaryError, expect, nearest
from vit_lens.hooking import LoudHookedRootModule
from vit_lens.texts import TextBank

Metric = Callable[[Float[Tensor, "input d_embed"], Float[Tensor, "input d_embed"]], Float[Tensor, " input"]]


@dataclass(frozen=True)
class Point:
    """One dictionary with one number of codes.

    Attributes:
        name: The dictionary.
        k: The number of codes that was asked for; None for one that counts none.
        l0: How many codes of a token were not zero, on average.
        value: The metric, averaged over inputs.
        fidelity: The same between mean ablation (0) and the model itself (1).

    >>> Point("sae", 8, 7.5, 0.9, 0.8).fidelity
    0.8
    """

    name: str
    k: int | None
    l0: float
    value: float
    fidelity: float


@dataclass(frozen=True)
class Fidelity:
    """What :func:`fidelity` found.

    Attributes:
        clean: The metric of the model itself.
        ablated: The metric where every token of the site is the mean token.
        points: The dictionaries, each with its numbers of codes.
        n: The number of inputs.
        metric: What is measured, in words.
        is_loss: Whether less of it is better.

    >>> found = Fidelity(1.0, 0.2, (Point("sae", 8, 7.5, 0.84, 0.8),), 50)
    >>> found.curve("sae")
    [(7.5, 0.8)]
    """

    clean: float
    ablated: float
    points: tuple[Point, ...]
    n: int
    metric: str = ""
    is_loss: bool = False

    def curve(self, name: str) -> list[tuple[float, float]]:
        """Return (L0, fidelity) of one dictionary, fewest codes first.

        Args:
            name: The dictionary.

        Raises:
            DictionaryError: There is none of that name.
        """
        found = sorted((point.l0, point.fidelity) for point in self.points if point.name == name)
        if not found:
            raise DictionaryError(f"no dictionary {name!r}; nearest: {nearest(name, {p.name for p in self.points})}")
        return found


@torch.no_grad()
def fidelity(
    model: LoudHookedRootModule,
    dictionaries: Dictionary | Mapping[str, Dictionary],
    inputs: Any,
    metric: Metric | None = None,
    *,
    site: str | None = None,
    ks: Sequence[int] | None = None,
    batch_size: int = 32,
) -> Fidelity:
    """Measure a model's output while dictionaries stand in for an activation, without their error terms.

    The scale is that of mean ablation, which no dictionary should fall below, and of the model itself. Give the
    controls beside the dictionary: ``{"sae": found, "pca": pca_control(...), ...}``.

    Args:
        model: A hooked model whose output is [input d_embed].
        dictionaries: One, or several by name, all of one site.
        inputs: Images, pixels or prompts, none of which they were learnt from.
        metric: A function of (outputs, the model's own outputs) that gives a number for each input; None for the cosine
            of the two. :func:`zero_shot_accuracy` makes one.
        site: The hook point, or its address; None for the dictionaries' own.
        ks: Numbers of codes to ask of dictionaries that count them; None for their own.
        batch_size: How many inputs run at once.

    Raises:
        DictionaryError: A dictionary does not belong there, or mean ablation changes nothing.

    >>> found = vl.dictionaries.random_dictionary(128, 256, k=16, site="blocks.5.hook_resid_post")
    >>> result = vl.dictionaries.fidelity(model, found, images, ks=[2, 64])
    >>> round(result.clean, 4), [point.k for point in result.points]
    (1.0, [2, 64])
    >>> result.points[0].fidelity < result.points[1].fidelity
    True
    """
    named, first = given_names(dictionaries)
    if isinstance(model, Denoises):
        raise DictionaryError("a diffusion model gives pictures; vit_lens.dictionaries.denoising_fidelity measures it")
    measure = _cosine if metric is None else metric
    name = first.check(model, site)
    source = ActivationSource.of_model(
        model, inputs, name, tokens=first.origin.tokens, stream=first.origin.stream, inputs_at_once=batch_size
    )
    clean = _run(model, inputs, batch_size)
    return scaled(
        model, named, name, lambda: measure(_run(model, inputs, batch_size), clean), source, ks=ks,
        words="cosine to the model's own output" if metric is None else getattr(metric, "__name__", ""),
    )  # fmt: skip


def given_names(dictionaries: Dictionary | Mapping[str, Dictionary]) -> tuple[dict[str, Dictionary], Dictionary]:
    """Return dictionaries by name, and the first of them.

    Raises:
        DictionaryError: There are none.
    """
    named = {"dictionary": dictionaries} if isinstance(dictionaries, Dictionary) else dict(dictionaries)
    if not named:
        raise DictionaryError("no dictionaries; give one, or several by name")
    return named, next(iter(named.values()))


def mean_token(source: ActivationSource) -> tuple[Float[Tensor, " d"], int]:
    """Return the mean of the tokens of a source, in float64, and how many there are."""
    total, n = torch.zeros(1, dtype=torch.float64), 0
    for batch in source.in_order():
        total, n = total + batch.tokens.double().sum(0).cpu(), n + len(batch.tokens)
    return total / n, n


def scaled(
    model: LoudHookedRootModule, named: Mapping[str, Dictionary], name: str, values: Callable[[], Tensor],
    source: ActivationSource, *, ks: Sequence[int] | None = None, words: str = "", is_loss: bool = False, **acts: Any,
) -> Fidelity:  # fmt: skip
    """Measure a model as it is, with the mean token in the place of every token, and with each dictionary.

    Args:
        model: A hooked model.
        named: The dictionaries, of one site.
        name: The hook point.
        values: Runs the model with the hooks that are on, and gives a number for each input.
        source: The tokens that dictionaries stand in for, whose mean is taken.
        ks: Numbers of codes to ask of dictionaries that count them; None for their own.
        words: What is measured.
        is_loss: Whether less of it is better.
        **acts: At which steps and in which branch they act, as :func:`spliced` takes it.

    Raises:
        DictionaryError: Mean ablation changes nothing.
    """
    mean, n_tokens = mean_token(source)
    whole = float(values().double().mean())
    with model.spliced(_constant(next(iter(named.values())), mean), name, error_term=False, **acts):
        none = float(values().double().mean())
    if not abs(whole - none) > 1e-9 * max(1.0, abs(whole)):
        raise DictionaryError(f"the metric is {whole:g} with the mean token at {name} as well; it says nothing there")
    points = []
    for label, dictionary in named.items():
        counts = dictionary.semantics.k is not None
        for k in ks if ks is not None and counts else [dictionary.semantics.k]:
            own, seen = dictionary.with_k(k) if counts and k is not None else dictionary, _Count()
            with (
                model.spliced(own, name, error_term=False, **acts),
                model.hooks([(f"{name}.hook_sae_acts_post", seen)]),
            ):
                value = float(values().double().mean())
            points.append(Point(label, k, seen.n / n_tokens, value, (value - none) / (whole - none)))
    return Fidelity(whole, none, tuple(points), len(source.inputs), words, is_loss)


def zero_shot_accuracy(bank: TextBank, labels: Sequence[str]) -> Metric:
    """Return the metric of :func:`fidelity` that is 1 where the nearest caption of an image is its label.

    Args:
        bank: Captions, embedded for the model.
        labels: The right caption of each image.

    Raises:
        TextError: A label is no caption of the bank.

    >>> metric = vl.dictionaries.zero_shot_accuracy(bank, ["a blue star", "a red ring"])
    >>> metric(model(pixels), model(pixels))
    tensor([1., 1.])
    """
    right = torch.tensor([bank.index(label) for label in labels])

    def metric(outputs: Tensor, clean: Tensor) -> Tensor:
        if len(outputs) != len(right):
            raise DictionaryError(f"{len(right)} labels for {len(outputs)} images; expected one for each")
        return (bank.cosines(outputs).argmax(-1).cpu() == right).float()

    return metric


class _Count:
    """A hook that counts the codes that are not zero."""

    only_reads = True

    def __init__(self) -> None:
        self.n = 0

    def __call__(self, codes: Tensor, hook: HookPoint) -> None:
        self.n += int((codes != 0).sum())


def _cosine(outputs: Tensor, clean: Tensor) -> Tensor:
    return F.cosine_similarity(outputs, clean, dim=-1)


def _constant(dictionary: Dictionary, mean: Tensor) -> Dictionary:
    """Return a dictionary that decodes to the mean, whatever the token."""
    one = torch.zeros(1, len(mean), dtype=torch.float64, device=dictionary.W_dec.device)
    return replace(
        dictionary, W_dec=one, b_dec=mean.to(one), W_enc=one.T.clone(), b_enc=one[:, 0].clone(), threshold=None,
        metric=None, labels=None, frequency=None, semantics=Semantics.plain("relu"), statistics={},
    )  # fmt: skip


def _run(model: Any, inputs: Any, batch_size: int) -> Tensor:
    outputs: list[Tensor] = []
    for start in range(0, len(inputs), batch_size):
        part = inputs[start : start + batch_size]
        if not isinstance(part, Tensor) and not reads_text(model) and hasattr(model, "preprocess"):
            part = model.preprocess(part)
        outputs.append(model(part))
        expect(outputs[-1], Tensor, "the model's output", DictionaryError, "[input d_embed]")
    return torch.cat(outputs)
