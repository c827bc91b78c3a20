"""Learning a dictionary: one call, whatever learns it, with statistics on inputs that were held out."""

__all__ = ["TRAINERS", "Checkpoint", "Trainer", "fit", "trainer"]

import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from vit_lens.dictionaries.dictionary import Dictionary
from vit_lens.dictionaries.normalisation import Normalisation, NormalisationKind
from vit_lens.dictionaries.semantics import Origin
from vit_lens.dictionaries.source import ActivationSource
from vit_lens.dictionaries.statistics import evaluate
from vit_lens.errors import DictionaryError, OutputError, expect, nearest
from vit_lens.files import as_path, check_fields, file_tensors, open_tensors, parse_json, save_tensors

OfTrainer = TypeVar("OfTrainer", bound="type[Trainer]")

_CHECKPOINT = "vit_lens.dictionary_training.1"
_TOO_MANY_DEAD, _ENOUGH = 0.1, 10  # firings of each feature, on average: with fewer, silence says little
_ADVICE = "remove it, or choose another checkpoint="


class Checkpoint:
    """The state of a training on disk: whole or absent, and refused by any other training.

    Args:
        path: The file; None keeps nothing.
        settings: What the training is, in words: another is refused.

    >>> kept = Checkpoint(tmp / "state.safetensors", {"seed": 0})
    >>> kept.save({"x": torch.ones(2)}, {"step": 3})
    >>> kept.load()
    ({'x': tensor([1., 1.])}, {'step': 3})
    >>> Checkpoint(tmp / "state.safetensors", {"seed": 1}).load()
    Traceback (most recent call last):
    vit_lens.errors.OutputError: ...state.safetensors is the state of another training; remove it, or choose another ...
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any]):
        self.path, self._settings = path, json.dumps(settings, sort_keys=True, default=str)

    def save(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Write the state; where that is impossible, the one before stays.

        Raises:
            OutputError: The file cannot be written.
        """
        if self.path is not None:
            told = {"format": _CHECKPOINT, "settings": self._settings, "numbers": json.dumps(dict(numbers))}
            save_tensors(tensors, self.path, told)

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the state that was written last; None where there is none.

        Raises:
            OutputError: The file is damaged, or of another training.
        """
        if self.path is None or not self.path.exists():
            return None
        what: dict[str, Any] = {"what": "a training's state", "error": OutputError, "advice": _ADVICE}
        with open_tensors(self.path, [_CHECKPOINT], **what) as (file, meta):
            if meta["settings"] != self._settings:
                raise OutputError(f"{self.path} is the state of another training; {_ADVICE}")
            return file_tensors(file), parse_json(meta["numbers"], str(self.path), OutputError, _ADVICE)


@dataclass(frozen=True, kw_only=True)
class Trainer(ABC):
    """What learns a dictionary: its settings, and how. A further one is one file: a dataclass below :func:`trainer`.

    Attributes:
        n_tokens: How many tokens are learnt from at most.
        normalisation: What activations are scaled by meanwhile; it is folded into the dictionary.
        n_statistics: How many tokens its statistics are of.
        clip: The largest size of a normalised value while learning; None for no bound. The dictionary does not clip.
        seed: The seed of all that is drawn.

    >>> [name for name in vl.dictionaries.TRAINERS]
    ['itda', 'sae_lens', 'topk']
    """

    n_tokens: int = 1_000_000
    normalisation: NormalisationKind = "std"
    n_statistics: int = 50_000
    clip: float | None = None
    seed: int = 0

    @abstractmethod
    def learn(
        self, source: ActivationSource, normalisation: Normalisation, checkpoint: Checkpoint
    ) -> tuple[Dictionary, dict[str, Any]]:
        """Return a dictionary of normalised activations, without an origin, and numbers of how it was learnt.

        Args:
            source: What is learnt from; nothing of it is held out.
            normalisation: What its tokens are scaled by.
            checkpoint: Where the state is kept, so that a training that was stopped goes on to the same bits.
        """


TRAINERS: dict[str, type[Trainer]] = {}
"""What can learn a dictionary, by name; :func:`trainer` adds one."""


def trainer(name: str) -> Callable[[OfTrainer], OfTrainer]:
    """Register a :class:`Trainer` under a name.

    Args:
        name: What ``fit`` knows it by.

    >>> @trainer("mean")
    ... @dataclass(frozen=True, kw_only=True)
    ... class Mean(Trainer):
    ...     def learn(self, source, normalisation, checkpoint):
    ...         d = len(normalisation.mean)
    ...         semantics = vl.dictionaries.Semantics.plain("signed", 1)
    ...         return Dictionary(W_dec=torch.eye(d), b_dec=torch.zeros(d), semantics=semantics), {}
    >>> fit(ActivationSource.of_array(torch.randn(50, 4)), {"trainer": "mean"})
    Dictionary(4 features of width 4, signed k=1, of no site)
    >>> TRAINERS.pop("mean").__name__
    'Mean'
    """

    def register(cls: OfTrainer) -> OfTrainer:
        TRAINERS[name] = cls
        TRAINERS.update({key: TRAINERS.pop(key) for key in sorted(TRAINERS)})
        return cls

    return register


def fit(
    source: ActivationSource | tuple[ActivationSource, ActivationSource],
    config: Trainer | Mapping[str, Any],
    *,
    held_out: float = 0.1,
    checkpoint: str | Path | None = None,
) -> Dictionary:
    """Learn a dictionary, and measure it on inputs that it did not see.

    Args:
        source: Where the tokens come from; or two, what is learnt from and what is held out.
        config: A trainer, such as ``TopK(n_features=4096, k=32)``; or its settings with ``{"trainer": "topk"}``.
        held_out: The share of inputs, never of tokens, that is held out.
        checkpoint: A file that keeps the state; a training that was stopped goes on there. None keeps none.

    Returns:
        The dictionary, with its statistics on what was held out, and where it belongs. More than a tenth of dead
        features is warned of, where there are enough held-out tokens to tell.

    Raises:
        DictionaryError: There is no such trainer or setting, or it cannot learn from this.
        OutputError: The checkpoint cannot be written, or is another training's.

    >>> source = vl.ActivationSource.of_model(model, images * 2, "L5.resid_post", tokens="patches", batch_size=16)
    >>> found = vl.dictionaries.fit(source, vl.dictionaries.ITDA(k=4, threshold=0.1), held_out=0.5)
    >>> found.origin.site, found.origin.tokens, found.semantics.encoder
    ('blocks.5.hook_resid_post', 'patches', 'pursuit')
    >>> sorted(found.statistics["held_out"])[:3]
    ['dead', 'dense', 'fvu']
    """
    own = _as_trainer(config)
    train, held = source if isinstance(source, tuple) else source.split(held_out)
    normalisation = Normalisation.fit(
        (batch.tokens for batch in train.epoch()), own.normalisation, n_tokens=own.n_statistics
    )
    name = next(name for name, cls in TRAINERS.items() if cls is type(own))
    settings = {"trainer": name, **asdict(own)}
    kept = None if checkpoint is None else as_path(checkpoint, OutputError)
    learnt, numbers = own.learn(train, normalisation, Checkpoint(kept, {**settings, "source": train.content}))
    words = f"{name}, {normalisation.kind} of {normalisation.n_tokens} tokens"
    origin = Origin(**vars(train.provenance), learnt=words)
    found = replace(normalisation.fold(learnt), origin=origin)
    measured = evaluate(found, held)
    if measured.dead > _TOO_MANY_DEAD and measured.n_tokens * measured.l0 >= _ENOUGH * found.n_features:
        warnings.warn(
            f"{measured.dead:.0%} of {found.n_features} features fired on none of {measured.n_tokens} held-out tokens: "
            "learn from more tokens, fewer features, or with normalisation='std'",
            stacklevel=2,
        )
    statistics = {"held_out": measured.numbers(), "training": {**settings, **numbers, "n_inputs": len(train.inputs)}}
    return replace(found, frequency=measured.frequency, statistics=statistics)


def _as_trainer(config: Any) -> Trainer:
    if isinstance(config, Trainer):
        if type(config) not in TRAINERS.values():
            raise DictionaryError(f"{type(config).__name__} is not registered: @vit_lens.dictionaries.trainer('name')")
        return config
    expect(config, Mapping, "config", DictionaryError, "a trainer such as TopK(...), or {'trainer': 'topk', ...}")
    said = dict(config)
    name = said.pop("trainer", None)
    if name not in TRAINERS:
        raise DictionaryError(f"trainer={name!r}; nearest: {nearest(str(name), TRAINERS)}")
    return TRAINERS[name](**check_fields(TRAINERS[name], said, f"the settings of {name}", DictionaryError))
