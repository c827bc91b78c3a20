"""Addresses in hooked diffusion models: each hook point has one, and what it names is what stock modules compute."""

import pytest
import torch
from test_diffusion import FLUX, N_IMAGE, N_TEXT, PROMPTS, UNET, flux, hooked, sd, sd3, stock

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # of diffusers, under numpy 2

GUIDED = dict(UNET) | dict(guidance_scale=4.0)
SD3 = GUIDED | dict(max_sequence_length=11)
KINDS = {
    "flux": (flux, dict(FLUX)), "sd3": (sd3, SD3), "unet": (sd, GUIDED),
    "sdxl": (lambda dtype: sd("sdxl", dtype), GUIDED),
}  # fmt: skip


@pytest.fixture(scope="module")
def models():
    return {kind: hooked(make(dtype=torch.float64)) for kind, (make, _) in KINDS.items()}


# ---- names


@pytest.mark.parametrize("kind", KINDS)
def test_every_hook_point_has_one_address_that_reads_back(models, kind):
    import re

    from vit_lens.addresses import Address, address_of

    model, found = models[kind], set()
    for name in model.hook_dict:
        text = name  # put together by hand, from the name
        for letter, word in (("D", "double"), ("S", "single")):
            text = re.sub(rf"^{word}\.(\d+)\.(?!text)(?!hook_gate)", rf"{letter}\1.img.", text)
            text = re.sub(rf"^{word}\.(\d+)\.text\.", rf"{letter}\1.txt.", text)
            text = re.sub(rf"^{word}\.(\d+)\.hook_gate", rf"{letter}\1.gate", text)
        text = re.sub(r"\.blocks\.(\d+)", r".L\1", text)
        text = re.sub(r"(\.img|\.txt|)\.attn\.hook_z", r"H1\1", text).replace(".cross_attn.hook_z", "H1.cross_attn")
        text = re.sub(r"(\.img|\.txt|)\.mlp\.hook_post", r"N1\1", text)
        text = text.replace("hook_", "").removesuffix("_out")
        address = Address.parse(text)
        assert str(address) == text and address == Address.parse(text.upper()) and address.hook_name == name
        assert address_of(name) == (None if name.endswith(("hook_z", "hook_post")) else address)
        (aim,) = model.aims(text)
        assert (aim.point, aim.address, str(aim.address)) == (name, address, text)
        found.add(text)
    assert len(found) == len(model.hook_dict) > 10


def test_an_address_of_both_streams_or_of_a_block_is_several_hook_points(models):
    points = lambda kind, address: [aim.point for aim in models[kind].aims(address)]  # noqa: E731
    assert points("flux", "D1H0") == ["double.1.attn.hook_z", "double.1.text.attn.hook_z"]
    assert points("flux", "S2") == ["single.2.hook_update", "single.2.text.hook_update"]
    assert points("flux", "D0.txt~2") == ["double.0.text.hook_attn_out", "double.0.text.hook_mlp_out"]
    assert points("flux", "S0.gate") == ["single.0.hook_gate"]
    assert points("sd3", "D1.img") == ["double.1.hook_attn_out", "double.1.hook_attn2_out", "double.1.hook_mlp_out"]
    assert points("sd3", "D2H1") == ["double.2.attn.hook_z"]  # the last block leaves no text
    assert points("unet", "up.0.1") == ["up.0.1.hook_update"]
    assert [aim.point.rpartition("hook_")[2] for aim in models["sdxl"].aims("mid.0.L0")] == [
        "attn_out", "cross_attn_out", "mlp_out"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("flux", "D2.img.mlp", r"no such block; nearest: .*'D1'.* There are D0 to D1, S0 to S2"),
        (
            "flux",
            "S1.img.mlp",
            r"no such part; nearest: 'S1\.img.*There are S1\.gate, S1\.img\.resid_pre, S1\.img\.update",
        ),
        ("flux", "L1.mlp", "There are D0 to D1, S0 to S2"),
        ("flux", "mid.0.update", "There are D0 to D1, S0 to S2"),
        ("flux", "D1.img.mpl", r"no hook point or address 'D1.img.mpl'; nearest: 'D1\.img\.mlp'"),
        ("flux", "D1H2.img", "D1H2.img: there are heads H0 to H1"),
        ("flux", "D1.img.mlp~s0.5", "name the step by its index"),
        ("flux", "D1.img.mlp@cls", "go by number, as @7"),
        ("flux", 'D1.txt.mlp@"star"', "go by number, as @7"),
        ("flux", "D1.img.mlp@(1,2)", "go by number, as @7"),
        ("flux", "t5:D1.img.mlp", "leave t5: off"),
        ("flux", "D1.img.f3", "no dictionary is spliced in"),
        ("sd3", "D2.txt.mlp", r"no such part; nearest: 'D2\.(txt|img)"),
        ("sd3", "S0.img.update", "There are D0 to D2"),
        ("unet", "down.0.0.update", r"no such block; nearest: .*'down\.0'"),
        ("unet", "mid.0.L1.mlp", r"no such block; nearest: 'mid\.0\.L0'.* mid\.0\.L0 to mid\.0\.L0"),
        ("unet", "up.0", "no such part"),
        ("unet", "mid.0.L0H8", "there are heads H0 to H7"),
        ("unet", "mid.0.updat", r"nearest: 'mid\.0\.update'"),
    ],
)
def test_what_a_model_has_not_is_refused_with_what_there_is(models, kind, text, message):
    from vit_lens import interventions
    from vit_lens.errors import VitLensError

    model = models[kind]
    for ask in (
        lambda: model.aims(text), lambda: model.add_hook(text, print), lambda: interventions.zero(model, [text]),
        lambda: model.run_with_hooks(PROMPTS, fwd_hooks=[(text, print)]),
        lambda: model.run_with_cache(PROMPTS, names_filter=[text]),
    ):  # fmt: skip
        with pytest.raises(VitLensError, match=message):
            ask()
    assert not model.hooked_names()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("D1.img.mlp~3", "a run of steps=3 has the steps ~0 to ~2"),
        (f"D1.img.mlp@{N_IMAGE}", f"the run has the tokens @0 to @{N_IMAGE - 1} there"),
        (f"D1.txt.mlp@{N_TEXT}", f"the run has the tokens @0 to @{N_TEXT - 1} there"),
        ("D1N128.img~2", "there are 128 of these"),
        ("D1.img.mlp_gate@0", "one vector for all tokens"),
    ],
)
def test_what_a_run_has_not_is_refused_before_it_begins(models, text, message):
    from vit_lens import errors, interventions

    model, ran = models["flux"], []
    handle = model.denoiser.register_forward_pre_hook(lambda *given: ran.append(1))
    for ask in (
        lambda: model.run_with_hooks(PROMPTS, **FLUX, fwd_hooks=interventions.zero(model, text)),
        lambda: model.run_with_cache(PROMPTS, **FLUX, names_filter=text),
        lambda: model.cache_cost(PROMPTS, **FLUX, names_filter=text),
    ):
        with pytest.raises(errors.UnknownSiteError, match=message):
            ask()
    handle.remove()
    assert not ran and not model.hooked_names()


# ---- what they name, by patched stock modules


def wrapped(pipe, path, change, step=None):
    """A stock module whose result, or what it is given, is another in one step, or in each; undo with the handle."""
    denoiser = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    seen = []

    def at(side):
        def run(module, args, *rest):
            now = (len(seen) if side == "before" else len(seen) - 1) if path else 0
            if side == "before":
                seen.append(1)
            if step is not None and now != step:
                return None
            return (
                change(args) if side == "before" == change.side else change(rest[-1]) if side == change.side else None
            )

        return run

    module = denoiser.get_submodule(path)
    return [module.register_forward_pre_hook(at("before")), module.register_forward_hook(at("after"))]


def after(function):
    function.side = "after"
    return function


def before(function):
    function.side = "before"
    return function


def zeroed(x, *where):
    out = x.clone()
    out[where] = 0
    return out


ALL = slice(None)
TWO, ONE = "transformer_blocks", "single_transformer_blocks"
UP = "up_blocks.0.attentions.1.transformer_blocks.0"
ZEROS = [
    ("flux", "D1.img.attn", f"{TWO}.1.attn", after(lambda out: (0 * out[0], out[1])), None),
    ("flux", "D1.txt.attn~1", f"{TWO}.1.attn", after(lambda out: (out[0], 0 * out[1])), 1),
    ("flux", "D0.img.mlp@7~2", f"{TWO}.0.ff", after(lambda out: zeroed(out, ALL, 7)), 2),
    ("flux", "D0.txt.mlp@patch3", f"{TWO}.0.ff_context", after(lambda out: zeroed(out, ALL, 3)), None),
    ("flux", "D0H1.img@5~0", f"{TWO}.0.attn.to_out.0",
     before(lambda args: (zeroed(args[0], ALL, 5, slice(16, 32)),)), 0),
    ("flux", "D1H0.txt", f"{TWO}.1.attn.to_add_out",
     before(lambda args: (zeroed(args[0], ALL, ALL, slice(16)),)), None),
    ("flux", "D1N17.img@9", f"{TWO}.1.ff.net.2", before(lambda args: (zeroed(args[0], ALL, 9, 17),)), None),
    ("flux", "D0.txt.resid_post@2~1", f"{TWO}.0", after(lambda out: (zeroed(out[0], ALL, 2), out[1])), 1),
    ("flux", "S1.txt.update@4", f"{ONE}.1.proj_out", after(lambda out: zeroed(out, ALL, 4)), None),
    ("flux", "S1.img.update@4~1", f"{ONE}.1.proj_out", after(lambda out: zeroed(out, ALL, N_TEXT + 4)), 1),
    ("flux", "S0H1.img@3", f"{ONE}.0.attn", after(lambda out: zeroed(out, ALL, N_TEXT + 3, slice(16, 32))), None),
    ("flux", "S0H1", f"{ONE}.0.attn", after(lambda out: zeroed(out, ALL, ALL, slice(16, 32))), None),
    ("flux", "S1N40.txt~2", f"{ONE}.1.act_mlp", after(lambda out: zeroed(out, ALL, slice(N_TEXT), 40)), 2),
    ("flux", "S1.gate~0", f"{ONE}.1.norm", after(lambda out: (out[0], 0 * out[1])), 0),
    ("sd3", "D1.img.attn2~1", f"{TWO}.1.attn2", after(lambda out: 0 * out), 1),
    ("sd3", "D0H3.txt@6", f"{TWO}.0.attn.to_add_out",
     before(lambda args: (zeroed(args[0], ALL, 6, slice(24, 32)),)), None),
    ("unet", "mid.0.update~1", "mid_block.attentions.0.proj_out", after(lambda out: 0 * out), 1),
    ("unet", "down.1.0.L0.cross_attn@5", "down_blocks.1.attentions.0.transformer_blocks.0.attn2",
     after(lambda out: zeroed(out, ALL, 5)), None),
    ("unet", "up.0.1.L0H2@3~2", f"{UP}.attn1.to_out.0",
     before(lambda args: (zeroed(args[0], ALL, 3, slice(8, 12)),)), 2),
    ("unet", "up.0.1.L0H2.cross_attn", f"{UP}.attn2.to_out.0",
     before(lambda args: (zeroed(args[0], ALL, ALL, slice(8, 12)),)), None),
    ("sdxl", "up.0.1.L0.mlp@1", f"{UP}.ff", after(lambda out: zeroed(out, ALL, 1)), None),
    ("sdxl", "up.0.resid_post@17~0", "up_blocks.0", after(lambda out: zeroed(out, ALL, ALL, 17 // 12, 17 % 12)), 0),
]  # fmt: skip


@pytest.fixture(scope="module")
def plain(models):
    return {kind: model(PROMPTS, **KINDS[kind][1]) for kind, model in models.items()}


@pytest.mark.parametrize(("kind", "text", "path", "change", "step"), ZEROS, ids=[f"{one[0]}:{one[1]}" for one in ZEROS])
def test_zero_is_that_of_a_patched_stock_module(models, plain, kind, text, path, change, step):
    from vit_lens import interventions

    model, call = models[kind], KINDS[kind][1]
    found = model.run_with_hooks(PROMPTS, **call, fwd_hooks=interventions.zero(model, text))
    handles = wrapped(model.pipeline, path, change, step)
    expected = stock(model.pipeline, PROMPTS, **call)
    for handle in handles:
        handle.remove()
    assert (found - expected).abs().max() < 1e-9 and not torch.equal(found, plain[kind])


@pytest.mark.parametrize(
    ("text", "path", "where", "step"),
    [("D1.txt.attn@3~1", f"{TWO}.1", (ALL, 3), 1), ("D1.txt.resid_post@3~1", f"{TWO}.1", (ALL, 3), 1),
     ("D1.txt.resid_post", f"{TWO}.1", (ALL, ALL), None)],
)  # fmt: skip
def test_patch_is_that_of_a_patched_stock_module(models, plain, text, path, where, step):
    """At its step and token it is what another run had there; of a whole point in every step."""
    from vit_lens import interventions

    model, others, call = models["flux"], ["a green cross", "a big blue star"], dict(FLUX)
    module, norm = model.denoiser.get_submodule(path), model.denoiser.get_submodule(f"{path}.norm1_context")
    attn = module.attn
    kept, n = {"out": [], "attn": [], "gate": []}, []
    handles = [
        module.register_forward_hook(lambda module, args, out: kept["out"].append(out[0].clone())),
        attn.register_forward_hook(lambda module, args, out: kept["attn"].append(out[1].clone())),
        norm.register_forward_hook(lambda module, args, out: kept["gate"].append(out[1].clone())),
    ]
    stock(model.pipeline, others, **call)
    for handle in handles:
        handle.remove()

    def swap(module, args, out):
        n.append(1)
        now = len(n) - 1
        if step not in (None, now):
            return None
        new = out[0].clone()
        new[where] = kept["out"][now][where]
        return new, out[1]

    def swap_attn(module, args, out):  # what is added is behind the gate of the run at hand
        now = len(gates) - 1
        new = out[1].clone()
        new[where] = (kept["gate"][now][:, None] * kept["attn"][now] / gates[now][:, None])[where]
        return (out[0], new) if step == now else None

    gates = []
    handles = [norm.register_forward_hook(lambda module, args, out: gates.append(out[1].clone()))]
    of_attn = "attn" in text
    handles.append(attn.register_forward_hook(swap_attn) if of_attn else module.register_forward_hook(swap))
    expected = stock(model.pipeline, PROMPTS, **call)
    for handle in handles:
        handle.remove()
    cache = model.run_with_cache(others, **call, names_filter=text)[1]
    found = model.run_with_hooks(PROMPTS, **call, fwd_hooks=interventions.patch(model, text, cache))
    assert (found - expected).abs().max() < 1e-9 and not torch.equal(found, plain["flux"])


def test_patches_stay_in_the_branches_of_their_cache(models, plain):
    from vit_lens import errors, interventions

    model, call = models["unet"], GUIDED
    caches = model.run_with_cache(PROMPTS[::-1], **call, names_filter="mid.0.update", branch="both")[1]
    for given in (caches["cond"], caches["uncond"], caches):
        named = given if isinstance(given, dict) else {given.branch: given}

        def by_hand(x, hook, named=named):
            return named[hook.branch].at_step(hook.step.index)[hook.name] if hook.branch in named else None

        expected = model.run_with_hooks(PROMPTS, **call, fwd_hooks=[("mid.0.hook_update", by_hand)])
        found = model.run_with_hooks(PROMPTS, **call, fwd_hooks=interventions.patch(model, "mid.0.update", given))
        assert torch.equal(found, expected) and not torch.equal(found, plain["unet"])
    alone = dict(call) | dict(guidance_scale=1.0)
    with pytest.raises(errors.VitLensError, match=r"branches \['uncond'\] that the run has not"):
        model.run_with_hooks(PROMPTS, **alone, fwd_hooks=interventions.patch(model, "mid.0.update", caches["uncond"]))


def test_resampling_takes_another_picture(models):
    from vit_lens import errors, interventions
    from vit_lens.hooking import Step, SteppedCache

    model, address = models["unet"], "mid.0.update~1"
    elsewhere = models["sdxl"].run_with_cache(PROMPTS, **GUIDED, names_filter=address)[1]
    cache = model.run_with_cache(PROMPTS, **GUIDED, names_filter=address)[1]
    donors = interventions.derangement(2, seed=5)
    expected = model.run_with_hooks(
        PROMPTS, **GUIDED, fwd_hooks=interventions.patch(model, address, cache, images=donors)
    )
    found = model.run_with_hooks(PROMPTS, **GUIDED, fwd_hooks=interventions.resample(model, address, cache, seed=5))
    assert torch.equal(found, expected)
    by_hand = [("mid.0.hook_update", lambda x, hook: cache["mid.0.update~1"].flip(0) if _at(hook, 1) else None)]
    assert torch.equal(model.run_with_hooks(PROMPTS, **GUIDED, fwd_hooks=by_hand), found)
    one = model.run_with_hooks(PROMPTS, **GUIDED, fwd_hooks=interventions.patch(model, address, cache, images=1))
    by_hand = [("mid.0.hook_update", lambda x, hook: cache["mid.0.update~1"][[1, 1]] if _at(hook, 1) else None)]
    assert torch.equal(model.run_with_hooks(PROMPTS, **GUIDED, fwd_hooks=by_hand), one)
    for given, message in (
        (dict(cache=cache, tokens=3), "the address says the token"), (dict(cache={}), "expected the cache"),
        (dict(cache=SteppedCache({"a~0": torch.zeros(2)}, [Step(0)])), "expected the cache of this model"),
        (dict(cache=elsewhere), r"the cache is of module@\w+ \(\w+\), and the model is module@"),
        (dict(cache=cache, images=[2, 0]), "the cache holds 2"),
    ):  # fmt: skip
        with pytest.raises(errors.InterventionError, match=message):
            interventions.patch(model, address, **given)
    with pytest.raises(errors.InterventionError, match=r"of shape \(2, .* and the run has \(1, "):
        model.run_with_hooks(
            PROMPTS[:1], **GUIDED | dict(seed=[3]), fwd_hooks=interventions.patch(model, address, cache)
        )
    with pytest.raises(errors.VitLensError, match=r"step 0 is not kept"):
        model.run_with_hooks(PROMPTS, **GUIDED, fwd_hooks=interventions.patch(model, "mid.0.update", cache))


def _at(hook, step):
    return hook.branch == "cond" and hook.step.index == step


# ---- hooks and caches


def test_hook_functions_are_given_what_the_address_names(models):
    model, seen = models["flux"], {}
    texts = {
        "D1.img.mlp@7~1": (2, 1, 32), "D1H1.img": (2, N_IMAGE, 16), "D0N3.txt@2": (2, 1),
        "S1.txt.update~0": (2, N_TEXT, 32),
        "S0.gate": (2, 32),
    }  # fmt: skip

    def look(text):
        return lambda x, hook: seen.setdefault(text, []).append((tuple(x.shape), hook.step.index))

    model.run_with_hooks(PROMPTS, **FLUX, fwd_hooks=[(text, look(text)) for text in texts])
    for text, shape in texts.items():
        steps = [int(text[-1])] if "~" in text else [0, 1, 2]
        assert seen[text] == [(shape, step) for step in steps], text


def test_an_edit_in_place_and_a_wrong_shape(models, plain):
    from vit_lens import errors, interventions

    model = models["flux"]

    def in_place(x, hook):
        x.zero_()

    found = model.run_with_hooks(PROMPTS, **FLUX, fwd_hooks=[("D1.img.mlp@7", in_place)])
    assert torch.equal(
        found, model.run_with_hooks(PROMPTS, **FLUX, fwd_hooks=interventions.zero(model, "D1.img.mlp@7"))
    )
    same = model.run_with_hooks(PROMPTS, **FLUX, fwd_hooks=[("D1H1.img@7", lambda x, hook: None)])
    assert torch.equal(same, plain["flux"])
    with pytest.raises(errors.HookShapeError, match=r"returned \(2, 32\) float64 on cpu for \(2, 1, 32\)"):
        model.run_with_hooks(PROMPTS, **FLUX, fwd_hooks=[("D1.img.mlp@7", lambda x, hook: x[:, 0])])


def test_a_hook_of_a_step_that_does_not_come_is_named(models):
    model = models["unet"]
    given = dict(timestep=torch.tensor(500), encoder_hidden_states=torch.randn(1, 9, 32).double(), return_dict=False)
    with pytest.warns(UserWarning, match=r"never fired .*mid\.0\.hook_update"):
        with model.hooks([("mid.0.update~2", lambda x, hook: None)]), model.attached():
            model.denoiser(torch.randn(1, 4, 16, 16).double(), **given)


def test_gradients_are_those_of_the_whole(models):
    from vit_lens import errors

    model, kept = models["unet"], {}
    given = dict(timestep=torch.tensor(500), encoder_hidden_states=torch.randn(1, 9, 32).double(), return_dict=False)
    hooks = [
        (name, lambda x, hook, name=name: kept.update({name: x.clone()}))
        for name in ("mid.0.L0H1@3", "mid.0.blocks.0.attn.hook_z")
    ]
    model.denoiser.requires_grad_(True)
    with model.hooks(bwd_hooks=hooks), model.attached():
        model.denoiser(torch.randn(1, 4, 16, 16).double(), **given)[0].square().sum().backward()
    part, whole = kept.values()
    assert torch.equal(part, whole[:, [3], 1]) and part.abs().max() > 0
    with pytest.raises(errors.UnknownSiteError, match="gradients come behind the steps"):
        model.add_hook("mid.0.update~1", print, "bwd")


def test_caches_are_looked_up_by_address(models):
    from vit_lens import errors
    from vit_lens.addresses import Address

    model = models["flux"]
    cache = model.run_with_cache(PROMPTS, **FLUX)[1]
    whole, z = cache["double.1.hook_mlp_out"], cache["double.1.text.attn.hook_z"]
    same = {
        "D1.img.mlp": whole, "d1.IMG.mlp": whole, "D1.img.mlp~2": whole[2], "D1.img.mlp@7": whole[:, :, [7]],
        "D1.img.mlp@7~1": whole[1][:, [7]], "D1H1.txt": z[:, :, :, 1], "D1H1.txt@4~0": z[0][:, [4], 1],
        "S2N5.txt~1": cache["single.2.text.mlp.hook_post"][1][..., 5], "S0.gate~1": cache["single.0.hook_gate"][1],
    }  # fmt: skip
    for text, value in same.items():
        assert torch.equal(cache[text], value) and torch.equal(cache[Address.parse(text)], value), text
    assert torch.equal(cache.at_step(2)["D1.img.mlp@7"], whole[2][:, [7]])
    for text, error, message in [
        ("D1H1", errors.UnknownHookError, r"is 2 activations, D1H1.img, D1H1.txt: name one"),
        ("D1.img.mlp~7", errors.VitLensError, r"step 7 is not kept; expected one of \[0, 1, 2\]"),
        (f"D1.img.mlp@{N_IMAGE}", errors.UnknownSiteError, "the tokens @0 to"),
        ("D7.img.mlp", errors.UnknownHookError, "no such block"),
        ("D1.img.mpl", errors.UnknownHookError, "the cache holds no 'D1.img.mpl'"),
    ]:
        with pytest.raises(error, match=message):
            cache[text]


def test_a_cache_keeps_what_addresses_name_at_the_cost_that_was_said(models):
    from vit_lens import errors

    model = models["flux"]
    whole = model.run_with_cache(PROMPTS, **FLUX)[1]
    chosen = ["D1.img.mlp@7~1", "D1H0.txt", "S0.txt.update~2", "double.0.hook_resid_mid", "D0.img.resid_mid~1"]
    cost = model.cache_cost(PROMPTS, **FLUX, names_filter=chosen)
    out, cache = model.run_with_cache(PROMPTS, **FLUX, names_filter=chosen)
    assert torch.equal(out, model(PROMPTS, **FLUX))
    kept = {
        (name, step.index): held[name] for step in cache.steps for held in [cache.at_step(step.index)] for name in held
    }
    assert {name for name, _ in kept} == {
        "D1.img.mlp@7",
        "D1H0.txt",
        "single.0.text.hook_update",
        "double.0.hook_resid_mid",
    }
    assert cost == sum(value.numel() * value.element_size() for value in kept.values()) and len(kept) == 1 + 3 + 1 + 3
    for (name, step), value in kept.items():
        assert torch.equal(value, whole.at_step(step)[name]), name
    assert torch.equal(cache["D1.img.mlp@7~1"], whole["D1.img.mlp@7~1"])
    with pytest.raises(errors.UnknownHookError, match="it has parts alone"):
        cache["D1.img.mlp~1"]
    only = model.run_with_cache(PROMPTS, **FLUX, names_filter="S0.txt.update~2")[1]
    assert [step.index for step in only.steps] == [2] and only["S0.txt.update"].shape == (1, 2, N_TEXT, 32)
    with pytest.raises(errors.VitLensError, match="of a step that at_steps"):
        model.run_with_cache(PROMPTS, **FLUX, names_filter="S0.txt.update~2", at_steps=[0])
    with pytest.raises(errors.UnknownSiteError, match="whole hook points are asked for"):
        model.get_caching_hooks("D1.img.mlp@7")
    assert model.get_caching_hooks(["D1.img.mlp"])[1][0][0] == "double.1.hook_mlp_out"


# ---- dictionaries


@pytest.mark.parametrize(
    ("kind", "site", "point", "short"),
    [("flux", "D1.txt.resid_post", "double.1.text.hook_resid_post", "D1.txt"),
     ("flux", "S1.img.update", "single.1.hook_update", "S1"), ("unet", "mid.0.update", "mid.0.hook_update", "mid.0")],
)  # fmt: skip
def test_features_have_addresses(models, kind, site, point, short):
    import vit_lens as vl
    from vit_lens import errors
    from vit_lens.dictionaries import clamp, feature_address

    model, call = models[kind], KINDS[kind][1]
    whole = model.run_with_cache(PROMPTS, **call, names_filter=site)[1][site]
    d = whole.shape[-1]
    found = vl.dictionaries.random_dictionary(d, d + 9, k=3, site=site).to(dtype=torch.float64)
    feature = int(found.encode(whole)[1].sum((0, 1)).argmax())
    token = int(found.encode(whole)[1, 0, :, feature].argmax())
    assert str(feature_address(found, feature)) == f"{site}.f{feature}"
    codes = f"{point}.hook_sae_acts_post"

    def edit(value, at, step):
        def hook(x, hook):
            out = x.clone()
            out[:, at, feature] = value
            return out if step in (None, model.current_step.index) else x

        return hook

    with model.spliced(found, site):
        for text in (f"{site}.f{feature}", f"{short}.f{feature}"):
            for end, at, step in (("", ALL, None), (f"@{token}~1", token, 1)):
                expected = model.run_with_hooks(PROMPTS, **call, fwd_hooks=[(codes, edit(0.0, at, step))])
                for hooks in (vl.interventions.zero(model, text + end), clamp(model, {text + end: 0.0})):
                    assert torch.equal(model.run_with_hooks(PROMPTS, **call, fwd_hooks=hooks), expected)
                steered = model.run_with_hooks(PROMPTS, **call, fwd_hooks=clamp(model, {text + end: 2.5}))
                by_hand = model.run_with_hooks(PROMPTS, **call, fwd_hooks=[(codes, edit(2.5, at, step))])
                assert torch.equal(steered, by_hand) and not torch.equal(steered, expected)
        cache = model.run_with_cache(PROMPTS, **call, names_filter=[f"{short}.f{feature}~1", codes])[1]
        assert (cache[f"{short}.f{feature}~1"] - found.encode(whole)[1, ..., feature]).abs().max() < 1e-9
        with pytest.raises(errors.UnknownSiteError, match=f"features f0 to f{d + 8}"):
            model.aims(f"{short}.f{d + 9}")
        with pytest.raises(errors.UnknownSiteError, match="has the steps ~0 to ~2"):
            model.run_with_hooks(PROMPTS, **call, fwd_hooks=clamp(model, {f"{short}.f1~3": 1.0}))
        with pytest.raises(errors.UnknownSiteError, match="is no feature"):
            clamp(model, {site: 1.0})
    held = cache.at_step(2)[codes][..., feature]
    assert torch.equal(cache[f"{site}.f{feature}~2"], held) and held.any()  # behind the splice too
    with pytest.raises(errors.DictionaryError, match="no hook point"):
        found.check(model, f"{site}~1")


def test_a_source_reads_an_address(models):
    import vit_lens as vl

    source = vl.ActivationSource.of_model(models["unet"], PROMPTS, "mid.0.L0.cross_attn", batch_size=7)
    assert source.reader.provenance.site == "mid.0.blocks.0.hook_cross_attn_out"
