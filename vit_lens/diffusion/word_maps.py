"""Where a picture's cells looked for each word of its prompt: cross-attention maps, and concept attention in FLUX."""

__all__ = ["WordMaps", "by_word", "kept_steps", "word_maps", "words_of"]

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.diffusion.attention import recorded_attention
from vit_lens.diffusion.concepts import recorded_concepts
from vit_lens.diffusion.hooked import HookedDiffusion
from vit_lens.errors import TextError, VitLensError, expect, nearest
from vit_lens.texts import PromptTokenizer, prompt_tokenizer

Kind = Literal["attention", "concepts"]


@dataclass(frozen=True, eq=False, repr=False)
class WordMaps:
    """A picture, and a map of it for each word.

    A map is what was read, and no more: a cell that read a word need not have drawn it, and what it read may have come
    from another word, since the text encoder mixes them.

    Attributes:
        prompt: The prompt.
        words: The words, in their order.
        values: For each step and word, the share of a cell's attention that a token of the word has, mean over heads,
            blocks and the word's tokens; with ``kind`` "concepts" the share of the cell's softmax over words.
        steps: The indices of the steps.
        n_tokens: How many tokens each word has.
        picture: The picture.
        kind: "attention", or "concepts".

    >>> sd = vl.HookedUNet.from_pretrained("mini-sd")
    >>> maps = vl.word_maps(sd, "a red star left of a blue ring", ["star", "ring"], seed=1)
    >>> maps, maps["star"].shape, maps.at_step(3).steps
    (WordMaps('a red star left of a blue ring': star, ring; 8 steps of [8, 8]), torch.Size([8, 8]), (3,))
    >>> maps["sta"]
    Traceback (most recent call last):
    vit_lens.errors.TextError: there is no map of 'sta'; nearest: 'star'
    """

    prompt: str
    words: tuple[str, ...]
    values: Float[Tensor, "step word h w"]
    steps: tuple[int, ...]
    n_tokens: tuple[int, ...]
    picture: Any
    kind: Kind

    def __getitem__(self, word: str) -> Float[Tensor, "h w"]:
        return self.values[:, self._index(word)].mean(0)

    def at_step(self, index: int) -> "WordMaps":
        """Return the maps of one step; the picture is that of all steps.

        Args:
            index: The step's index.

        Raises:
            VitLensError: It was not recorded.
        """
        if index not in self.steps:
            raise VitLensError(f"no step {index!r}; recorded are {', '.join(map(str, self.steps))}")
        place = self.steps.index(index)
        return replace(self, values=self.values[place : place + 1], steps=(self.steps[place],))

    @property
    def attention(self) -> dict[str, float]:
        """The share of all attention that went to each word, all its tokens together; the rest went to other tokens.

        With ``kind`` "concepts" it is the share of the picture, and all words have 1 together.
        """
        means = self.values.double().mean((0, 2, 3)).tolist()
        return {word: mean * n for word, mean, n in zip(self.words, means, self.n_tokens, strict=True)}

    @property
    def mass(self) -> dict[str, float]:
        """Each word's share of what went to the words."""
        found = self.attention
        return {word: one / sum(found.values()) for word, one in found.items()}

    def centre(self, word: str) -> tuple[float, float]:
        """Return the centre of a map's weight above its lowest value, (y, x) from (0, 0) to (1, 1).

        Args:
            word: The word.

        Raises:
            TextError: There is no map of it.
        """
        map = self[word].double()
        weight = map - map.min()
        weight = weight / weight.sum() if weight.sum() > 0 else torch.full_like(map, 1 / map.numel())
        places = [(torch.arange(n, dtype=torch.float64) + 0.5) / n for n in map.shape]
        return float(weight.sum(1) @ places[0]), float(weight.sum(0) @ places[1])

    def _index(self, word: str) -> int:
        if word not in self.words:
            raise TextError(f"there is no map of {word!r}; nearest: {nearest(str(word), self.words)}")
        return self.words.index(word)

    def __repr__(self) -> str:
        size = list(self.values.shape[-2:])
        return f"WordMaps({self.prompt!r}: {', '.join(self.words)}; {len(self.steps)} steps of {size})"


def word_maps(
    model: HookedDiffusion,
    prompt: str,
    words: Sequence[str] | None = None,
    *,
    kind: Kind = "attention",
    blocks: str | Sequence[str] | None = None,
    at_steps: Sequence[int] | None = None,
    steps: int | None = None,
    seed: int | None = None,
    **options: Any,
) -> WordMaps:
    """Draw a prompt, and say where in the picture each of its words was read, in the conditional branch.

    "attention" is DAAM of a UNet (Tang et al. 2022, arXiv 2210.04885): cross-attention, mean over heads, over blocks
    but ``mid``, over steps and a word's tokens, each enlarged (bicubic) to the size of the latents. Of FLUX it is its
    counterpart, the part of the image's softmax that lies on the text, in double and single blocks.

    "concepts" is ConceptAttention (Helbling et al. 2025, arXiv 2502.04320) of FLUX: words enter double blocks as tokens
    of their own, which read the image and one another and are read by nobody; a map is the softmax over words of the
    products of what attention wrote for a cell and for a word, mean over blocks and steps. Words need not be in the
    prompt.

    The stock modules run as they do, so that the picture is the pipeline's to the last bit. Hooks that are on the model
    act, and the maps are of what they leave; with "concepts" there must be none.

    Args:
        model: A :class:`vit_lens.HookedUNet` or :class:`vit_lens.HookedFlux` whose pipeline has its text encoders.
        prompt: The prompt.
        words: Words of it, or several in a row (``"red star"``); a word that stands in it twice is both. None for all.
        kind: "attention" or "concepts".
        blocks: The blocks that are counted, by the beginnings of their names: ``"up"``, ``"mid.0"``, ``"double.3"``.
            None for all that the method takes.
        at_steps: The indices of the steps that are recorded; None for all.
        steps: As for a call of the model.
        seed: As for a call of the model.
        **options: As for a call of the model.

    Raises:
        InterventionError: The prompt has no such word; the message has the nearest.
        TextError: It is no text, or has words beyond those that are read.
        UnsupportedTowerError: The denoiser is of another kind, or has no cross-attention.
        VitLensError: There is no such block or step, or an argument is wrong.

    >>> sd = vl.HookedUNet.from_pretrained("mini-sd")
    >>> maps = vl.word_maps(sd, "a red star", steps=2, guidance_scale=1.0)
    >>> maps.words, sorted(maps.mass) == sorted(maps.words)
    (('a', 'red', 'star'), True)
    >>> vl.word_maps(sd, "a red star", ["ring"])
    Traceback (most recent call last):
    vit_lens.errors.InterventionError: the prompt 'a red star' has no word "ring"; nearest: 'a', 'red', 'star'
    """
    expect(model, HookedDiffusion, "model", VitLensError, "maps are of a hooked pipeline, such as vl.HookedUNet")
    expect(prompt, str, "prompt", TextError, "maps are of one prompt, and one picture")
    if kind not in ("attention", "concepts"):
        raise VitLensError(f"kind={kind!r}; expected 'attention' or 'concepts'")
    call = model._call(prompt, steps, seed, options)
    if call.n_pictures != 1 or call.every.get("prompt_2") is not None:
        raise VitLensError(
            "word maps are of one prompt and one picture; leave num_images_per_prompt= and prompt_2= out"
        )
    chosen = model._checked_steps(at_steps, call)
    given: dict[str, Any] = {"at_steps": chosen, "blocks": blocks}
    kept: dict[int, Tensor] = {}
    if kind == "concepts":
        concepts = list(_places(model, prompt, None, call.every)) if words is None else list(dict.fromkeys(words))
        take = partial(kept_steps, kept, [[n] for n in range(len(concepts))])
        length = call.every["max_sequence_length"] if model.format == "flux" else 0
        recording = recorded_concepts(model, concepts, call.of_step, take, length=length, **given)
        sizes = dict.fromkeys(concepts, 1)
    else:
        found = _places(model, prompt, words, call.every)
        take = partial(kept_steps, kept, list(found.values()))
        recording = recorded_attention(model.denoiser, call.of_step, take, **given)
        sizes = {word: len(places) for word, places in found.items()}
    with recording:
        made = model(prompt, steps=steps, seed=seed, **options)
    values = torch.stack([kept[index][0] for index in sorted(kept)])
    return WordMaps(
        prompt=prompt, words=tuple(sizes), values=values, steps=tuple(sorted(kept)), n_tokens=tuple(sizes.values()),
        picture=made[0], kind=kind,
    )  # fmt: skip


def by_word(
    maps: Float[Tensor, "picture token h w"], places: Iterable[Sequence[int]]
) -> Float[Tensor, "picture word h w"]:
    """Return the mean over the tokens of each word, in float32, on the CPU.

    Args:
        maps: Maps of tokens.
        places: For each word its tokens.
    """
    return torch.stack([maps[:, list(tokens)].mean(1) for tokens in places], 1).float().cpu()


def kept_steps(kept: dict[int, Tensor], places: Sequence[Sequence[int]], index: int, maps: Tensor) -> None:
    """Put the words' maps of a step into a dict."""
    kept[index] = by_word(maps, places)


def words_of(known: PromptTokenizer, prompt: str, words: Sequence[str] | None) -> list[str]:
    """Return the words that maps are asked of, each once: those given, or all of the prompt.

    Args:
        known: The tokenizer of the prompt.
        prompt: The prompt.
        words: The words; None for all.

    Raises:
        TextError: They are no list of words, or there is none.
    """
    words = known.words(prompt) if words is None else words
    if isinstance(words, str) or not words or not all(isinstance(one, str) for one in words):
        raise TextError(f"words={words!r:.80}; expected a list of at least one word, here of {prompt!r:.60}")
    return list(dict.fromkeys(words))


def _places(
    model: HookedDiffusion, prompt: str, words: Sequence[str] | None, call: Mapping[str, Any]
) -> dict[str, list[int]]:
    """Return the positions of each word, in the tokens that the denoiser is given."""
    found: list[dict[str, list[int]]] = []
    for suffix in ("_2",) if model.format == "flux" else ("", "_2"):
        tokenizer, encoder = (getattr(model.pipeline, f"{one}{suffix}", None) for one in ("tokenizer", "text_encoder"))
        if tokenizer is None or encoder is None:
            continue
        n = call["max_sequence_length"] if model.format == "flux" else tokenizer.model_max_length
        known = prompt_tokenizer(tokenizer, encoder.config.vocab_size, n)
        (row,) = known.rows([prompt])
        places = {word: known.places(row, word) for word in words_of(known, prompt, words)}
        if late := [word for word, tokens in places.items() if max(tokens) >= n]:
            raise TextError(f"{late[0]!r} stands beyond the {n} tokens that are read of {prompt!r:.60}; shorten it")
        found.append(places)
    if not found:
        raise TextError(
            f"this {type(model.pipeline).__name__} came without the tokenizer and encoder that say where words stand"
        )
    if any(one != found[0] for one in found):
        raise TextError(f"the text encoders of this {type(model.pipeline).__name__} have words at different positions")
    return found[0]
