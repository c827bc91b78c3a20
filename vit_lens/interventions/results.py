"""Labelled results of sweeps: what each place does to the metric, for each image."""

__all__ = ["Effects", "PathEffects"]

from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from vit_lens.addresses import Site
from vit_lens.config import HookedTextConfig, TowerConfig
from vit_lens.errors import InterventionError
from vit_lens.interventions.receivers import spelled_receiver
from vit_lens.tokens import describe_position, image_config

_QUANTITIES = ("value", "effect", "recovered")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class _Sweep:
    """What both kinds of sweep share.

    Attributes:
        cfg: The configuration of the model.
        values: The metric under each intervention; without ``batch`` for a metric that gives one number.
        base: The metric of the unedited run.
        source: The metric of the run that activations come from; None for ablation.
    """

    cfg: TowerConfig
    values: Float[Tensor, "site place *batch"]
    base: Float[Tensor, "*batch"]
    source: Float[Tensor, "*batch"] | None

    @property
    def effect(self) -> Float[Tensor, "site place *batch"]:
        """The metric's change: ``values - base``."""
        return self.values - self.base

    @property
    def recovered(self) -> Float[Tensor, "site place *batch"]:
        """The share of the way from base to source: ``effect / (source - base)``; not finite where they agree.

        Raises:
            InterventionError: There is no source: this was an ablation.
        """
        if self.source is None:
            raise InterventionError("recovered is defined for patching, where there is a source; read .effect")
        return self.effect / (self.source - self.base)

    @property
    def _inputs(self) -> str:
        """How many images or prompts there are, for ``repr``."""
        what = "prompts" if isinstance(self.cfg, HookedTextConfig) else "images"
        return "" if self.values.ndim == 2 else f" x {self.values.shape[2]} {what}"

    def _of(self, what: str) -> Float[Tensor, "site place *batch"]:
        if what not in _QUANTITIES:
            raise InterventionError(f"what={what!r}; expected one of {', '.join(_QUANTITIES)}")
        return self.values if what == "value" else getattr(self, what)

    def _table(self, labels: list[list[dict[str, Any]]]) -> pd.DataFrame:
        numbers = {what: self._of(what) for what in _QUANTITIES if what != "recovered" or self.source is not None}
        rows = []
        for index, line in enumerate(labels):
            for place, label in enumerate(line):
                here = {what: number[index, place].reshape(-1).tolist() for what, number in numbers.items()}
                for image in range(len(here["value"])):
                    own = {} if self.values.ndim == 2 else {"image": image}
                    rows.append(label | own | {what: number[image] for what, number in here.items()})
        return pd.DataFrame(rows)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Effects(_Sweep):
    """The effect of each site, as a whole or at each of some tokens; sweeps return it.

    Attributes:
        sites: The sites along the first axis of ``values``.
        positions: The positions (on the axis ``pos``) along the second axis of ``values``; None for whole sites, which
            have one column.
        cfg: The configuration of the model.
        values: The metric under each intervention; without ``batch`` for a metric that gives one number.
        base: The metric of the unedited run.
        source: The metric of the run that activations come from; None for ablation.

    >>> toward = vl.interventions.cosine_to(model(pixels[1:]))
    >>> found = vl.interventions.patch_each(model, pixels[:1], pixels[1:], toward, "L6.attn", each="patch")
    >>> found.tensor().shape, found.maps().shape  # [layer token batch] and [layer row column batch]
    (torch.Size([1, 16, 1]), torch.Size([1, 4, 4, 1]))
    >>> found.frame()[["site", "token"]].head(1).values.tolist()
    [['L6.attn', '(0, 0)']]
    """

    sites: tuple[Site, ...]
    positions: tuple[int, ...] | None

    def tensor(self, kind: str | None = None, what: str = "effect") -> Float[Tensor, "*axes"]:
        """Return the sites of one kind on a grid: ``[layer head]`` for heads, ``[layer]`` for the rest.

        Behind follow ``[token]`` where tokens were swept, and ``[batch]``.

        Args:
            kind: The kind of site: ``head``, ``attn``, ``mlp``, ``resid_pre``, ...; None where there is only one.
                Attention pooling has kinds of its own: ``pool_head`` gives ``[head]``.
            what: The quantity: ``value`` (the metric), ``effect`` or ``recovered``.

        Raises:
            InterventionError: The sites of this kind are missing, or do not fill a grid.
        """
        kinds = list(dict.fromkeys(site.kind for site in self.sites))
        if kind is None and len(kinds) > 1:
            raise InterventionError(f"there are sites of several kinds; name one: {', '.join(kinds)}")
        if kind not in (None, *kinds):
            raise InterventionError(f"no sites of kind {kind!r} here; there are {', '.join(kinds)}")
        rows = {site: row for row, site in enumerate(self.sites) if site.kind == (kind or kinds[0])}
        layers = sorted({site.layer for site in rows if site.layer is not None})
        heads = sorted({site.head for site in rows if site.head is not None})
        shape = [len(axis) for axis in (layers, heads) if axis]
        order = sorted(rows, key=lambda site: (site.layer or 0, site.head or 0))
        if len(rows) != torch.Size(shape).numel():
            raise InterventionError(f"the sites of kind {kind!r} do not fill a grid of layers and heads: use .frame()")
        found = self._of(what)[[rows[site] for site in order]]
        found = found.reshape(*shape, *found.shape[1:])
        return found.squeeze(len(shape)) if self.positions is None else found

    def maps(self, kind: str | None = None, what: str = "effect") -> Float[Tensor, "*axes"]:
        """Return :meth:`tensor` with the tokens laid out as the image's ``[row column]``.

        Args:
            kind: The kind of site, as for :meth:`tensor`.
            what: The quantity: ``value`` (the metric), ``effect`` or ``recovered``.

        Raises:
            InterventionError: Not every patch was swept.
        """
        cfg = image_config(self.cfg, "maps")
        held = {position: column for column, position in enumerate(self.positions or ())}
        if missing := [p for p in range(cfg.n_prefix, cfg.n_ctx) if p not in held]:
            raise InterventionError(
                f"maps need every patch, and {len(missing)} of {cfg.n_patches} were not swept: pass each='patch'"
            )
        found = self.tensor(kind, what)
        axis = found.ndim - 1 - (self.values.ndim == 3)
        columns = torch.tensor([held[p] for p in range(cfg.n_prefix, cfg.n_ctx)], device=found.device)
        return found.index_select(axis, columns).unflatten(axis, cfg.grid)

    def frame(self) -> pd.DataFrame:
        """Return a table with one row per site, token and image.

        Columns: site, kind, layer, head; token, pos, row, column where tokens were swept; image; value, effect, and
        recovered for patching.
        """
        labels = []
        for site in self.sites:
            label = {"site": str(site), "kind": site.kind, "layer": site.layer, "head": site.head}
            tokens = [{}] if self.positions is None else [self._token(position) for position in self.positions]
            labels.append([label | token for token in tokens])
        return self._table(labels)

    def _token(self, position: int) -> dict[str, Any]:
        image = image_config(self.cfg, "a table of tokens")
        patch = position - image.n_prefix
        row, column = divmod(patch, image.grid[1]) if patch >= 0 else (None, None)
        return {"token": describe_position(position, self.cfg), "pos": position, "row": row, "column": column}

    def __repr__(self) -> str:
        tokens = "" if self.positions is None else f" x {len(self.positions)} tokens"
        return f"Effects({len(self.sites)} sites{tokens}{self._inputs}; .tensor(), .maps(), .frame())"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class PathEffects(_Sweep):
    """The effect of each path from a sender to a receiver.

    Attributes:
        senders: The sites along the first axis of ``values``.
        receivers: The receivers along its second axis, written as addresses are.
        cfg: The configuration of the model.
        values: The metric with each path patched; without ``batch`` for a metric that gives one number.
        base: The metric of the unedited run.
        source: The metric of the run that activations come from.

    >>> toward = vl.interventions.cosine_to(model(pixels[1:]))
    >>> found = vl.interventions.patch_paths(model, pixels[:1], pixels[1:], toward, "heads", "L6.mlp")
    >>> found.tensor("L6.mlp").shape, found.receivers
    (torch.Size([8, 8, 1]), ('L6.mlp',))
    """

    senders: tuple[Site, ...]
    receivers: tuple[str, ...]

    def tensor(
        self, receiver: str | None = None, kind: str | None = None, what: str = "effect"
    ) -> Float[Tensor, "*axes"]:
        """Return the senders of one kind on a grid for one receiver; see :meth:`Effects.tensor`.

        Args:
            receiver: One of :attr:`receivers`; None where there is only one.
            kind: The kind of sender, such as ``head``; None where there is only one.
            what: The quantity: ``value`` (the metric), ``effect`` or ``recovered``.

        Raises:
            InterventionError: The receiver is not one of these; it may be left out where there is only one.
        """
        names = list(self.receivers)
        chosen = names[0] if receiver is None and len(names) == 1 else receiver and spelled_receiver(receiver)
        if chosen not in names:
            raise InterventionError(f"receiver={receiver!r}; expected one of {', '.join(names)}")
        column = names.index(chosen)
        one = Effects(
            sites=self.senders, positions=None, cfg=self.cfg, values=self.values[:, column : column + 1],
            base=self.base, source=self.source,
        )  # fmt: skip
        return one.tensor(kind, what)

    def frame(self) -> pd.DataFrame:
        """Return a table with one row per sender, receiver and image.

        Columns: sender, kind, layer, head, receiver, image, value, effect, recovered.
        """
        labels = [{"sender": str(x), "kind": x.kind, "layer": x.layer, "head": x.head} for x in self.senders]
        return self._table([[label | {"receiver": name} for name in self.receivers] for label in labels])

    def __repr__(self) -> str:
        paths = f"{len(self.senders)} senders x {len(self.receivers)} receivers"
        return f"PathEffects({paths}{self._inputs}; .tensor(), .frame())"
