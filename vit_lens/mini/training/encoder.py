"""Train the small CLIP: in-batch contrast on captions, and a bank of every single-attribute prompt."""

__all__ = [
    "MEAN",
    "STD",
    "EncoderSettings",
    "build_clip",
    "image_embeds",
    "save_encoder",
    "text_embeds",
    "to_pixels",
    "train_encoder",
]

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, PreTrainedTokenizerBase

from vit_lens.mini import world
from vit_lens.mini.training.progress import cosine, run_steps, start_step
from vit_lens.mini.training.tokenizer import MAX_TOKENS, build_tokenizer

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
_WEIGHTS = {"shape": 2.0, "texture": 2.0}


@dataclass(frozen=True, kw_only=True)
class EncoderSettings:
    """Sizes of the two towers, and of the training run."""

    width: int = 128
    n_layers: int = 8
    n_heads: int = 8
    patch: int = 16
    d_embed: int = 128
    text_width: int = 96
    text_layers: int = 2
    batch: int = 128
    n_steps: int = 1500
    lr: float = 1.5e-3
    lr_muon: float = 0.02
    bank_weight: float = 0.3


_DEFAULTS = EncoderSettings()


def build_clip(settings: EncoderSettings, tokenizer: PreTrainedTokenizerBase, *, seed: int) -> CLIPModel:
    """Build an untrained CLIP whose initial weights depend on `seed` alone."""
    text = dict(
        vocab_size=len(tokenizer),
        hidden_size=settings.text_width,
        projection_dim=settings.d_embed,
        intermediate_size=4 * settings.text_width,
        num_hidden_layers=settings.text_layers,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = dict(
        hidden_size=settings.width,
        intermediate_size=4 * settings.width,
        image_size=64,
        num_hidden_layers=settings.n_layers,
        num_attention_heads=settings.n_heads,
        patch_size=settings.patch,
        projection_dim=settings.d_embed,
        hidden_act="gelu",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=settings.d_embed))
        vision_table = model.vision_model.embeddings
        for table in (vision_table.position_embedding.weight, vision_table.class_embedding):
            nn.init.normal_(table, std=0.5)
        nn.init.normal_(model.text_model.embeddings.position_embedding.weight, std=0.5)
        nn.init.normal_(model.text_model.embeddings.token_embedding.weight, std=0.5)
    model.set_attn_implementation("eager")
    return model.train()


def to_pixels(images: UInt8[np.ndarray, "batch height width 3"]) -> Float[Tensor, "batch 3 height width"]:
    """Turn uint8 pictures into the encoder's normalised pixels."""
    values = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    return (values - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def image_embeds(model: CLIPModel, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch d_embed"]:
    """Embed pixels, without normalising."""
    return model.visual_projection(model.vision_model(pixel_values=pixels)[1])


def text_embeds(model: CLIPModel, tokens: Mapping[str, Tensor]) -> Float[Tensor, "batch d_embed"]:
    """Embed tokenised texts, without normalising."""
    return model.text_projection(model.text_model(**tokens)[1])


def train_encoder(
    out: Path, *, seed: int, settings: EncoderSettings = _DEFAULTS, stop_after: int | None = None
) -> CLIPModel:
    """Train a CLIP in `out`, continuing what is there, and save it in `out/encoder` when it is done."""
    tokenizer = build_tokenizer()
    model = build_clip(settings, tokenizer, seed=seed)
    muon, adamw = _optimizers(model, settings)
    bank = tokenizer([text for name in world.PROBES for text in world.prompts(name)], padding=True, return_tensors="pt")

    def step(index: int) -> dict[str, Tensor]:
        generator = np.random.default_rng([seed, index])
        codes = world.sample_codes(settings.batch, generator, held_out=False)
        pixels = to_pixels(_worn(world.render_codes(codes), generator))
        captions = tokenizer(_captions(codes, generator), padding=True, return_tensors="pt")
        rate = cosine(index, settings.n_steps, warm_up=min(100, settings.n_steps))
        start_step({muon: settings.lr_muon, adamw: settings.lr}, rate)
        image = image_embeds(model, pixels)
        text = text_embeds(model, captions)
        probe = text_embeds(model, bank)
        losses = _losses(image, text, probe, codes, model.logit_scale)
        (losses["clip"] + settings.bank_weight * losses["bank"]).backward()
        nn.utils.clip_grad_norm_([p for group in adamw.param_groups for p in group["params"]], 1.0)
        muon.step()
        adamw.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=float(np.log(100.0)))
        return losses

    done = run_steps(
        step,
        {"model": model, "muon": muon, "adamw": adamw},
        n_steps=settings.n_steps,
        checkpoint=out / "encoder.pt",
        settings={"seed": seed, **asdict(settings)},
        stop_after=stop_after,
    )
    if done == settings.n_steps:
        save_encoder(model, tokenizer, out / "encoder")
    return model.eval()


def save_encoder(model: CLIPModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Write the CLIP in float16 with its tokenizer and preprocessing, as Hugging Face lays them out."""
    model.half().save_pretrained(directory)
    model.float()
    tokenizer.save_pretrained(directory)
    CLIPImageProcessor(
        size={"shortest_edge": 64},
        crop_size={"height": 64, "width": 64},
        resample=3,
        image_mean=list(MEAN),
        image_std=list(STD),
    ).save_pretrained(directory)


def _optimizers(model: CLIPModel, settings: EncoderSettings) -> tuple[torch.optim.Muon, torch.optim.AdamW]:
    blocks = {name: p for name, p in model.named_parameters() if ".layers." in name and p.ndim == 2}
    rest = [p for name, p in model.named_parameters() if name not in blocks]
    decayed, plain = [p for p in rest if p.ndim > 1], [p for p in rest if p.ndim <= 1]
    muon = torch.optim.Muon(blocks.values(), lr=settings.lr_muon, weight_decay=0.01)
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
    return muon, torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.98))


def _losses(
    image: Float[Tensor, "batch d_embed"],
    text: Float[Tensor, "batch d_embed"],
    probe: Float[Tensor, "probe d_embed"],
    codes: Int[np.ndarray, "batch attribute"],
    logit_scale: Tensor,
) -> dict[str, Tensor]:
    scale = logit_scale.exp()
    unit = functional.normalize(image, dim=-1)
    logits = scale * unit @ functional.normalize(text, dim=-1).T
    target = torch.arange(len(image))
    clip = (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2
    probe_logits = scale * unit @ functional.normalize(probe, dim=-1).T
    groups = probe_logits.split([len(world.prompts(name)) for name in world.PROBES], dim=1)
    bank, shown = torch.zeros(()), {}
    for name, group in zip(world.PROBES, groups, strict=True):
        truth = torch.from_numpy(np.array(world.labels(codes, name)))
        bank = bank + _WEIGHTS.get(name, 1.0) * functional.cross_entropy(group, truth, ignore_index=-1)
        shown[name] = (group.argmax(dim=1) == truth)[truth >= 0].float().mean()
    few = {name: shown[name] for name in ("shape", "texture", "size", "row", "pattern", "symbol", "corner")}
    return {"clip": clip, "bank": bank, "scale": scale.detach(), "norm": image.detach().norm(dim=-1).mean(), **few}


def _captions(codes: Int[np.ndarray, "batch attribute"], generator: np.random.Generator) -> list[str]:
    dropped = generator.choice((0.0, 0.0, 0.15, 0.4), size=(len(codes), 1))
    kept = generator.random((len(codes), len(world.PROBES))) >= dropped
    return [
        world.caption(scene, [name for name, keep in zip(world.PROBES, row, strict=True) if keep])
        for scene, row in zip(world.decode(codes), kept, strict=True)
    ]


def _worn(
    images: UInt8[np.ndarray, "batch height width 3"], generator: np.random.Generator
) -> UInt8[np.ndarray, "batch height width 3"]:
    """Blur and roughen some of the pictures, as an imperfect decoder would."""
    blur = generator.choice((0.0, 0.0, 0.25, 0.5), size=(len(images), 1, 1, 1)).astype(np.float32)
    noise = generator.choice((0.0, 0.0, 6.0, 16.0), size=(len(images), 1, 1, 1)).astype(np.float32)
    values = images.astype(np.float32)
    for axis in (1, 2):
        near = (np.roll(values, 1, axis) + np.roll(values, -1, axis)) / 2
        values += blur * (near - values)
    values += noise * generator.standard_normal(values.shape, dtype=np.float32)
    return values.clip(0, 255).astype(np.uint8)
