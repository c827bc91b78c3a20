"""How far a linear prediction is from what patching does: relative error and cosine, by site, with intervals."""

__all__ = ["PatchingError", "summarised"]

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.errors import LensError
from vit_lens.files import check_fields

if TYPE_CHECKING:
    import pandas as pd

_DRAWS = 1000
_WIDTHS = (14, 19, 6, 19, 6, 14, 6)
_COLUMNS = ("site", "of", "by", "effect", "error", "error_low", "error_high", "cosine", "cosine_low", "cosine_high")


@dataclass(frozen=True, kw_only=True)
class PatchingError:
    """The error of linear predictions against true patching, on held-out images.

    A site's output at all rows of one image is replaced by that of the next image, the model runs on, and the change
    is compared with its prediction: of ``last``, what the output is read from, and of ``embed``, the output. It is
    predicted ``by`` the averaged Jacobian and by the ``direct`` path, on which later blocks do nothing (what the logit
    lens and the steering lens go by). The relative error is the norm of the difference over the norm of the true
    change: predicting no change at all has error 1 and no cosine. Intervals are 95 %, by bootstrap over pairs.

    Attributes:
        n: The number of pairs of images.
        images: Sixteen digits of every held-out image.
        rows: One for each site, of ``last`` and ``embed``, by ``jacobian`` and ``direct``: the mean norm of the true
            change, and mean and interval of error and cosine.

    Raises:
        LensError: Rows are not what they should be.

    >>> error = vl.JacobianLens.fit(model, images * 1, held_out=pixels + 0.1).jacobians.error
    >>> error.n, error.frame().columns.tolist()[:5]
    (2, ['site', 'of', 'by', 'effect', 'error'])
    """

    n: int
    images: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]

    def __post_init__(self) -> None:
        if not all(tuple(row) == _COLUMNS for row in self.rows) or not 0 < self.n <= len(self.images):
            raise LensError("rows of an error against patching lack columns, or it is of no pairs; measure it again")
        numbers = [value for row in self.rows for name, value in row.items() if name not in ("site", "of", "by")]
        if not all(isinstance(one, (int, float)) and math.isfinite(one) for one in numbers):
            raise LensError("an error against patching is no finite number; measure it again")

    @classmethod
    def from_json(cls, said: Any) -> "PatchingError":
        """Make one of what :meth:`to_json` gave.

        Raises:
            LensError: It is something else.
        """
        return cls(**check_fields(cls, said, "an error against patching", LensError))

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)

    def frame(self) -> "pd.DataFrame":
        """Return a table with a row for each site, of and by."""
        import pandas as pd

        return pd.DataFrame(list(self.rows), columns=list(_COLUMNS))

    def __str__(self) -> str:
        told = {(row["site"], row["of"], row["by"]): row for row in self.rows}
        names = ("embedding, Jacobian", "direct", "its cosine", "direct", "last, Jacobian", "direct")
        lines = [
            f"error against patching on {self.n} pairs of held-out images: relative (0: exact, 1: as 'no change')",
            "and cosine of the change, with 95 % intervals; direct: as if later blocks did nothing",
            "  ".join(f"{name:{width}}" for name, width in zip(("site", *names), _WIDTHS, strict=True)).rstrip(),
        ]
        for site in dict.fromkeys(row["site"] for row in self.rows):
            ours, direct = told[site, "embed", "jacobian"], told[site, "embed", "direct"]
            cells = [
                site, _said(ours, "error"), f"{direct['error']:.2f}", _said(ours, "cosine"), f"{direct['cosine']:.2f}",
                f"{told[site, 'last', 'jacobian']['error']:.2f}", f"{told[site, 'last', 'direct']['error']:.2f}",
            ]  # fmt: skip
            lines.append("  ".join(f"{cell:{width}}" for cell, width in zip(cells, _WIDTHS, strict=True)).rstrip())
        return "\n".join(lines)


def _said(row: dict[str, Any], of: str) -> str:
    return f"{row[of]:.2f} [{row[f'{of}_low']:.2f}, {row[f'{of}_high']:.2f}]"


def summarised(
    site: str, true: Float[Tensor, "pair d"], predicted: Mapping[str, Float[Tensor, "pair d"]], of: str
) -> list[dict[str, Any]]:
    """Return a row for each prediction of a change.

    Args:
        site: Where it began.
        true: The change.
        predicted: Its predictions, by what made them.
        of: What changes.
    """
    true = true.double().cpu()
    found = []
    for by, change in predicted.items() if true.any() else ():
        change = change.double().cpu()
        squares = torch.stack([(change - true).square().sum(-1), true.square().sum(-1)])
        cosine = torch.nn.functional.cosine_similarity(change, true, dim=-1)
        error, cosine = _with_interval(squares, _ratio), _with_interval(cosine[None], _mean)
        values = (site, of, by, float(true.norm(dim=-1).mean()), *error, *cosine)
        found.append(dict(zip(_COLUMNS, values, strict=True)))
    return found


def _ratio(squares: Float[Tensor, "2 *draw pair"]) -> Float[Tensor, "*draw"]:
    off, size = squares.sum(-1)
    return (off / size.clamp(min=torch.finfo(size.dtype).tiny)).sqrt()


def _mean(values: Float[Tensor, "1 *draw pair"]) -> Float[Tensor, "*draw"]:
    return values[0].mean(-1)


def _with_interval(values: Float[Tensor, "number pair"], of: Callable[[Tensor], Tensor]) -> tuple[float, float, float]:
    """Return a statistic of pairs, and the 95 % interval of a bootstrap over them."""
    n, generator = values.shape[1], torch.Generator().manual_seed(0)
    drawn = of(values[:, torch.randint(n, (_DRAWS, n), generator=generator)])
    low, high = drawn.quantile(torch.tensor([0.025, 0.975], dtype=drawn.dtype)).tolist()
    return float(of(values)), low, high
