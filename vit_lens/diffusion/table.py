"""The denoisers that are hooked: one row each. Another transformer of diffusers is another row."""

__all__ = ["DENOISERS"]

from collections.abc import Mapping
from typing import Any

from vit_lens.diffusion.ports import Blocks, Denoiser, Port

_Call = Mapping[str, Any]
_D, _MLP, _Z, _GATE = "batch pos d_model", "batch pos d_mlp", "batch pos head d_head", "batch d_model"


def _joint_stream(text: bool, needs: str = "") -> tuple[Port, ...]:
    """Return the ports of one stream of a block in which two streams attend together and have weights of their own."""
    before, end = ("text.", "_context") if text else ("", "")
    states, norm = ("encoder_hidden_states" if text else "hidden_states"), f"norm1{end}"
    out = "attn.to_add_out" if text else "attn.to_out.0"
    return (
        Port(name=f"{before}hook_resid_pre", axes=_D, side="in", item=states),
        Port(name=f"{before}hook_attn_gate", axes=_GATE, module=norm, item=1, needs=needs),
        Port(name=f"{before}attn.hook_z", axes=_Z, module=out, side="in", item=0, heads="attn", needs=needs),
        Port(name=f"{before}hook_attn_out", axes=_D, module="attn", item=int(text), of=2, gate=(norm, 1), needs=needs),
        Port(name=f"{before}hook_resid_mid", axes=_D, module=f"norm2{end}", side="in", item=0, in_place=True),
        Port(name=f"{before}hook_mlp_gate", axes=_GATE, module=norm, item=4, needs=needs),
        Port(name=f"{before}mlp.hook_post", axes=_MLP, module=f"ff{end}.net.2", side="in", item=0, needs=needs),
        Port(name=f"{before}hook_mlp_out", axes=_D, module=f"ff{end}", gate=(norm, 4), needs=needs),
        Port(name=f"{before}hook_resid_post", axes=_D, item=int(not text), of=2, needs=needs),
    )


def _one_sequence(text: bool) -> tuple[Port, ...]:
    """Return the ports of one stream of FLUX's single blocks, in which text and image are one sequence."""
    before, stream = ("text.", "text") if text else ("", "image")
    states = "encoder_hidden_states" if text else "hidden_states"
    return (
        Port(name=f"{before}hook_resid_pre", axes=_D, side="in", item=states),
        Port(name=f"{before}attn.hook_z", axes=_Z, module="attn", stream=stream, heads="attn"),
        Port(name=f"{before}mlp.hook_post", axes=_MLP, module="act_mlp", stream=stream),
        Port(name=f"{before}hook_update", axes=_D, module="proj_out", stream=stream, gate=("norm", 1)),
        Port(name=f"{before}hook_resid_post", axes=_D, item=int(not text), of=2),
    )


_GATE_OF_BOTH = Port(name="hook_gate", axes=_GATE, module="norm", item=1)
_CROSS = (  # blocks of a UNet's transformers: attention to itself, to the prompt, MLP
    Port(name="hook_resid_pre", axes=_D, side="in", item="hidden_states"),
    Port(name="attn.hook_z", axes=_Z, module="attn1.to_out.0", side="in", item=0, heads="attn1"),
    Port(name="hook_attn_out", axes=_D, module="attn1"),
    Port(name="hook_resid_mid", axes=_D, module="norm2", side="in", item=0, in_place=True),
    Port(name="cross_attn.hook_z", axes=_Z, module="attn2.to_out.0", side="in", item=0, heads="attn2", needs="attn2"),
    Port(name="hook_cross_attn_out", axes=_D, module="attn2"),
    Port(name="hook_resid_mid_cross", axes=_D, module="norm3", side="in", item=0, in_place=True),
    Port(name="mlp.hook_post", axes=_MLP, module="ff.net.2", side="in", item=0),
    Port(name="hook_mlp_out", axes=_D, module="ff"),
    Port(name="hook_resid_post", axes=_D),
)
_SPATIAL = (  # a UNet's transformers, each of which adds one update to its input
    Port(name="hook_resid_pre", axes=_D, side="in", item="hidden_states"),
    Port(name="hook_update", axes=_D, module="proj_out"),
    Port(name="hook_resid_post", axes=_D, item=0, of=1),
)
_ENTERS = Port(name="hook_resid_pre", axes=_D, side="in", item="hidden_states")
_LEAVES = Port(name="hook_resid_post", axes=_D)
_LEAVES_TWICE = Port(name="hook_resid_post", axes=_D, item=0, of=2)  # to the next block, and across


def _unet_blocks() -> tuple[Blocks, ...]:
    found = [
        Blocks(path="down_blocks.*", name="down.{}", ports=(_ENTERS, _LEAVES_TWICE)),
        Blocks(path="mid_block", name="mid", ports=(_ENTERS, _LEAVES)),
        Blocks(path="up_blocks.*", name="up.{}", ports=(_ENTERS, _LEAVES)),
    ]
    for path, name in (("down_blocks.*", "down.{}"), ("mid_block", "mid"), ("up_blocks.*", "up.{}")):
        inner = f"{path}.attentions.*"
        found += [
            Blocks(path=inner, name=f"{name}.{{}}", ports=_SPATIAL),
            Blocks(path=f"{inner}.transformer_blocks.*", name=f"{name}.{{}}.blocks.{{}}", ports=_CROSS),
        ]
    return tuple(found)


def _flux_guided(pipeline: Any, call: _Call) -> bool:
    embedded = ("negative_prompt_embeds", "negative_pooled_prompt_embeds")
    has_negative = call.get("negative_prompt") is not None or all(call.get(one) is not None for one in embedded)
    return has_negative and call["true_cfg_scale"] > 1


def _flux_inputs(pipeline: Any, call: _Call, rows: int, height: int, width: int) -> dict[str, Any]:
    config, cell = pipeline.transformer.config, 2 * pipeline.vae_scale_factor
    n_image, n_text = (height // cell) * (width // cell), _n_text(call, call["max_sequence_length"])
    return {
        "hidden_states": (rows, n_image, config.in_channels),
        "encoder_hidden_states": (rows, n_text, config.joint_attention_dim),
        "pooled_projections": (rows, config.pooled_projection_dim), "timestep": (rows,),
        "img_ids": (n_image, 3), "txt_ids": (n_text, 3), "guidance": (rows,) if config.guidance_embeds else None,
    }  # fmt: skip


def _unet_guided(pipeline: Any, call: _Call) -> bool:
    return call["guidance_scale"] > 1 and pipeline.unet.config.time_cond_proj_dim is None


def _unet_sides(pipeline: Any) -> tuple[int, int]:
    size = pipeline.unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    return height * pipeline.vae_scale_factor, width * pipeline.vae_scale_factor


def _unet_inputs(pipeline: Any, call: _Call, rows: int, height: int, width: int) -> dict[str, Any]:
    config, cell = pipeline.unet.config, pipeline.vae_scale_factor
    given = {
        "sample": (rows, config.in_channels, height // cell, width // cell), "timestep": (),
        "encoder_hidden_states": (rows, 77, config.cross_attention_dim),  # no hook point has the text's positions
    }  # fmt: skip
    if config.time_cond_proj_dim is not None:
        given["timestep_cond"] = (rows, config.time_cond_proj_dim)
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        given["added_cond_kwargs"] = {"text_embeds": (rows, pooled), "time_ids": (rows, 6)}
    return given


def _sd3_inputs(pipeline: Any, call: _Call, rows: int, height: int, width: int) -> dict[str, Any]:
    config, cell = pipeline.transformer.config, pipeline.vae_scale_factor
    n_text = _n_text(call, call["max_sequence_length"] + pipeline.tokenizer_max_length)
    return {
        "hidden_states": (rows, config.in_channels, height // cell, width // cell),
        "encoder_hidden_states": (rows, n_text, config.joint_attention_dim),
        "pooled_projections": (rows, config.pooled_projection_dim), "timestep": (rows,),
    }  # fmt: skip


def _n_text(call: _Call, length: int) -> int:
    embeds = call.get("prompt_embeds")
    return length if embeds is None else embeds.shape[1]


def _default_sides(pipeline: Any) -> tuple[int, int]:
    side = pipeline.default_sample_size * pipeline.vae_scale_factor
    return side, side


DENOISERS: dict[str, Denoiser] = {
    "flux": Denoiser(
        pipelines=("FluxPipeline",), part="transformer", cls="FluxTransformer2DModel",
        blocks=(
            Blocks(path="transformer_blocks.*", name="double.{}", ports=_joint_stream(False) + _joint_stream(True)),
            Blocks(
                path="single_transformer_blocks.*", name="single.{}",
                ports=(_GATE_OF_BOTH, *_one_sequence(False), *_one_sequence(True)),
            ),
        ),
        guided=_flux_guided, together=False, sides=_default_sides, inputs=_flux_inputs,
        text_parts=lambda pipeline, call: [("tokenizer_2", call["max_sequence_length"])],
    ),
    "unet": Denoiser(
        pipelines=("StableDiffusionPipeline", "StableDiffusionXLPipeline"), part="unet", cls="UNet2DConditionModel",
        blocks=_unet_blocks(), guided=_unet_guided, together=True, sides=_unet_sides, inputs=_unet_inputs,
    ),
    "sd3": Denoiser(
        pipelines=("StableDiffusion3Pipeline",), part="transformer", cls="SD3Transformer2DModel",
        blocks=(
            Blocks(
                path="transformer_blocks.*", name="double.{}",
                ports=(
                    *_joint_stream(False),
                    Port(name="hook_attn2_out", axes=_D, module="attn2", gate=("norm1", 6)),  # of SD 3.5 [medium]
                    *_joint_stream(True, needs="ff_context"),  # the last block leaves no text
                ),
            ),
        ),
        guided=lambda pipeline, call: call["guidance_scale"] > 1, together=True, sides=_default_sides,
        inputs=_sd3_inputs,
        text_parts=lambda pipeline, call: [
            ("tokenizer", pipeline.tokenizer_max_length), ("tokenizer_3", call["max_sequence_length"]),
        ],
        refused={"skip_guidance_layers": "it runs passes of other branches between the steps"},
    ),
}  # fmt: skip
"""The rows, by name: ``flux`` and ``unet`` have classes of their own, others are taken by ``HookedDiffusion``."""
