"""Image encoders of the embedded pair's world: their patches are steered, and their own captions read the embedding."""

__all__ = ["ATTRIBUTES", "ImageEncoders", "NamedScenes", "captions"]

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from vit_lens.decoders import Decoder, settings_dict
from vit_lens.dictionaries import Dictionary, steer
from vit_lens.errors import StudyError
from vit_lens.explaining import AttributeOracle
from vit_lens.mini import world
from vit_lens.models import HookedViT
from vit_lens.studies.seen_pictures import Judge, Pictures
from vit_lens.studies.steering.choosing import Pool, tokens_of
from vit_lens.studies.steering.kinds import Kind
from vit_lens.studies.steering.scores import PATCHES, Plan
from vit_lens.studies.steering.targets import Target, targets_of
from vit_lens.studies.steering.watching import Push, Watcher
from vit_lens.texts import TextBank

ATTRIBUTES = tuple(world.ATTRIBUTES.items())
_ENDS = np.cumsum([len(values) for _, values in ATTRIBUTES]).tolist()
_OVERLAY = tuple(list(world.ATTRIBUTES).index(name) for name in world.OVERLAY_ATTRIBUTES)
_POOL_SEED = 31
_AT_ONCE, _DRAWN_AT_ONCE = 256, 32
Codes = list[int]


def captions() -> list[str]:
    """Return every value of the world as a caption, attribute by attribute.

    >>> from vit_lens.studies.steering.image_encoders import captions
    >>> captions()[8], len(captions())
    ('a red object', 47)
    """
    return [prompt for name in world.ATTRIBUTES for prompt in world.prompts(name)]


@dataclass(frozen=True, eq=False)
class NamedScenes:
    """What captions name in embeddings: of each attribute the value whose caption is nearest.

    Attributes:
        logits: Of every value's caption, as :func:`captions` has them.
        first: The first picture; None of embeddings.
    """

    logits: Float[np.ndarray, "input caption"]
    first: UInt8[np.ndarray, "height width 3"] | None = None

    @property
    def is_scene(self) -> Bool[np.ndarray, " input"]:
        """Always true: captions name something in anything."""
        return np.ones(len(self.logits), dtype=bool)

    def _of(self, attribute: int) -> Float[np.ndarray, "input value"]:
        return self.logits[:, _ENDS[attribute] - len(ATTRIBUTES[attribute][1]) : _ENDS[attribute]]

    def named(self, attribute: int) -> np.ndarray:
        """Return the number of the value that is named."""
        return self._of(attribute).argmax(1)

    def shows(self, target: Target) -> Bool[np.ndarray, " input"]:
        """Return whether the target is the value that is named."""
        return self.named(target.attribute) == target.number

    def shown(self, target: Target) -> Float[np.ndarray, " input"]:
        """Return the target's logit, less the mean of the other values'."""
        logits = self._of(target.attribute).astype(np.float64)
        own = logits[:, target.number]
        return own - (logits.sum(1) - own) / (logits.shape[1] - 1)

    def keeps(self, other: "NamedScenes", target: Target) -> Float[np.ndarray, " input"]:
        """Return the share of the other attributes that are named alike; of overlays where one is steered to."""
        left_out = () if target.attribute in _OVERLAY else _OVERLAY
        at = [k for k in range(len(ATTRIBUTES)) if k != target.attribute and k not in left_out]
        return np.mean([self.named(k) == other.named(k) for k in at], axis=0)


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageEncoders(Kind):
    """An image encoder of the embedded pair's world, of which :class:`Kind` says what is asked.

    Attributes:
        encoder: The encoder.
        texts: Its own :func:`captions`.
        decoder: What draws embeddings; None for nothing.
        settings: How it draws; the noise of their seed is the same for every embedding.
        judge: Another encoder with its captions, which reads the pictures; None where there is no decoder.
        n_pool: How many scenes lift is measured on.

    Raises:
        StudyError: Captions are missing, the judge is the encoder itself, or there is a decoder without a judge.
    """

    name = "image encoder"
    plan = Plan(
        level="embedding", relations=("conflicts", "agrees"), edit="scene that has it", outputs="embeddings",
        place=PATCHES, rejects=False, logit=True,
    )  # fmt: skip
    targets = targets_of(ATTRIBUTES)

    encoder: HookedViT
    texts: TextBank
    decoder: Decoder | None = None
    settings: Any = None
    judge: Judge | None = None
    n_pool: int = 2000

    def __post_init__(self) -> None:
        self.texts.check(self.encoder)
        if (self.decoder is None) != (self.judge is None):
            raise StudyError("a decoder and no judge, or a judge and no decoder: give both, or neither")
        if self.judge is not None and self.judge.model.fingerprint == self.encoder.fingerprint:
            raise StudyError("the judge is the encoder itself, which would reward its own round trip; take another")

    @property
    def model(self) -> HookedViT:
        """What is steered."""
        return self.encoder

    def describe(self) -> dict[str, Any]:
        """Return the encoder, and what draws and who reads where there is one."""
        found: dict[str, Any] = {"encoder": self.encoder.encoder_id, "fingerprint": self.encoder.fingerprint}
        if self.decoder is not None and self.judge is not None:
            found |= {
                "decoder": self.decoder.decoder_id, "settings": settings_dict(self.settings),
                "judge": self.judge.model.encoder_id,
            }  # fmt: skip
        return found

    def notes(self, dictionary: Dictionary) -> tuple[str, ...]:
        """Return what is steered, what reads, and what is left out."""
        pictures = "Left out: pictures, since nothing draws."
        if self.judge is not None:
            pictures = (
                "Pictures, at the dose of the headlines: the decoder draws the embedding, and another CLIP, "
                f"{self.judge.model.encoder_id}, names the values by its own captions. This world has no exact judge."
            )
        found = (
            f"Strength is in units of the mean norm of the steered tokens ({dictionary.origin.tokens}), of each image "
            "for itself; every direction has length 1.",
            "A target is seen where its caption is the nearest of its attribute's, by the encoder's own text tower. "
            "Its logit is counted less the mean of the other values'. Directions are chosen by the logit.",
            "Scenes that are studied are held out: no training saw them. Neither they nor the same with the target put "
            "in are among those that lift, the difference of means and the choice rest on.",
            "A scene has a value of every attribute, so that none is silent: it has another value, and conflicts, or "
            "has the target, and agrees.",
            pictures,
            "Left out: scenes that are none, since captions name something in anything; the effect where inputs agree "
            "less where they conflict, since a target that is there has no room to rise; time, since an encoder has no "
            "steps.",
        )
        return found if self._has_place(dictionary) else (*found, "Left out: place, since no patches are steered.")

    def _has_place(self, dictionary: Dictionary) -> bool:
        return dictionary.origin.tokens in ("patches", "all")

    # ---- inputs

    @cached_property
    def known(self) -> Int[np.ndarray, "scene attribute"]:
        """The scenes that lift, the difference of means and the choice rest on, as numbers of values."""
        return world.sample_codes(self.n_pool, np.random.default_rng([_POOL_SEED]), held_out=False)

    def inputs(
        self, target: Target, n: int, generator: np.random.Generator, *, studied: bool
    ) -> dict[str, list[Codes]]:
        """Return scenes with another value, and the same with the target; none that are studied are :attr:`known`.

        Raises:
            StudyError: Too few of the known scenes have another value.
        """
        at = target.attribute
        if studied:
            rows = self._unknown(target, n, generator)
        else:
            others = self.known[(self.known[:, at] >= 0) & (self.known[:, at] != target.number)]
            rows = others[generator.permutation(len(others))[:n]]
            if len(rows) < n:
                raise StudyError(
                    f"{n} scenes to choose on, and n_pool={self.n_pool} has {len(rows)}; give less or more"
                )
        edited = rows.copy()
        edited[:, at] = target.number
        return {"conflicts": rows.tolist(), "agrees": edited.tolist()}

    def _unknown(self, target: Target, n: int, generator: np.random.Generator) -> Int[np.ndarray, "scene attribute"]:
        """Draw held-out scenes that are not known with the target put in, either."""
        share, known, found = 1.0 if target.attribute in _OVERLAY else 0.5, set(map(tuple, self.known.tolist())), []
        while len(found) < n:
            for codes in world.sample_codes(n, generator, overlay=share, held_out=True):
                edited = codes.copy()
                edited[target.attribute] = target.number
                if codes[target.attribute] != target.number and tuple(edited.tolist()) not in known:
                    found.append(codes)
        return np.stack(found[:n])

    def pool(self, dictionary: Dictionary, seeds: Sequence[int]) -> Pool:
        """Return the tokens of the known scenes."""
        pictures = list(world.render_codes(self.known))
        return Pool(tokens_of(self.model, pictures, dictionary), self.known, self.model.cfg.n_patches)

    # ---- what comes out

    def identity(self, dictionary: Dictionary) -> list[Any]:
        """Return the encoder, its captions and where is steered."""
        where = [dictionary.check(self.model), dictionary.origin.tokens]
        return [self.encoder.fingerprint, _digits(self.texts), *where]

    @torch.no_grad()
    def run(
        self, dictionary: Dictionary, inputs: Sequence[Codes], seeds: Sequence[int], push: Push | None
    ) -> Float[np.ndarray, "input d_embed"]:
        """Return embeddings of scenes; there is no noise."""
        pixels = self.encoder.preprocess(list(world.render_codes(np.array(inputs))))
        if push is None:
            made = [self.encoder(part) for part in pixels.split(_AT_ONCE)]
        elif push.where is None:
            hooks = steer(self.encoder, dictionary, push.direction, push.strength)
            made = [self.encoder.run_with_hooks(part, fwd_hooks=hooks) for part in pixels.split(_AT_ONCE)]
        else:
            made = [
                self._steered_at(image[None], dictionary, push, patches)
                for image, patches in zip(pixels, push.where, strict=True)
            ]
        return torch.cat(made).float().cpu().numpy()

    def _steered_at(self, image: Tensor, dictionary: Dictionary, push: Push, patches: Sequence[int]) -> Tensor:
        if not patches:
            return self.encoder(image)
        tokens = [self.encoder.cfg.n_prefix + patch for patch in patches]
        hooks = steer(self.encoder, dictionary, push.direction, push.strength, tokens=tokens)
        return self.encoder.run_with_hooks(image, fwd_hooks=hooks)

    def look(self, outputs: Float[np.ndarray, "input d_embed"]) -> dict[str, Tensor]:
        """Return the logits of the encoder's captions."""
        return {"logits": _logits(self.texts, torch.from_numpy(outputs))}

    def seen(self, found: Mapping[str, Tensor]) -> NamedScenes:
        """Return what was read."""
        return NamedScenes(found["logits"].numpy(), found["first"].numpy() if "first" in found else None)

    @property
    def pictures(self) -> "_Drawn | None":
        """What draws embeddings and reads their pictures."""
        return None if self.decoder is None or self.judge is None else _Drawn(self, self.decoder, self.judge)

    def sides(
        self, watcher: Watcher, target: Target, push: Push, inputs: Mapping[str, Sequence[Codes]],
        seeds: Sequence[int], pool: Pool, generator: np.random.Generator,
    ) -> dict[str, Float[np.ndarray, " input"]]:  # fmt: skip
        """Return how much of the target is seen with the patches of what it replaces steered, or as many others."""
        if not self._has_place(watcher.dictionary):
            return {}
        rows = inputs["conflicts"]
        there = [_patches(codes, target, self.model.cfg.grid) for codes in rows]
        parts: dict[str, list[tuple[int, ...]]] = {"inside": [], "outside": []}
        for inside in there:
            outside = [patch for patch in range(pool.n_positions) if patch not in inside]
            n = min(len(inside), len(outside))
            for name, patches in (("inside", inside), ("outside", outside)):
                parts[name].append(tuple(sorted(generator.permutation(patches)[:n].tolist())))
        return {
            name: watcher.see(rows, seeds, Push(push.direction, push.strength, where=tuple(where))).shown(target)
            for name, where in parts.items()
        }


@dataclass(frozen=True, eq=False)
class _Drawn:
    """Draws what an encoder says, and names what a judge sees in it."""

    kind: ImageEncoders
    decoder: Decoder
    judge: Judge

    def identity(self, dictionary: Dictionary) -> list[Any]:
        drawing = [self.decoder.identity(), settings_dict(self.kind.settings)]
        return [*self.kind.identity(dictionary), *drawing, self.judge.model.fingerprint, _digits(self._texts)]

    def run(
        self, dictionary: Dictionary, inputs: Sequence[Codes], seeds: Sequence[int], push: Push | None
    ) -> UInt8[np.ndarray, "picture height width 3"]:
        embeds = torch.from_numpy(self.kind.run(dictionary, inputs, seeds, push))
        drawing = Pictures(
            model=self.kind.encoder, decoder=self.decoder, judge=None, settings=self.kind.settings, folder=Path(),
            batch_size=min(len(embeds), _DRAWN_AT_ONCE),
        )  # fmt: skip
        pictures, _ = drawing.draw(embeds, noise_seed=self.kind.settings.seed)
        return pictures.cpu().numpy()

    @torch.no_grad()
    def look(self, outputs: UInt8[np.ndarray, "picture height width 3"]) -> dict[str, Tensor]:
        seen = self.judge.model(self.judge.model.preprocess(list(outputs)))
        return {"logits": _logits(self._texts, seen), "first": torch.from_numpy(outputs[0].copy())}

    def seen(self, found: Mapping[str, Tensor]) -> NamedScenes:
        return self.kind.seen(found)

    @property
    def _texts(self) -> TextBank:
        if self.judge.texts is None:
            raise StudyError("the judge has no captions, which it names values by: Judge(model, TextBank....)")
        return self.judge.texts


def _logits(texts: TextBank, embeds: Tensor) -> Float[Tensor, "input caption"]:
    """Return the logits of every value's caption, in the order of :func:`captions`."""
    order = [texts.index(caption) for caption in captions()]
    return texts.logits(embeds)[:, order].double().cpu().contiguous()


def _digits(texts: TextBank) -> str:
    return hashlib.sha256(texts.embeds.detach().cpu().float().numpy().tobytes()).hexdigest()[:16]


def _patches(codes: Codes, target: Target, grid: tuple[int, int]) -> list[int]:
    """Return the patches on which a scene's own value of the target's attribute is drawn."""
    (scene,) = world.decode(np.array([codes]))
    oracle = AttributeOracle(AttributeOracle.pictures_of([scene]), [scene], grid=grid)
    own = getattr(scene, target.kind)
    return oracle.localise(oracle.pictures[0], f"{target.kind} {own}").flatten().nonzero()[:, 0].tolist()
