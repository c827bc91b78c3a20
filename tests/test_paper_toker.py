"""The released prompts of Toker et al. 2024 on a pipeline of one's own, from a small checkout in released formats."""

import json
import re

import annotate_factory as factory
import numpy as np
import pandas as pd
import pytest
import test_text_sweep
import tiny_pipelines

from vit_lens.errors import RecordError, StudyError

# diffusers hands torch tensors to numpy 2 in a way that it is leaving.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPTS = {
    "simple_objects": ["prompt,class", "a red star,star", "a ring,ring", "a green cross,cross"],
    "single_color": ["prompt,class,color,is_natural", "a red star,star,red,1", "a blue ring,ring,blue,0"],
    "two_colors": [
        "prompt,class1,color1,class2,color2", "a red star and a blue ring,star,red,ring,blue",
        "a green ring and a red cross,ring,green,cross,red",
    ],
    "relations": [
        "prompt,class1,class2,is_natural", "A carrot in a bag.,carrot,bag,1", "An ant on an oven.,ant,oven,0",
        "A cake on a small table.,cake,table,1",
    ],
    "syntactic_ralations_coco": [
        "prompt,noun_0,noun_1,head,dependent", "two star are above a ring,star,ring,ring,star",
        "a star of a ring,star,ring,star,ring",
    ],
    "Prompts_familiar_animals": ["prompt,animal,class,avg_daily_views", "A photo of a Beagle.,Beagle,mammal,2392"],
    "unfamiliar_animals": [
        "prompt,animal,class,avg_daily_views", "A photo of an Aye-aye.,Aye-aye,mammal,797",
        "A photo of a Tui.,Tui,bird,",
    ],
    "famous": ["prompt", "Simone Biles", "Steve Jobs"],
}  # fmt: skip


def checkout(folder):
    factory.checkout(folder)  # with people's answers to classes
    (folder / "prompts").mkdir(exist_ok=True)
    for name, lines in PROMPTS.items():
        (folder / "prompts" / f"{name} - Sheet1.csv").write_text("\n".join(lines) + "\n")
    return folder


class Fake:
    """A judge that answers by the picture's bytes and the question's words, and counts what it is asked."""

    name, n = "fake", 0

    def check(self, questions):
        assert questions

    def answer(self, picture, questions):
        from vit_lens.studies.annotate import Verdict

        self.n += len(questions)
        return [Verdict(said(picture, one), 0.25) for one in questions]


def said(picture, question):
    return ("yes", "no", "unsure", "yes")[(sum(picture.tobytes()) + len(question.text)) % 4]


# ---- prompts and questions


def test_every_released_column_has_a_question(tmp_path):
    from vit_lens.studies.annotate import FAMILIES, read_families

    found = {one.name: one for one in read_families(checkout(tmp_path))}
    assert tuple(found) == FAMILIES and len(FAMILIES) == 10
    text = {name: {q.question: q.text for q in one.questions[one.prompts[0]]} for name, one in found.items()}
    assert text["simple_objects"] == {"IsCorrect": "Is there a star?"}
    assert text["single_color"] == {"IsCorrect": "Is there a red star?"}
    assert text["relations_in"] == {
        "FirstThingExists": "Is there a carrot?", "SecondThingExists": "Is there a bag?",
        "RelationCorrect": "Is the carrot in the bag?",
    }  # fmt: skip
    assert text["relations_on"]["FirstThingExists"] == "Is there an ant?"
    assert found["relations_on"].prompts == ("An ant on an oven.", "A cake on a small table.")
    assert text["two_colors"]["IsCorrect"] == "Does the picture show: a red star and a blue ring?"
    assert text["two_colors"]["IsSecondColorCorrect"] == "Is the ring blue?"
    assert text["two_colors"]["IsFirstColorPresent"] == "Is there anything red?"
    assert text["syntax_dependent_first"]["IsFirstClass"] == "Does the picture show star?"
    assert found["syntax_head_first"].prompts == ("a star of a ring",)
    assert text["familiar_animals"] == {
        "IsAnimal": "Is there an animal?", "IsClass": "Is there a mammal?", "IsCorrectAnimal": "Is there a Beagle?",
    }  # fmt: skip
    assert text["unfamiliar_animals"]["IsCorrectAnimal"] == "Is there an Aye-aye?"
    assert text["famous"] == {"IsHuman": "Is there a person?", "IsCorrect": "Is this Simone Biles?"}


def test_what_might_be_there_instead_is_never_true(tmp_path):
    from vit_lens.studies.annotate import read_families

    found = {one.name: one for one in read_families(checkout(tmp_path))}
    asked = {
        (name, prompt, q.question): q for name, one in found.items() for prompt, qs in one.questions.items() for q in qs
    }
    for (_, prompt, _), one in asked.items():
        assert one.caption not in one.alternatives and one.prompt == prompt and "{" not in one.text + one.caption
        assert not {other.caption for key, other in asked.items() if key[1] == prompt} & set(one.alternatives)
    first = "a red star and a blue ring"
    assert asked["two_colors", first, "IsCorrect"].alternatives == ("a blue star and a red ring",)
    assert asked["two_colors", first, "IsFirstColorCorrect"].alternatives == ("a blue star",)
    assert set(asked["two_colors", first, "IsFirstColorPresent"].alternatives) == {"something green"}
    assert asked["familiar_animals", "A photo of a Beagle.", "IsAnimal"].alternatives == (
        "a person", "a landscape", "a building",
    )  # fmt: skip
    assert asked["single_color", "a red star", "IsCorrect"].alternatives == ("a blue star",)
    relation = asked["relations_on", "An ant on an oven.", "RelationCorrect"]
    assert relation.caption == "an ant on an oven"
    assert relation.alternatives == ("an oven on an ant", "an ant next to an oven")
    assert set(asked["simple_objects", "a ring", "IsCorrect"].alternatives) == {"a star", "a cross"}


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("famous", None, "no such file"),
        ("famous", ["prompt,age", "x,7"], "the columns are prompt, age"),
        ("simple_objects", ["prompt,class", "a star,"], "line 2: a cell is empty"),
        ("relations", ["prompt,class1,class2,is_natural", "a cat by a dog,cat,dog,1"], "line 2: no in or on between"),
        ("syntactic_ralations_coco", ["prompt,noun_0,noun_1,head,dependent", "a,b,c,d,e"], "is neither noun"),
        ("relations", ["prompt,class1,class2,is_natural", "a cat in a bag,cat,bag,1"], "no prompt of the family"),
    ],
)
def test_prompts_that_are_not_as_released(name, lines, message, tmp_path):
    from vit_lens.studies.annotate import read_families

    path = checkout(tmp_path) / "prompts" / f"{name} - Sheet1.csv"
    path.unlink() if lines is None else path.write_text("\n".join(lines) + "\n")
    with pytest.raises(StudyError, match=message):
        read_families(tmp_path)
    with pytest.raises(StudyError, match="no family of prompts 'simple'; nearest: 'simple_objects'"):
        read_families(tmp_path, ["simple"])


# ---- layers


@pytest.mark.parametrize(
    ("name", "stride", "encoder", "layers", "last"),
    [
        ("sd1", 2, None, {"L0.resid_post": 1, "L2.resid_post": 3}, 3),
        ("sd1", 1, None, {"L0.resid_pre": 0, "L0.resid_post": 1, "L1.resid_post": 2, "L2.resid_post": 3}, 3),
        ("if", 3, None, {"L0.resid_pre": 0, "L2.resid_post": 3}, 3),
        ("sdxl", 4, "text_encoder", {"L1.resid_post": 2}, 2),
    ],
)
def test_layers_are_counted_back_from_the_one_that_is_read(name, stride, encoder, layers, last):
    from vit_lens.studies.annotate.toker import Layers

    found = Layers.of(test_text_sweep.pair(name)[0], stride, encoder)
    assert (found.sites, found.last) == (layers, last)


# ---- answers that are kept


def test_what_was_judged_is_not_judged_again(tmp_path):
    from PIL import Image

    from vit_lens.studies.annotate import KeptAnswers, Question

    pictures = [Image.fromarray(np.full((3, 4, 3), k, np.uint8)) for k in range(3)]
    asked = [Question(prompt="p", question=str(k), text=f"is it {k} ?", caption="c", alternatives=("d",)) for k in "ab"]
    judge, path = Fake(), tmp_path / "k" / "answers.json"
    kept = KeptAnswers(judge, path)
    told = [kept.answer(one, asked) for one in pictures]
    assert judge.n == 6 and told == [Fake().answer(one, asked) for one in pictures]
    kept.save()
    again = KeptAnswers(judge, path)
    assert [again.answer(one, asked) for one in pictures] == told and judge.n == 6
    other = Question(prompt="p", question="a", text="is it a ?", caption="c", alternatives=("e",))
    again.answer(pictures[0], [asked[0], other])
    assert judge.n == 7
    stranger = Fake()
    stranger.name = "stranger"
    with pytest.raises(StudyError, match="holds answers of 'fake'"):
        KeptAnswers(stranger, path)
    kept = json.loads(path.read_text())
    kept["answers"] = {key: ["perhaps", 0.5] for key in kept["answers"]}
    path.write_text(json.dumps(kept))
    with pytest.raises(StudyError, match="is damaged; remove it"):
        KeptAnswers(judge, path)


def test_answers_are_bound_to_the_judges_weights(tmp_path):
    import torch
    from PIL import Image

    from vit_lens.studies.annotate import KeptAnswers, Question

    judge = Fake()
    judge.model = torch.nn.Linear(3, 2)
    kept = KeptAnswers(judge, tmp_path / "a.json")
    kept.answer(Image.new("RGB", (3, 3)), [Question(prompt="p", question="a", text="b", caption="c")])
    kept.save()
    KeptAnswers(judge, tmp_path / "a.json")
    with torch.no_grad():
        judge.model.weight[0, 0] += 1
    with pytest.raises(StudyError, match="or of other weights than fake has here"):
        KeptAnswers(judge, tmp_path / "a.json")


# ---- the command

FAMILY = ["--family", "simple_objects,two_colors"]


def test_the_command_draws_asks_and_goes_on(tmp_path, vit_lens, monkeypatch):
    from vit_lens.records import Record
    from vit_lens.studies import annotate

    released, model, out = checkout(tmp_path / "c"), tmp_path / "sd", tmp_path / "out"
    tiny_pipelines.make("sd1").save_pretrained(model)
    judge = Fake()
    monkeypatch.setattr(annotate, "named_judge", lambda name, device: judge, raising=False)
    line = ["paper", "toker", released, "--model", model, "--judge", "vqa:fake", *FAMILY, "--stride", 2, "--steps", 1]
    line += ["--decoder-seed", 0, "--decoder-seed", 5, "--out", out]
    status, told, err = vit_lens(*line, "--plan")
    assert status == 0 and "simple_objects: 3 prompts, 12 pictures" in told and not out.exists(), err
    assert re.search(r"20 pictures, about .+ \(at most, by one picture that was timed\)", told) and judge.n == 0
    status, told, err = vit_lens(*line)
    assert status == 0, err
    assert told.index("20 pictures, about") < told.index("simple_objects IsCorrect, share by layer: 1 ")
    found = json.loads((out / "curves.json").read_text())
    assert found["format"] == "vit_lens.toker.1" and found["judge"] == "fake" and found["noise_seeds"] == [0, 5]
    assert found["pipeline"] == "StableDiffusionPipeline" and found["families"] == {
        "simple_objects": 3,
        "two_colors": 2,
    }
    families = {one.name: one for one in annotate.read_families(released)}
    curves = pd.DataFrame(found["curves"]).set_index(["family", "question", "site"])
    assert len(curves) == (1 + 7) * 2
    for name, n in (("simple_objects", 3), ("two_colors", 2)):
        record = Record.load(out / name)
        assert len(record.table) == n * 2 * 2 and sorted(set(record.table["seed"])) == [0, 5]
        for site, depth in (("L0.resid_post", 1 / 3), ("L2.resid_post", 1.0)):
            for place, question in enumerate(families[name].asked):
                answers = [
                    said(
                        record.picture(row).convert("RGB"), families[name].questions[record.entry(entry)["text"]][place]
                    )
                    for row, entry, where in zip(*(record.table[k] for k in ("row", "input", "site")), strict=True)
                    if where == site
                ]
                own, sure = curves.loc[name, question, site], [one == "yes" for one in answers if one != "unsure"]
                assert own["depth"] == pytest.approx(depth) and own["layer"] == (1 if depth < 1 else 3)
                assert own["n"] == len(sure) and own["unsure"] == len(answers) - len(sure) and own["low"] is None
                assert own["mean"] == pytest.approx(np.mean(sure))
    people = pd.DataFrame(found["people"])
    assert people["mean"].tolist() == pytest.approx([0.25, 2 / 3, 0.75])  # as test_annotate_released.py has them
    assert people["depth"].tolist() == pytest.approx([3 / 11, 7 / 11, 1]) and set(people["family"]) == {
        "simple_objects"
    }
    page = (out / "simple_objects.html").read_text()
    assert "n = 3 prompts x 2 pictures" in page and "people, Stable Diffusion" in page and '"dash":"dot"' in page
    n, before = judge.n, (out / "simple_objects" / "record.json").stat().st_mtime_ns
    first = (out / "curves.csv").read_bytes()
    assert n == 12 + 8 * 7
    assert vit_lens(*line)[0] == 0 and judge.n == n and (out / "curves.csv").read_bytes() == first
    assert (out / "simple_objects" / "record.json").stat().st_mtime_ns == before
    status, _, err = vit_lens(*line, "--guidance", 3)
    assert status == 2 and "another sweep" in " ".join(err.split())


def test_an_interruption_keeps_what_was_answered(tmp_path):
    from vit_lens import Drawing
    from vit_lens.studies.annotate import toker_curves

    reader, decoder = test_text_sweep.pair("sd1")

    class Breaks(Fake):
        def answer(self, picture, questions):
            if self.n == 4:
                raise KeyboardInterrupt
            return super().answer(picture, questions)

    released, drawing = checkout(tmp_path / "c"), Drawing(settings=decoder.settings(steps=1), seeds=[0])
    how = {"families": ["simple_objects"], "stride": 1, "drawing": drawing, "out": tmp_path / "out"}
    with pytest.raises(KeyboardInterrupt):
        toker_curves(released, reader, decoder, Breaks(), **how)
    assert len(json.loads((tmp_path / "out" / "answers.json").read_text())["answers"]) == 4
    whole = Fake()
    found = toker_curves(released, reader, decoder, whole, **how)
    assert whole.n == 12 - 4 and found.curves["layer"].tolist() == [0, 1, 2, 3]
    fresh = toker_curves(released, reader, decoder, Fake(), **how | {"out": tmp_path / "fresh"})
    pd.testing.assert_frame_equal(fresh.curves, found.curves)
    other = Drawing(settings=decoder.settings(steps=2), seeds=[0])
    with pytest.raises(RecordError, match="another sweep"):
        toker_curves(released, reader, decoder, Fake(), **how | {"drawing": other})
    with pytest.raises(StudyError, match="stride=0"):
        toker_curves(released, reader, decoder, Fake(), **how | {"stride": 0})


def test_what_cannot_be_asked_or_drawn_is_refused(tmp_path, vit_lens):
    released = checkout(tmp_path / "c")
    for more, message in (
        (["--judge", "exact"], "expected clip:NAME or vqa:DIR"),
        (["--judge", "vqa:none", "--family", "simple"], "nearest: 'simple_objects'"),
        (["--judge", f"vqa:{tmp_path}", *FAMILY], r"holds no config\.json"),
    ):
        status, _, err = vit_lens(
            "paper", "toker", released, "--model", tmp_path / "none", *more, "--out", tmp_path / "o"
        )
        assert status == 2 and re.search(message, " ".join(err.split())), err
        assert not (tmp_path / "o").exists()
