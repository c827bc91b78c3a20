"""Models that run their blocks several times: a cache keeps every step, against plain loops, in float64."""

import copy

import pytest
import torch
from conftest import randomize
from torch import nn

pytestmark = pytest.mark.tl3


SIGMAS = (14.6, 5.3, 1.7, 0.4, 0.0)
POINTS = ("hook_cond", "hook_in", "blocks.0.hook_out", "blocks.1.hook_out", "hook_denoised")


@pytest.fixture(scope="module")
def toy():
    """A residual module that its own forward runs once for each sigma, towards what it predicts."""
    from transformer_lens.hook_points import HookPoint

    from vit_lens.hooking import LoudHookedRootModule

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(7, 7)
            self.hook_out = HookPoint()

        def forward(self, x):
            return x + self.hook_out(torch.tanh(self.linear(x)))

    class Toy(LoudHookedRootModule):
        says_steps = True

        def __init__(self):
            super().__init__()
            self.cond = nn.Linear(3, 7)
            self.blocks = nn.ModuleList(Block() for _ in range(2))
            for name in ("hook_cond", "hook_in", "hook_denoised", "hook_first"):
                setattr(self, name, HookPoint())
            self.setup()

        def denoise(self, x, cond, sigma, index=1):
            x = self.hook_in(x / (1 + sigma**2) ** 0.5 + cond)
            x = self.hook_first(x) if index == 0 else x
            for block in self.blocks:
                x = block(x)
            return x

        def forward(self, x, cond, sigmas):
            cond = self.hook_cond(self.cond(cond))
            for index, sigma in enumerate(sigmas):
                if self.says_steps:
                    with self.step(index, sigma=sigma):
                        x = x + 0.3 * (self.denoise(x, cond, sigma, index) - x)
                else:
                    x = x + 0.3 * (self.denoise(x, cond, sigma, index) - x)
            return self.hook_denoised(x)

    return randomize(Toy().double())


@pytest.fixture
def given():
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(n, dtype=torch.float64, generator=generator) for n in ((4, 7), (4, 3))]


def plainly(toy, x, cond):
    """The same run without hooks: every value of every point, by name."""
    cond = toy.cond(cond)
    found = {"hook_cond": cond, "hook_in": [], "blocks.0.hook_out": [], "blocks.1.hook_out": []}
    for sigma in SIGMAS:
        h = x / (1 + sigma**2) ** 0.5 + cond
        found["hook_in"].append(h)
        for index, block in enumerate(toy.blocks):
            found[f"blocks.{index}.hook_out"].append(torch.tanh(block.linear(h)))
            h = h + found[f"blocks.{index}.hook_out"][-1]
        x = x + 0.3 * (h - x)
    return {**found, "hook_denoised": x}


@pytest.mark.parametrize("at_steps", [None, [3, 1], [4]])
def test_a_cache_keeps_every_step(toy, given, at_steps):
    from vit_lens.hooking import Step, SteppedCache

    out, cache = toy.run_with_cache(*given, SIGMAS, names_filter=list(POINTS), at_steps=at_steps)
    expected, kept = plainly(toy, *given), sorted(at_steps or range(5))
    assert isinstance(cache, SteppedCache) and list(cache) == list(POINTS)[:1] + list(POINTS)[-1:] + list(POINTS)[1:4]
    assert cache.steps == tuple(Step(i, SIGMAS[i]) for i in kept)
    assert torch.equal(out, cache["hook_denoised"]) and torch.equal(out, expected["hook_denoised"])
    assert torch.equal(cache["hook_cond"], expected["hook_cond"])
    for name in POINTS[1:4]:
        assert cache[name].shape == (len(kept), 4, 7)
        assert torch.equal(cache[name], torch.stack([expected[name][i] for i in kept])), name
        for i in kept:
            one = cache.at_step(i)
            assert torch.equal(one[name], expected[name][i]) and torch.equal(one["hook_cond"], cache["hook_cond"])
    assert toy.current_step is None and not toy.list_hooks()


@pytest.mark.parametrize("at_steps", [None, [1, 3]])
def test_gradients_belong_to_their_steps(toy, given, at_steps):
    toy.zero_grad()
    _, cache = toy.run_with_cache(*given, SIGMAS, names_filter=list(POINTS[:4]), incl_bwd=True, at_steps=at_steps)
    expected = plainly(toy, *given)
    for name in POINTS[:4]:
        values = expected[name] if name != "hook_cond" else [expected[name]]
        grads = torch.autograd.grad(expected["hook_denoised"].sum(), values, retain_graph=True)
        grads = grads[0] if name == "hook_cond" else torch.stack([grads[i] for i in at_steps or range(5)])
        assert (cache[f"{name}_grad"] - grads).abs().max() < 1e-14, name
    assert "hook_in_grad" in cache.at_step(3)


def test_gradients_that_reach_some_steps_alone_are_refused(toy, given, monkeypatch):
    from vit_lens.errors import VitLensError

    def detached(self, x, cond):
        for index in range(3):
            with self.step(index):
                x = self.denoise(x.detach(), self.cond(cond), 1.0)
        return x

    def blind(self, x, cond):
        for index in range(3):
            with self.step(index), torch.set_grad_enabled(index > 0):
                x = self.denoise(x, self.cond(cond), 1.0)
        return x

    monkeypatch.setattr(type(toy), "forward", detached)
    with pytest.raises(VitLensError, match=r"some passes through \['blocks.1.hook_out'\] and not to all"):
        toy.run_with_cache(*given, names_filter="blocks.1.hook_out", incl_bwd=True)
    monkeypatch.setattr(type(toy), "forward", blind)
    _, cache = toy.run_with_cache(*given, names_filter="blocks.1.hook_out", incl_bwd=True)
    assert [i for i in range(3) if "blocks.1.hook_out_grad" in cache.at_step(i)] == [1, 2]
    assert not toy.list_hooks()


def test_a_run_that_says_no_steps_is_refused(toy, given, monkeypatch):
    from vit_lens.errors import VitLensError

    monkeypatch.setattr(type(toy), "says_steps", False)
    with pytest.raises(VitLensError, match=r"'hook_in' fired again, .*`with model\.step\(index\):`"):
        toy.run_with_cache(*given, SIGMAS, names_filter="hook_in")
    with pytest.raises(VitLensError, match=r"at_steps=\[2\]: at the points that are kept, the run said no steps"):
        toy.run_with_cache(*given, SIGMAS, names_filter="hook_cond", at_steps=[2])
    _, cache = toy.run_with_cache(*given, SIGMAS[:1], names_filter=list(POINTS))
    assert isinstance(cache, dict) and torch.equal(
        cache["hook_in"], toy.run_with_cache(*given, SIGMAS[:1])[1]["hook_in"]
    )
    assert not toy.list_hooks()


def test_steps_follow_each_other(toy, given, unchecked):
    from vit_lens.errors import VitLensError

    with pytest.raises(VitLensError, match="step 1 begins inside of step 0"), toy.step(0), toy.step(1):
        pass
    with toy.step(7, sigma=torch.tensor(0.5)) as step, pytest.raises(VitLensError, match="step 0 begins inside"):
        assert (step.index, step.sigma) == (7, 0.5) and toy.current_step is step
        toy(*given, SIGMAS)
    assert toy.current_step is None
    for index in (True, 1.0, "1", None):
        with pytest.raises(VitLensError, match="expected a whole number"), toy.step(index):
            pass


def test_a_step_of_its_own_for_every_pass(toy, given):
    """An index said twice, and a pass outside of the steps, are no steps that stack."""
    from vit_lens.errors import VitLensError

    x, cond = given[0], toy.cond(given[1])
    cache, fwd, _ = toy.get_caching_hooks("hook_in")
    with toy.hooks(fwd):
        for _ in range(2):
            with toy.step(0):
                if cache:
                    with pytest.raises(VitLensError, match=r"'hook_in' fired again in step 0"):
                        toy.denoise(x, cond, 1.0)
                else:
                    toy.denoise(x, cond, 1.0)
    assert list(cache) == ["hook_in~0"]

    class Outside(type(toy)):
        def forward(self, x):
            with self.step(0):
                self.denoise(x, cond, 1.0)
            return self.denoise(x, cond, 1.0)

    with pytest.raises(VitLensError, match="'hook_in' fired in steps and outside of them"):
        Outside().double().run_with_cache(x, names_filter="hook_in")


def test_a_run_whose_hook_raises_leaves_nothing_behind(toy, given):
    def stop(act, hook):
        if toy.current_step.index == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        toy.run_with_hooks(*given, SIGMAS, fwd_hooks=[("hook_in", stop)])
    with toy.hooks([("hook_in", stop)]), pytest.raises(KeyboardInterrupt):
        toy.run_with_cache(*given, SIGMAS)
    assert toy.current_step is None and not toy.list_hooks() and toy.context_level == 0
    assert toy.run_with_cache(*given, SIGMAS, names_filter="hook_in")[1]["hook_in"].shape == (5, 4, 7)


def test_a_hook_acts_at_one_step(toy, given):
    def mute(act, hook):
        return act * 0 if toy.current_step.index == 3 else act

    with toy.hooks([("blocks.0.hook_out", mute)]):
        _, cache = toy.run_with_cache(*given, SIGMAS, names_filter=list(POINTS))
    silent = [not step.any() for step in cache["blocks.0.hook_out"]]
    assert silent == [False, False, False, True, False]


@pytest.mark.filterwarnings("ignore:these hooks never fired")
def test_points_of_some_steps_and_what_is_not_there(toy, given, unchecked):
    from vit_lens.errors import UnknownHookError, VitLensError

    _, cache = toy.run_with_cache(*given, SIGMAS)
    message = r"'hook_first' fired in steps \[0\] and not in \[1, 2, 3, 4\].*take cache\.at_step\(0\)\['hook_first'\]"
    with pytest.raises(UnknownHookError, match=message):
        cache["hook_first"]
    assert torch.equal(cache.at_step(0)["hook_first"], cache["hook_in"][0]) and "hook_first" not in cache.at_step(1)
    with pytest.raises(UnknownHookError, match="holds no 'hook_inn'; nearest: 'hook_in'"):
        cache["hook_inn"]
    with pytest.raises(VitLensError, match=r"step 5 is not kept; expected one of \[0, 1, 2, 3, 4\]"):
        cache.at_step(5)
    with pytest.raises(VitLensError, match=r"at_steps=\[7\]: .* the run had steps \[0, 1, 2, 3, 4\]"):
        toy.run_with_cache(*given, SIGMAS, at_steps=[0, 7])
    for wrong in ([], 3, ["first"]):
        with pytest.raises(VitLensError, match="expected a list of steps"):
            toy.run_with_cache(*given, SIGMAS, at_steps=wrong)
    with pytest.raises(AttributeError, match="SteppedCache has no 'decompose'"):
        _ = cache.decompose
    assert repr(cache).startswith("SteppedCache(6 activations; steps 0 at sigma 14.6, 1 at sigma 5.3, ")
    assert torch.equal(copy.deepcopy(cache)["hook_in"], cache["hook_in"])


def test_options_go_with_steps(toy, given):
    from vit_lens.errors import VitLensError

    x, cond = given
    _, whole = toy.run_with_cache(x[:1], cond[:1], SIGMAS, names_filter=list(POINTS))
    _, cache = toy.run_with_cache(
        x[:1], cond[:1], SIGMAS, names_filter=list(POINTS), remove_batch_dim=True, device="cpu"
    )
    assert torch.equal(cache["hook_in"], whole["hook_in"][:, 0]) and cache.at_step(0)["hook_cond"].shape == (7,)
    with pytest.raises(VitLensError, match="needs one image, not 4"):
        toy.run_with_cache(x, cond, SIGMAS, names_filter=list(POINTS), remove_batch_dim=True)
    assert toy.run_with_cache(x, cond, SIGMAS, names_filter="hook_in", device="meta")[1]["hook_in"].is_meta


# ---- several runs -------------------------------------------------------------------------------------------


def test_a_dict_is_filled_once(vit, pixels):
    """Where a second run used to write over the first in silence."""
    from vit_lens.errors import VitLensError

    kept = vit.add_caching_hooks("blocks.1.hook_mlp_out")
    vit(pixels)
    first = kept["blocks.1.hook_mlp_out"]
    with pytest.raises(VitLensError, match=r"'blocks.1.hook_mlp_out' fired again.*cache\.clear\(\)"):
        vit(pixels[:2])
    assert kept["blocks.1.hook_mlp_out"] is first
    kept.clear()
    vit(pixels[:2])
    assert len(kept["blocks.1.hook_mlp_out"]) == 2
    vit.reset_hooks()
    with vit.hooks(vit.get_caching_hooks("blocks.1.hook_mlp_out", cache=kept)[1]):
        with pytest.raises(VitLensError, match="fired again"):
            vit(pixels)


def test_gradients_of_a_second_backward_pass_are_refused(toy, given):
    from vit_lens.errors import VitLensError

    cache, fwd, bwd = toy.get_caching_hooks("blocks.0.hook_out", incl_bwd=True)
    with toy.hooks(fwd, bwd):
        out = toy(*given, SIGMAS).sum()
        out.backward(retain_graph=True)
        with pytest.raises(VitLensError, match=r"a second backward pass reached 'blocks\.0\.hook_out'"):
            out.backward()
    assert sorted(cache) == sorted(f"blocks.0.hook_out{g}~{i}" for g in ("", "_grad") for i in range(5))


def test_a_norm_that_fires_for_queries_keys_and_values(vit, pixels):
    """The one exception: with inputs split by head a cache keeps what ln1 gave for the values, and its gradient."""
    name, seen, grads = "blocks.1.ln1.hook_normalized", [], []
    hooks = [(name, lambda act, hook: seen.append(act.clone()))]
    splits = [(f"blocks.1.hook_{x}_input", lambda act, hook, n=n: act * n) for n, x in enumerate("qkv", 1)]
    point = "blocks.1.hook_v_input"
    pixels = pixels.clone().requires_grad_()
    with vit.hooks([*splits, *hooks], [(name, lambda grad, hook: grads.append(grad.clone()))]):
        _, cache = vit.run_with_cache(pixels, names_filter=[name, point], incl_bwd=True)
    assert len(seen) == len(grads) == 3 and torch.equal(cache[name], seen[2])
    assert torch.equal(cache[f"{name}_grad"], grads[0])  # backward comes to the values first
    assert vit.firings(name) == 1 and vit.firings("blocks.1.ln2.hook_scale") == 1


# ---- a tower in steps ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def looped(vit):
    """A tower that looks three times, each time at what noise has left of the images."""
    from vit_lens import HookedViT

    class Looped(HookedViT):
        def forward(self, pixels, **kwargs):
            total = 0
            for index, sigma in enumerate((2.0, 1.0, 0.0)):
                with self.step(index, sigma=sigma):
                    total = total + super().forward(pixels / (1 + sigma), **kwargs)
            return total

    model = Looped(vit.cfg).double()
    model.load_state_dict(vit.state_dict(), assign=True)  # with their layout: products are equal to the bit
    return model.requires_grad_(False)


@pytest.mark.parametrize(
    "options", [{}, {"rows": "readout"}, {"pos_slice": (1, 4)}, {"pos_slice": 2}, {"start_at_layer": 1}], ids=str
)
def test_every_step_is_an_ordinary_cache(looped, vit, pixels, options):
    given = vit(pixels, stop_at_layer=1) if "start_at_layer" in options else pixels
    out, cache = looped.run_with_cache(given, **options)
    runs = [vit.run_with_cache(given / (1 + sigma), **options) for sigma in (2.0, 1.0, 0.0)]
    assert torch.equal(out, runs[0][0] + runs[1][0] + runs[2][0])
    for index, (_, run) in enumerate(runs):
        one = cache.at_step(index)
        assert type(one) is type(run) and one.rows == run.rows and one.model is looped
        assert all(torch.equal(one[name], run[name]) and torch.equal(cache[name][index], run[name]) for name in run)
        if "rows" not in options and "pos_slice" not in options:
            assert torch.equal(one.decompose_resid(apply_ln=True), run.decompose_resid(apply_ln=True))
            assert torch.equal(one.get_full_resid_decomposition(), run.get_full_resid_decomposition())
    assert torch.equal(cache["z", 2], torch.stack([run["z", 2] for _, run in runs]))


def test_algebra_is_of_one_step(looped, pixels, unchecked):
    from vit_lens import DiffusionLens
    from vit_lens.errors import UnknownHookError, VitLensError

    _, cache = looped.run_with_cache(pixels, at_steps=[1, 2])
    for method in ("decompose_resid", "apply_ln_to_stack", "logit_lens", "readout", "apply_slice_to_batch_dim", "to"):
        with pytest.raises(VitLensError, match=rf"{method} is of one step: cache\.at_step\(1\)\.{method}"):
            getattr(cache, method)
    with pytest.raises(VitLensError, match="not SteppedCache"):
        DiffusionLens().embed(cache, "L0H0")
    with pytest.raises(UnknownHookError, match=r"does not hold 'blocks.0.attn.hook_result': name it in names_filter"):
        cache["result", 0]
    _, plain = looped.run_with_cache(pixels, return_cache_object=False, names_filter="hook_embed")
    assert torch.equal(plain.at_step(0)["hook_embed"], plain["hook_embed"][0])


def test_a_tower_is_what_a_cache_asks_for(vit):
    from vit_lens.towers import Tower

    asked = {*Tower.__annotations__, *(n for n in vars(Tower) if not n.startswith("_"))}
    assert "blocks" in asked and not [name for name in asked if not hasattr(vit, name)]
