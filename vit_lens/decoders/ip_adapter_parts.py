"""An image adapter in a UNet of SDXL: put in, read out again, compared with what it must be."""

__all__ = ["adapted_width", "adapter_cost", "adapter_shapes", "adapter_weights", "put_adapter"]

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vit_lens.decoders.contract import Cost
from vit_lens.decoders.costs import count_call
from vit_lens.errors import DecoderError

_TOKENS = 4  # of one picture; diffusers takes it for granted
_PROJECTION = {"image_embeds": "proj", "norm": "norm"}  # what diffusers calls what the published files call otherwise


def put_adapter(unet: Any, adapter: Mapping[str, Tensor]) -> None:
    """Put an adapter into a UNet, in place, as ``load_ip_adapter`` of diffusers does.

    Args:
        unet: A ``UNet2DConditionModel`` that attends to text.
        adapter: The weights under their published names, ``image_proj.*`` and ``ip_adapter.*``.
    """
    from diffusers.loaders.ip_adapter import IPAdapterMixin

    class Host(IPAdapterMixin):
        """What the loader asks of a pipeline."""

    host: Any = Host()
    host.unet = unet
    parts: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, value in adapter.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = value
    told = logging.getLogger("diffusers.models.modeling_utils")  # which warns of modules to keep in float32: []
    before = told.level
    told.setLevel(logging.ERROR)
    try:
        host.load_ip_adapter(parts, subfolder="", weight_name="", image_encoder_folder=None, low_cpu_mem_usage=False)
    finally:
        told.setLevel(before)


def adapter_weights(unet: Any) -> dict[str, Tensor]:
    """Return the adapter in a UNet under its published names, which :func:`put_adapter` and diffusers take."""
    projection = unet.encoder_hid_proj.image_projection_layers[0]
    named = {
        f"image_proj.{new}.{name}": value
        for old, new in _PROJECTION.items()
        for name, value in projection.get_submodule(old).named_parameters()
    }
    attentions = [part for part in unet.attn_processors.values() if hasattr(part, "to_k_ip")]
    for at, part in enumerate(attentions):
        for name in ("to_k_ip", "to_v_ip"):
            named[f"ip_adapter.{2 * at + 1}.{name}.weight"] = getattr(part, name)[0].weight
    return {name: value.detach() for name, value in named.items()}


def adapter_shapes(unet: Any, d_embed: int) -> dict[str, list[int]]:
    """Return the shapes of the weights of an adapter for a UNet and embeddings of a width, under published names."""
    width = unet.config["cross_attention_dim"]
    shapes = {
        "image_proj.proj.weight": [_TOKENS * width, d_embed], "image_proj.proj.bias": [_TOKENS * width],
        "image_proj.norm.weight": [width], "image_proj.norm.bias": [width],
    }  # fmt: skip
    attentions = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    for at, name in enumerate(attentions):
        out = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
        shapes |= {f"ip_adapter.{2 * at + 1}.{part}.weight": [out, width] for part in ("to_k_ip", "to_v_ip")}
    return shapes


def adapted_width(unet: Any) -> int:
    """Return how wide the embeddings are that the adapter in a UNet reads.

    Raises:
        DecoderError: It has no adapter, several, or one that reads something else than one embedding, or not in full.
    """
    advice = "call pipeline.load_ip_adapter(...) first, with an adapter such as ip-adapter_sdxl.safetensors"
    layers = getattr(getattr(unet, "encoder_hid_proj", None), "image_projection_layers", None)
    if layers is None or len(layers) != 1:
        raise DecoderError(f"the UNet has {len(layers or ())} image adapters, expected one; {advice}")
    if type(layers[0]).__name__ != "ImageProjection":
        raise DecoderError(
            f"the adapter projects with a {type(layers[0]).__name__}, which reads patch tokens or faces; expected an "
            f"ImageProjection of one embedding: {advice}"
        )
    scales = {str(part.scale) for part in unet.attn_processors.values() if hasattr(part, "to_k_ip")}
    if scales != {"[1.0]"}:
        raise DecoderError(
            f"the adapter's scale is {' and '.join(sorted(scales))}; expected 1 everywhere: an image is all that is "
            "asked for here. Call pipeline.set_ip_adapter_scale(1.0)"
        )
    return layers[0].image_embeds.in_features


def adapter_cost(
    unet: Any, vae: Any, latent: tuple[int, int, int], *, n_tokens: int, d_embed: int, steps: int, guided: bool, n: int
) -> Cost:
    """Count what drawing ``n`` pictures in one pass costs, on the meta device.

    Args:
        unet: With its adapter.
        vae: Of which the decoder runs.
        latent: The shape of one row's latents.
        n_tokens: Tokens of the text.
        d_embed: The width of the embeddings.
        steps: Denoising steps.
        guided: Whether each evaluates every row twice.
        n: The number of pictures.
    """
    rows, config = n * (1 + guided), unet.config
    made: dict[str, Any] = dict(device="meta", dtype=unet.dtype)

    def step(unet: Any) -> Tensor:
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        said = {
            "text_embeds": torch.empty(rows, pooled, **made), "time_ids": torch.empty(rows, 6, **made),
            "image_embeds": [torch.empty(rows, 1, d_embed, **made)],
        }  # fmt: skip
        text = torch.empty(rows, n_tokens, config["cross_attention_dim"], **made)
        t = torch.empty((), device="meta", dtype=torch.int64)
        return unet(torch.empty(rows, *latent, **made), t, text, added_cond_kwargs=said, return_dict=False)[0]

    def draw(vae: Any) -> Tensor:
        return vae.decode(torch.empty(n, *latent, device="meta", dtype=vae.dtype), return_dict=False)[0].float()

    unet_flops, unet_peak = count_call(unet, step)
    vae_flops, vae_peak = count_call(vae, draw)
    is_upcast = vae.dtype == torch.float16 and bool(vae.config.get("force_upcast"))  # it would overflow in float16
    weights = [one for part in (unet, vae) for one in nn.Module.parameters(part)]
    return Cost(
        flops=steps * unet_flops + vae_flops, peak_bytes=max(unet_peak, vae_peak * (1 + is_upcast)),
        weight_bytes=sum(one.numel() * one.element_size() for one in weights),
    )  # fmt: skip
