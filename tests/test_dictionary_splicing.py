"""A dictionary within a model: bit-equal where nothing is edited, exact where something is, gradients, refusals."""

import dataclasses

import pytest
import tiny_dictionaries as tiny
import torch

pytestmark = pytest.mark.tl3

SITE = "blocks.1.hook_resid_post"
OPTIONS = [dict(), dict(layer_norm=True), dict(input_scale=0.4, rescales_by_decoder_norm=True)]
POINTS = ("input", "acts_pre", "acts_post", "recons", "error", "output")


def names(*ends, site=SITE):
    return [f"{site}.hook_sae_{end}" for end in ends]


def seen(name):
    """The points of dictionaries, and their site; hooks on others may take a model another way, to rounding."""
    return "sae" in name or name == SITE


def of(vit, kind="topk", tokens="all", **said):
    from vit_lens.dictionaries import Origin

    origin = Origin(site=said.pop("site", SITE), tokens=tokens, fingerprint=vit.fingerprint, model=vit.encoder_id,
                    stream=said.pop("stream", "output"))  # fmt: skip
    return tiny.make(kind, origin=origin, **said)


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("tokens", ["all", "patches", "cls"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_without_an_edit_the_run_is_the_same_to_the_bit(vit, pixels, kind, tokens, dtype):
    import copy

    model, x = copy.deepcopy(vit).to(dtype), pixels.to(dtype)
    dictionary = dataclasses.replace(of(model, kind, tokens).to(dtype=torch.float32))
    dictionary = dataclasses.replace(dictionary, origin=dataclasses.replace(dictionary.origin, fingerprint=None))
    plain = model(x)
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients), model.spliced(dictionary, "L1.resid_post"):
            given = x.clone().requires_grad_(gradients)
            assert torch.equal(model(given), plain)
            again, cache = model.run_with_cache(given, names_filter=seen)  # every point of the dictionary is hooked
            assert torch.equal(again, plain)
    assert set(names(*POINTS)) - set(cache) == (set() if dictionary.takes_gradients else {names("acts_pre")[0]})
    assert not [name for name in model.hook_dict if "sae" in name] and not model.hooked_names()
    assert torch.equal(model(x), plain)


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize(
    "option", [dict(), dict(layer_norm=True), dict(input_scale=0.4, rescales_by_decoder_norm=True)], ids=str
)
def test_codes_and_error_add_up_to_the_activation(vit, pixels, kind, option):
    dictionary = of(vit, kind, **option)
    _, bare = vit.run_with_cache(pixels, names_filter=SITE)
    x = bare[SITE]
    with vit.spliced(dictionary):
        _, cache = vit.run_with_cache(pixels, names_filter=seen)
    inner, codes, recons, error, out = (cache[n] for n in names("input", "acts_post", "recons", "error", "output"))
    assert torch.equal(inner, x) and torch.equal(out, x) and torch.equal(cache[SITE], x)
    assert torch.equal(codes, dictionary.encode(x))
    assert torch.allclose(recons, dictionary.decode(codes, x), atol=1e-12)
    assert torch.allclose(recons + error, x, atol=1e-12)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_edits_do_what_they_say(vit, pixels, kind):
    dictionary = of(vit, kind)
    x = vit.run_with_cache(pixels, names_filter=SITE)[1][SITE]
    codes = dictionary.encode(x)
    error = x - dictionary.decode(codes)
    code, recons, leftover, output = names("acts_post", "recons", "error", "output")

    def kept(**options):
        with vit.spliced(dictionary, **options):
            return vit.run_with_cache(pixels, names_filter=SITE)[1][SITE]

    def with_hooks(hooks, **options):
        with vit.spliced(dictionary, **options), vit.hooks(hooks):
            return vit.run_with_cache(pixels, names_filter=SITE)[1][SITE]

    assert torch.allclose(kept(edit=lambda f, hook: 0 * f), error + dictionary.b_dec, atol=1e-12)

    def one(f, hook):  # in place, on the copy that a hook gets
        f[:, 2, 9] += 0.7
        return f

    for moved in (kept(edit=one), with_hooks([(code, one)])):
        expected = x.clone()
        expected[:, 2] += (codes[:, 2, 9] + 0.7 - codes[:, 2, 9])[:, None] * dictionary.W_dec[9]
        assert torch.equal(moved, expected)
    assert torch.allclose(with_hooks([(recons, lambda r, hook: r + 1)]), x + 1, atol=1e-12)
    assert torch.allclose(with_hooks([(leftover, lambda e, hook: 0 * e)]), dictionary.decode(codes), atol=1e-12)
    assert torch.equal(with_hooks([(output, lambda o, hook: 3 * o)]), 3 * x)
    assert torch.allclose(kept(error_term=False), dictionary.decode(codes), atol=1e-12)
    both = kept(error_term=False, edit=lambda f, hook: 2 * f)
    assert torch.allclose(both, dictionary.decode(2 * codes), atol=1e-12)


def test_it_acts_on_its_own_tokens_alone(vit, pixels):
    dictionary = of(vit, "relu", "patches")
    x = vit.run_with_cache(pixels, names_filter=SITE)[1][SITE]
    for options in (dict(error_term=False), dict(edit=lambda f, hook: f + 1)):
        with vit.spliced(dictionary, **options):
            _, cache = vit.run_with_cache(pixels, names_filter=seen)
        moved = (cache[SITE] != x).any(-1)
        assert not moved[:, 0].any() and moved[:, 1:].all()
    assert not dictionary.encode(x)[:, 0].eq(0).all()  # the class token had codes, and they were left out
    with vit.spliced(dictionary):
        _, cache = vit.run_with_cache(pixels, names_filter=seen)
    assert cache[names("acts_post")[0]][:, 0].eq(0).all()


def test_a_dictionary_of_updates_reads_what_the_block_adds(vit, pixels):
    dictionary = of(vit, "relu", stream="update")
    start = "blocks.1.hook_resid_pre"
    _, bare = vit.run_with_cache(pixels, names_filter=[SITE, start])
    update = bare[SITE] - bare[start]
    with vit.spliced(dictionary, edit=lambda f, hook: 0 * f):
        _, cache = vit.run_with_cache(pixels, names_filter=seen)
    assert torch.equal(cache[names("input")[0]], update)
    expected = bare[SITE] - dictionary.encode(update) @ dictionary.W_dec
    assert torch.allclose(cache[SITE], expected, atol=1e-12)
    with vit.spliced(dictionary, error_term=False):
        _, cache = vit.run_with_cache(pixels, names_filter=seen)
    assert torch.allclose(cache[SITE], bare[start] + dictionary.decode(dictionary.encode(update)), atol=1e-12)


def test_what_a_prompt_is_filled_up_with_is_no_token_of_it():
    """The stream is what it was there, the codes are 0, and fidelity counts the codes of the tokens alone."""
    import text_towers
    from conftest import randomize

    from vit_lens import ActivationSource, HookedTextEncoder
    from vit_lens.dictionaries import Origin, evaluate, fidelity

    tokenizer = text_towers.clip_tokenizer()
    tower = HookedTextEncoder.from_module(text_towers.clip_text(randomize), tokenizer=tokenizer).requires_grad_(False)
    prompts = [min(text_towers.PROMPTS, key=len), max(text_towers.PROMPTS, key=len)]
    own = tower.attention_mask(prompts)
    assert not own.all()
    dictionary = tiny.make("topk", d=tower.cfg.d_model, k=4, origin=Origin(site=SITE, tokens="all")).to(
        dtype=torch.float32
    )
    _, plain = tower.run_with_cache(prompts, names_filter=SITE)
    with tower.spliced(dictionary, error_term=False):
        _, cache = tower.run_with_cache(prompts, names_filter=names("acts_post", "output"))
    codes, written = cache[names("acts_post")[0]], cache[names("output")[0]]
    x = plain[SITE]
    assert (codes[~own] == 0).all() and torch.allclose(codes[own], dictionary.encode(x[own]))
    with tower.spliced(dictionary, error_term=False):
        _, cache = tower.run_with_cache(prompts, names_filter=["blocks.2.hook_resid_pre"])
    after = cache["blocks.2.hook_resid_pre"]
    assert torch.equal(after[~own], x[~own]) and torch.allclose(after[own], written[own])
    assert not torch.allclose(after[own], x[own])
    (point,) = fidelity(tower, dictionary, prompts).points
    assert point.l0 == pytest.approx(evaluate(dictionary, ActivationSource.of_model(tower, prompts, SITE)).l0)
    ids = tower.to_tokens(prompts)
    with tower.spliced(dictionary, error_term=False):
        assert torch.equal(tower(ids), tower(prompts))


def test_two_dictionaries_and_prompts():
    """Two sites at once, in a text tower; the error of the second is of what the first has changed."""
    import text_towers
    from conftest import randomize

    from vit_lens import HookedTextEncoder

    tokenizer = text_towers.clip_tokenizer()
    tower = HookedTextEncoder.from_module(text_towers.clip_text(randomize), tokenizer=tokenizer).requires_grad_(False)
    d, ids = tower.cfg.d_model, list(text_towers.PROMPTS)
    first, second = (tiny.make("topk", d=d, n=41, k=5, seed=seed) for seed in (0, 20))
    plain = tower(ids)
    with tower.spliced(first, "L0.resid_post"), tower.spliced(second, "L1.mlp"):
        assert torch.equal(tower(ids), plain)
        _, cache = tower.run_with_cache(ids)
    assert {"blocks.0.hook_resid_post.hook_sae_acts_post", "blocks.1.hook_mlp_out.hook_sae_acts_post"} <= set(cache)


# ---- gradients -------------------------------------------------------------------------------------------


class Linear:
    """A model whose output is linear in its hook point, so that attribution by gradient is exact."""

    def __new__(cls, d=35):
        from transformer_lens.hook_points import HookPoint

        from vit_lens.hooking import LoudHookedRootModule

        class Model(LoudHookedRootModule):
            def __init__(self):
                super().__init__()
                self.first = torch.nn.Parameter(tiny.randn(d, d, seed=1) / d**0.5)
                self.last = torch.nn.Parameter(tiny.randn(d, seed=2))
                self.hook_x = HookPoint()
                self.setup()

            def forward(self, x):
                return self.hook_x(torch.tanh(x @ self.first)) @ self.last

        return Model()


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("gradients", ["exact", "through"])
def test_gradient_times_code_is_the_effect_of_ablating(kind, gradients):
    model, x = Linear(), tiny.randn(3, 4, 35, seed=7).requires_grad_()
    dictionary = tiny.make(kind)
    if gradients == "through" and not dictionary.takes_gradients:
        with (
            pytest.raises(ValueError, match="not encode by pursuit"),
            model.spliced(dictionary, "hook_x", gradients="through"),
        ):
            pass
        return
    point = "hook_x.hook_sae_acts_post"
    with model.spliced(dictionary, "hook_x", gradients=gradients):
        out, cache = model.run_with_cache(x, incl_bwd=True)
        attributed = cache[point] * cache[f"{point}_grad"]
        for j in (attributed.abs().sum((0, 1))).topk(5).indices.tolist():
            ablated = model.run_with_hooks(x, fwd_hooks=[(point, lambda f, hook, j=j: f * (torch.arange(53) != j))])
            assert torch.allclose((out - ablated).detach(), attributed[..., j], atol=1e-12)
    assert attributed.abs().max() > 0.01


def test_exact_gradients_are_the_models_own_and_through_go_through_the_codes():
    model, dictionary = Linear(), tiny.make("relu")
    x = tiny.randn(6, 35, seed=7)

    def gradient(**options):
        given = x.clone().requires_grad_()
        with model.spliced(dictionary, "hook_x", **options):
            model(given).sum().backward()
        return given.grad

    plain = x.clone().requires_grad_()
    model(plain).sum().backward()
    assert torch.allclose(gradient(), plain.grad, atol=1e-12)
    given = x.clone().requires_grad_()
    (dictionary.decode(dictionary.encode(torch.tanh(given @ model.first))) @ model.last).sum().backward()
    through = gradient(gradients="through")
    assert torch.allclose(through, given.grad, atol=1e-12)
    assert torch.allclose(gradient(error_term=False), given.grad, atol=1e-12)
    assert (through - plain.grad).abs().max() > 0.1
    assert torch.allclose(gradient(edit=lambda f, hook: f / 2), plain.grad - given.grad / 2, atol=1e-12)


# ---- what is refused -------------------------------------------------------------------------------------


def test_what_does_not_belong_is_refused(vit, pixels, unchecked):
    from faults import outcomes

    from vit_lens import errors
    from vit_lens.dictionaries import Origin

    dictionary = of(vit)

    def splice(made, site=None, **options):
        with vit.spliced(made, site, **options):
            return vit(pixels)

    def twice():
        with vit.spliced(dictionary), vit.spliced(dictionary):
            pass

    def taken_off():
        with vit.spliced(dictionary):
            vit.reset_hooks()

    def beyond():
        with vit.spliced(dictionary):
            vit(pixels, stop_at_layer=1)

    def reshaped():
        with vit.spliced(dictionary, edit=lambda f, hook: f[..., :5]):
            vit(pixels)

    def unknown():
        with vit.spliced(dictionary):
            vit.run_with_cache(pixels, names_filter=f"{SITE}.hook_sae_acts")

    def not_finite():
        with vit.spliced(dictionary, edit=lambda f, hook: f + torch.inf):
            vit(pixels)

    other = dataclasses.replace(dictionary, origin=Origin(site=SITE, model="other", fingerprint="0" * 16))
    thin = tiny.make(d=34, origin=Origin(site=SITE))
    stream = dataclasses.replace(dictionary.origin, stream="update", site="blocks.1.hook_mlp_out")
    cases = {
        "site": (lambda: splice(dictionary, "L2.resid_post"), "DictionaryError", "is of 'blocks.1.hook_resid_post'"),
        "model": (lambda: splice(other), "DictionaryError", "mean nothing there"),
        "width": (lambda: splice(thin), "DictionaryError", "width 34"),
        "late width": (
            lambda: splice(tiny.make(d=34), "blocks.0.mlp.hook_post"), "DictionaryError", "of width 34",
        ),
        "no site": (lambda: splice(tiny.make()), "DictionaryError", "give site="),
        "unknown site": (lambda: splice(tiny.make(), "L1.resid_pots"), "DictionaryError", "nearest"),
        "a head": (lambda: splice(tiny.make(), "L1H2"), "DictionaryError", "no hook point"),
        "no dictionary": (lambda: splice(dict(W_dec=1)), "DictionaryError", "cannot be spliced"),
        "gradients": (lambda: splice(dictionary, gradients="straight"), "DictionaryError", "'exact' or 'through'"),
        "through": (
            lambda: splice(dictionary, gradients="through", error_term=False), "DictionaryError", "error_term=True",
        ),
        "updates": (lambda: splice(dataclasses.replace(dictionary, origin=stream)), "DictionaryError", "of updates"),
        "twice": (twice, "VitLensError", "already"),
        "taken off": (taken_off, "DictionaryError", "was taken off"),
        "beyond": (beyond, "UnfiredHookError", "cannot fire"),
        "reshaped": (reshaped, "HookShapeError", "hook_sae_acts_post"),
        "not finite": (not_finite, "VitLensError", "one of them brings these in"),
        "unknown point": (unknown, "UnknownHookError", "hook_sae_acts_post"),
    }  # fmt: skip
    assert not outcomes(errors, cases)
    assert not vit.hooked_names() and not [name for name in vit.hook_dict if "sae" in name]
