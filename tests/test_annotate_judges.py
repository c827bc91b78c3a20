"""Judges of pictures: the embedded world's against the sentences it is asked about, models against slow code."""

import functools

import annotate_factory as factory
import numpy as np
import pytest
import torch
from PIL import Image

# diffusers hands torch tensors to numpy 2 in a way that it is leaving.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def question(prompt, name="shown", text="is there a star ?", caption=None, alternatives=()):
    from vit_lens.studies.annotate import Question

    return Question(
        prompt=prompt, question=name, text=text, caption=caption or prompt, alternatives=tuple(alternatives)
    )


def number_of(words):
    from vit_lens.mini import still_life

    return [still_life.object_of(k) for k in range(still_life.N_OBJECTS)].index(tuple(words.split()))


def drawn(layout, *objects):
    from vit_lens.mini import still_life

    return Image.fromarray(still_life.draw([still_life.Scene(layout, tuple(map(number_of, objects)))])[0])


# ---- the embedded world


def test_sentences_say_what_they_were_made_from():
    """Two thousand sentences of every kind, names included."""
    from vit_lens.mini import still_life
    from vit_lens.studies.annotate.still_life_claims import read_claims

    lexicon = still_life.Lexicon(3)
    made = still_life.sample(2000, np.random.default_rng(0), lexicon, pairs=0.7, named=0.3, held_out=None)
    for sentence in made:
        claims = read_claims(sentence.text, lexicon)
        said = tuple(
            tuple(word if says else None for word, says in zip(still_life.object_of(one.number), one.says, strict=True))
            for one in sentence.mentions
        )
        assert (claims.layout, claims.objects) == (sentence.scene.layout, said), sentence.text
        spoken = sorted(range(len(said)), key=lambda place: sentence.text.index(sentence.mentions[place].words))
        if len(said) == 1 or sentence.mentions[0].words not in sentence.mentions[1].words:
            if len(said) == 1 or sentence.mentions[1].words not in sentence.mentions[0].words:
                assert claims.spoken == tuple(spoken), sentence.text


def test_the_exact_judge_on_scenes_of_the_world():
    """What a sentence says is shown by its own scene, and by another's only where that has the same parts."""
    from vit_lens.mini import still_life
    from vit_lens.studies.annotate import ExactJudge

    judge, lexicon = ExactJudge(), still_life.Lexicon(0)
    made = still_life.sample(16, np.random.default_rng(1), lexicon, pairs=0.7)
    pictures = still_life.draw([one.scene for one in made], np.random.default_rng(2))
    for place, sentence in enumerate(made):
        own, other = (Image.fromarray(pictures[k]) for k in (place, (place + 1) % len(made)))
        asked = [question(sentence.text)]
        judge.check(asked)
        assert judge.answer(own, asked)[0].answer == "yes"
        seen = made[(place + 1) % len(made)].scene
        fits = seen.layout == sentence.scene.layout and all(
            not says or a == b
            for one, number in zip(sentence.mentions, seen.objects, strict=True)
            for says, a, b in zip(one.says, still_life.object_of(one.number), still_life.object_of(number), strict=True)
        )
        assert judge.answer(other, asked)[0].answer == ("yes" if fits else "no")


PAIR = "a red solid star left of a blue solid ring"
CASES = [  # what is drawn, and of which questions the answer is yes
    (
        ("beside", "red solid star", "blue solid ring"),
        "shown, first object, second object, colours, shapes, axis, relation",
    ),
    (("beside", "blue solid ring", "red solid star"), "first object, second object, colours, shapes, axis, swapped"),
    (("beside", "blue solid star", "red solid ring"), "colours, shapes, axis, relation"),
    (("stacked", "red solid star", "blue solid ring"), "first object, second object, colours, shapes"),
    (("beside", "red striped star", "green solid ring"), "first object, shapes, axis, relation"),
    (("beside", "red solid star", "red solid star"), "first object, axis"),
    (("alone", "blue solid ring"), "second object"),
]  # fmt: skip


@pytest.mark.parametrize(("scene", "yes"), CASES)
def test_every_question_about_a_pair(scene, yes):
    from vit_lens.studies.annotate import ExactJudge

    names = ["shown", "first object", "second object", "colours", "shapes", "axis", "relation", "swapped"]
    found = ExactJudge().answer(drawn(*scene), [question(PAIR, name) for name in names])
    assert [name for name, (answer, _) in zip(names, found, strict=True) if answer == "yes"] == yes.split(", ")


def test_fronted_sentences_name_the_landmark_first():
    from vit_lens.studies.annotate import ExactJudge

    picture = drawn("beside", "green solid heart", "blue solid ring")
    asked = [
        question("left of a blue solid ring , a red solid star", f"{order} object") for order in ("first", "second")
    ]
    assert [one.answer for one in ExactJudge().answer(picture, asked)] == ["yes", "no"]


def test_questions_about_one_object_and_pictures_that_are_no_scene():
    from vit_lens.studies.annotate import ExactJudge
    from vit_lens.studies.annotate.judge_exact import NO_SCENE

    judge, names = ExactJudge(), ["shown", "colour", "texture", "shape"]
    asked = [question("a red solid star", name) for name in names]
    found = judge.answer(drawn("alone", "red striped star"), asked)
    assert [one.answer for one in found] == ["no", "yes", "no", "yes"] and found[0].score < NO_SCENE
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    found = judge.answer(noise, asked)
    assert {one.answer for one in found} == {"no"} and found[0].score > NO_SCENE


def test_what_the_exact_judge_cannot_answer():
    from vit_lens.errors import StudyError
    from vit_lens.studies.annotate import ExactJudge

    for prompt, name, message in [
        ("a red star on a ring", "shown", "is no sentence of the embedded world"),
        ("a red star and a ring", "shown", "is no sentence of the embedded world"),
        ("a zor zor", "shown", "is no sentence of the embedded world"),
        ("a red star", "color", "no question 'color' about 'a red star'; nearest: 'colour'"),
        (PAIR, "colour", "nearest: 'colours'"),
    ]:
        with pytest.raises(StudyError, match=message):
            ExactJudge().check([question(prompt, name)])
    with pytest.raises(StudyError, match=r"a picture is \(64, 64\) pixels"):
        ExactJudge().answer(Image.new("RGB", (64, 64)), [question("a red star")])


def test_names_are_those_of_the_encoder():
    from vit_lens.mini import still_life
    from vit_lens.studies.annotate import ExactJudge

    lexicon = still_life.Lexicon(4)
    picture = drawn("alone", " ".join(still_life.object_of(lexicon.objects[0])))
    assert ExactJudge(4).answer(picture, [question(f"a {lexicon.names[0]}")])[0].answer == "yes"
    assert ExactJudge(4).name == "exact:4"


# ---- a CLIP


def test_a_clip_chooses_between_captions():
    """Held to cosines by hand."""
    import vit_lens as vl
    from vit_lens.cli import flags, intake
    from vit_lens.errors import StudyError
    from vit_lens.mini import sample_images
    from vit_lens.studies.annotate import ClipJudge

    tower = flags.Tower(model="mini")
    model = tower.load().requires_grad_(False)
    judge = ClipJudge(model, lambda captions: intake.embed_captions(captions, tower), "clip:mini")
    asked = [
        question("a blue star", alternatives=["a red star", "a blue ring"]),
        question("a red star", caption="a red ring", alternatives=["a blue star"]),
    ]
    judge.check(asked)
    picture = Image.open(sample_images()[0])
    found = judge.answer(picture, asked)
    seen = model(model.preprocess([picture]))[0].double()
    for one, verdict in zip(asked, found, strict=True):
        bank = vl.TextBank.mini([one.caption, *one.alternatives])
        cosines = torch.nn.functional.cosine_similarity(seen, bank.embeds.double(), dim=-1)
        chances = torch.exp(cosines * bank.logit_scale)
        assert verdict.score == pytest.approx(float(chances[0] / chances.sum()), rel=1e-4)
        assert verdict.answer == ("yes" if chances.argmax() == 0 else "no")
    assert [one.answer for one in found] == ["yes", "no"]
    with pytest.raises(StudyError, match="has no alternatives, and a CLIP can only choose"):
        judge.check([question("a blue star")])


# ---- models that answer questions

WORDS = "is there a red blue star ring does the picture show yes no Yes No Question Answer or user : ? . ,".split()
VISION = dict(
    hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3, image_size=18, patch_size=6
)
TEXT = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3)
CHAT = (
    "{% for m in messages %}{{ m['role'] }} : {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %} Answer :"
)


def tokenizer(words=tuple(WORDS)):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {word: k for k, word in enumerate(["<pad>", "</s>", "<unk>", "<image>", *words])}
    made = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", bos_token="</s>", unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )  # fmt: skip


def blip(kind, words=tuple(WORDS)):
    import transformers as tf

    n = 4 + len(words)
    ids = dict(vocab_size=n, pad_token_id=0, eos_token_id=1)
    text = {
        "t5": lambda: tf.T5Config(
            d_model=24, d_kv=8, d_ff=40, num_layers=2, num_heads=3, decoder_start_token_id=0, **ids
        ),
        "opt": lambda: tf.OPTConfig(
            ffn_dim=40, word_embed_proj_dim=24, max_position_embeddings=64, bos_token_id=1, **TEXT, **ids
        ),
    }[kind]()  # fmt: skip
    former = tf.Blip2QFormerConfig(**TEXT, intermediate_size=40, encoder_hidden_size=24, vocab_size=n)
    config = tf.Blip2Config(
        vision_config=tf.Blip2VisionConfig(**VISION), qformer_config=former, text_config=text, num_query_tokens=4,
        image_token_index=3,
    )  # fmt: skip
    images = tf.BlipImageProcessor(size={"height": 18, "width": 18})
    return tf.Blip2ForConditionalGeneration(config), tf.Blip2Processor(images, tokenizer(words), num_query_tokens=4)


def llava(chat=CHAT):
    import transformers as tf

    text = tf.LlamaConfig(
        vocab_size=4 + len(WORDS), intermediate_size=40, max_position_embeddings=64, pad_token_id=0, **TEXT
    )
    config = tf.LlavaConfig(vision_config=tf.CLIPVisionConfig(**VISION), text_config=text, image_token_index=3)
    processor = tf.LlavaProcessor(
        tf.CLIPImageProcessor(size={"shortest_edge": 18}, crop_size=18), tokenizer(), patch_size=6,
        vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=chat,
    )  # fmt: skip
    return tf.LlavaForConditionalGeneration(config), processor


@functools.cache
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 22, 3), dtype=np.uint8))


def saved(folder, model, processor):
    from conftest import randomize

    randomize(model).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["t5", "opt", "llava", "llava without a chat template"])
def test_the_chance_of_yes_as_the_first_word(kind, tmp_path):
    """Against the model called by hand."""
    from vit_lens.studies.annotate import VqaJudge

    model, processor = llava(CHAT if kind == "llava" else None) if kind.startswith("llava") else blip(kind)
    folder = saved(tmp_path / "model", model, processor)
    judge = VqaJudge.load(folder)
    asked = [question("x", text="is there a red star ?"), question("x", text="does the picture show a blue ring ?")]
    judge.check(asked)
    scores = []
    for one, verdict in zip(asked, judge.answer(picture(), asked), strict=True):
        words = {
            "t5": f"Question: {one.text} Answer:", "opt": f"Question: {one.text} Answer:",
            "llava": f"user : <image>{one.text} Answer yes or no. Answer :",
        }.get(kind, f"<image>\nQuestion: {one.text} Answer yes or no. Answer:")  # fmt: skip
        given = processor(images=picture(), text=words, return_tensors="pt")
        more = {"decoder_input_ids": torch.tensor([[0]])} if kind == "t5" else {}
        with torch.no_grad():
            logits = model.eval()(**given, **more).logits[0, -1]
        yes, no = (logits[[4 + WORDS.index(w) for w in pair]].exp().sum() for pair in (("yes", "Yes"), ("no", "No")))
        assert verdict.score == pytest.approx(float(yes / (yes + no)), rel=1e-5)
        assert verdict.answer == ("yes" if yes > no else "no")
        scores.append(verdict.score)
    assert judge.name == "vqa:model" and scores[0] != scores[1]


def test_models_that_cannot_be_asked(tmp_path):
    from safetensors.torch import load_file, save_file

    from vit_lens.errors import CheckpointError, StudyError
    from vit_lens.studies.annotate import VqaJudge

    with pytest.raises(StudyError, match=r"holds no config\.json"):
        VqaJudge.load(tmp_path)
    folder = saved(tmp_path / "model", *blip("opt"))
    weights = load_file(folder / "model.safetensors")
    dropped = next(iter(sorted(weights)))
    save_file(
        {name: tensor for name, tensor in weights.items() if name != dropped},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(CheckpointError, match="the weights lack 1 tensors"):
        VqaJudge.load(folder)
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="cannot load it"):
        VqaJudge.load(folder)
    without = saved(tmp_path / "without", *blip("opt"))
    (without / "tokenizer.json").unlink()
    (without / "tokenizer_config.json").unlink()
    with pytest.raises(CheckpointError, match="the tokenizer has no token for 'yes'; are all its files"):
        VqaJudge.load(without)
    mute = tuple(word for word in WORDS if word not in ("no", "No"))
    with pytest.raises(CheckpointError, match="the tokenizer has no token for 'no'"):
        VqaJudge.load(saved(tmp_path / "mute", *blip("opt", mute)))
    model, processor = blip("opt")

    def alike(*_, **__):
        return {"input_ids": [7, 8]}

    alike.unk_token_id = 2
    processor.tokenizer = alike
    with pytest.raises(StudyError, match="yes and no begin with the same tokens"):
        VqaJudge(model, processor, "vqa:alike")


# ---- beside people


def test_a_judge_answers_a_page_as_people_do(vit_lens, tmp_path):
    import pandas as pd

    from vit_lens.studies.annotate import Sheet

    record = factory.swept(tmp_path / "r")
    folder = saved(tmp_path / "tiny", *blip("opt"))
    assert vit_lens("annotate", "page", record.path, "--out", tmp_path / "p.html", "--n", 6)[0] == 0
    key, out = tmp_path / "p.key.json", tmp_path / "judge.csv"
    status, told, err = vit_lens(
        "annotate", "judge", record.path, "--judge", f"vqa:{folder}", "--key", key, "--out", out
    )
    assert status == 0 and "6 answers of vqa:tiny" in told, err
    ada = factory.answered(tmp_path / "ada.csv", Sheet.load(key), lambda item, _: "no" if item.control else "yes")
    status, told, err = vit_lens("annotate", "read", ada, out, "--key", key, "--out", tmp_path / "found")
    assert status == 0 and "answers: ada 6, vqa:tiny 6" in told and "kappa, shown, ada, vqa:tiny, yes, no" in told, err
    assert pd.read_csv(out)["score"].between(0, 1).all()
    status, told, err = vit_lens(
        "annotate", "judge", record.path, "--judge", f"vqa:{folder}", "--n", 6, "--out", tmp_path / "own.csv"
    )
    assert status == 0 and Sheet.load(tmp_path / "own.key.json").page == Sheet.load(key).page, err
    status, _, err = vit_lens("annotate", "judge", record.path, "--judge", "exact", "--key", key, "--out", out)
    assert status == 2 and "is no sentence of the embedded world" in err
    status, _, err = vit_lens("annotate", "judge", record.path, "--judge", "clip:mini", "--key", key, "--out", out)
    assert status == 2 and "has no alternatives" in err
