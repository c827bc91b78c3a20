"""What a sweep within a budget has drawn so far, in words."""

__all__ = ["budget_words", "unfinished_words"]

from vit_lens.records.record import Record

_GO_ON = "Run the same command again to refine more, or without the budget to refine all."
_OLD = "The record has format 1, in which this version does not go on: sweep into a new directory for the rest."


def budget_words(record: Record) -> str:
    """Say what a budget was, what was drawn of it, and how to go on; empty for a record without one.

    >>> record = vl.sweep(
    ...     model, decoder, images[:1], lens="dsl:alpha=10", sites=["L7H0", "L7H1"], budget=1, out=tmp / "budget",
    ...     drawing=vl.Drawing(settings=decoder.settings(steps=5), batch_size=1),
    ... )
    >>> print(vl.records.budget_words(record))
    Drawn to a budget of 1 pictures. 1 of 2 pictures are refined (5 steps, guidance 1.5), 1 are coarse (3 steps, no
    guidance). Pictures of 1 of 1 input: 2 of 2 sites. Run the same command again to refine more, or without the budget
    to refine all.
    """
    plan, table = record.manifest["batch_plan"].get("budget"), record.table
    if plan is None:
        return ""
    counts = {drawn: int((table["drawn"] == drawn).sum()) for drawn in ("coarse", "full")}
    given = [budget or "without one" for budget in record.manifest.get("budgets", [])]
    words = f"Drawn to a budget of {' and then '.join(given)}. "
    words += f"{counts['full']} of {len(table)} pictures are refined ({record.manifest['decoder']['words']})"
    if record.complete:
        words += ", which is all."
    else:
        missing = len(table) - sum(counts.values())
        words += f", {counts['coarse']} are coarse ({plan['coarse']['words']})" if plan["coarse"] else ""
        words += f"{f', {missing} not drawn yet' if missing else ''}. {_reached(record)}"
    if shared := int(table["same_as"].notna().sum()):
        words += f" {shared} share{'s' * (shared == 1)} the picture of another row, whose embedding is all but equal "
        words += f"(cosine at least {plan['same_above']:g}, and as close in length)."
    if record.complete:
        return words
    return f"{words} {_OLD if record.manifest['format'] == 1 else _GO_ON}"


def unfinished_words(record: Record) -> str:
    """Say how to go on with a sweep that was interrupted.

    >>> record = vl.sweep(model, None, images[:1], lens="diffusion", sites="L7.resid_post", out=tmp / "interrupted")
    >>> vl.records.unfinished_words(record)
    'Run the same command again to go on, then write this page anew.'
    """
    if record.manifest["format"] == 1:
        return _OLD
    return "Run the same command again to go on, then write this page anew."


def _reached(record: Record) -> str:
    """Say what the pictures are of: how many inputs have some, and what of each has been drawn at its best."""
    table = record.table
    drawn = table.loc[table["drawn"] != ""]
    if drawn.empty:
        return "Nothing is drawn yet."
    controls = {name for name, reading in record.readings.items() if reading.control}
    n_inputs, of_all = drawn["input"].nunique(), len(record.manifest["inputs"])
    residual = table["site_type"].str.startswith("resid")
    kinds = {
        "readings of the residual stream": residual, "sites": ~residual & ~table["reading"].isin(controls),
        "controls": table["reading"].isin(controls),
    }  # fmt: skip
    parts = [
        f"{int((table['drawn'] != '')[rows].sum())} of {int(rows.sum())} {name}"
        for name, rows in kinds.items()
        if rows.any()
    ]
    return f"Pictures of {n_inputs} of {of_all} input{'s' * (of_all != 1)}: {', '.join(parts)}."
