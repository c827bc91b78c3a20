"""Hugging Face's T5 encoders, of version 1.0 (ReLU) and 1.1 (gated GELU)."""

__all__ = ["FAMILY", "T5"]

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from vit_lens.config import ActivationName, HookedTextConfig, RelativeBiasConfig
from vit_lens.sources.families.family import Blueprint
from vit_lens.sources.families.hugging_face import ModelType
from vit_lens.sources.families.hugging_face_text import HuggingFaceText
from vit_lens.sources.families.plain import activation_of, same_for_all
from vit_lens.sources.recipe import Recipe
from vit_lens.sources.refusals import kind, refuse

_ACTIVATIONS: dict[str, ActivationName] = {"NewGELUActivation": "gelu_pytorch_tanh", "ReLU": "relu"}
_TRAINED_ON = 512  # tokens; relative positions have no end
_EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight")  # one table under two names


def _run(parts: Any, ids: Tensor) -> Tensor:
    return parts["core"](input_ids=ids).last_hidden_state


class T5(HuggingFaceText):
    """T5's encoder, alone or in a whole model: RMS norms, no biases, undivided scores, relative positions."""

    towers = "Hugging Face's T5 encoders"
    homes = ("transformers.models.t5",)
    classes = ("T5EncoderModel", "T5ForConditionalGeneration", "T5Model")
    unused = ("decoder", "lm_head")
    other_prefixes = ("decoder.", "lm_head.")
    activation = "dense_act_fn"
    least_bar = 1e-5  # its norms take means of squares in float32, whatever dtype it is in
    model_types: ClassVar = {"t5": ModelType("T5Config", "T5EncoderModel", ("T5EncoderModel",))}
    run = staticmethod(_run)

    def core(self, tower: Any) -> Any:
        return tower.encoder

    def part(self, tower: Any) -> nn.Module:
        return tower.encoder

    def layers(self, core: Any) -> nn.ModuleList:
        return core.block

    def blueprint(self, tower: Any, image_size: tuple[int, int] | None = None) -> Blueprint:
        core = self.core(tower)
        blocks = list(core.block)
        attentions, mlps = [block.layer[0].SelfAttention for block in blocks], [block.layer[1] for block in blocks]
        norms = [core.final_layer_norm, *(layer.layer_norm for block in blocks for layer in block.layer)]
        if (norm := same_for_all("norm type", map(kind, norms))) != "T5LayerNorm":
            refuse(f"norms of type {norm} instead of T5LayerNorm")
        dense = same_for_all("MLP type", (kind(mlp.DenseReluDense) for mlp in mlps))
        if dense not in ("T5DenseActDense", "T5DenseGatedActDense"):
            refuse(f"an MLP of type {dense}")
        if [attn.has_relative_attention_bias for attn in attentions] != [True, *[False] * (len(blocks) - 1)]:
            refuse("relative positions that are not those of the first block for all")
        first, gated = attentions[0], dense == "T5DenseGatedActDense"
        n_vocab, d_model = core.embed_tokens.weight.shape
        hidden = [mlp.DenseReluDense.wo.in_features for mlp in mlps]
        cfg = HookedTextConfig(
            n_layers=len(blocks), d_model=d_model, n_heads=same_for_all("head count", (a.n_heads for a in attentions)),
            d_head=same_for_all("head width", (a.key_value_proj_dim for a in attentions)),
            d_mlp=same_for_all("MLP width", hidden), d_embed=d_model,
            act_fn=same_for_all("activation", (_activation(mlp.DenseReluDense.act) for mlp in mlps)),
            eps=float(same_for_all("norm eps", (norm.variance_epsilon for norm in norms))), normalization_type="RMS",
            gated_mlp=gated, has_biases=False, attn_scale=1.0,
            relative_bias=RelativeBiasConfig(
                n_buckets=first.relative_attention_num_buckets, max_distance=first.relative_attention_max_distance
            ),
            n_vocab=n_vocab, n_ctx=getattr(core.config, "n_positions", None) or _TRAINED_ON, has_pos_embed=False,
            eos_token_id=core.config.eos_token_id, pool="all", attn_pool=None, ln_final="before_pool", has_proj=False,
            has_proj_bias=False,
        )  # fmt: skip
        return Blueprint(cfg, partial(self.recipe, cfg))

    def recipe(self, cfg: HookedTextConfig, tensors: Mapping[str, Tensor]) -> Recipe:
        """Return how a tower of these sizes is converted."""
        steps, d, heads = Recipe(frozenset(_EMBEDDINGS)), cfg.d_model, (cfg.n_heads, cfg.d_head)
        inner, sizes = cfg.n_heads * cfg.d_head, cfg.relative_bias
        steps.take(
            "embed.W_E", next((name for name in _EMBEDDINGS if name in tensors), _EMBEDDINGS[0]), (cfg.n_vocab, d)
        )
        if sizes is not None:
            bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
            steps.take("rel_bias.rel_attn_bias", bias, (sizes.n_buckets, cfg.n_heads))
        for layer in range(cfg.n_layers):
            target, attn, mlp = f"blocks.{layer}", *(f"encoder.block.{layer}.layer.{part}" for part in (0, 1))
            steps.take(f"{target}.ln1.w", f"{attn}.layer_norm.weight", (d,))
            steps.take(f"{target}.ln2.w", f"{mlp}.layer_norm.weight", (d,))
            for letter in "QKV":
                source = f"{attn}.SelfAttention.{letter.lower()}.weight"
                view = partial(_per_head, heads=heads)
                steps.take(f"{target}.attn.W_{letter}", source, (inner, d), view)
            steps.take(
                f"{target}.attn.W_O", f"{attn}.SelfAttention.o.weight", (d, inner), lambda x: x.T.unflatten(0, heads)
            )
            names = {"W_gate": "wi_0", "W_in": "wi_1"} if cfg.gated_mlp else {"W_in": "wi"}
            for ours, theirs in names.items():
                source = f"{mlp}.DenseReluDense.{theirs}.weight"
                steps.take(f"{target}.mlp.{ours}", source, (cfg.d_mlp, d), lambda x: x.T)
            steps.take(f"{target}.mlp.W_out", f"{mlp}.DenseReluDense.wo.weight", (d, cfg.d_mlp), lambda x: x.T)
        steps.take("ln_final.w", "encoder.final_layer_norm.weight", (d,))
        return steps

    def tensors(self, tower: Any) -> dict[str, Tensor]:
        stored = tower.state_dict()
        return {name: stored[key] for name, key in self.names(stored).items()}

    def tower_of(self, config: Any, names: Collection[str]) -> tuple[Any, str]:
        return config, "T5EncoderModel"


def _activation(act: nn.Module) -> ActivationName:
    return _ACTIVATIONS.get(kind(act)) or activation_of(act)


def _per_head(weight: Tensor, heads: tuple[int, int]) -> Tensor:
    return weight.unflatten(0, heads).transpose(1, 2)


FAMILY = T5()
