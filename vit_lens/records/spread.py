"""One line for each picture's site, over the noise seeds that it was drawn with."""

__all__ = ["over_seeds"]

import pandas as pd

_SITE = ["input", "site", "reading"]
_DRAWN = ("cos_input", "faithfulness")


def over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with one row for each input, site and reading: numbers of pictures are means over noise seeds.

    ``faithfulness_low`` and ``faithfulness_high`` are the lowest and highest seed, ``n_seeds`` counts the seeds that
    were drawn (0 in a record without pictures). Everything else, the picture included, is that of the first seed.

    Args:
        table: That of a record, or rows of it.
    """
    if table.empty:
        return table.assign(faithfulness_low=[], faithfulness_high=[], n_seeds=[])
    groups = table.groupby(_SITE, sort=False)
    drawn = {name: groups[name].transform("mean") for name in _DRAWN}
    lowest, highest = groups["faithfulness"].transform("min"), groups["faithfulness"].transform("max")
    n_seeds = groups["faithfulness"].transform("count").astype("int64")
    whole = table.assign(**drawn, faithfulness_low=lowest, faithfulness_high=highest, n_seeds=n_seeds)
    return whole.loc[~groups.cumcount().astype(bool)]
