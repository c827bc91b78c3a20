"""Path patching of prompts equals the published algorithm, run on the parts of the stock modules, head by head."""

from types import SimpleNamespace

import pytest
import text_towers
import torch
from conftest import randomize
from torch.nn.functional import linear

pytestmark = pytest.mark.tl3
EXACT = dict(atol=1e-11, rtol=1e-9)

BASE = ["a red star", "a blue, starry star of red"]
SOURCE = ["of a blue, red star", "red star"]
SENDERS = {
    "L0H1": ((0, "head", 1), 1),
    "L1.attn": ((1, "attn"), 3),
    "L0.mlp": ((0, "mlp"), 2),
    "L0.resid_pre": ((0, "resid_pre"), 0),
    "L2H0": ((2, "head", 0), 5),
}
RECEIVERS = {
    "L1H2.q": {(1, "q", 2): 2},
    "L2H0.k": {(2, "k", 0): 4},
    "L2H1.v": {(2, "v", 1): 4},
    "L1H0": {(1, fork, 0): 2 for fork in "qkv"},
    "L2.attn.v": {(2, "v", head): 4 for head in range(3)},
    "L1.mlp": {(1, "mlp_in"): 3},
    "L1H0.q + L2H2.k": {(1, "q", 0): 2, (2, "k", 2): 4},
    "final": {(2, "resid_post"): 6},
}


# ---- the stock modules, part by part: nothing of the package is in here ---------------------------------------------


def weights_of(*modules):
    return [(module.weight, module.bias) for module in modules]


def of_clip(source):
    inner = getattr(source, "text_model", source)
    blocks = [
        SimpleNamespace(
            norm1=layer.layer_norm1, norm2=layer.layer_norm2, mlp=layer.mlp, write=layer.self_attn.out_proj,
            qkv=weights_of(layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj),
        )
        for layer in inner.encoder.layers
    ]  # fmt: skip

    def read(x, ids):
        pooled = inner.final_layer_norm(x)[torch.arange(len(x)), (ids == ids.max()).int().argmax(-1)]
        return source.text_projection(pooled)

    return SimpleNamespace(
        embed=lambda ids: inner.embeddings(input_ids=ids), blocks=blocks, read=read, scale=10**-0.5, bias=0,
        causal=True, whole=lambda ids, mask: source(input_ids=ids, attention_mask=mask).text_embeds,
    )  # fmt: skip


def of_t5(source):
    encoder = source.encoder
    blocks = [
        SimpleNamespace(
            norm1=attn.layer_norm, norm2=mlp.layer_norm, mlp=mlp.DenseReluDense, write=attn.SelfAttention.o,
            qkv=weights_of(attn.SelfAttention.q, attn.SelfAttention.k, attn.SelfAttention.v),
        )
        for attn, mlp in (block.layer for block in encoder.block)
    ]  # fmt: skip
    bias = encoder.block[0].layer[0].SelfAttention.compute_bias
    return SimpleNamespace(
        embed=encoder.embed_tokens, blocks=blocks, read=lambda x, ids: encoder.final_layer_norm(x), scale=1, bias=bias,
        causal=False, whole=lambda ids, mask: source(input_ids=ids, attention_mask=mask).last_hidden_state,
    )  # fmt: skip


def of_open_clip(source):
    blocks = [
        SimpleNamespace(
            norm1=block.ln_1, norm2=block.ln_2, mlp=lambda x, block=block: block.ls_2(block.mlp(x)),
            write=lambda x, block=block: block.ls_1(block.attn.out_proj(x)),
            qkv=list(zip(block.attn.in_proj_weight.chunk(3), block.attn.in_proj_bias.chunk(3), strict=True)),
        )
        for block in source.transformer.resblocks
    ]  # fmt: skip

    def read(x, ids):
        return source.ln_final(x)[torch.arange(len(x)), ids.argmax(-1)] @ source.text_projection

    return SimpleNamespace(
        embed=lambda ids: source.token_embedding(ids) + source.positional_embedding[: ids.shape[1]], blocks=blocks,
        read=read, scale=10**-0.5, bias=0, causal=source.attn_mask is not None, whole=lambda ids, mask: source(ids),
    )  # fmt: skip


def slow(parts, ids, mask, edit=lambda place, value: value):
    """The tower, one head after the other; ``edit(place, value)`` may change what passes a place."""
    n, resid = ids.shape[1], parts.embed(ids)
    bias = parts.bias(n, n) if callable(parts.bias) else torch.zeros(1, 3, 1, 1)
    seen = torch.ones(n, n, dtype=torch.bool) if mask is None else mask[:, None, :].expand(-1, n, -1)
    seen = seen.tril() if parts.causal else seen
    for layer, block in enumerate(parts.blocks):
        resid, zs = edit((layer, "resid_pre"), resid), []
        for head in range(3):
            read = [block.norm1(edit((layer, fork, head), resid)) for fork in "qkv"]
            q, k, v = (
                linear(x, *weights).unflatten(-1, (3, -1))[:, :, head]
                for x, weights in zip(read, block.qkv, strict=True)
            )
            scores = q @ k.transpose(1, 2) * parts.scale + bias[:, head]
            z = scores.masked_fill(~seen, float("-inf")).softmax(-1) @ v
            zs.append(edit((layer, "head", head), z))
        resid = edit((layer, "resid_mid"), resid + edit((layer, "attn"), block.write(torch.cat(zs, -1))))
        mlp_out = edit((layer, "mlp"), block.mlp(block.norm2(edit((layer, "mlp_in"), resid))))
        resid = edit((layer, "resid_post"), resid + mlp_out)
    return parts.read(resid, ids)


def recorded(parts, ids, mask):
    """What passes every place of the slow pass."""
    seen = {}
    slow(parts, ids, mask, lambda place, value: seen.setdefault(place, value))
    return seen


def slow_path(parts, base, source, place, reads, through_mlps, put):
    """Wang et al.: freeze everything but the sender, record what the receiver reads, put it into a clean run."""
    ours, theirs = recorded(parts, *base), recorded(parts, *source)
    seen = {}

    def frozen(at, value):
        if at in reads:
            seen[at] = value
        if at == place:
            return put(ours[at], theirs[at])
        if at[1] == "head" or (at[1] == "mlp" and not through_mlps):
            return ours[at]
        return value

    slow(parts, *base, frozen)
    return slow(parts, *base, lambda at, value: seen[at] if at in reads else value)


# ---- what is tested --------------------------------------------------------------------------------------------------

KINDS = {
    "clip": (lambda: text_towers.clip_text(randomize), text_towers.clip_tokenizer, of_clip),
    "t5 1.1": (lambda: text_towers.t5_encoder(randomize, gated=True), text_towers.t5_tokenizer, of_t5),
    "t5 1.0": (lambda: text_towers.t5_encoder(randomize, gated=False), text_towers.t5_tokenizer, of_t5),
    "open_clip": (lambda: text_towers.open_clip_text(randomize), lambda: None, of_open_clip),
    "open_clip both ways": (
        lambda: text_towers.open_clip_text(randomize, no_causal_mask=True, ls_init_value=None), lambda: None,
        of_open_clip,
    ),
}  # fmt: skip


def build(kind):
    from vit_lens import HookedTextEncoder

    make, tokenizer, of = KINDS[kind]
    source = make()
    model = HookedTextEncoder.from_module(source, tokenizer=tokenizer()).requires_grad_(False)
    return SimpleNamespace(model=model, parts=of(source), is_t5=of is of_t5, has_texts=model.tokenizer is not None)


@pytest.fixture(scope="module", params=KINDS)
def tower(request):
    with pytest.MonkeyPatch.context() as patch:
        text_towers.exact_t5_norms(patch)
        yield build(request.param)


@pytest.fixture(scope="module", params=["clip", "t5 1.1"])
def worded(request):
    with pytest.MonkeyPatch.context() as patch:
        text_towers.exact_t5_norms(patch)
        yield build(request.param)


def prompts_of(tower):
    """Two pairs of prompts as a user gives them, and the ids and masks of both, filled up alike by hand."""
    if not tower.has_texts:
        ids = torch.randint(1, 22, (4, 11), generator=torch.Generator().manual_seed(5))
        for row, end in enumerate((4, 10, 7, 2)):
            ids[row, end], ids[row, end + 1 :] = 22, 0
        return (ids[:2], ids[2:]), (ids[:2], None), (ids[2:], None)
    rows = tower.model.tokenizer([*BASE, *SOURCE])["input_ids"]
    width = max(map(len, rows))
    pad = 0 if tower.is_t5 else rows[0][-1]
    ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows])
    mask = torch.tensor([[i < len(row) for i in range(width)] for row in rows]) if tower.is_t5 else None
    masks = (None, None) if mask is None else (mask[:2], mask[2:])
    return (BASE, SOURCE), (ids[:2], masks[0]), (ids[2:], masks[1])


def number(out):
    """A number of each output that every entry counts for, another weight for each."""
    flat = out.flatten(1)
    return flat @ torch.arange(1, 1 + flat.shape[1], dtype=flat.dtype).sin()


def caches(tower, base, source):
    return [tower.model.run_with_cache(ids, attention_mask=mask)[1] for ids, mask in (base, source)]


def at_rows(here, there):
    """What a sender is set to: ours, with their rows ``there`` at our rows ``here`` of each prompt."""

    def put(ours, theirs):
        out = ours.clone()
        for prompt, (write, read) in enumerate(zip(here, there, strict=True)):
            out[prompt, write] = theirs[prompt, read]
        return out

    return put


def test_the_slow_pass_is_the_stock_one(tower):
    _, *both = prompts_of(tower)
    for ids, mask in both:
        torch.testing.assert_close(slow(tower.parts, ids, mask), tower.parts.whole(ids, mask), **EXACT)


@pytest.mark.parametrize("through_mlps", [False, True])
@pytest.mark.parametrize("sender", SENDERS)
def test_paths_equal_the_published_algorithm_run_on_the_stock_module(tower, sender, through_mlps):
    from vit_lens.interventions import patch_paths, path

    given, base, source = prompts_of(tower)
    found = patch_paths(tower.model, *given, number, sender, list(RECEIVERS), through_mlps=through_mlps, batch_size=5)
    ours, theirs = caches(tower, base, source)
    clean = tower.parts.whole(*base)
    torch.testing.assert_close(found.base, number(clean), **EXACT)
    torch.testing.assert_close(found.source, number(tower.parts.whole(*source)), **EXACT)
    place, written = SENDERS[sender]
    for column, (receiver, reads) in enumerate(RECEIVERS.items()):
        if min(reads.values()) < written:
            assert (found.effect[0, column] == 0).all(), receiver
            continue
        expected = slow_path(tower.parts, base, source, place, reads, through_mlps, lambda ours, theirs: theirs)
        hooks = path(tower.model, sender, receiver, ours, theirs, through_mlps=through_mlps)
        out = tower.model.run_with_hooks(base[0], fwd_hooks=hooks, attention_mask=base[1])
        torch.testing.assert_close(out, expected, **EXACT)
        torch.testing.assert_close(found.values[0, column], number(expected), **EXACT)
        assert (expected - clean).abs().max() > 1e-6, receiver


@pytest.mark.parametrize("receiver", ["L1H2.q", "L2.attn.v", "final"])
@pytest.mark.parametrize(
    ("sender", "tokens"),
    [
        ('L0H1@"star"', None), ("L0.mlp", '"star"'), ("L0.mlp@eos", None), ("L0H1", ["eos", '"red"']),
        ("L0.mlp@2", None),
    ],
)  # fmt: skip
def test_a_word_is_taken_from_where_the_source_has_it(worded, sender, tokens, receiver):
    from vit_lens.interventions import patch_paths, path

    _, base, source = prompts_of(worded)
    model = worded.model
    where = tokens or sender.split("@")[1]
    rows = []
    for ids, _ in (base, source):
        rows.append([])
        for row in ids.tolist():
            pieces = [
                piece.strip("\u2581").removesuffix("</w>") for piece in model.tokenizer.convert_ids_to_tokens(row)
            ]
            end = pieces.index("</s>" if worded.is_t5 else "<|endoftext|>")
            star = len(pieces) - 1 - pieces[::-1].index("star")  # T5 writes "starry" with a star, too
            places = {"eos": end, '"star"': star, '"red"': pieces.index("red"), "2": 2, 0: 0}
            wanted = where if isinstance(where, list) else [where]
            rows[-1].append([places[each] for each in wanted])
    assert where == "2" or rows[0] != rows[1]
    site = sender.split("@")[0]
    args = (*SENDERS[site][:1], RECEIVERS[receiver], False, at_rows(*rows))
    expected = slow_path(worded.parts, base, source, *args)
    hooks = path(model, sender, receiver, *caches(worded, base, source), tokens=tokens)
    out = model.run_with_hooks(base[0], fwd_hooks=hooks, attention_mask=base[1])
    torch.testing.assert_close(out, expected, **EXACT)
    is_read = worded.is_t5 or receiver != "final" or "eos" in where  # CLIP's end reads no other token directly
    assert ((expected - worded.parts.whole(*base)).abs().max() > 1e-6) == is_read
    found = patch_paths(model, BASE, SOURCE, number, site, receiver, tokens=int(where) if where == "2" else where)
    torch.testing.assert_close(found.values[0, 0], number(expected), **EXACT)
    # each as long as its own prompts are: words need no filling up alike
    ours, theirs = (model.run_with_cache(each)[1] for each in (BASE[:1], SOURCE[:1]))
    assert ours["z", 0].shape[1] < theirs["z", 0].shape[1]
    if where != "2":
        hooks = path(model, sender, receiver, ours, theirs, tokens=tokens)
        alone, n = model.run_with_hooks(BASE[:1], fwd_hooks=hooks), ours["z", 0].shape[1]
        torch.testing.assert_close(alone, expected[:1, :n] if worded.is_t5 else expected[:1], **EXACT)


@pytest.mark.parametrize("site", ["L0H1", "L1.resid_pre"])
def test_each_of_several_words_is_taken_from_its_own_place(worded, site):
    """Red before star, and star before red: by patching as along a path."""
    from vit_lens.errors import InterventionError
    from vit_lens.interventions import patch, path

    model, words = worded.model, ['"star"', '"red"']
    base, source = "red star", "a star of red"
    places = [[int(model.positions_of(word, each).int().argmax()) for word in words] for each in (base, source)]
    assert places[0][0] > places[0][1] and places[1][0] < places[1][1]
    (_, ours), (_, theirs) = model.run_with_cache(base), model.run_with_cache(source)
    one_by_one = [hook for word in words for hook in patch(model, f"{site}@{word}", theirs, prompts=base)]
    both = patch(model, site, theirs, tokens=words, prompts=base)
    expected = model.run_with_hooks(base, fwd_hooks=one_by_one)
    torch.testing.assert_close(model.run_with_hooks(base, fwd_hooks=both), expected, **EXACT)

    (name, whole), *_ = path(model, site, "final", ours, theirs, tokens=words)
    resid, point = ours[name], model.hook_dict[name]
    parts = [path(model, f"{site}@{word}", "final", ours, theirs)[0][1](resid, point) - resid for word in words]
    torch.testing.assert_close(whole(resid, point), resid + sum(parts), **EXACT)
    with pytest.raises(InterventionError, match=r"one token of prompt 0 is named twice, and would be read at two"):
        patch(model, site, theirs, tokens=['"red"', places[0][1]], prompts=base)


def test_tokens_by_mask(worded):
    from vit_lens.interventions import patch_paths

    _, base, source = prompts_of(worded)
    mask = torch.zeros(base[0].shape, dtype=torch.bool)
    mask[0, 3], mask[1, [1, 2]] = True, True
    here = [[3], [1, 2]]
    place, reads = SENDERS["L0H1"][0], RECEIVERS["L2H1.v"]
    expected = slow_path(worded.parts, base, source, place, reads, True, at_rows(here, here))
    found = patch_paths(worded.model, BASE, SOURCE, number, "L0H1", "L2H1.v", tokens=mask, through_mlps=True)
    torch.testing.assert_close(found.values[0, 0], number(expected), **EXACT)


def test_direct_paths_to_the_end_add_up_to_the_other_prompts(tower):
    """What all senders write more is the whole difference of the last residual streams: T5 has no biases, CLIP has."""
    from vit_lens import Site
    from vit_lens.interventions import path

    model, (_, base, source) = tower.model, prompts_of(tower)
    ours, theirs = caches(tower, base, source)
    name = "blocks.2.hook_resid_post"
    total = ours[name].clone()
    for site in ["L0.resid_pre", *Site.heads(model), *Site.mlps(model)]:
        ((at, hook),) = path(model, site, "final", ours, theirs)
        assert at == name
        total += hook(ours[name], model.hook_dict[name]) - ours[name]
    torch.testing.assert_close(total, recorded(tower.parts, *source)[(2, "resid_post")], **EXACT)


def test_a_pair_of_prompts_has_the_same_paths_alone_and_beside_longer_ones(worded):
    from vit_lens.interventions import patch_paths

    model, asked = worded.model, (["heads", "mlp"], ["final", "L1.mlp", "L2H1.k"])
    base, source = "a red star", "a blue star"

    def at_its_end(out):
        return number(out[:, 3] if worded.is_t5 else out)

    alone = patch_paths(model, base, source, at_its_end, *asked)
    beside = patch_paths(model, [base, BASE[1]], [source, SOURCE[0]], at_its_end, *asked)
    torch.testing.assert_close(alone.values[..., 0], beside.values[..., 0], **EXACT)
    assert (alone.effect != 0).sum() > 20


def test_equal_prompts_have_no_paths(worded):
    from vit_lens.interventions import patch_paths

    found = patch_paths(worded.model, BASE, BASE, number, ["heads", "mlp"], ["final", "L2H0.q", "L1.mlp"])
    assert found.effect.abs().max() < 1e-10


def test_paths_of_prompts_that_cannot_be_are_told(worded, vit, pixels, errors, unchecked):
    from vit_lens.interventions import patch_paths, path

    model, wrong = worded.model, errors.InterventionError
    (_, ours), (_, theirs) = model.run_with_cache(BASE), model.run_with_cache(SOURCE)
    _, one = model.run_with_cache(SOURCE[:1])
    with pytest.raises(wrong, match="base holds 2 prompts, source 1; they go in pairs"):
        patch_paths(model, BASE, SOURCE[:1], number)
    with pytest.raises(wrong, match="base holds 1 prompts, source 2; they go in pairs"):
        patch_paths(model, BASE[0], SOURCE, number)
    for none in (3, None, torch.tensor(3)):
        with pytest.raises(wrong, match=r"base or source is a (int|NoneType|Tensor); expected pixels .* or prompts"):
            patch_paths(model, none, SOURCE, number)
    for sender in ("L0H1", 'L0H1@"star"'):
        with pytest.raises(wrong, match="base holds 2 prompts, source 1"):
            path(model, sender, "final", ours, one)
    with pytest.raises(wrong, match=r"L0H1: base has \d+ tokens, source \d+; fill both up alike, model.to_tokens"):
        path(model, "L0H1", "final", ours, theirs)
    with pytest.raises(wrong, match=r"fill both up alike"):
        patch_paths(model, model.to_tokens(BASE), SOURCE, number)
    width = model.to_tokens(BASE).shape[1]  # and the advice works
    filled = [model.to_tokens(each, pad_to=width) for each in (BASE, SOURCE)]
    assert "1 senders x 1 receivers x 2 prompts" in repr(patch_paths(model, *filled, number, "L0H1"))
    patch_paths(model, model.to_tokens(BASE), SOURCE, number, "L0H1", tokens="eos")

    with pytest.raises(wrong, match='has no word "moon"; nearest'):
        path(model, 'L0H1@"moon"', "final", ours, theirs)
    with pytest.raises(wrong, match=r"the prompt 'red star' has no word \"of\""):
        patch_paths(model, BASE[1:], SOURCE[1:], number, tokens='"of"')
    with pytest.raises(wrong, match="is 2 tokens of prompt 0, and 1 of the cached one"):
        patch_paths(model, "red of red", "red star", number, tokens='"red"')
    with pytest.raises(wrong, match=r"cls.*: these prompts have 'eos', 'pad', words"):
        path(model, "L0H1@cls", "final", ours, ours)
    with pytest.raises(wrong, match=r"tokens= is a mask of shape \(2, 4\); the prompts of base are \(2, \d+\)"):
        patch_paths(model, BASE, SOURCE, number, tokens=torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(wrong, match=r"there is no path from L1H0 to L1H1.q: the receiver does not come after it"):
        path(model, 'L1H0@"star"', "L1H1.q", ours, theirs)
    with pytest.raises(wrong, match=r'receiver L2H1.q@"star": a receiver reads every token; the sender says at which'):
        path(model, "L0H1", 'L2H1.q@"star"', ours, theirs)

    resid = model(filled[0], stop_at_layer=1)
    _, later = model.run_with_cache(resid, start_at_layer=1, tokens=filled[0])
    with pytest.raises(wrong, match="a cache does not say which prompts it is of"):
        path(model, "L1H1@eos", "final", later, later)
    path(model, "L1H1", "L2H0.q", later, later)
    hooks = path(model, "L0H1@eos", "L1.mlp", ours, theirs)
    with pytest.raises(wrong, match="or of other inputs"):
        model.run_with_hooks(SOURCE, fwd_hooks=hooks)
    with pytest.raises(errors.TextError, match=r"a tensor of shape \(3, 3, .*; expected texts, or ids \[batch pos\]"):
        patch_paths(model, pixels, pixels, number)
    with pytest.raises(errors.PreprocessError, match="expected a tensor of pixels, got list"):
        patch_paths(vit, BASE, SOURCE, number)


def test_texts_need_a_tokenizer(errors):
    from vit_lens.interventions import patch_paths, path

    model = build("open_clip").model
    with pytest.raises(errors.TextError, match=r"needs a tokenizer, .* or give ids"):
        patch_paths(model, BASE, SOURCE, number)
    (ids, others), *_ = prompts_of(build("open_clip"))
    with pytest.raises(errors.TextError, match="needs a tokenizer"):
        path(model, 'L0H1@"star"', "final", model.run_with_cache(ids)[1], model.run_with_cache(others)[1])
    patch_paths(model, ids, others, number, "L0H1", tokens="eos")
