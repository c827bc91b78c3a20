"""The second embedded decoder as it ships: it draws what it is asked for, diffusers reads it, and it is another one."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cosine_similarity, normalize

from vit_lens.identity import MINI_FILES, MINI_IP_FILES
from vit_lens.mini import world

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

METRICS = json.loads((MINI_IP_FILES / "metrics.json").read_text())


@pytest.fixture(scope="module")
def model():
    import vit_lens as vl

    return vl.HookedViT.from_pretrained("mini").requires_grad_(False)


@pytest.fixture(scope="module")
def embeds(model):
    scenes = world.render_codes(world.sample_codes(16, np.random.default_rng(77), held_out=True))
    return model(model.preprocess(list(scenes)))


@pytest.fixture(scope="module")
def decoder():
    import vit_lens as vl

    return vl.load_decoder("mini-ip")


def test_it_draws_what_it_is_asked_for(model, decoder, embeds):
    pictures = decoder.decode(embeds, settings=decoder.settings(steps=5, guidance=1.0))
    again = model(model.preprocess(list(pictures.numpy())))
    assert cosine_similarity(again, embeds).mean() > 0.99
    assert cosine_similarity(again, embeds.roll(1, 0)).mean() < 0.3


def test_the_bars_are_met_and_the_card_says_the_numbers():
    card = (MINI_IP_FILES / "MODEL_CARD.md").read_text()
    drawn = METRICS["zero_shot_decoded"]
    assert METRICS["cosine_round_trip"]["mean"] >= 0.946 and drawn["shape"] >= 0.7
    assert all(value >= 0.9 for name, value in drawn.items() if name != "shape")
    said = {line.split("|")[1].strip(): line.split("|")[2].strip() for line in card.splitlines() if line[:1] == "|"}
    mean, spread = (f"{METRICS['cosine_round_trip'][name]:.4f}".lstrip("0") for name in ("mean", "std"))
    assert said["cosine of the decoded picture's embedding with the input's, 500 pictures"] == f"{mean} (std {spread})"
    assert said["zero-shot on the decoded pictures: shape"] == f"{drawn['shape']:.3f}"
    assert said["colour"] == f"{drawn['colour']:.3f}".lstrip("0")
    assert METRICS["n_decoded"] == 500 and (METRICS["steps"], METRICS["guidance"]) == (12, 1.5)


def test_it_is_small_and_shares_no_weight_with_the_first_decoder():
    assert sum(file.stat().st_size for file in MINI_IP_FILES.rglob("*") if file.is_file()) < 6_000_000
    held = [load_file(file) for file in (MINI_FILES / "decoder").rglob("*.safetensors")]
    first = {value.numpy().tobytes() for part in held for value in part.values() if value.std() > 0}
    own = [value for file in MINI_IP_FILES.rglob("*.safetensors") for value in load_file(file).values()]
    assert len(own) > 200 and not any(value.numpy().tobytes() in first for value in own)


def test_it_is_known_by_its_name_and_refuses_another_encoder(decoder):
    import vit_lens as vl
    from vit_lens.errors import ContractError

    assert decoder.decoder_id == "vit_lens/mini-ip" and decoder.encoder_id == "vit_lens/mini"
    assert decoder.source["name"] == "mini-ip" and "untrained" not in decoder.identity()
    assert (
        decoder.cost(decoder.defaults, 1).flops
        < vl.load_decoder("mini").cost(vl.load_decoder("mini").defaults, 1).flops
    )
    with pytest.raises(ContractError, match="was made for encoder 'vit_lens/mini'"):
        vl.load_decoder("mini-ip", encoder="open_clip/ViT-B-32/openai")


def test_stock_diffusers_draws_the_same(decoder, embeds):
    from diffusers import StableDiffusionXLPipeline

    stock = StableDiffusionXLPipeline.from_pretrained(MINI_IP_FILES, add_watermarker=False)
    stock.load_ip_adapter(
        str(MINI_IP_FILES), subfolder="", weight_name="ip_adapter.safetensors", image_encoder_folder=None
    )
    stock.set_progress_bar_config(disable=True)
    words = {"prompt_embeds": torch.zeros(1, 1, 96), "pooled_prompt_embeds": torch.zeros(1, 16)}
    picture = stock(
        **words, **{f"negative_{name}": value for name, value in words.items()}, num_inference_steps=3,
        ip_adapter_image_embeds=[torch.cat([torch.zeros(1, 128), embeds[:1]])[:, None]], guidance_scale=1.5,
        generator=[torch.Generator().manual_seed(0)], output_type="pt",
    ).images  # fmt: skip
    ours = decoder.decode(embeds[:1], settings=decoder.settings(steps=3), output="float")
    torch.testing.assert_close(ours, picture.float() * 2 - 1, atol=1e-4, rtol=0)


def test_two_decoders_agree_on_scenes_more_than_on_directions_of_no_picture(model, decoder, embeds):
    """Where the first knows what it draws, the second draws it, too; of random directions they share a part."""
    import vit_lens as vl
    from vit_lens.mini import mini_judge

    judge, first = mini_judge(model), vl.load_decoder("mini")
    random = normalize(torch.randn(16, 128, generator=torch.Generator().manual_seed(0)), dim=-1) * 15

    def agreement(asked):
        drawn = [
            one.decode(asked, negative=None, settings=one.settings(steps=5, guidance=1.0)) for one in (first, decoder)
        ]
        seen = [normalize(judge(judge.preprocess(list(pictures.numpy()))), dim=-1) for pictures in drawn]
        cosines = seen[0] @ seen[1].T
        return float(cosines.diagonal().mean()), float(cosines[~torch.eye(16, dtype=torch.bool)].mean())

    scenes, unrelated = agreement(embeds)
    assert scenes > 0.97 and unrelated < 0.25
    nothing, null = agreement(random)
    assert null < nothing < 0.7
