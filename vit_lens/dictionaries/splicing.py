"""A dictionary within a model: its codes become activations that hooks see and edit."""

__all__ = ["Gradients", "spliced"]

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Bool
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vit_lens.dictionaries.gates import Gate
from vit_lens.dictionaries.tokens import rule_mask, token_rule
from vit_lens.dictionaries.updates import OwnPart
from vit_lens.errors import DictionaryError, expect
from vit_lens.hooking import CodesPoint, LoudHookedRootModule, is_hooked

Gradients = Literal["exact", "through"]


@runtime_checkable
class Coded(Protocol):
    """What a splice asks of a dictionary; :class:`Dictionary`, which rests on this file, has it."""

    @property
    def takes_gradients(self) -> bool: ...
    @property
    def n_features(self) -> int: ...
    @property
    def frequency(self) -> Tensor | None: ...
    @property
    def origin(self) -> Any: ...
    def check(self, model: Any, site: str | None = None) -> str: ...
    def pre_codes(self, x: Any) -> Tensor: ...
    def activate(self, pre: Any) -> Tensor: ...
    def encode(self, x: Any) -> Tensor: ...
    def decode(self, codes: Any, x: Any) -> Tensor: ...
    def write(self, codes: Any, x: Any, features: Any = None) -> Tensor: ...


class Splice:
    """The hook function that puts a dictionary into the place of an activation.

    Args:
        dictionary: The dictionary.
        points: Its hook points, by their last names.
        error_term: Whether what the dictionary does not explain stays in the activation.
        gradients: ``exact`` or ``through``; see :func:`spliced`.
        where: Says which positions the dictionary acts on, of an activation and its hook point.
        acts: Says whether it acts in the pass that runs.
    """

    only_reads = True  # it returns a new tensor, and needs no copy of what it is given

    def __init__(
        self, dictionary: Coded, points: dict[str, HookPoint], *, error_term: bool, gradients: Gradients,
        where: Callable[[Tensor, HookPoint], Bool[Tensor, "#batch #pos 1"] | None], acts: Callable[[], bool],
    ):  # fmt: skip
        self.dictionary, self.points, self.where, self.acts = dictionary, points, where, acts
        self.error_term, self.gradients = error_term, gradients
        self.part = OwnPart(dictionary.origin.stream)

    def __call__(self, x: Tensor, hook: HookPoint) -> Tensor | None:
        own, before = self.part.take(x, hook)
        own = self.points["hook_sae_input"](own)
        mask = self.where(x, hook)
        if self.acts():
            codes = self._codes(own, mask)
        else:
            mask = torch.zeros([1] * x.ndim, dtype=torch.bool, device=x.device)
            codes = self.dictionary.encode(own.detach().flatten(0, -2)[:1])
            codes = codes.new_zeros(*own.shape[:-1], codes.shape[-1])
        edited = self.points["hook_sae_acts_post"](codes)
        if mask is not None:
            edited = edited * mask
        if self.error_term:
            return self._with_error(x, own, codes, edited, mask)
        written = self.points["hook_sae_recons"](self.dictionary.decode(edited, own)).to(x.dtype)
        written = self.points["hook_sae_output"](written if before is None else written + before)
        return written if mask is None else torch.where(mask, written, x)

    def _codes(self, own: Tensor, mask: Tensor | None) -> Tensor:
        if self.dictionary.takes_gradients:
            codes = self.dictionary.activate(self.points["hook_sae_acts_pre"](self.dictionary.pre_codes(own)))
        else:  # nothing flows back through a choice; what a code writes still has its gradient
            codes = self.dictionary.encode(own.detach()).requires_grad_(own.requires_grad and torch.is_grad_enabled())
        return codes if mask is None else codes * mask

    def _with_error(self, x: Tensor, own: Tensor, codes: Tensor, edited: Tensor, mask: Tensor | None) -> Tensor | None:
        """Return ``x`` and what the edits change; ``x`` itself to the last bit where there are none."""
        recons, error = self.points["hook_sae_recons"], self.points["hook_sae_error"]
        through = self.gradients == "through" and torch.is_grad_enabled()
        base = codes.detach() if through else codes
        change = edited - base
        if change.requires_grad:
            delta = self.dictionary.write(change, own.detach() if through else own)
        else:
            at = change.flatten(0, -2).any(0).nonzero()[:, 0]
            delta = self.dictionary.write(change[..., at], own, at) if len(at) else None
        out = x.detach() if through else x
        out = out if delta is None else out + delta.to(x.dtype)
        if is_hooked(recons):
            given = self.dictionary.decode(edited, own)
            out = out + _only(recons(given) - given, mask).to(x.dtype)
        if is_hooked(error):
            given = own.to(codes.dtype) - self.dictionary.decode(codes, own)
            given = given.detach().requires_grad_(change.requires_grad) if through else given
            out = out + _only(error(given) - given, mask).to(x.dtype)
        return self.points["hook_sae_output"](out)


def _only(change: Tensor, mask: Tensor | None) -> Tensor:
    return change if mask is None else change * mask


@contextmanager
def spliced(
    model: LoudHookedRootModule,
    dictionary: Coded,
    site: str | None = None,
    *,
    error_term: bool = True,
    edit: Callable[[Tensor, HookPoint], Tensor | None] | None = None,
    gradients: Gradients = "exact",
    at_steps: Sequence[int] | None = None,
    branch: Literal["cond", "uncond", "both"] | None = None,
) -> Iterator[LoudHookedRootModule]:
    """Put a dictionary into a model for the time of a ``with`` block; its codes become activations.

    Hook points of the block, under the name of the site, for ``run_with_cache``, ``run_with_hooks`` and ``hooks()``
    (B inputs, T tokens, F features):

    ======================== ======= =============================================================================
    ``.hook_sae_input``      B T d   what is encoded
    ``.hook_sae_acts_pre``   B T F   before the nonlinearity; pursuit has no such point
    ``.hook_sae_acts_post``  B T F   the codes, 0 at tokens that the dictionary is not of
    ``.hook_sae_recons``     B T d   what the codes, edited or not, decode to
    ``.hook_sae_error``      B T d   what they do not explain; with ``error_term``
    ``.hook_sae_output``     B T d   what takes the place of the activation
    ======================== ======= =============================================================================

    With the error term the activation is ``x + (decode(edited codes) - decode(codes))``, computed of the edited
    features alone: where nothing is edited it is ``x`` to the last bit, in any dtype. Without it the activation is
    what the codes decode to, at the tokens that the dictionary is of.

    Gradients: ``exact`` are those of the spliced model, which is the model itself where nothing is edited, so that
    they pass straight through; at ``hook_sae_acts_post`` they are what a feature writes, so gradient times code is the
    effect of ablating it, in linear models exactly. ``through`` holds the error constant, as SAELens does: all that
    flows back goes through the codes. Nothing flows back through the choice that a pursuit makes.

    In a diffusion model the dictionary acts at the steps and in the branch that it was learnt at, and a run in which
    one of these steps has another noise level, or that never comes to them, is refused. One that does not say its steps
    acts at all of them, in both branches. Elsewhere the codes are 0, and the activation stays as it is.

    Args:
        model: Any hooked model.
        dictionary: A dictionary of that model and site.
        site: The hook point, or its address such as ``L5.resid_post``; None for the dictionary's own.
        error_term: Whether what the dictionary does not explain stays.
        edit: A hook function on the codes, ``(codes, hook) -> codes``; None for none.
        gradients: What flows back.
        at_steps: The steps of a diffusion model that it acts at, whatever their noise levels; None for its own.
        branch: The branch of guidance that it acts in, or "both"; None for its own.

    Yields:
        The model.

    Raises:
        DictionaryError: The dictionary is of another model, site or width, one is spliced there already, or
            ``gradients="through"`` is asked of a pursuit.

    >>> found = vl.dictionaries.random_dictionary(128, 40, k=4, site="blocks.5.hook_resid_post")
    >>> plain = model(pixels)
    >>> with vl.dictionaries.spliced(model, found):
    ...     bool(torch.equal(model(pixels), plain))
    True
    >>> with vl.dictionaries.spliced(model, found, edit=lambda codes, hook: 0 * codes):
    ...     bool(torch.equal(model(pixels), plain))
    False
    """
    expect(model, LoudHookedRootModule, "model", DictionaryError, "a hooked model")
    if gradients not in get_args(Gradients):
        raise DictionaryError(f"gradients={gradients!r}; expected 'exact' or 'through'")
    if gradients == "through" and not (dictionary.takes_gradients and error_term):
        raise DictionaryError(
            "gradients='through' holds the error term constant and goes through an encoder: it needs error_term=True, "
            "and a dictionary that does not encode by pursuit"
        )
    name = dictionary.check(model, site)
    gate = Gate(model, dictionary.origin, at_steps, branch)
    names = ["hook_sae_input", "hook_sae_acts_post", "hook_sae_recons", "hook_sae_output"]
    names += ["hook_sae_acts_pre"] if dictionary.takes_gradients else []
    names += ["hook_sae_error"] if error_term else []
    points = {each: HookPoint() for each in names}
    points["hook_sae_acts_post"] = CodesPoint(
        dictionary.n_features, token_rule(model, dictionary.origin.tokens), dictionary.frequency
    )
    splice = Splice(
        dictionary, points, error_term=error_term, gradients=gradients,
        where=rule_mask(model, dictionary.origin.tokens), acts=gate,
    )  # fmt: skip
    hooks: list[tuple[str, Callable]] = [*splice.part.hooks(model, name), (name, splice)]
    if edit is not None:
        hooks.append((f"{name}.hook_sae_acts_post", edit))
    with model.added_points({f"{name}.{each}": point for each, point in points.items()}), model.hooks(hooks):
        yield model
        if not any(getattr(handle, "user_hook", None) is splice for handle in model.hook_dict[name].fwd_hooks):
            raise DictionaryError(
                f"the dictionary at {name!r} was taken off within its block, as reset_hooks() does, so that runs after "
                "that were of the model alone"
            )
        gate.check_reached()
