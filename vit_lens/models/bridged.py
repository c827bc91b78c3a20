"""BridgedTextEncoder: text encoders of other kinds than CLIP and T5, hooked by TransformerLens' own bridge."""

__all__ = ["BridgedTextConfig", "BridgedTextEncoder"]

import copy
import importlib.metadata
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.factories import architecture_adapter_factory
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge, sources

from vit_lens.config import TowerConfig
from vit_lens.errors import UnsupportedTowerError, VitLensError
from vit_lens.hooking import LoudHookedRootModule
from vit_lens.texts import ENCODER_KINDS, EncoderKind

_HEADS = ("unembed", "mlm_head", "nsp_head")  # of language modelling, which no pipeline reads


@dataclass(frozen=True, kw_only=True)
class BridgedTextConfig(TowerConfig):
    """Sizes of an encoder that the bridge hooks, as far as addresses and records ask for them.

    Attributes:
        act_fn: The nonlinearity of its MLP, as transformers calls it.
        n_vocab: The number of ids that are embedded.
        n_ctx: The number of tokens that it reads at most.
        architecture: The class by which TransformerLens' bridge knows it.

    >>> from transformers import BertConfig, BertModel
    >>> sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    >>> tower = vl.models.BridgedTextEncoder.from_module(BertModel(BertConfig(vocab_size=40, **sizes)))
    >>> tower.cfg.n_layers, tower.cfg.d_model, tower.cfg.architecture
    (2, 32, 'BertForMaskedLM')
    """

    act_fn: str  # pyright: ignore[reportIncompatibleVariableOverride]
    n_vocab: int
    n_ctx: int  # pyright: ignore[reportIncompatibleMethodOverride]
    architecture: str

    def __post_init__(self) -> None:
        """Check nothing: the sizes are read from a module that runs."""


class BridgedTextEncoder(LoudHookedRootModule):
    """A text encoder of a pipeline that TransformerLens' own bridge hooks: BERT, and decoder-only language models.

    Hook points have the names that :class:`transformer_lens.model_bridge.TransformerBridge` gives them, its aliases
    such as ``blocks.{l}.hook_resid_post`` included; those of a language modelling head are left out, since no
    pipeline runs one. The output is ``last_hidden_state`` of Hugging Face. The bridge computes attention step by step
    (``eager``), with the softmax of decoder-only models in float32, so that its numbers are the stock module's to
    rounding.

    :meth:`from_module` makes one; :attr:`vit_lens.decoders.PromptEncoder.towers` holds those of a pipeline.

    Attributes:
        cfg: The sizes of the encoder.
        bridge: The bridge itself, around the encoder and an empty head.
        tokenizer: The tokenizer of the encoder; None where it is not known. Prompts are ids here, since pipelines put
            templates around them.

    >>> from transformers import BertConfig, BertModel
    >>> sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    >>> tower = vl.models.BridgedTextEncoder.from_module(BertModel(BertConfig(vocab_size=40, **sizes)))
    >>> tokens, cache = tower.run_with_cache(torch.tensor([[2, 7, 3]]), names_filter="blocks.1.hook_resid_post")
    >>> bool(torch.equal(cache["blocks.1.hook_resid_post"], tokens))
    True
    >>> tower.run_with_hooks(torch.tensor([[2, 7, 3]]), fwd_hooks=[("blocks.1.hook_mlp", print)])
    Traceback (most recent call last):
    vit_lens.errors.UnknownHookError: no hook point 'blocks.1.hook_mlp'; nearest: ...
    """

    cfg: BridgedTextConfig

    def __init__(self, cfg: BridgedTextConfig, bridge: Any, kind: EncoderKind, *, tokenizer: Any = None):
        super().__init__()
        self.cfg, self.bridge, self.tokenizer = cfg, bridge, tokenizer
        part = kind.bridge[1] if kind.bridge else ""
        self._encoder = (getattr(bridge.original_model, part),)  # a part of the bridge, and no second one
        self._unrun = (*_HEADS, *(() if kind.norm else ("ln_final",)))
        self.setup()
        self._wired = {name: len(_handles(point)) for name, point in self.hook_dict.items()}

    @classmethod
    def from_module(cls, encoder: nn.Module, *, tokenizer: Any = None, copy: bool = True) -> "BridgedTextEncoder":
        """Put the bridge around a text encoder in memory; the encoder itself stays as it is.

        Args:
            encoder: ``BertModel``, ``Gemma2Model``, ``Qwen3ForCausalLM``, ``Qwen2_5_VLForConditionalGeneration`` or
                ``Mistral3ForConditionalGeneration`` of transformers.
            tokenizer: The tokenizer that it was trained with, which is kept as it is.
            copy: Whether the weights are copied. False shares the encoder's memory.

        Raises:
            UnsupportedTowerError: It is none of these, the installed TransformerLens has no bridge for it, or it runs
                without the soft caps of its own config.
        """
        name = type(encoder).__name__
        kind = next((one for one in ENCODER_KINDS.values() if one.is_bridged and name in one.classes), None)
        if kind is None or kind.bridge is None:
            known = ", ".join(one.classes[0] for one in ENCODER_KINDS.values() if one.is_bridged)
            raise UnsupportedTowerError(
                f"a {name} does not go through TransformerLens' bridge here; expected one of {known}. Text towers of "
                "CLIP and T5 are hooked by HookedTextEncoder.from_module"
            )
        architecture = kind.bridge[0]
        if architecture not in architecture_adapter_factory.SUPPORTED_ARCHITECTURES:
            raise UnsupportedTowerError(
                f"TransformerLens {importlib.metadata.version('transformer-lens')} has no bridge for {architecture}, "
                f"which a {name} is: install a later transformer-lens. PromptEncoder.encode, which needs none, gives "
                "the pipeline's own condition"
            )
        _refuse_left_out_caps(encoder)
        shell = _shell(encoder, kind, architecture, copy)
        return cls(_config(shell, architecture), _bridge(shell, architecture), kind, tokenizer=tokenizer)

    def setup(self) -> None:
        """Take over the bridge's hook points, aliases included, without those of a head."""
        found = {name: point for name, point in self.bridge.hook_dict.items() if name.split(".")[0] not in self._unrun}
        self.hook_dict = found
        self.mod_dict = dict(found)
        for name, point in found.items():
            point.layer = partial(_layer_of, name)

    def hooked_names(self) -> list[str]:
        """Return the names of the hook points that carry a hook now; the bridge's own wiring is none."""
        return [name for name, point in self.hook_dict.items() if len(_handles(point)) > self._wired.get(name, 0)]

    def forward(
        self, ids: Int[Tensor, "batch pos"], *, attention_mask: Tensor | None = None
    ) -> Float[Tensor, "batch pos d_model"]:
        """Return every token as the encoder returns it, after its final norm where it has one.

        Args:
            ids: Prompts as the pipeline tokenises them, :attr:`vit_lens.TextRun.ids`.
            attention_mask: Bool or 0 and 1 [batch pos], of tokens that may be looked at; None allows all.

        Raises:
            VitLensError: The mask has another shape than the ids.
        """
        if attention_mask is not None and attention_mask.shape != ids.shape:
            raise VitLensError(
                f"attention_mask of {tuple(attention_mask.shape)}; expected [batch pos] = {tuple(ids.shape)}"
            )
        mask = None if attention_mask is None else attention_mask.long()
        return self._encoder[0](input_ids=ids, attention_mask=mask).last_hidden_state

    def run_with_cache(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, ids: Int[Tensor, "batch pos"], *, names_filter: Any = None, attention_mask: Tensor | None = None
    ) -> tuple[Float[Tensor, "batch pos d_model"], dict[str, Tensor]]:
        """Run the encoder and keep its activations, each under the name that it was asked for by.

        Args:
            ids: As for :meth:`forward`.
            names_filter: A name, a list of names, or a predicate on names; None keeps all that fire, under the names
                of the bridge and under their aliases.
            attention_mask: As for :meth:`forward`.

        Raises:
            UnknownHookError: ``names_filter`` selects nothing.
            UnfiredHookError: A point that was named did not fire, as gated ones do not.
        """
        names = self.select_names(names_filter)
        kept: dict[str, Tensor] = {}
        hooks = [(name, _keeper(kept, name)) for name in names or self.hook_dict]
        if names is not None:
            return self.run_with_hooks(ids, attention_mask=attention_mask, fwd_hooks=hooks), kept
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="these hooks never fired")
            with self.hooks(hooks):
                return self(ids, attention_mask=attention_mask), kept

    def residuals(
        self, ids: Int[Tensor, "batch pos"], attention_mask: Tensor | None = None
    ) -> dict[str, Float[Tensor, "batch pos d_model"]]:
        """Return what enters and leaves every block in a run, ``blocks.{l}.hook_resid_pre`` and ``_post``.

        Args:
            ids: As for :meth:`forward`.
            attention_mask: As for :meth:`forward`.
        """
        layers, ends = range(self.cfg.n_layers), ("pre", "post")
        names = [f"blocks.{layer}.hook_resid_{end}" for layer in layers for end in ends]
        return self.run_with_cache(ids, attention_mask=attention_mask, names_filter=names)[1]

    def __repr__(self) -> str:
        return f"BridgedTextEncoder({self.cfg.architecture}, {self.cfg.n_layers} layers, {self.dtype} on {self.device})"

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self._encoder[0].parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return next(self._encoder[0].parameters()).dtype


def _refuse_left_out_caps(encoder: Any) -> None:
    """Raise for a Gemma 2 that fused attention runs without its soft caps, as some versions of transformers let it."""
    said = encoder.config.get_text_config()
    capped = getattr(said, "attn_logit_softcapping", None) is not None
    if capped and (runs := getattr(said, "_attn_implementation", "eager")) == "sdpa":
        raise UnsupportedTowerError(
            f"this {type(encoder).__name__} computes attention by {runs!r}, which leaves out the soft caps of its "
            f"config (attn_logit_softcapping={said.attn_logit_softcapping}), and the bridge keeps them: call "
            "encoder.set_attn_implementation('eager') first, which pipelines need too"
        )


def _shell(encoder: nn.Module, kind: EncoderKind, architecture: str, is_copy: bool) -> Any:
    """Return an encoder as the bridge takes it: below a head, and free to be rebuilt."""
    held = {} if is_copy else {id(one): one for one in [*encoder.parameters(), *encoder.buffers()]}
    own: Any = kind.with_head(copy.deepcopy(encoder, held))
    own.config.architectures = [architecture]
    own.set_attn_implementation("eager")
    return own.eval()


def _config(shell: Any, architecture: str) -> BridgedTextConfig:
    said = shell.config.get_text_config()
    d_model, n_heads = said.hidden_size, said.num_attention_heads
    return BridgedTextConfig(
        n_layers=said.num_hidden_layers, d_model=d_model, n_heads=n_heads,
        d_head=getattr(said, "head_dim", None) or d_model // n_heads, d_mlp=said.intermediate_size,
        act_fn=getattr(said, "hidden_activation", None) or said.hidden_act,
        eps=said.rms_norm_eps if hasattr(said, "rms_norm_eps") else said.layer_norm_eps, d_embed=d_model, pool="all",
        attn_pool=None, ln_final="before_pool", has_proj=False, has_proj_bias=False, n_vocab=said.vocab_size,
        n_ctx=said.max_position_embeddings, architecture=architecture,
    )  # fmt: skip


def _bridge(shell: Any, architecture: str) -> TransformerBridge:
    if hasattr(sources, "build_bridge_from_module"):
        return sources.build_bridge_from_module(shell, architecture, hf_config=shell.config)
    # TransformerLens 3: what its boot_transformers does, without the tokenizer, which that would look for on the Hub.
    from transformer_lens.config import TransformerBridgeConfig

    given = sources.transformers.map_default_transformer_lens_config(shell.config)  # pyright: ignore[reportAttributeAccessIssue]
    cfg = TransformerBridgeConfig.from_dict(dict(given.__dict__))
    cfg.architecture, cfg.model_name, cfg.dtype = architecture, architecture, shell.dtype
    adapter = architecture_adapter_factory.ArchitectureAdapterFactory.select_architecture_adapter(cfg)
    adapter.cfg.device = str(shell.device)
    adapter.prepare_model(shell)
    return TransformerBridge(shell, adapter, None)


def _handles(point: HookPoint) -> list[Any]:
    return [*point.fwd_hooks, *point.bwd_hooks]


def _keeper(kept: dict[str, Tensor], name: str) -> Callable:
    def keep(act: Tensor, hook: HookPoint) -> None:
        kept[name] = act.detach()

    keep.only_reads = True  # pyright: ignore[reportFunctionMemberAccess]
    return keep


def _layer_of(name: str) -> int:
    parts = name.split(".")
    if parts[0] != "blocks":
        raise VitLensError(f"{name!r} lies in no block and has no layer")
    return int(parts[1])
