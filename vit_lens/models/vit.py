"""HookedViT: a CLIP vision transformer with TransformerLens' hook points."""

__all__ = ["HookedViT"]

from pathlib import Path
from typing import Any, Literal, SupportsIndex

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from vit_lens.config import HookedViTConfig
from vit_lens.errors import PreprocessError
from vit_lens.hooking import is_hooked
from vit_lens.images import PreprocessSpec, preprocess
from vit_lens.models.loaded import LoadedTower, uncompiled
from vit_lens.sources import TowerSource, read_module, read_pretrained
from vit_lens.towers import Embed, PosEmbed, PreNorm, check_input, whole_mask


class HookedViT(LoadedTower):
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
        cfg: The sizes and switches of the tower.
        preprocess_spec: How images become pixels; None where the source did not say, and :meth:`preprocess` raises.
        encoder_id: The id that decoders and text banks know the weights by; by default ``module@`` and the
            :attr:`fingerprint`.

    Raises:
        PreprocessError: ``preprocess_spec`` is no :class:`vit_lens.PreprocessSpec`, or makes pixels of another size.

    >>> model = vl.HookedViT.from_pretrained("mini")
    >>> embeds, cache = model.run_with_cache(model.preprocess(images))
    >>> embeds.shape, cache["pattern", 3].shape
    (torch.Size([2, 128]), torch.Size([2, 8, 17, 17]))
    >>> silenced = model.run_with_hooks(pixels, fwd_hooks=[("blocks.3.attn.hook_z", lambda z, hook: 0 * z)])
    >>> bool(torch.allclose(silenced, embeds))
    False
    """

    cfg: HookedViTConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self, cfg: HookedViTConfig, *, preprocess_spec: PreprocessSpec | None = None, encoder_id: str | None = None
    ):
        super().__init__(cfg, encoder_id=encoder_id)
        self.preprocess_spec = preprocess_spec
        self.embed = Embed(cfg)
        self.hook_embed_raw = HookPoint()
        self.pos_embed = PosEmbed(cfg)
        self.hook_pos_embed_raw = HookPoint()
        self.ln_pre = PreNorm(cfg.d_model, cfg.eps) if cfg.has_ln_pre else None
        self.hook_embed = HookPoint()
        self.hook_pos_embed = HookPoint()
        self.add_blocks()

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
        """Convert a tower in memory: open_clip's, timm's ViT, or Hugging Face's CLIP, SigLIP or DINOv2.

        The weights are copied; dtype and device follow the source. Activation, eps, heads and pooling are
        read from the module, never from a name.

        Args:
            tower: The whole model, or its vision tower alone (of open_clip ``model.visual``).
            encoder_id: The id of the weights if it is known; None makes one from their content.
            preprocess_spec: How images become pixels; None takes what the tower carries, if it carries any.
            copy: Whether the weights are copied. False shares the tower's memory: an edit or a training step of
                either shows in the other. Towers whose conversion computes (LayerScale, CoCa's query) refuse it.
            image_size: The side, or (height, width), in pixels that Hugging Face's towers interpolate their positions
                to. None takes the size of ``preprocess_spec`` for DINOv2, else the tower's own.

        Raises:
            UnsupportedTowerError: The tower is not a plain ViT; the message names what is not supported.
            CheckpointError: The tower has no weights, or its memory cannot be shared.

        >>> from transformers import CLIPVisionConfig, CLIPVisionModel
        >>> sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
        >>> tower = CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=20, patch_size=5))
        >>> model = vl.HookedViT.from_module(tower)
        >>> model.cfg.n_layers, model.cfg.grid
        (2, (4, 4))
        >>> model(torch.zeros(1, 3, 20, 20)).shape
        torch.Size([1, 32])
        """
        given: dict[str, Any] = {"copy": copy, "image_size": image_size, "preprocess_spec": preprocess_spec}
        return cls._from_source(read_module(tower, encoder_id=encoder_id, **given))

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
            name: What to load: ``"mini"`` (ships with the package), an open_clip model name, a Hugging Face id
                (``owner/name``, ``owner/name:subfolder``), or a local directory in Hugging Face's format.
            tag: The pretrained tag of an open_clip name, or the path of a local checkpoint; None for any other name.
            quick_gelu: Which activation a local open_clip checkpoint was trained with, where its model name
                leaves that open; None where something else says it.
            dtype: The floating-point type that the weights are cast to.
            device: Where the weights go; on ``"meta"`` the files are checked and the model has shapes without weights.
            preprocess_spec: How images become pixels; None takes what the source says.
            revision: The branch, tag or commit of a Hugging Face repository; None takes its main branch.
            cache_dir: Where downloads are kept; None takes the default of the library that downloads.
            image_size: The side, or (height, width), in pixels that Hugging Face's towers interpolate their positions
                to. None takes what DINOv2's image processor crops (224, where its config says 518), else the size in
                the config.

        Raises:
            UnsupportedTowerError: The tower is not a plain ViT; the message names what is not supported.
            CheckpointError: The name is unknown, the checkpoint is truncated, or its tensors do not fit.

        >>> vl.HookedViT.from_pretrained("mini", dtype=torch.float64).dtype
        torch.float64
        >>> vl.HookedViT.from_pretrained("ViT-B-23", tag="openai")
        Traceback (most recent call last):
        vit_lens.errors.CheckpointError: tag= belongs to open_clip names; ViT-B-23 is none, nearest: 'ViT-B-32', ...
        """
        asked: dict[str, Any] = {
            "tag": tag, "quick_gelu": quick_gelu, "dtype": dtype, "device": device, "preprocess_spec": preprocess_spec,
            "revision": revision, "cache_dir": cache_dir, "image_size": image_size,
        }  # fmt: skip
        model = cls._from_source(read_pretrained(name, **asked))
        model._source = {"name": name, **asked}
        return model

    @classmethod
    def _from_source(cls, source: TowerSource) -> "HookedViT":
        carried = {"preprocess_spec": source.preprocess_spec, "encoder_id": source.encoder_id}
        return cls._made_of(source.cfg, source.state_dict, **carried)

    def _carried(self) -> dict[str, Any]:
        return {**super()._carried(), "preprocess_spec": self.preprocess_spec}

    # ---- what it is -------------------------------------------------------------------------------------

    @property
    def preprocess_spec(self) -> PreprocessSpec | None:
        """How images become pixels; None where the source did not say.

        Raises:
            PreprocessError: What is set is no :class:`vit_lens.PreprocessSpec`, or makes pixels of another size.
        """
        return self._preprocess_spec

    @preprocess_spec.setter
    def preprocess_spec(self, spec: PreprocessSpec | None) -> None:
        if spec is not None and not isinstance(spec, PreprocessSpec):
            raise PreprocessError(f"preprocess_spec={spec!r}; expected a vit_lens.PreprocessSpec")
        if spec is not None and tuple(spec.size) != self.cfg.image_size:
            raise PreprocessError(
                f"preprocess_spec makes pixels of {tuple(spec.size)}, the tower sees {self.cfg.image_size} (height, "
                f"width): give dataclasses.replace(spec, size={self.cfg.image_size}, resize_edge=None), or load the "
                f"tower with image_size={tuple(spec.size)}, where it interpolates its positions"
            )
        self._preprocess_spec = spec

    @property
    def W_E(self) -> Float[Tensor, "d_patch d_model"]:
        """The patch embedding; a patch is flattened as (channel, row, column)."""
        return self.embed.W_E

    @property
    def W_pos(self) -> Float[Tensor, "pos d_model"]:
        """The learned position embeddings, one row for each token: class token, registers, patches row by row."""
        return self.pos_embed.W_pos

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
            pixels: Preprocessed images (:meth:`preprocess`); with ``start_at_layer`` a residual stream.
            start_at_layer: The first block to run, as in TransformerLens; None embeds pixels first.
            stop_at_layer: The first block not to run, as in TransformerLens, negative from the end; None runs all
                blocks and the read-out.
            mask: Bool [pos pos] or [batch or 1, head or 1, pos, pos], True where a query (third axis) may look at a
                key, in every block; None allows all.

        Returns:
            The image embeddings; with ``stop_at_layer`` the residual stream that enters that block.

        Raises:
            PreprocessError: Pixels, or a residual stream, of another size or kind, or not finite.
            VitLensError: A mask of another shape or dtype, or one that leaves a query nothing to look at.
            UnfiredHookError: A hook sits on a point before ``start_at_layer`` or behind ``stop_at_layer``.

        >>> resid = model(pixels, stop_at_layer=3)
        >>> resid.shape
        torch.Size([2, 17, 128])
        >>> bool(torch.allclose(model(resid, start_at_layer=3), model(pixels), atol=1e-4))
        True
        """
        hooked = torch.compiler.is_compiling() and any(map(is_hooked, self.hook_dict.values()))
        if hooked:  # to ask also makes a compiler watch every hook point
            run = uncompiled(HookedViT.forward)
            return run(self, pixels, start_at_layer=start_at_layer, stop_at_layer=stop_at_layer, mask=mask)
        blocks = self.blocks_to_run(start_at_layer, stop_at_layer)
        self.check_reach(start_at_layer, stop_at_layer)
        if start_at_layer is None:
            check_input(pixels, (3, *self.cfg.image_size), self.embed.W_E)
            resid = self._embed(pixels)
        else:
            check_input(pixels, (self.cfg.n_ctx, self.cfg.d_model), self.embed.W_E)
            resid = pixels
        mask = None if mask is None else whole_mask(mask, len(resid), self.cfg, resid.device)
        resid = self.run_blocks(resid, blocks, mask)
        return resid if stop_at_layer is not None else self.read_out(resid)

    def _embed(self, pixels: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch pos d_model"]:
        embed = self.hook_embed_raw(self.embed(pixels))
        pos_embed = self.pos_embed(len(pixels))
        if is_hooked(self.hook_pos_embed_raw):  # which may edit it in place: it is the weight
            pos_embed = self.hook_pos_embed_raw(pos_embed.clone())
        if self.ln_pre is not None:
            if not any(map(is_hooked, (self.ln_pre, self.ln_pre.hook_scale, self.hook_embed, self.hook_pos_embed))):
                return self.ln_pre.read(embed + pos_embed)
            embed, pos_embed = self.ln_pre(embed, pos_embed)
        return self.hook_embed(embed) + self.hook_pos_embed(pos_embed)

    # ---- images -----------------------------------------------------------------------------------------

    def preprocess(
        self, images: Any, *, layout: Literal["HWC", "CHW"] | None = None
    ) -> Float[Tensor, "batch channel height width"]:
        """Turn images (paths, PIL images, arrays, or a list of them) into pixels, as the model was trained.

        Args:
            images: One image or several; see :func:`vit_lens.images.load_image`.
            layout: The order of the axes of arrays; None takes HWC for uint8 arrays, and float arrays must name it.

        Raises:
            PreprocessError: The tower came without its preprocessing (set ``model.preprocess_spec``), or an array is
                ambiguous.
            ImageError: Something is not a whole image.

        >>> model.preprocess(images).shape
        torch.Size([2, 3, 64, 64])
        >>> model.preprocess(np.zeros((3, 80, 120)), layout="CHW").shape
        torch.Size([1, 3, 64, 64])
        """
        return preprocess(images, self.spec(), layout=layout, dtype=self.dtype, device=self.device)

    def zero_embedding(self) -> Float[Tensor, "1 d_embed"]:
        """Return the embedding of an all-zero pixel tensor, the negative condition of Kandinsky 2.2's decoder.

        >>> model.zero_embedding().shape
        torch.Size([1, 128])
        """
        pixels = torch.zeros(1, 3, *self.cfg.image_size, dtype=self.dtype, device=self.device)
        with torch.no_grad():
            return self(pixels)

    def spec(self) -> PreprocessSpec:
        """Return how images become pixels for this tower.

        Raises:
            PreprocessError: The tower came without its preprocessing: set ``model.preprocess_spec``.

        >>> model.spec().size, model.spec().resize_mode
        ((64, 64), 'shortest')
        """
        if self.preprocess_spec is None:
            raise PreprocessError(
                f"{self.encoder_id} carries no preprocessing; copy the preprocessor_config.json of the model that it "
                "comes from into its directory, or set model.preprocess_spec = vit_lens.PreprocessSpec"
                f"(size={self.cfg.image_size}, mean=..., std=..., interpolation='bicubic', resize_mode='shortest')"
            )
        return self.preprocess_spec
