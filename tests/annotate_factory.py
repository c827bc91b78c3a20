"""Small records of prompts, tables of answers, and a checkout with tables as Toker et al. 2024 released them."""

import csv
import functools
import io

import test_text_sweep

PROMPTS = test_text_sweep.PROMPTS
HOSTILE = "</script><img src=x onerror=alert(1)>\"'&"


def swept(out, **options):
    """A record of two prompts, two sites and a control, of a tiny pipeline with random weights."""
    import vit_lens as vl

    return test_text_sweep.swept(out, **{"controls": vl.Controls(kinds=["random"])} | options)


def write(path, lines):
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.getvalue(), encoding="utf-8")
    return path


def answered(path, sheet, answer, annotator="ada", only=None):
    """Answer every question of a sheet by a function of item and question."""
    lines = [["annotator", "item", "question", "answer", "page"]]
    for item, question in sheet.tasks:
        if only is None or only(item):
            lines.append([annotator, item.item, question.question, answer(item, question), sheet.page])
    return write(path, lines)


# Two prompts with two seeds each, and layers 3, 7, 11. Worked out by hand in test_annotate_released.py.
HUMAN = [
    ["prompt", "3", "7", "11", "seed"],
    ["A can.", "0", "1", "1", "0"],
    ["A can.", "1", "0", "1", "1"],
    ["A porcupine.", "0", "", "1", "0"],
    ["A porcupine.", "0", "1", "0", "1"],
]
GPT = [
    ["prompt", "3", "7", "11", "seed"],
    ["A can.", "0", "10", "8.0", "0.0"],
    ["A can.", "5", "1", "9", "1.0"],
    ["A porcupine.", "I cannot see pictures", "7", "4", "0.0"],
    ["A porcupine.", "0", "10", "5", "1.0"],
]
DEEP = [["prompt", "0", "4", "seed"], ["A can.", "0", "1", "0"], ["A can.", "0", "0", "1"]]


@functools.cache
def _names():
    stamp = "positional_in_1702650528.85"
    return (
        ("human_annotations/classes_IsCorrect_sd.csv", HUMAN),
        (f"human_annotations/positional_in_RelationCorrect_df_{stamp}1.csv", DEEP),
        (f"human_annotations/positional_in_RelationCorrect_df_{stamp}9.csv", DEEP),
        ("gpt_annotations/auto_prompts_classes_IsCorrect_sd.csv", GPT),
    )


def checkout(folder):
    for name, lines in _names():
        write(folder / name, lines)
    return folder
