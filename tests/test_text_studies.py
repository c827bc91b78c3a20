"""What studies of text encoders share: what is asked, who looks, answers by layer, and statistics of layers."""

import numpy as np
import pytest

from vit_lens.errors import StudyError
from vit_lens.mini import still_life
from vit_lens.mini.still_life import Lexicon
from vit_lens.records import Record
from vit_lens.studies.asked import PARTS, Asked, ask_of_world, read_asked
from vit_lens.studies.layer_answers import answers_of
from vit_lens.studies.layer_statistics import earlier_right, excess, first_right, half_rise, stays_right
from vit_lens.studies.scene_judges import ExactSceneJudge

KINDS = {"single": 7, "pair, head first": 6, "pair, fronted": 6, "common name": 3, "rare name": 3}


@pytest.fixture(scope="module")
def asked():
    return ask_of_world(KINDS, Lexicon(0), seed=3)


def test_prompts_of_the_world_are_different_whole_and_held_out(asked):
    from vit_lens.mini.still_life import is_held_out

    assert len({one.prompt for one in asked}) == len(asked)
    by_kind = {kind: [one for one in asked if one.kind == kind] for kind in KINDS}
    assert {kind: len(some) for kind, some in by_kind.items()} == KINDS
    for a, b in zip(by_kind["pair, head first"], by_kind["pair, fronted"], strict=True):
        assert (a.sentence.scene, a.sentence.head) == (b.sentence.scene, b.sentence.head) and a.prompt != b.prompt
        assert is_held_out(a.sentence.scene) and "," in b.prompt and "," not in a.prompt
    rare = Lexicon(0)
    for kind in ("common name", "rare name"):
        for one in by_kind[kind]:
            name = rare.names.index(one.prompt.removeprefix("a "))
            assert rare.is_rare[name] == (kind == "rare name")
            assert one.sentence.scene.objects == (rare.objects[name],)
    again = ask_of_world(KINDS, Lexicon(0), seed=3)
    assert [one.prompt for one in again] == [one.prompt for one in asked]
    assert [one.prompt for one in ask_of_world({"single": 7}, Lexicon(0), seed=4)] != [
        one.prompt for one in by_kind["single"]
    ]


def test_a_judge_says_every_part_of_a_true_picture_is_there_and_knows_a_changed_one(asked):
    judge = ExactSceneJudge()
    own = [one for one in asked if one.kind == "pair, fronted"]
    generator = np.random.default_rng(0)
    true = still_life.draw([one.sentence.scene for one in own], generator)
    seen = judge.look(true)
    for part in own[0].parts:
        assert judge.right(seen, own, part).tolist() == [1.0] * len(own), part
    scene = own[0].sentence.scene
    turned = still_life.Scene(layout=scene.layout, objects=scene.objects[::-1])
    looked = judge.look(still_life.draw([turned] * 2, generator))
    found = {part: judge.right(looked, [own[0]] * 2, part)[0] for part in own[0].parts}
    assert found["layout"] == found["both there"] == found["head there"] == found["other there"] == 1
    assert found["scene"] == found["object 1"] == found["object 2"] == 0
    other = Asked(prompt="a can", kind="simple", questions={"object": "?"})
    with pytest.raises(StudyError, match="was not drawn from it"):
        judge.right(looked, [other] * 2, "object")


@pytest.mark.parametrize("part", sorted(PARTS))
def test_no_part_is_always_there(part, asked):
    """Of other scenes of the kind every part is missing sometimes."""
    pairs = [one.sentence for one in asked if one.kind == "pair, head first"]
    found = [PARTS[part](a.scene, b) for a in pairs for b in pairs if a is not b]
    assert not all(found)
    assert all(PARTS[part](one.scene, one) for one in pairs)


# ---- tables of one's own


def test_a_table_of_prompts_is_read_part_by_part(tmp_path):
    path = tmp_path / "asked.csv"
    path.write_text(
        "kind,prompt,part,question\nrelation,a carrot in a bag,bag,Is there a bag?\n"
        'relation,a carrot in a bag,carrot,"Is there a carrot, or two?"\n\n'
    )
    (one,) = read_asked(path)
    assert one.prompt == "a carrot in a bag" and one.parts == ("bag", "carrot")
    assert one.questions["carrot"] == "Is there a carrot, or two?" and one.sentence is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prompt,kind,part\na,b,c\n", "lacks the column"),
        ("prompt,kind,part,question,colour\na,b,c,d,e\n", "unknown column 'colour'"),
        ("prompt,kind,part,question\na,b,c\n", "row 2: expected 4 values"),
        ("prompt,kind,part,question\na,b,c,d,e\n", "row 2: expected 4 values"),
        ("prompt,kind,part,question\na,b,c,d\na,x,e,f\n", "is of kind 'b' above and 'x' here"),
        ("prompt,kind,part,question\na,b,c,d\na,b,c,f\n", "has the part 'c' twice"),
        ("prompt,kind,part,question\na,b,c,d\ne,b,f,g\n", "asked the same"),
        ("prompt,kind,part,question\n", "holds no prompt"),
        (b"prompt,kind,part,question\n\xff\xfe,b,c,d\n", "cannot be read"),
    ],
)
def test_a_wrong_table_is_refused_with_its_row(tmp_path, text, said):
    path = tmp_path / "asked.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(StudyError, match=said):
        read_asked(path)


def test_wrong_kinds_and_too_many_are_refused():
    with pytest.raises(StudyError, match="nearest: 'single'"):
        ask_of_world({"singel": 2}, Lexicon(0), seed=0)
    with pytest.raises(StudyError, match="there are 32 such names"):
        ask_of_world({"rare name": 33}, Lexicon(0), seed=0)
    with pytest.raises(StudyError, match="the world has about"):
        ask_of_world({"single": 10_000}, Lexicon(0), seed=0)
    with pytest.raises(StudyError, match="100,000,000 prompts of kind 'single': a study takes 10,000 at most"):
        ask_of_world({"single": 100_000_000}, Lexicon(0), seed=0)


# ---- answers by layer


class Finished(Record):
    """A finished record of a sweep of prompts, whose pictures say row, and so prompt, noise and site."""

    path, complete, table, readings, manifest = "somewhere", True, None, None, None

    def __init__(self, prompts, sites, noises):
        import pandas as pd

        rows = [(i, n, s) for i in range(len(prompts)) for n in noises for s in sites]
        order = np.random.default_rng(5).permutation(len(rows))  # a table in any order
        table = pd.DataFrame(
            [(int(k), *rows[k], "lens") for k in sorted(order, key=lambda k: sites.index(rows[k][2]))],
            columns=["row", "input", "seed", "site", "reading"],
        )
        held = {"table": table, "rows": rows, "readings": {"lens": None}, "prompts": prompts, "complete": True}
        for name, value in (held | {"manifest": {"inputs": list(prompts)}}).items():
            object.__setattr__(self, name, value)

    def entry(self, index):
        return {"text": self.prompts[index]}

    def picture(self, row):
        return np.full((2, 2, 3), row, np.uint8)


class ByRow:
    """A judge that says what a table says of the row that a picture shows."""

    name = "by row"

    def __init__(self, right):
        self.table = right

    def look(self, pictures):
        return pictures[:, 0, 0, 0]

    def right(self, seen, asked, part):
        sure = [self.table[int(row)][one.prompt] for row, one in zip(seen, asked, strict=True)]
        return np.array(sure) + (part == "b") * 0.25

    def residual(self, seen):
        return seen / 1000


def test_answers_and_chance_are_those_of_the_pictures_one_by_one():
    from vit_lens.interventions import derangement

    prompts = [f"p{i}" for i in range(5)]
    asked = [Asked(prompt=p, kind="x" if i < 3 else "y", questions={"a": "", "b": ""}) for i, p in enumerate(prompts)]
    record = Finished(prompts, ["L0.resid_pre", "L0.resid_post", "L1.resid_post"], [4, 2])
    generator = np.random.default_rng(1)
    table = [{p: float(generator.random()) for p in prompts} for _ in record.rows]
    found = answers_of(record, asked, ByRow(table), seed=8)
    assert list(found) == ["x", "y"] and found["x"].sites[0] == "L0.resid_pre"
    for kind, names in (("x", prompts[:3]), ("y", prompts[3:])):
        one = found[kind]
        assert one.prompts == tuple(names) and one.right.shape == (len(names), 2, 3, 2)
        other = derangement(len(names), seed=8).tolist()
        for i, name in enumerate(names):
            for n, noise in enumerate(dict.fromkeys(record.table["seed"])):
                for s, site in enumerate(one.sites):
                    row = record.rows.index((prompts.index(name), noise, site))
                    assert one.of("a")[i, n, s] == table[row][name] == pytest.approx(one.of("b")[i, n, s] - 0.25)
                    assert one.chance("a")[i, n, s] == table[row][names[other[i]]] and other[i] != i
                    assert one.residual[i, n, s] == row / 1000
    with pytest.raises(StudyError, match="no part 'c'"):
        found["x"].of("c")


def test_answers_of_another_or_unfinished_record_are_refused():
    prompts = ["p", "q"]
    asked = [Asked(prompt=p, kind="x", questions={"a": ""}) for p in prompts]
    record = Finished(prompts, ["L0.resid_post"], [0])
    with pytest.raises(StudyError, match="single prompt"):
        answers_of(record, [asked[0], Asked(prompt="q", kind="y", questions={"a": ""})], ByRow([]))
    with pytest.raises(StudyError, match="other prompts"):
        answers_of(record, asked[::-1], ByRow([]))
    object.__setattr__(record, "complete", False)
    with pytest.raises(StudyError, match="not complete"):
        answers_of(record, asked, ByRow([]))


# ---- statistics of layers


def brute_half(curve):
    """By walking along the line in small steps."""
    if curve[-1] < 0.1:
        return None
    for x in np.arange(0, len(curve) - 1 + 1e-9, 1e-4):
        i = min(int(x), len(curve) - 2)
        value = curve[i] + (x - i) * (curve[i + 1] - curve[i])
        if value >= curve[-1] / 2 - 1e-12:
            return x
    raise AssertionError


def test_half_rise_is_where_the_line_first_has_half_of_its_last_value():
    generator = np.random.default_rng(0)
    for _ in range(40):
        curve = generator.random(6) * generator.choice([0.1, 1.0])
        found, expected = half_rise(curve), brute_half(curve)
        assert (found is None) == (expected is None)
        if found is not None:
            assert found == pytest.approx(expected, abs=2e-4)
    assert half_rise(np.array([0.9, 0.1, 0.8])) == 0.0
    assert half_rise(np.array([0.0, 0.5, np.nan])) is None


def test_statistics_of_single_pictures_are_counted_one_by_one():
    generator = np.random.default_rng(2)
    right = (generator.random((30, 5)) < 0.6).astype(float)
    done = [row for row in right if row[-1]]
    first = np.mean([list(row).index(1.0) for row in done])
    stays = np.mean([max([i + 1 for i in range(5) if not row[i]], default=0) for row in done])
    wrong = [row for row in right if not row[-1]]
    assert first_right(right) == pytest.approx(first) and stays_right(right) == pytest.approx(stays)
    assert earlier_right(right) == pytest.approx(np.mean([row[:-1].any() for row in wrong]))
    none = np.zeros((2, 3))
    assert first_right(none) is None and stays_right(none) is None and earlier_right(np.ones((2, 3))) is None
    chance = generator.random((30, 5))
    assert np.allclose(excess(right, chance), [np.mean(right[:, i]) - np.mean(chance[:, i]) for i in range(5)])
