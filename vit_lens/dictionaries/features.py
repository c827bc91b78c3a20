"""Features of a run as parts of it: what they write, what that is worth along captions, what a lens makes of it."""

__all__ = [
    "Features", "clamp", "feature_address", "feature_attribution", "feature_embeddings", "feature_writes", "indices_of",
    "mean_codes",
]  # fmt: skip

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vit_lens.addresses import Address, Indices, Site, address_of, as_indices, find_address
from vit_lens.attribution import Attribution, Component, Directions, FrozenReadout, Units, check_cache, read_rows
from vit_lens.dictionaries.dictionary import Dictionary
from vit_lens.dictionaries.source import ActivationSource
from vit_lens.dictionaries.tokens import reads_text, token_rule
from vit_lens.errors import DictionaryError, LensError
from vit_lens.hooking import Aiming, LoudHookedRootModule, find_feature
from vit_lens.lenses import CounterfactualLens, Lens, ProjectedLens, ResidualLens, average_reading
from vit_lens.texts import TextBank
from vit_lens.tokens import Tokens, resolve_tokens
from vit_lens.towers import ViTActivationCache

Features = str | Address | Sequence["str | Address"] | Indices


def feature_address(dictionary: Dictionary, index: int) -> Address:
    """Return the address of a feature.

    Args:
        dictionary: The dictionary.
        index: The feature.

    Raises:
        DictionaryError: There is no such feature, or the dictionary is of no part that has an address.

    >>> found = vl.dictionaries.random_dictionary(128, 40, k=4, site="blocks.5.hook_resid_post")
    >>> feature_address(found, 17)
    Address('L5.resid_post.f17')
    """
    site = dictionary.origin.site
    part = None if site is None else address_of(site) or find_address(site)
    if part is None:
        raise DictionaryError(
            f"the dictionary is of {site or 'no site'}, which has no address; give features as numbers"
        )
    return replace(part.part, feature=dictionary.feature(index))


def clamp(
    model: LoudHookedRootModule, values: Mapping[str, float | int | Tensor], *, tokens: Tokens | None = None
) -> list[tuple[str, Callable[..., Tensor]]]:
    """Return hooks that set codes of features to values, for runs within ``model.spliced(dictionary)``.

    ``vl.interventions.zero``, ``patch`` and ``resample`` take features too; with :func:`mean_codes` this is ablation by
    the mean.

    Args:
        model: The model, in which dictionaries are spliced.
        values: By the addresses of features numbers, or tensors that fit [batch pos]; ``L5.f17@cls`` also says where,
            and of a diffusion model ``D5.img.f17@7~3`` at which token and step.
        tokens: At which tokens of images; None for all that the dictionary is of.

    Raises:
        UnknownSiteError: No dictionary is spliced there, or it has no such feature.
        InterventionError: The model has no such token.
        DictionaryError: The dictionary is not of these tokens, or a value is not finite.

    >>> found = vl.dictionaries.random_dictionary(128, 40, k=4, site="blocks.5.hook_resid_post")
    >>> with model.spliced(found):
    ...     model.run_with_hooks(pixels, fwd_hooks=clamp(model, {"L5.f17": 3.0})).shape
    torch.Size([2, 128])
    """
    hooks = []
    for name, value in values.items():
        said = Address.parse(str(name))
        if None not in (said.position, tokens):
            raise DictionaryError(f"{said} says at which tokens, and so does tokens={tokens!r}: give one")
        given = torch.as_tensor(value, dtype=torch.float64)
        if not torch.isfinite(given).all():
            raise DictionaryError(f"{said} is to be set to {value}; expected finite numbers")
        if isinstance(model, Aiming):
            find_feature(model.hook_dict, said.part)
            if tokens is not None:
                raise DictionaryError(f"tokens={tokens!r}: of a denoiser the address says the token, as {said.part}@7")
            hooks += [(aim.name, partial(_fill, value=given)) for aim in model.aims(said)]
            continue
        address, point = find_feature(model.hook_dict, replace(said, position=None))
        at = tokens if said.position is None else said.position
        where = None if at is None else resolve_tokens(at, model.cfg)  # pyright: ignore[reportArgumentType]
        if point.positions is not None and (outside := set(where or ()) - set(point.positions)):
            raise DictionaryError(
                f"{address} has no code at tokens {sorted(outside)}: its dictionary is of other tokens"
            )
        hooks.append((address.hook_name, partial(_set, feature=address.feature or 0, value=given, where=where)))
    return hooks


def _fill(codes: Tensor, hook: HookPoint, *, value: Tensor) -> Tensor:
    return value.to(codes).expand_as(codes)


def _set(codes: Tensor, hook: HookPoint, *, feature: int, value: Tensor, where: list[int] | None) -> Tensor:
    out = codes.clone()
    if where is None:
        out[..., feature] = value.to(codes)
    else:
        out[:, where, feature] = value.to(codes)
    return out


@torch.no_grad()
def mean_codes(dictionary: Dictionary, source: ActivationSource) -> Float[Tensor, " feature"]:
    """Return the mean code of every feature over the tokens of a source, in float64.

    Args:
        dictionary: The dictionary.
        source: Tokens of its site.

    >>> source = vl.ActivationSource.of_array(torch.randn(300, 8, generator=torch.Generator().manual_seed(0)))
    >>> mean_codes(vl.dictionaries.random_dictionary(8, 20, k=3), source).shape
    torch.Size([20])
    """
    total, n = torch.zeros(dictionary.n_features, dtype=torch.float64), 0
    for batch in source.in_order():
        codes = dictionary.encode(batch.tokens.to(dictionary.W_dec.device))
        total, n = total + codes.double().sum(0).cpu(), n + len(codes)
    return total / n


@torch.no_grad()
def feature_writes(
    cache: ViTActivationCache, dictionary: Dictionary, features: Features, *, code: float | int | None = None
) -> Float[Tensor, "batch feature row d_model"]:
    """Return what features write at the rows that the embedding is read from: code times decoder row.

    Codes are those of the run: the cached ones where the cache was made within ``model.spliced(dictionary)``, edits
    included, else those that the dictionary gives the cached activation.

    Args:
        cache: The cache of a run, with the dictionary's hook point.
        dictionary: A dictionary of that model.
        features: Addresses such as ``L5.f3796``, or numbers.
        code: A code that every feature is given at every row, in place of its own: what it *would* write there.

    Raises:
        DictionaryError: The dictionary does not belong there or has no such feature; or none of the rows that the
            embedding is read from is a token that it is of.
        UnknownHookError: The cache lacks the activation.

    >>> found = vl.dictionaries.random_dictionary(128, 40, k=4, site="blocks.5.hook_resid_post")
    >>> feature_writes(cache, found, ["L5.f3", "L5.f17"]).shape
    torch.Size([2, 2, 1, 128])
    """
    model: Any = check_cache(cache).model
    name = dictionary.check(model)
    chosen = indices_of(dictionary, features)
    held, given = f"{name}.hook_sae_acts_post", f"{name}.hook_sae_input"
    x = read_rows(cache, name)
    own = x
    if dictionary.origin.stream == "update":
        own = x - read_rows(cache, name.removesuffix("hook_resid_post") + "hook_resid_pre")
    if held in cache.cache_dict and dictionary.semantics.layer_norm:  # the site holds what edits made of its input
        if given not in cache.cache_dict:
            raise DictionaryError(f"this dictionary normalises each token: cache {given!r} too, which it did that to")
        own = _held_rows(cache, given)
    wide = torch.promote_types(x.dtype, dictionary.W_dec.dtype)
    if code is not None:
        codes = torch.full((*x.shape[:2], len(chosen)), float(code), dtype=wide, device=x.device)
    else:
        codes = _held_rows(cache, held) if held in cache.cache_dict else dictionary.encode(own)
        mask = 1 if held in cache.cache_dict and reads_text(model) else _mask(model, dictionary, x.shape[1])
        codes = codes[..., chosen] * mask
    at = [torch.tensor([index], device=x.device) for index in chosen]
    return torch.stack([dictionary.write(codes[..., [k]], own, one) for k, one in enumerate(at)], dim=1)


def feature_attribution(
    cache: ViTActivationCache, dictionary: Dictionary, directions: Tensor | TextBank, features: Features, *,
    captions: Sequence[str] | None = None, minus: Tensor | str | None = None, units: Units = "cosine",
    code: float | int | None = None,
) -> Attribution:  # fmt: skip
    """Return how much features contribute, directly, along captions or other directions of the embedding.

    Code times decoder row, through the frozen read-out, as :func:`vit_lens.attribution.direct_attribution` has it for
    heads and neurons: what the embedding would lack if the feature were ablated, later blocks stayed as they are and so
    did the last LayerNorm's scale. It is exact for that; a feature of patches in a tower that reads the class token has
    no such path, and its effect is that of an ablation in the model.

    Args:
        cache: The cache of a run, with the dictionary's hook point and what :class:`FrozenReadout` reads.
        dictionary: A dictionary of the residual stream, an attention block or an MLP.
        directions: A text bank, or embeddings [direction d_embed].
        features: Addresses such as ``L5.f3796``, or numbers.
        captions: As for ``direct_attribution``.
        minus: As for ``direct_attribution``.
        units: As for ``direct_attribution``.
        code: A code in place of the run's own, as for :func:`feature_writes`.

    Raises:
        DictionaryError: As for :func:`feature_writes`.
        LensError: The directions do not fit.
        TextError: A caption is unknown.

    >>> found = vl.dictionaries.random_dictionary(128, 40, k=4, site="blocks.5.hook_resid_post")
    >>> result = feature_attribution(cache, found, bank, ["L5.f3", "L5.f17"])
    >>> result.values.shape, result.components[1].label  # [feature batch caption]
    (torch.Size([2, 2, 6]), 'L5.resid_post.f17')
    """
    chosen = Directions.of(check_cache(cache).model, directions, captions=captions, minus=minus, units=units)
    writes = feature_writes(cache, dictionary, features, code=code)
    readout = FrozenReadout(cache)
    parts = readout(writes.movedim(1, 0).to(readout.weights))
    values = parts @ chosen.vectors.to(parts).T / chosen.divisor(readout.embedding)[:, None]
    components = tuple(Component(feature_address(dictionary, index)) for index in indices_of(dictionary, features))
    return Attribution(components, chosen.names, values, units)


def feature_embeddings(
    lens: Lens, cache: ViTActivationCache, dictionary: Dictionary, features: Features, *,
    code: float | int | None = None,
) -> Float[Tensor, "batch feature d_embed"]:  # fmt: skip
    """Return what a lens reads of what features write: an embedding, which a decoder draws.

    With the Diffusion Steering Lens the residual is ``r + (alpha - 1) h`` where ``h`` is the feature's write, with the
    Diffusion Lens it is ``h`` alone, and with the counterfactual lens an anchor's, in which what the feature writes
    goes to what it writes here, at the strength of the site that the dictionary is of; see
    :meth:`vit_lens.lenses.ResidualLens.read_writes`.

    Args:
        lens: A lens such as ``DiffusionSteeringLens(alpha=5)`` or ``DiffusionLens()``, or one of these projected.
        cache: The cache of a run, with the dictionary's hook point.
        dictionary: A dictionary of that model.
        features: Addresses such as ``L5.f3796``, or numbers.
        code: A code in place of the run's own. Features of patches alone need one in a tower that reads the class
            token: it is then what the feature would write there.

    Raises:
        DictionaryError: As for :func:`feature_writes`.
        LensError: The lens is no residual lens, or measures from a mean.

    >>> found = vl.dictionaries.random_dictionary(128, 40, k=4, site="blocks.5.hook_resid_post")
    >>> feature_embeddings(vl.DiffusionSteeringLens(alpha=5), cache, found, "L5.f17").shape
    torch.Size([2, 1, 128])
    """
    if isinstance(lens, ProjectedLens):
        return lens.project(cache, feature_embeddings(lens.lens, cache, dictionary, features, code=code))
    if not isinstance(lens, ResidualLens):
        raise LensError(f"lens={lens!r}; expected DiffusionLens() or DiffusionSteeringLens(alpha=...)")
    writes = feature_writes(cache, dictionary, features, code=code)
    site = address_of(dictionary.check(cache.model))
    if site is None or not isinstance(site.site, Site):
        raise DictionaryError(f"{dictionary.origin.site} is no part of the residual stream, which lenses read")
    if isinstance(lens, CounterfactualLens):
        of_each = []
        for one in lens.each():
            before = feature_writes(one.anchors.cache, dictionary, features).to(writes)
            of_each.append(one.read_changes(cache, site.site, writes - before).flat)
        return of_each[0] if len(of_each) == 1 else average_reading(torch.stack(of_each))
    found = lens.read_writes(cache, site.site, writes).pooled
    if found is None:
        raise LensError(f"{lens.describe().label} reads no pooled embedding")
    return found


def indices_of(dictionary: Dictionary, features: Features) -> list[int]:
    """Return the numbers of features of this dictionary; a dead one is named in a warning.

    Raises:
        DictionaryError: There is none, an address says more than a feature, or one writes nothing.
    """
    if isinstance(features, (str, Address)):
        features = [features]
    if isinstance(features, Iterable) and all(isinstance(one, (str, Address)) for one in features):
        own = feature_address(dictionary, 0)
        site = replace(own, feature=None)
        said = [Address.parse(str(one)) for one in features]
        if more := [str(one) for one in said if one != one.part]:
            raise DictionaryError(f"'{more[0]}' says more than a feature; leave tower, token and step off")
        found = [one.resolve_feature([site]).feature for one in said]
    else:
        found = as_indices(features)  # pyright: ignore[reportArgumentType]
    if not found:
        raise DictionaryError(f"features={features!r}; expected addresses such as 'L5.f3796', or numbers")
    for index in found:
        dictionary.direction(index)  # pyright: ignore[reportArgumentType] refuses what writes nothing, warns of dead ones
    return [dictionary.feature(index) for index in found]  # pyright: ignore[reportArgumentType]


def _held_rows(cache: ViTActivationCache, name: str) -> Float[Tensor, "batch row feature"]:
    """Return cached codes at the read-out rows; their hook point is gone with the splice."""
    codes = cache.cache_dict[name].detach()
    return codes if cache.rows == "readout" else cache.read_out.rows(codes)


def _mask(model: Any, dictionary: Dictionary, n_rows: int) -> Float[Tensor, "row 1"]:
    """Return 1 at the rows of the read-out that the dictionary is of, else 0.

    Raises:
        DictionaryError: It is of none of them.
    """
    if reads_text(model) and dictionary.origin.tokens != "all":
        raise DictionaryError(
            f"a cache does not say which of its tokens are {dictionary.origin.tokens!r}; make it within "
            "model.spliced(dictionary), where the codes are cached"
        )
    rule = token_rule(model, dictionary.origin.tokens)
    if rule is None:
        return torch.ones(n_rows, 1)
    rows = [float(position in set(rule)) for position in model.readout.positions(model.cfg.n_ctx)]
    if not any(rows):
        raise DictionaryError(
            f"the embedding is read from {model.readout.words}, and the dictionary is of tokens "
            f"{dictionary.origin.tokens!r}: its features write nothing there; code= says what they would write, and "
            "vl.interventions.zero ablates them in the model"
        )
    return torch.tensor(rows)[:, None]
