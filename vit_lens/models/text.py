"""HookedTextEncoder: the text tower of a CLIP, or T5's encoder, with TransformerLens' hook points."""

__all__ = ["HookedTextEncoder", "TextStates"]

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, SupportsIndex

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from vit_lens.config import HookedTextConfig
from vit_lens.errors import InterventionError, TextError, VitLensError
from vit_lens.hooking import is_hooked
from vit_lens.models.loaded import LoadedTower, uncompiled
from vit_lens.sources import TowerSource, read_module, read_pretrained, refuse_float16
from vit_lens.texts import PromptTokenizer, prompt_tokenizer
from vit_lens.tokens import RUN_IDS, Tokens, read_token, token_list
from vit_lens.towers import PosEmbed, Readout, TokenEmbed, check_input, check_tokens, whole_mask

Prompts = str | Sequence[str] | Int[Tensor, "batch pos"]


@dataclass(frozen=True, eq=False)
class TextStates:
    """What a text tower has of prompts at its end, of which pipelines read one or the other.

    Attributes:
        residual: The last residual stream, not normed.
        tokens: Every token after the final norm: ``last_hidden_state`` of Hugging Face.
        pooled: The token that ends each prompt, after the final norm (``pooler_output``); None for T5.
        embeds: The same after the projection, or without one again ``pooled``; None for T5.

    >>> found = text_model.states(["a red star", "a blue ring"])
    >>> found.residual.shape, bool(torch.equal(found.pooled, found.tokens[:, 4]))
    (torch.Size([2, 5, 96]), True)
    """

    residual: Float[Tensor, "batch pos d_model"]
    tokens: Float[Tensor, "batch pos d_model"]
    pooled: Float[Tensor, "batch d_model"] | None
    embeds: Float[Tensor, "batch d_embed"] | None


class HookedTextEncoder(LoadedTower):
    """A text tower: prompts in, every step a hook point. CLIP's gives an embedding of each prompt, T5 all tokens.

    The output is what Hugging Face calls ``text_embeds`` (CLIP with its projection), ``pooler_output`` (CLIP without)
    or ``last_hidden_state`` (T5); :meth:`states` has the others. Hook points, in the order in which they fire (B
    prompts, T tokens, H heads):

    ===================================================== ==================== =================================
    name                                                  shape                note
    ===================================================== ==================== =================================
    ``hook_embed``, ``hook_pos_embed``                    B T d_model          T5 has no ``hook_pos_embed``
    ``rel_bias.hook_rel_bias``                            B H T T              T5: what all blocks add to scores
    ``blocks.{l}.hook_resid_pre`` / ``_mid`` / ``_post``  B T d_model
    ``blocks.{l}.ln1`` / ``ln2`` ``.hook_scale``          B T 1                T5: the root mean square
    ``blocks.{l}.ln1`` / ``ln2`` ``.hook_normalized``     B T d_model          weight and bias applied
    ``blocks.{l}.attn.hook_q`` / ``_k`` / ``_v`` / ``_z`` B T H d_head
    ``blocks.{l}.attn.hook_attn_scores`` / ``_pattern``   B H T T
    ``blocks.{l}.attn.hook_result``                       B T H d_model        gated
    ``blocks.{l}.hook_attn_in``, ``hook_q_input``, ...    B T H d_model        gated
    ``blocks.{l}.hook_mlp_in``                            B T d_model          gated
    ``blocks.{l}.hook_attn_out``, ``hook_mlp_out``        B T d_model
    ``blocks.{l}.mlp.hook_pre`` / ``_post``               B T d_mlp
    ``blocks.{l}.mlp.hook_pre_linear``                    B T d_mlp            T5 1.1: what the gate multiplies
    ``ln_final.hook_scale`` / ``.hook_normalized``        B T 1, B T d_model
    ``hook_pooled``                                       B d_model            the end of each prompt; T5: B T d_model
    ``hook_text_embeds``                                  B d_embed            the output; T5: B T d_model
    ===================================================== ==================== =================================

    Gated points are those of :class:`vit_lens.HookedViT`. A prompt ends at the first ``cfg.eos_token_id``, or at its
    highest id where that is None.

    Args:
        cfg: The sizes and switches of the tower.
        tokenizer: Of transformers or open_clip, the one that the tower was trained with; without one, prompts are ids.
        encoder_id: The id of the weights; by default ``module@`` and the :attr:`fingerprint`.

    Raises:
        TextError: The tokenizer is not this tower's.

    >>> text = vl.HookedTextEncoder.from_pretrained("mini")
    >>> embeds, cache = text.run_with_cache(["a red star", "a large blue ring"])
    >>> embeds.shape, cache["pattern", 1].shape
    (torch.Size([2, 128]), torch.Size([2, 4, 6, 6]))
    >>> text.to_str_tokens("a red star")
    ['<start>', 'a', 'red', 'star', '<end>']
    """

    cfg: HookedTextConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    output_point = "hook_text_embeds"

    def __init__(self, cfg: HookedTextConfig, *, tokenizer: Any = None, encoder_id: str | None = None):
        super().__init__(cfg, encoder_id=encoder_id)
        self.tokenizer = tokenizer
        self.embed = TokenEmbed(cfg)
        self.hook_embed = HookPoint()
        self.pos_embed = PosEmbed(cfg) if cfg.has_pos_embed else None
        self.hook_pos_embed = HookPoint() if cfg.has_pos_embed else None
        self.add_blocks()

    # ---- where models come from -------------------------------------------------------------------------

    @classmethod
    def from_module(
        cls, tower: nn.Module, *, tokenizer: Any = None, encoder_id: str | None = None, copy: bool = True
    ) -> "HookedTextEncoder":
        """Convert a text tower in memory: Hugging Face's CLIP or T5, or open_clip's.

        The weights are copied; dtype and device follow the source. Activation, eps, heads and the rule for where a
        prompt ends are read from the module, never from a name.

        Args:
            tower: ``CLIPTextModel``, ``CLIPTextModelWithProjection``, ``CLIPModel``; ``T5EncoderModel`` or a whole T5;
                open_clip's model or its ``.text``.
            tokenizer: The tokenizer that the tower was trained with; without one, prompts are ids.
            encoder_id: The id of the weights if it is known; None makes one from their content.
            copy: Whether the weights are copied. False shares the tower's memory: an edit or a training step of either
                shows in the other.

        Raises:
            UnsupportedTowerError: The tower is not one that would be exact, or a T5 in float16; the message names the
                part.
            CheckpointError: The tower has no weights, or its memory cannot be shared.
            TextError: The tokenizer is not this tower's.

        >>> from transformers import CLIPTextConfig, CLIPTextModel
        >>> sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
        >>> ids = dict(vocab_size=40, max_position_embeddings=9, bos_token_id=38, eos_token_id=39)
        >>> tower = CLIPTextModel(CLIPTextConfig(**sizes, **ids))
        >>> vl.HookedTextEncoder.from_module(tower)(torch.tensor([[38, 7, 39]])).shape
        torch.Size([1, 32])
        """
        source = read_module(tower, kind="text", encoder_id=encoder_id, copy=copy)
        return cls._from_source(source, tokenizer)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        subfolder: str | None = None,
        tag: str | Path | None = None,
        quick_gelu: bool | None = None,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        tokenizer: Any = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
    ) -> "HookedTextEncoder":
        """Load a text tower by name, with its tokenizer.

        Args:
            name: What to load: ``"mini"`` (ships with the package), an open_clip model name, a Hugging Face id
                (``owner/name``, ``owner/name:text_encoder``), or a local directory in Hugging Face's format.
            subfolder: The part of a pipeline, such as ``text_encoder_2``; ``name:subfolder`` says the same.
            tag: The pretrained tag of an open_clip name, or the path of a local checkpoint; None for any other name.
            quick_gelu: Which activation a local open_clip checkpoint was trained with, where its model name
                leaves that open; None where something else says it.
            dtype: The floating-point type that the weights are cast to.
            device: Where the weights go; on ``"meta"`` the files are checked and the model has shapes without weights.
            tokenizer: The tokenizer; None takes the one that lies with the weights (of a pipeline's ``text_encoder_2``
                in ``tokenizer_2``), or none where there is none: prompts are ids then.
            revision: The branch, tag or commit of a Hugging Face repository; None takes its main branch.
            cache_dir: Where downloads are kept; None takes the default of the library that downloads.

        Raises:
            UnsupportedTowerError: The tower is not one that would be exact, or a T5 in float16.
            CheckpointError: The name is unknown or not public, the checkpoint is truncated, or its tensors do not fit.
            TextError: The tokenizer is not this tower's.

        >>> vl.HookedTextEncoder.from_pretrained("mini", dtype=torch.float64).dtype
        torch.float64
        """
        whole = name if subfolder is None else f"{name}:{subfolder}"
        asked: dict[str, Any] = {
            "tag": tag, "quick_gelu": quick_gelu, "dtype": dtype, "device": device, "revision": revision,
            "cache_dir": cache_dir,
        }  # fmt: skip
        model = cls._from_source(read_pretrained(whole, kind="text", **asked), tokenizer)
        model._source = {"name": whole, **asked, "tokenizer": tokenizer}
        return model

    @classmethod
    def _from_source(cls, source: TowerSource, tokenizer: Any) -> "HookedTextEncoder":
        given = source.tokenizer if tokenizer is None else tokenizer
        return cls._made_of(source.cfg, source.state_dict, tokenizer=given, encoder_id=source.encoder_id)

    def _carried(self) -> dict[str, Any]:
        return {**super()._carried(), "tokenizer": self.tokenizer}

    # ---- what it is -------------------------------------------------------------------------------------

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, of transformers or open_clip; None where prompts are ids.

        Raises:
            TextError: What is set is no tokenizer, or not this tower's.
        """
        return None if self._prompts is None else self._prompts.tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Any) -> None:
        cfg = self.cfg
        self._prompts = None if tokenizer is None else prompt_tokenizer(tokenizer, cfg.n_vocab, cfg.n_ctx)

    @property
    def W_E(self) -> Float[Tensor, "vocab d_model"]:
        """The token embeddings, one row for each id."""
        return self.embed.W_E

    @property
    def W_pos(self) -> Float[Tensor, "pos d_model"]:
        """The learned position embeddings; zeros for T5, which has none."""
        if self.pos_embed is None:
            return torch.zeros(self.cfg.n_ctx, self.cfg.d_model, dtype=self.dtype, device=self.device)
        return self.pos_embed.W_pos

    # ---- running it -------------------------------------------------------------------------------------

    def forward(
        self,
        prompts: Prompts | Float[Tensor, "batch pos d_model"],
        *,
        attention_mask: Tensor | None = None,
        start_at_layer: SupportsIndex | None = None,
        stop_at_layer: SupportsIndex | None = None,
        tokens: Prompts | None = None,
        mask: Tensor | None = None,
    ) -> Float[Tensor, "batch *pos d_embed"]:
        """Encode prompts, or return the residual stream that enters block ``stop_at_layer``.

        Texts are filled up to the longest of them. What they are filled up with is seen by none of their own tokens: a
        causal tower has it behind them, and for T5 it is masked. Ids are taken as they are, as in Hugging Face: without
        an ``attention_mask`` a T5 sees all of them.

        Args:
            prompts: A text, texts, or ids [batch pos]; with ``start_at_layer`` a residual stream.
            attention_mask: Bool or 0 and 1 [batch pos], of tokens that may be looked at; None allows all, and for texts
                to T5 all that are no filling.
            start_at_layer: The first block to run, as in TransformerLens; None embeds prompts first.
            stop_at_layer: The first block not to run, as in TransformerLens, negative from the end; None runs all
                blocks and the read-out.
            tokens: With ``start_at_layer``, the prompts that the residual stream is of: where they end is what CLIP
                reads.
            mask: Bool [pos pos] or [batch or 1, head or 1, pos, pos], True where a query (third axis) may look at a
                key, in every block; None allows all. A causal tower's own mask is kept.

        Returns:
            The embeddings, or for T5 every token; with ``stop_at_layer`` the residual stream that enters that block.

        Raises:
            TextError: Prompts that the tower does not read: too long, unknown ids or words, no end.
            PreprocessError: A residual stream of another size or kind, or not finite.
            VitLensError: A mask of another shape or dtype, or one that leaves a query nothing to look at.
            UnfiredHookError: A hook sits on a point before ``start_at_layer`` or behind ``stop_at_layer``.

        >>> ids = text_model.to_tokens(["a red star", "a large blue ring"])
        >>> resid = text_model(ids, stop_at_layer=1)
        >>> bool(torch.allclose(text_model(resid, start_at_layer=1, tokens=ids), text_model(ids), atol=1e-4))
        True
        """
        if torch.compiler.is_compiling() and any(map(is_hooked, self.hook_dict.values())):
            given = {"start_at_layer": start_at_layer, "stop_at_layer": stop_at_layer, "tokens": tokens, "mask": mask}
            return uncompiled(HookedTextEncoder.forward)(self, prompts, attention_mask=attention_mask, **given)
        refuse_float16(self.cfg, self.dtype)
        blocks = self.blocks_to_run(start_at_layer, stop_at_layer)
        self.check_reach(start_at_layer, stop_at_layer)
        if start_at_layer is None:
            if tokens is not None:
                raise TextError("tokens= goes with start_at_layer, where the input does not say where prompts end")
            own = self.beside(prompts)
            tokens = own["tokens"]
            attention_mask = own.get("attention_mask") if attention_mask is None else attention_mask
        else:
            n_pos = prompts.shape[1] if isinstance(prompts, Tensor) and prompts.ndim == 3 else self.cfg.n_ctx
            check_input(prompts, (n_pos, self.cfg.d_model), self.W_E)  # pyright: ignore[reportArgumentType]
            tokens = None if tokens is None else self.to_tokens(tokens)
        with nullcontext() if torch.compiler.is_compiling() else self._told(tokens):
            resid = self._embed(tokens) if start_at_layer is None else prompts  # pyright: ignore[reportArgumentType]
            resid = self.run_blocks(resid, blocks, self._mask(resid, attention_mask, mask))  # pyright: ignore[reportArgumentType]
            if stop_at_layer is not None:
                return resid
            return self.read_out(resid, self.readout_of() if tokens is None else self.readout_of(tokens))

    @contextmanager
    def _told(self, tokens: Int[Tensor, "batch pos"] | None) -> Iterator[None]:
        """Tell hooks which prompts run, for those that were made for some."""
        points = [point for point in self.hook_dict.values() if point.fwd_hooks]
        for point in points:
            point.ctx[RUN_IDS] = tokens
        try:
            yield
        finally:
            for point in points:
                point.ctx.pop(RUN_IDS, None)

    def _embed(self, ids: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        resid = self.hook_embed(self.embed(ids))
        if self.pos_embed is None or self.hook_pos_embed is None:
            return resid
        pos_embed = self.pos_embed(*ids.shape)
        if is_hooked(self.hook_pos_embed):  # which may edit it in place: it is the weight
            pos_embed = self.hook_pos_embed(pos_embed.clone())
        return resid + pos_embed

    def _mask(
        self, resid: Float[Tensor, "batch pos d_model"], attention_mask: Tensor | None, mask: Tensor | None
    ) -> Bool[Tensor, "#batch #head pos pos"] | None:
        batch, n_pos = resid.shape[:2]
        whole = None if mask is None else whole_mask(mask, batch, self.cfg, resid.device, n_pos)
        if attention_mask is None:
            return whole
        shape = tuple(attention_mask.shape) if isinstance(attention_mask, Tensor) else type(attention_mask).__name__
        if shape != (batch, n_pos):
            raise VitLensError(f"attention_mask of {shape}; expected [batch pos] = {(batch, n_pos)}, True where seen")
        keys = attention_mask.to(resid.device).bool()[:, None, None].expand(-1, 1, n_pos, -1)
        keys = keys if whole is None else keys & whole
        seen = keys.tril() if self.cfg.is_causal else keys
        whole_mask(seen, batch, self.cfg, resid.device, n_pos)  # every query sees a key
        return keys

    def states(self, prompts: Prompts, *, attention_mask: Tensor | None = None) -> TextStates:
        """Return the last residual stream, all tokens after the final norm, and the pooled vectors, of one run.

        Args:
            prompts: As for :meth:`forward`.
            attention_mask: As for :meth:`forward`.

        Raises:
            VitLensError: The final norm is folded into what reads it: take the model before ``process_weights``.

        >>> found = text_model.states("a red star")
        >>> found.tokens.shape, found.pooled.shape, found.embeds.shape
        (torch.Size([1, 5, 96]), torch.Size([1, 96]), torch.Size([1, 128]))
        """
        if self.processing and "fold_ln" in self.processing.steps:
            raise VitLensError("the final norm is folded into the projection; ask the model before process_weights()")
        last, normed = f"blocks.{self.cfg.n_layers - 1}.hook_resid_post", "ln_final.hook_normalized"
        names = [last, normed, "hook_pooled", self.output_point]
        _, cache = self.run_with_cache(prompts, attention_mask=attention_mask, names_filter=names)
        is_pooled = self.cfg.pool == "eos"
        pooled, embeds = (cache["hook_pooled"], cache[self.output_point]) if is_pooled else (None, None)
        return TextStates(cache[last], cache[normed], pooled, embeds)

    # ---- prompts ----------------------------------------------------------------------------------------

    def to_tokens(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, prompts: Prompts, prepend_bos: bool = True, *, pad_to: int | None = None, truncate: bool = False
    ) -> Int[Tensor, "batch pos"]:
        """Return prompts as ids, with the tokens that begin and end them; ids are checked and stay as they are.

        Args:
            prompts: A text, texts, or ids [batch pos]. An empty text is allowed: it is the negative prompt.
            prepend_bos: TransformerLens' own; which tokens begin a prompt is the tokenizer's to say, so False is
                refused.
            pad_to: How many tokens each text is filled up to (pipelines take ``model.cfg.n_ctx`` for CLIP); None takes
                the longest's.
            truncate: Whether a text that is too long loses its last words, as pipelines do; else it is an error.

        Raises:
            TextError: A text is too long or has unknown words, an id is unknown, or the model has no tokenizer.

        >>> text_model.to_tokens("a red star", pad_to=7)
        tensor([[ 1,  4, 25, 20,  3,  0,  0]])
        """
        if not prepend_bos:
            raise TextError("prepend_bos=False: the tokenizer says what begins a prompt; give ids to leave it out")
        if isinstance(prompts, Tensor):
            check_tokens(prompts, self.cfg)
            return prompts.to(self.device)
        texts = [prompts] if isinstance(prompts, str) else prompts
        if not isinstance(texts, (list, tuple)):
            raise TextError(
                f"prompts is a {type(texts).__name__}; expected a text, a list of texts, or ids [batch pos]"
            )
        ids = self._tokenizer_of(texts).ids(texts, pad_to=pad_to, truncate=truncate)
        return torch.tensor(ids, dtype=torch.long, device=self.device)

    def to_str_tokens(self, prompts: Prompts) -> list[str] | list[list[str]]:
        """Return the tokens of prompts as texts; of one text a list, of several a list for each.

        Raises:
            TextError: As for :meth:`to_tokens`.

        >>> text_model.to_str_tokens(["a red star", ""])
        [['<start>', 'a', 'red', 'star', '<end>'], ['<start>', '<end>', '<pad>', '<pad>', '<pad>']]
        """
        rows = self.to_tokens(prompts).tolist()
        found = [self._tokenizer_of(prompts).pieces(row) for row in rows]
        return found[0] if isinstance(prompts, str) else found

    def ends(self, tokens: Prompts) -> Int[Tensor, " batch"]:
        """Return the position at which each prompt ends, counted from 0.

        Raises:
            TextError: A prompt has no end.

        >>> text_model.ends(["a red star", ""]).tolist()
        [4, 1]
        """
        ids = self.to_tokens(tokens)
        end = ids.amax(-1, keepdim=True) if self.cfg.eos_token_id is None else self.cfg.eos_token_id
        n_pos = ids.shape[1]
        first = torch.where(ids == end, torch.arange(n_pos, device=ids.device), n_pos).amin(-1)
        if not torch.compiler.is_compiling() and not ids.is_meta and bool((first == n_pos).any()):
            text = int((first == n_pos).nonzero()[0])
            raise TextError(
                f"prompt {text} has no end, id {end}: give texts, or ids as model.to_tokens(texts) makes them"
            )
        return first

    def attention_mask(self, tokens: Prompts) -> Bool[Tensor, "batch pos"]:
        """Return which tokens are of the prompts: those up to their ends, and not what they are filled up with.

        Raises:
            TextError: A prompt has no end.

        >>> text_model.attention_mask(["a red star", ""]).sum(-1).tolist()
        [5, 2]
        """
        ids = self.to_tokens(tokens)
        return torch.arange(ids.shape[1], device=ids.device) <= self.ends(ids)[:, None]

    def beside(self, inputs: Prompts) -> dict[str, Tensor]:
        """Return what a run from a later block needs beside the stream: ``tokens``, and for texts to T5 a mask.

        Args:
            inputs: The prompts that the run began with.

        >>> list(text_model.beside(["a red star"]))
        ['tokens']
        """
        ids = self.to_tokens(inputs)
        if isinstance(inputs, Tensor) or self.cfg.is_causal:
            return {"tokens": ids}
        return {"tokens": ids, "attention_mask": self.attention_mask(ids)}

    def positions_of(self, where: Tokens, prompts: Prompts) -> Bool[Tensor, "batch pos"]:
        """Return where tokens are in each prompt, as behind ``@`` in addresses.

        Args:
            where: ``"eos"`` is the end, ``"pad"`` all that is filled up behind it, ``'"star"'`` a word (all its tokens,
                and everywhere that it stands; capitals do not count), ``4`` a position; or a list of these.
            prompts: A text, texts, or ids [batch pos].

        Raises:
            InterventionError: A prompt has no such word or position, none is filled up, or images alone have it.

        >>> text_model.positions_of('"red star"', ["a red star", "a red striped red star"]).int()
        tensor([[0, 0, 1, 1, 0, 0, 0],
                [0, 0, 0, 0, 1, 1, 0]], dtype=torch.int32)
        >>> text_model.positions_of('"stair"', "a red star")
        Traceback (most recent call last):
        vit_lens.errors.InterventionError: the prompt 'a red star' has no word "stair"; nearest: 'star'
        """
        ids = self.to_tokens(prompts)
        found = torch.zeros(ids.shape, dtype=torch.bool, device=ids.device)
        for item in token_list(where):
            kind, value = read_token(item)
            if kind == "word":
                rows, words = ids.tolist(), self._tokenizer_of(prompts)
                for prompt, row in enumerate(rows):
                    found[prompt, words.places(row, str(value))] = True
            elif kind == "eos":
                found[torch.arange(len(ids)), self.ends(ids)] = True
            elif kind == "pad":
                found |= ~self.attention_mask(ids)
            elif kind == "index" and isinstance(value, int) and 0 <= value < ids.shape[1]:
                found[:, value] = True
            else:
                last = ids.shape[1] - 1
                raise InterventionError(
                    f"{item!r}: these prompts have 'eos', 'pad', words such as '\"star\"', and positions 0 to {last}"
                )
        if not found.any():
            raise InterventionError(
                f"{where!r} is nowhere: no prompt is filled up; model.to_tokens(prompts, pad_to=...) fills them"
            )
        return found

    def readout_of(self, *model_args: Any, ends: Int[Tensor, " batch"] | None = None) -> Readout:
        """Return the read-out of a run, which knows where its prompts end.

        Args:
            *model_args: The prompts of the run.
            ends: Other positions to read, one for each prompt; None for the prompts' ends.
        """
        ids = self.to_tokens(model_args[0]) if model_args else None
        if ends is None and ids is not None and self.cfg.pool == "eos":
            ends = self.ends(ids)
        return replace(super().readout_of(ends=ends), ids=ids)

    def _tokenizer_of(self, prompts: Any) -> PromptTokenizer:
        if self._prompts is None:
            raise TextError(
                f"{prompts!r:.60} needs a tokenizer, and {self.encoder_id} came without one: model.tokenizer = "
                "AutoTokenizer.from_pretrained(...), or give ids"
            )
        return self._prompts
