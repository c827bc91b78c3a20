"""One site after the other: activation patching and total-effect ablation."""

__all__ = ["ablate_each", "patch_each"]

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_lens.addresses import Site, Sites
from vit_lens.errors import InterventionError
from vit_lens.interventions.metrics import Metric, measure
from vit_lens.interventions.replacing import Hooks, derangement, mean, patch, resample, zero
from vit_lens.interventions.results import Effects
from vit_lens.interventions.running import Inputs, check_pairs, refuse_other_hooks, run_and_read, run_many
from vit_lens.reference import ReferenceMeans
from vit_lens.tokens import Tokens, image_config, resolve_tokens
from vit_lens.towers import Tower, ViTActivationCache

_EACH = ("site", "token", "patch")


def patch_each(
    model: Tower,
    base: Inputs,
    source: Float[Tensor, "_ channel height width"] | Int[Tensor, "_ source_pos"] | str | Sequence[str],
    metric: Metric,
    sites: Sites = "heads",
    *,
    each: str = "site",
    tokens: Tokens | None = None,
    batch_size: int = 64,
) -> Effects:
    """Run ``base`` once for every site, with that site's activation taken from ``source``.

    Image 0 of ``base`` takes from image 0 of ``source``, and so on. With the corrupted images as ``base`` and the
    clean ones as ``source`` this is denoising, as in ``transformer_lens.patching``; the other way round it is
    noising.

    Args:
        model: The model, without hooks.
        base: The preprocessed images that are run; of a text tower prompts, as texts or ids.
        source: The preprocessed images that activations come from, as many.
        metric: A function of the embeddings ``[batch d_embed]`` that gives one number for each, or one for all.
        sites: Sites as ``Site.resolve`` takes them.
        each: What one run patches: ``site`` a whole site, ``token`` and ``patch`` its tokens, or the grid's patches,
            one by one.
        tokens: The tokens of a whole site, or those that are taken one by one; None for all.
        batch_size: The number of images in one run.

    Raises:
        UnknownSiteError: A site is not one of the model's.
        InterventionError: The numbers of images differ, a token is not one of the model's, or the metric gives
            something else.
        VitLensError: There are hooks on the model.

    >>> toward = vl.interventions.cosine_to(model(pixels[1:]))
    >>> found = vl.interventions.patch_each(model, pixels[:1], pixels[1:], toward, "heads")
    >>> found.tensor(what="recovered").shape  # [layer head batch]
    torch.Size([8, 8, 1])
    """
    refuse_other_hooks(model)
    base, source = ([each] if isinstance(each, str) else each for each in (base, source))
    check_pairs(base, source)
    cache = _donors(model, source, sites)
    embeds = run_many(model, source, [[]])[0]

    def hooks(site: Site, tokens: Tokens | None) -> Hooks:
        return patch(model, site, cache, tokens=tokens, prompts=model.beside(base).get("tokens"))

    return _sweep(model, base, metric, sites, hooks, each, tokens, batch_size, source=measure(metric, embeds))


def ablate_each(
    model: Tower,
    pixels: Inputs,
    metric: Metric,
    sites: Sites = "heads",
    *,
    replacement: str | ReferenceMeans | ViTActivationCache,
    seed: int = 0,
    each: str = "site",
    tokens: Tokens | None = None,
    batch_size: int = 64,
) -> Effects:
    """Run the images once for every site, with that site ablated: its total effect.

    Everything behind the site is computed anew, so later layers may compensate; a lens reads the direct effect.

    Args:
        model: The model, without hooks.
        pixels: The preprocessed images; of a text tower prompts, as texts or ids.
        metric: A function of the embeddings ``[batch d_embed]`` that gives one number for each, or one for all.
        sites: Sites as ``Site.resolve`` takes them.
        replacement: What stands in for a site: ``"zero"``; reference means, for mean ablation; ``"resample"``, so that
            each image takes from another of ``pixels``; or a cache of other images, of which each image draws one.
        seed: The seed of resampling.
        each: What one run ablates, as for :func:`patch_each`.
        tokens: The tokens that are ablated, as for :func:`patch_each`.
        batch_size: The number of images in one run.

    Raises:
        UnknownSiteError: A site is not one of the model's.
        ReferenceMismatchError: The means are another model's.
        InterventionError: The replacement is none of these or does not hold what is replaced (:func:`mean`,
            :func:`resample`), a token is not one of the model's, or the metric gives something else.
        VitLensError: There are hooks on the model.

    >>> kept = vl.interventions.cosine_to(model(pixels))
    >>> found = vl.interventions.ablate_each(model, pixels, kept, "mlp", replacement="zero")
    >>> found
    Effects(8 sites x 2 images; .tensor(), .maps(), .frame())
    >>> found.tensor().mean(-1).argmin()  # the layer whose MLP is missed most
    tensor(0)
    """
    refuse_other_hooks(model)
    prompts = model.beside(pixels).get("tokens")
    n_images = len(pixels if prompts is None else prompts)
    if replacement == "resample":
        derangement(n_images)  # refuses a single image before anything runs
        replacement, n_images = _donors(model, pixels, sites), None

    def hooks(site: Site, tokens: Tokens | None) -> Hooks:
        if isinstance(replacement, ReferenceMeans):
            return mean(model, site, replacement, tokens=tokens)
        if isinstance(replacement, ViTActivationCache):
            return resample(model, site, replacement, seed=seed, n_images=n_images, tokens=tokens, prompts=prompts)
        if replacement != "zero":
            raise InterventionError(
                f"replacement={replacement!r}; expected 'zero', 'resample', ReferenceMeans, or a cache"
            )
        return zero(model, site, tokens=tokens, prompts=prompts)

    return _sweep(model, pixels, metric, sites, hooks, each, tokens, batch_size, source=None)


def _donors(model: Tower, pixels: Inputs, sites: Sites) -> ViTActivationCache:
    names = list(dict.fromkeys(site.hook_name for site in Site.resolve(sites, model.cfg)))
    with torch.no_grad():
        return model.run_with_cache(pixels, names_filter=names)[1]


def _sweep(
    model: Tower,
    pixels: Inputs,
    metric: Metric,
    sites: Sites,
    hooks: Callable[[Site, Tokens | None], Hooks],
    each: str,
    tokens: Tokens | None,
    batch_size: int,
    source: Tensor | None,
) -> Effects:
    if each not in _EACH:
        raise InterventionError(f"each={each!r}; expected one of {', '.join(_EACH)}")
    found = Site.resolve(sites, model.cfg)
    places: list[Tokens | None] = [tokens]
    if each != "site":
        prompts = model.beside(pixels).get("tokens")
        n_pos = model.cfg.n_ctx if prompts is None else prompts.shape[1]
        chosen = range(n_pos) if tokens is None else resolve_tokens(tokens, model.cfg)
        first = 0 if each == "token" else image_config(model.cfg, "each='patch'").n_prefix
        places = [position for position in chosen if position >= first]
        if not places:
            raise InterventionError(f"tokens={tokens!r} holds no patch, and each='patch'")
    sets = [hooks(site, place) for site in found for place in places]
    values = run_and_read(model, pixels, [[], *sets], batch_size, lambda embeds: measure(metric, embeds))
    return Effects(
        sites=tuple(found), positions=None if each == "site" else tuple(p for p in places if isinstance(p, int)),
        cfg=model.cfg, values=values[1:].unflatten(0, (len(found), len(places))), base=values[0], source=source,
    )  # fmt: skip
