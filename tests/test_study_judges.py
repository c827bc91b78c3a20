"""Judges of any model in studies of prompts: what they are asked, part by part, and the commands end to end."""

import numpy as np
import pytest
import test_annotate_judges as judges
import tiny_pipelines
from PIL import Image

from vit_lens.errors import StudyError
from vit_lens.studies.asked import Asked, read_asked

# diffusers hands torch tensors to numpy 2 in a way that it is leaving.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def vqa(tmp_path_factory):
    """A tiny BLIP-2 with random weights, in a folder."""
    return judges.saved(tmp_path_factory.mktemp("judge") / "blip", *judges.blip("t5"))


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A tiny Stable Diffusion with random weights, in a folder."""
    folder = tmp_path_factory.mktemp("pipeline") / "sd"
    tiny_pipelines.make("sd1").save_pretrained(folder)
    return folder


def pictures(n):
    return np.random.default_rng(3).integers(0, 256, (n, 21, 19, 3), dtype=np.uint8)


ASKED = [
    Asked(
        prompt="a red star", kind="x", questions={"colour": "is it red ?", "shape": "is there a star ?"},
        captions={"shape": "a blue star"},
        alternatives={"colour": ("a blue ring",), "shape": ("a red star", "a red ring")},
    ),
    Asked(
        prompt="a blue ring", kind="x", questions={"colour": "is it blue ?", "shape": "is there a ring ?"},
        alternatives={"colour": ("a red star",), "shape": ("a blue star",)},
    ),
]  # fmt: skip


def test_a_model_is_asked_the_question_of_each_prompt_about_each_picture(vqa):
    """Against the judge of annotation, called for one picture and one question at a time."""
    from vit_lens.studies.annotate import VqaJudge
    from vit_lens.studies.question_judge import QuestionJudge
    from vit_lens.studies.scene_judges import SceneJudge

    alone = VqaJudge.load(vqa)
    judge = QuestionJudge(alone)
    judge.check(ASKED)
    assert isinstance(judge, SceneJudge) and judge.name == "vqa:blip"
    shown = pictures(6)
    seen, found = judge.look(shown), []
    own, strange = [ASKED[k % 2] for k in range(6)], [ASKED[(k + 1) % 2] for k in range(6)]
    for asked in (own, strange, own):
        for part in ("colour", "shape"):
            sure = judge.right(seen, asked, part)
            for picture, one, value in zip(shown, asked, sure, strict=True):
                question = judges.question(one.prompt, part, text=one.questions[part])
                (verdict,) = alone.answer(Image.fromarray(picture), [question])
                assert value == (verdict.answer == "yes")
            found.append(sure.tolist())
    assert found[:2] == found[4:] and judge.residual(seen) is None


def test_a_clip_is_given_captions_and_alternatives_of_the_part():
    """The judge inside hears what the table says, every part of a prompt at once; it may say that it cannot tell."""
    from vit_lens.studies.annotate import Verdict
    from vit_lens.studies.question_judge import QuestionJudge

    heard = []

    class Listens:
        name = "listens"

        def check(self, questions):
            heard.append(("check", [one.caption for one in questions]))

        def answer(self, picture, questions):
            heard.append([(one.question, one.caption, one.alternatives) for one in questions])
            return [Verdict(("yes", "unsure")[place], 0.7) for place in range(len(questions))]

    judge = QuestionJudge(Listens())
    judge.check(ASKED)
    seen = judge.look(pictures(2))
    assert judge.right(seen, ASKED, "shape").tolist() == [0.5, 0.5]
    assert judge.right(seen, ASKED, "colour").tolist() == [1.0, 1.0]
    assert heard == [
        ("check", ["a red star", "a blue star", "a blue ring", "a blue ring"]),
        [("colour", "a red star", ("a blue ring",)), ("shape", "a blue star", ("a red star", "a red ring"))],
        [("colour", "a blue ring", ("a red star",)), ("shape", "a blue ring", ("a blue star",))],
    ]


def test_answers_are_kept_and_not_asked_again(tmp_path):
    from vit_lens.studies.annotate import Verdict
    from vit_lens.studies.question_judge import QuestionJudge

    heard = []

    class Listens:
        name = "listens"

        def check(self, questions):
            pass

        def answer(self, picture, questions):
            heard.append(picture.tobytes())
            return [Verdict("yes", 0.7)] * len(questions)

    for _ in range(2):  # a study, and the same again after a kill
        judge = QuestionJudge(Listens(), tmp_path / "answers.json")
        assert judge.right(judge.look(pictures(2)), ASKED, "shape").tolist() == [1.0, 1.0]
    assert len(heard) == 2
    other = Listens()
    other.name = "another"
    with pytest.raises(StudyError, match="holds answers of 'listens'"):
        QuestionJudge(other, tmp_path / "answers.json")


def test_captions_and_alternatives_are_columns_of_the_table(tmp_path):
    path = tmp_path / "asked.csv"
    path.write_text(
        "prompt,kind,part,question,caption,alternatives\n"
        "a red star,x,colour,is it red ?,, a blue star | a green star |a blue star\n"
        "a red star,x,shape,is there a star ?,a star,\n"
    )
    (one,) = read_asked(path)
    assert one.captions == {"colour": "a red star", "shape": "a star"}
    assert one.alternatives == {"colour": ("a blue star", "a green star"), "shape": ()}
    for text, said in (
        ("prompt,kind,part,question,captoin\na,b,c,d,e\n", "unknown column 'captoin'; nearest: 'caption'"),
        ("prompt,kind,part,question,caption\na,b,c,d\n", "row 2: expected 5 values"),
        ("prompt,kind,part,question,alternatives\na,b,c,d,e|a\n", "row 2: 'a' is among the alternatives to itself"),
    ):
        path.write_text(text)
        with pytest.raises(StudyError, match=said):
            read_asked(path)


TABLE = """prompt,kind,part,question,caption,alternatives
a red star,single,object 1,is there a red star ?,,a blue star|a red ring
a red star,single,colour 1,is it red ?,a red object,a blue object
a red star,single,shape 1,is there a star ?,a star,a ring
a blue ring,single,object 1,is there a blue ring ?,,a red ring|a blue star
a blue ring,single,colour 1,is it blue ?,a blue object,a red object
a blue ring,single,shape 1,is there a ring ?,a ring,a star
"""
ORDER = """prompt,kind,part,question
a red star left of a blue ring,"pair, head first",head there,is there a star ?
a red star left of a blue ring,"pair, head first",other there,is there a ring ?
a blue star above a red ring,"pair, head first",head there,is there a star ?
a blue star above a red ring,"pair, head first",other there,is there a ring ?
left of a blue ring a red star,"pair, fronted",head there,is there a star ?
left of a blue ring a red star,"pair, fronted",other there,is there a ring ?
above a red ring a blue star,"pair, fronted",head there,is there a star ?
above a red ring a blue star,"pair, fronted",other there,is there a ring ?
"""


@pytest.mark.parametrize(("study", "judge"), [("composition", "clip"), ("norm", "vqa"), ("order", "vqa")])
def test_commands_on_a_pipeline_of_ones_own(study, judge, pipeline, vqa, vit_lens, tmp_path):
    import json

    table = tmp_path / "asked.csv"
    table.write_text(ORDER if study == "order" else TABLE)
    spelled = f"vqa:{vqa}" if judge == "vqa" else "clip:mini"
    status, _, err = vit_lens(
        "study", study, "--model", pipeline, "--prompt-table", table, "--judge", spelled, "--steps", 1,
        "--decoder-seed", 0, "--out", tmp_path / "out",
    )  # fmt: skip
    assert status == 0, err
    found = json.loads((tmp_path / "out" / "result.json").read_text())
    assert found["setup"]["judge"] == (f"vqa:{vqa.name}" if judge == "vqa" else "clip:mini")
    assert {row["site"] for row in found["tables"]["curves"]} >= {"L0.resid_pre", "L2.resid_post"}


def test_what_a_judge_cannot_be_asked_is_refused_before_anything_is_drawn(pipeline, vit_lens, tmp_path):
    table = tmp_path / "asked.csv"
    table.write_text(ORDER)
    for judge, said in (
        ("exact", "was not drawn from it; take --judge clip:NAME or vqa:DIR"),
        ("clip:mini", "has no alternatives, and a CLIP can only choose"),
        ("blip", "--judge blip: expected exact, second, clip:NAME or vqa:DIR"),
        (f"vqa:{tmp_path}", "holds no config.json"),
    ):
        status, _, err = vit_lens(
            "study", "order", "--model", pipeline, "--prompt-table", table, "--judge", judge, "--out", tmp_path / "out"
        )
        assert status == 2 and said in " ".join(err.split())
        assert not (tmp_path / "out").exists()
