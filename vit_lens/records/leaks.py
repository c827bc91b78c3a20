"""The leak index of a record's sites over its images, with intervals."""

__all__ = ["leaks"]

from typing import Any

import pandas as pd

from vit_lens.controls import CONTROLS
from vit_lens.estimates import leak_estimate
from vit_lens.metrics import control_columns
from vit_lens.records.record import Record


def leaks(record: Record, *, seed: int = 0) -> pd.DataFrame:
    """Return the leak index of every site and control over the images of a record: one row each.

    Columns: reading, site, control, leak, low, high (its 95 % interval over images), n, and why it is missing: it is
    not applicable where the interval of its denominator includes 0, or there are fewer than 5 images. It needs what
    ``S`` needs: a sweep with a gallery, and means of the lens.

    Args:
        record: The record.
        seed: Of the resamples.

    >>> record = vl.sweep(model, None, images, lens="dsl:alpha=10", sites="L7H0", out=tmp / "leaks")
    >>> vl.records.leaks(record)[["site", "control", "why"]].values.tolist()[0]
    ['L7H0', 'random', 'not applicable: no defined value']
    """
    table, rows = record.table, []
    first: Any = table[~table.duplicated(["input", "reading", "site"])]  # noise seeds have no part in it
    own = first[first["reading"].map(lambda name: not record.readings[name].control)]
    own = own[~own["site_type"].str.startswith("resid")]
    for (reading, site), of_site in own.groupby(["reading", "site"], sort=False):
        for name in CONTROLS:
            columns = control_columns(name)
            if not {columns.centred, "S_lens_clean"} <= set(table.columns):
                continue  # an earlier version's
            control, centred = (of_site[column].to_numpy(float) for column in (columns.centred, "S_lens_clean"))
            found = leak_estimate(control, centred, seed=seed)
            rows.append(
                {
                    "reading": reading, "site": site, "control": name, "leak": found.value, "low": found.low,
                    "high": found.high, "n": len(of_site), "why": found.why or "",
                }
            )  # fmt: skip
    return pd.DataFrame(rows, columns=["reading", "site", "control", "leak", "low", "high", "n", "why"])
