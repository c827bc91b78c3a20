"""Text towers by name: folders, parts of pipelines, the embedded pair, open_clip; and what is refused."""

import json

import pytest
import text_towers
import torch
from conftest import randomize
from safetensors.torch import save_file
from text_towers import PROMPTS

pytestmark = pytest.mark.tl3
EXACT = dict(atol=1e-12, rtol=1e-10)


def load(*args, **given):
    from vit_lens import HookedTextEncoder

    return HookedTextEncoder.from_pretrained(*args, dtype=torch.float64, **given).requires_grad_(False)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """The text sides of a pipeline: two CLIPs and a T5 with their tokenizers, as diffusers keeps them."""
    root = tmp_path_factory.mktemp("pipeline")
    parts = {
        "": (text_towers.clip_text(randomize, projected=False), text_towers.clip_tokenizer()),
        "_2": (text_towers.clip_text(randomize, num_hidden_layers=2), text_towers.clip_tokenizer(pad_token="!")),
        "_3": (text_towers.t5_encoder(randomize, gated=True), text_towers.t5_tokenizer()),
    }
    for number, (tower, tokenizer) in parts.items():
        tower.save_pretrained(root / f"text_encoder{number}")
        tokenizer.save_pretrained(root / f"tokenizer{number}")
    names = {f"text_encoder{number}": ["transformers", type(part[0]).__name__] for number, part in parts.items()}
    (root / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusion3Pipeline", **names}))
    return root, {f"text_encoder{number}": part for number, part in parts.items()}


def read(tower, ids, mask=None):
    theirs = tower(input_ids=ids, attention_mask=mask)
    kinds = {"CLIPTextModel": "pooler_output", "CLIPTextModelWithProjection": "text_embeds"}
    return getattr(theirs, kinds.get(type(tower).__name__, "last_hidden_state"))


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2", "text_encoder_3"])
def test_parts_of_a_pipeline(part, pipeline, monkeypatch):
    text_towers.exact_t5_norms(monkeypatch)
    root, towers = pipeline
    tower, tokenizer = towers[part]
    model = load(root, subfolder=part)
    told = tokenizer(list(PROMPTS), padding=True, return_tensors="pt")
    assert torch.equal(model.to_tokens(PROMPTS), told.input_ids)
    mask = told.attention_mask if part == "text_encoder_3" else None  # T5 alone sees what is behind the end
    torch.testing.assert_close(model(PROMPTS), read(tower, told.input_ids, mask), **EXACT)
    assert model.source["name"] == f"{root}:{part}" and model.encoder_id.startswith(f"local/{root.name}:{part}@")
    torch.testing.assert_close(load(f"{root}:{part}")(PROMPTS), model(PROMPTS), **EXACT)
    whole = tokenizer(list(PROMPTS), padding="max_length", max_length=19, return_tensors="pt").input_ids
    assert torch.equal(model.to_tokens(PROMPTS, pad_to=19), whole)


def test_a_prompt_is_the_same_alone_and_beside_others(pipeline):
    for part in pipeline[1]:
        model = load(pipeline[0], subfolder=part)
        many, n = model(PROMPTS), model.ends(PROMPTS[0]).item() + 1
        alone = model(PROMPTS[0])
        torch.testing.assert_close(many[:1] if many.ndim == 2 else many[:1, :n], alone, **EXACT)


def test_older_and_newer_names_of_tensors_load(pipeline, tmp_path):
    tower = pipeline[1]["text_encoder"][0]
    flat = {name.removeprefix("text_model."): x for name, x in tower.state_dict().items()}
    config = json.loads((pipeline[0] / "text_encoder/config.json").read_text())
    for names in ("", "text_model."):
        folder = tmp_path / f"as_{names or 'flat'}"
        folder.mkdir()
        extra = {f"{names}embeddings.position_ids": torch.arange(19)[None]}
        save_file({f"{names}{name}": x for name, x in flat.items()} | extra, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config))
        model = load(folder)
        ids = load(pipeline[0], subfolder="text_encoder").to_tokens(PROMPTS)
        torch.testing.assert_close(model(ids), read(tower, ids), **EXACT)
        assert model.tokenizer is None


def test_the_embedded_pair_has_a_text_tower():
    from vit_lens import HookedTextEncoder, HookedViT, TextBank

    captions = ["a red star", "a striped blue ring"]
    model = HookedTextEncoder.from_pretrained("mini")
    bank = TextBank.mini(captions)
    torch.testing.assert_close(model(captions).detach(), bank.embeds, atol=1e-5, rtol=1e-5)
    assert model.encoder_id == "vit_lens/mini#text" != HookedViT.from_pretrained("mini").encoder_id
    assert HookedTextEncoder.from_pretrained("mini", device="meta").cfg == model.cfg.__class__(
        **{**vars(model.cfg), "device": "meta"}
    )


def test_a_checkpoint_of_open_clip(tmp_path, monkeypatch):
    import open_clip

    sizes = dict(embed_dim=12, vision_cfg=dict(image_size=16, layers=1, width=16, head_width=8, patch_size=8))
    text = dict(context_length=77, vocab_size=49408, width=16, heads=2, layers=2)
    (tmp_path / "tiny.json").write_text(json.dumps({**sizes, "text_cfg": text, "quick_gelu": True}))
    for name in ("_MODEL_CONFIGS", "_MODEL_CONFIG_PATHS"):  # a rescan forgets nothing
        monkeypatch.setattr(open_clip.factory, name, open_clip.factory.__dict__[name].copy())
    open_clip.add_model_config(tmp_path)
    whole = randomize(open_clip.create_model("tiny")).eval()
    torch.save(whole.state_dict(), tmp_path / "tiny.pt")
    model = load("tiny", tag=tmp_path / "tiny.pt")
    tokenizer = open_clip.get_tokenizer("tiny")
    prompts = ["A red Star, of 12 stars", "l'été", ""]
    assert torch.equal(model.to_tokens(prompts, pad_to=77), tokenizer(prompts))
    theirs = whole.double().encode_text(tokenizer(prompts))
    torch.testing.assert_close(model(prompts), theirs, atol=1e-6, rtol=1e-6)  # weights were rounded to float32
    torch.testing.assert_close(model(prompts), theirs, **EXACT)
    with pytest.raises(ValueError, match="has 90 tokens"):
        model.to_tokens("star " * 88)


# ---- what is refused ---------------------------------------------------------------------------------------------


def test_each_kind_says_what_takes_the_other(pipeline, hf_tower):
    from vit_lens import HookedTextEncoder, HookedViT
    from vit_lens.errors import UnsupportedTowerError

    root, towers = pipeline
    with pytest.raises(UnsupportedTowerError, match=r"T5EncoderModel is of the text.*HookedTextEncoder.from_module"):
        HookedViT.from_module(towers["text_encoder_3"][0])
    with pytest.raises(UnsupportedTowerError, match=r"of the text towers: vl.HookedTextEncoder.from_pretrained"):
        HookedViT.from_pretrained(root / "text_encoder_2")
    with pytest.raises(UnsupportedTowerError, match=r"of the image towers: vl.HookedViT.from_module"):
        HookedTextEncoder.from_module(hf_tower)
    with pytest.raises(UnsupportedTowerError, match="known are Hugging Face's CLIP text towers, open_clip's text"):
        HookedTextEncoder.from_module(torch.nn.Linear(2, 2))


def test_an_image_tower_in_a_folder_is_named(hf_tower, tmp_path):
    from vit_lens.errors import UnsupportedTowerError

    hf_tower.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedTowerError, match=r"of the image towers: vl.HookedViT.from_pretrained takes it"):
        load(tmp_path)


def test_a_whole_pipeline_names_its_parts(pipeline):
    from vit_lens.errors import CheckpointError

    with pytest.raises(CheckpointError, match=r"is a whole pipeline; .*subfolder='text_encoder'"):
        load(pipeline[0])


def test_t5_in_float16_is_refused(pipeline):
    from vit_lens import HookedTextEncoder
    from vit_lens.errors import UnsupportedTowerError

    root, _ = pipeline
    told = r"outgrows that type's range; load it in torch.bfloat16 or torch.float32"
    with pytest.raises(UnsupportedTowerError, match=told):
        HookedTextEncoder.from_pretrained(root, subfolder="text_encoder_3", dtype=torch.float16)
    with pytest.raises(UnsupportedTowerError, match=told):
        HookedTextEncoder.from_module(text_towers.t5_encoder(randomize, gated=True).half())
    with pytest.raises(UnsupportedTowerError, match=told):
        load(root, subfolder="text_encoder_3").half()(PROMPTS)
    rounded = HookedTextEncoder.from_pretrained(root, subfolder="text_encoder_3", dtype=torch.bfloat16)
    exact = load(root, subfolder="text_encoder_3")(PROMPTS)
    assert (rounded(PROMPTS).double() - exact).abs().max() < 0.1 * exact.abs().max()
    HookedTextEncoder.from_pretrained(root, subfolder="text_encoder", dtype=torch.float16)(PROMPTS)  # CLIP may


def test_a_tokenizer_of_another_tower_is_refused(pipeline):
    from vit_lens.errors import TextError

    root, towers = pipeline
    with pytest.raises(TextError, match="the tokenizer has 37 tokens, the text tower 67: it is not this tower's"):
        load(root, subfolder="text_encoder", tokenizer=towers["text_encoder_3"][1])
    model = load(root, subfolder="text_encoder")
    with pytest.raises(TextError, match=r"a str is no tokenizer of transformers or open_clip"):
        model.tokenizer = "gpt2"
    model.tokenizer = None
    with pytest.raises(TextError, match=r"\['a star'\] needs a tokenizer, .*model.tokenizer = "):
        model("a star")


def test_a_damaged_tokenizer_is_told(tmp_path):
    from vit_lens.errors import CheckpointError

    text_towers.clip_text(randomize).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"the tokenizer in .* cannot be read \(.*\); download or copy it again"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        ("GatedRepoError", r"'owner/text' is gated: accept its terms at https://huggingface.co/owner/text, log in"),
        ("RepositoryNotFoundError", "no public repository 'owner/text'"),
    ],
)
def test_a_repository_that_is_gated_or_absent(error, told, monkeypatch):
    import httpx
    import huggingface_hub
    from huggingface_hub import errors

    from vit_lens.errors import CheckpointError

    def refuse(*args, **given):
        response = httpx.Response(403, request=httpx.Request("GET", "https://huggingface.co"))
        raise getattr(errors, error)("no", response=response)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(CheckpointError, match=told):
        load("owner/text", subfolder="text_encoder")
