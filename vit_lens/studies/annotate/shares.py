"""How often the answer is yes, by question and site, beside the controls, with intervals over prompts."""

__all__ = ["EVERYONE", "joined", "means", "share_over_prompts"]

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from vit_lens.estimates import Estimate, bootstrap
from vit_lens.studies.annotate.answers import Answer
from vit_lens.studies.annotate.sheet import Sheet

EVERYONE = "everyone"
"""The rows of all annotators together, where there are several."""


def joined(answers: Sequence[Answer], sheet: Sheet) -> pd.DataFrame:
    """Return a row for each answer with everything that the key knows of its picture."""
    rows = []
    for one in answers:
        item = sheet.by_item[one.item]
        record = sheet.records[item.record]
        rows.append({
            "annotator": one.annotator, "question": one.question, "answer": one.answer, "score": one.score,
            "prompt": item.prompt, "encoder": record.encoder, "lens": item.lens, "site": item.site,
            "layer": item.layer, "control": item.control, "seed": item.seed, "item": item.item,
            "record": record.path, "row": item.row, "text": sheet.by_prompt[item.prompt][one.question].text,
        })  # fmt: skip
    return pd.DataFrame(rows)


def means(table: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Return the share of yes among yes and no, by annotator, question and site, in the order of the layers.

    The 95 % intervals are over prompts drawn with replacement: pictures of one prompt with several seeds are not
    independent. "Cannot tell" counts as neither; ``unsure`` is its share of all answers.

    Args:
        table: What :func:`joined` returned.
        seed: Of the draws.

    Returns:
        The columns ``annotator, question, encoder, lens, site, layer, mean, low, high, unsure, answers, pictures,
        prompts``, and of each control ``NAME: mean``, ``NAME: low``, ``NAME: high``, ``NAME: answers``.
    """
    names = sorted(set(table["annotator"]))
    parts = [(EVERYONE, table)] if len(names) > 1 else []
    parts += [(name, table.loc[table["annotator"] == name]) for name in names]
    rows = [row for name, part in parts for row in _rows(part, name, seed)]
    return pd.DataFrame(rows)


def _rows(table: pd.DataFrame, annotator: str, seed: int) -> Iterator[dict[str, Any]]:
    ordered = table.assign(later=table["site"].str.endswith("resid_pre").map({True: 0, False: 1}))
    groups: Any = ordered.groupby(["question", "encoder", "lens", "layer", "later", "site"], sort=True)
    for (question, encoder, lens, layer, _, site), group in groups:
        own = group[group["control"] == ""]
        found = _mean(own, seed)
        row = {
            "annotator": annotator, "question": question, "encoder": encoder, "lens": lens, "site": site,
            "layer": layer, "mean": found.value, "low": found.low, "high": found.high,
            "unsure": float((own["answer"] == "unsure").mean()) if len(own) else None, "answers": len(own),
            "pictures": own["item"].nunique(), "prompts": own["prompt"].nunique(),
        }  # fmt: skip
        for control in sorted(set(table["control"]) - {""}):
            beside = group[group["control"] == control]
            known = _mean(beside, seed)
            row |= {
                f"{control}: mean": known.value, f"{control}: low": known.low, f"{control}: high": known.high,
                f"{control}: answers": len(beside),
            }  # fmt: skip
        yield row


def _mean(answers: pd.DataFrame, seed: int) -> Estimate:
    told: Any = answers.loc[answers["answer"] != "unsure"]
    return share_over_prompts(told["answer"] == "yes", told["prompt"], seed=seed)


def share_over_prompts(values: pd.Series, prompts: pd.Series, *, seed: int = 0) -> Estimate:
    """Return the mean of values, and its interval over prompts drawn with replacement, each with all its values."""
    by_prompt = values.astype(float).groupby(prompts.to_numpy(), sort=True)
    sums, counts = by_prompt.sum().to_numpy(dtype=np.float64), by_prompt.count().to_numpy(dtype=np.float64)
    if not len(sums):
        return Estimate(None, why="no answer")
    return bootstrap(lambda some: float(sums[some].sum() / counts[some].sum()), len(sums), seed=seed)
