"""Features as addresses: ablation, patching, attribution and lenses, each held to a brute-force edit in float64."""

import dataclasses
import warnings

import pytest
import tiny_dictionaries as tiny
import torch

OPTIONS = [dict(), dict(layer_norm=True, input_scale=0.4)]
SITES = {"L1.resid_post": "blocks.1.hook_resid_post", "L1.mlp": "blocks.1.hook_mlp_out"}


def of(site="L1.resid_post", kind="topk", tokens="all", stream="output", **said):
    from vit_lens.dictionaries import Origin

    return tiny.make(kind, origin=Origin(site=SITES.get(site, site), tokens=tokens, stream=stream), **said)


def close(one, other):
    assert torch.allclose(one, other, atol=1e-9, rtol=0)


def moved(dictionary, model, pixels, change):
    """What the model gives where codes go through ``change``, written by a hook of its own on the site."""

    def hook(x, hook):
        codes = dictionary.encode(x)
        return x + (dictionary.decode(change(codes.clone()), x) - dictionary.decode(codes, x))

    return model.run_with_hooks(pixels, fwd_hooks=[(dictionary.origin.site, hook)])


def busiest(dictionary, model, pixels, n=2):
    """The features that fire most on the class token and elsewhere, so that an edit of them shows."""
    _, cache = model.run_with_cache(pixels)
    codes = dictionary.encode(cache[dictionary.origin.site])
    return (codes != 0).double().mean((0, 1)).add((codes[:, 0] != 0).double().mean(0)).topk(n).indices.tolist()


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("kind", ["topk", "pursuit"])
@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_ablation_and_patching_are_edits_of_codes(vit, pixels, site, kind, option):
    from vit_lens import interventions
    from vit_lens.dictionaries import clamp

    dictionary = of(site, kind, **option)
    a, b = busiest(dictionary, vit, pixels)
    others = pixels.flip(0) * 1.3
    full = f"{site}.f{a}"
    with vit.spliced(dictionary):
        clean = vit(pixels)
        _, cache = vit.run_with_cache(others)
        runs = {
            "zero": interventions.zero(vit, [f"L1.f{a}", f"{site}.f{b}"]),
            "zero at a token": interventions.zero(vit, f"{full}@cls"),
            "patch": interventions.patch(vit, full, cache),
            "patch one": interventions.patch(vit, full, cache, images=2, tokens=["patch1", "cls"]),
            "clamp": clamp(vit, {full: 1.7, f"L1.f{b}": -0.3}),
            "clamp at": clamp(vit, {f"{full}@patches": 1.7}),
        }
        found = {name: vit.run_with_hooks(pixels, fwd_hooks=hooks) for name, hooks in runs.items()}
    theirs = dictionary.encode(cache[SITES[site]])

    def zero(codes):
        codes[..., [a, b]] = 0
        return codes

    def zero_at(codes):
        codes[:, 0, a] = 0
        return codes

    def patch(codes):
        codes[..., a] = theirs[..., a]
        return codes

    def patch_one(codes):
        codes[:, [2, 0], a] = theirs[2, [2, 0], a]
        return codes

    def clamped(codes):
        codes[..., a], codes[..., b] = 1.7, -0.3
        return codes

    def clamped_at(codes):
        codes[:, 1:, a] = 1.7
        return codes

    brute = dict(zip(runs, (zero, zero_at, patch, patch_one, clamped, clamped_at), strict=True))
    for name, change in brute.items():
        expected = moved(dictionary, vit, pixels, change)
        close(found[name], expected)
        assert not torch.allclose(expected, clean, atol=1e-6), name


def test_mean_codes_are_those_of_a_loop(vit, pixels):
    from vit_lens.dictionaries import ActivationSource, mean_codes

    dictionary = of()
    _, cache = vit.run_with_cache(pixels)
    expected = torch.stack([dictionary.encode(token) for x in cache[SITES["L1.resid_post"]] for token in x]).mean(0)
    close(mean_codes(dictionary, ActivationSource.of_model(vit, pixels, "L1.resid_post", batch_size=4)), expected)


@pytest.mark.filterwarnings("ignore:these hooks never fired")
def test_wrong_features_are_refused(vit, pixels, unchecked):
    import vit_lens as vl
    from vit_lens import interventions
    from vit_lens.dictionaries import clamp, feature_writes
    from vit_lens.errors import DictionaryError, InterventionError, UnknownSiteError

    dictionary, patches = of(), of(tokens="patches")
    means = vl.ReferenceMeans.from_images(vit, pixels, positions="all")
    with pytest.raises(UnknownSiteError, match="no dictionary is spliced in"):
        interventions.zero(vit, "L1.f3")
    with vit.spliced(dictionary):
        with pytest.raises(UnknownSiteError, match=r"L1\.resid_post\.f53: the dictionary there has features f0 to f52"):
            interventions.zero(vit, "L1.f53")
        with pytest.raises(UnknownSiteError, match=r"there are dictionaries at L1\.resid_post"):
            interventions.zero(vit, "L2.f3")
        with pytest.raises(InterventionError, match="would have no effect"):
            interventions.zero(vit, ["L1.f3", "L1.resid_post"])
        with pytest.raises(InterventionError, match="patch99 is out of range"):
            interventions.zero(vit, "L1.f3@patch99")
        with pytest.raises(InterventionError, match="hold no neurons and no features"):
            interventions.mean(vit, "L1.f3", means)
        with pytest.raises(UnknownSiteError, match="without tower, position or step"):
            interventions.zero(vit, "L1.f3~2")
        with pytest.raises(UnknownSiteError, match="without tower, position or step"):
            clamp(vit, {"vision:L1.f3": 1.0})
        with pytest.raises(DictionaryError, match="says at which tokens"):
            clamp(vit, {"L1.f3@cls": 1.0}, tokens="cls")
        with pytest.raises(DictionaryError, match="finite"):
            clamp(vit, {"L1.f3": float("nan")})
        _, cache = vit.run_with_cache(pixels)
        with pytest.raises(InterventionError, match="paths begin at sites"):
            interventions.path(vit, "L1.f3", "L2.attn", cache, cache)
        with vit.spliced(of("L1.mlp")), pytest.raises(UnknownSiteError, match="of several dictionaries"):
            interventions.zero(vit, "L1.f3")
    with vit.spliced(patches):
        with pytest.raises(InterventionError, match=r"no code at tokens \[0\]"):
            interventions.zero(vit, "L1.f3@cls")
        with pytest.raises(DictionaryError, match=r"no code at tokens \[0\]"):
            clamp(vit, {"L1.f3": 1.0}, tokens="cls")
        interventions.zero(vit, "L1.f3@patch2")
    with pytest.raises(DictionaryError, match=r"the embedding is read from .*its features write nothing there"):
        feature_writes(cache, patches, "L1.f3")
    with pytest.raises(DictionaryError, match="no feature 53"):
        feature_writes(cache, dictionary, [53])
    with pytest.raises(UnknownSiteError, match="no dictionary is spliced there"):
        feature_writes(cache, dictionary, "L2.f3")
    with pytest.raises(DictionaryError, match=r"'L1\.f3@cls' says more than a feature"):
        feature_writes(cache, dictionary, "L1.f3@cls")
    with pytest.raises(DictionaryError, match="expected addresses"):
        feature_writes(cache, dictionary, [])
    dead = dataclasses.replace(dictionary, frequency=torch.zeros(53, dtype=torch.float64))
    with vit.spliced(dead), pytest.warns(UserWarning, match=r"L1\.resid_post\.f3 is dead"):
        interventions.zero(vit, "L1.f3")
    with pytest.warns(UserWarning, match="feature 3 is dead"):
        feature_writes(cache, dead, "L1.f3")


@pytest.mark.parametrize("option", OPTIONS, ids=str)
@pytest.mark.parametrize("stream", ["output", "update"])
def test_writes_are_codes_times_rows(vit, pixels, option, stream):
    from vit_lens import interventions
    from vit_lens.dictionaries import feature_writes

    dictionary = of(stream=stream, **option)
    _, cache = vit.run_with_cache(pixels)
    x = cache[SITES["L1.resid_post"]] - (cache["blocks.1.hook_resid_pre"] if stream == "update" else 0)
    codes = dictionary.encode(x)[:, 0]
    a, b = codes.abs().amax(0).topk(2).indices.tolist()
    scale = 1 / dictionary.semantics.input_scale
    spread = (x[:, 0] * dictionary.semantics.input_scale).std(-1, keepdim=True) if option else 1
    found = feature_writes(cache, dictionary, [f"L1.f{a}", f"L1.resid_post.f{b}"])
    for k, feature in enumerate((a, b)):
        close(found[:, k, 0], codes[:, [feature]] * dictionary.W_dec[feature] * spread * scale)
    given = feature_writes(cache, dictionary, [b], code=2.5)
    close(given[:, 0, 0], 2.5 * dictionary.W_dec[b].expand(3, -1) * spread * scale)
    with vit.spliced(dictionary):
        with vit.hooks(interventions.zero(vit, f"L1.f{a}")):
            _, edited = vit.run_with_cache(pixels)
    again = feature_writes(edited, dictionary, [a, b])
    assert not again[:, 0].any() and torch.allclose(again[:, 1], found[:, 1], atol=1e-9)


def later(cache, layers):
    """Hooks that hold what blocks write and the scale of the last norm."""
    names = [f"blocks.{layer}.hook_{part}" for layer in layers for part in ("attn_out", "mlp_out")]
    return [(name, lambda x, hook, value=cache[name]: value.clone()) for name in [*names, "ln_final.hook_scale"]]


@pytest.mark.parametrize("site, layers", [("L1.resid_post", [2]), ("L1.mlp", [2]), ("blocks.2.hook_resid_post", [])])
def test_attribution_is_the_ablation_with_all_else_held(vit, pixels, site, layers):
    from vit_lens import interventions
    from vit_lens.dictionaries import feature_attribution

    dictionary = of(site)
    a, b = busiest(dictionary, vit, pixels)
    directions = tiny.randn(4, 13, seed=5)
    clean, cache = vit.run_with_cache(pixels)
    found = feature_attribution(cache, dictionary, directions, [a, b], units="dot")
    cosines = feature_attribution(cache, dictionary, directions, [a, b])
    assert [one.kind for one in found.components] == ["feature"] * 2
    assert found.to_frame()["component"].iloc[0].endswith(f".f{a}")
    for k in range(2):
        with vit.spliced(dictionary):
            hooks = interventions.zero(vit, str(found.components[k].address))
            without = vit.run_with_hooks(pixels, fwd_hooks=[*hooks, *later(cache, layers)])
        lost = (clean - without) @ directions.T
        assert lost.abs().max() > 1e-4
        close(found.values[k], lost)
        close(cosines.values[k], lost / clean.norm(dim=1, keepdim=True) / directions.norm(dim=1))


@pytest.mark.parametrize("site, layers", [("L1.resid_post", [2]), ("L1.mlp", [2])])
def test_lenses_read_writes_as_hooks_have_them(vit, pixels, site, layers):
    import vit_lens as vl
    from vit_lens.dictionaries import feature_embeddings, feature_writes

    dictionary = of(site)
    features = busiest(dictionary, vit, pixels)
    _, cache = vit.run_with_cache(pixels)
    steered = feature_embeddings(vl.DiffusionSteeringLens(alpha=5), cache, dictionary, features)
    alone = feature_embeddings(vl.DiffusionLens(), cache, dictionary, features)
    shared = feature_embeddings(vl.DiffusionSteeringLens(share=0.7), cache, dictionary, features)
    held = [pair for pair in later(cache, layers) if pair[0] != "ln_final.hook_scale"]
    for k, feature in enumerate(features):

        def louder(codes, hook, feature=feature):
            codes[:, 0, feature] *= 5
            return codes

        with vit.spliced(dictionary, edit=louder):
            close(steered[:, k], vit.run_with_hooks(pixels, fwd_hooks=held))
        write = feature_writes(cache, dictionary, [feature])[:, 0, 0]

        def put(x, hook, write=write):
            return torch.cat([write[:, None], x[:, 1:]], 1)

        close(alone[:, k], vit.run_with_hooks(pixels, fwd_hooks=[("blocks.2.hook_resid_post", put)]))

        def norm(x):
            return (x - x.mean(-1, keepdim=True)).norm(dim=-1, keepdim=True)

        def add(x, hook, write=write):
            return torch.cat([(x[:, 0] + 0.7 * norm(x[:, 0]) / norm(write) * write)[:, None], x[:, 1:]], 1)

        if norm(write).min() > 0:
            close(shared[:, k], vit.run_with_hooks(pixels, fwd_hooks=[("blocks.2.hook_resid_post", add)]))


def test_a_feature_that_is_given_a_code_needs_no_token_of_its_own(vit, pixels, unchecked):
    import vit_lens as vl
    from vit_lens.dictionaries import feature_embeddings
    from vit_lens.errors import LensError

    dictionary, patches = of(), of(tokens="patches")
    _, cache = vit.run_with_cache(pixels)
    lens = vl.DiffusionLens()
    close(
        feature_embeddings(lens, cache, patches, [7], code=2.0),
        feature_embeddings(lens, cache, dictionary, [7], code=2.0),
    )
    with pytest.raises(LensError, match="expected DiffusionLens"):
        feature_embeddings("dsl", cache, dictionary, [7])
    with pytest.raises(LensError, match="read-out rows"):
        lens.read_writes(cache, "L1.mlp", torch.zeros(3, 2, 1, 34, dtype=torch.float64))


def test_addresses_of_hook_points():
    from vit_lens.addresses import Address, address_of

    for name in ("L3.mlp", "L12.resid_pre", "L0.resid_post", "L4.attn", "L2.resid_mid"):
        assert address_of(Address.parse(name).hook_name) == Address.parse(name)
    for name in (
        "blocks.3.attn.hook_z",
        "blocks.3.hook_nothing",
        "ln_final.hook_scale",
        "pool",
        "blocks.x.hook_mlp_out",
    ):
        assert address_of(name) is None
    assert Address.parse("L5.attn.f7").hook_name == "blocks.5.hook_attn_out.hook_sae_acts_post"


def test_feature_addresses_name_what_has_one():
    from vit_lens.dictionaries import feature_address
    from vit_lens.errors import DictionaryError

    assert str(feature_address(of("L1.mlp"), 7)) == "L1.mlp.f7"
    with pytest.raises(DictionaryError, match="no site, which has no address"):
        feature_address(tiny.make(), 7)
    with pytest.raises(DictionaryError, match="no feature 53"):
        feature_address(of(), 53)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        feature_address(of(), 3)
