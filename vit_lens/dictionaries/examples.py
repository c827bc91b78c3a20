"""What features fire on: the strongest inputs and weaker ones, with the activation of every token."""

__all__ = ["Band", "Example", "FeatureExamples", "bands_of", "feature_examples", "spread_features"]

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from vit_lens.addresses import as_index
from vit_lens.config import PatchEmbedConfig
from vit_lens.dictionaries.denoiser_tokens import DenoiserTokens
from vit_lens.dictionaries.dictionary import Dictionary
from vit_lens.dictionaries.drawn import at_strongest, grid_of, pictures_of, texts_of
from vit_lens.dictionaries.source import ActivationSource
from vit_lens.dictionaries.source_like import source_like
from vit_lens.dictionaries.tokens import reads_text, token_rule
from vit_lens.errors import DictionaryError
from vit_lens.hooking import LoudHookedRootModule
from vit_lens.identity import fingerprint

_FROM = (0.0, 0.25, 0.5, 0.75)  # the ranks, as shares of the inputs on which a feature fires, where bands begin
_TOKENS_AT_ONCE = 2048  # codes of all features are held for so many tokens
_SIDE = 128  # pixels of a picture that is kept


@dataclass(frozen=True, eq=False)
class Example:
    """One input on which a feature fires.

    Attributes:
        input: Which of the inputs.
        activation: The code that is largest in size, over the tokens of the input.
        position: The position of that token.
        map: The code of every token of the input by its position; NaN at tokens that the dictionary is not of.
        step: Of a diffusion model the step that all of these are of, where the code is largest; None of others.

    >>> Example(3, 2.5, 1, torch.tensor([float("nan"), 2.5, 0.0])).position
    1
    """

    input: int
    activation: float
    position: int
    map: Float[Tensor, " pos"]
    step: int | None = None


@dataclass(frozen=True, eq=False)
class Band:
    """Inputs of one part of the ranks of all on which a feature fires, strongest first.

    Attributes:
        start: Where the part begins: 0 for the strongest, 0.5 for those behind the stronger half.
        examples: The first inputs of the part.

    >>> Band(0.5, ()).start
    0.5
    """

    start: float
    examples: tuple[Example, ...]


@dataclass(frozen=True, eq=False, repr=False)
class FeatureExamples:
    """What some features fire on, over the quantiles of their activation; :func:`feature_examples` makes it.

    The strongest inputs alone make any direction look pure; the weaker ones say whether it is.

    Attributes:
        content: Digits that identify the dictionary.
        features: The features.
        bands: Of each feature its bands, strongest first.
        frequency: Of each feature the share of tokens on which it fires.
        n_firing: Of each feature on how many inputs it fires.
        n_inputs: How many inputs were read.
        grid: Rows and columns of the patches; None for prompts, and where the tokens are none of an image.
        n_prefix: How many positions come before the patches.
        pictures: Of inputs that are shown, what the tower saw of them, or what a diffusion model drew, at most 128
            pixels wide.
        texts: Of prompts that are shown, their tokens, where features are of these.
        prompts: Of pictures that were drawn, the prompts.

    >>> found = vl.dictionaries.random_dictionary(128, 40, k=4, site="blocks.5.hook_resid_post")
    >>> examples = feature_examples(found, model, images, [3, 17])
    >>> examples
    FeatureExamples(2 features on 2 inputs)
    >>> examples.frequency.shape, [len(bands) for bands in examples.bands]
    (torch.Size([2]), [4, 4])
    """

    content: str
    features: tuple[int, ...]
    bands: tuple[tuple[Band, ...], ...]
    frequency: Float[Tensor, " feature"]
    n_firing: tuple[int, ...]
    n_inputs: int
    grid: tuple[int, int] | None
    n_prefix: int
    pictures: dict[int, Image.Image]
    texts: dict[int, list[str]]
    prompts: dict[int, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"FeatureExamples({len(self.features)} features on {self.n_inputs} inputs)"

    def on_grid(self, example: Example) -> Float[Tensor, "grid_row grid_column"]:
        """Return the codes of an input's patches, where these lie in the image.

        Args:
            example: One of the examples.

        Raises:
            DictionaryError: There is no grid.
        """
        if self.grid is None:
            raise DictionaryError("these examples are not of patches; example.map has the codes by position")
        return example.map[self.n_prefix :][: math.prod(self.grid)].view(self.grid)


@torch.no_grad()
def feature_examples(
    dictionary: Dictionary,
    model: LoudHookedRootModule,
    inputs: Any,
    features: Sequence[int] | None = None,
    *,
    n: int = 24,
    per_band: int = 4,
    site: str | None = None,
    inputs_at_once: int = 32,
    **run: Any,
) -> FeatureExamples:
    """Find the inputs on which features fire strongest, and such as lie behind a quarter, half and three quarters.

    An input counts once, with its strongest token. The inputs are read twice, the second time those that are shown; in
    between one number of each input and feature is held. Equal activations go in the order of the inputs, so the same
    inputs give the same examples.

    Args:
        dictionary: The dictionary.
        model: The model that it is of.
        inputs: Images, pixels or prompts, which it was not learnt from.
        features: The features; None takes ``n`` of :func:`spread_features`.
        n: How many, where ``features`` is None.
        per_band: How many inputs of each band are kept.
        site: The hook point, or its address; None for the dictionary's own.
        inputs_at_once: How many inputs the model runs on at once.
        **run: Of a diffusion model what the dictionary does not say of its runs: ``at_steps``, ``noise_seed``,
            ``steps``, ``height``. Its features are shown at the step where they are largest in a draw.

    Raises:
        DictionaryError: The dictionary does not belong there, there is no such feature, or nothing to show.

    >>> found = vl.dictionaries.random_dictionary(128, 40, k=4, site="blocks.5.hook_resid_post")
    >>> examples = feature_examples(found, model, images, n=5)
    >>> strongest = examples.bands[0][0].examples[0]
    >>> strongest.activation == float(strongest.map.max()), examples.on_grid(strongest).shape
    (True, torch.Size([4, 4]))
    """
    for name, value in {"n": n, "per_band": per_band, "inputs_at_once": inputs_at_once}.items():
        if (as_index(value) or 0) < 1:
            raise DictionaryError(f"{name}={value!r}; expected a whole number, at least 1")
    name = dictionary.check(model, site)
    at_once = {"buffer": inputs_at_once, "inputs_at_once": inputs_at_once}
    source = source_like(dictionary, model, inputs, name, **at_once, **run)
    chosen = spread_features(dictionary, source, n) if features is None else [*map(dictionary.feature, features)]
    if not chosen:
        raise DictionaryError("no features to show; name some, counted from 0")
    largest, frequency = _largest(dictionary, source, chosen)
    picked = [bands_of(column, per_band) for column in largest.T]
    shown = sorted({index for bands in picked for _, band in bands for index in band})
    positions = None if reads_text(model) else token_rule(model, dictionary.origin.tokens)
    maps = _Maps(dictionary, source, chosen, positions)
    wanted = [{index for _, band in bands for index in band} for bands in picked]
    found = {start: maps.read(shown[start : start + inputs_at_once], wanted) for start in
             range(0, len(shown), inputs_at_once)}  # fmt: skip
    examples = {key: one for part in found.values() for key, one in part.items()}
    bands = tuple(
        tuple(Band(at, tuple(examples[k, index] for index in band)) for at, band in of) for k, of in enumerate(picked)
    )
    cfg = getattr(model, "cfg", None)
    grid = cfg.grid if isinstance(cfg, PatchEmbedConfig) and maps.by_position else None
    if isinstance(reader := source.reader, DenoiserTokens):
        grid, texts = grid_of(reader), texts_of(reader, shown)
        pictures = {} if texts else pictures_of(reader, shown, _SIDE)
        prompts = {index: inputs[index] for index in shown}
    else:
        texts = {index: _pieces(model, inputs[index]) for index in shown} if reads_text(model) else {}
        pictures = {} if reads_text(model) else {index: _picture(model, inputs, index) for index in shown}
        prompts = {}
    return FeatureExamples(
        content=fingerprint({"W_dec": dictionary.W_dec}), features=tuple(chosen), bands=bands, frequency=frequency,
        n_firing=tuple((largest != 0).sum(0).tolist()), n_inputs=len(source.inputs), grid=grid,
        n_prefix=0 if grid is None or cfg is None else cfg.n_prefix, pictures=pictures, texts=texts, prompts=prompts,
    )  # fmt: skip


def spread_features(dictionary: Dictionary, source: ActivationSource, n: int) -> list[int]:
    """Return features that fire, evenly spread from the most to the least frequent, so that nobody chose them by eye.

    Args:
        dictionary: The dictionary.
        source: Tokens to count on, where it was not measured how often features fire.
        n: How many features there are at most.

    Raises:
        DictionaryError: No feature fires.

    >>> source = vl.ActivationSource.of_array(torch.randn(300, 8, generator=torch.Generator().manual_seed(0)))
    >>> len(spread_features(vl.dictionaries.random_dictionary(8, 20, k=3), source, 5))
    5
    """
    frequency = dictionary.frequency
    if frequency is None:
        frequency = _frequency(dictionary, source)
    order = frequency.argsort(descending=True, stable=True)
    live = order[frequency[order] > 0].tolist()
    if not live:
        raise DictionaryError(f"none of {dictionary.n_features} features fires")
    at = np.linspace(0, len(live) - 1, min(n, len(live))).round().astype(int)
    return [live[index] for index in at]


def _largest(
    dictionary: Dictionary, source: ActivationSource, chosen: list[int]
) -> tuple[Float[Tensor, "input feature"], Float[Tensor, " feature"]]:
    """Return the code of each input that is largest in size, and the share of tokens on which each feature fires."""
    found = torch.zeros(len(source.inputs), len(chosen), dtype=torch.float64)
    fired, n = torch.zeros(len(chosen), dtype=torch.float64), 0
    for codes, labels in _codes(dictionary, source, source.inputs, chosen):
        rows = labels[:, 0]
        for index in rows.unique().tolist():
            own = torch.cat([found[index][None], codes[rows == index]])
            found[index] = own.gather(0, own.abs().argmax(0, keepdim=True))[0]
        fired, n = fired + (codes != 0).sum(0), n + len(codes)
    return found, (fired / n).float()


def _frequency(dictionary: Dictionary, source: ActivationSource) -> Tensor:
    fired, n = torch.zeros(dictionary.n_features, dtype=torch.float64), 0
    for codes, _ in _codes(dictionary, source, source.inputs, None):
        fired, n = fired + (codes != 0).sum(0), n + len(codes)
    return (fired / n).float()


def _codes(dictionary: Dictionary, source: ActivationSource, inputs: Sequence[int], chosen: list[int] | None) -> Any:
    """Give codes [token chosen] and labels, of bounded parts of the inputs."""
    for start in range(0, len(inputs), source.buffer):
        tokens, labels = source.reader.read(inputs[start : start + source.buffer])
        for first in range(0, len(tokens), _TOKENS_AT_ONCE):
            part = slice(first, first + _TOKENS_AT_ONCE)
            codes = dictionary.encode(tokens[part].to(dictionary.W_dec.device))
            yield (codes if chosen is None else codes[:, chosen]).double().cpu(), labels[part]


def bands_of(values: Float[Tensor, " input"], per_band: int) -> list[tuple[float, list[int]]]:
    """Return where bands begin, and the first inputs of each: of all on which a feature fires, strongest first.

    Args:
        values: How much the feature fires on each input; 0 where it is silent.
        per_band: How many inputs of each band.

    >>> bands_of(torch.tensor([0.0, 3.0, 1.0, 4.0, 2.0]), 1)
    [(0.0, [3]), (0.25, [1]), (0.5, [4]), (0.75, [2])]
    """
    order = values.abs().argsort(descending=True, stable=True)
    firing = order[values[order] != 0].tolist()
    starts = [math.ceil(share * len(firing)) for share in _FROM]
    ends = [*starts[1:], len(firing)]
    return [
        (share, firing[start : min(start + per_band, end)])
        for share, start, end in zip(_FROM, starts, ends, strict=True)
    ]


class _Maps:
    """Codes of every token of the inputs that are shown."""

    def __init__(
        self, dictionary: Dictionary, source: ActivationSource, chosen: list[int], positions: list[int] | None
    ):
        self.dictionary, self.source, self.chosen, self.positions = dictionary, source, chosen, positions
        self.by_position = True  # whether places are positions of the tower's tokens

    def read(self, inputs: list[int], wanted: list[set[int]]) -> dict[tuple[int, int], Example]:
        parts = list(_codes(self.dictionary, self.source, inputs, self.chosen))
        codes, labels = torch.cat([part for part, _ in parts]), torch.cat([part for _, part in parts])
        found = {}
        for index in inputs:
            own = labels[:, 0] == index
            if isinstance(reader := self.source.reader, DenoiserTokens):
                for k, indices in enumerate(wanted):
                    if index in indices:
                        step, at, map_ = at_strongest(codes[own, k], labels[own, 1], reader.n_positions)
                        found[k, index] = Example(index, float(map_[at]), at, map_, step)
                continue
            map_ = self._placed(codes[own], labels[own, 1])
            for k, indices in enumerate(wanted):
                if index in indices:
                    column = map_[:, k]
                    at = int(column.nan_to_num().abs().argmax())
                    found[k, index] = Example(index, float(column[at]), at, column.clone())
        return found

    def _placed(self, codes: Tensor, places: Tensor) -> Tensor:
        cfg: Any = getattr(getattr(self.source.reader, "model", None), "cfg", None)
        n_ctx = getattr(cfg, "n_ctx", None)
        if isinstance(cfg, PatchEmbedConfig) and n_ctx is not None:
            at = torch.arange(n_ctx) if self.positions is None else torch.tensor(self.positions)
            if len(at) == len(codes):
                out = torch.full((n_ctx, codes.shape[1]), torch.nan, dtype=codes.dtype)
                out[at] = codes
                return out.float()
            self.by_position = False
        out = torch.full((int(places.max()) + 1, codes.shape[1]), torch.nan, dtype=codes.dtype)
        out[places] = codes
        return out.float()


def _picture(model: Any, inputs: Any, index: int) -> Image.Image:
    """Return what the tower saw of an input."""
    from vit_lens.images import to_display

    one, spec = inputs[index], getattr(model, "preprocess_spec", None)
    if isinstance(one, Tensor) and isinstance(inputs, Tensor):
        pixels = one.detach().float().cpu()
        if spec is None:
            low, high = pixels.amin(), pixels.amax()
            pixels = (pixels - low) / (high - low).clamp(min=torch.finfo(pixels.dtype).tiny)
        else:
            pixels = pixels * torch.tensor(spec.std).view(3, 1, 1) + torch.tensor(spec.mean).view(3, 1, 1)
        array = (pixels.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        picture = Image.fromarray(array if array.shape[2] == 3 else array[..., 0]).convert("RGB")
    else:
        (picture,) = to_display([one], spec)
    picture.thumbnail((_SIDE, _SIDE))
    return picture


def _pieces(model: Any, prompt: Any) -> list[str]:
    (pieces,) = model.to_str_tokens([prompt] if isinstance(prompt, str) else prompt[None])
    return pieces
