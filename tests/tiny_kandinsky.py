"""A Kandinsky 2.2 decoder of 1.6 million random parameters, and its files in the published layout."""

import json

import torch

D_EMBED = 32
UNET = dict(
    in_channels=4, out_channels=8, addition_embed_type="image",
    down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    mid_block_type="UNetMidBlock2DSimpleCrossAttn", block_out_channels=(32, 64), layers_per_block=1,
    encoder_hid_dim=D_EMBED, encoder_hid_dim_type="image_proj", cross_attention_dim=32, attention_head_dim=4,
    resnet_time_scale_shift="scale_shift", class_embed_type=None,
)  # fmt: skip
MOVQ = dict(
    block_out_channels=[32, 64], down_block_types=["DownEncoderBlock2D", "AttnDownEncoderBlock2D"], in_channels=3,
    latent_channels=4, layers_per_block=1, norm_num_groups=8, norm_type="spatial", num_vq_embeddings=12,
    out_channels=3, up_block_types=["AttnUpDecoderBlock2D", "UpDecoderBlock2D"], vq_embed_dim=4,
)  # fmt: skip
SCHEDULER = dict(
    num_train_timesteps=1000, beta_schedule="linear", beta_start=0.00085, beta_end=0.012, clip_sample=True,
    steps_offset=1, prediction_type="epsilon", set_alpha_to_one=False,
)  # fmt: skip


def parts(scheduler="DDPMScheduler", **scheduler_overrides):
    """UNet, MoVQ and scheduler; the same weights each time."""
    import diffusers

    with torch.random.fork_rng():
        torch.manual_seed(11)
        unet, movq = diffusers.UNet2DConditionModel(**UNET), diffusers.VQModel(**MOVQ)
        with torch.no_grad():
            for parameter in [*unet.parameters(), *movq.parameters()]:
                if parameter.ndim == 1:  # gains and biases are 1 and 0 at the start, which hides mistakes
                    parameter.add_(0.05 * torch.randn_like(parameter))
    config = SCHEDULER | scheduler_overrides
    return unet, movq, getattr(diffusers, scheduler).from_config(config)


def embeddings(n, seed=5):
    """Raw embeddings with a norm like a real encoder's, and a negative."""
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(n, D_EMBED, generator=generator), 2 * torch.randn(1, D_EMBED, generator=generator)


def pictures_of_pipeline(unet, movq, scheduler, embeds, negative, **arguments):
    """What the published pipeline makes of one embedding, in [-1, 1]."""
    from diffusers import KandinskyV22Pipeline

    pipe = KandinskyV22Pipeline(unet=unet, scheduler=scheduler, movq=movq)
    pipe.set_progress_bar_config(disable=True)
    seed = arguments.pop("seed")
    return pipe(
        image_embeds=embeds, negative_image_embeds=negative, generator=torch.Generator().manual_seed(seed),
        output_type="pt", **arguments,
    ).images.clamp(-1, 1)  # fmt: skip


def save(directory, card=None, **scheduler_overrides):
    """Write the published layout."""
    unet, movq, scheduler = parts(**scheduler_overrides)
    unet.save_pretrained(directory / "unet")
    movq.save_pretrained(directory / "movq")
    scheduler.save_pretrained(directory / "scheduler")
    (directory / "model_index.json").write_text(json.dumps({"_class_name": "KandinskyV22Pipeline"}))
    if card is not None:
        (directory / "vit_lens.json").write_text(json.dumps(card))
    return directory
