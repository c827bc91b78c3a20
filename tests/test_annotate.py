"""Annotation: what is asked, under which names, how answers are checked, joined, averaged and compared."""

import doctest
import importlib
import itertools
import json
import re

import annotate_factory as factory
import numpy as np
import pandas as pd
import pytest

# diffusers hands torch tensors to numpy 2 in a way that it is leaving.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    return factory.swept(tmp_path_factory.mktemp("annotate") / "r")


@pytest.fixture
def sheet(record):
    from vit_lens.studies.annotate import make_sheet

    return make_sheet([record], seed=5)


# ---- the sheet


def test_a_sheet_shows_every_picture_with_what_the_key_says_of_it(record, sheet):
    from vit_lens.studies.annotate import make_sheet

    table = record.table.set_index("row")
    assert sorted(item.row for item in sheet.items) == list(range(8)) and len(sheet.by_item) == 8
    assert [item.row for item in sheet.items] != list(range(8))
    for item in sheet.items:
        row = table.loc[item.row]
        reading = record.readings[row["reading"]]
        assert (item.site, item.layer, item.seed) == (row["site"], row["layer"], row["seed"])
        assert (item.lens, item.control) == (reading.label, reading.control)
        assert item.prompt == record.entry(row["input"])["text"]
    again = make_sheet([record], seed=5)
    assert (again.page, again.items) == (sheet.page, sheet.items)
    other = make_sheet([record], seed=6)
    assert other.page != sheet.page and set(other.by_item) == set(sheet.by_item)
    assert all(re.fullmatch(r"i[0-9a-f]{16}", name) for name in sheet.by_item)


def test_fewer_pictures_are_spread_evenly(record):
    from vit_lens.studies.annotate import make_sheet

    for seed in range(5):
        some = make_sheet([record], n=4, seed=seed)
        assert sorted({(item.site, item.control) for item in some.items}) == sorted(
            itertools.product(["L0.resid_pre", "L2.resid_post"], ["", "random"])
        )
    late = make_sheet([record], layers=[2])
    assert {item.site for item in late.items} == {"L2.resid_post"} and len(late.items) == 4


def test_a_key_is_read_back_and_a_damaged_one_is_refused(sheet, tmp_path):
    from vit_lens.errors import StudyError
    from vit_lens.studies.annotate import Sheet

    path = sheet.save(tmp_path / "p.key.json")
    back = Sheet.load(path)
    assert (back.page, back.seed, back.records, back.questions, back.items) == (
        sheet.page, sheet.seed, sheet.records, sheet.questions, sheet.items,
    )  # fmt: skip
    said = json.loads(path.read_text())
    for change, message in [
        ({"format": "other"}, "is no key of a page"),
        ({"more": 1}, "unknown key 'more'"),
        ({"items": [said["items"][0]] * 2}, "two items have one name"),
        ({"items": [said["items"][0] | {"prompt": "elsewhere"}]}, "has no question or record"),
        ({"items": [said["items"][0] | {"row": "2"}]}, "row is '2'; expected int"),
    ]:
        path.write_text(json.dumps(said | change))
        with pytest.raises(StudyError, match=message):
            Sheet.load(path)


def test_pictures_that_changed_are_noticed(record, sheet):
    from dataclasses import replace

    from vit_lens.errors import StudyError
    from vit_lens.studies.annotate.collecting import pictures_of

    assert [np.asarray(picture).tolist() for picture in pictures_of(sheet, [record])] == [
        np.asarray(record.picture(item.row)).tolist() for item in sheet.items
    ]
    wrong = replace(sheet, items=(replace(sheet.items[0], row=sheet.items[1].row),))
    with pytest.raises(StudyError, match="holds another picture than was shown"):
        list(pictures_of(wrong, [record]))
    with pytest.raises(StudyError, match="names a record that was not given"):
        list(pictures_of(sheet, []))


def test_questions_of_a_table(record, tmp_path):
    from vit_lens.studies.annotate import ask

    star, ring = factory.PROMPTS
    lines = [
        ["prompt", "question", "text", "alternatives"],
        ["", "shown", "Is it {prompt}?", "a {prompt}|nothing"],
        [star, "colour", "Is the star red?", ""],
    ]
    found = ask([star, ring], factory.write(tmp_path / "q.csv", lines))
    assert [(one.prompt, one.question, one.text, one.caption, one.alternatives) for one in found] == [
        (star, "shown", f"Is it {star}?", star, (f"a {star}", "nothing")),
        (ring, "shown", f"Is it {ring}?", ring, (f"a {ring}", "nothing")),
        (star, "colour", "Is the star red?", star, ()),
    ]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([["prompt", "question"]], "the columns are prompt, question; expected prompt, question, text"),
        ([["prompt", "question", "text"], ["a dog", "q", "t"]], "line 2: no picture is of the prompt 'a dog'"),
        ([["prompt", "question", "text"], ["", "", "t"]], "line 2: no question"),
        ([["prompt", "question", "text"], ["", "q", "t"], ["a red star", "q", "t"]], "line 3: 'q' is asked twice of"),
        ([["prompt", "question", "text"], ["a red star", "q", "t"]], "nothing is asked about 'a blue ring and"),
        ([["prompt", "question", "text"], ["", "q"]], "line 2 has 2 cells"),
        ([["prompt", "question", "text", "alternatives"], ["", "q", "t", "x|{prompt}"]], "is among the alternatives"),
    ],
)
def test_wrong_questions(lines, message, tmp_path):
    from vit_lens.errors import StudyError
    from vit_lens.studies.annotate import ask

    with pytest.raises(StudyError, match=message):
        ask(list(factory.PROMPTS), factory.write(tmp_path / "q.csv", lines))


# ---- answers


def test_the_last_answer_counts_and_is_counted(sheet, tmp_path):
    from vit_lens.studies.annotate import read_answers

    first = factory.answered(tmp_path / "a.csv", sheet, lambda *_: "yes")
    second = factory.answered(tmp_path / "b.csv", sheet, lambda item, _: "no" if item == sheet.items[0] else "yes")
    found = read_answers([first, second], sheet)
    assert (len(found.answers), found.repeated, found.changed) == (8, 7, 1)
    assert {one.item: one.answer for one in found.answers}[sheet.items[0].item] == "no"
    assert {one.item: one.answer for one in read_answers([second, first], sheet).answers}[sheet.items[0].item] == "yes"


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("answer", "maybe", "line 3: the answer is 'maybe'; expected one of yes, no, unsure"),
        ("item", "i123", "line 3: no item 'i123' on the page"),
        ("question", "shwn", "line 3: no question 'shwn' about item .*nearest: 'shown'"),
        ("page", "p0", "line 3 answers page 'p0', and the key is of page"),
        ("annotator", " ", "line 3 names no annotator"),
    ],
)
def test_wrong_answers_are_refused_with_their_line(column, value, message, sheet, tmp_path):
    from vit_lens.errors import StudyError
    from vit_lens.studies.annotate import read_answers

    path = factory.answered(tmp_path / "a.csv", sheet, lambda *_: "yes")
    frame = pd.read_csv(path)
    frame.loc[1, column] = value
    frame.to_csv(path, index=False)
    with pytest.raises(StudyError, match=message):
        read_answers([path], sheet)


def test_what_spreadsheets_do_to_a_table_is_read_or_named(sheet, tmp_path):
    from vit_lens.errors import StudyError
    from vit_lens.studies.annotate import read_answers

    path = factory.answered(tmp_path / "a.csv", sheet, lambda *_: "no", annotator="'=ada")
    text = path.read_text()
    path.write_text("\ufeff" + text.replace("\n", "\r\n"), encoding="utf-8")
    assert {one.annotator for one in read_answers([path], sheet).answers} == {"=ada"}
    path.write_text(text.replace(",", ";"))
    with pytest.raises(StudyError, match="with commas between them"):
        read_answers([path], sheet)
    path.write_text(text.splitlines()[0] + "\n")
    with pytest.raises(StudyError, match="holds no answer"):
        read_answers([path], sheet)


def test_answers_come_back_as_they_were_written(sheet, tmp_path):
    from vit_lens.studies.annotate import Answer, read_answers, write_answers

    given = [
        Answer(annotator="-judge", item=item.item, question="shown", answer="no", page=sheet.page, score="0.25")
        for item in sheet.items
    ]
    assert list(read_answers([write_answers(given, tmp_path / "a.csv")], sheet).answers) == given


# ---- means


def table_of(rows):
    columns = ["annotator", "prompt", "site", "layer", "control", "answer", "item"]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.assign(question="shown", encoder="e", lens="Diffusion Lens", seed=0)


def test_means_by_hand():
    """Of "a" 2 of 3 told answers are yes, of "b" 1 of 1; the control is never right."""
    from vit_lens.studies.annotate import means

    rows = [
        ("ada", "a", "L1.resid_post", 1, "", "yes", "i1"), ("ada", "a", "L1.resid_post", 1, "", "no", "i2"),
        ("bob", "a", "L1.resid_post", 1, "", "yes", "i1"), ("bob", "a", "L1.resid_post", 1, "", "unsure", "i2"),
        ("ada", "b", "L1.resid_post", 1, "", "yes", "i3"), ("ada", "b", "L1.resid_post", 1, "random", "no", "i4"),
        ("ada", "b", "L0.resid_pre", 0, "", "unsure", "i5"), ("ada", "b", "L0.resid_post", 0, "", "no", "i6"),
    ]  # fmt: skip
    found = means(table_of(rows))
    assert list(found["annotator"]) == ["everyone"] * 3 + ["ada"] * 3 + ["bob"]
    assert list(found["site"])[:3] == ["L0.resid_pre", "L0.resid_post", "L1.resid_post"]
    early, post, late = found.to_dict("records")[:3]
    assert late["mean"] == 0.75 and late["unsure"] == 0.2 and pd.isna(late["low"])
    assert (late["answers"], late["pictures"], late["prompts"]) == (5, 3, 2)
    assert (late["random: mean"], late["random: answers"]) == (0, 1)
    assert pd.isna(early["mean"]) and early["unsure"] == 1 and post["mean"] == 0 and pd.isna(post["random: mean"])


def test_intervals_are_over_prompts_and_not_over_pictures():
    """Ten seeds of a prompt that are all alike say no more than one."""
    from vit_lens.studies.annotate.shares import share_over_prompts

    values = pd.Series([1, 0, 1, 1, 0, 1, 0, 1])
    prompts = pd.Series(list("abcdefgh"))
    one = share_over_prompts(values, prompts, seed=1)
    many = share_over_prompts(pd.concat([values] * 10), pd.concat([prompts] * 10), seed=1)
    assert one == many and one.low < one.value < one.high
    generator = np.random.default_rng(1)
    draws = [values.to_numpy()[generator.integers(8, size=8)].mean() for _ in range(1000)]
    assert (one.low, one.high) == tuple(np.quantile(draws, [0.025, 0.975]))


# ---- kappa


FLEISS = np.array([
    [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
])  # fmt: skip


def slow_kappa(counts):
    """All pairs of ratings, one by one."""
    items = [[k for k, n in enumerate(row) for _ in range(n)] for row in counts]
    items = [ratings for ratings in items if len(ratings) > 1]
    same = [np.mean([a == b for a, b in itertools.permutations(ratings, 2)]) for ratings in items]
    chance = np.mean(
        [np.mean([a == b for a in first for b in second]) for first in items for second in items]
    )  # two items, the same one among them, and a rating of each
    return (np.mean(same) - chance) / (1 - chance)


def test_kappa_of_the_textbook():
    from vit_lens.studies.annotate import fleiss_kappa

    found = fleiss_kappa(FLEISS)
    assert round(found.value, 3) == 0.210 and found.low < found.value < found.high


def test_kappa_s_interval_draws_groups_of_items_that_depend_on_each_other():
    """Four pictures of one prompt, all alike, say no more than one: the interval is that of the prompts."""
    from vit_lens.studies.annotate import fleiss_kappa

    repeated, prompts = np.repeat(FLEISS, 4, axis=0), np.repeat(np.arange(len(FLEISS)), 4).tolist()
    grouped, single = fleiss_kappa(repeated, groups=prompts), fleiss_kappa(FLEISS)
    assert (grouped.value, grouped.low, grouped.high) == pytest.approx((single.value, single.low, single.high))
    naive = fleiss_kappa(repeated)
    assert naive.high - naive.low < 0.7 * (single.high - single.low)
    assert fleiss_kappa(FLEISS, groups=["a", "b"] * 5).low is None


def test_kappa_with_unequal_numbers_of_ratings_is_that_of_all_pairs():
    from vit_lens.studies.annotate import fleiss_kappa
    from vit_lens.studies.annotate.kappa import raw_agreement

    generator = np.random.default_rng(3)
    for _ in range(20):
        counts = generator.integers(0, 4, size=(13, 3))
        assert fleiss_kappa(counts).value == pytest.approx(slow_kappa(counts), abs=1e-12)
    alone = np.vstack([FLEISS, [[1, 0, 0, 0, 0]], [[0] * 5]])
    assert fleiss_kappa(alone).value == fleiss_kappa(FLEISS).value and raw_agreement(alone)[1] == 10


def test_kappa_of_raters_who_err_independently():
    """Three raters, each right nine times of ten: two agree .82 of the time, chance is .5, so that kappa is .64."""
    from vit_lens.studies.annotate import fleiss_kappa

    generator = np.random.default_rng(0)
    truth = generator.random(4000) < 0.5
    yes = sum((truth ^ (generator.random(4000) < 0.1)).astype(int) for _ in range(3))
    found = fleiss_kappa(np.stack([yes, 3 - yes], axis=1))
    assert abs(found.value - 0.64) < 0.03 and found.low < 0.64 < found.high


def test_kappa_says_when_it_is_undefined():
    from vit_lens.studies.annotate import fleiss_kappa

    assert "needs two raters" in fleiss_kappa(np.eye(3, dtype=int)).why
    assert "needs two raters" in fleiss_kappa(np.zeros((0, 3), dtype=int)).why
    assert "all ratings are the same" in fleiss_kappa(np.array([[2, 0], [3, 0]])).why
    few = fleiss_kappa(np.array([[2, 0], [0, 2]]))
    assert few.value == 1 and few.low is None


def test_agreement_of_all_and_of_every_two(sheet, tmp_path):
    """Cannot tell is a category, or left out."""
    from vit_lens.studies.annotate import agreement, joined, read_answers

    def answers(name):
        def answer(item, _):
            place = sheet.items.index(item)
            return {"ada": "yny" * 3, "bob": "yyn" * 3, "eve": "uny" * 3}[name][place]

        def full(item, question):
            return {"y": "yes", "n": "no", "u": "unsure"}[answer(item, question)]

        return factory.answered(tmp_path / f"{name}.csv", sheet, full, name)

    table = joined(read_answers([answers(name) for name in ("ada", "bob", "eve")], sheet).answers, sheet)
    found = agreement(table).set_index(["raters", "categories"])
    assert sorted({raters for raters, _ in found.index}) == ["ada, bob", "ada, bob, eve", "ada, eve", "bob, eve"]
    both = found.loc[("ada, eve", "yes, no")]
    assert (both["kappa"], both["rated_twice"], both["agreement"]) == (1, 5, 1) and both["unsure"] == 3 / 16
    places = [[("yny" * 3)[k], ("yyn" * 3)[k], ("uny" * 3)[k]] for k in range(8)]
    with_unsure = np.array([[row.count(letter) for letter in "ynu"] for row in places])
    for categories, counts in (("yes, no, cannot tell", with_unsure), ("yes, no", with_unsure[:, :2])):
        assert found.loc[("ada, bob, eve", categories), "kappa"] == pytest.approx(slow_kappa(counts), abs=1e-12)


# ---- the commands


def test_from_page_to_means_by_commands(record, vit_lens, tmp_path):
    from vit_lens.studies.annotate import Sheet

    status, out, err = vit_lens("annotate", "page", record.path, "--out", tmp_path / "p.html", "--sheet-seed", 3)
    assert status == 0, err
    assert "pictures: 8, questions: 8" in out and str(tmp_path / "p.key.json") in out
    sheet = Sheet.load(tmp_path / "p.key.json")
    ada = factory.answered(tmp_path / "ada.csv", sheet, lambda item, _: "no" if item.control else "yes")
    bob = factory.answered(tmp_path / "bob.csv", sheet, lambda item, _: "unsure" if item.layer == 0 else "yes", "bob")
    found = tmp_path / "found"
    status, out, err = vit_lens("annotate", "read", ada, bob, ada, "--key", tmp_path / "p.key.json", "--out", found)
    assert status == 0, err
    assert "answers: ada 8, bob 8" in out and "8 lines say again what an earlier one says" in out
    assert "kappa, shown, ada, bob, yes, no, cannot tell: " in out and "25% cannot tell" in out
    means = pd.read_csv(found / "means.csv")
    everyone = means[means["annotator"] == "everyone"].set_index("site")
    assert everyone.loc["L2.resid_post", ["mean", "random: mean", "unsure"]].tolist() == [1, 0.5, 0]
    assert everyone.loc["L0.resid_pre", ["mean", "random: mean", "unsure"]].tolist() == [1, 0, 0.5]
    joined = pd.read_csv(found / "answers.csv")
    assert len(joined) == 16 and set(joined["record"]) == {str(record.path)}
    assert "Share of yes by site" in (found / "means.html").read_text() and (found / "agreement.csv").is_file()


def test_commands_refuse_what_they_cannot_do(record, vit_lens, tmp_path):
    import record_factory

    key, out = tmp_path / "p.key.json", tmp_path / "p.html"
    images = record_factory.build(tmp_path / "images", names=("cup.png",))
    for arguments, message in [
        (["page", record.path, "--out", out, "--layers", "two"], "--layers 'two'; expected numbers"),
        (["page", record.path, "--out", out, "--layers", "9"], "no picture is drawn of the layers [9]"),
        (["page", record.path, record.path, "--out", out], "two of the records hold the same sweep"),
        (["page", record.path, "--out", tmp_path / "p.pdf"], "the page is an HTML file, not 'p.pdf'"),
        (["page", images.path, "--out", out], "a record of images has no prompts to ask about"),
        (["page", tmp_path, "--out", out], "holds no record.json"),
        (["read", tmp_path / "none.csv", "--key", key, "--out", tmp_path], "p.key.json: no such file"),
        (["judge", record.path, "--judge", "oracle", "--out", tmp_path / "a.csv"], "expected exact, exact:SEED"),
        (
            ["judge", record.path, "--judge", "exact", "--key", key, "--n", 2, "--out", tmp_path / "a.csv"],
            "--key says what is asked",
        ),
    ]:
        status, _, err = vit_lens("annotate", *arguments)
        assert status == 2 and message in err, (arguments, err)
    assert not out.exists() and not key.exists()


def test_pictures_of_images_are_asked_about_by_name(tmp_path):
    import record_factory

    from vit_lens.studies.annotate import make_sheet

    images = record_factory.build(tmp_path / "images", names=("cup.png",))
    lines = [["prompt", "question", "text"], ["cup.png", "cup", "Is there a cup?"]]
    sheet = make_sheet([images], questions=factory.write(tmp_path / "q.csv", lines), n=6)
    assert len(sheet.items) == 6 and {item.prompt for item in sheet.items} == {"cup.png"}


def test_examples_in_docstrings():
    for name in ("kappa", "emerging", "questions", "page", "still_life_claims"):
        module = importlib.import_module(f"vit_lens.studies.annotate.{name}")
        found = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
        assert found.attempted and not found.failed, name
