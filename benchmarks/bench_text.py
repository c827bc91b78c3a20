"""What a lens sweep over prompts costs, against one stock pipeline call for each layer.

The baseline is what a user of diffusers does today: the text encoder's hidden states, normed, handed to one call of the
stock pipeline for each layer and prompt; and the competent one, one call for each layer with all prompts. vit_lens runs
the text encoder once, too, and draws all layers of all prompts in full passes. Settings, noise and layers are equal,
and pictures are compared before anything is timed: to the last bit where passes have as many rows, else to one 8-bit
count.

    python benchmarks/bench_text.py mini --threads 2
    python benchmarks/bench_text.py sd15 --device cuda --dtype float16 --prompts 4

``mini`` is the embedded text-to-image model; ``sd15`` has the published shapes of Stable Diffusion 1.5 and random
weights, so its pictures mean nothing.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import DTYPES, add_options, interleave, positive, start, summarise, table, write_result
from PIL import Image
from torch import Tensor

import vit_lens as vl

TEXT: dict[str, Any] = dict(
    hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, max_position_embeddings=77,
    vocab_size=49408, hidden_act="quick_gelu",
)  # fmt: skip
UNET: dict[str, Any] = dict(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
VAE: dict[str, Any] = dict(
    block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, sample_size=512,
    down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
)  # fmt: skip
WORDS = ("star", "ring", "square", "triangle", "heart", "cross")
COLUMNS = ("name", "seconds_median", "ratio", "ratio_low", "ratio_high")


def main() -> None:
    """Compare pictures, time all ways, print a table and write the JSON."""
    options = parse()
    device = start(options)
    pipeline = load(options, device)
    prompts = [f"a red {word}" for word in WORDS[: options.prompts]]
    encoder, decoder = vl.decoders.PromptEncoder(pipeline), vl.decoders.TextDecoder(pipeline)
    settings = decoder.settings(**({} if options.steps is None else {"steps": options.steps}))
    n_layers = next(iter(encoder.towers.values())).cfg.n_layers
    sites = ["L0.resid_pre", "resid_post"]
    n_rows = (n_layers + 1) * len(prompts)
    size = options.rows or min(n_rows, decoder.batch_size(settings))

    def ours(rows: int) -> Tensor:
        """Return the pictures [layer prompt height width 3] of one run, drawn ``rows`` at a time."""
        condition = vl.TextDiffusionLens().read(vl.TextRun.of(encoder, prompts), sites)
        layers = vl.Condition.cat([condition[:, layer] for layer in range(n_layers + 1)])
        return decoder.decode(layers, settings=settings, batch_size=rows).unflatten(0, (n_layers + 1, len(prompts)))

    def states() -> Tensor:
        """Return what the stock text encoder leaves after each layer [layer prompt pos d_model], normed."""
        words = dict(padding="max_length", truncation=True, return_tensors="pt")
        ids = pipeline.tokenizer([*prompts, ""], **words).input_ids.to(device)
        norm = getattr(pipeline.text_encoder, "text_model", pipeline.text_encoder).final_layer_norm
        with torch.no_grad():
            return norm(torch.stack(pipeline.text_encoder(ids, output_hidden_states=True).hidden_states))

    def stock(layer: Tensor, empty: Tensor) -> Tensor:
        """Return the pictures of one stock call that is handed a layer."""
        output: Any = pipeline(
            prompt_embeds=layer, negative_prompt_embeds=empty[None].expand(len(layer), -1, -1),
            num_inference_steps=settings.steps, guidance_scale=settings.guidance,
            generator=[torch.Generator().manual_seed(settings.seed) for _ in layer], output_type="np",
        )  # fmt: skip
        return torch.from_numpy(output.images * 255).round().to(torch.uint8)

    def one_call_each() -> Tensor:
        layers = states()
        empty = layers[-1, -1]
        return torch.stack([torch.cat([stock(row[None], empty) for row in layer[:-1]]) for layer in layers])

    def one_call_a_layer() -> Tensor:
        layers = states()
        return torch.stack([stock(layer[:-1], layers[-1, -1]) for layer in layers])

    def saved(draw: Callable[[], Tensor]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for index, picture in enumerate(draw().flatten(0, 1)):
                Image.fromarray(picture.numpy()).save(Path(folder) / f"{index}.png")

    def record() -> None:
        with tempfile.TemporaryDirectory() as folder:
            drawing = vl.Drawing(settings=settings, batch_size=size)
            vl.sweep(encoder, decoder, prompts, drawing=drawing, controls=False, out=Path(folder) / "record")

    same_shape = ours(len(prompts)), one_call_a_layer()
    if not torch.equal(*same_shape):
        raise SystemExit(f"passes of {len(prompts)} rows differ from the stock pipeline's: {difference(*same_shape)}")
    counts = difference(ours(size), one_call_each())
    if counts > 1:
        raise SystemExit(f"pictures differ from the stock pipeline's by {counts} counts of 255")
    base = "stock pipeline, one call for each layer and prompt"
    candidates = {
        base: one_call_each,
        "stock pipeline, one call for each layer": one_call_a_layer,
        "vit_lens, read and draw": lambda: ours(size),
    }
    if options.saved:
        candidates = {
            f"{base}, PNGs": lambda: saved(one_call_each),
            "vit_lens.sweep, with its record": record,
        }
        base = f"{base}, PNGs"
    found = summarise(interleave(candidates, repeats=options.repeats, warmup=1, device=device), base)
    print(table(found, COLUMNS))
    content: dict[str, Any] = {
        "benchmark": "text", "preset": options.preset, "dtype": options.dtype,
        "weights": "the embedded model's" if options.preset == "mini" else "random", "prompts": len(prompts),
        "layers": n_layers + 1, "settings": settings.to_dict(), "rows_per_pass": size,
        "equal_bits_at_equal_rows": True, "largest_difference_in_counts": counts, "rows": found,
    }  # fmt: skip
    write_result(options, f"text_{options.preset}_{device.type}_{options.dtype}", content)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", choices=("mini", "sd15"), help="whose shapes")
    add_options(parser)
    parser.set_defaults(repeats=5)
    parser.add_argument("--prompts", type=positive, default=4, help=f"how many, up to {len(WORDS)}")
    parser.add_argument("--steps", type=positive, help="instead of the model's own")
    parser.add_argument("--rows", type=positive, help="pictures drawn in one pass; the decoder's choice by default")
    parser.add_argument("--saved", action="store_true", help="whole sweeps against calls whose pictures are saved")
    return parser.parse_args()


def difference(a: Tensor, b: Tensor) -> int:
    """Return the largest difference of two sets of pictures, in counts of 255."""
    return int((a.int() - b.int()).abs().max())


def load(options: argparse.Namespace, device: torch.device) -> Any:
    """Return the preset's pipeline."""
    import diffusers

    dtype = DTYPES[options.dtype]
    if options.preset == "mini":
        from vit_lens.identity import EMBEDDED_PIPELINES

        made = diffusers.DiffusionPipeline.from_pretrained(EMBEDDED_PIPELINES["mini-sd"], local_files_only=True)
    else:
        made = published_shapes(dtype, device)
    made.set_progress_bar_config(disable=True)
    diffusers.utils.logging.set_verbosity_error()
    return made.to(device, dtype)


def published_shapes(dtype: torch.dtype, device: torch.device) -> Any:
    """Return a pipeline of Stable Diffusion 1.5's shapes with random weights and a tokenizer of letters."""
    import diffusers
    import transformers

    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    text = transformers.CLIPTextConfig(**TEXT, bos_token_id=len(words) - 2, eos_token_id=len(words) - 1)
    with torch.device(device):
        parts: dict[str, Any] = dict(
            text_encoder=transformers.CLIPTextModel(text).to(dtype),
            unet=diffusers.UNet2DConditionModel(**UNET).to(dtype), vae=diffusers.AutoencoderKL(**VAE).to(dtype),
        )  # fmt: skip
    return diffusers.StableDiffusionPipeline(
        **parts, tokenizer=transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77),
        scheduler=diffusers.DDIMScheduler(clip_sample=False, steps_offset=1, set_alpha_to_one=False),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


if __name__ == "__main__":
    main()
