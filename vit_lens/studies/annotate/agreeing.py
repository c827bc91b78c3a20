"""How far annotators agree: Fleiss' kappa of all, and of every two, people or judges."""

__all__ = ["EVERY_QUESTION", "agreement"]

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int

from vit_lens.studies.annotate.answers import ANSWERS
from vit_lens.studies.annotate.kappa import fleiss_kappa, raw_agreement

EVERY_QUESTION = "every question"
_WITH, _WITHOUT = "yes, no, cannot tell", "yes, no"
_CATEGORIES = {_WITH: ANSWERS, _WITHOUT: ANSWERS[:2]}


def agreement(table: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Return Fleiss' kappa by question, of all annotators and of every two.

    "Cannot tell" is a category of its own in rows that say so, and left out in the others. What is rated is a question
    about a picture; intervals of 95 % are over prompts, drawn with replacement, each with all its pictures.

    Args:
        table: What :func:`vit_lens.studies.annotate.joined` returned.
        seed: Of the draws.

    Returns:
        The columns ``question, raters, categories, kappa, low, high, agreement, rated_twice, unsure, why``:
        ``agreement`` is the chance that two ratings are equal, ``rated_twice`` of how many pictures and questions that
        is the mean, ``unsure`` the share of "cannot tell", ``why`` what is missing.
    """
    names = sorted(set(table["annotator"]))
    groups = [names, *(combinations(names, 2) if len(names) > 2 else ())]
    questions = sorted(set(table["question"]))
    wanted = [*([EVERY_QUESTION] if len(questions) > 1 else []), *questions]
    return pd.DataFrame([
        _row(table, question, list(raters), categories, seed)
        for question in wanted for raters in groups for categories in _CATEGORIES
    ])  # fmt: skip


def _row(table: pd.DataFrame, question: str, raters: Sequence[str], categories: str, seed: int) -> dict[str, Any]:
    told: Any = table.loc[table["annotator"].isin(raters)]
    told = told if question == EVERY_QUESTION else told[told["question"] == question]
    unsure = float((told["answer"] == "unsure").mean()) if len(told) else None
    counted = told[told["answer"].isin(_CATEGORIES[categories])]
    numbers, prompts = _counts(counted, _CATEGORIES[categories])
    found = fleiss_kappa(numbers, seed=seed, groups=prompts)
    raw, n = raw_agreement(numbers)
    return {
        "question": question, "raters": ", ".join(raters), "categories": categories, "kappa": found.value,
        "low": found.low, "high": found.high, "agreement": raw, "rated_twice": n, "unsure": unsure, "why": found.why,
    }  # fmt: skip


def _counts(told: pd.DataFrame, categories: Sequence[str]) -> tuple[Int[np.ndarray, "rated category"], list[str]]:
    """Count the ratings of each picture and question in each category; return them, and the prompt of each."""
    places = told.groupby(["item", "question"], sort=True).ngroup().to_numpy()
    counts = np.zeros((len(set(places)), len(categories)), dtype=np.int64)
    np.add.at(counts, (places, [categories.index(answer) for answer in told["answer"]]), 1)
    prompts = dict(zip(places.tolist(), told["prompt"], strict=True))
    return counts, [prompts[place] for place in range(len(counts))]
