"""A hooked tower: blocks on a residual stream and a read-out; a kind of tower adds how its inputs are embedded."""

__all__ = ["HookedTower"]

import operator
from abc import ABCMeta
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, SupportsIndex

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from vit_lens.addresses import Site
from vit_lens.config import TowerConfig
from vit_lens.errors import InterventionError, LensError, VitLensError, expect
from vit_lens.identity import exact_fingerprint
from vit_lens.towers.caching import CachingRootModule
from vit_lens.towers.contract import Tower
from vit_lens.towers.copying import working_copy
from vit_lens.towers.layers import Attention, AttentionPool, LayerNorm, RelativeBias, TransformerBlock, Unembed, norm_of
from vit_lens.towers.processing import WeightProcessing
from vit_lens.towers.readout import Readout, readout_kind
from vit_lens.towers.stacked import StackedWeights
from vit_lens.towers.streams import PoolingStream, ResidualStream, Stream
from vit_lens.towers.vocabulary import Vocabulary

_PER_QUERY = ("hook_attn_scores", "hook_pattern", "hook_rel_bias")
_POOL = "attn_pool."
_POOL_KEYS = (f"{_POOL}attn.hook_k", f"{_POOL}attn.hook_v")  # of every token; the rest is of the one query
_READOUT_PARTS = (
    "hook_resid_pre", "attn.hook_z", "hook_attn_out", "hook_resid_mid", "hook_mlp_out", "hook_resid_post",
)  # fmt: skip
_READOUT_ENDS = ("hook_embed", "hook_pos_embed", "ln_final.hook_scale")
_POOL_PARTS = ("attn.hook_pattern", "attn.hook_z", "hook_attn_out", "hook_mlp_out", "ln_post.hook_scale")


class HookedTower(CachingRootModule, StackedWeights, Vocabulary):
    """Blocks, a final norm and a read-out with hook points, cached runs, stacked weights and an identity.

    A subclass makes the modules that embed its inputs, then calls :meth:`add_blocks`; its ``forward`` embeds, then
    calls :meth:`run_blocks` and :meth:`read_out`. It says where its texts end, if it reads them there, by
    :meth:`readout_of`. Everything else that lenses, attribution and interventions need (:class:`Tower`) follows.

    Args:
        cfg: The sizes and switches of the tower.
        encoder_id: The id that decoders and text banks know the weights by; by default ``module@`` and the
            :attr:`fingerprint`.

    >>> model.OV.shape, model.dtype, model.edited
    (torch.Size([8, 8, 128, 128]), torch.float32, False)
    >>> model.readout_rows(cache["resid_post", 3]).shape, model.stream_of(Site.parse("L3H4")).start
    (torch.Size([2, 1, 128]), 'blocks.0.hook_resid_pre')
    >>> bool(torch.allclose(model.embed_rows(cache["resid_post", 7][:, :1]), model(pixels), atol=1e-4))
    True
    """

    cfg: TowerConfig
    blocks: Sequence[TransformerBlock]
    processing: WeightProcessing | None = None
    """What was done to the weights, and which hook points changed; None for a tower as it was loaded."""
    output_point: str = "hook_image_embeds"
    """The hook point of the output."""

    def __init__(self, cfg: TowerConfig, *, encoder_id: str | None = None):
        super().__init__()
        expect(cfg, TowerConfig, "cfg", VitLensError, "the sizes of the tower, such as HookedViTConfig(...)")
        if encoder_id is not None:
            expect(encoder_id, str, "encoder_id", VitLensError, "the id of the weights, or None")
        self.cfg = cfg
        self._encoder_id = encoder_id
        self._fingerprints: tuple[tuple | None, dict[torch.dtype, str]] = None, {}
        self._loaded: tuple | None = None

    def add_blocks(self) -> None:
        """Make the blocks, the final norm and the read-out, and name the hook points."""
        cfg = self.cfg
        self.rel_bias = RelativeBias(cfg.relative_bias, cfg.n_heads) if cfg.relative_bias else None
        self.blocks = nn.ModuleList(TransformerBlock(cfg) for _ in range(cfg.n_layers))  # pyright: ignore[reportAttributeAccessIssue]
        self.ln_final: LayerNorm = norm_of(cfg)
        self.attn_pool = AttentionPool(cfg, cfg.attn_pool) if cfg.attn_pool else None
        self.hook_pooled = HookPoint()
        self.unembed = Unembed(cfg.d_pooled, cfg.d_embed, bias=cfg.has_proj_bias) if cfg.has_proj else None
        setattr(self, self.output_point, HookPoint())
        self.setup()
        self.eval()

    # ---- running it -------------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the tower; a residual stream that is given stays the caller's, as the output is.

        Raises:
            VitLensError: The output holds NaN or inf; the message names the first activation that does. Or another
                thread has hooks on the model.
        """
        if torch.compiler.is_compiling():
            return super().__call__(*args, **kwargs)
        if kwargs.get("start_at_layer") is not None and args and isinstance(args[0], Tensor):
            args = (args[0].clone(), *args[1:])
        try:
            out = super().__call__(*args, **kwargs)
        except RuntimeError as error:
            self._refuse_mixed(error)
            raise
        if isinstance(out, Tensor) and not out.is_meta and not torch.isfinite(out).all():
            self._refuse_output(args, kwargs)
        return out

    def _refuse_mixed(self, error: RuntimeError) -> None:
        """Raise instead of an error of PyTorch's if weights of several dtypes or devices are what it stumbled over."""
        kinds: dict[tuple[torch.dtype, torch.device], list[str]] = {}
        for name, weight in self.named_parameters():
            kinds.setdefault((weight.dtype, weight.device), []).append(name)
        if len(kinds) > 1 and not isinstance(error, torch.OutOfMemoryError):
            said = ", ".join(f"{len(names)} of {dtype} on {at}, as {names[0]}" for (dtype, at), names in kinds.items())
            raise VitLensError(
                f"weights of one model are of several kinds: {said}; model.to(dtype) and model.to(device) make them one"
            ) from error

    @torch.no_grad()
    def _refuse_output(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise for an output that is not finite: run without the hooks that are on the model, and look everywhere."""

        def look(x: Tensor, hook: HookPoint) -> None:
            odd = ~torch.isfinite(x)
            if odd.any() and not str(hook.name).endswith("hook_attn_scores"):  # a mask makes these -inf
                raise VitLensError(
                    f"{hook.name} is the first activation that holds NaN or inf ({int(odd.sum())} of {x.numel()} "
                    f"values{weights}), so the output does; load sound weights, or run in float32 or bfloat16, whose "
                    "range is wider than float16's"
                )

        bad = [name for name, weight in self.named_parameters() if not torch.isfinite(weight).all()]
        weights = f"; so do the weights {bad[:4]}{' and more' if len(bad) > 4 else ''}" if bad else ""
        own = {name for name, _ in self.named_modules()}  # and none of a dictionary, which the copy is without
        reached = self._names_to_cache(None, kwargs.get("start_at_layer"), kwargs.get("stop_at_layer"))
        names = [name for name in reached if name in own]
        bare = working_copy(self, device=self.device)
        bare.run_with_hooks(*args, fwd_hooks=[(name, look) for name in names], **kwargs)
        raise VitLensError(
            f"the output holds NaN or inf, and without the hooks on {self.hooked_names()[:4]} it does not: one of "
            "them brings these in"
        )

    def preprocess(self, images: Any) -> Tensor:
        """Return what ``forward`` takes; a kind of tower says how.

        Raises:
            VitLensError: This kind of tower preprocesses nothing.
        """
        raise VitLensError(f"a {type(self).__name__} takes tensors as its forward pass does; it preprocesses nothing")

    def run_blocks(
        self, resid: Float[Tensor, "batch pos d_model"], blocks: range, mask: Tensor | None = None
    ) -> Float[Tensor, "batch pos d_model"]:
        """Run some blocks on a residual stream; a causal tower adds its own mask to the one that is given.

        Args:
            resid: The residual stream that enters the first of them.
            blocks: The indices of the blocks, as :meth:`blocks_to_run` gives them.
            mask: True where a query may look at a key; None allows all.
        """
        n_pos = resid.shape[1]
        if self.cfg.is_causal:
            seen = torch.ones(1, 1, n_pos, n_pos, dtype=torch.bool, device=resid.device).tril()
            mask = seen if mask is None else seen & mask
        bias = self.rel_bias(len(resid), n_pos) if self.rel_bias is not None and len(blocks) else None
        for layer in blocks:
            resid = self.blocks[layer](resid, mask, bias)
        return resid

    def read_out(
        self, resid: Float[Tensor, "batch pos d_model"], readout: Readout | None = None
    ) -> Float[Tensor, "batch *row d_embed"]:
        """Return the output of a last residual, past the hook points.

        Args:
            resid: The residual stream that leaves the last block.
            readout: How it is read; None takes the tower's own.
        """
        pooled = self.hook_pooled((readout or self.readout).pool(resid))
        return getattr(self, self.output_point)(pooled if self.unembed is None else self.unembed(pooled))

    # ---- how it is read ---------------------------------------------------------------------------------

    @property
    def readout(self) -> Readout:
        """How the output is read off the last residual stream."""
        return self.readout_of()

    def readout_of(self, *model_args: Any, ends: Int[Tensor, " batch"] | None = None) -> Readout:
        """Return the read-out of a run; the same for all, but where texts are read at their ends.

        Args:
            *model_args: What the run was given.
            ends: The position at which each text ends; None for images.
        """
        n_prefix = getattr(self.cfg, "n_prefix", 0)
        return readout_kind(self.cfg)(self.cfg, self.ln_final, self.unembed, self.attn_pool, n_prefix, ends)

    def beside(self, inputs: Any) -> dict[str, Tensor]:
        """Return what a run from a later block needs beside the residual stream, by name; nothing for images.

        Args:
            inputs: What the run began with.
        """
        return {}

    def positions_of(self, where: Any, prompts: Any) -> Bool[Tensor, "batch pos"]:
        """Return where a position is in prompts; a tower that reads texts says how.

        Raises:
            InterventionError: This tower reads none.
        """
        raise InterventionError(f"prompts= says where words are, and a {type(self).__name__} reads none; leave it out")

    @property
    def streams(self) -> tuple[Stream, ...]:
        """What parts add up in: the residual stream, and behind it that of attention pooling, where there is any."""
        readout = self.readout
        pool = () if self.attn_pool is None else (PoolingStream(readout, self.attn_pool),)
        return ResidualStream(readout, self.blocks), *pool  # pyright: ignore[reportArgumentType]

    def stream_of(self, site: Site) -> Stream:
        """Return the stream that a site writes to.

        Raises:
            UnknownSiteError: The site is not one of the model's.
        """
        return self.streams[site.check(self.cfg).is_pool]  # pyright: ignore[reportArgumentType]

    def attention_of(self, site: Site) -> Attention:
        """Return the attention that a head, attention block or site of attention pooling belongs to.

        Raises:
            LensError: It is one of attention pooling, and the model has none.
        """
        if site.layer is not None:
            return self.blocks[site.layer].attn
        if self.attn_pool is None:
            raise LensError(f"site {site}: {self.encoder_id} has no attention pooling")
        return self.attn_pool.attn

    def readout_rows(self, x: Float[Tensor, "batch pos *axes"]) -> Float[Tensor, "batch row *axes"]:
        """Return a copy of the rows of a residual-like activation that the output is read from.

        One row, CLS; or every patch (mean pooling after the final norm); or their mean (before it); or every
        token (attention pooling).
        """
        return self.readout.rows(x).clone()

    def embed_rows(self, rows: Float[Tensor, "*batch row d_model"]) -> Float[Tensor, "*batch_out d_embed"]:
        """Return what the model would output if the read-out rows of its last residual were ``rows``.

        See :meth:`vit_lens.towers.readout.Readout.read`.
        """
        return self.readout.read(rows)

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

    # ---- which hook points, which positions --------------------------------------------------------------

    def pos_axis(self, name: str) -> int | None:
        """Return the axis of token positions of a hook point's activation, or None if it is pooled.

        >>> model.pos_axis("blocks.3.attn.hook_pattern"), model.pos_axis("hook_pooled")
        (2, None)
        """
        self.hook_points_named(name)
        last = name.rsplit(".", 1)[-1]
        if last in ("hook_pooled", self.output_point):
            return 1 if self.cfg.pool == "all" else None
        if name.startswith(_POOL) and name not in _POOL_KEYS:
            return None
        if name.startswith("ln_final.") and self.readout.pools_first:
            return None
        return 2 if last in _PER_QUERY else 1

    def is_readout_part(self, name: str) -> bool:
        """Whether a hook point is one that lenses read: the residual stream, what is written to it, and pooling."""
        if name.startswith("blocks."):
            return name.split(".", 2)[2] in _READOUT_PARTS
        return name in _READOUT_ENDS or (name.startswith(_POOL) and name.removeprefix(_POOL) in _POOL_PARTS)

    def blocks_to_run(self, start_at_layer: SupportsIndex | None, stop_at_layer: SupportsIndex | None) -> range:
        """Return which blocks a call runs; layers as in TransformerLens: ``stop`` exclusive, negative from the end.

        Raises:
            VitLensError: A layer is out of range, or the first lies behind the last.

        >>> model.blocks_to_run(2, -1)
        range(2, 7)
        """
        first = 0 if start_at_layer is None else self._layer("start_at_layer", start_at_layer)
        last = self.cfg.n_layers if stop_at_layer is None else self._layer("stop_at_layer", stop_at_layer)
        if first > last:
            raise VitLensError(f"start_at_layer={start_at_layer} lies behind stop_at_layer={stop_at_layer}")
        return range(first, last)

    def _layer(self, what: str, layer: SupportsIndex) -> int:
        n_layers = self.cfg.n_layers
        index = operator.index(layer) if hasattr(layer, "__index__") and not isinstance(layer, bool) else None
        if index is None or not -n_layers <= index <= n_layers:
            raise VitLensError(f"{what}={layer!r}: expected a whole number from -{n_layers} to {n_layers}")
        return index % n_layers if index < 0 else index

    def reaches(
        self, start_at_layer: SupportsIndex | None, stop_at_layer: SupportsIndex | None
    ) -> Callable[[str], bool]:
        """Return a predicate: whether a hook point fires in a call from ``start_at_layer`` to ``stop_at_layer``.

        >>> reached = model.reaches(None, 2)
        >>> reached("blocks.1.hook_mlp_out"), reached("blocks.2.hook_mlp_out")
        (True, False)
        """
        blocks = self.blocks_to_run(start_at_layer, stop_at_layer)

        def reached(name: str) -> bool:
            if name.startswith("blocks."):
                return int(name.split(".")[1]) in blocks
            if name.startswith("rel_bias."):
                return len(blocks) > 0
            is_end = name.startswith(("ln_final.", _POOL, "hook_pooled", self.output_point))
            return stop_at_layer is None if is_end else start_at_layer is None

        return reached

    # ---- what it is -------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.ln_final.w.device

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the weights."""
        return self.ln_final.w.dtype

    @property
    def encoder_id(self) -> str:
        """The id of the weights; decoders, text banks and reference means are made for one."""
        return self._encoder_id or f"module@{self.fingerprint}"

    @property
    def fingerprint(self) -> str:
        """Sixteen digits that identify the weights by content (see ``vit_lens.identity.fingerprint``).

        They are kept until the weights change. Change weights under ``torch.no_grad()``: PyTorch does not count
        changes through ``.data``, so that they go unseen until something is saved, or a sweep is planned.
        """
        return self._digits(torch.bfloat16)

    def forget_fingerprint(self) -> None:
        """Hash the weights anew when they are next asked for; see :func:`vit_lens.identity.forget_fingerprints`."""
        self._fingerprints = None, {}

    def exact_fingerprint(self, dtype: torch.dtype | None = None) -> str:
        """Return a dtype, and digits that identify the weights to its last bit; kept until the weights change.

        Args:
            dtype: What the weights are rounded to; None for their own.

        >>> model.exact_fingerprint().split(":")[0], len(model.exact_fingerprint(torch.float64))
        ('float32', 24)
        """
        dtype = self.dtype if dtype is None else dtype
        return f"{str(dtype).removeprefix('torch.')}:{self._digits(dtype)}"

    def _digits(self, dtype: torch.dtype) -> str:
        versions = self._versions()
        if versions is None or self._fingerprints[0] != versions:
            self._fingerprints = versions, {}
        found = self._fingerprints[1]
        if dtype not in found:  # in bfloat16 the two are one
            found[dtype] = exact_fingerprint(self.state_dict(), dtype)
        return found[dtype]

    @property
    def edited(self) -> bool:
        """Whether weights were changed since the model was loaded; changes through ``.data`` go unseen.

        A model that was built from a config was not loaded, so it is never edited.
        """
        return self._loaded is not None and self._versions() != self._loaded

    def load_weights(self, state_dict: dict[str, Tensor]) -> None:
        """Make tensors the model's parameters, without a copy; what is changed afterwards counts as edited."""
        self.take_weights(state_dict)
        self._set_switch(device=str(self.device))
        self._loaded = self._versions()

    def take_weights(self, state_dict: dict[str, Tensor]) -> None:
        """Make tensors the model's parameters, as of a model that was built and not loaded."""
        self.load_state_dict(state_dict, assign=True)
        for module in self.modules():
            for name, buffer in module.named_buffers(recurse=False):  # zeros in the place of biases
                if buffer.device != self.device:
                    setattr(module, name, torch.zeros(buffer.shape, dtype=self.dtype, device=self.device))

    def _state(self) -> dict[str, Any]:
        loaded = None if self._loaded is None else self.edited
        return {**super()._state(), "_fingerprints": (None, {}), "_loaded": loaded}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # a copy's tensors are its own
        if self._loaded is not None:
            self._loaded = () if self._loaded else self._versions()

    def _versions(self) -> tuple | None:
        state = self.state_dict().values()
        if any(tensor.is_inference() for tensor in state):  # these count no changes
            return None
        return tuple((tensor.data_ptr(), tensor._version) for tensor in state)

    def _apply(self, fn: Any, recurse: bool = True) -> "HookedTower":
        edited = self.edited
        moved = super()._apply(fn, recurse)
        self._set_switch(device=str(self.device))
        if self._loaded is not None and not edited:
            self._loaded = self._versions()
        return moved

    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
    ) -> Float[Tensor, " d_model"]:
        """Return the sum of the biases written below a layer; with ``mlp_input`` also its own ``b_O``.

        Args:
            layer: The first layer whose biases do not count, negative from the end.
            mlp_input: Whether the layer's own ``b_O`` counts, which its MLP reads.
            include_mlp_biases: Whether the biases of MLPs count.

        Raises:
            VitLensError: There is no such layer.

        >>> model.accumulated_bias(2).shape
        torch.Size([128])
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

    # ---- switches ---------------------------------------------------------------------------------------

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


# Since Python 3.12 a protocol does not find a module's submodules by itself.
ABCMeta.register(Tower, HookedTower)  # pyright: ignore[reportArgumentType]
