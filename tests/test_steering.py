"""Steering by features: against hooks written by hand and edited splices, nothing at strength 0, refused in words."""

import dataclasses
from functools import partial

import pytest
import tiny_dictionaries as tiny
import torch
from test_diffusion import flux, hooked, sd

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # of diffusers, under numpy 2

WIDE = torch.float64
FLUX = dict(height=6, width=10, max_sequence_length=11, steps=3, output_type="latent")
UNET = dict(height=16, width=24, steps=3, guidance_scale=3.0, output_type="latent")
PROMPTS = ["a red star", "two small rings"]
SITE, VIT = "double.1.hook_resid_post", "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def model():
    return hooked(flux(dtype=WIDE))


@pytest.fixture(scope="module")
def unet():
    return hooked(sd(dtype=WIDE))


def of(site=VIT, kind="topk", d=35, tokens="all", stream="output", **said):
    from vit_lens.dictionaries import Origin

    given = {name: said.pop(name) for name in ("at_steps", "sigmas", "branch", "fingerprint") if name in said}
    return tiny.make(kind, d=d, origin=Origin(site=site, tokens=tokens, stream=stream, **given), **said)


def steer(*args, **options):
    from vit_lens.dictionaries import steer

    return steer(*args, **options)


def close(one, other):
    assert torch.allclose(one, other, atol=1e-9, rtol=0)


def width(model, site):
    return model._point_shape(site, model._call(["a"], 1, None, {}))[-1]


def by_hand(row, strength, positions=None, steps=None, branch=None):
    """A plain hook function that adds, token by token, to chosen positions; the unit is their mean norm, by picture."""

    def hook(x, hook):
        if (steps is not None and hook.step.index not in steps) or branch not in (None, getattr(hook, "branch", None)):
            return None
        out, at = x.clone(), range(x.shape[1]) if positions is None else positions
        for i in range(len(x)):
            norm = sum(float(x[i, t].square().sum()) ** 0.5 for t in at) / len(at)
            for t in at:
                out[i, t] += strength * norm * row / float(row.square().sum()) ** 0.5
        return out

    return hook


# ---- nothing at strength 0 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["vit", "text", "flux", "unet"])
def test_strength_0_is_no_steering_to_the_last_bit(kind, dtype):
    import vit_lens as vl

    if kind in ("flux", "unet"):
        made = vl.HookedDiffusion.from_pretrained({"flux": "mini-flux", "unet": "mini-sd"}[kind], dtype=dtype)
        site = {"flux": SITE, "unet": "mid.0.hook_update"}[kind]
        d, given = width(made, site), dict(steps=2, output_type="latent")
        runs = partial(made.run_with_hooks, "a red star", **given)
        plain = made("a red star", **given)
    else:
        make = {"vit": vl.HookedViT, "text": vl.HookedTextEncoder}[kind]
        made = make.from_pretrained("mini", dtype=dtype).requires_grad_(False)
        site, d = "blocks.0.hook_resid_post", made.cfg.d_model
        given = torch.randn(2, 3, 64, 64).to(dtype) if kind == "vit" else ["a red star", "a blue ring on the left"]
        runs = partial(made.run_with_hooks, given)
        plain = made(given)
    dictionary = of(site, d=d, n=90, k=20, dtype=torch.float32)
    feature = 3
    assert plain.dtype == dtype
    assert torch.equal(runs(fwd_hooks=steer(made, dictionary, feature, 0)), plain)
    assert torch.equal(runs(fwd_hooks=steer(made, dictionary, feature, 1.0, mode="scale")), plain)
    assert not torch.equal(runs(fwd_hooks=steer(made, dictionary, feature, 0.3)), plain)
    assert not torch.equal(runs(fwd_hooks=steer(made, dictionary, feature, 9.0, mode="clamp")), plain)


# ---- against a hook by hand --------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.4, -1.3])
def test_adding_is_a_hook_by_hand_in_an_image_encoder(vit, pixels, strength):
    dictionary = of()
    for tokens, positions in (
        (None, None), ("patches", range(1, 5)), ([(0, 1), "cls"], [2, 0]), (torch.eye(2, dtype=torch.bool), [1, 4]),
    ):  # fmt: skip
        found = vit.run_with_hooks(pixels, fwd_hooks=steer(vit, dictionary, "L1.f17", strength, tokens=tokens))
        hand = by_hand(dictionary.W_dec[17], strength, None if positions is None else list(positions))
        close(found, vit.run_with_hooks(pixels, fwd_hooks=[(VIT, hand)]))
    alone = torch.cat([vit.run_with_hooks(one[None], fwd_hooks=steer(vit, dictionary, 17, strength)) for one in pixels])
    close(alone, vit.run_with_hooks(pixels, fwd_hooks=steer(vit, dictionary, 17, strength)))


def test_a_region_is_its_positions(vit, pixels, model):
    patches = of(tokens="patches")
    found = vit.run_with_hooks(pixels, fwd_hooks=steer(vit, patches, 5, 2.0, region=(0, 1, 2, 2)))
    close(found, vit.run_with_hooks(pixels, fwd_hooks=[(VIT, by_hand(patches.W_dec[5], 2.0, [2, 4]))]))
    dictionary = of(SITE, d=width(model, SITE))
    # 6 x 10 pixels are 3 x 5 cells
    drawn = model.run_with_hooks(PROMPTS, fwd_hooks=steer(model, dictionary, 5, 2.0, region=(1, 2, 3, 4)), **FLUX)
    hand = [(SITE, by_hand(dictionary.W_dec[5], 2.0, [7, 8, 12, 13]))]
    close(drawn, model.run_with_hooks(PROMPTS, fwd_hooks=hand, **FLUX))
    listed = steer(model, dictionary, 5, 2.0, tokens=[7, 8, 12, 13])
    assert torch.equal(drawn, model.run_with_hooks(PROMPTS, fwd_hooks=listed, **FLUX))


@pytest.mark.parametrize("branch", ["cond", "uncond", "both"])
def test_steps_and_branches_are_those_that_are_said(unet, branch):
    site = "mid.0.hook_update"
    dictionary = of(site, d=width(unet, site), at_steps=(0, 1), branch="cond")
    hooks = steer(unet, dictionary, 4, 3.0, at_steps=[0, 2], branch=branch)
    found = unet.run_with_hooks(PROMPTS, fwd_hooks=hooks, **UNET)
    hand = by_hand(dictionary.W_dec[4], 3.0, steps=[0, 2], branch=None if branch == "both" else branch)
    close(found, unet.run_with_hooks(PROMPTS, fwd_hooks=[(site, hand)], **UNET))
    own = unet.run_with_hooks(PROMPTS, fwd_hooks=steer(unet, dictionary, 4, 3.0), **UNET)
    hand = by_hand(dictionary.W_dec[4], 3.0, steps=[0, 1], branch="cond")
    close(own, unet.run_with_hooks(PROMPTS, fwd_hooks=[(site, hand)], **UNET))


def test_words_of_prompts_and_their_filling(unchecked):
    import vit_lens as vl

    made = vl.HookedTextEncoder.from_pretrained("mini").requires_grad_(False)
    site = "blocks.0.hook_resid_post"
    dictionary = of(site, d=made.cfg.d_model, dtype=torch.float32)
    ids = made.to_tokens(["a red star", "a large blue ring with a red cross on top"])
    found = made.run_with_hooks(ids, fwd_hooks=steer(made, dictionary, 4, 2.0, tokens='"red"'))
    mask = made.positions_of('"red"', ids)

    def hand(x, hook):
        out = x.clone()
        for i, row in enumerate(mask):
            at = row.nonzero()[:, 0].tolist()
            out[i : i + 1] = by_hand(dictionary.W_dec[4], 2.0, at)(x[i : i + 1], hook)
        return out

    assert torch.allclose(found, made.run_with_hooks(ids, fwd_hooks=[(site, hand)]), atol=1e-5)

    def all_words(x, hook):
        assert not made.attention_mask(ids).all()
        for i, row in enumerate(made.attention_mask(ids)):
            x[i : i + 1] = by_hand(dictionary.W_dec[4], 2.0, row.nonzero()[:, 0].tolist())(x[i : i + 1], hook)
        return x

    every = made.run_with_hooks(ids, fwd_hooks=steer(made, dictionary, 4, 2.0))
    assert torch.allclose(every, made.run_with_hooks(ids, fwd_hooks=[(site, all_words)]), atol=1e-5)


# ---- against an edited splice ------------------------------------------------------------------------------------


EDITS = {
    "clamp": (2.5, lambda codes, j: codes * (1 - j) + 2.5 * j),
    "scale": (-3.0, lambda codes, j: codes * (1 - 4 * j)),
    "ablate": (None, lambda codes, j: codes * (1 - j)),
}


@pytest.mark.parametrize("mode", EDITS)
@pytest.mark.parametrize("kind", ["topk", "relu", "pursuit"])
@pytest.mark.parametrize("option", [dict(), dict(layer_norm=True, input_scale=0.4), dict(stream="update")], ids=str)
def test_codes_are_edited_as_in_a_splice(vit, pixels, mode, kind, option):
    dictionary = of(kind=kind, tokens="patches", **option)
    strength, change = EDITS[mode]
    _, cache = vit.run_with_cache(pixels)
    x = cache[VIT] - (cache["blocks.1.hook_resid_pre"] if option.get("stream") else 0)
    feature = int((dictionary.encode(x)[:, 1:] != 0).double().mean((0, 1)).argmax())
    one = torch.nn.functional.one_hot(torch.tensor(feature), dictionary.n_features)

    def edit(codes, hook):
        return change(codes, one)

    found = vit.run_with_hooks(pixels, fwd_hooks=steer(vit, dictionary, feature, strength, mode=mode))
    with vit.spliced(dictionary, edit=edit):
        expected = vit(pixels)
    close(found, expected)
    assert not torch.allclose(found, vit(pixels), atol=1e-6)
    hooks = steer(vit, dictionary, feature, strength, mode=mode, tokens=["patch1", "patch2"])
    found, mask = vit.run_with_hooks(pixels, fwd_hooks=hooks), torch.zeros(1, 5, 1)
    mask[:, [2, 3]] = 1
    with vit.spliced(dictionary, edit=lambda codes, hook: torch.where(mask > 0, change(codes, one), codes)):
        close(found, vit(pixels))


def test_a_splice_of_a_denoiser_is_edited_at_its_steps(model):
    dictionary = of(SITE, d=width(model, SITE), at_steps=(0, 2), branch="cond")
    hooks = steer(model, dictionary, 8, 4.0, mode="clamp", region=(0, 0, 1, 5))
    found = model.run_with_hooks(PROMPTS, fwd_hooks=hooks, **FLUX)

    def edit(codes, hook):
        if model.current_step.index in (0, 2):
            codes[:, :5, 8] = 4.0
        return codes

    with model.spliced(dictionary, edit=edit):
        close(found, model(PROMPTS, **FLUX))
    assert not torch.allclose(found, model(PROMPTS, **FLUX), atol=1e-6)


def test_a_control_of_codes_writes_as_much_along_another_direction(vit, pixels):
    dictionary, other = of(layer_norm=True), tiny.randn(35, seed=9) * 4
    x = vit.run_with_cache(pixels)[1][VIT]
    feature = int((dictionary.encode(x) != 0).double().mean((0, 1)).argmax())

    def hook(x, hook):
        codes = dictionary.encode(x)
        edited = codes.clone()
        edited[..., feature] = 2.0
        change = dictionary.decode(edited, x) - dictionary.decode(codes, x)
        sign = torch.sign(change @ dictionary.W_dec[feature])
        return x + (sign * change.norm(dim=-1))[..., None] * other / other.norm()

    found = vit.run_with_hooks(pixels, fwd_hooks=steer(vit, dictionary, feature, 2.0, mode="clamp", along=other))
    close(found, vit.run_with_hooks(pixels, fwd_hooks=[(VIT, hook)]))


# ---- directions --------------------------------------------------------------------------------------------------


def test_directions_of_any_length_are_the_same_call(vit, pixels):
    dictionary = of(tokens="patches")
    row = dictionary.W_dec[11]
    feature = vit.run_with_hooks(pixels, fwd_hooks=steer(vit, dictionary, 11, 0.7))
    for given, tokens in ((dictionary, None), (VIT, "patches"), ("L1.resid_post", "patches")):
        close(vit.run_with_hooks(pixels, fwd_hooks=steer(vit, given, 13 * row, 0.7, tokens=tokens)), feature)
    two = [*steer(vit, dictionary, 11, 0.7), *steer(vit, dictionary, -row, 0.2)]
    once = steer(vit, dictionary, 11, 0.7)[0][1]

    def twice(x, hook):
        return by_hand(-row, 0.2, range(1, 5))(once(x, hook), hook)

    close(vit.run_with_hooks(pixels, fwd_hooks=two), vit.run_with_hooks(pixels, fwd_hooks=[(VIT, twice)]))


def test_an_update_is_the_unit_of_a_dictionary_of_updates(vit, pixels):
    dictionary = of(stream="update")
    found = vit.run_with_hooks(pixels, fwd_hooks=steer(vit, dictionary, 3, 0.5))
    x, before = (vit.run_with_cache(pixels)[1][name] for name in (VIT, "blocks.1.hook_resid_pre"))
    norm = (x - before).norm(dim=-1).mean(1)[:, None, None]
    moved = x + 0.5 * norm * dictionary.W_dec[3] / dictionary.W_dec[3].norm()
    close(found, vit.run_with_hooks(pixels, fwd_hooks=[(VIT, lambda x, hook: moved)]))


def test_the_difference_of_means_is_that_of_a_loop():
    from vit_lens import ActivationSource
    from vit_lens.dictionaries import difference_of_means
    from vit_lens.errors import DictionaryError

    one, other = tiny.randn(11, 3, 5), tiny.randn(7, 4, 5, seed=1) + 2
    sources = [ActivationSource.of_array(x, batch_size=4) for x in (one, other)]
    expected = [sum(token for row in x for token in row) / (len(x) * x.shape[1]) for x in (one, other)]
    assert torch.allclose(difference_of_means(*sources).double(), expected[0] - expected[1], atol=1e-6)
    with pytest.raises(DictionaryError, match="have no difference; give sources of one hook point"):
        difference_of_means(sources[0], ActivationSource.of_array(tiny.randn(7, 6)))


def test_gradients_are_those_of_the_edit(vit, pixels):
    dictionary = of()
    given = pixels.clone().requires_grad_()
    vit.run_with_hooks(given, fwd_hooks=steer(vit, dictionary, 17, 0.4)).square().sum().backward()
    step, eps = tiny.randn(*pixels.shape, seed=3), 1e-6
    ends = [
        vit.run_with_hooks(pixels + sign * eps * step, fwd_hooks=steer(vit, dictionary, 17, 0.4)).square().sum()
        for sign in (1, -1)
    ]
    assert float((given.grad * step).sum()) == pytest.approx(float(ends[0] - ends[1]) / (2 * eps), rel=1e-5)


# ---- what cannot be ----------------------------------------------------------------------------------------------


def wrong_in_vit():
    row = tiny.randn(35, seed=5)
    return {
        "mode": (dict(mode="clmap"), "mode='clmap'; nearest: 'clamp'"),
        "no feature": (dict(feature=53), "no feature 53: there are 53, counted from 0"),
        "a word": (dict(feature="L2.f3"), "L2"),
        "more than a feature": (dict(feature="L1.f3@cls"), "says more than a feature"),
        "no strength": (dict(strength=None), "strength=None with mode='add'; expected a finite number"),
        "not finite": (dict(strength=float("nan")), "expected a finite number"),
        "one too many": (dict(mode="ablate"), "strength=0.4 with mode='ablate'"),
        "both": (dict(tokens="cls", region=(0, 0, 1, 1)), "both say which tokens; give one of them"),
        "no token": (dict(tokens=7), "position 7 is out of range"),
        "outside": (dict(region=(0, 0, 3, 3)), "of a grid of 2 rows and 2 columns"),
        "empty": (dict(region=(1, 0, 1, 2)), "of a grid of 2 rows and 2 columns"),
        "three sides": (dict(region=(1, 0, 1)), "of a grid of 2 rows and 2 columns"),
        "no steps": (dict(at_steps=[0]), "the model runs in no steps"),
        "branch": (dict(branch="neither"), "expected 'cond', 'uncond' or 'both'"),
        "narrow": (dict(feature=row[:7]), r"feature is .7,. torch.float64; expected a feature, or a direction"),
        "nothing": (dict(feature=0 * row), "that are not all 0"),
        "a direction's code": (dict(feature=row, mode="clamp"), "a direction has no code"),
        "along a direction": (dict(along=row), "along= is for codes"),
        "no direction": (dict(dictionary="L1.resid_post", feature=3), "a direction is needed"),
        "no site": (dict(dictionary="L9.resid_post", feature=row), "no hook point 'L9.resid_post'"),
        "no dictionary": (dict(dictionary=3), "dictionary is of type int"),
        "another's": (dict(dictionary=of(fingerprint="0" * 16)), "its features mean nothing there"),
        "another site's tokens": (dict(mode="clamp", dictionary=of(tokens="patches"), tokens="cls"), "of other tokens"),
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore:these hooks never fired")
@pytest.mark.parametrize("name", wrong_in_vit())
def test_what_cannot_be_steered_is_refused(vit, pixels, errors, name, unchecked):
    given, told = wrong_in_vit()[name]
    options = {"dictionary": of(), "feature": 3, "strength": 0.4, **given}
    with pytest.raises(errors.VitLensError, match=told):
        args = (options.pop("dictionary"), options.pop("feature"), options.pop("strength"))
        vit.run_with_hooks(pixels, fwd_hooks=steer(vit, *args, **options))


def test_what_a_run_has_not_is_refused(model, unet, errors, unchecked):
    dictionary = of(SITE, d=width(model, SITE))

    def runs(called=FLUX, **options):
        return model.run_with_hooks(PROMPTS, fwd_hooks=steer(model, dictionary, 3, 0.4, **options), **called)

    with pytest.raises(errors.VitLensError, match=r"changed at steps \[3\]; a run of steps=3 has the steps 0 to 2"):
        runs(at_steps=[0, 3])
    with pytest.raises(errors.VitLensError, match=r"in branches .'uncond'. that the run has not"):
        runs(branch="uncond")
    with pytest.raises(errors.DictionaryError, match="of a grid of 3 rows and 5 columns"):
        runs(region=(0, 0, 4, 4))
    with pytest.raises(errors.DictionaryError, match=r"has positions 0 to 14 in this run, not \[15\]"):
        runs(tokens=[3, 15])
    with pytest.raises(errors.DictionaryError, match="of a denoiser give positions"):
        runs(tokens="cls")
    text = "double.1.text.hook_resid_post"
    with pytest.raises(errors.DictionaryError, match="is of the text, which has no grid"):
        steer(model, text, tiny.randn(width(model, text)), 0.4, region=(0, 0, 1, 1))
    with pytest.raises(errors.DictionaryError, match=r"and a direction of 3 numbers"):
        model.run_with_hooks(PROMPTS, fwd_hooks=steer(model, SITE, tiny.randn(3), 0.4), **FLUX)
    assert model.current_sides is None
    other = dataclasses.replace(dictionary, origin=dataclasses.replace(dictionary.origin, site="mid.0.hook_update"))
    with pytest.raises(errors.DictionaryError, match=r"no hook point 'mid\.0\.hook_update'"):
        steer(model, other, 3, 0.4)


def test_dead_features_are_named_in_a_warning(vit):
    frequency = torch.full((53,), 0.1)
    frequency[9] = 0
    with pytest.warns(UserWarning, match="feature 9 is dead"):
        steer(vit, of(frequency=frequency), 9, 0.4)
    with pytest.warns(UserWarning, match="feature 9 is dead"):
        steer(vit, of(frequency=frequency), 9, mode="ablate")
