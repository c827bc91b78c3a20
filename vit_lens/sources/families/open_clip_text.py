"""open_clip's native text towers, inside whole models and alone."""

__all__ = ["FAMILY", "OpenClipText"]

from collections.abc import Collection, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from vit_lens.config import HookedTextConfig
from vit_lens.errors import CheckpointError, expect
from vit_lens.sources import catalogue
from vit_lens.sources.families.family import Blueprint, Family, Kind
from vit_lens.sources.families.hugging_face_text import stored_tokenizer
from vit_lens.sources.families.open_clip import require_plain_block
from vit_lens.sources.families.plain import activation_of, common_eps, same_for_all
from vit_lens.sources.folders import TowerFolder
from vit_lens.sources.recipe import Recipe
from vit_lens.sources.refusals import kind, refuse
from vit_lens.sources.source_tower import SourceTower

_POOLED, _NORMS = ("argmax", "eos"), ("ln_1", "ln_2")


class OpenClipText(Family):
    """open_clip's text towers: ``CustomTextCLIP.text``, or the parts that a ``CLIP`` holds itself."""

    kind: ClassVar[Kind] = "text"
    towers = "open_clip's text towers"
    homes = ("open_clip",)
    unused = ("visual",)
    prefix = "text."
    other_prefixes = (
        "visual.", "logit_scale", "logit_bias", "attn_mask", "input_resolution", "context_length", "vocab_size",
    )  # fmt: skip
    config_file = "open_clip_config.json"
    weight_files = (
        "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin"
    )  # fmt: skip

    def part(self, tower: Any) -> nn.Module:
        return getattr(tower, "text", tower)

    def names(self, stored: Iterable[str]) -> dict[str, str]:
        return super().names([name for name in stored if not name.startswith(self.other_prefixes)])

    def blueprint(self, tower: Any, image_size: tuple[int, int] | None = None) -> Blueprint:
        from open_clip.transformer import LayerNorm, LayerNormFp32, Transformer

        text: Any = self.part(tower)
        if not hasattr(text, "token_embedding") or type(getattr(text, "transformer", None)) is not Transformer:
            refuse(f"a {kind(text)}, which is no native text tower of open_clip's")
        if getattr(text, "cls_emb", None) is not None:
            refuse("a text tower with a class token behind the text (CoCa)")
        pool = text.text_pool_type if hasattr(text, "text_pool_type") else text.pool_type
        if pool not in _POOLED or getattr(text, "use_pad_mask", False):
            refuse(f"a text tower with pool_type={pool!r} or a mask of its own; expected {' or '.join(_POOLED)}")
        blocks = list(text.transformer.resblocks)
        for block in blocks:
            require_plain_block(block)
        n_vocab, d_model = text.token_embedding.weight.shape
        n_heads = same_for_all("head count", (block.attn.num_heads for block in blocks))
        projection = text.text_projection
        linear, has_proj = isinstance(projection, nn.Linear), projection is not None
        width = projection.out_features if linear else projection.shape[1] if has_proj else d_model
        cfg = HookedTextConfig(
            n_layers=len(blocks), d_model=d_model, n_heads=n_heads, d_head=d_model // n_heads,
            d_mlp=same_for_all("MLP width", (block.mlp.c_fc.out_features for block in blocks)), d_embed=width,
            act_fn=same_for_all("activation", (activation_of(block.mlp.gelu) for block in blocks)),
            eps=common_eps({"ln_final": text.ln_final}, "resblocks", blocks, _NORMS, LayerNorm, LayerNormFp32),
            n_vocab=n_vocab, n_ctx=len(text.positional_embedding), has_pos_embed=True,
            is_causal=text.attn_mask is not None, eos_token_id=_end(text) if pool == "eos" else None, pool="eos",
            attn_pool=None, ln_final="before_pool", has_proj=has_proj,
            has_proj_bias=linear and projection.bias is not None,
        )  # fmt: skip
        return Blueprint(cfg, partial(self.recipe, cfg))

    def recipe(self, cfg: HookedTextConfig, tensors: Mapping[str, Tensor]) -> Recipe:
        """Return how a tower of these sizes is converted; the names of ``tensors`` say which optional parts it has."""
        steps, d = Recipe(), cfg.d_model
        steps.take("embed.W_E", "token_embedding.weight", (cfg.n_vocab, d))
        steps.take("pos_embed.W_pos", "positional_embedding", (cfg.n_ctx, d))
        steps.blocks(
            cfg, "transformer.resblocks", norms=_NORMS, qkv=["attn.in_proj_"], out="attn.out_proj",
            mlp=("mlp.c_fc", "mlp.c_proj"),
            gains=("ls_1.gamma", "ls_2.gamma") if any(name.endswith("ls_1.gamma") for name in tensors) else None,
        )  # fmt: skip
        steps.norm("ln_final", "ln_final", d)
        if cfg.has_proj and "text_projection.weight" in tensors:
            steps.take("unembed.W_U", "text_projection.weight", (cfg.d_embed, d), lambda x: x.T)
            if cfg.has_proj_bias:
                steps.take("unembed.b_U", "text_projection.bias", (cfg.d_embed,))
        elif cfg.has_proj:
            steps.take("unembed.W_U", "text_projection", (d, cfg.d_embed))
        return steps

    def listen(self, tower: Any) -> SourceTower:
        text: Any = self.part(tower)
        run = _run_whole if hasattr(text, "text_pool_type") else _run_alone
        parts = nn.ModuleDict({"text": text})
        if run is _run_whole and hasattr(text, "visual"):
            text = _without_images(text)
            parts = nn.ModuleDict({"text": text})
        return SourceTower(
            f"open_clip {kind(tower)}",
            parts,
            run,
            blocks=text.transformer.resblocks,
            final_norm=text.ln_final,
            tokens_first=not getattr(text.transformer, "batch_first", False),
        )

    def reads(self, config: Mapping[str, Any]) -> bool:
        return True

    def build(self, config: Mapping[str, Any], path: Path, names: Collection[str] = ()) -> nn.Module:
        expect(config.get("model_cfg"), dict, f"model_cfg in {path}", CheckpointError, "sizes of a model")
        return catalogue.build_text(config["model_cfg"], path)

    def stored_spec(self, folder: TowerFolder, config: Mapping[str, Any]) -> None:
        return None

    def tokenizer(self, folder: TowerFolder, config: Mapping[str, Any]) -> Any:
        import open_clip

        text = config["model_cfg"]["text_cfg"]
        if text.get("hf_tokenizer_name"):
            return stored_tokenizer(folder)
        return open_clip.SimpleTokenizer(**text.get("tokenizer_kwargs") or {})

    def load(self, folder: TowerFolder, config: Mapping[str, Any]) -> nn.Module:
        from open_clip.factory import load_state_dict

        tower = catalogue.build_text(config["model_cfg"], folder.label, device="cpu")
        stored: Any = load_state_dict(str(folder.weights(self.weight_files)[0]))
        tower.load_state_dict({name: stored[key] for name, key in self.names(stored).items()})
        return tower


def _end(text: Any) -> int:
    return text.text_eos_id if hasattr(text, "text_eos_id") else text.eos_id


def _without_images(clip: Any) -> Any:
    """Return a whole model without its image tower, so that what is cast and copied is the text's alone."""
    import copy

    bare = copy.copy(clip)
    bare._modules = {name: part for name, part in clip._modules.items() if name != "visual"}
    return bare


def _run_whole(parts: Any, ids: Tensor) -> Tensor:
    return parts["text"].encode_text(ids)


def _run_alone(parts: Any, ids: Tensor) -> Tensor:
    out = parts["text"](ids)
    return out[0] if isinstance(out, tuple) else out


FAMILY = OpenClipText()
