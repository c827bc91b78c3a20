"""Captions with their text embeddings, and what an image embedding says about them."""

__all__ = ["TextBank"]

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_lens.config import TowerConfig
from vit_lens.errors import OutputError, TextError, expect, nearest
from vit_lens.files import as_path, load_fields, save_fields
from vit_lens.identity import same_encoder, text_side
from vit_lens.numerics import without_autocast
from vit_lens.sources import read_module
from vit_lens.texts import whole_clips
from vit_lens.texts.captions import check_captions, mini_captions
from vit_lens.texts.text_towers import Tokenizer, embed_captions, text_tower

_FORMAT = "vit_lens.text_bank.1"
_ADVICE = "make one with TextBank.from_pretrained(...).save(path)"


@runtime_checkable
class _Encoder(Protocol):
    @property
    def encoder_id(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def cfg(self) -> TowerConfig: ...


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class TextBank:
    """Captions, embedded by the text tower that an image encoder was trained with.

    Attributes:
        captions: What the rows of ``embeds`` say; no two alike.
        embeds: The text embeddings as the tower gives them, or, with templates, the unit mean of unit embeddings.
        logit_scale: The factor of the cosines (the exponential of CLIP's parameter), above 0.
        logit_bias: What is added to the logits of SigLIP, whose probabilities are sigmoids; None for CLIP, which takes
            a softmax over the captions.
        encoder_id: The id of the image encoder that these embeddings are compared with.
        templates: The prompts that every caption was put into, such as ``"a photo of a {}"``; empty if each was
            embedded as it stands.

    Raises:
        TextError: Captions are none, empty or alike, an embedding is zero or not finite, ``logit_scale`` is not above
            0, or there is no ``encoder_id``.

    >>> bank
    TextBank(6 captions for 'vit_lens/mini', d_embed=128)
    >>> bank.cosines(model(pixels)).shape
    torch.Size([2, 6])
    >>> [bank.captions[best] for best in bank.probs(model(pixels)).argmax(-1)]
    ['a blue star', 'a red ring']
    """

    captions: tuple[str, ...]
    embeds: Float[Tensor, "caption d_embed"]
    logit_scale: float
    logit_bias: float | None
    encoder_id: str
    templates: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_captions(self.captions)
        expect(self.embeds, Tensor, "embeds", TextError, "the text embeddings [caption d_embed]")
        if self.embeds.ndim != 2 or not self.embeds.is_floating_point():
            raise TextError(f"embeds are {_said(self.embeds)}; expected floats [caption d_embed]")
        if len(self.captions) != len(self.embeds):
            raise TextError(f"{len(self.captions)} captions need as many embeddings, not {len(self.embeds)}")
        norms = self.embeds.norm(dim=-1)
        if not (torch.isfinite(norms) & (norms > 0)).all():
            bad = int((~(torch.isfinite(norms) & (norms > 0))).nonzero()[0])
            raise TextError(f"the embedding of {self.captions[bad]!r} has norm {norms[bad]:g}; expected a finite one")
        bias = 0.0 if self.logit_bias is None else self.logit_bias
        for name, value in (("logit_scale", self.logit_scale), ("logit_bias", bias)):
            expect(value, Real, name, TextError, "a finite number")
        if not (math.isfinite(self.logit_scale) and self.logit_scale > 0 and math.isfinite(bias)):
            raise TextError(
                f"logit_scale={self.logit_scale}, logit_bias={self.logit_bias}; expected finite numbers, the first the "
                "exponential of CLIP's parameter, above 0"
            )
        expect(self.encoder_id, str, "encoder_id", TextError, "the id of the image encoder")
        if not self.encoder_id:
            raise TextError("encoder_id is empty; name the image encoder that the text tower was trained with")

    # ---- where text banks come from ----------------------------------------------------------------------

    @classmethod
    def mini(cls, captions: Sequence[str] | None = None, *, templates: Sequence[str] = ()) -> "TextBank":
        """Embed captions with the embedded pair's own text tower.

        Args:
            captions: The texts to embed; None takes every prompt of the pair's world.
            templates: Prompts with ``{}`` where the caption goes; see :meth:`from_pretrained`.

        Raises:
            TextError: A caption has a word that the pair's tokenizer does not know; the message lists its words.

        >>> vl.TextBank.mini(["a red star", "a blue ring"])
        TextBank(2 captions for 'vit_lens/mini', d_embed=128)
        """
        return cls.from_pretrained("mini", mini_captions() if captions is None else captions, templates=templates)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        captions: Sequence[str],
        *,
        templates: Sequence[str] = (),
        device: str | torch.device = "cpu",
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        progress: bool = False,
    ) -> "TextBank":
        """Embed captions with a CLIP or SigLIP in Hugging Face's format, text tower and tokenizer included.

        Args:
            name: What to load: ``"mini"``, a Hub id ``owner/name``, or a local directory.
            captions: The texts to embed, or what goes into the templates.
            templates: Prompts with ``{}`` where the caption goes; the unit embeddings of all are averaged, as in
                open_clip's zero-shot classifier. None are needed.
            device: Where the text tower runs.
            revision: The branch, tag or commit of a Hub repository; None takes its main branch.
            cache_dir: Where downloads are kept; None takes Hugging Face's default.
            progress: Whether a progress bar is shown.

        Raises:
            TextError: There is no text tower of a known kind, or a caption cannot be tokenised whole.
            UnsupportedTowerError: Its image tower is not one that HookedViT reproduces.

        >>> vl.TextBank.from_pretrained("mini", ["star", "ring"], templates=["a red {}", "a blue {}"]).captions
        ('star', 'ring')
        """
        clip, tokenizer, encoder_id = whole_clips.from_pretrained(
            name, device=device, revision=revision, cache_dir=cache_dir
        )
        return cls.from_module(clip, tokenizer, captions, encoder_id=encoder_id, templates=templates, progress=progress)

    @classmethod
    def from_open_clip(
        cls,
        name: str,
        tag: str | Path,
        captions: Sequence[str],
        *,
        templates: Sequence[str] = (),
        quick_gelu: bool | None = None,
        device: str | torch.device = "cpu",
        cache_dir: str | Path | None = None,
        progress: bool = False,
    ) -> "TextBank":
        """Embed captions with an open_clip model by name, and pretrained tag or path of a local checkpoint.

        Args:
            name: The open_clip model name.
            tag: The pretrained tag, or the path of a local checkpoint.
            captions: The texts to embed, or what goes into the templates.
            templates: Prompts with ``{}`` where the caption goes; see :meth:`from_pretrained`.
            quick_gelu: Which activation a local checkpoint was trained with, where its model name leaves that open,
                as for ``HookedViT.from_pretrained``; None where something else says it.
            device: Where the text tower runs.
            cache_dir: Where downloads are kept; None takes open_clip's default.
            progress: Whether a progress bar is shown.

        Raises:
            TextError: A caption cannot be tokenised whole.
            CheckpointError: open_clip has no such model, or no such tag or file; or ``quick_gelu`` is needed.

        >>> vl.TextBank.from_open_clip("ViT-B-32", "opnai", ["a photo of a cat"])
        Traceback (most recent call last):
        vit_lens.errors.CheckpointError: opnai is neither a file nor a pretrained tag of ViT-B-32 (openai, ...
        """
        clip, tokenizer, encoder_id = whole_clips.from_open_clip(
            name, tag, quick_gelu=quick_gelu, device=device, cache_dir=cache_dir
        )
        return cls.from_module(clip, tokenizer, captions, encoder_id=encoder_id, templates=templates, progress=progress)

    @classmethod
    def from_module(
        cls,
        clip: nn.Module,
        tokenizer: Tokenizer,
        captions: Sequence[str],
        *,
        encoder_id: str | None = None,
        templates: Sequence[str] = (),
        progress: bool = False,
    ) -> "TextBank":
        """Embed captions with a whole CLIP in memory: open_clip's, or Hugging Face's ``CLIPModel``, ``SiglipModel``.

        Args:
            clip: The whole model, image tower and text tower.
            tokenizer: open_clip's or Hugging Face's tokenizer, the one that the text tower was trained with.
            captions: The texts to embed, or what goes into the templates.
            encoder_id: The id of the image tower; None makes one from its weights, as ``HookedViT.from_module`` does.
            templates: Prompts with ``{}`` where the caption goes; see :meth:`from_pretrained`.
            progress: Whether a progress bar is shown.

        Raises:
            TextError: ``clip`` has no text tower of a known kind, a caption has unknown words or is cut, or a
                template has no ``{}``.
            UnsupportedTowerError: No ``encoder_id``, and the image tower is not one that HookedViT reproduces.
        """
        if isinstance(captions, str) or not isinstance(captions, Iterable):
            what = "one text" if isinstance(captions, str) else "no list"
            raise TextError(f"captions={captions!r} is {what}; give a list of texts (texts.read_captions reads a file)")
        captions = check_captions(tuple(captions))
        if isinstance(templates, str) or not isinstance(templates, Iterable):
            raise TextError(f"templates={templates!r}; expected a list of texts such as 'a photo of a {{}}'")
        tower = text_tower(clip, tokenizer)
        return cls(
            captions=captions,
            embeds=embed_captions(tower, captions, tuple(templates), progress=progress),
            logit_scale=tower.logit_scale,
            logit_bias=tower.logit_bias,
            encoder_id=encoder_id or read_module(clip).encoder_id,
            templates=tuple(templates),
        )

    @classmethod
    def load(cls, path: str | Path) -> "TextBank":
        """Read a bank that :meth:`save` wrote.

        Raises:
            TextError: The file is missing, truncated, or holds no text bank.

        >>> vl.TextBank.load(bank.save(tmp / "bank.safetensors")).captions == bank.captions
        True
        """
        place = as_path(path, TextError)
        return cls(**load_fields(cls, place, _FORMAT, "bank", what="a text bank", error=TextError, advice=_ADVICE))

    def save(self, path: str | Path) -> Path:
        """Write the bank as safetensors, whole or not at all, and return the path.

        Raises:
            OutputError: The file cannot be written.
        """
        return save_fields(self, as_path(path, OutputError), _FORMAT, "bank")

    # ---- what it says ------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.captions)

    def __repr__(self) -> str:
        return f"TextBank({len(self)} captions for {self.encoder_id!r}, d_embed={self.embeds.shape[1]})"

    @property
    def unit(self) -> Float[Tensor, "caption d_embed"]:
        """The text embeddings at length 1."""
        return self.embeds / self.embeds.norm(dim=-1, keepdim=True)

    @without_autocast()
    def cosines(self, image_embeds: Float[Tensor, "*batch d_embed"]) -> Float[Tensor, "*batch caption"]:
        """Return the cosine of every image embedding with every caption, in float32 or wider; nan for a zero vector.

        Raises:
            TextError: They are no embeddings, or of another width than the text embeddings.

        >>> [round(value, 2) for value in bank.cosines(model(pixels))[0].tolist()]
        [-0.06, 0.1, -0.28, -0.09, 0.03, 0.09]
        """
        _check_floats("image_embeds", image_embeds)
        wide = torch.promote_types(torch.promote_types(image_embeds.dtype, self.embeds.dtype), torch.float32)
        if image_embeds.shape[-1] != self.embeds.shape[1]:
            raise TextError(
                f"image embeddings of width {image_embeds.shape[-1]}, text embeddings of width {self.embeds.shape[1]}: "
                f"this bank belongs to {self.encoder_id}"
            )
        images, texts = image_embeds.to(wide), self.embeds.to(image_embeds.device, wide)
        return (images / images.norm(dim=-1, keepdim=True)) @ (texts / texts.norm(dim=-1, keepdim=True)).T

    def to_logits(self, cosines: Float[Tensor, "*batch caption"]) -> Float[Tensor, "*batch caption"]:
        """Scale cosines as the model does, and add the bias of SigLIP."""
        _check_floats("cosines", cosines)
        return self.logit_scale * cosines + (self.logit_bias or 0.0)

    def to_probs(self, logits: Float[Tensor, "*batch caption"]) -> Float[Tensor, "*batch caption"]:
        """Return a softmax over the captions, or for SigLIP a sigmoid of each logit on its own."""
        _check_floats("logits", logits)
        return logits.softmax(-1) if self.logit_bias is None else logits.sigmoid()

    def logits(self, image_embeds: Float[Tensor, "*batch d_embed"]) -> Float[Tensor, "*batch caption"]:
        """Return the model's zero-shot logits: scaled cosines, plus the bias of SigLIP; nan for a zero vector."""
        return self.to_logits(self.cosines(image_embeds))

    def probs(self, image_embeds: Float[Tensor, "*batch d_embed"]) -> Float[Tensor, "*batch caption"]:
        """Return the model's zero-shot probabilities, see :meth:`to_probs`.

        >>> [round(value, 2) for value in bank.probs(model(pixels))[0].tolist()]
        [0.0, 0.54, 0.0, 0.0, 0.05, 0.41]
        """
        return self.to_probs(self.logits(image_embeds))

    def index(self, caption: str) -> int:
        """Return the row of a caption.

        Raises:
            TextError: The bank has no such caption; the message names the nearest.

        >>> bank.index("a red ring")
        2
        >>> bank.index("a red rig")
        Traceback (most recent call last):
        vit_lens.errors.TextError: no caption 'a red rig' in this bank; nearest: 'a red ring', ...
        """
        expect(caption, str, "caption", TextError, "one of the bank's captions")
        try:
            return self.captions.index(caption)
        except ValueError:
            raise TextError(
                f"no caption {caption!r} in this bank; nearest: {nearest(caption, self.captions)}"
            ) from None

    def check(self, model: _Encoder, *, other_encoder: bool = False) -> "TextBank":
        """Return the bank if it was made for the model's own embedding space.

        Args:
            model: The image encoder that the captions are to be compared with, or the hooked text tower of the same
                CLIP.
            other_encoder: Whether another id is accepted, for an image tower that was tuned towards this text tower;
                the widths must be the same all the same.

        Raises:
            TextError: The bank was made for another encoder, or another width.

        >>> bank.check(model) is bank
        True
        """
        if not isinstance(getattr(model, "cfg", None), TowerConfig):
            raise TextError(
                f"expected a HookedViT, not {type(model).__name__}: HookedViT.from_pretrained(name) makes one"
            )
        if self.embeds.shape[1] != model.cfg.d_embed:
            raise TextError(
                f"this text bank has width {self.embeds.shape[1]} and belongs to {self.encoder_id}; the embedding of "
                f"{model.encoder_id} has width {model.cfg.d_embed}"
            )
        own = model.encoder_id.removesuffix(text_side(""))  # a whole CLIP's text tower shares the space of its images
        same = other_encoder or same_encoder(self.encoder_id, own)
        if not same and not same_encoder(self.encoder_id, f"module@{model.fingerprint}"):
            raise TextError(
                f"this text bank was made for {self.encoder_id}; the model is {model.encoder_id} ({model.fingerprint})."
                " Make its own with its CLIP: TextBank.from_pretrained, from_open_clip or from_module. If the model is "
                "a fine-tune that still pairs with this text tower, say so: check(model, other_encoder=True)"
            )
        if getattr(model, "edited", False):
            warnings.warn(
                f"the weights of this model were changed since it was loaded as {model.encoder_id}; captions embedded "
                "for that encoder may no longer fit",
                stacklevel=2,
            )
        return self


def _said(tensor: Tensor) -> str:
    return f"{tensor.dtype} of shape {tuple(tensor.shape)}"


def _check_floats(name: str, value: object) -> None:
    expect(value, Tensor, name, TextError, "floats along the last axis")
    if isinstance(value, Tensor) and not (value.ndim and value.is_floating_point()):
        raise TextError(f"{name} are {_said(value)}; expected floats along the last axis")
