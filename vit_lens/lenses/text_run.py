"""One run of prompts through the text encoders of a format: what each part wrote, where words stand."""

__all__ = ["PromptReader", "TextRun", "TextTower", "Tokens", "check_bridged", "check_prompts"]

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vit_lens.addresses import Position, Site, as_index
from vit_lens.conditions import Condition
from vit_lens.errors import LensError, TextError, expect
from vit_lens.hooking import Name
from vit_lens.lenses.residual import site_outputs
from vit_lens.models import BridgedTextEncoder, HookedTextEncoder
from vit_lens.text_formats import Reading, TextFormat
from vit_lens.text_formats import Readout as TextReadout
from vit_lens.texts import ENCODER_KINDS, EncoderKind, prompt_tokenizer
from vit_lens.towers import AllTokens, ViTActivationCache

Tokens = str | int | Position | Sequence[str | int | Position]
TextTower = HookedTextEncoder | BridgedTextEncoder


@runtime_checkable
class PromptReader(Protocol):
    """What a run needs of the text half of a pipeline; :class:`vit_lens.decoders.PromptEncoder` has it.

    >>> isinstance(text_to_image, vl.lenses.PromptReader)
    True
    """

    format: TextFormat
    encoders: dict[str, Any]
    length: int | None

    @property
    def encoder_id(self) -> str: ...
    @property
    def towers(self) -> Mapping[str, TextTower]: ...
    @property
    def readouts(self) -> dict[str, TextReadout]: ...
    def encode(self, prompts: Sequence[str]) -> Condition: ...
    def room(self, encoder: str, prompt: str) -> tuple[int, int]: ...


@dataclass(frozen=True, eq=False, repr=False)
class TextRun:
    """Prompts, run once through all text encoders of a format as the pipeline runs them.

    The activations are those of the pipeline's own modules, to the last bit, under the names of
    :class:`vit_lens.HookedTextEncoder`; :meth:`edited` runs a hooked tower instead.

    Attributes:
        encoder: What ran, a :class:`vit_lens.decoders.PromptEncoder`.
        prompts: The texts.
        condition: What the pipeline itself makes of them.
        caches: For each encoder, the residual stream and what heads, attention and MLPs wrote, at all positions; of one
            that TransformerLens' bridge hooks, what enters and leaves every block.
        ids: For each encoder, the tokens that it read, those of the filling included.
        masks: For each encoder, which of them it was told to look at; None where it was told nothing.

    >>> run = vl.TextRun.of(text_to_image, ["a red star", "a blue ring"])
    >>> run.caches["text_encoder"]["resid_post", 1].shape, run.condition
    (torch.Size([2, 16, 32]), Condition([2] rows of tokens [16, 32]))
    """

    encoder: PromptReader
    prompts: tuple[str, ...]
    condition: Condition
    caches: Mapping[str, Mapping[str, Tensor] | ViTActivationCache]
    ids: Mapping[str, Int[Tensor, "batch pos"]]
    masks: Mapping[str, Tensor | None]

    @classmethod
    @torch.no_grad()
    def of(cls, encoder: PromptReader, prompts: Sequence[str] | str, *, truncate: bool = False) -> "TextRun":
        """Run prompts.

        Args:
            encoder: A :class:`vit_lens.decoders.PromptEncoder`.
            prompts: A text, or several; an empty one is allowed.
            truncate: Whether a prompt that is too long loses its last words, as pipelines do; else it is an error.

        Raises:
            TextError: It is no text, or too long.
            LensError: What should run is no encoder of prompts.
            UnsupportedTowerError: TransformerLens' bridge does not take an encoder.
        """
        if not isinstance(encoder, PromptReader):
            raise LensError(
                f"a {type(encoder).__name__} reads no prompts for a pipeline; expected a PromptEncoder, as "
                "vit_lens.decoders.PromptEncoder(pipeline) makes it"
            )
        expect(prompts, (str, Iterable), "prompts", TextError, "a prompt, or several")
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not truncate:
            check_prompts(encoder, [text for text in texts if isinstance(text, str)])
        kept: dict[str, dict[str, Tensor]] = {name: {} for name in encoder.encoders}
        told: dict[str, dict[str, Tensor]] = {}
        with ExitStack() as stack:
            for one in encoder.format.readings:
                name, module = one.encoder, encoder.encoders[one.encoder]
                parts = _keep_parts(ENCODER_KINDS[one.kind], module, kept[name])
                for handle in [_keep_input(module, told, name), *parts]:
                    stack.callback(handle.remove)
            condition = encoder.encode(texts)
        ids = {name: one["input_ids"] for name, one in told.items()}
        caches = {name: _cache(encoder.towers[name], held) for name, held in kept.items()}
        masks = {name: one.get("attention_mask") for name, one in told.items()}
        return cls(encoder, tuple(texts), condition, caches, ids, masks)

    @torch.no_grad()
    def edited(self, encoder: str, fwd_hooks: Iterable[tuple[Name, Callable]]) -> "TextRun":
        """Return the run in which one encoder's hooked tower ran again, with hooks; the condition is of the new run.

        Args:
            encoder: The name of the encoder.
            fwd_hooks: Hook points of its tower with functions, as ``run_with_hooks`` takes them.

        Raises:
            LensError: There is no such encoder, or filling in front of a prompt would be another than the pipeline's.
            UnknownHookError: There is no such hook point.

        >>> run = vl.TextRun.of(text_to_image, "a red star")
        >>> silent = run.edited("text_encoder", [("blocks.0.hook_mlp_out", lambda act, hook: act * 0)])
        >>> bool(torch.equal(silent.condition.tokens, run.condition.tokens))
        False
        """
        tower = self.tower(encoder)
        ids, mask = self.ids[encoder], self.masks[encoder]
        with tower.hooks(fwd_hooks=list(fwd_hooks)):
            if isinstance(tower, BridgedTextEncoder):
                _check_filling(encoder, self.encoder.encoders[encoder], mask)
                held = tower.residuals(ids, mask)
            else:
                _, cache = tower.run_with_cache(ids, attention_mask=mask, names_filter=tower.is_readout_part)
                held = cache.cache_dict
        made = replace(self, caches={**self.caches, encoder: _cache(tower, held)})
        return replace(made, condition=made.condition_of({}, {}))

    # ---- what is read of it

    @property
    def format(self) -> TextFormat:
        """What the format reads of its encoders."""
        return self.encoder.format

    def tower(self, encoder: str) -> TextTower:
        """Return the hooked tower of an encoder.

        Raises:
            LensError: There is no such encoder.
        """
        if encoder not in self.caches:
            raise LensError(f"no encoder {encoder!r} in format {self.format.name}; it has {', '.join(self.caches)}")
        return self.encoder.towers[encoder]

    @cached_property
    def empty(self) -> Condition:
        """What the pipeline makes of the text ""."""
        return self.encoder.encode([""])

    def residual(self, encoder: str, layer: int) -> Float[Tensor, "batch pos d_model"]:
        """Return a residual, not normed, by how many blocks have run."""
        name = f"blocks.{layer - 1}.hook_resid_post" if layer else "blocks.0.hook_resid_pre"
        return self.caches[encoder][name]

    def read_residual(self, reading: Reading) -> Float[Tensor, "batch pos _"]:
        """Return the residual that the format reads of an encoder's tokens, not normed; several side by side."""
        layers = reading.layers(self.tower(reading.encoder).cfg.n_layers)
        return torch.cat([self.residual(reading.encoder, layer) for layer in layers], -1)

    def output(self, encoder: str, site: Site) -> Float[Tensor, "batch pos d_model"]:
        """Return what a site of an encoder holds or writes, at all positions, in float32 or wider.

        Raises:
            LensError: The run does not hold it: of bridged encoders it has residuals before and behind blocks.
        """
        cache = self.caches[encoder]
        if isinstance(cache, ViTActivationCache):
            return site_outputs(cache, [site])[:, 0]
        check_bridged(site, self.tower(encoder))
        held = cache[site.hook_name]
        return held.to(torch.promote_types(held.dtype, torch.float32))

    def ends(self, encoder: str) -> Int[Tensor, " batch"]:
        """Return the position at which each text ends: of a bridged encoder, the last that it was told to look at."""
        tower, ids, mask = self.tower(encoder), self.ids[encoder], self.masks[encoder]
        if not isinstance(tower, BridgedTextEncoder):
            return tower.ends(ids)
        places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        return (places if mask is None else places * mask).amax(-1)

    def end_residual(self, encoder: str) -> Float[Tensor, "batch d_model"]:
        """Return an encoder's last residual at the end of each text, not normed: what a pooled vector is made of."""
        return self.at_end(encoder, self.residual(encoder, self.tower(encoder).cfg.n_layers))

    def at_end(self, encoder: str, x: Float[Tensor, "batch pos d"]) -> Float[Tensor, "batch d"]:
        """Return an activation at the end of each text."""
        return x[torch.arange(len(x), device=x.device), self.ends(encoder).to(x.device)]

    def condition_of(
        self, tokens: Mapping[str, Float[Tensor, "batch pos _"]], ends: Mapping[str, Float[Tensor, "batch _"]]
    ) -> Condition:
        """Return the condition in which normed tokens, and normed ends, stand in the place of the pipeline's.

        Args:
            tokens: For some encoders, tokens as the format reads them; the others are the run's own.
            ends: For some encoders, the end of the text after the final norm; the others are the run's own.
        """
        readouts = self.encoder.readouts
        own_tokens = {
            one.encoder: self.format_norm(one, self.read_residual(one))
            for one in self.format.readings if one.below is not None and one.encoder not in tokens
        }  # fmt: skip
        own_ends = {
            one.encoder: readouts[one.encoder].norm(self.end_residual(one.encoder))
            for one in self.format.readings if one.pooled is not None and one.encoder not in ends
        }  # fmt: skip
        normed = {name: TextReadout(_as_it_is, one.projection) for name, one in readouts.items()}
        seen = {name: mask.bool() for name, mask in self.masks.items() if mask is not None}
        mask = self.condition.mask
        return self.format.condition({**own_tokens, **tokens}, {**own_ends, **ends}, normed, mask, seen)

    def format_norm(
        self, reading: Reading, x: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """Return residuals as the format reads them: after the encoder's final norm, or as they are."""
        return self.encoder.readouts[reading.encoder].norm(x) if reading.norm else x

    # ---- where words stand

    def places(self, encoder: str, tokens: Tokens) -> Bool[Tensor, "batch pos"]:
        """Return True at the positions of an encoder that are named.

        Args:
            encoder: The name of the encoder.
            tokens: Positions as addresses have them behind ``@``, one or several: a number, ``"eos"``, ``"pad"``, or a
                word of the prompt in double quotes, ``'"star"'``. A bridged encoder's have no words: what stands in its
                template would be taken for the prompt's.

        Raises:
            UnknownSiteError: It is no position.
            LensError: A prompt has no such position, or words are asked of a bridged encoder.
            InterventionError: A prompt has no such word.

        >>> run = vl.TextRun.of(text_to_image, "a red star")
        >>> run.places("text_encoder", ["eos", '"red"']).nonzero()[:, 1].tolist()
        [2, 4]
        """
        ids = self.ids[encoder]
        found = torch.zeros(ids.shape, dtype=torch.bool)
        given = [tokens] if isinstance(tokens, (str, Position)) or as_index(tokens) is not None else tokens
        for position in [one if isinstance(one, Position) else Position.parse(str(one)) for one in given]:  # pyright: ignore[reportGeneralTypeIssues]
            for row, end in enumerate(self.ends(encoder).tolist()):
                places = self._places(encoder, row, end, position)
                if not places or max(places) >= ids.shape[1]:
                    raise LensError(
                        f"prompt {self.prompts[row]!r:.60} has no position {position}: {encoder} reads {ids.shape[1]} "
                        f"tokens of it, of which {end} is the end"
                    )
                found[row, list(places)] = True
        return found.to(ids.device)

    def _places(self, encoder: str, row: int, end: int, position: Position) -> Sequence[int]:
        kind, value = position.kind, position.value
        if kind == "index":
            return [int(value)]  # pyright: ignore[reportArgumentType]
        if kind == "word":
            tower = self.tower(encoder)
            if isinstance(tower, BridgedTextEncoder):
                raise LensError(
                    f"{position}: {encoder} reads a template around the prompt, in which the word may stand too; give "
                    f"the numbers of positions, of run.ids[{encoder!r}]"
                )
            known = prompt_tokenizer(tower.tokenizer, tower.cfg.n_vocab, tower.cfg.n_ctx)
            return known.places(self.ids[encoder][row].tolist(), str(value))
        if kind not in ("eos", "pad"):
            raise LensError(
                f"position {position} is one of an image; a prompt has numbers, 'eos', 'pad' and '\"word\"'"
            )
        if kind == "eos":
            return [end]
        mask = self.masks[encoder]
        if mask is not None and isinstance(self.tower(encoder), BridgedTextEncoder):  # some are filled up in front
            return (~mask[row].bool()).nonzero()[:, 0].tolist()
        return range(end + 1, self.ids[encoder].shape[1])

    def __len__(self) -> int:
        return len(self.prompts)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name} [{', '.join(map(str, one.shape))}]" for name, one in self.ids.items())
        return f"TextRun({len(self)} prompts, {self.format.pipeline}: {sizes})"


def _as_it_is(x: Tensor) -> Tensor:
    return x


def check_bridged(site: Site, tower: TextTower) -> None:
    """Refuse a site that is not told of an encoder that TransformerLens' bridge hooks.

    Raises:
        LensError: It is such an encoder, and the site no residual before or behind a block.
    """
    if isinstance(tower, BridgedTextEncoder) and site.kind not in ("resid_pre", "resid_post"):
        raise LensError(
            f"{site}: of a {tower.cfg.architecture}, which TransformerLens' bridge hooks, lenses read the residuals "
            "before and behind blocks, such as L3.resid_post. What its parts write is at the hook points of "
            "run.tower(...), for run.edited(...)"
        )


def _check_filling(name: str, module: Any, mask: Tensor | None) -> None:
    """Refuse filling that sees nothing, where the bridge and the pipeline's own attention fill it up differently.

    Raises:
        LensError: There is some.
    """
    kind = module.config._attn_implementation
    if mask is not None and not bool(mask[:, 0].all()) and kind != "eager":
        raise LensError(
            f"{name} has filling in front of a prompt, which sees nothing and which the pipeline hands over: its "
            f"{kind!r} attention and the bridge's give other numbers there. Call "
            f"pipeline.{name}.set_attn_implementation('eager') first, and run the prompts again"
        )


def _cache(tower: TextTower, held: dict[str, Tensor]) -> dict[str, Tensor] | ViTActivationCache:
    """Return the cache of a run that is read at every position, whatever the tower's own output is."""
    if isinstance(tower, BridgedTextEncoder):
        return held
    every = AllTokens(tower.cfg, tower.ln_final, tower.unembed)
    return ViTActivationCache(held, tower, rows="all", read_out=every)


def check_prompts(encoder: PromptReader, prompts: Sequence[str]) -> None:
    """Raise if an encoder would cut a prompt.

    Args:
        encoder: A :class:`vit_lens.decoders.PromptEncoder`.
        prompts: Texts.

    Raises:
        TextError: A prompt has more tokens than some encoder reads.

    >>> vl.lenses.check_prompts(text_to_image, ["star " * 15])
    Traceback (most recent call last):
    vit_lens.errors.TextError: prompt 'star star ... has 17 tokens, and text_encoder reads 16; shorten it, ...
    """
    for one in encoder.format.readings:
        for text in prompts:
            n, room = encoder.room(one.encoder, text)
            if n > room:
                raise TextError(
                    f"prompt {text!r:.60} has {n} tokens, and {one.encoder} reads {room}; shorten it, or cut its end "
                    "off with truncate=True"
                )


# ---- the pipeline's own modules


def _keep_input(module: Any, told: dict[str, dict[str, Tensor]], name: str) -> Any:
    def before(module: Any, args: Any, kwargs: Any) -> None:
        given = {"input_ids": args[0]} if args else {}
        both = {**given, **{key: kwargs.get(key) for key in ("input_ids", "attention_mask") if key in kwargs}}
        told[name] = {key: value for key, value in both.items() if value is not None}

    return module.register_forward_pre_hook(before, with_kwargs=True)


def _keep_parts(kind: EncoderKind, module: Any, kept: dict[str, Tensor]) -> list[Any]:
    """Keep what a stock encoder's parts write, under the names of hook points; return the hooks' handles."""
    is_t5, handles = kind is ENCODER_KINDS["t5"], []
    for layer, block in enumerate(kind.blocks_of(module)):
        if kind.is_bridged:
            handles.append(_before(block, kept, f"blocks.{layer}.hook_resid_pre"))
            handles.append(_after(block, kept, f"blocks.{layer}.hook_resid_post"))
            continue
        attn = block.layer[0].SelfAttention if is_t5 else block.self_attn
        out, mlp = (attn.o, block.layer[1].DenseReluDense) if is_t5 else (attn.out_proj, block.mlp)
        middle = block.layer[1] if is_t5 else block.layer_norm2
        heads = attn.n_heads if is_t5 else attn.num_heads
        named = f"blocks.{layer}."
        handles += [
            _before(block, kept, named + "hook_resid_pre"), _before(out, kept, named + "attn.hook_z", heads),
            _after(attn, kept, named + "hook_attn_out"), _before(middle, kept, named + "hook_resid_mid"),
            _after(mlp, kept, named + "hook_mlp_out"), _after(block, kept, named + "hook_resid_post"),
        ]  # fmt: skip
    return handles


def _before(module: Any, kept: dict[str, Tensor], name: str, heads: int | None = None) -> Any:
    def keep(module: Any, args: Any, kwargs: Any) -> None:
        value = (args[0] if args else kwargs["hidden_states"]).detach()
        kept[name] = value if heads is None else value.unflatten(-1, (heads, -1))

    return module.register_forward_pre_hook(keep, with_kwargs=True)


def _after(module: Any, kept: dict[str, Tensor], name: str) -> Any:
    def keep(module: Any, args: Any, output: Any) -> None:
        kept[name] = (output[0] if isinstance(output, tuple) else output).detach()

    return module.register_forward_hook(keep)
