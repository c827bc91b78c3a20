"""The questions that are asked about a prompt's pictures: one by default, or those of a table."""

__all__ = ["SHOWN", "ask"]

import os
from collections.abc import Sequence

from vit_lens.errors import StudyError
from vit_lens.studies.annotate.sheet import Question
from vit_lens.studies.annotate.tables import read_table

SHOWN = "shown"
"""The name of the question that is asked by default: whether the picture shows what the prompt says."""
_TEXT = "Does the picture show: {prompt}?"


def ask(prompts: Sequence[str], table: str | os.PathLike[str] | None = None) -> tuple[Question, ...]:
    """Return the questions about each prompt.

    Args:
        prompts: The prompts whose pictures are shown.
        table: A CSV with the columns ``prompt,question,text`` and maybe ``caption,alternatives``. A line whose prompt
            is empty holds for every prompt. ``{prompt}`` stands for the prompt in text, caption and alternatives;
            alternatives have ``|`` between them. None asks ``Does the picture show: {prompt}?``.

    Raises:
        StudyError: A line names no prompt of the records, or asks nothing; a question is asked twice; nothing is asked
            about a prompt.

    >>> from vit_lens.studies.annotate.questions import ask
    >>> ask(["a red star"])[0].text
    'Does the picture show: a red star?'
    """
    if table is None:
        return tuple(_question(prompt, SHOWN, _TEXT, "", "") for prompt in prompts)
    _, lines = read_table(table, needed=["prompt", "question", "text"], optional=["caption", "alternatives"])
    found: dict[tuple[str, str], Question] = {}
    for where, cells in lines:
        if not (cells["question"].strip() and cells["text"].strip()):
            raise StudyError(f"{where}: no question; expected its name, such as colour, and the text that is asked")
        if cells["prompt"] and cells["prompt"] not in prompts:
            raise StudyError(
                f"{where}: no picture is of the prompt {cells['prompt']!r:.80}; give it as the record has it"
            )
        for prompt in [cells["prompt"]] if cells["prompt"] else prompts:
            one = _question(
                prompt,
                cells["question"].strip(),
                cells["text"],
                cells.get("caption", ""),
                cells.get("alternatives", ""),
            )
            if (prompt, one.question) in found:
                raise StudyError(f"{where}: {one.question!r} is asked twice of {prompt!r:.80}; name each question anew")
            found[prompt, one.question] = one
    asked = {prompt for prompt, _ in found}
    if missing := [prompt for prompt in prompts if prompt not in asked]:
        raise StudyError(f"{table}: nothing is asked about {missing[0]!r:.80}; give a line for it, or an empty prompt")
    return tuple(found.values())


def _question(prompt: str, name: str, text: str, caption: str, alternatives: str) -> Question:
    def fill(words: str) -> str:
        return words.strip().replace("{prompt}", prompt)

    others = tuple(dict.fromkeys(fill(one) for one in alternatives.split("|") if one.strip()))
    own = fill(caption) or prompt
    if own in others:
        raise StudyError(
            f"{own!r:.80} is among the alternatives to itself, in the question {name!r} about {prompt!r:.80}"
        )
    return Question(prompt=prompt, question=name, text=fill(text), caption=own, alternatives=others)
