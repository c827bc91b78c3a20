"""Pictures of conditions with what their cells read of each token: of the readings of a lens, as of prompts."""

__all__ = ["DrawnMaps", "lens_maps", "maps_of"]

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import PIL.Image
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vit_lens.addresses import as_index
from vit_lens.conditions import Condition
from vit_lens.decoders import EncoderRef, PromptEncoder, TextDecoder, TextSettings
from vit_lens.diffusion.attention import recorded_attention
from vit_lens.diffusion.word_maps import WordMaps, kept_steps, words_of
from vit_lens.errors import DecoderError, UnsupportedTowerError, VitLensError, expect
from vit_lens.lenses import TextDiffusionLens, TextRun
from vit_lens.models import BridgedTextEncoder
from vit_lens.texts import prompt_tokenizer

_EVERY_LAYER = ("L0.resid_pre", "resid_post")


class DrawnMaps(NamedTuple):
    """Pictures, and what was read of each token while they were drawn.

    Attributes:
        pictures: As the decoder draws them, on the CPU.
        maps: What the cells of the latents read of each token, mean over heads, blocks and steps, on the CPU.

    >>> vl.diffusion.DrawnMaps(torch.zeros(1, 8, 8, 3, dtype=torch.uint8), torch.zeros(1, 77, 4, 4)).maps.shape
    torch.Size([1, 77, 4, 4])
    """

    pictures: UInt8[Tensor, "picture height width 3"]
    maps: Float[Tensor, "picture token h w"]


def maps_of(
    decoder: TextDecoder,
    conditions: Condition,
    settings: TextSettings | None = None,
    seeds: int | Sequence[int] | None = None,
    *,
    negative: Condition | None = None,
    encoder: EncoderRef | None = None,
    batch_size: int | None = None,
    at_steps: Collection[int] | None = None,
    blocks: str | Sequence[str] | None = None,
) -> DrawnMaps:
    """Draw conditions, and record what the picture's cells read of each token in the conditional branch.

    The pictures are those of :meth:`vit_lens.decoders.TextDecoder.decode`, to the last bit.

    Args:
        decoder: What draws: of Stable Diffusion 1 or 2, SDXL or FLUX.1.
        conditions: What is drawn, with one axis of rows; ``condition.flatten_rows()`` of what a lens returns.
        settings: How to draw; None for the decoder's own defaults.
        seeds: The seed of the noise in the place of the settings'; of several, all rows are drawn for the first, then
            all for the second.
        negative: As for ``decode``.
        encoder: As for ``decode``.
        batch_size: As for ``decode``.
        at_steps: The indices of the steps that maps are the mean of; None for all.
        blocks: As for :func:`word_maps`.

    Returns:
        Pictures, and maps [picture token h w]: of a UNet all tokens together have 1 in each cell, of FLUX what is left
        to the image is missing.

    Raises:
        ContractError: The conditions are not for this decoder, or the negative is missing.
        DecoderError: The settings cannot be run, or a pass does not fit into memory.
        UnsupportedTowerError: The decoder's denoiser is of another kind, or has no cross-attention.
        VitLensError: There is no such step or block.

    >>> kinds = vl.decoders.PromptEncoder, vl.decoders.TextDecoder
    >>> text, decoder = (kind.from_pretrained("mini-sd") for kind in kinds)
    >>> found = vl.diffusion.maps_of(decoder, text.encode(["a red star"]), decoder.settings(guidance=1), seeds=[3, 4])
    >>> found.pictures.shape, found.maps.shape[::3], found.maps.sum(1).allclose(torch.ones(2, 8, 8), atol=1e-4)
    (torch.Size([2, 32, 32, 3]), torch.Size([2, 8]), True)
    """
    expect(decoder, TextDecoder, "decoder", DecoderError, "a decoder that reads text has tokens to look at")
    settings = decoder.defaults if settings is None else settings
    made = _drawn(
        decoder, conditions, settings, seeds, _Mean, at_steps=at_steps, blocks=blocks, negative=negative,
        encoder=encoder, batch_size=batch_size,
    )  # fmt: skip
    return DrawnMaps(*made)


def lens_maps(
    encoder: PromptEncoder,
    decoder: TextDecoder,
    prompt: str,
    words: Sequence[str] | None = None,
    *,
    sites: Any = _EVERY_LAYER,
    lens: Any = None,
    settings: TextSettings | None = None,
    seed: int | None = None,
    batch_size: int | None = None,
    at_steps: Collection[int] | None = None,
    blocks: str | Sequence[str] | None = None,
) -> Mapping[str, WordMaps]:
    """Draw what a lens reads of a text encoder's sites, each with the maps of the prompt's words.

    Args:
        encoder: The text half of the pipeline.
        decoder: The half that draws.
        prompt: The prompt.
        words: As for :func:`word_maps`.
        sites: Sites of the encoder; by default its embedding and what each layer leaves.
        lens: The lens; None for :class:`vit_lens.TextDiffusionLens`.
        settings: How to draw; None for the decoder's own defaults.
        seed: The seed of the noise; None for that of the settings.
        batch_size: The pictures that are drawn together, as for ``decode``.
        at_steps: As for :func:`maps_of`.
        blocks: As for :func:`word_maps`.

    Returns:
        For each site, in order, its picture and maps.

    Raises:
        InterventionError: The prompt has no such word; the message has the nearest.
        VitLensError: As of :func:`maps_of`.

    >>> kinds = vl.decoders.PromptEncoder, vl.decoders.TextDecoder
    >>> text, decoder = (kind.from_pretrained("mini-sd") for kind in kinds)
    >>> found = vl.diffusion.lens_maps(text, decoder, "a red star", ["star"], settings=decoder.settings(steps=2))
    >>> list(found)[:2], found["L1.resid_post"]["star"].shape
    (['L0.resid_pre', 'L0.resid_post'], torch.Size([8, 8]))
    """
    expect(decoder, TextDecoder, "decoder", DecoderError, "a decoder that reads text has tokens to look at")
    run, lens = TextRun.of(encoder, [prompt]), TextDiffusionLens() if lens is None else lens
    name = next(one.encoder for one in encoder.format.readings if one.below is not None)
    tower = run.tower(name)
    if isinstance(tower, BridgedTextEncoder):
        raise UnsupportedTowerError(f"word maps of a {encoder.format.pipeline} are not known here")
    known = prompt_tokenizer(tower.tokenizer, tower.cfg.n_vocab, tower.cfg.n_ctx)
    places = {
        word: run.places(name, f'"{word}"')[0].nonzero()[:, 0].tolist() for word in words_of(known, prompt, words)
    }
    site_names = [str(site) for site in lens.check_sites(run.tower(lens.moved_in(run).encoder), sites)]
    conditions = lens.read(run, sites).flatten_rows()
    pictures, maps = _drawn(
        decoder, conditions, decoder.defaults if settings is None else settings, seed,
        partial(_EachStep, list(places.values())), at_steps=at_steps, blocks=blocks, negative=encoder.negative(),
        encoder=encoder, batch_size=batch_size,
    )  # fmt: skip
    steps = tuple(range(maps.shape[1])) if at_steps is None else tuple(sorted({*at_steps}))
    return {
        site: WordMaps(
            prompt=prompt, words=tuple(places), values=values, steps=steps,
            n_tokens=tuple(map(len, places.values())), picture=PIL.Image.fromarray(picture.numpy()), kind="attention",
        )
        for site, picture, values in zip(site_names, pictures, maps, strict=True)
    }  # fmt: skip


def _drawn(
    decoder: TextDecoder, conditions: Condition, settings: TextSettings, seeds: Any, gather: Callable[[], Any], *,
    at_steps: Collection[int] | None, blocks: Any, negative: Condition | None, encoder: EncoderRef | None,
    batch_size: int | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Draw rows pass by pass; return pictures and what was gathered of each pass."""
    decoder.check_settings(settings)
    decoder.check(conditions, encoder)
    if batch_size is not None and (as_index(batch_size) or 0) < 1:
        raise DecoderError(f"batch_size must be at least 1, a whole number, got {batch_size!r}")
    if at_steps is not None:
        late = [one for one in at_steps if as_index(one) is None or not 0 <= one < settings.steps]
        if late or not at_steps:
            raise VitLensError(
                f"at_steps={late}: a run of steps={settings.steps} has the steps 0 to {settings.steps - 1}"
            )
    each = [settings.seed] if seeds is None else [seeds] if as_index(seeds) is not None else list(seeds)
    size = batch_size or min(len(conditions), decoder.batch_size(settings))
    of_step = (("uncond", "cond"),) if decoder.is_guided(settings) else (("cond",),)
    given: dict[str, Any] = {"negative": negative, "encoder": encoder, "batch_size": batch_size}
    pictures, maps = [], []
    for seed in each:
        own = replace(settings, seed=seed)
        for start in range(0, len(conditions), size):
            rows, found = conditions[start : start + size], gather()
            with recorded_attention(decoder.denoiser, of_step, found.add, at_steps=at_steps, blocks=blocks):
                pictures.append(decoder.decode(rows, settings=own, on_smaller=_refuse_smaller, **given))
            maps.append(found.all()[: len(rows)])
    return torch.cat(pictures), torch.cat(maps)


class _Mean:
    """The mean over steps: [picture token h w]."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.n = 0

    def add(self, index: int, maps: Tensor) -> None:
        self.total = maps + self.total
        self.n += 1

    def all(self) -> Tensor:
        return torch.as_tensor(self.total / self.n).float().cpu()


class _EachStep:
    """The maps of words in each step: [picture step word h w]."""

    def __init__(self, places: Sequence[Sequence[int]]):
        self.kept: dict[int, Tensor] = {}
        self.add = partial(kept_steps, self.kept, places)

    def all(self) -> Tensor:
        return torch.stack([self.kept[index] for index in sorted(self.kept)], 1)


def _refuse_smaller(rows: int) -> None:
    raise DecoderError(f"memory ran out while maps were recorded; give batch_size={rows}")
