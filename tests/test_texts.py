"""Text banks: held against open_clip's and Hugging Face's own logits, on tiny random models with real tokenizers."""

import json

import pytest
import torch
import towers

WORDS = ["a red star", "a large blue circle", "an object with a plus"]
TEMPLATES = ["a {}", "a small {}", "an object with a {}"]


@pytest.fixture(scope="module")
def bank_class():
    from vit_lens import TextBank

    return TextBank


@pytest.fixture(scope="module")
def text_error():
    from vit_lens.errors import TextError

    return TextError


@pytest.fixture(scope="module")
def open_clip_model():
    """open_clip's CLIP in float64 with its own tokenizer's vocabulary and 9 positions."""
    from open_clip import SimpleTokenizer
    from open_clip.model import CLIP

    vision = dict(layers=2, width=33, head_width=11, image_size=21, patch_size=7, mlp_ratio=1.7)
    text = dict(context_length=9, vocab_size=49408, width=8, heads=2, layers=1)
    model = CLIP(embed_dim=13, vision_cfg=vision, text_cfg=text).double().eval()
    return towers.randomize(model), SimpleTokenizer(context_length=9)


@pytest.fixture(scope="module")
def siglip_like():
    """open_clip's CustomTextCLIP with a bias of the logits, in float64."""
    from open_clip import SimpleTokenizer
    from open_clip.model import CustomTextCLIP

    vision = dict(layers=1, width=22, head_width=11, image_size=14, patch_size=7)
    text = dict(context_length=9, vocab_size=49408, width=8, heads=2, layers=1)
    model = CustomTextCLIP(embed_dim=13, vision_cfg=vision, text_cfg=text, init_logit_bias=-2.0)
    return towers.randomize(model.double().eval()), SimpleTokenizer(context_length=9)


@pytest.fixture(scope="module")
def tokenizer():
    from vit_lens.mini.training.tokenizer import build_tokenizer

    return build_tokenizer()


def hf_sizes(tokenizer):
    return dict(
        hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2, vocab_size=len(tokenizer),
        max_position_embeddings=12, bos_token_id=1, eos_token_id=3, pad_token_id=0, projection_dim=9,
    )  # fmt: skip


@pytest.fixture(scope="module")
def hf_model(tokenizer):
    import transformers

    vision = towers.hf_vision_config().to_dict() | {"projection_dim": 9}
    config = transformers.CLIPConfig(vision_config=vision, text_config=hf_sizes(tokenizer), projection_dim=9)
    return towers.randomize(transformers.CLIPModel(config).double().eval())


@pytest.fixture(scope="module")
def hf_siglip(tokenizer):
    import transformers

    sizes = hf_sizes(tokenizer) | {"projection_size": 10}
    vision = dict(hidden_size=10, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2)
    config = transformers.SiglipConfig(
        text_config=sizes, vision_config=vision | dict(image_size=8, patch_size=4)
    )  # fmt: skip
    return towers.randomize(transformers.SiglipModel(config).double().eval())


def bank_of(bank_class, embeds, **changes):
    fields = dict(
        captions=tuple(f"text {i}" for i in range(len(embeds))), embeds=embeds, logit_scale=7.5, logit_bias=None,
        encoder_id="module@0123456789abcdef",
    )  # fmt: skip
    return bank_class(**(fields | changes))


# ---- equal to the sources ----------------------------------------------------------------------------------


def test_logits_are_open_clips(bank_class, open_clip_model):
    from vit_lens import HookedViT

    clip, tokenize = open_clip_model
    pixels = towers.pixels_of((21, 21))
    bank = bank_class.from_module(clip, tokenize, WORDS)
    model = HookedViT.from_module(clip)
    with torch.no_grad():
        image_logits, _ = clip.get_logits(pixels, tokenize(WORDS))
        ours = bank.check(model).logits(model(pixels))
    torch.testing.assert_close(ours, image_logits, rtol=0, atol=1e-12)
    torch.testing.assert_close(bank.probs(model(pixels)).detach(), image_logits.softmax(-1), rtol=0, atol=1e-12)
    torch.testing.assert_close(bank.embeds, clip.encode_text(tokenize(WORDS)).detach(), rtol=0, atol=0)


@pytest.mark.parametrize("n_templates", [1, 3])
def test_templates_are_open_clips_zero_shot_classifier(bank_class, open_clip_model, n_templates):
    import open_clip

    clip, tokenize = open_clip_model
    names, templates = ["star", "circle", "cross", "moon"], TEMPLATES[:n_templates]
    bank = bank_class.from_module(clip, tokenize, names, templates=templates)
    theirs = open_clip.build_zero_shot_classifier(clip, tokenize, names, templates)
    torch.testing.assert_close(bank.unit.T, theirs, rtol=0, atol=1e-12)
    assert bank.templates == tuple(templates)


def test_a_bias_gives_sigmoids(bank_class, siglip_like):
    clip, tokenize = siglip_like
    with torch.no_grad():
        clip.logit_bias.fill_(-1.75)
        image_logits, _ = clip.get_logits(towers.pixels_of((14, 14)), tokenize(WORDS))
        images = clip.encode_image(towers.pixels_of((14, 14)))
    bank = bank_class.from_module(clip, tokenize, WORDS)
    assert bank.logit_bias == -1.75
    torch.testing.assert_close(bank.logits(images), image_logits, rtol=0, atol=1e-12)
    torch.testing.assert_close(bank.probs(images), image_logits.sigmoid(), rtol=0, atol=1e-12)


def test_logits_are_hugging_faces(bank_class, hf_model, tokenizer):
    from vit_lens import HookedViT

    pixels = towers.pixels_of((22, 22))
    bank = bank_class.from_module(hf_model, tokenizer, WORDS)
    model = HookedViT.from_module(hf_model)
    with torch.no_grad():
        out = hf_model(**tokenizer(WORDS, padding=True, return_tensors="pt"), pixel_values=pixels)
        ours = bank.check(model).logits(model(pixels))
    torch.testing.assert_close(ours, out.logits_per_image, rtol=0, atol=1e-12)


def test_logits_are_hugging_faces_siglips(bank_class, hf_siglip, tokenizer):
    from vit_lens import HookedViT

    pixels = towers.pixels_of((8, 8))
    bank = bank_class.from_module(hf_siglip, tokenizer, WORDS)
    model = HookedViT.from_module(hf_siglip)
    tokens = tokenizer(WORDS, padding="max_length", max_length=12, return_tensors="pt")
    with torch.no_grad():
        out = hf_siglip(**tokens, pixel_values=pixels)
        ours = model(pixels)
    torch.testing.assert_close(bank.check(model).logits(ours), out.logits_per_image, rtol=0, atol=1e-12)
    torch.testing.assert_close(bank.probs(ours), out.logits_per_image.sigmoid(), rtol=0, atol=1e-12)


def test_a_coca_is_not_normalised(bank_class):
    """Its encode_text normalises by default; a bank holds what the tower gives."""
    from open_clip import SimpleTokenizer
    from open_clip.coca_model import CoCa

    from vit_lens import HookedViT

    text = dict(context_length=9, vocab_size=49408, width=8, heads=2, layers=1, embed_cls=True, output_tokens=True)
    vision = dict(
        layers=1, width=22, head_width=11, image_size=14, patch_size=7, attentional_pool=True, attn_pooler_heads=2,
        output_tokens=True,
    )  # fmt: skip
    multimodal = dict(context_length=9, vocab_size=49408, width=8, heads=2, layers=1)
    clip = CoCa(embed_dim=8, multimodal_cfg=multimodal, text_cfg=text, vision_cfg=vision).double().eval()
    tokenize = SimpleTokenizer(context_length=8)
    bank = bank_class.from_module(towers.randomize(clip), tokenize, WORDS[:2])
    theirs = clip.encode_text(tokenize(WORDS[:2]), normalize=False).detach()
    torch.testing.assert_close(bank.embeds, theirs, rtol=0, atol=0)
    assert (bank.embeds.norm(dim=-1) - 1).abs().min() > 1e-3
    assert bank.check(HookedViT.from_module(clip)) is bank


def test_a_training_model_is_read_in_evaluation_and_left_training(bank_class, hf_model, tokenizer):
    expected = bank_class.from_module(hf_model, tokenizer, WORDS).embeds
    block = hf_model.text_model.encoder.layers[0].self_attn
    try:
        hf_model.train()
        hf_model.vision_model.eval()
        block.dropout = 0.5
        bank = bank_class.from_module(hf_model, tokenizer, WORDS)
        assert hf_model.training and block.training and not hf_model.vision_model.training
    finally:
        hf_model.eval()
        block.dropout = 0.0
    torch.testing.assert_close(bank.embeds, expected, rtol=0, atol=0)


def test_batches_of_captions_change_nothing(bank_class, hf_model, tokenizer, monkeypatch):
    from vit_lens.texts import text_towers

    whole = bank_class.from_module(hf_model, tokenizer, WORDS, templates=["{}", "a {}"])
    monkeypatch.setattr(text_towers, "_BATCH", 2)
    parts = bank_class.from_module(hf_model, tokenizer, WORDS, templates=["{}", "a {}"])
    torch.testing.assert_close(parts.embeds, whole.embeds, rtol=0, atol=1e-13)


def test_cosines_keep_axes_and_are_float32_at_least(bank_class):
    bank = bank_of(bank_class, torch.randn(5, 7))
    images = torch.randn(2, 3, 7).to(torch.bfloat16)
    cosines = bank.cosines(images)
    assert cosines.dtype == torch.float32 and cosines.shape == (2, 3, 5)
    assert bank.logits(images.double()).dtype == torch.float64
    expected = torch.nn.functional.cosine_similarity(images.float()[:, :, None], bank.embeds, dim=-1)
    torch.testing.assert_close(cosines, expected)
    assert bank.cosines(torch.zeros(1, 7)).isnan().all()


# ---- the embedded pair ---------------------------------------------------------------------------------------


def test_mini_is_the_pairs_own_text_tower(bank_class):
    from vit_lens import HookedViT
    from vit_lens.mini import world
    from vit_lens.mini.shipped import PAIR, mini_labels, sample_images

    bank = bank_class.mini()
    assert bank.captions == tuple(p for name in world.PROBES for p in world.prompts(name))
    labels = mini_labels()
    ours = torch.cat([bank.embeds[[bank.index(p) for p in world.prompts(name)]] for name in world.PROBES])
    torch.testing.assert_close(ours, torch.cat([labels.embeds[name] for name in world.PROBES]), rtol=0, atol=1e-5)
    model = HookedViT.from_pretrained("mini")
    assert bank.check(model) is bank
    with torch.no_grad():
        embeds = model(model.preprocess(sample_images()))
    shapes = [bank.index(p) for p in world.prompts("shape")]
    best = [bank.captions[shapes[i]] for i in bank.logits(embeds)[:, shapes].argmax(-1).tolist()]
    assert best == ["a star", "a heart"]
    again = bank_class.from_pretrained(PAIR / "encoder", ["a star"])
    assert again.encoder_id == "module@" + model.fingerprint
    assert again.check(model).logits(embeds).shape == (2, 1)


def test_words_that_mini_does_not_know_are_an_error(bank_class, text_error):
    with pytest.raises(text_error, match=r"does not know 'elephant', 'hat'.*nearest.*It knows: a an at"):
        bank_class.mini(["a red star", "an elephant with a hat"])
    with pytest.raises(text_error, match="does not know 'photo'"):
        bank_class.mini(["star"], templates=["a photo {}"])


def test_cut_captions_are_an_error(bank_class, text_error, open_clip_model, siglip_like, hf_model, tokenizer):
    fits, long = "star star star star star star star", "star " * 8  # 7 words and two special tokens fill 9 places
    for clip, tokenize in (open_clip_model, siglip_like):
        assert len(bank_class.from_module(clip, tokenize, [fits], encoder_id="x")) == 1
        with pytest.raises(text_error, match="the text tower reads 9 tokens"):
            bank_class.from_module(clip, tokenize, ["star", long], encoder_id="x")
    with pytest.raises(text_error, match="has 13 tokens; the text tower reads 12"):
        bank_class.from_module(hf_model, tokenizer, ["star", "a star " * 5 + "star"])


def test_open_clips_wrapped_tokenizers_are_asked_too(bank_class, text_error, siglip_like, tokenizer, tmp_path):
    from open_clip.tokenizer import HFTokenizer

    tokenizer.save_pretrained(tmp_path)
    wrapped = HFTokenizer(str(tmp_path), context_length=9)
    clip, _ = siglip_like
    bank = bank_class.from_module(clip, wrapped, WORDS, encoder_id="x")
    torch.testing.assert_close(bank.embeds, clip.encode_text(wrapped(WORDS)).detach(), rtol=0, atol=0)
    with pytest.raises(text_error, match="does not know 'elephant'"):
        bank_class.from_module(clip, wrapped, ["an elephant"], encoder_id="x")
    with pytest.raises(text_error, match="the text tower reads 9 tokens"):
        bank_class.from_module(clip, wrapped, ["star " * 8], encoder_id="x")


def test_byte_level_tokenizers_know_every_word(bank_class, open_clip_model, hf_model, tokenizer):
    """CLIP's own tokenizer has its end token in the place of an unknown one: that is no unknown word."""
    clip, tokenize = open_clip_model
    assert bank_class.from_module(clip, tokenize, ["quux ☃"]).embeds.isfinite().all()
    tokenizer = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, pad_token="<pad>", unk_token="<end>",
                                bos_token="<start>", eos_token="<end>")  # fmt: skip
    assert bank_class.from_module(hf_model, tokenizer, ["a star"]).embeds.isfinite().all()


# ---- by name -------------------------------------------------------------------------------------------------


def test_from_open_clip_takes_the_tags_activation(bank_class, monkeypatch, tmp_path):
    """ViT-B-32's config is plain GELU; the tag openai was trained with QuickGELU, and so is its text tower."""
    import open_clip
    import open_clip.factory

    from vit_lens import HookedViT
    from vit_lens.errors import CheckpointError

    small = towers.shrink(open_clip.get_model_config("ViT-B-32"))
    small["text_cfg"] = dict(context_length=9, vocab_size=49408, width=8, heads=2, layers=1)
    configs = open_clip.factory._MODEL_CONFIGS | {"ViT-B-32": small}
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", configs)
    source = towers.clip_of(small | {"quick_gelu": True}).float()
    path = tmp_path / "open_clip_model.safetensors"
    towers.save_safely(source, path)
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *a, **k: str(path))
    bank = bank_class.from_open_clip("ViT-B-32", "openai", WORDS)
    tokenize = open_clip.SimpleTokenizer(context_length=9)
    torch.testing.assert_close(bank.embeds, source.encode_text(tokenize(WORDS)).detach())
    assert bank.encoder_id == "open_clip/ViT-B-32/openai"
    with pytest.raises(CheckpointError, match=r"ViT-B-32 exist with both activations.*pass quick_gelu=True"):
        bank_class.from_open_clip("ViT-B-32", path, WORDS)
    plain, quick = (bank_class.from_open_clip("ViT-B-32", path, WORDS, quick_gelu=quick) for quick in (False, True))
    assert plain.encoder_id == quick.encoder_id == HookedViT.from_module(source).encoder_id
    assert (plain.embeds - bank.embeds).abs().max() > 1e-4
    torch.testing.assert_close(quick.embeds, bank.embeds)
    with pytest.raises(CheckpointError, match="was trained with quick_gelu=True"):
        bank_class.from_open_clip("ViT-B-32", "openai", WORDS, quick_gelu=False)


def test_the_command_line_hands_on_the_activation(bank_class, monkeypatch):
    from vit_lens.cli.flags import Tower
    from vit_lens.cli.intake import read_captions

    asked = []
    monkeypatch.setattr(bank_class, "from_open_clip", lambda *args, **options: asked.append((*args, options)))
    read_captions("a star,a ring", Tower(model="ViT-B-32", tag="my.pt", quick_gelu=True))
    options = {"quick_gelu": True, "device": "cpu"}
    assert asked == [("ViT-B-32", "my.pt", ["a star", "a ring"], options)]


def test_from_open_clip_refuses_unknown_names(bank_class):
    from vit_lens.errors import CheckpointError

    with pytest.raises(CheckpointError, match="nearest: 'ViT-B-32'"):
        bank_class.from_open_clip("ViT-B-3", "openai", WORDS)
    with pytest.raises(CheckpointError, match="neither a file nor a pretrained tag of ViT-B-32"):
        bank_class.from_open_clip("ViT-B-32", "opnai", WORDS)


def test_from_pretrained_reads_a_directory(bank_class, hf_model, hf_siglip, tokenizer, tmp_path):
    from vit_lens import HookedViT

    hf_model.save_pretrained(tmp_path / "clip")
    tokenizer.save_pretrained(tmp_path / "clip")
    bank = bank_class.from_pretrained(tmp_path / "clip", WORDS)
    expected = bank_class.from_module(hf_model, tokenizer, WORDS)
    torch.testing.assert_close(bank.embeds, expected.embeds.float(), rtol=0, atol=1e-5)
    assert bank.encoder_id == HookedViT.from_module(hf_model).encoder_id
    assert bank.check(HookedViT.from_pretrained(tmp_path / "clip")) is bank


def test_from_pretrained_says_what_is_missing(bank_class, text_error, hf_tower, hf_model, tmp_path):
    with pytest.raises(text_error, match="no directory nowhere"):
        bank_class.from_pretrained("nowhere", WORDS)
    with pytest.raises(text_error, match=r"TextBank.from_open_clip\('ViT-bigG-14', 'laion2b_s39b_b160k'\)"):
        bank_class.from_pretrained("kandinsky-community/kandinsky-2-2-prior:image_encoder", WORDS)
    hf_tower.save_pretrained(tmp_path / "tower")
    with pytest.raises(text_error, match="model_type 'clip_vision_model'"):
        bank_class.from_pretrained(tmp_path / "tower", WORDS)
    hf_model.save_pretrained(tmp_path / "no_tokenizer")
    with pytest.raises(text_error, match=r"the tokenizer has \d tokens, the text tower 60.*are missing"):
        bank_class.from_pretrained(tmp_path / "no_tokenizer", ["a"])
    (tmp_path / "no_tokenizer" / "model.safetensors").write_bytes(b"")
    with pytest.raises(text_error, match="cannot be read as a CLIP with a tokenizer"):
        bank_class.from_pretrained(tmp_path / "no_tokenizer", ["a"])


def test_missing_tensors_are_not_filled_with_noise(bank_class, text_error, hf_model, tokenizer, tmp_path):
    from safetensors.torch import load_file, save_file

    hf_model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["text_projection.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(text_error, match=r"lacks 1 tensors.*text_projection.weight"):
        bank_class.from_pretrained(tmp_path, WORDS)


def test_modules_without_text_are_refused(bank_class, text_error, hf_tower, tokenizer, open_clip_model):
    clip, tokenize = open_clip_model
    for module in (hf_tower, clip.visual, torch.nn.Linear(2, 2)):
        with pytest.raises(text_error, match="has no text tower that is known"):
            bank_class.from_module(module, tokenizer, WORDS)
    with pytest.raises(text_error, match="the tokenizer made token 49407, the text tower has 11"):
        bank_class.from_module(towers.shrunk_open_clip("ViT-B-32"), tokenize, WORDS)
    with pytest.raises(text_error, match="is one text"):
        bank_class.from_module(clip, tokenize, "a, b")
    with pytest.raises(text_error, match=r"has no \{\}"):
        bank_class.from_module(clip, tokenize, ["a"], templates=["a photo"])


# ---- identity, files -------------------------------------------------------------------------------------------


def test_check_refuses_other_encoders(bank_class, text_error, vit):
    width = vit.cfg.d_embed
    own = bank_of(bank_class, torch.randn(2, width), encoder_id=f"local/somewhere@{vit.fingerprint}")
    assert own.check(vit) is own
    other = bank_of(bank_class, torch.randn(2, width), encoder_id="open_clip/ViT-B-32/openai")
    with pytest.raises(text_error, match=r"made for open_clip/ViT-B-32/openai; the model is module@"):
        other.check(vit)
    assert other.check(vit, other_encoder=True) is other
    with pytest.raises(text_error, match=f"width {width + 1}"):
        bank_of(bank_class, torch.randn(2, width + 1), encoder_id=own.encoder_id).check(vit, other_encoder=True)
    with pytest.raises(text_error, match="text embeddings of width"):
        own.cosines(torch.randn(3, width + 1))


def test_a_named_model_is_known_by_its_weights(bank_class, hf_tower, vit):
    """The id of a Hub model carries no fingerprint; the weights in memory do."""
    from vit_lens import HookedViT

    named = HookedViT.from_module(hf_tower, encoder_id="hf/someone/some-clip")
    bank = bank_of(bank_class, torch.randn(2, vit.cfg.d_embed), encoder_id=f"module@{vit.fingerprint}")
    assert bank.check(named) is bank


def test_save_and_load(bank_class, tmp_path):
    bias = [None, -3.25]
    for number, value in enumerate(bias):
        bank = bank_of(
            bank_class, torch.randn(3, 5, dtype=torch.float64), logit_bias=value, captions=("ä", "b\nc", '"d"'),
            templates=("a {}",), logit_scale=100 / 3,
        )  # fmt: skip
        again = bank_class.load(bank.save(tmp_path / "new" / f"{number}.safetensors"))
        for name in ("captions", "logit_scale", "logit_bias", "encoder_id", "templates"):
            assert getattr(again, name) == getattr(bank, name)
        assert torch.equal(again.embeds, bank.embeds)


def test_damaged_files_are_refused(bank_class, text_error, tmp_path):
    from safetensors.torch import save_file

    from vit_lens.files import save_tensors

    path = bank_of(bank_class, torch.randn(3, 5)).save(tmp_path / "bank.safetensors")
    whole = path.read_bytes()
    for cut in (0, 5, 200, len(whole) - 1):
        (tmp_path / "cut").write_bytes(whole[:cut])
        with pytest.raises(text_error, match="not a whole safetensors file"):
            bank_class.load(tmp_path / "cut")
    with pytest.raises(text_error, match="no text bank at"):
        bank_class.load(tmp_path / "none")
    save_file({"embeds": torch.randn(2, 2)}, tmp_path / "other")
    with pytest.raises(text_error, match="does not hold a text bank"):
        bank_class.load(tmp_path / "other")
    for meta in ({}, {"bank": "{"}, {"bank": json.dumps({"captions": ["a"]})}):
        save_tensors({"embeds": torch.randn(2, 2)}, tmp_path / "meta", {"format": "vit_lens.text_bank.1"} | meta)
        with pytest.raises(text_error, match=r"not a whole safetensors file|cannot be read as JSON|holds the fields"):
            bank_class.load(tmp_path / "meta")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(captions=()), "no captions"),
        (dict(captions=("a", " ")), "caption 1 is ' '"),
        (dict(captions=("a", "a")), "'a' occurs twice"),
        (dict(captions=("a", "b", "c")), "3 captions need as many"),
        (dict(embeds=torch.tensor([[0.0, 0], [1, 1]])), "'text 0' has norm 0"),
        (dict(embeds=torch.tensor([[1.0, 0], [1, torch.nan]])), "'text 1' has norm nan"),
        (dict(logit_scale=-1.0), "logit_scale=-1.0"),
        (dict(logit_scale=torch.inf), "logit_scale=inf"),
        (dict(encoder_id=""), "encoder_id is empty"),
    ],
)
def test_a_bank_is_whole(bank_class, text_error, changes, message):
    with pytest.raises(text_error, match=message):
        bank_of(bank_class, **({"embeds": torch.eye(2)} | changes))


def test_index_names_the_nearest(bank_class, text_error):
    bank = bank_class(
        captions=("a star", "a heart"), embeds=torch.eye(2), logit_scale=1.0, logit_bias=None, encoder_id="x"
    )
    assert bank.index("a heart") == 1 and len(bank) == 2
    with pytest.raises(text_error, match="no caption 'a stat' in this bank; nearest: 'a star'"):
        bank.index("a stat")


# ---- labels --------------------------------------------------------------------------------------------------


def test_labels_need_an_embedding_each():
    from vit_lens import VitLensError, ZeroShotLabels

    labels = ZeroShotLabels({"x": ("left", "right")}, {"x": torch.eye(2)})
    assert labels.label(torch.tensor([[3.0, 1.0], [0.0, 2.0]])) == ["x left", "x right"]
    with pytest.raises(VitLensError, match="2 names need as many"):
        ZeroShotLabels({"x": ("left", "right")}, {"x": torch.eye(3)})
