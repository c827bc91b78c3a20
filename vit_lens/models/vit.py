"""HookedViT: a CLIP vision transformer with TransformerLens' hook points."""

__all__ = ["HookedViT"]

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, SupportsIndex

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from vit_lens.config import HookedViTConfig
from vit_lens.errors import PreprocessError, VitLensError
from vit_lens.hooking import is_hooked
from vit_lens.identity import aliases, fingerprint
from vit_lens.images import PreprocessSpec, preprocess
from vit_lens.models.vocabulary import Vocabulary
from vit_lens.pretrained import TowerSource, read_module, read_pretrained
from vit_lens.towers.caching import CachingRootModule
from vit_lens.towers.inputs import check_input, whole_mask
from vit_lens.towers.layers import AttentionPool, Embed, LayerNorm, PosEmbed, PreNorm, TransformerBlock, Unembed
from vit_lens.towers.processing import WeightProcessing, process_model
from vit_lens.towers.stacked import StackedWeights
from vit_lens.verification import Verification, verify


class HookedViT(CachingRootModule, StackedWeights, Vocabulary):
    """A vision tower: pixels in, image embedding out, every step a hook point.

    Hook points, in the order in which they fire (B images, T tokens, H heads; those of ``attn_pool`` exist where
    tokens are pooled by attention):

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
    ``attn_pool.attn.hook_q`` / ``_z`` / ``_result``      B 1 H ...            of the one learned query
    ``attn_pool.attn.hook_k`` / ``_v``                    B T H d_head
    ``attn_pool.attn.hook_attn_scores`` / ``_pattern``    B H 1 T
    ``attn_pool.hook_attn_out``, ``hook_mlp_out``         B 1 d_pooled         their sum is the pooled vector
    ``attn_pool.ln2``, ``.mlp``, ``.ln_post``             B 1 ...              as in a block
    ``hook_pooled``                                       B d_pooled           what the projection reads
    ``hook_image_embeds``                                 B d_embed            the output
    ===================================================== ==================== =================================

    CLIP's ``ln_pre`` acts on the sum of patch and position embeddings. Its output is split exactly (see
    :class:`vit_lens.towers.layers.PreNorm`), so that ``hook_embed + hook_pos_embed`` is the residual stream that
    enters block 0; the position part then depends on the image, and an edit of either part is not normalised
    again. Edit ``hook_embed_raw`` or ``hook_pos_embed_raw`` to act before the norm.

    A gated point costs memory, so ``run_with_cache`` leaves it out unless it is named or its switch is on
    (``set_use_attn_result``, ``set_use_attn_in``, ``set_use_split_qkv_input``, ``set_use_hook_mlp_in``); a
    hook on it always fires. With inputs split by head, ``ln1`` fires for queries, keys and values in turn, and a
    cache keeps what it gave for the values (:meth:`firings`).

    Weights are zero until loaded; use :meth:`from_pretrained` or :meth:`from_module`.

    Args:
        cfg: Sizes and switches.
        preprocess_spec: How images become pixels; None where the source did not say.
        encoder_id: Which weights these are; by default the content's fingerprint.
    """

    cfg: HookedViTConfig
    blocks: Sequence[TransformerBlock]
    processing: WeightProcessing | None = None
    """What :meth:`process_weights` did to this model, and which hook points changed; None for one as it was loaded."""

    def __init__(
        self,
        cfg: HookedViTConfig,
        *,
        preprocess_spec: PreprocessSpec | None = None,
        encoder_id: str | None = None,
    ):
        super().__init__()
        if preprocess_spec is not None and not isinstance(preprocess_spec, PreprocessSpec):
            raise PreprocessError(f"preprocess_spec={preprocess_spec!r}; expected a vit_lens.PreprocessSpec")
        self.cfg = cfg
        self.preprocess_spec = preprocess_spec
        self._encoder_id = encoder_id
        self._fingerprint: tuple[tuple | None, str] | None = None
        self._loaded: tuple | None = None
        self._source: dict[str, Any] | None = None
        self.embed = Embed(cfg)
        self.hook_embed_raw = HookPoint()
        self.pos_embed = PosEmbed(cfg)
        self.hook_pos_embed_raw = HookPoint()
        self.ln_pre = PreNorm(cfg.d_model, cfg.eps) if cfg.has_ln_pre else None
        self.hook_embed = HookPoint()
        self.hook_pos_embed = HookPoint()
        self.blocks = nn.ModuleList(TransformerBlock(cfg) for _ in range(cfg.n_layers))  # pyright: ignore[reportAttributeAccessIssue]
        self.ln_final = LayerNorm(cfg.d_model, cfg.eps)
        self.attn_pool = AttentionPool(cfg, cfg.attn_pool) if cfg.attn_pool else None
        self.hook_pooled = HookPoint()
        self.unembed = Unembed(cfg.d_pooled, cfg.d_embed, bias=cfg.has_proj_bias) if cfg.has_proj else None
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
        copy: bool = True,
        image_size: int | tuple[int, int] | None = None,
    ) -> "HookedViT":
        """Convert a tower in memory: an open_clip model or its ``visual``, timm's ViT, or Hugging Face's CLIP, SigLIP
        or DINOv2.

        The weights are copied; dtype and device follow the source. Activation, eps, heads and pooling are
        read from the module, never from a name.

        Args:
            tower: The model, or its vision tower.
            encoder_id: The id of the weights if it is known; else one made from their content.
            preprocess_spec: Instead of the one that the source names.
            copy: False shares the tower's memory: an edit or a training step of either shows in the other. Towers
                whose conversion computes (LayerScale, CoCa's query) refuse it.
            image_size: For Hugging Face towers: positions for this size, by their own interpolation. None: the size
                of ``preprocess_spec`` for DINOv2, else the tower's own.

        Raises:
            UnsupportedTowerError: The tower is not a plain ViT; the message names what is not supported.
            CheckpointError: The tower has no weights, or its memory cannot be shared.
        """
        source = read_module(
            tower, encoder_id=encoder_id, copy=copy, image_size=image_size, preprocess_spec=preprocess_spec
        )
        return cls._from_source(source)

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
        image_size: int | tuple[int, int] | None = None,
    ) -> "HookedViT":
        """Load a model by name.

        A checkpoint is read one tensor at a time, so that little more than the weights is held in memory.

        Args:
            name: ``"mini"`` (ships with the package), an open_clip model name, a Hugging Face id
                (``owner/name``, ``owner/name:subfolder``), or a local directory in Hugging Face's format.
            tag: For an open_clip name: the pretrained tag, or the path of a local checkpoint.
            quick_gelu: Which activation a local open_clip checkpoint was trained with, where its model name
                leaves that open.
            dtype: Of the weights.
            device: Of the weights; on ``"meta"`` the files are checked and the model has shapes without weights.
            preprocess_spec: Instead of the one that the source names.
            revision: Of a Hugging Face repository.
            cache_dir: Where downloads are kept.
            image_size: For Hugging Face towers: positions for this size, by their own interpolation. None: what
                DINOv2's image processor crops (224, where its config says 518), else the size in the config.

        Raises:
            UnsupportedTowerError: The tower is not a plain ViT.
            CheckpointError: The checkpoint is truncated, or its tensors do not fit.
        """
        source = read_pretrained(
            name, tag=tag, quick_gelu=quick_gelu, dtype=dtype, device=device, preprocess_spec=preprocess_spec,
            revision=revision, cache_dir=cache_dir, image_size=image_size,
        )  # fmt: skip
        model = cls._from_source(source)
        model._source = {
            "name": name, "tag": tag, "quick_gelu": quick_gelu, "dtype": dtype, "device": str(device),
            "preprocess_spec": preprocess_spec, "revision": revision, "cache_dir": cache_dir, "image_size": image_size,
        }  # fmt: skip
        return model

    @classmethod
    def _from_source(cls, source: TowerSource) -> "HookedViT":
        with torch.device("meta"):  # the tensors of the source become the parameters: one copy in memory
            model = cls(source.cfg, preprocess_spec=source.preprocess_spec, encoder_id=source.encoder_id)
        model.load_state_dict(source.state_dict, assign=True)
        model._set_switch(device=str(model.device))
        model._loaded = model._versions()
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
        """Sixteen digits that identify the weights by content (see ``vit_lens.identity.fingerprint``).

        They are kept until the weights change. Change weights under ``torch.no_grad()``: PyTorch does not count
        changes through ``.data``, so they would go unseen here.
        """
        versions = self._versions()
        if versions is None or self._fingerprint is None or self._fingerprint[0] != versions:
            self._fingerprint = (versions, fingerprint(self.state_dict()))
        return self._fingerprint[1]

    @property
    def edited(self) -> bool:
        """Whether weights were changed since the model was loaded; changes through ``.data`` go unseen.

        A model that was built from a config was not loaded, so it is never edited.
        """
        return self._loaded is not None and self._versions() != self._loaded

    @property
    def source(self) -> dict[str, Any] | None:
        """Arguments of :meth:`from_pretrained` that make this model elsewhere; None for one made or changed here."""
        if self._source is None or self.edited:
            return None
        return {**self._source, "dtype": self.dtype, "device": str(self.device)}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_fingerprint": None, "_loaded": None if self._loaded is None else self.edited}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # a copy's tensors are its own
        if self._loaded is not None:
            self._loaded = () if self._loaded else self._versions()

    def _versions(self) -> tuple | None:
        state = self.state_dict().values()
        if any(tensor.is_inference() for tensor in state):  # these count no changes
            return None
        return tuple((tensor.data_ptr(), tensor._version) for tensor in state)

    @property
    def encoder_id(self) -> str:
        """Which encoder this is; decoders are made for one."""
        return self._encoder_id or f"module@{self.fingerprint}"

    @property
    def encoder_aliases(self) -> tuple[str, ...]:
        """Other ids of the same weights."""
        return aliases(self.encoder_id)

    @property
    def W_U(self) -> Float[Tensor, "d_pooled d_embed"]:
        """The projection to the embedding; the identity where the tower has none."""
        if self.unembed is not None:
            return self.unembed.W_U
        return torch.eye(self.cfg.d_pooled, dtype=self.dtype, device=self.device)

    @property
    def b_U(self) -> Float[Tensor, " d_embed"]:
        """The bias of the projection; zero where the tower has none."""
        if self.unembed is not None and self.unembed.b_U is not None:
            return self.unembed.b_U
        return torch.zeros(self.cfg.d_embed, dtype=self.dtype, device=self.device)

    # ---- other weights for the same function; the same function as the source -------------------------------

    def process_weights(
        self, *, fold_ln: bool = True, fold_value_biases: bool = True, center_writing_weights: bool = True
    ) -> "HookedViT":
        """Return a new model that computes the same function with weights that are easier to read.

        Names as in TransformerLens; :mod:`vit_lens.towers.processing` says what each step does and what CLIP forbids.
        The ``encoder_id`` stays; the :attr:`fingerprint` changes, so reference means must be made again. The new
        model's ``processing`` lists every hook point that means something else. Half-precision weights are
        rounded once more: process in float32, then cast.

        Args:
            fold_ln: Move the weight and bias of LayerNorms into the matrices that read them.
            fold_value_biases: Move value biases into ``b_O``.
            center_writing_weights: Remove the mean over ``d_model`` from what is written to the residual stream.

        Raises:
            VitLensError: No step is asked for, or hooks are on the model.
        """
        return process_model(
            self, fold_ln=fold_ln, fold_value_biases=fold_value_biases, center_writing_weights=center_writing_weights
        )

    def verify(
        self,
        source: nn.Module | str | Path,
        *,
        tag: str | Path | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        images: Any = None,
        dtypes: Sequence[torch.dtype] | None = None,
    ) -> Verification:
        """Compare the model with the tower that it came from, layer by layer; see :func:`vit_lens.verification.verify`.

        ``HookedViT.from_module(tower).verify(tower)`` certifies a fine-tune of your own.
        """
        return verify(self, source, tag=tag, revision=revision, cache_dir=cache_dir, images=images, dtypes=dtypes)

    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
    ) -> Float[Tensor, " d_model"]:
        """Return the sum of the biases written below a layer; with ``mlp_input`` also its own ``b_O``.

        Raises:
            VitLensError: There is no such layer.
        """
        until = self._layer("layer", layer)
        if mlp_input and until == self.cfg.n_layers:
            raise VitLensError(f"mlp_input=True is the input of a block's MLP: layer must be below {until}")
        total = torch.zeros(self.cfg.d_model, dtype=self.dtype, device=self.device)
        for block in self.blocks[:until]:
            total = total + block.attn.b_O
            if include_mlp_biases:
                total = total + block.mlp.b_out
        return total + self.blocks[until].attn.b_O if mlp_input else total

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

    def _set_switch(self, **switch: bool | str) -> None:
        self.cfg = replace(self.cfg, **switch)  # pyright: ignore[reportArgumentType]
        for block in self.blocks:
            block.cfg = block.attn.cfg = self.cfg
        if self.attn_pool is not None:
            self.attn_pool.attn.cfg = self.cfg

    def _apply(self, fn: Any, recurse: bool = True) -> "HookedViT":
        edited = self.edited
        moved = super()._apply(fn, recurse)
        self._set_switch(device=str(self.device))
        if self._loaded is not None and not edited:
            self._loaded = self._versions()
        return moved

    # ---- running it -------------------------------------------------------------------------------------

    def forward(
        self,
        pixels: Float[Tensor, "batch channel height width"] | Float[Tensor, "batch pos d_model"],
        *,
        start_at_layer: SupportsIndex | None = None,
        stop_at_layer: SupportsIndex | None = None,
        mask: Tensor | None = None,
    ) -> Float[Tensor, "batch d_embed"] | Float[Tensor, "batch pos d_model"]:
        """Embed images, or return the residual stream that enters block ``stop_at_layer``.

        Args:
            pixels: Preprocessed images (:meth:`preprocess`); with ``start_at_layer`` the residual stream.
            start_at_layer: As in TransformerLens: the first block to run, on a residual stream that is given.
            stop_at_layer: As in TransformerLens: exclusive, negative from the end.
            mask: Bool [pos pos] or [batch or 1, head or 1, pos, pos], True where a query (third axis) may look at a
                key, in every block; None allows all.

        Raises:
            PreprocessError: Pixels, or a residual stream, of another size or kind, or not finite.
            VitLensError: A mask of another shape or dtype, or one that leaves a query nothing to look at.
            UnfiredHookError: A hook sits on a point before ``start_at_layer`` or behind ``stop_at_layer``.
        """
        if torch.compiler.is_compiling() and self.hooked_names():  # which also makes a compiler watch every hook point
            return _uncompiled()(self, pixels, start_at_layer=start_at_layer, stop_at_layer=stop_at_layer, mask=mask)
        blocks = self.blocks_to_run(start_at_layer, stop_at_layer)
        self.check_reach(start_at_layer, stop_at_layer)
        if start_at_layer is None:
            check_input(pixels, (3, *self.cfg.image_size), self.embed.W_E)
            resid = self._embed(pixels)
        else:
            check_input(pixels, (self.cfg.n_ctx, self.cfg.d_model), self.embed.W_E)
            resid = pixels
        mask = None if mask is None else whole_mask(mask, len(resid), self.cfg)
        for layer in blocks:
            resid = self.blocks[layer](resid, mask)
        return resid if stop_at_layer is not None else self._read_out(resid)

    def _embed(self, pixels: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch pos d_model"]:
        embed = self.hook_embed_raw(self.embed(pixels))
        pos_embed = self.hook_pos_embed_raw(self.pos_embed(len(pixels)))
        if self.ln_pre is not None:
            if not any(map(is_hooked, (self.ln_pre.hook_scale, self.hook_embed, self.hook_pos_embed))):
                return self.ln_pre.read(embed + pos_embed)
            embed, pos_embed = self.ln_pre(embed, pos_embed)
        return self.hook_embed(embed) + self.hook_pos_embed(pos_embed)

    def _read_out(self, resid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch d_embed"]:
        if self.cfg.ln_final == "after_pool":
            pooled = self.ln_final(self._pool(resid)[:, None])[:, 0]
        else:
            pooled = self._pool(self.ln_final(resid))
        pooled = self.hook_pooled(pooled)
        return self.hook_image_embeds(pooled if self.unembed is None else self.unembed(pooled))

    def _pool(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch d_pooled"]:
        if self.attn_pool is not None:
            return self.attn_pool(x)
        return x[:, 0] if self.cfg.pool == "cls" else x[:, self.cfg.n_prefix :].mean(1)

    # ---- images -----------------------------------------------------------------------------------------

    def preprocess(
        self, images: Any, *, layout: Literal["HWC", "CHW"] | None = None
    ) -> Float[Tensor, "batch channel height width"]:
        """Turn images (paths, PIL images, arrays, or a list of them) into pixels, as the model was trained.

        Raises:
            PreprocessError: The tower came without its preprocessing: set ``model.preprocess_spec``.
            ImageError: Something is not a whole image.
        """
        return preprocess(images, self.spec(), layout=layout, dtype=self.dtype, device=self.device)

    def zero_embedding(self) -> Float[Tensor, "1 d_embed"]:
        """Return the embedding of an all-zero pixel tensor, the negative condition of Kandinsky 2.2's decoder."""
        pixels = torch.zeros(1, 3, *self.cfg.image_size, dtype=self.dtype, device=self.device)
        with torch.no_grad():
            return self(pixels)

    def spec(self) -> PreprocessSpec:
        if self.preprocess_spec is None:
            raise PreprocessError(
                f"{self.encoder_id} carries no preprocessing; copy the preprocessor_config.json of the model that it "
                "comes from into its directory, or set model.preprocess_spec = vit_lens.PreprocessSpec"
                f"(size={self.cfg.image_size}, mean=..., std=..., interpolation='bicubic', resize_mode='shortest')"
            )
        return self.preprocess_spec

    def embed_rows(self, rows: Float[Tensor, "*batch row d_model"]) -> Float[Tensor, "*batch d_embed"]:
        """Return what the model would output if the read-out rows of its last residual were ``rows``.

        The final LayerNorm takes fresh statistics; nothing is hooked. Half precision is computed in float32. Any
        number of rows is allowed, so a single token can be read alone.
        """
        x = self.ln_final.read(rows.to(self.device, torch.promote_types(rows.dtype, torch.float32)))
        return self.embed_pooled(x.mean(-2) if self.attn_pool is None else self.attn_pool.read(x))

    def embed_pooled(self, pooled: Float[Tensor, "*batch d_pooled"]) -> Float[Tensor, "*batch d_embed"]:
        """Return the embedding of a pooled vector (``hook_pooled``), without hooks, in the dtype of ``pooled``."""
        if self.unembed is None:
            return pooled
        out = pooled @ self.unembed.W_U.to(pooled)
        return out if self.unembed.b_U is None else out + self.unembed.b_U.to(pooled)


@cache
def _uncompiled() -> Any:
    """Return ``forward`` as a compiler leaves it alone; made late, since making it imports the compiler."""
    return torch.compiler.disable(HookedViT.forward, reason="hooks are on the model, and a graph could keep old ones")
