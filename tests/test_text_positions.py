"""Tokens of prompts by word, end and filling: where they are, and what is replaced, read and attributed there."""

import pytest
import text_towers
import torch
from conftest import randomize
from text_towers import PROMPTS

pytestmark = pytest.mark.tl3
EXACT = dict(atol=1e-12, rtol=1e-10)


def build(kind):
    from vit_lens import HookedTextEncoder

    if kind == "clip":
        source, tokenizer = text_towers.clip_text(randomize), text_towers.clip_tokenizer()
    else:
        source, tokenizer = text_towers.t5_encoder(randomize, gated=True), text_towers.t5_tokenizer()
    return HookedTextEncoder.from_module(source, tokenizer=tokenizer).requires_grad_(False)


@pytest.fixture(scope="module", params=["clip", "t5"])
def model(request):
    return build(request.param)


def places(mask):
    return [row.nonzero()[:, 0].tolist() for row in mask]


def words(model, prompt, where):
    pieces = [piece.strip("\u2581").removesuffix("</w>") for piece in model.to_str_tokens(prompt)]
    return [pieces[place] for place in places(model.positions_of(where, prompt))[0]]


def test_words_are_where_they_stand(model):
    assert words(model, "a red star", '"star"') == ["star"]
    assert words(model, "a red star", '"Red star"') == ["red", "star"]
    assert words(model, "a blue, starry star of red", '"star"') == ["star"]  # part of a word is none
    assert "".join(words(model, "a blue, starry star", '"starry"')) == "starry"
    assert words(model, "red of red", '"red"') == ["red", "red"]
    assert words(model, "a star, of", ['"star"', '"of"']) == ["star", "of"]
    prompts = ["red star", "a blue red star"]
    ids = model.to_tokens(prompts, pad_to=12)
    assert places(model.positions_of('"star"', ids)) == places(model.positions_of('"star"', prompts))


def test_ends_fillings_and_numbers(model):
    ends = model.ends(PROMPTS)
    assert places(model.positions_of("eos", PROMPTS)) == [[int(end)] for end in ends]
    width = model.to_tokens(PROMPTS).shape[1]
    assert places(model.positions_of("pad", PROMPTS)) == [list(range(end + 1, width)) for end in ends]
    assert places(model.positions_of([1, "eos"], PROMPTS[0])) == [[1, int(ends[0])]]
    assert places(model.positions_of(1, PROMPTS)) == [[1]] * 3


def test_words_of_open_clip_s_tokenizer():
    import open_clip

    from vit_lens.texts import prompt_tokenizer

    tokenizer = prompt_tokenizer(open_clip.SimpleTokenizer(), 49408, 77)
    (row,) = tokenizer.ids(["A photo of Étretat's  12 starfish, star"], pad_to=30)
    said = {word: "".join(tokenizer.pieces([row[i] for i in tokenizer.places(row, word)])) for word in ("star", "of")}
    assert said == {"star": "star</w>", "of": "of</w>"}
    assert tokenizer.text([row[i] for i in (0, *tokenizer.places(row, "étretat"))]) == "étretat "


def test_what_prompts_do_not_have_is_told(model):
    from vit_lens.errors import InterventionError

    with pytest.raises(InterventionError, match=r"the prompt '' has no word \"star\"; it is empty"):
        model.positions_of('"star"', ["a star", ""])
    with pytest.raises(InterventionError, match=r"has no word \"stars\"; nearest: 'star'"):
        model.positions_of('"stars"', "a red star")
    with pytest.raises(
        InterventionError, match=r"40: these prompts have 'eos', 'pad', words such as '\"star\"', and positions 0 to"
    ):
        model.positions_of(40, "a red star")
    with pytest.raises(InterventionError, match=r"'cls': these prompts have"):
        model.positions_of("cls", "a red star")
    with pytest.raises(InterventionError, match=r"'pad' is nowhere: no prompt is filled up; model.to_tokens"):
        model.positions_of("pad", "a red star")
    with pytest.raises(InterventionError, match=r"these ids are not how the tokenizer writes"):
        ids = torch.cat([model.to_tokens("red star")[:, :2], model.to_tokens("a red star")[:, -2:]], 1)
        model.positions_of('"star"', ids.flip(1))


@pytest.mark.parametrize("site", ["L1.resid_post", "L0.mlp", "L1H2", "L1N7", "L1.attn"])
def test_zero_at_a_word(model, site):
    from vit_lens.interventions import zero

    prompts = ["red star", "a blue red star", "star of star"]
    hooks = zero(model, f'{site}@"star"', prompts=prompts)
    mask = model.positions_of('"star"', prompts)
    assert len(hooks) == 1
    name = hooks[0][0]

    def by_hand(act, hook):
        out = act.clone()
        for prompt, row in enumerate(places(mask)):
            if site == "L1H2":
                out[prompt, row, 2] = 0
            elif site == "L1N7":
                out[prompt, row, 7] = 0
            else:
                out[prompt, row] = 0
        return out

    expected = model.run_with_hooks(prompts, fwd_hooks=[(name, by_hand)])
    assert torch.equal(model.run_with_hooks(prompts, fwd_hooks=hooks), expected)
    assert (expected - model(prompts)).abs().max() > 1e-4
    by_mask = zero(model, site, tokens=mask)
    assert torch.equal(model.run_with_hooks(prompts, fwd_hooks=by_mask), expected)


def test_patching_a_word_reads_it_where_the_other_prompt_has_it(model):
    from vit_lens.errors import InterventionError
    from vit_lens.interventions import patch

    run, other = ["a red star", "star of red"], ["star", "a blue blue star"]
    _, cache = model.run_with_cache(other)
    hooks = patch(model, 'L1.resid_post@"star"', cache, prompts=run)
    name, source = "blocks.1.hook_resid_post", cache["resid_post", 1]
    here, there = (places(model.positions_of('"star"', each)) for each in (run, other))

    def by_hand(act, hook):
        out = act.clone()
        for prompt in range(2):
            out[prompt, here[prompt]] = source[prompt, there[prompt]]
        return out

    expected = model.run_with_hooks(run, fwd_hooks=[(name, by_hand)])
    assert torch.equal(model.run_with_hooks(run, fwd_hooks=hooks), expected)
    same = patch(model, 'L1.resid_post@"star"', cache, prompts=run, images=1)
    expected = [source[1, there[1]]] * 2
    with model.hooks(same):
        _, after = model.run_with_cache(run)
    got = [after["resid_post", 1][prompt, here[prompt]] for prompt in range(2)]
    torch.testing.assert_close(got, expected, **EXACT)
    with pytest.raises(InterventionError, match=r"is 1 tokens of prompt 0, and 2 of the cached one; patch words of as"):
        patch(model, 'L1.resid_post@"star"', model.run_with_cache(["star of star"])[1], prompts=["a star"])
    with pytest.raises(InterventionError, match=r"prompts= are 2, .* and the run has 1; give the prompts that are run"):
        model.run_with_hooks("a star", fwd_hooks=hooks)


def test_donors_are_read_at_their_own_words(model):
    from vit_lens.interventions import resample

    prompts = ["a red star", "star of red", "blue star"]
    _, cache = model.run_with_cache(prompts)
    hooks = resample(model, 'L0.mlp@"star"', cache, seed=3)
    assert (model.run_with_hooks(prompts, fwd_hooks=hooks) - model(prompts)).abs().max() > 1e-4


def test_what_has_no_effect_or_no_prompts_is_told(model, vit):
    from vit_lens.errors import InterventionError
    from vit_lens.interventions import zero

    prompts = ["a red star", "star of red"]
    with pytest.raises(
        InterventionError, match=r'"star".* is at a place of its own in every prompt; say which are run: prompts='
    ):
        zero(model, 'L1.mlp@"star"')
    for later in ("L1.resid_post", 'L1.resid_post@"star"'):
        with pytest.raises(InterventionError, match=r"L1.mlp would have no effect: L1.resid_post is replaced too"):
            zero(model, ['L1.mlp@"star"', later], prompts=prompts)
    zero(model, ['L1.mlp@"star"', 'L1.resid_post@"red"'], prompts=prompts)
    with pytest.raises(InterventionError, match="prompts= says where words are, and a HookedViT reads none"):
        zero(vit, "L1.mlp@cls", prompts=["a"])


@pytest.mark.parametrize("where", ['"star"', 1, "eos"])
def test_attribution_and_lenses_at_a_token(model, where):
    from vit_lens import DiffusionLens, DiffusionSteeringLens
    from vit_lens.attribution import split_embedding, token_parts

    prompts = ["a red star", "star of red"]
    _, cache = model.run_with_cache(prompts)
    there = cache.read_at(where)
    mask = model.positions_of(where, prompts)
    normed = cache["ln_final.hook_normalized"][mask]
    expected = normed if model.unembed is None else normed @ model.W_U
    parts = split_embedding(there)
    torch.testing.assert_close(parts.total, expected, **EXACT)
    assert parts.labels[0] == "embed" and ("pos_embed" in parts.labels) == model.cfg.has_pos_embed
    lensed = DiffusionLens().embed(there, "L2.resid_post")
    torch.testing.assert_close(lensed.view(expected.shape), expected, **EXACT)  # a T5's keep an axis of tokens
    heads = token_parts(there, layers=[2])
    torch.testing.assert_close(heads[:, 0, 1].sum(1), parts["L2H1"], **EXACT)
    lens = DiffusionSteeringLens(alpha=2.0)
    assert lens.embed(there, ["L1H2", "L2.mlp"]).numel() == 2 * 2 * model.cfg.d_embed


def test_reading_elsewhere_needs_one_token_of_each_prompt(model):
    from vit_lens.errors import InterventionError, LensError

    _, cache = model.run_with_cache(["star of star", "a red star"])
    with pytest.raises(InterventionError, match="is 2 tokens of a prompt; name one by its position"):
        cache.read_at('"star"')
    with pytest.raises(InterventionError, match='has no word "of"'):
        cache.read_at('"of"')
    _, few = model.run_with_cache(["a star"], pos_slice=[1, 2])
    with pytest.raises(LensError, match="read_at needs a whole cache of prompts"):
        few.read_at("eos")


def test_the_logit_lens_of_a_clip_s_own_text_side():
    """The text tower of a CLIP shares the space of its images, so captions that name images name its layers too."""
    from vit_lens import HookedTextEncoder, TextBank

    captions = ["a red star", "a blue ring", "a green heart"]
    bank = TextBank.mini(captions)
    text = HookedTextEncoder.from_pretrained("mini").requires_grad_(False)
    out, cache = text.run_with_cache(captions)
    logits, labels = cache.logit_lens(bank, return_labels=True)
    assert labels == ["0_pre", "1_pre", "final_post"]
    torch.testing.assert_close(logits[-1], bank.logits(out))
    assert logits[-1].argmax(-1).tolist() == [0, 1, 2]
    text.vocabulary = bank
    attrs = cache.logit_attrs(cache.decompose_resid(), "a blue ring", incl_bias=True)
    ends = torch.tensor([4, 4, 4])
    of_ends = attrs[:, torch.arange(3), ends].sum(0)
    torch.testing.assert_close(of_ends, out @ bank.unit[1], atol=1e-4, rtol=1e-4)


def test_sweeps_of_interventions_run_prompts(model):
    from vit_lens.interventions import ablate_each, patch, patch_each, run_many, zero

    prompts, other = ["a red star", "a blue, starry star"], ["a blue star", "of red star"]
    sets = [[], zero(model, "L1H2"), zero(model, 'L0.mlp@"star"', prompts=prompts)]
    ids = model.to_tokens(prompts)
    for given in (prompts, ids):
        found = run_many(model, given, sets, batch_size=4)
        for at, hooks in enumerate(sets):
            torch.testing.assert_close(found[at], model.run_with_hooks(given, fwd_hooks=hooks), **EXACT)

    def metric(out):
        return out.flatten(1).norm(dim=-1)

    effects = ablate_each(model, prompts, metric, "L1.mlp", replacement="zero", tokens='"star"').values
    expected = metric(model.run_with_hooks(prompts, fwd_hooks=zero(model, 'L1.mlp@"star"', prompts=prompts)))
    torch.testing.assert_close(effects[0, 0], expected, **EXACT)
    _, cache = model.run_with_cache(other)
    effects = patch_each(model, prompts, other, metric, "L0.resid_post", tokens='"star"').values
    hooks = patch(model, 'L0.resid_post@"star"', cache, prompts=prompts)
    torch.testing.assert_close(effects[0, 0], metric(model.run_with_hooks(prompts, fwd_hooks=hooks)), **EXACT)
    one_by_one = ablate_each(model, prompts, metric, "L1.mlp", replacement="zero", each="token").values
    assert one_by_one.shape == (1, ids.shape[1], 2)


def test_hooks_at_words_refuse_other_prompts(model):
    """They would act on what stands there instead, and nothing would tell."""
    import vit_lens as vl
    from vit_lens.errors import InterventionError

    told, swapped = ["red star", "a blue red star"], ["a blue red star", "red star"]
    hooks = vl.interventions.zero(model, 'L0.mlp@"red"', prompts=told)
    wanted = model.run_with_hooks(told, fwd_hooks=hooks)
    filled = model.to_tokens(told, pad_to=12)
    if wanted.ndim == 2:  # of T5 every token comes out, and ids are seen whole
        assert torch.allclose(model.run_with_hooks(filled, fwd_hooks=hooks), wanted, atol=1e-5)
    else:
        assert model.run_with_hooks(filled, fwd_hooks=hooks).shape[1] == 12
    for others in (swapped, ["blue star", told[1]]):
        with pytest.raises(InterventionError, match="this run is of other prompts, or of these in another order"):
            model.run_with_hooks(others, fwd_hooks=hooks)
    ends = vl.interventions.zero(model, "L0.mlp@eos", prompts=told)
    with pytest.raises(InterventionError, match="this run is of other prompts"):
        model.run_with_hooks(swapped, fwd_hooks=ends)
    assert not any(point.ctx for point in model.hook_dict.values())
