"""Ablation and patching as hook functions, for ``run_with_hooks``, ``hooks()`` and sweeps alike."""

__all__ = ["Hooks", "check_cache", "derangement", "mean", "patch", "resample", "zero"]

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vit_lens.addresses import Indices, Sites, as_index, as_indices
from vit_lens.attribution import check_cache as expect_cache
from vit_lens.attribution import whole
from vit_lens.errors import InterventionError, expect
from vit_lens.hooking import Aiming, CodesPoint
from vit_lens.interventions.in_prompts import replace_in_prompts
from vit_lens.interventions.in_steps import Caches, checked_caches, n_pictures, patch_in_steps, zero_in_steps
from vit_lens.interventions.targets import Target, refuse_shadowed, resolve_targets
from vit_lens.reference import ReferenceMeans
from vit_lens.tokens import Tokens
from vit_lens.towers import Tower, ViTActivationCache

Hooks = list[tuple[str, Callable[..., Tensor]]]
_Values = Callable[[list[Target], list[int] | None], Tensor | None]  # of one hook point: [#batch row *unit feature]


def zero(model: Tower | Aiming, sites: Sites, *, tokens: Tokens | None = None, prompts: Any = None) -> Hooks:
    """Return hooks that set sites to zero.

    For a head this is its ``z``: what it writes, and not the layer's ``b_O``. Zero is far from anything that the
    model has seen and overstates importance; :func:`mean` and :func:`resample` do so less.

    Args:
        model: The model that will be run. Of a hooked diffusion model sites are addresses (``D5.img.mlp@7~3``), and
            caches those of its ``run_with_cache``: a patch is written in the branches of the cache, at the same steps.
        sites: Sites as ``Site.resolve`` takes them (``L3H4``, ``L3.attn``, ``heads``, ...), and ``L3`` for the
            attention and MLP of a layer, ``L3N17`` for a neuron, ``L5.f17`` for a feature of the dictionary that is
            spliced in; ``L3H4@cls`` also says where.
        tokens: The tokens at which sites that do not say so are replaced (:func:`vit_lens.tokens.resolve_tokens`);
            None for every token.
        prompts: The prompts that will be run, as texts or ids, where sites are at words or ends of them
            (``L3.mlp@"star"``, ``L3H4@eos``); None for images.

    Raises:
        UnknownSiteError: A site is not one of the model's.
        InterventionError: A token is not one of the model's, or a site would be overwritten by another.

    >>> hooks = vl.interventions.zero(model, ["L3H4", "L5.mlp@cls"])
    >>> model.run_with_hooks(pixels, fwd_hooks=hooks).shape
    torch.Size([2, 128])
    >>> vl.interventions.zero(model, ["L3H4", "L3.attn"])
    Traceback (most recent call last):
    vit_lens.errors.InterventionError: L3H4 would have no effect: L3.attn is replaced too, and runs after it
    """
    if isinstance(model, Aiming):
        return zero_in_steps(model, sites, tokens, prompts)
    targets = resolve_targets(model, sites, tokens, prompts)
    return _hooks(model, targets, lambda targets, rows: None, None)


def mean(model: Tower, sites: Sites, reference: ReferenceMeans, *, tokens: Tokens | None = None) -> Hooks:
    """Return hooks that set sites to their mean over a reference set, position by position.

    An attention block goes to what its mean ``z`` writes, so that its heads add up to it exactly.

    Args:
        model: The model that will be run.
        sites: Sites as :func:`zero` takes them; neurons have no means.
        reference: Means made with ``positions="all"``, unless ``tokens`` asks for no more than the read-out rows.
        tokens: The tokens at which sites are replaced, as for :func:`zero`.

    Raises:
        UnknownSiteError: A site is not one of the model's.
        ReferenceMismatchError: The means are another model's.
        InterventionError: The means lack a position or a kind of activation; a token is not one of the model's; or a
            site would be overwritten by another.

    >>> means = vl.ReferenceMeans.from_images(model, images, positions="all")
    >>> model.run_with_hooks(pixels, fwd_hooks=vl.interventions.mean(model, "L3H4", means)).shape
    torch.Size([2, 128])
    >>> [name for name, hook in vl.interventions.mean(model, "L3.attn", vl.ReferenceMeans.shipped(model), tokens="cls")]
    ['blocks.3.hook_attn_out']
    """
    expect(reference, ReferenceMeans, "reference", InterventionError, "ReferenceMeans.load(path) reads saved ones")
    reference.check(model, None)
    advice = "make the means with ReferenceMeans.from_images(model, images, positions='all')"

    def values(targets: list[Target], rows: list[int] | None) -> Tensor:
        site = targets[0].site
        if site is None:
            raise InterventionError(
                f"{targets[0].address}: reference means hold no neurons and no features; resample it instead, or clamp "
                "a feature to its mean code (vit_lens.dictionaries.clamp, mean_codes)"
            )
        held = reference.output(model, site) if site.head is None else reference.z_of(site)[:, _units(targets)]
        return (held if rows is None else held[rows])[None]

    targets = resolve_targets(model, sites, tokens)
    return _hooks(model, targets, values, _Held(model, reference.positions, "means", advice))


def patch(
    model: Tower | Aiming,
    sites: Sites,
    cache: ViTActivationCache | Caches,
    *,
    images: Indices | None = None,
    tokens: Tokens | None = None,
    prompts: Any = None,
) -> Hooks:
    """Return hooks that set sites to their activations in another run.

    They hold what the cache holds: edit a cache before hooks are made of it, not after.

    Args:
        model: The model that will be run.
        sites: Sites as :func:`zero` takes them.
        cache: The cache of the other run.
        images: Which cached image each image of the run takes; an int gives all of them the same one; None gives the
            first the first, and so on.
        tokens: The tokens at which sites are replaced, as for :func:`zero`; the same positions are read and written.
        prompts: The prompts that will be run, as for :func:`zero`; a word is read where the cached prompt has it, and
            written where the prompt that is run has it.

    Raises:
        UnknownSiteError: A site is not one of the model's.
        UnknownHookError: The cache does not hold a site's activation.
        InterventionError: The cache is another model's, or lacks images or positions; a token is not one of the
            model's; or a site would be overwritten by another.

    >>> whole = vl.interventions.patch(model, "L7.resid_post", cache, images=1)
    >>> embeds = model.run_with_hooks(pixels, fwd_hooks=whole)
    >>> torch.allclose(embeds[0], model(pixels)[1], atol=1e-4)
    True
    """
    if isinstance(model, Aiming):
        caches, for_any = checked_caches(model, cache), as_index(images) is not None
        chosen = None if images is None else _checked_images(images, n_pictures(model, sites, caches))
        return patch_in_steps(model, sites, caches, chosen, for_any=for_any, tokens=tokens, prompts=prompts)
    cache = expect_cache(cache, InterventionError)
    check_cache(model, cache)
    advice = "make the cache with run_with_cache(pixels), without pos_slice"
    cached = cache.read_out.ids if prompts is not None else None
    if cached is not None and images is not None:
        cached = cached[_checked_images(images, len(cached))]
    targets = resolve_targets(model, sites, tokens, prompts, cached)

    def values(targets: list[Target], rows: list[int] | None) -> Tensor:
        value = cache[targets[0].hook_name]
        if targets[0].unit is not None:
            value = value[:, :, _units(targets)]
        if images is not None:
            value = value[_checked_images(images, len(value))]
        return value if rows is None else value[:, rows]

    held = _Held(model, cache.rows, "cache", advice)
    return _hooks(model, targets, values, held, for_any=as_index(images) is not None)


def resample(
    model: Tower | Aiming,
    sites: Sites,
    cache: ViTActivationCache | Caches,
    *,
    seed: int = 0,
    n_images: int | None = None,
    tokens: Tokens | None = None,
    prompts: Any = None,
) -> Hooks:
    """Return hooks that set sites to their activations for another image, drawn at random.

    An image takes all its sites from one donor. Activations come from the cached run, not from the run at hand, so
    that sites which are replaced together do not change each other's replacement.

    Args:
        model: The model that will be run.
        sites: Sites as :func:`zero` takes them.
        cache: The cache of the images that activations are drawn from.
        seed: The seed of the draw.
        n_images: None: the run is of the cached images themselves, and none is its own donor
            (:func:`derangement`). A number: the run is of so many other images, each of which draws any donor.
        tokens: The tokens at which sites are replaced, as for :func:`zero`.
        prompts: The prompts that will be run, as for :func:`patch`; None takes the cached ones where ``n_images`` is
            None.

    Raises:
        UnknownSiteError: A site is not one of the model's.
        UnknownHookError: The cache does not hold a site's activation.
        InterventionError: There is one image and no other; the cache is another model's, or lacks positions; a token
            is not one of the model's; or a site would be overwritten by another.

    >>> both = vl.interventions.resample(model, "L7.resid_post", cache)  # of two images each takes the other's
    >>> torch.allclose(model.run_with_hooks(pixels, fwd_hooks=both), model(pixels).flip(0), atol=1e-4)
    True
    """
    if isinstance(model, Aiming):
        held = n_pictures(model, sites, checked_caches(model, cache))
    else:
        cache = expect_cache(cache, InterventionError)
        check_cache(model, cache)
        prompts = cache.read_out.ids if prompts is None and n_images is None else prompts
        held = len(cache[resolve_targets(model, sites, prompts=prompts)[0].hook_name])
    if n_images is None:
        donors = derangement(held, seed=seed)
    else:
        size = (whole("n_images", n_images, InterventionError),)
        donors = torch.randint(held, size, generator=_seeded(seed), device="cpu")
    return patch(model, sites, cache, images=donors, tokens=tokens, prompts=prompts)


def derangement(n: int, *, seed: int = 0) -> Int[Tensor, " batch"]:
    """Return a random order of ``n`` images in which none keeps its place, each such order equally likely.

    Args:
        n: The number of images.
        seed: The seed of the draw.

    Raises:
        InterventionError: There are fewer than two images, or the seed is no whole number.

    >>> order = vl.interventions.derangement(5)
    >>> sorted(order.tolist()), bool((order == torch.arange(5)).any())
    ([0, 1, 2, 3, 4], False)
    """
    if whole("n", n, InterventionError) < 2:
        raise InterventionError(f"resampling among {n} image: an image would be its own donor; give two or more")
    generator = _seeded(seed)
    while True:  # e tries on average
        order = torch.randperm(n, generator=generator, device="cpu")
        if not (order == torch.arange(n, device="cpu")).any():
            return order


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(whole("seed", seed, InterventionError, -(2**63)))


class _Held:
    """The positions that means or a cache hold, and how they are indexed."""

    def __init__(self, model: Tower, rows: str, what: str, advice: str):
        self.what, self.advice, self.cut = what, advice, rows == "cut"
        self.every = range(model.cfg.n_ctx)
        self.positions = self.every if rows == "all" else model.readout.positions(model.cfg.n_ctx)
        self.name = model.readout.words

    def index(self, positions: list[int] | None) -> list[int] | None:
        """Return the rows at which positions are held; None for all."""
        if self.cut:
            raise InterventionError(f"the cache was cut by pos_slice, so positions are unknown; {self.advice}")
        if self.positions == self.every:
            return positions
        if positions is None or not set(positions) <= set(self.positions):
            wanted = "every token" if positions is None else "other tokens too"
            raise InterventionError(
                f"the {self.what} hold{'s' * (self.what == 'cache')} {self.name} alone, and {wanted} would be "
                f"replaced; pass tokens= to match, or {self.advice}"
            )
        return [p - self.positions.start for p in positions]


def _hooks(model: Tower, targets: list[Target], values: _Values, held: _Held | None, for_any: bool = True) -> Hooks:
    """Return one hook for each hook point; ``for_any`` gives one value to any number of images."""
    refuse_shadowed(targets, model.cfg.n_ctx)
    if pooled := [str(t.address) for t in targets if t.is_pool and (t.positions, t.places) != (None, None)]:
        raise InterventionError(f"{', '.join(pooled)}: attention pooling has one row, so tokens= does not apply to it")
    hooks: Hooks = []
    for name, where in dict.fromkeys((t.hook_name, t.where) for t in targets):
        some = [t for t in targets if (t.hook_name, t.where) == (name, where)]
        positions = None if some[0].positions is None else list(some[0].positions)
        rows = positions if held is None or some[0].is_pool else held.index(positions)
        value = values(some, rows)
        units = None if some[0].unit is None else _units(some)
        of = 0 if units is None else _n_units(model, some[0])
        given = {"value": value, "units": units, "of": of, "for_any": for_any}
        if some[0].places is None:
            hooks.append((name, partial(_replace, positions=positions, **given)))
        else:
            there = {"places": some[0].places, "sources": some[0].sources, "ids": some[0].ids}
            hooks.append((name, partial(replace_in_prompts, **there, **given)))
    return hooks


def _replace(
    act: Tensor,
    hook: HookPoint,
    *,
    value: Tensor | None,
    units: list[int] | None,
    of: int,
    positions: list[int] | None,
    for_any: bool,
) -> Tensor:
    """Replace some of an activation: all tokens or those at ``positions``, all units or ``units`` of ``of``."""
    if value is not None and not for_any and len(value) != len(act):
        raise InterventionError(
            f"{hook.name}: there are activations for {len(value)} images, and the run has {len(act)}; run as many, or "
            "choose with images="
        )
    where = list(range(act.shape[1])) if positions is None else positions
    shape = (len(where), *act.shape[2:]) if units is None else (len(where), len(units), *act.shape[3:])
    fits = max(where) < act.shape[1] and of in (0, act.shape[2]) and (value is None or value.shape[1:] == shape)
    if not fits:
        raise InterventionError(f"{hook.name}: these hooks are of another model than this run, or of longer inputs")
    out = act.clone()
    new = torch.zeros((), dtype=act.dtype, device=act.device) if value is None else value.to(act)
    if units is None:
        out[:, where] = new
    else:
        out[:, torch.tensor(where, device="cpu")[:, None], torch.tensor(units, device="cpu")] = new
    return out


def _n_units(model: Tower, target: Target) -> int:
    """Return how many heads, neurons or features there are where a target is one of them."""
    if isinstance(point := model.hook_dict[target.hook_name], CodesPoint):
        return point.n_features
    return model.cfg.d_mlp if target.site is None else len(model.attention_of(target.site).W_O)


def _units(targets: list[Target]) -> list[int]:
    return [target.unit for target in targets if target.unit is not None]


def check_cache(model: Tower, cache: ViTActivationCache) -> None:
    """Raise unless a cache is whole and of this model.

    Raises:
        InterventionError: It is not.
    """
    expect_cache(cache, InterventionError)
    if not cache.has_batch_dim:
        raise InterventionError("the cache has no batch axis; make it with remove_batch_dim=False")
    if cache.model is not model and cache.model.fingerprint != model.fingerprint:
        raise InterventionError(
            f"the cache is of {cache.model.encoder_id} ({cache.model.fingerprint}), and the model is "
            f"{model.encoder_id} ({model.fingerprint}); run this model with run_with_cache"
        )


def _checked_images(images: Indices, n: int) -> list[int]:
    if not (chosen := as_indices(images)):
        raise InterventionError(
            f"images={images!r}; expected the number of a cached image, or a list of numbers, one for each image that "
            "is run (a mask is none)"
        )
    if bad := [i for i in chosen if not 0 <= i < n]:
        raise InterventionError(f"images={bad}: the cache holds {n}, counted from 0")
    return chosen
