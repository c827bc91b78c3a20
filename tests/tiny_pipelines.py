"""Stock text-to-image pipelines of diffusers with few random parameters, one for each format, and their tokenizers."""

import torch

WORDS = "a red blue star ring cross left of above and two small green big".split()
PROMPTS = ["a red star", "a blue ring and a green cross"]
_CHARS = sorted({char for word in WORDS for char in word})
_PART = dict(sample_size=16, layers_per_block=1, norm_num_groups=8, attention_head_dim=8)
_DOWN = dict(down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), block_out_channels=(16, 32))
_UNET = _PART | _DOWN | dict(up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"))
_IF_UNET = dict(
    layers_per_block=1, out_channels=6, attention_head_dim=8, norm_num_groups=8, block_out_channels=(32, 64),
    down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    mid_block_type="UNetMidBlock2DSimpleCrossAttn", encoder_hid_dim=32, encoder_hid_dim_type="text_proj",
    cross_attention_dim=32, addition_embed_type="text", addition_embed_type_num_heads=2,
    cross_attention_norm="group_norm", resnet_time_scale_shift="scale_shift", act_fn="gelu",
)  # fmt: skip
_IF_SCHEDULER = dict(
    beta_schedule="squaredcos_cap_v2", thresholding=True, dynamic_thresholding_ratio=0.95, sample_max_value=1,
    variance_type="learned_range",
)  # fmt: skip


def perturbed(*modules):
    """In evaluation mode, every parameter nudged: gains of 1 and biases of 0 hide mistakes."""
    with torch.no_grad():
        for parameter in (parameter for module in modules for parameter in module.parameters()):
            parameter.add_(0.05 * torch.randn_like(parameter))
    return modules[0].eval() if len(modules) == 1 else [module.eval() for module in modules]


def clip_tokenizer(pad="<|endoftext|>", length=16):
    from transformers import CLIPTokenizer

    tokens, merges = _CHARS + [f"{char}</w>" for char in _CHARS], []
    for word in WORDS:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces[:2] = ["".join(pieces[:2])]
            tokens.append(pieces[0])
    tokens = list(dict.fromkeys(["!", *tokens, "<|startoftext|>", "<|endoftext|>"]))
    vocab = {token: index for index, token in enumerate(tokens)}
    made = CLIPTokenizer(vocab=vocab, merges=list(dict.fromkeys(merges)), model_max_length=length, pad_token=pad)
    return made, vocab


def t5_tokenizer(length=77):
    from transformers import T5Tokenizer

    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocab += [(f"\u2581{word}", -2.0) for word in WORDS] + [("\u2581", -3.0)] + [(char, -5.0) for char in _CHARS]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=length), len(vocab)


def clip(n_layers=3, width=32, projected=False, act="quick_gelu", legacy=True, pad="<|endoftext|>"):
    """A text encoder of CLIP and its tokenizer; ``legacy``: pooled where the id is largest, as old configs have it."""
    import transformers

    tokenizer, vocab = clip_tokenizer(pad)
    config = transformers.CLIPTextConfig(
        vocab_size=len(vocab), hidden_size=width, intermediate_size=44, num_hidden_layers=n_layers,
        num_attention_heads=4, max_position_embeddings=16, hidden_act=act, projection_dim=width,
        bos_token_id=vocab["<|startoftext|>"], eos_token_id=2 if legacy else vocab["<|endoftext|>"],
        pad_token_id=vocab[pad],
    )  # fmt: skip
    cls = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return perturbed(cls(config)), tokenizer


def t5(width=32, d_kv=16, n_layers=3, length=77):
    from transformers import T5Config, T5EncoderModel

    tokenizer, n = t5_tokenizer(length)
    config = T5Config(
        vocab_size=n, d_model=width, d_kv=d_kv, d_ff=52, num_layers=n_layers, num_heads=4,
        feed_forward_proj="gated-gelu", relative_attention_num_buckets=8, relative_attention_max_distance=20,
        is_encoder_decoder=False, tie_word_embeddings=False,
    )  # fmt: skip
    return perturbed(T5EncoderModel(config)), tokenizer


def vae(channels=(16, 32), latents=4, **more):
    from diffusers import AutoencoderKL

    n = len(channels)
    return perturbed(
        AutoencoderKL(
            block_out_channels=channels, layers_per_block=1, latent_channels=latents, norm_num_groups=8, sample_size=32,
            down_block_types=("DownEncoderBlock2D",) * n, up_block_types=("UpDecoderBlock2D",) * n, **more,
        )
    )  # fmt: skip


def _flat_vae(latents):
    return vae((16,), latents, shift_factor=0.06, scaling_factor=1.5, use_quant_conv=False, use_post_quant_conv=False)


def make(name):
    """Build a pipeline by its name below; if2 is the second stage of if, taesd has a distilled autoencoder."""
    with torch.random.fork_rng():
        torch.manual_seed(sum(map(ord, name)))
        pipe = _MAKERS[name]()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def at(run, layers=None):
    """The condition of a run with residuals of other layers where the format reads, by encoder."""
    reads = {one.encoder: one for one in run.format.readings}
    moved = (layers or {}).items()
    return run.condition_of({name: run.format_norm(reads[name], run.residual(name, n)) for name, n in moved}, {})


def stream(run, name):
    """Every residual of an encoder, not normed: the embedding, then what each block left."""
    return torch.stack([run.residual(name, layer) for layer in range(run.tower(name).cfg.n_layers + 1)])


def _sd(read_by=clip, **how):
    import diffusers

    encoder, tokenizer = read_by(**how)
    unet = perturbed(diffusers.UNet2DConditionModel(**_UNET, cross_attention_dim=32))
    scheduler = diffusers.DDIMScheduler(clip_sample=False, steps_offset=1, set_alpha_to_one=False)
    return diffusers.StableDiffusionPipeline(
        vae=vae(), text_encoder=encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def _taesd():
    import diffusers

    pipe = _sd()
    sizes = dict(encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8))
    once = dict(num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1))
    pipe.register_modules(vae=perturbed(diffusers.AutoencoderTiny(**sizes, **once, latent_channels=4)))
    return pipe


def _sdxl():
    import diffusers

    first, second = clip(), clip(4, 40, projected=True, act="gelu", pad="!")
    unet = diffusers.UNet2DConditionModel(
        **_UNET, cross_attention_dim=72, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=40 + 48,
    )  # fmt: skip
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(), text_encoder=first[0], tokenizer=first[1], text_encoder_2=second[0], tokenizer_2=second[1],
        unet=perturbed(unet), scheduler=diffusers.EulerDiscreteScheduler(), add_watermarker=False,
    )  # fmt: skip


def _if():
    import diffusers

    encoder, tokenizer = t5()
    unet = perturbed(diffusers.UNet2DConditionModel(**_IF_UNET, sample_size=16, in_channels=3))
    return diffusers.IFPipeline(
        tokenizer=tokenizer, text_encoder=encoder, unet=unet, scheduler=diffusers.DDPMScheduler(**_IF_SCHEDULER),
        safety_checker=None, feature_extractor=None, watermarker=None, requires_safety_checker=False,
    )  # fmt: skip


def _if2():
    import diffusers

    unet = diffusers.UNet2DConditionModel(**_IF_UNET, sample_size=32, in_channels=6, class_embed_type="timestep")
    return diffusers.IFSuperResolutionPipeline(
        tokenizer=None, text_encoder=None, unet=perturbed(unet), scheduler=diffusers.DDPMScheduler(**_IF_SCHEDULER),
        image_noising_scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"), safety_checker=None,
        feature_extractor=None, watermarker=None, requires_safety_checker=False,
    )  # fmt: skip


def _flux(guidance_embeds):
    import diffusers

    first, second = clip(width=36, legacy=False), t5()
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=36, axes_dims_rope=(4, 4, 8), guidance_embeds=guidance_embeds,
    )  # fmt: skip
    options = dict(shift=3.0, use_dynamic_shifting=True) if guidance_embeds else dict(shift=1.0)
    return diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**options), vae=_flat_vae(1), text_encoder=first[0],
        tokenizer=first[1], text_encoder_2=second[0], tokenizer_2=second[1], transformer=perturbed(transformer),
    )  # fmt: skip


def _sd3():
    import diffusers

    first, second = clip(projected=True), clip(4, 40, projected=True, act="gelu", pad="!")
    third = t5(96)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16, patch_size=1, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=4,
        caption_projection_dim=32, joint_attention_dim=96, pooled_projection_dim=72, out_channels=4,
    )  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        transformer=perturbed(transformer), scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_flat_vae(4), text_encoder=first[0], tokenizer=first[1], text_encoder_2=second[0], tokenizer_2=second[1],
        text_encoder_3=third[0], tokenizer_3=third[1],
    )  # fmt: skip


def _pixart():
    import diffusers

    encoder, tokenizer = t5()
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=8, num_layers=1, patch_size=2, attention_head_dim=8, num_attention_heads=3, caption_channels=32,
        in_channels=4, out_channels=8, cross_attention_dim=24, num_embeds_ada_norm=1000, norm_type="ada_norm_single",
        use_additional_conditions=False,
    )  # fmt: skip
    return diffusers.PixArtAlphaPipeline(
        tokenizer=tokenizer, text_encoder=encoder, vae=vae(), transformer=perturbed(transformer),
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )  # fmt: skip


_MAKERS = {
    "sd1": _sd, "sdt5": lambda: _sd(t5, length=16), "sd2": lambda: _sd(act="gelu", legacy=False, pad="!"),
    "taesd": _taesd, "sdxl": _sdxl, "if": _if, "if2": _if2, "schnell": lambda: _flux(False),
    "dev": lambda: _flux(True), "sd3": _sd3, "pixart": _pixart,
}  # fmt: skip
