"""HookedViT: a CLIP vision transformer with TransformerLens' hook points."""

__all__ = ["HookedViT"]

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from vit_lens.caching import CachingRootModule, reached
from vit_lens.config import HookedViTConfig
from vit_lens.errors import PreprocessError
from vit_lens.identity import aliases, fingerprint
from vit_lens.images import PreprocessSpec, preprocess
from vit_lens.layers import Embed, LayerNorm, PosEmbed, PreNorm, TransformerBlock, Unembed
from vit_lens.pretrained import TowerSource, read_module, read_pretrained


class HookedViT(CachingRootModule):
    """A CLIP vision tower: pixels in, image embedding out, every step a hook point.

    Hook points, in the order in which they fire (B images, T tokens, H heads):

    ===================================================== ==================== =================================
    name                                                  shape                note
    ===================================================== ==================== =================================
    ``hook_embed_raw``, ``hook_pos_embed_raw``            B T d_model          before ``ln_pre``
    ``ln_pre.hook_scale``                                 B T 1                of their sum
    ``hook_embed``, ``hook_pos_embed``                    B T d_model          add up to block 0's residual
    ``blocks.{l}.hook_resid_pre`` / ``_mid`` / ``_post``  B T d_model
    ``blocks.{l}.ln1`` / ``ln2`` ``.hook_scale``          B T 1
    ``blocks.{l}.ln1`` / ``ln2`` ``.hook_normalized``     B T d_model          weight and bias applied
    ``blocks.{l}.attn.hook_q`` / ``_k`` / ``_v`` / ``_z`` B T H d_head
    ``blocks.{l}.attn.hook_attn_scores`` / ``_pattern``   B H T T
    ``blocks.{l}.attn.hook_result``                       B T H d_model        gated
    ``blocks.{l}.hook_attn_in``, ``hook_q_input``, ...    B T H d_model        gated
    ``blocks.{l}.hook_mlp_in``                            B T d_model          gated
    ``blocks.{l}.hook_attn_out``, ``hook_mlp_out``        B T d_model
    ``blocks.{l}.mlp.hook_pre`` / ``_post``               B T d_mlp
    ``ln_final.hook_scale`` / ``.hook_normalized``        B T 1, B T d_model   T is 1 where pooling is first
    ``hook_pooled``                                       B d_model            what the projection reads
    ``hook_image_embeds``                                 B d_embed            the output
    ===================================================== ==================== =================================

    CLIP's ``ln_pre`` acts on the sum of patch and position embeddings. Its output is split exactly (see
    :class:`vit_lens.layers.PreNorm`), so that ``hook_embed + hook_pos_embed`` is the residual stream that
    enters block 0; the position part then depends on the image, and an edit of either part is not normalised
    again. Edit ``hook_embed_raw`` or ``hook_pos_embed_raw`` to act before the norm.

    A gated point costs memory, so ``run_with_cache`` leaves it out unless it is named or its switch is on
    (``set_use_attn_result``, ``set_use_attn_in``, ``set_use_split_qkv_input``, ``set_use_hook_mlp_in``); a
    hook on it always fires. With inputs split by head, ``ln1`` fires for queries, keys and values in turn.

    Weights are zero until loaded; use :meth:`from_pretrained` or :meth:`from_module`.

    Args:
        cfg: Sizes and switches.
        preprocess_spec: How images become pixels; None where the source did not say.
        encoder_id: Which weights these are; by default the content's fingerprint.
    """

    cfg: HookedViTConfig
    blocks: Sequence[TransformerBlock]

    def __init__(
        self,
        cfg: HookedViTConfig,
        *,
        preprocess_spec: PreprocessSpec | None = None,
        encoder_id: str | None = None,
    ):
        super().__init__()
        self.cfg = cfg
        self.preprocess_spec = preprocess_spec
        self._encoder_id = encoder_id
        self._fingerprint: tuple[tuple, str] | None = None
        self.embed = Embed(cfg)
        self.hook_embed_raw = HookPoint()
        self.pos_embed = PosEmbed(cfg)
        self.hook_pos_embed_raw = HookPoint()
        self.ln_pre = PreNorm(cfg) if cfg.has_ln_pre else None
        self.hook_embed = HookPoint()
        self.hook_pos_embed = HookPoint()
        self.blocks = nn.ModuleList(TransformerBlock(cfg) for _ in range(cfg.n_layers))  # pyright: ignore[reportAttributeAccessIssue]
        self.ln_final = LayerNorm(cfg)
        self.hook_pooled = HookPoint()
        self.unembed = Unembed(cfg) if cfg.has_proj else None
        self.hook_image_embeds = HookPoint()
        self.setup()
        self.eval()

    # ---- where models come from -------------------------------------------------------------------------

    @classmethod
    def from_module(
        cls,
        tower: nn.Module,
        *,
        encoder_id: str | None = None,
        preprocess_spec: PreprocessSpec | None = None,
    ) -> "HookedViT":
        """Convert a tower in memory: an open_clip model or its ``visual``, or a Hugging Face CLIP (vision) model.

        The weights are copied; dtype and device follow the source. Activation, eps, heads and pooling are
        read from the module, never from a name.

        Raises:
            UnsupportedTowerError: The tower is not a plain CLIP ViT; the message names what is not supported.
        """
        source = read_module(tower, encoder_id=encoder_id)
        return cls._from_source(replace(source, preprocess_spec=preprocess_spec or source.preprocess_spec))

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        tag: str | Path | None = None,
        quick_gelu: bool | None = None,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        preprocess_spec: PreprocessSpec | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
    ) -> "HookedViT":
        """Load a model by name.

        Args:
            name: ``"mini"`` (ships with the package), an open_clip model name, a Hugging Face id
                (``owner/name``, ``owner/name:subfolder``), or a local directory in Hugging Face's format.
            tag: For an open_clip name: the pretrained tag, or the path of a local checkpoint.
            quick_gelu: Which activation a local open_clip checkpoint was trained with, where its model name
                leaves that open.
            dtype: Of the weights.
            device: Of the weights.
            preprocess_spec: Instead of the one that the source names.
            revision: Of a Hugging Face repository.
            cache_dir: Where downloads are kept.

        Raises:
            UnsupportedTowerError: The tower is not a plain CLIP ViT.
            CheckpointError: The checkpoint is truncated, or its tensors do not fit.
        """
        source = read_pretrained(
            name, tag=tag, quick_gelu=quick_gelu, dtype=dtype, device=device, preprocess_spec=preprocess_spec,
            revision=revision, cache_dir=cache_dir,
        )  # fmt: skip
        return cls._from_source(source)

    @classmethod
    def _from_source(cls, source: TowerSource) -> "HookedViT":
        with torch.device("meta"):  # the tensors of the source become the parameters: one copy in memory
            model = cls(source.cfg, preprocess_spec=source.preprocess_spec, encoder_id=source.encoder_id)
        model.load_state_dict(source.state_dict, assign=True)
        return model.requires_grad_(True)

    # ---- what it is -------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embed.W_E.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.embed.W_E.dtype

    @property
    def fingerprint(self) -> str:
        """Sixteen digits that identify the weights by content (see ``vit_lens.identity.fingerprint``)."""
        state = self.state_dict()
        versions = tuple((tensor.data_ptr(), tensor._version) for tensor in state.values())
        if self._fingerprint is None or self._fingerprint[0] != versions:
            self._fingerprint = (versions, fingerprint(state))
        return self._fingerprint[1]

    @property
    def encoder_id(self) -> str:
        """Which encoder this is; decoders are made for one."""
        return self._encoder_id or f"module@{self.fingerprint}"

    @property
    def encoder_aliases(self) -> tuple[str, ...]:
        """Other ids of the same weights."""
        return aliases(self.encoder_id)

    @property
    def W_U(self) -> Float[Tensor, "d_model d_embed"]:
        """The projection to the embedding; the identity where the tower has none."""
        if self.unembed is not None:
            return self.unembed.W_U
        return torch.eye(self.cfg.d_model, dtype=self.dtype, device=self.device)

    @property
    def b_U(self) -> Float[Tensor, " d_embed"]:
        """The bias of the projection: zero, since CLIP's has none."""
        return torch.zeros(self.cfg.d_embed, dtype=self.dtype, device=self.device)

    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
    ) -> Float[Tensor, " d_model"]:
        """Return the sum of the biases written below a layer; with ``mlp_input`` also its own ``b_O``."""
        total = torch.zeros(self.cfg.d_model, dtype=self.dtype, device=self.device)
        for block in self.blocks[:layer]:
            total = total + block.attn.b_O
            if include_mlp_biases:
                total = total + block.mlp.b_out
        return total + self.blocks[layer].attn.b_O if mlp_input else total

    def set_use_attn_result(self, on: bool) -> None:
        """Compute ``hook_result`` (each head's output in the residual stream) in every run."""
        self._set_switch(use_attn_result=on)

    def set_use_attn_in(self, on: bool) -> None:
        """Give every head its own copy of the residual stream to read (``hook_attn_in``)."""
        self._set_switch(use_attn_in=on)

    def set_use_split_qkv_input(self, on: bool) -> None:
        """Give every head's queries, keys and values their own copies (``hook_q_input``, ...)."""
        self._set_switch(use_split_qkv_input=on)

    def set_use_hook_mlp_in(self, on: bool) -> None:
        """Give the MLP its own copy of the residual stream to read (``hook_mlp_in``)."""
        self._set_switch(use_hook_mlp_in=on)

    def _set_switch(self, **switch: bool) -> None:
        self.cfg = replace(self.cfg, **switch)
        for block in self.blocks:
            block.cfg = block.attn.cfg = self.cfg

    # ---- running it -------------------------------------------------------------------------------------

    def forward(
        self,
        pixels: Float[Tensor, "batch channel height width"],
        *,
        stop_at_layer: int | None = None,
        mask: Bool[Tensor, "#batch #head pos pos"] | None = None,
    ) -> Float[Tensor, "batch d_embed"] | Float[Tensor, "batch pos d_model"]:
        """Embed images, or return the residual stream that enters block ``stop_at_layer``.

        Args:
            pixels: Preprocessed images (:meth:`preprocess`).
            stop_at_layer: As in TransformerLens: exclusive, negative from the end.
            mask: Where attention is allowed, in every layer; None allows all.

        Raises:
            PreprocessError: Pixels of another size or kind, or not finite.
            UnfiredHookError: A hook sits on a point behind ``stop_at_layer``.
        """
        self._check_pixels(pixels)
        n_blocks = self.n_blocks_until(stop_at_layer)
        if stop_at_layer is not None:
            self.check_hooks_can_fire(partial(reached, n_blocks=n_blocks), f"stop_at_layer={stop_at_layer}")
        resid = self._embed(pixels)
        for block in self.blocks[:n_blocks]:
            resid = block(resid, mask)
        return resid if stop_at_layer is not None else self._read_out(resid)

    def _embed(self, pixels: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch pos d_model"]:
        embed = self.hook_embed_raw(self.embed(pixels))
        pos_embed = self.hook_pos_embed_raw(self.pos_embed(len(pixels)))
        if self.ln_pre is not None:
            embed, pos_embed = self.ln_pre(embed, pos_embed)
        return self.hook_embed(embed) + self.hook_pos_embed(pos_embed)

    def _read_out(self, resid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch d_embed"]:
        if self.cfg.ln_final == "after_pool":
            pooled = self.ln_final(self._pool(resid)[:, None])[:, 0]
        else:
            pooled = self._pool(self.ln_final(resid))
        pooled = self.hook_pooled(pooled)
        return self.hook_image_embeds(pooled if self.unembed is None else self.unembed(pooled))

    def _pool(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch d_model"]:
        return x[:, 0] if self.cfg.pool == "cls" else x[:, 1:].mean(1)

    def _check_pixels(self, pixels: Tensor) -> None:
        if not isinstance(pixels, Tensor):
            raise PreprocessError(
                f"expected a tensor of pixels, got {type(pixels).__name__}; use model.preprocess(images)"
            )
        expected = (3, *self.cfg.image_size)
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != expected or not len(pixels):
            raise PreprocessError(
                f"pixels of shape {tuple(pixels.shape)}; expected (batch, {', '.join(map(str, expected))})"
            )
        if pixels.dtype != self.dtype or pixels.device != self.device:
            raise PreprocessError(
                f"pixels are {pixels.dtype} on {pixels.device}, the model is {self.dtype} on {self.device}; "
                "model.preprocess(images) gives the right ones"
            )
        if torch.compiler.is_compiling():
            return
        finite = torch.isfinite(pixels).flatten(1).all(1)
        if not finite.all():
            raise PreprocessError(f"image {int((~finite).nonzero()[0])} holds NaN or infinite pixels")

    # ---- images -----------------------------------------------------------------------------------------

    def preprocess(
        self, images: Any, *, layout: Literal["HWC", "CHW"] | None = None
    ) -> Float[Tensor, "batch channel height width"]:
        """Turn images (paths, PIL images, arrays, or a list of them) into pixels, as the model was trained.

        Raises:
            PreprocessError: The tower came without its preprocessing: set ``model.preprocess_spec``.
            ImageError: Something is not a whole image.
        """
        return preprocess(images, self._spec(), layout=layout, dtype=self.dtype, device=self.device)

    def zero_embedding(self) -> Float[Tensor, "1 d_embed"]:
        """Return the embedding of an all-zero pixel tensor, the negative condition of Kandinsky 2.2's decoder."""
        pixels = torch.zeros(1, 3, *self.cfg.image_size, dtype=self.dtype, device=self.device)
        with torch.no_grad():
            return self(pixels)

    def _spec(self) -> PreprocessSpec:
        if self.preprocess_spec is None:
            raise PreprocessError(
                f"{self.encoder_id} carries no preprocessing; copy the preprocessor_config.json of the model that it "
                "comes from into its directory, or set model.preprocess_spec = vit_lens.PreprocessSpec"
                f"(size={self.cfg.image_size}, mean=..., std=..., interpolation='bicubic', resize_mode='shortest')"
            )
        return self.preprocess_spec

    def embed_rows(self, rows: Float[Tensor, "*batch row d_model"]) -> Float[Tensor, "*batch d_embed"]:
        """Return what the model would output if the read-out rows of its last residual were ``rows``.

        The final LayerNorm takes fresh statistics; nothing is hooked. Half precision is computed in float32.
        """
        wide = torch.promote_types(rows.dtype, torch.float32)
        weight, bias = self.ln_final.w.to(wide), self.ln_final.b.to(wide)
        normed = nn.functional.layer_norm(rows.to(self.device, wide), weight.shape, weight, bias, self.cfg.eps)
        return normed.mean(-2) @ self.W_U.to(wide)
