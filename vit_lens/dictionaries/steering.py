"""Steering: a direction is added to a stream while a model runs, or codes of a feature are set, scaled or ablated."""

__all__ = ["Mode", "difference_of_means", "steer"]

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vit_lens.addresses import Address, as_index, as_indices
from vit_lens.config import PatchEmbedConfig
from vit_lens.dictionaries.belonging import hook_name_of
from vit_lens.dictionaries.denoisers import Denoises, cells_of
from vit_lens.dictionaries.dictionary import Dictionary
from vit_lens.dictionaries.features import indices_of
from vit_lens.dictionaries.gates import Gate
from vit_lens.dictionaries.semantics import Provenance
from vit_lens.dictionaries.source import ActivationSource
from vit_lens.dictionaries.tokens import reads_text, rule_mask
from vit_lens.dictionaries.updates import OwnPart
from vit_lens.errors import DictionaryError, expect, nearest
from vit_lens.hooking import LoudHookedRootModule
from vit_lens.numerics import without_autocast
from vit_lens.tokens import RUN_IDS, Tokens, image_config, resolve_tokens

Mode = Literal["add", "clamp", "scale", "ablate"]
Region = tuple[int, int, int, int]
_Where = Callable[[Tensor, HookPoint], Bool[Tensor, "#batch #pos 1"] | None]
_Write = Callable[[Tensor, Tensor | None], Tensor | None]


class Steering:
    """The hook function of :func:`steer`.

    Args:
        write: Returns what is written, of what the dictionary is of and the tokens that are steered; None for nothing.
        part: Takes what the dictionary is of.
        where: Says which tokens are steered.
        gate: Says whether it acts in the pass that runs.
    """

    only_reads = True  # it returns a new tensor, and needs no copy of what it is given

    def __init__(self, write: _Write, part: OwnPart, where: _Where, gate: Gate):
        self.write, self.part, self.where, self.gate = write, part, where, gate
        self.at_steps = gate.steps or ()  # which a run that has them not is refused for
        self.branches = () if gate.branch is None else (gate.branch,)

    @without_autocast()
    def __call__(self, x: Tensor, hook: HookPoint) -> Tensor | None:
        own, _ = self.part.take(x, hook)
        if not self.gate():
            return None
        mask = self.where(x, hook)
        if (written := self.write(own, mask)) is None:
            return None
        return x + (written if mask is None else torch.where(mask, written, 0)).to(x.dtype)


def steer(
    model: LoudHookedRootModule, dictionary: Dictionary | str, feature: int | str | Address | Tensor,
    strength: float | int | None = None, *, mode: Mode = "add", tokens: Tokens | None = None,
    region: Region | None = None, at_steps: Sequence[int] | None = None,
    branch: Literal["cond", "uncond", "both"] | None = None, along: Float[Tensor, " d"] | None = None,
) -> list[tuple[str, Callable]]:  # fmt: skip
    """Return hooks that steer a model by a feature, for ``run_with_hooks(fwd_hooks=...)`` and ``hooks()``.

    ========== =========================================================================================================
    ``add``    ``strength`` times the mean norm of the steered tokens is added to each of them, along what the feature
               writes: the row of ``W_dec`` as it stands in the stream, at length 1. The norm is that of the run itself,
               at this hook point, in this step, of each input for itself; of a dictionary of updates, the update's.
    ``clamp``  the feature's code is set to ``strength``
    ``scale``  it is multiplied by ``strength``
    ``ablate`` it is set to 0; no ``strength``
    ========== =========================================================================================================

    The last three leave what the dictionary does not explain as it is, as :func:`spliced` does, and need no splice. At
    strength 0 (scale: 1) the run is the model's own, to the last bit. In a diffusion model the steps and the branch are
    those of the dictionary, as for :func:`spliced`, unless they are given. Hooks of several features may be joined, and
    act one after the other.

    A control is the same call with another direction: ``feature`` is then a tensor, such as a row of
    :func:`random_dictionary`, of :func:`untrained_control`, or a :func:`difference_of_means`. For codes it is
    ``along=``.

    Args:
        model: Any hooked model.
        dictionary: A dictionary of that model; or a hook point, or its address, for a direction alone.
        feature: The number or the address of a feature (``L5.f3796``); for ``add`` also a direction, of any length.
        strength: See above; may be negative.
        mode: See above.
        tokens: Which tokens are steered, in place of those that the dictionary is of: of images as
            :func:`vit_lens.tokens.resolve_tokens` has them, of prompts ``"eos"``, ``'"star"'`` or positions, of a
            denoiser positions.
        region: A part of the picture, ``(top, left, bottom, right)`` in patches of an image encoder or cells of a
            denoiser, counted from 0; the last two are the first row and column outside of it.
        at_steps: The steps of a diffusion model.
        branch: The branch of guidance, or "both".
        along: A direction, of any length, along which what a feature would write is written instead, as long as it is.

    Raises:
        DictionaryError: The dictionary is of another model, there is no such feature or mode, a strength is missing or
            one too many, or tokens and region are given both; or in the run, a region lies outside of the picture, or
            codes are to be edited at tokens that the dictionary is not of.
        InterventionError: An image encoder has no such token, or a prompt.
        VitLensError: Before a run of a diffusion model: it has no such step, or no such branch.

    >>> found = vl.dictionaries.random_dictionary(128, 40, k=4, site="blocks.5.hook_resid_post")
    >>> plain = model(pixels)
    >>> moved = model.run_with_hooks(pixels, fwd_hooks=steer(model, found, "L5.f17", 0.4, region=(0, 0, 2, 4)))
    >>> same = model.run_with_hooks(pixels, fwd_hooks=steer(model, found, 17, 0.0))
    >>> torch.equal(moved, plain), torch.equal(same, plain)
    (False, True)
    >>> steer(model, found, 17, 0.4, region=(2, 0, 6, 4))
    Traceback (most recent call last):
    vit_lens.errors.DictionaryError: region=(2, 0, 6, 4): (top, left, bottom, right) of a grid of 4 rows and 4 columns
    """
    expect(model, LoudHookedRootModule, "model", DictionaryError, "a hooked model")
    if mode not in get_args(Mode):
        raise DictionaryError(f"mode={mode!r}; nearest: {nearest(str(mode), get_args(Mode))}")
    amount = _strength(strength, mode)
    if isinstance(dictionary, str):
        name = hook_name_of(model, dictionary)
        origin = Provenance(site=name)
    else:
        expect(dictionary, Dictionary, "dictionary", DictionaryError, "a dictionary, or the name of a hook point")
        name, origin = dictionary.check(model), dictionary.origin
    part, gate = OwnPart(origin.stream), Gate(model, origin, at_steps, branch)
    allowed = None if mode == "add" else rule_mask(model, origin.tokens)
    where = _where(model, name, tokens, region, rule_mask(model, origin.tokens), allowed)
    hook = Steering(_writer(dictionary, feature, amount, mode, along), part, where, gate)
    return [*part.hooks(model, name), (name, hook)]


@torch.no_grad()
def difference_of_means(positives: ActivationSource, negatives: ActivationSource) -> Float[Tensor, " d"]:
    """Return the mean token of one source less that of another: the simplest direction that could stand for a concept.

    Args:
        positives: Tokens of inputs that have it.
        negatives: Tokens of the same site, of inputs that have it not.

    Raises:
        DictionaryError: The sources are of different hook points or widths.

    >>> rows = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    >>> one, other = (vl.ActivationSource.of_array(rows + shift) for shift in (2.0, 0.0))
    >>> difference_of_means(one, other).round(decimals=4)
    tensor([2., 2., 2., 2., 2., 2., 2., 2.])
    """
    sites = [source.provenance.site for source in (positives, negatives)]
    means = [_mean(source) for source in (positives, negatives)]
    if sites[0] != sites[1] or len(means[0]) != len(means[1]):
        raise DictionaryError(
            f"means of {sites[0]} of width {len(means[0])} and of {sites[1]} of width {len(means[1])} have no "
            "difference; give sources of one hook point"
        )
    return (means[0] - means[1]).float()


def _mean(source: ActivationSource) -> Float[Tensor, " d"]:
    total, n = torch.zeros(()), 0
    for batch in source.in_order():
        total, n = total + batch.tokens.double().sum(0).cpu(), n + len(batch.tokens)
    return total / n


# ---- what is written


def _strength(strength: Any, mode: str) -> float:
    if mode == "ablate":
        if strength is not None:
            raise DictionaryError(f"strength={strength!r} with mode='ablate', which sets codes to 0; leave it out")
        return 0.0
    try:
        found = float(strength)
    except (TypeError, ValueError):
        found = float("nan")
    if not abs(found) < float("inf"):
        raise DictionaryError(f"strength={strength!r} with mode={mode!r}; expected a finite number")
    return found


def _writer(dictionary: Dictionary | str, feature: Any, strength: float, mode: str, along: Tensor | None) -> _Write:
    is_direction = isinstance(feature, Tensor) and as_index(feature) is None
    width = None if isinstance(dictionary, str) else dictionary.d
    if along is not None and (is_direction or mode == "add"):
        raise DictionaryError("along= is for codes; with mode='add' give the direction itself as feature")
    if is_direction:
        if mode != "add":
            raise DictionaryError(
                f"a direction has no code: mode={mode!r} is of a feature; mode='add' takes directions"
            )
        return partial(_added, direction=_unit(feature, "feature", width), strength=strength)
    if isinstance(dictionary, str):
        raise DictionaryError(
            f"feature={feature!r} of the hook point {dictionary!r}: a direction is needed, a tensor [d]; features are "
            "of a dictionary"
        )
    (index,) = indices_of(dictionary, feature if isinstance(feature, (str, Address)) else [feature])
    if mode == "add":
        row = dictionary.W_dec[index]
        return partial(_added, direction=row / row.norm(), strength=strength)
    unit = None if along is None else _unit(along, "along", width)
    return partial(_edited, dictionary=dictionary, index=index, mode=mode, strength=strength, along=unit)


def _unit(direction: Tensor, what: str, width: int | None) -> Float[Tensor, " d"]:
    is_one = direction.ndim == 1 and direction.is_floating_point() and width in (None, len(direction))
    if not is_one or not bool(direction.isfinite().all()) or not float(direction.norm()) > 0:
        raise DictionaryError(
            f"{what} is {tuple(direction.shape)} {direction.dtype}; expected a feature, or a direction of finite "
            f"numbers [{'d' if width is None else width}] that are not all 0"
        )
    wide = direction.detach().to(torch.promote_types(direction.dtype, torch.float32))
    return wide / wide.norm()


def _added(own: Tensor, mask: Tensor | None, *, direction: Tensor, strength: float) -> Tensor | None:
    if own.shape[-1] != len(direction) or own.ndim not in (2, 3):
        raise DictionaryError(
            f"activations {tuple(own.shape)} and a direction of {len(direction)} numbers; expected [batch pos d]"
        )
    if strength == 0:
        return None
    norms = own.to(torch.promote_types(own.dtype, torch.float32)).norm(dim=-1, keepdim=True)
    if own.ndim == 3:
        of = torch.ones_like(norms) if mask is None else mask.expand_as(norms).to(norms)
        norms = (norms * of).sum(1, keepdim=True) / of.sum(1, keepdim=True).clamp(min=1)
    return (strength * norms * direction.to(norms)).expand(own.shape)


def _edited(
    own: Tensor, mask: Tensor | None, *, dictionary: Dictionary, index: int, mode: str, strength: float,
    along: Tensor | None,
) -> Tensor | None:  # fmt: skip
    codes = dictionary.encode(own if dictionary.takes_gradients else own.detach())[..., [index]]
    new = codes * strength if mode == "scale" else torch.full_like(codes, strength)
    if not (change := new - codes).any():
        return None
    written = dictionary.write(change, own, torch.tensor([index], device=codes.device))
    if along is None:
        return written
    row = dictionary.direction(index).to(written)
    return (written @ row)[..., None] * along.to(written)


# ---- which tokens


def _where(
    model: Any, name: str, tokens: Any, region: Any, own: _Where, allowed: _Where | None
) -> _Where:  # fmt: skip
    """Return a function of an activation and its hook point: True at the tokens that are steered; None for all."""
    if tokens is None and region is None:
        return own
    if tokens is not None and region is not None:
        raise DictionaryError(f"tokens={tokens!r} and region={region!r} both say which tokens; give one of them")
    given = f"tokens={tokens!r}" if region is None else f"region={region!r}"
    chosen = _chosen(model, tokens) if region is None else _within(model, name, region)

    def where(x: Tensor, hook: HookPoint) -> Tensor:
        if x.ndim < 3:
            raise DictionaryError(f"{given}: {hook.name} is one vector for all tokens; leave it out")
        mask = chosen(x, hook)
        has_code = None if allowed is None else allowed(x, hook)
        if has_code is not None and (mask & ~has_code).any():
            raise DictionaryError(f"{given}: the dictionary is of other tokens, which alone have codes; mode='add' may")
        return mask

    return where


def _chosen(model: Any, tokens: Any) -> Callable[[Tensor, HookPoint], Tensor]:
    if reads_text(model):

        def of_prompts(x: Tensor, hook: HookPoint) -> Tensor:
            if (ids := hook.ctx.get(RUN_IDS)) is None:
                raise DictionaryError(f"tokens={tokens!r}: the run does not say of which prompts it is; give them")
            return model.positions_of(tokens, ids)[..., None]

        return of_prompts
    if isinstance(model, Denoises):
        if not (found := as_indices(tokens)):
            raise DictionaryError(f"tokens={tokens!r}: of a denoiser give positions counted from 0, or region=")
        return partial(_at, positions=found, given=f"tokens={tokens!r}")
    if (cfg := getattr(model, "cfg", None)) is None:
        raise DictionaryError(f"tokens={tokens!r}: the model does not say which tokens it has; leave tokens= out")
    return partial(_at, positions=resolve_tokens(tokens, cfg), given=f"tokens={tokens!r}")


def _within(model: Any, name: str, region: Any) -> Callable[[Tensor, HookPoint], Tensor]:
    given = f"region={region!r}"
    if isinstance(model, Denoises):
        if model.is_text(name):
            raise DictionaryError(f"{given}: {name} is of the text, which has no grid; give tokens=")

        def of_cells(x: Tensor, hook: HookPoint) -> Tensor:
            if (sides := model.current_sides) is None:
                raise DictionaryError(f"{given}: the size of the picture is known in runs of the pipeline alone")
            if (grid := cells_of(*sides, x.shape[1])) is None:
                raise DictionaryError(f"{given}: the {x.shape[1]} tokens of {name} are no grid of {sides} pixels")
            return _at(x, hook, positions=_cells(region, grid), given=given)

        return of_cells
    cfg = getattr(model, "cfg", None)
    if cfg is None:
        raise DictionaryError(f"{given}: the model does not say which tokens it has; leave region= out")
    cfg = cfg if isinstance(cfg, PatchEmbedConfig) else image_config(cfg, given)
    return partial(_at, positions=[cfg.n_prefix + cell for cell in _cells(region, cfg.grid)], given=given)


def _cells(region: Any, grid: tuple[int, int]) -> list[int]:
    if len(sides := as_indices(region) or []) == 4:
        top, left, bottom, right = sides
        if 0 <= top < bottom <= grid[0] and 0 <= left < right <= grid[1]:
            return [row * grid[1] + column for row in range(top, bottom) for column in range(left, right)]
    raise DictionaryError(
        f"region={region!r}: (top, left, bottom, right) of a grid of {grid[0]} rows and {grid[1]} columns"
    )


def _at(x: Tensor, hook: HookPoint, *, positions: list[int], given: str) -> Tensor:
    if outside := [each for each in positions if not 0 <= each < x.shape[1]]:
        raise DictionaryError(f"{given}: {hook.name} has positions 0 to {x.shape[1] - 1} in this run, not {outside}")
    mask = torch.zeros(1, x.shape[1], 1, dtype=torch.bool, device=x.device)
    mask[:, positions] = True
    return mask
