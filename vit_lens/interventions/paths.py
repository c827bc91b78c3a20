"""Path patching (Wang et al. 2022, arXiv 2211.00593; Goldowsky-Dill et al. 2023, arXiv 2304.05969).

The effect of a sender on the output along one edge: the sender takes its activation from a second image or prompt, and
only the receiver sees it. What lies between is held at the first one's activations; what follows the receiver is
computed anew. Steps 2 to 4 of the algorithm in Wang et al., appendix B, with the receiver's input in place of its
queries, keys and values.
"""

__all__ = ["patch_paths", "path"]

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vit_lens.addresses import Address, Site, Sites, find_address, listed, spelled
from vit_lens.attribution import check_model
from vit_lens.config import HookedTextConfig
from vit_lens.errors import InterventionError
from vit_lens.interventions.metrics import Metric, measure
from vit_lens.interventions.receivers import Input, Receiver, place_written, resolve_receiver, spelled_receiver
from vit_lens.interventions.replacing import Hooks, check_cache
from vit_lens.interventions.results import PathEffects
from vit_lens.interventions.running import Inputs, check_pairs, given_beside, refuse_other_hooks, run_sets
from vit_lens.interventions.targets import Target, resolve_targets
from vit_lens.tokens import Tokens
from vit_lens.towers import Tower, ViTActivationCache

_Stream = Callable[[int], Tensor]  # place on the residual stream -> [batch pos d_model]


def path(
    model: Tower,
    sender: Site | Address | str,
    receiver: Receiver,
    base: ViTActivationCache,
    source: ViTActivationCache,
    *,
    through_mlps: bool = False,
    tokens: Tokens | None = None,
) -> Hooks:
    """Return hooks that patch one path, for a run of the images or prompts that ``base`` was made of.

    They set what the receiver reads to the residual stream of ``base`` plus what the sender writes more in
    ``source``. Where a receiver has parts in several layers, each is set so: the later ones do not see the earlier.

    Args:
        model: The model that will be run.
        sender: A head, attention block, MLP or residual (``L0.resid_pre``: the embedded image); ``L3H4@cls`` also says
            at which tokens. A word (``L3.mlp@"star"``) or an end is taken from where ``source`` has it, and written
            where ``base`` has it.
        receiver: What sees the change, such as ``final`` or ``L6H2.q``; see :func:`resolve_receiver`.
        base: The cache of the images or prompts that are run, at every token.
        source: The cache of as many others, at every token; prompts are filled up to as many tokens as those of
            ``base``, but where the sender is at a word or an end.
        through_mlps: Whether MLPs between sender and receiver pass the change on, as in Wang et al., while attention
            between them is held; by default both are held.
        tokens: The tokens at which the sender takes from ``source`` (:func:`vit_lens.tokens.resolve_tokens`, of
            prompts as behind ``@``); None for all.

    Raises:
        UnknownSiteError: A site is not one of the model's.
        UnknownHookError: A cache lacks an activation.
        InterventionError: The receiver does not come after the sender, a prompt has no such word, or the caches do not
            fit.
        VitLensError: There are hooks on the model, and ``through_mlps`` has to run it.

    >>> _, other = model.run_with_cache(pixels.flip(0))
    >>> hooks = vl.interventions.path(model, "L3H4", "L5H2.q", base=cache, source=other)
    >>> hooks[0][0]
    'blocks.5.hook_q_input'
    >>> model.run_with_hooks(pixels, fwd_hooks=hooks).shape
    torch.Size([2, 128])
    >>> prompts, others = ["a red star"], ["a striped blue ring"]
    >>> base, source = (text_model.run_with_cache(each)[1] for each in (prompts, others))
    >>> ends = vl.interventions.path(text_model, "L0.mlp@eos", "L1H2.q", base, source)
    >>> text_model.run_with_hooks(prompts, fwd_hooks=ends).shape
    torch.Size([1, 128])
    """
    check_model(model, InterventionError)
    for cache in (base, source):
        check_cache(model, cache)
        if cache.rows != "all":
            raise InterventionError("path patching needs caches of every token: leave rows= and pos_slice=")
    targets = _senders_at(model, sender, tokens, base, source)
    if targets[0].site is None or len(targets) > 1:
        raise InterventionError(f"sender {sender}: expected one head, attention block, MLP or residual")
    inputs, part = resolve_receiver(receiver, model.cfg), targets[0].address
    if any(held.place < place_written(part) for held in inputs):
        raise InterventionError(f"there is no path from {part} to {receiver}: the receiver does not come after it")
    last = max(held.place for held in inputs)
    return _hooks(inputs, _changed(model, targets[0], base, source, through_mlps, last))


def patch_paths(
    model: Tower,
    base: Inputs,
    source: Float[Tensor, "_ channel height width"] | Int[Tensor, "_ source_pos"] | str | Sequence[str],
    metric: Metric,
    senders: Sites = "heads",
    receivers: Sequence[Receiver] | Receiver = "final",
    *,
    through_mlps: bool = False,
    tokens: Tokens | None = None,
    batch_size: int = 64,
) -> PathEffects:
    """Run ``base`` once for every sender and receiver, with that path alone taken from ``source``.

    Where a receiver does not come after a sender there is no path, and the effect is zero.

    Args:
        model: The model, without hooks.
        base: The preprocessed images that are run; of a text tower prompts, as texts or ids. Texts of ``base`` and
            ``source`` are filled up to the longest of all.
        source: The preprocessed images or prompts that senders take from, as many.
        metric: A function of the embeddings ``[batch d_embed]`` (of T5 ``[batch pos d_embed]``) that gives one number
            for each, or one for all.
        senders: Sites as ``Site.resolve`` takes them; heads of attention pooling have nothing behind them and are left
            out of the group ``heads``.
        receivers: One receiver or a list, see :func:`resolve_receiver`; each is patched by itself,
            ``"L2H1.q + L3H0.q"`` together.
        through_mlps: Whether MLPs between sender and receiver pass the change on, as for :func:`path`.
        tokens: The tokens at which senders take from ``source``, as for :func:`path`; None for all.
        batch_size: The number of images in one run.

    Raises:
        UnknownSiteError: A site is not one of the model's.
        TextError: Prompts that the tower does not read.
        InterventionError: The numbers of images or prompts differ, ids are of other lengths, a prompt has no such word,
            no receiver is given, a sender or receiver is not one of those that :func:`path` takes, or the metric gives
            something else.
        VitLensError: There are hooks on the model.

    >>> toward = vl.interventions.cosine_to(model(pixels[1:]))
    >>> vl.interventions.patch_paths(model, pixels[:1], pixels[1:], toward, "L3H4, L0H0", ["final", "L5H2.q"])
    PathEffects(2 senders x 2 receivers x 1 images; .tensor(), .frame())
    >>> prompts, others = ["a red star", "a ring"], ["a blue star", "a striped ring"]
    >>> toward = vl.interventions.cosine_to(text_model(others))
    >>> found = vl.interventions.patch_paths(text_model, prompts, others, toward, "heads", "final", tokens="eos")
    >>> found.tensor().shape  # [layer head batch]
    torch.Size([2, 4, 2])
    """
    refuse_other_hooks(model)
    sites = _senders(model, senders)
    names = list(receivers) if isinstance(receivers, Iterable) and not isinstance(receivers, str) else [receivers]
    if not names:
        raise InterventionError("no receivers given; for example receivers='final' or ['L6H2.q', 'L6.mlp']")
    inputs = [resolve_receiver(name, model.cfg) for name in names]
    base, source = ([each] if isinstance(each, str) else each for each in (base, source))
    check_pairs(base, source)
    beside, of_source = _filled_alike(model, base, source)
    clean, own = _run(model, base, beside, sites, inputs, through_mlps)
    other, donors = _run(model, source, of_source, sites, inputs, through_mlps)
    values = []
    for sender in _senders_at(model, sites, tokens, own, donors):
        embeds = _embeds(model, sender, inputs, own, donors, beside, through_mlps, batch_size, clean)
        values.append(torch.stack([measure(metric, one) for one in embeds]))
    return PathEffects(
        senders=tuple(sites), receivers=tuple(map(spelled_receiver, names)), cfg=model.cfg, values=torch.stack(values),
        base=measure(metric, clean), source=measure(metric, other),
    )  # fmt: skip


def _filled_alike(model: Tower, base: Any, source: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return what runs of ``base`` and of ``source`` need beside a residual stream; nothing for images."""
    if isinstance(base, Tensor) or isinstance(source, Tensor):  # ids are taken as they are
        return model.beside(base), model.beside(source)
    both, n = model.beside([*base, *source]), len(base)
    return {name: x[:n] for name, x in both.items()}, {name: x[n:] for name, x in both.items()}


def _senders_at(
    model: Tower, senders: Sites, tokens: Tokens | None, base: ViTActivationCache, source: ViTActivationCache
) -> list[Target]:
    """Return senders, and which tokens of ``base`` they write, which of ``source`` they are read at."""
    ids, others = base.read_out.ids, source.read_out.ids
    if ids is not None and others is not None:
        check_pairs(ids, others)
    is_placed = tokens is not None or any(getattr(find_address(str(x)), "position", None) for x in listed(senders))
    if is_placed and isinstance(model.cfg, HookedTextConfig) and (ids is None or others is None):
        raise InterventionError(
            "a cache does not say which prompts it is of, so where their tokens are is not known; make base and source "
            "with run_with_cache(prompts), without start_at_layer"
        )
    if isinstance(tokens, Tensor) and tokens.dtype == torch.bool and ids is not None and tokens.shape != ids.shape:
        raise InterventionError(
            f"tokens= is a mask of shape {tuple(tokens.shape)}; the prompts of base are {tuple(ids.shape)}, [batch pos]"
        )
    found = resolve_targets(model, senders, tokens, ids, others)
    if features := [str(one.address) for one in found if one.address.feature is not None]:
        raise InterventionError(
            f"{', '.join(features)}: paths begin at sites and neurons; zero and patch take features"
        )
    return found


def _embeds(
    model: Tower,
    sender: Target,
    receivers: list[list[Input]],
    base: ViTActivationCache,
    source: ViTActivationCache,
    beside: Mapping[str, Tensor],
    through_mlps: bool,
    batch_size: int,
    clean: Float[Tensor, "batch *pos d_embed"],
) -> list[Float[Tensor, "batch *pos d_embed"]]:
    """Return the embedding for each receiver: closed form at the end, runs in between, clean where no path leads."""
    open_to = [i for i, inputs in enumerate(receivers) if min(x.place for x in inputs) >= place_written(sender.address)]
    embeds = dict.fromkeys(range(len(receivers)), clean)
    last = max((held.place for i in open_to for held in receivers[i]), default=0)
    changed = _changed(model, sender, base, source, through_mlps, last)
    end = 2 * model.cfg.n_layers
    runs = [i for i in open_to if receivers[i][0].place != end]
    if runs:
        sets = [_hooks(receivers[i], changed) for i in runs]
        resid = partial(_stream, model, base)
        found = run_sets(model, lambda layer: resid(2 * layer), sets, batch_size, lambda own: own, beside)
        embeds.update(zip(runs, found, strict=True))
    for i in set(open_to) - set(runs):
        with torch.no_grad():
            embeds[i] = base.read_out.read(base.read_out.rows(changed(end))).to(clean)
    return list(embeds.values())


def _changed(
    model: Tower,
    sender: Target,
    base: ViTActivationCache,
    source: ViTActivationCache,
    through_mlps: bool,
    last: int,
) -> _Stream:
    """Return the residual stream, by place up to ``last``, when the sender takes from ``source``."""
    delta = _delta(model, sender, base, source)
    if not through_mlps:
        return partial(_moved, model, base, delta)
    refuse_other_hooks(model)
    first = place_written(sender.address)
    streams = {first: _stream(model, base, first) + delta}
    with torch.no_grad():
        for place in range(first, last):
            block, attn_out = model.blocks[place // 2], base[f"blocks.{place // 2}.hook_attn_out"]
            written = block.mlp(block.ln2(streams[place])) if place % 2 else attn_out.to(model.device)
            streams[place + 1] = streams[place] + written
    return streams.__getitem__


def _delta(
    model: Tower, sender: Target, base: ViTActivationCache, source: ViTActivationCache
) -> Float[Tensor, "batch pos d_model"]:
    """Return what a sender writes more in ``source`` than in ``base``, at its tokens."""
    ours, theirs, site = base[sender.hook_name], source[sender.hook_name], sender.address
    if len(ours) != len(theirs):
        raise InterventionError(
            f"{site}: base holds {len(ours)}, source {len(theirs)}; give both as many images or prompts"
        )
    if sender.sources is None and ours.shape != theirs.shape:
        raise InterventionError(
            f"{site}: base has {ours.shape[1]} tokens, source {theirs.shape[1]}; fill both up alike, "
            f"model.to_tokens(prompts, pad_to=...), or name tokens that each has at a place of its own: '{site}@eos'"
        )
    if site.head is not None:
        ours, theirs = ours[:, :, site.head], theirs[:, :, site.head]
    delta = _at_tokens(sender, ours, theirs).to(model.device)
    if site.head is None or site.layer is None:
        return delta
    weight = model.blocks[site.layer].attn.W_O[site.head].detach()
    return einsum(delta, weight, "batch pos k, k d -> batch pos d")


def _at_tokens(
    sender: Target, ours: Float[Tensor, "batch pos width"], theirs: Float[Tensor, "batch source_pos width"]
) -> Float[Tensor, "batch pos width"]:
    """Return how ``theirs`` differs from ``ours`` at the sender's tokens; zero at others."""
    if sender.places is None and sender.positions is None:
        return theirs - ours
    at = sender.places or [sender.positions or ()] * len(ours)
    image = [i for i, row in enumerate(at) for _ in row]
    here, there = ([place for row in rows for place in row] for rows in (at, sender.sources or at))
    delta = torch.zeros_like(ours)
    delta[image, here] = theirs[image, there] - ours[image, here]
    return delta


def _stream(model: Tower, cache: ViTActivationCache, place: int) -> Float[Tensor, "batch pos d_model"]:
    layer, n_layers = place // 2, model.cfg.n_layers
    if layer == n_layers:
        return cache[f"blocks.{n_layers - 1}.hook_resid_post"].to(model.device)
    return cache[f"blocks.{layer}.hook_resid_{'mid' if place % 2 else 'pre'}"].to(model.device)


def _moved(model: Tower, cache: ViTActivationCache, delta: Tensor, place: int) -> Float[Tensor, "batch pos d_model"]:
    return _stream(model, cache, place) + delta


def _hooks(inputs: list[Input], changed: _Stream) -> Hooks:
    by_name: dict[str, list[Input]] = {}
    for held in inputs:
        by_name.setdefault(held.hook_name, []).append(held)
    return [
        (name, partial(_set_input, changed=changed, place=held[0].place, heads=[x.head for x in held]))
        for name, held in by_name.items()
    ]


def _set_input(act: Tensor, hook: HookPoint, *, changed: _Stream, place: int, heads: list[int | None]) -> Tensor:
    stream = changed(place).to(act)
    if len(stream) != len(act):
        raise InterventionError(f"{hook.name}: the caches hold {len(stream)} images, the run has {len(act)}")
    if (stream.shape[1], stream.shape[-1]) != (act.shape[1], act.shape[-1]):
        raise InterventionError(f"{hook.name}: these hooks are of another model than this run, or of other inputs")
    if act.ndim == 3:  # an MLP's input, or the last residual
        return stream.clone()
    out = act.clone()
    for head in range(act.shape[2]) if None in heads else heads:
        out[:, :, head] = stream
    return out


def _senders(model: Tower, senders: Sites) -> list[Site]:
    sites = Site.resolve(senders, model.cfg)
    named = {spelled(item) for item in listed(senders)}
    kept = [site for site in sites if not site.is_pool or str(site) in named]
    for site in kept:
        place_written(site)
    return kept


def _run(
    model: Tower,
    inputs: Any,
    beside: Mapping[str, Tensor],
    sites: list[Site],
    receivers: list[list[Input]],
    through_mlps: bool,
) -> tuple[Tensor, ViTActivationCache]:
    last = model.cfg.n_layers - 1
    names = {site.hook_name for site in sites} | {f"blocks.{last}.hook_resid_post"}
    for place in {place_written(site) for site in sites} | {x.place for held in receivers for x in held}:
        if place <= 2 * last + 1:
            names.add(f"blocks.{place // 2}.hook_resid_{'mid' if place % 2 else 'pre'}")
    for held in receivers:  # runs start at the block of the receiver
        names |= {f"blocks.{x.place // 2}.hook_resid_pre" for x in held if x.place <= 2 * last + 1}
    if through_mlps:
        names |= {f"blocks.{layer}.hook_attn_out" for layer in range(model.cfg.n_layers)}
    with torch.no_grad():
        given = given_beside(beside, None)
        return model.run_with_cache(beside.get("tokens", inputs), names_filter=sorted(names), **given)
