"""A dictionary's algebra: encoders, pursuit, normalisation that is folded, files; and what is refused."""

import dataclasses

import pytest
import tiny_dictionaries as tiny
import torch

OPTIONS = [
    dict(), dict(subtracts_bias=False), dict(relu_after_topk=False), dict(input_scale=0.37), dict(layer_norm=True),
    dict(rescales_by_decoder_norm=True), dict(layer_norm=True, input_scale=2.5, subtracts_bias=False),
]  # fmt: skip


@pytest.mark.parametrize("kind", ["relu", "topk", "batchtopk", "jumprelu"])
@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_codes_are_those_of_the_slow_way(kind, option):
    dictionary = tiny.make(kind, d=11, n=17, k=5, **option)
    x = tiny.randn(6, 11, seed=9) * 2 + 0.5
    codes = dictionary.encode(x)
    assert torch.allclose(codes, tiny.slow_codes(dictionary, x), atol=1e-12)
    assert 0 < (codes != 0).sum() < codes.numel()
    if option.get("relu_after_topk") is False and kind == "topk":
        few = dictionary.with_k(17).encode(x)
        assert (few < 0).any()


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_decoding_undoes_what_encoding_does_to_the_input(option):
    """A complete signed basis reconstructs any input, so scale and norm are put back right."""
    d = 11
    rows = torch.linalg.qr(tiny.randn(d, d, seed=3)).Q
    plain = tiny.make("signed", d=d, n=d, k=d, **option)
    dictionary = dataclasses.replace(plain, W_dec=rows)
    x = tiny.randn(2, 3, d, seed=4) * 3 + 1
    atol = 3e-5 * float(x.abs().max()) if option.get("layer_norm") else 1e-10  # the norm's own eps of 1e-5
    assert torch.allclose(dictionary.decode(dictionary.encode(x), x), x, atol=atol)


def test_write_is_decode_without_its_bias():
    for option in OPTIONS:
        dictionary = tiny.make("topk", **option)
        x, codes = tiny.randn(4, 35, seed=5), tiny.randn(4, 53, seed=6)
        zero = dictionary.decode(torch.zeros_like(codes), x)
        assert torch.allclose(dictionary.write(codes, x) + zero, dictionary.decode(codes, x), atol=1e-12)
        chosen = torch.tensor([3, 40, 8])
        only = torch.zeros_like(codes)
        only[:, chosen] = codes[:, chosen]
        assert torch.allclose(dictionary.write(codes[:, chosen], x, chosen), dictionary.write(only, x), atol=1e-12)


# ---- pursuit ---------------------------------------------------------------------------------------------


def _unit(n, d, seed=0, common=0.0):
    rows = tiny.randn(n, d, seed=seed) + common * tiny.randn(d, seed=seed + 1)
    return rows / rows.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("common", [0.0, 2.0], ids=["random", "coherent"])
def test_active_set_is_gradient_pursuit_with_all_atoms_held(common):
    from vit_lens.dictionaries import gradient_pursuit

    atoms, x = _unit(61, 19, common=common), tiny.randn(23, 19, seed=5)
    found = gradient_pursuit(x, atoms, 9).dense(61)
    assert (found - tiny.slow_pursuit(x, atoms, 9)).abs().max() < 1e-12
    assert (found >= 0).all() and (found > 0).sum(1).max() <= 9


@pytest.mark.parametrize("chunk", [7, 64])
def test_atoms_and_tokens_may_be_taken_in_parts(monkeypatch, chunk):
    from vit_lens.dictionaries import gradient_pursuit, matching_pursuit, pursuit

    atoms, x = _unit(61, 19), tiny.randn(23, 19, seed=5)
    whole = [pursue(x, atoms, 6).dense(61) for pursue in (gradient_pursuit, matching_pursuit)]
    monkeypatch.setattr(pursuit, "_ATOMS_AT_ONCE", chunk)
    monkeypatch.setattr(pursuit, "_NUMBERS_AT_ONCE", 19 * 6 * 4)
    for pursue, one in zip((gradient_pursuit, matching_pursuit), whole, strict=True):
        assert (pursue(x, atoms, 6).dense(61) - one).abs().max() < 1e-12


def test_pursuit_recovers_codes_of_an_orthonormal_dictionary():
    from vit_lens.dictionaries import gradient_pursuit, matching_pursuit

    atoms = torch.linalg.qr(tiny.randn(31, 31)).Q
    codes = torch.zeros(5, 31, dtype=torch.float64)
    for t in range(5):
        at = torch.randperm(31, generator=torch.Generator().manual_seed(t))[:8]
        codes[t, at] = tiny.randn(8, seed=t) + 3
    for k in (8, 13):  # more steps than there are codes: what is left is rounding, and gets no atom
        found = gradient_pursuit(codes @ atoms, atoms, k).dense(31)
        assert (found - codes).abs().max() < 1e-12 and torch.equal(found != 0, codes != 0)
    signs = torch.sign(tiny.randn(5, 31, seed=8))
    found = matching_pursuit((codes * signs) @ atoms, atoms, 13).dense(31)
    assert (found - codes * signs).abs().max() < 1e-12 and torch.equal(found != 0, codes != 0)


def test_the_support_does_not_depend_on_the_scale():
    """With the published floor of 1e-3 under the step, small activations get other codes."""
    from vit_lens.dictionaries import gradient_pursuit

    atoms, x = _unit(61, 19, common=0.5), tiny.randn(23, 19, seed=5)
    full = gradient_pursuit(x, atoms, 9).dense(61)
    for scale in (1e-3, 1e-6, 1e4):
        found = gradient_pursuit(x * scale, atoms, 9).dense(61)
        assert torch.equal(found != 0, full != 0)
        assert torch.allclose(found / scale, full, rtol=1e-9, atol=1e-12)


def test_matching_pursuit_is_the_slow_one():
    from vit_lens.dictionaries import matching_pursuit

    atoms, x = _unit(41, 13), tiny.randn(9, 13, seed=5)
    for t, token in enumerate(x):
        codes, left = torch.zeros(41, dtype=torch.float64), token.clone()
        for _ in range(7):
            products = torch.stack([(left * atom).sum() for atom in atoms])
            at = int(products.abs().argmax())
            codes[at] += products[at]
            left = left - products[at] * atoms[at]
        assert (matching_pursuit(x, atoms, 7).dense(41)[t] - codes).abs().max() < 1e-12


def test_pursuit_encodes_with_the_decoder_of_any_dictionary():
    dictionary, x = tiny.make("topk"), tiny.randn(12, 35, seed=2)
    codes = dictionary.encode(x, "pursuit")
    unit = dictionary.W_dec / dictionary.W_dec.norm(dim=1, keepdim=True)
    slow = tiny.slow_pursuit(x - dictionary.b_dec, unit, 7) / dictionary.W_dec.norm(dim=1)
    assert (codes - slow).abs().max() < 1e-12
    own, pursued = (dictionary.decode(c) for c in (dictionary.encode(x), codes))
    assert (x - pursued).square().sum() < (x - own).square().sum()  # random encoders explain nothing
    assert (dictionary.encode(x, "signed", k=3) != 0).sum(1).max() <= 3
    assert dictionary.encode(x[0], "pursuit").shape == (53,)
    assert dictionary.encode(x.view(3, 4, 35), "pursuit").shape == (3, 4, 53)


# ---- normalisation ---------------------------------------------------------------------------------------


def _stream(n=400, d=13, seed=0):
    """Three wide dimensions, a far mean, and correlations."""
    x = tiny.randn(n, d, seed=seed) @ tiny.randn(d, d, seed=seed + 1)
    x[:, :3] *= 60
    return x + 50 * tiny.randn(d, seed=seed + 2)


@pytest.mark.parametrize("kind", ["none", "scale", "std", "pca"])
@pytest.mark.parametrize("option", [dict(), dict(subtracts_bias=False), dict(rescales_by_decoder_norm=True)], ids=str)
@pytest.mark.parametrize("encoder", tiny.KINDS)
def test_folding_changes_no_code(kind, option, encoder):
    from vit_lens.dictionaries import Normalisation

    x = _stream()
    statistics = Normalisation.fit(x, kind)
    inner = tiny.make(encoder, d=13, n=29, k=5, **option)
    z = statistics.apply(x[:40])
    codes, recons = inner.encode(z), statistics.invert(inner.decode(inner.encode(z)))
    folded = statistics.fold(inner)
    assert torch.allclose(folded.encode(x[:40]), codes, atol=1e-9)
    assert torch.allclose(folded.decode(codes), recons, rtol=1e-9, atol=1e-9 * float(recons.abs().max()))
    if encoder not in ("pursuit", "signed"):  # pursuit measures in the space of the statistics still
        assert torch.allclose(folded.encode(x[:40], "pursuit", k=4), inner.encode(z, "pursuit", k=4), atol=1e-9)
    plain = statistics.fold(inner, dtype=torch.float32)
    off = plain.encode(x[:40].float()).double() - codes
    assert off.abs().median() < 1e-5 and plain.W_dec.dtype == torch.float32


def test_statistics_are_those_of_numpy_and_frozen():
    import numpy as np

    from vit_lens.dictionaries import Normalisation

    x = _stream(n=123)
    for parts in ([x], x.split(17)):
        found = Normalisation.fit(parts, "std", n_tokens=100)
        assert found.n_tokens == 100
        assert np.allclose(found.mean, np.mean(x[:100].numpy(), 0), rtol=1e-12)
        assert np.allclose(found.write, np.std(x[:100].numpy(), 0), rtol=1e-10)
    white = Normalisation.fit(x, "pca")
    z = white.apply(x)
    assert torch.allclose(z.T @ z / 123, torch.eye(13, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(white.invert(z), x, atol=1e-8)
    assert white.apply(x, clip=1.5).abs().max() == 1.5
    for kind in ("none", "scale", "std", "pca"):
        one = Normalisation.fit(x, kind)
        z = one.apply(x)
        assert abs(float((z - z.mean(0)).square().sum(1).mean()) / one.variance - 1) < 1e-10
        assert torch.allclose(z.mean(0), one.centre, atol=1e-9)


def test_a_dimension_that_does_not_vary_stays_finite():
    from vit_lens.dictionaries import Normalisation

    x = _stream()
    x[:, 4] = 3.0
    for kind in ("std", "pca"):
        found = Normalisation.fit(x, kind)
        assert torch.isfinite(found.read).all() and torch.isfinite(found.write).all()
        assert torch.allclose(found.invert(found.apply(x)), x, atol=1e-6)


# ---- files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", tiny.KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_dictionary_is_read_back_whole(tmp_path, encoder, dtype):
    from vit_lens.dictionaries import Dictionary, Origin

    origin = Origin(site="blocks.2.hook_mlp_out", stream="output", tokens="patches", model="m", fingerprint="0" * 16)
    dictionary = tiny.make(
        encoder, dtype=dtype, input_scale=0.3, origin=origin, labels=torch.arange(106).view(53, 2),
        frequency=torch.rand(53), metric=torch.rand(35), statistics={"held_out": {"fvu": 0.25}},
    )  # fmt: skip
    again = Dictionary.load(dictionary.save(tmp_path / "x.safetensors"))
    for field in dataclasses.fields(Dictionary):
        one, other = getattr(dictionary, field.name), getattr(again, field.name)
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other, field.name
    assert Dictionary.load(tmp_path / "x.safetensors", "vit_lens").n_features == 53
    damaged = bytearray((tmp_path / "x.safetensors").read_bytes())
    damaged[-3] ^= 1
    (tmp_path / "x.safetensors").write_bytes(damaged)
    with pytest.raises(ValueError, match="another hash"):
        Dictionary.load(tmp_path / "x.safetensors")


def test_what_does_not_fit_is_refused(tmp_path):
    from faults import outcomes

    from vit_lens import errors
    from vit_lens.dictionaries import Dictionary, Normalisation, Semantics, gradient_pursuit

    dictionary, x = tiny.make(), tiny.randn(4, 35)
    plain = {"W_dec": torch.zeros(5, 3), "b_dec": torch.zeros(3)}
    topk = Semantics.plain("topk", 2)
    scaled = tiny.make(layer_norm=True)
    dead = dataclasses.replace(dictionary, W_dec=dictionary.W_dec * (torch.arange(53)[:, None] != 4))
    cases = {
        "no encoder": (lambda: Dictionary(**plain, semantics=topk), "DictionaryError", "W_enc is not there"),
        "b_dec": (
            lambda: Dictionary(**plain | {"b_dec": torch.zeros(4)}, semantics=Semantics.plain("pursuit", 2)),
            "DictionaryError", "b_dec is (4,); expected (3,)",
        ),
        "nan": (lambda: tiny.make(b_dec=torch.full((35,), torch.nan)), "DictionaryError", "NaN"),
        "threshold": (lambda: tiny.make("jumprelu", threshold=None), "DictionaryError", "threshold is not there"),
        "k": (lambda: tiny.make(k=54), "DictionaryError", "k=54 of 53"),
        "kind": (lambda: Semantics.plain("top", 3), "DictionaryError", "nearest: 'topk'"),
        "k of relu": (lambda: Semantics.plain("relu", 3), "DictionaryError", "counts no codes"),
        "width": (lambda: dictionary.encode(x[:, :30]), "DictionaryError", "width 35"),
        "method": (lambda: dictionary.encode(x, "persuit"), "DictionaryError", "'pursuit'"),
        "no k": (lambda: tiny.make("relu").encode(x, "pursuit"), "DictionaryError", "needs k="),
        "codes": (lambda: dictionary.decode(torch.zeros(2, 52)), "DictionaryError", "52"),
        "norm of what": (lambda: scaled.decode(scaled.encode(x)), "DictionaryError", "the x that was encoded"),
        "feature": (lambda: dictionary.direction(53), "DictionaryError", "there are 53"),
        "negative": (lambda: dictionary.direction(-1), "DictionaryError", "counted from 0"),
        "empty row": (lambda: dead.direction(4), "DictionaryError", "writes nothing"),
        "frequency": (lambda: dictionary.dead, "DictionaryError", "evaluate("),
        "pre codes": (lambda: tiny.make("pursuit").pre_codes(x), "DictionaryError", "no encoder"),
        "other statistics": (lambda: Normalisation.fit(x[:, :9]).fold(dictionary), "DictionaryError", "do not belong"),
        "other activations": (lambda: Normalisation.fit(x[:, :9]).apply(x), "DictionaryError", "do not belong"),
        "fold twice": (
            lambda: Normalisation.fit(x).fold(Normalisation.fit(x).fold(dictionary)), "DictionaryError", "folded into",
        ),
        "same tokens": (lambda: Normalisation.fit(torch.ones(5, 3)), "DictionaryError", "are the same"),
        "nan tokens": (lambda: Normalisation.fit(torch.full((5, 3), torch.nan)), "DictionaryError", "NaN"),
        "normalisation": (lambda: Normalisation.fit(x, "whiten"), "DictionaryError", "nearest"),
        "dtype": (lambda: gradient_pursuit(x, x.float(), 2), "DictionaryError", "one dtype"),
        "no atoms": (lambda: gradient_pursuit(x, x[:0], 2), "DictionaryError", "at least one atom"),
        "no steps": (lambda: gradient_pursuit(x, x, 0), "DictionaryError", "at least one step"),
        "no file": (lambda: Dictionary.load(tmp_path / "none"), "DictionaryError", "no such file"),
        "layout": (lambda: Dictionary.load(tmp_path, "sae_lense"), "DictionaryError", "nearest: 'sae_lens'"),
        "empty folder": (lambda: Dictionary.load(tmp_path), "DictionaryError", "of no layout that is known"),
    }  # fmt: skip
    from jaxtyping import config

    config.jaxtyping_disable, before = True, config.jaxtyping_disable
    try:
        assert not outcomes(errors, cases)
    finally:
        config.jaxtyping_disable = before


def test_a_dead_feature_is_named():
    dictionary = dataclasses.replace(tiny.make(), frequency=(torch.arange(53) != 7).float())
    assert dictionary.dead == [7]
    with pytest.warns(UserWarning, match="feature 7 is dead"):
        dictionary.direction(7)
    assert abs(float(dictionary.direction(8).norm()) - 1) < 1e-12
