"""The released tables recomputed: small ones by hand, and the real ones where there is a checkout.

``VIT_LENS_DIFFUSIONLENS=/path/to/DiffusionLens pytest tests/test_annotate_released.py`` holds the numbers of the
released tables, which are not part of this package.
"""

import json
import os

import annotate_factory as factory
import pandas as pd
import pytest

CHECKOUT = os.environ.get("VIT_LENS_DIFFUSIONLENS")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    return factory.checkout(tmp_path_factory.mktemp("checkout"))


def test_tables_by_hand(checkout, vit_lens, tmp_path):
    status, out, err = vit_lens("annotate", "released", checkout, "--out", tmp_path)
    assert status == 0, err
    assert (
        "people: 3 files, of which 1 repeat another's bytes and count once: 2 tables, 15 answers, 1 cells empty" in out
    )
    assert "GPT: 1 tables, 11 scores, 1 cells without a number, 0 of prompts that stand there twice" in out
    counts = json.loads((tmp_path / "counts.json").read_text())
    assert counts["human"]["repeats"] == ["positional_in_RelationCorrect_df_positional_in_1702650528.859.csv"]
    means = pd.read_csv(tmp_path / "means.csv").set_index(["table", "model", "layer"])
    by_layer = means.loc[("classes", "sd")]
    assert by_layer["mean"].tolist() == [0.25, 2 / 3, 0.75] and by_layer["n"].tolist() == [4, 3, 4]
    assert by_layer["prompts"].tolist() == [2, 2, 2] and by_layer["low"].isna().all()  # two prompts give no interval
    assert means.loc[("positional_in", "df"), "mean"].tolist() == [0, 0.5]
    # Right at 11: can 0 (first 7, stays 7), can 1 (first 3, stays 11), porcupine 0 (7 is empty: first 11, stays 11).
    found = pd.read_csv(tmp_path / "emergence.csv").set_index(["table", "model"])
    one = found.loc[("classes", "sd")]
    assert (one["first"], one["stays"], one["equal"]) == (7, pytest.approx(29 / 3), pytest.approx(2 / 3))
    assert (one["n"], one["lost"], one["wrong"]) == (3, 1, 1)
    assert found.loc[("positional_in", "df"), ["first", "stays", "n", "lost", "wrong"]].tolist() == [4, 4, 1, 0, 1]
    # 10 pairs: of 12 cells one has no human answer, another no score. Where people say yes GPT has 10 8 5 9 4 10, where
    # no 0 1 0 5.
    gpt = pd.read_csv(tmp_path / "gpt.csv").set_index("question")
    assert gpt.loc["every question", ["tables", "pairs"]].tolist() == [1, 10]
    wins = 6 + 6 + 6 + (4 + 0.5)  # of 24: all are above 0, 1 and 0; above 5 are 10 8 9 10, and 5 ties
    assert gpt.loc["IsCorrect", "auc"] == pytest.approx(wins / 24)
    assert gpt.loc["IsCorrect", "accuracy"] == 0.8  # 4 for yes, and 5 for no, are wrong
    page = (tmp_path / "curves.html").read_text()
    assert "Share of pictures that people judged right" in page and "classes, Stable Diffusion" in page


def test_emergence_against_a_loop():
    """Random tables with holes, row by row."""
    import numpy as np

    from vit_lens.studies.annotate import emergence

    generator = np.random.default_rng(0)
    for _ in range(5):
        rows, firsts, stays, lost, wrong = [], [], [], 0, 0
        for prompt in "abcdefg":
            for seed in range(3):
                row = {layer: int(generator.integers(2)) for layer in (3, 7, 11, 15) if generator.random() > 0.2}
                rows += [(prompt, seed, layer, value) for layer, value in row.items()]
                if row.get(15) == 1:
                    layers = sorted(row)
                    firsts.append(next(layer for layer in layers if row[layer]))
                    stays.append(next(layer for layer in layers if all(row[x] for x in layers if x >= layer)))
                elif row.get(15) == 0:
                    wrong, lost = wrong + 1, lost + any(row.values())
        cells = pd.DataFrame(rows, columns=["prompt", "seed", "layer", "value"]).sample(frac=1, random_state=1)
        found = emergence(cells)
        assert found.first.value == pytest.approx(np.mean(firsts)) and found.stays.value == pytest.approx(
            np.mean(stays)
        )
        assert found.equal.value == pytest.approx(np.mean(np.equal(firsts, stays)))
        assert (found.n, found.lost, found.wrong) == (len(firsts), lost, wrong)
        assert found.first.low <= found.first.value <= found.first.high


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("human_annotations/notes.csv", factory.HUMAN, "is named otherwise than the released tables"),
        ("human_annotations/classes_IsCorrect_sd_classes_17.5.csv", factory.HUMAN[:-1], "question differently"),
        ("human_annotations/famous_IsHuman_sd.csv", [*factory.HUMAN, factory.HUMAN[-1]], "two lines with one seed"),
        ("human_annotations/famous_IsHuman_sd.csv", [factory.HUMAN[0], ["A", "0", "2", "1", "0"]], "2: 2 at layer 7"),
        ("human_annotations/famous_IsHuman_sd.csv", [factory.HUMAN[0], ["A", "0", "x", "1", "0"]], "neither 0 nor 1"),
        ("human_annotations/famous_IsHuman_sd.csv", [["prompt", "late", "seed"]], "expected prompt, layers as numbers"),
        ("human_annotations/famous_IsHuman_sd.csv", [["prompt", "3", "seed"], ["A", "1", "?"]], "the seed is '?'"),
        ("gpt_annotations/famous_IsHuman_sd.csv", [factory.GPT[0], ["A", "0", "11", "1", "0"]], "11 at layer 7"),
    ],
)  # fmt: skip
def test_tables_that_are_not_as_released(name, lines, message, tmp_path):
    from vit_lens.errors import StudyError
    from vit_lens.studies.annotate import recompute

    factory.write(factory.checkout(tmp_path / "c") / name, lines)
    with pytest.raises(StudyError, match=message):
        recompute(tmp_path / "c", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_scores_of_a_prompt_that_stands_there_twice_are_left_out(tmp_path):
    from vit_lens.studies.annotate import read_released

    factory.write(
        factory.checkout(tmp_path) / "gpt_annotations/auto_prompts_classes_IsCorrect_sd.csv",
        [*factory.GPT, ["A can.", "1", "2", "3", "0"]],
    )
    (table,) = read_released(tmp_path, "gpt").tables
    assert (
        table.twice == 6 and len(table.cells) == 8 and not (table.cells.query("seed == 0")["prompt"] == "A can.").any()
    )


def test_a_folder_without_tables(tmp_path):
    from vit_lens.errors import StudyError
    from vit_lens.studies.annotate import recompute

    with pytest.raises(StudyError, match=r"give a checkout of github\.com/tokeron/DiffusionLens"):
        recompute(tmp_path, tmp_path / "out")


# Shares by layer and the largest n, two digits; SD has layers 3, 7, ..., 23, DeepFloyd 0, 4, ..., 24.
MEANS = {
    ("classes", "IsCorrect", "sd"): (".12 .52 .76 .81 .95 .97", 176),
    ("positional_common_animals", "IsCorrectAnimal", "sd"): (".08 .22 .46 .65 .93 .96", 72),
    ("positional_uncommon_animals", "IsCorrectAnimal", "sd"): (".03 .04 .23 .57 .74 .89", 100),
    ("positional_uncommon_animals", "IsAnimal", "sd"): (".00 .08 .47 .79 .93 .98", 108),
    ("positional_single_color", "IsCorrect", "sd"): (".03 .11 .25 .34 .39 .89", 152),
    ("positional_two_colors", "IsCorrect", "sd"): (".00 .01 .00 .11 .18 .37", 152),
    ("positional_in", "RelationCorrect", "sd"): (".01 .06 .24 .46 .48 .69", 72),
    ("positional_on", "RelationCorrect", "sd"): (".01 .12 .29 .47 .74 .78", 79),
    ("famous", "IsHuman", "sd"): (".26 .97 1.00 .98 .99 1.00", 124),
    ("famous", "IsSameStyle", "sd"): (".10 .73 .74 .60 .92 .97", 124),
    ("famous", "IsCorrect", "sd"): (".00 .03 .07 .15 .54 .60", 72),
    ("syntax_head", "IsCorrect", "sd"): (".01 .15 .28 .48 .55 .79", 140),
    ("classes", "IsCorrect", "df"): (".34 .27 .86 .88 .89 .96 .95", 176),
    ("positional_common_animals", "IsCorrectAnimal", "df"): (".01 .08 .60 .69 .75 .82 .89", 72),
    ("positional_uncommon_animals", "IsCorrectAnimal", "df"): (".01 .00 .07 .23 .44 .59 .66", 100),
    ("positional_uncommon_animals", "IsAnimal", "df"): (".03 .01 .34 .44 .70 .84 .84", 108),
    ("positional_single_color", "IsCorrect", "df"): (".19 .18 .70 .69 .79 .74 .86", 152),
    ("positional_two_colors", "IsCorrect", "df"): (".03 .03 .17 .14 .18 .31 .59", 152),
    ("positional_in", "RelationCorrect", "df"): (".01 .06 .21 .21 .31 .56 .76", 72),
    ("positional_on", "RelationCorrect", "df"): (".03 .13 .38 .29 .44 .58 .77", 80),
    ("famous", "IsHuman", "df"): (".09 .10 .98 .99 1.00 1.00 1.00", 124),
    ("famous", "IsCorrect", "df"): (".00 .00 .00 .01 .08 .26 .78", 72),
    ("syntax_head", "IsCorrect", "df"): (".10 .11 .46 .39 .50 .64 .85", 140),
}
EMERGENCE = {  # first / stays / share equal, n
    ("classes", "IsCorrect"): ("9.3 11.7 .78 171", "5.1 8.6 .66 167"),
    ("positional_common_animals", "IsCorrectAnimal"): ("12.9 14.0 .88 69", "10.7 12.2 .88 64"),
    ("positional_uncommon_animals", "IsCorrectAnimal"): ("15.4 16.4 .88 89", "16.1 16.9 .91 66"),
    ("positional_on", "RelationCorrect"): ("14.5 17.6 .71 62", "13.5 17.5 .68 60"),
    ("positional_single_color", "IsCorrect"): ("16.6 19.4 .71 136", "7.7 12.7 .62 130"),
    ("positional_two_colors", "IsCorrect"): ("20.1 21.0 .89 56", "17.6 21.2 .72 90"),
}


@pytest.mark.skipif(CHECKOUT is None, reason="needs a checkout of DiffusionLens: VIT_LENS_DIFFUSIONLENS=FOLDER")
def test_the_released_tables_as_published(tmp_path):
    from vit_lens.studies.annotate import recompute

    found = recompute(CHECKOUT, tmp_path)
    people, gpt = found.counts["human"], found.counts["gpt"]
    assert (people["files"], people["tables"], len(people["repeats"]), people["empty"]) == (78, 58, 20, 354)
    assert (gpt["files"], gpt["tables"], len(gpt["repeats"])) == (58, 58, 0)
    keys = ["table", "question", "model"]
    means, rows = found.means.set_index(keys).sort_index(), found.emergence.set_index(keys)
    for place, (shares, n) in MEANS.items():
        part = means.loc[place].sort_values("layer")
        assert [f"{share:.2f}".replace("0.", ".", 1) for share in part["mean"]] == shares.split(), place
        assert part["n"].max() == n, place
        assert part["layer"].tolist() == (list(range(3, 24, 4)) if place[2] == "sd" else list(range(0, 25, 4)))
    for place, both in EMERGENCE.items():
        for model, told in zip(("sd", "df"), both, strict=True):
            row = rows.loc[(*place, model)]
            said = f"{row['first']:.1f} {row['stays']:.1f} {row['equal']:.2f} {int(row['n'])}".replace(" 0.", " .")
            assert said == told, (place, model)
    against = found.gpt.set_index("question")
    pooled = against.loc["every question"]
    assert (pooled["tables"], pooled["pairs"]) == (48, 34314)
    assert (round(pooled["auc"], 3), round(pooled["accuracy"], 3)) == (0.896, 0.842)
    by_question = against["auc"].drop("every question")
    assert (round(by_question.min(), 2), round(by_question.max(), 2)) == (0.84, 0.93)
