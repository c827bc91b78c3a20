"""Text towers built from the package's parts, and the Hugging Face encoders that they are held to."""

from dataclasses import dataclass, replace

import torch
from torch import nn
from transformer_lens.hook_points import HookPoint


def text_config(**changes):
    """Sizes of a small text tower: nothing is a round number, and heads are wider together than the stream."""
    from vit_lens.config import TowerConfig

    @dataclass(frozen=True, kw_only=True)
    class TextConfig(TowerConfig):
        n_vocab: int
        n_ctx: int

    sizes = dict(
        n_layers=3, d_model=30, n_heads=3, d_head=10, d_mlp=41, act_fn="quick_gelu", eps=1e-5, n_vocab=19, n_ctx=11,
        d_embed=13, pool="eos", attn_pool=None, ln_final="before_pool", has_proj=True, has_proj_bias=False,
        is_causal=True,
    )  # fmt: skip
    return TextConfig(**(sizes | changes))


def text_tower(cfg, *, positions):
    """Build a text tower; ``positions`` says whether it has learned position embeddings."""
    from vit_lens.towers import HookedTower

    class TextTower(HookedTower):
        """Token ids in; the end of the text, or every token, out."""

        def __init__(self, cfg):
            super().__init__(cfg)
            self.W_E = nn.Parameter(torch.zeros(cfg.n_vocab, cfg.d_model))
            self.W_pos = nn.Parameter(torch.zeros(cfg.n_ctx, cfg.d_model)) if positions else None
            self.hook_embed = HookPoint()
            self.hook_pos_embed = HookPoint() if positions else None
            self.add_blocks()

        def readout_of(self, *model_args, ends=None):
            if model_args and self.cfg.pool == "eos":
                ends = model_args[0].argmax(-1)  # the end has the highest id
            return super().readout_of(ends=ends)

        def forward(self, ids, *, start_at_layer=None, stop_at_layer=None, mask=None):
            resid = self.hook_embed(self.W_E[ids])
            if self.W_pos is not None and self.hook_pos_embed is not None:
                resid = resid + self.hook_pos_embed(self.W_pos[: ids.shape[1]].expand_as(resid))
            resid = self.run_blocks(resid, self.blocks_to_run(start_at_layer, stop_at_layer), mask)
            return resid if stop_at_layer is not None else self.read_out(resid, self.readout_of(ids))

    return TextTower(cfg).double()


def clip_text(randomize):
    """Hugging Face's causal CLIP text encoder with a projection, in float64, with random weights and biases."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    cfg = CLIPTextConfig(
        vocab_size=19, hidden_size=30, intermediate_size=41, num_hidden_layers=3, num_attention_heads=3,
        max_position_embeddings=11, projection_dim=13, hidden_act="quick_gelu", bos_token_id=17, eos_token_id=18,
        pad_token_id=0,
    )  # fmt: skip
    return randomize(CLIPTextModelWithProjection(cfg).double()).eval().requires_grad_(False)


def load_clip_text(tower, source):
    """Copy the weights of :func:`clip_text` into a text tower."""
    text = getattr(source, "text_model", source)
    n_heads, d_head, d = tower.cfg.n_heads, tower.cfg.d_head, tower.cfg.d_model
    state = {
        "W_E": text.embeddings.token_embedding.weight, "W_pos": text.embeddings.position_embedding.weight,
        "ln_final.w": text.final_layer_norm.weight, "ln_final.b": text.final_layer_norm.bias,
        "unembed.W_U": source.text_projection.weight.T,
    }  # fmt: skip
    for i, layer in enumerate(text.encoder.layers):
        at = f"blocks.{i}"
        for ours, theirs in (("ln1", layer.layer_norm1), ("ln2", layer.layer_norm2)):
            state |= {f"{at}.{ours}.w": theirs.weight, f"{at}.{ours}.b": theirs.bias}
        for name in "QKV":
            part = getattr(layer.self_attn, f"{name.lower()}_proj")
            state[f"{at}.attn.W_{name}"] = part.weight.view(n_heads, d_head, d).transpose(1, 2)
            state[f"{at}.attn.b_{name}"] = part.bias.view(n_heads, d_head)
        out = layer.self_attn.out_proj
        state |= {f"{at}.attn.W_O": out.weight.T.reshape(n_heads, d_head, d), f"{at}.attn.b_O": out.bias}
        state |= {f"{at}.mlp.W_in": layer.mlp.fc1.weight.T, f"{at}.mlp.b_in": layer.mlp.fc1.bias}
        state |= {f"{at}.mlp.W_out": layer.mlp.fc2.weight.T, f"{at}.mlp.b_out": layer.mlp.fc2.bias}
    tower.load_weights({name: value.detach().clone() for name, value in state.items()})
    return tower


def t5_encoder(randomize, *, gated):
    """Hugging Face's T5 encoder, in float64, with random weights: heads together are wider than the stream."""
    from transformers import T5Config, T5EncoderModel

    cfg = T5Config(
        vocab_size=19, d_model=30, d_kv=14, d_ff=41, num_layers=3, num_heads=3, dropout_rate=0.0,
        feed_forward_proj="gated-gelu" if gated else "relu", relative_attention_num_buckets=8,
        relative_attention_max_distance=20, is_encoder_decoder=False, tie_word_embeddings=False,
    )  # fmt: skip
    return randomize(T5EncoderModel(cfg).double()).eval().requires_grad_(False)


def t5_config(*, gated):
    """The config of :func:`t5_encoder`."""
    from vit_lens.config import RelativeBiasConfig

    return text_config(
        d_head=14, act_fn="gelu_pytorch_tanh" if gated else "relu", eps=1e-6, normalization_type="RMS",
        gated_mlp=gated, has_biases=False, attn_scale=1.0, pool="all", has_proj=False, d_embed=30, is_causal=False,
        relative_bias=RelativeBiasConfig(n_buckets=8, max_distance=20),
    )  # fmt: skip


def load_t5(tower, source):
    """Copy the weights of :func:`t5_encoder` into a text tower."""
    n_heads, d_head, d = tower.cfg.n_heads, tower.cfg.d_head, tower.cfg.d_model
    encoder = source.encoder
    first = encoder.block[0].layer[0].SelfAttention
    state = {
        "W_E": encoder.embed_tokens.weight, "ln_final.w": encoder.final_layer_norm.weight,
        "rel_bias.rel_attn_bias": first.relative_attention_bias.weight,
    }  # fmt: skip
    for i, block in enumerate(encoder.block):
        at, (attention, mlp) = f"blocks.{i}", (block.layer[0], block.layer[1])
        state |= {f"{at}.ln1.w": attention.layer_norm.weight, f"{at}.ln2.w": mlp.layer_norm.weight}
        for name in "QKV":
            weight = getattr(attention.SelfAttention, name.lower()).weight
            state[f"{at}.attn.W_{name}"] = weight.view(n_heads, d_head, d).transpose(1, 2)
        state[f"{at}.attn.W_O"] = attention.SelfAttention.o.weight.T.reshape(n_heads, d_head, d)
        hidden = mlp.DenseReluDense
        if tower.cfg.gated_mlp:
            state |= {f"{at}.mlp.W_gate": hidden.wi_0.weight.T, f"{at}.mlp.W_in": hidden.wi_1.weight.T}
        else:
            state[f"{at}.mlp.W_in"] = hidden.wi.weight.T
        state[f"{at}.mlp.W_out"] = hidden.wo.weight.T
    tower.load_weights({name: value.detach().clone() for name, value in state.items()})
    return tower


def pooled_at_every_token(cfg):
    """The config of a tower of the same weights that gives every token, projected."""
    return replace(cfg, pool="all")
