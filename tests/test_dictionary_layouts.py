"""Others' files: each layout built here as its library writes it, read to the same codes; what does not say enough."""

import io
import json
import pickle

import pytest
import tiny_dictionaries as tiny
import torch
from safetensors.torch import save_file

D, N = 11, 23
LINEAR = ("encoder.weight", "encoder.bias", "decoder.weight")


def weights(seed=0):
    """What every layout holds, by our names, in float32."""
    made = {"W_enc": tiny.randn(D, N, seed=seed), "b_enc": tiny.randn(N, seed=1), "W_dec": tiny.randn(N, D, seed=2),
            "b_dec": tiny.randn(D, seed=3), "threshold": tiny.randn(N, seed=4).abs()}  # fmt: skip
    return {name: value.float() for name, value in made.items()}


def plain(*names, **others):
    w = weights()
    return {name: w[name] for name in names} | others


def linear(bias, **others):
    """As torch.nn.Linear names and turns them."""
    w = weights()
    return {"encoder.weight": w["W_enc"].T.contiguous(), "encoder.bias": w["b_enc"],
            "decoder.weight": w["W_dec"].T.contiguous(), bias: w["b_dec"]} | others  # fmt: skip


def folder(path, config, tensors, name, config_name):
    path.mkdir(parents=True, exist_ok=True)
    (path / config_name).write_text(json.dumps(config))
    if name.endswith("safetensors"):
        save_file(tensors, path / name)
    else:
        torch.save(tensors, path / name)
    return path


def sae_lens(path, tensors=None, **cfg):
    cfg = dict(architecture="topk", d_in=D, d_sae=N, k=5, dtype="float32", apply_b_dec_to_input=True,
               normalize_activations="none", reshape_activations="none", rescale_acts_by_decoder_norm=False,
               metadata={"hook_name": "blocks.3.hook_resid_post", "model_name": "m"}) | cfg  # fmt: skip
    given = plain("W_enc", "b_enc", "W_dec", "b_dec") if tensors is None else tensors
    return folder(path, cfg, given, "sae_weights.safetensors", "cfg.json")


def sparsify(path, tensors=None, **cfg):
    w = weights()
    held = {
        "encoder.weight": w["W_enc"].T.contiguous(),
        "encoder.bias": w["b_enc"],
        "W_dec": w["W_dec"],
        "b_dec": w["b_dec"],
    }
    cfg = dict(activation="topk", expansion_factor=2, k=5, d_in=D, transcode=False, skip_connection=False) | cfg
    return folder(path, cfg, tensors or held, "sae.safetensors", "cfg.json")


def saev(path, header, tensors=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    held = io.BytesIO()
    torch.save(plain("W_enc", "b_enc", "W_dec", "b_dec") if tensors is None else tensors, held)
    path.write_bytes(json.dumps(header).encode() + b"\n" + held.getvalue())
    return path


def saev_header(schema, activation, **params):
    return {"schema": schema, "cfg": {"d_model": D, "d_sae": N, "activation": {"cls": activation, "params": params}}}


def prisma(path, name="weights.pt", tensors=None, **cfg):
    cfg = dict(architecture="standard", activation_fn_str="topk", activation_fn_kwargs={"k": 5}, hook_point_layer=9,
               layer_subtype="hook_resid_post", normalize_activations="layer_norm", cls_token_only=False,
               use_patches_only=True) | cfg  # fmt: skip
    given = plain("W_enc", "b_enc", "W_dec", "b_dec") if tensors is None else tensors
    return folder(path, cfg, given, name, "config.json")


def dictionary_learning(path, cls, tensors):
    return folder(path, {"trainer": {"dict_class": cls, "k": 5}}, tensors, "ae.pt", "config.json")


def unbox(path, tensors=None, **cfg):
    w = weights()
    held = {"encoder.weight": w["W_enc"].T.contiguous(), "decoder.weight": w["W_dec"].T.contiguous(),
            "pre_bias": w["b_dec"], "latent_bias": w["b_enc"],
            "stats_last_nonzero": torch.zeros(N, dtype=torch.long)}  # fmt: skip
    made = folder(
        path, dict(n_dirs_local=N, d_model=D, k=5, auxk=7) | cfg, tensors or held, "state_dict.pth", "config.json"
    )
    torch.save(torch.rand(N), made / "mean.pt")
    return made


def expected(encoder, *, subtracts=True, relu=True, k=5, layer_norm=False, rescales=False, threshold=None):
    """Codes and reconstruction as the libraries' own code has them, written down here once more."""
    w, x = weights(), tiny.randn(7, D, seed=8).float() * 2 + 0.3
    inner = x
    if layer_norm:
        mu = inner.mean(-1, keepdim=True)
        inner = inner - mu
        std = inner.std(-1, keepdim=True)
        inner = inner / (std + 1e-5)
    inner = inner - w["b_dec"] if subtracts else inner
    pre = inner @ w["W_enc"] + w["b_enc"]
    norms = w["W_dec"].norm(dim=-1)
    pre = pre * norms if rescales else pre
    if encoder == "topk":
        values, at = pre.topk(k, dim=-1)
        codes = torch.zeros_like(pre).scatter(-1, at, values.relu() if relu else values)
    elif encoder == "relu":
        codes = pre.relu()
    else:
        codes = torch.where(pre > threshold, pre.relu(), 0)
    out = (codes / norms if rescales else codes) @ w["W_dec"] + w["b_dec"]
    return x, codes, out * std + mu if layer_norm else out


T = weights()["threshold"]
GOOD = {
    "sae_lens topk": (lambda p: sae_lens(p), {}, dict(encoder="topk")),
    "sae_lens rescaled": (
        lambda p: sae_lens(p, rescale_acts_by_decoder_norm=True), {}, dict(encoder="topk", rescales=True),
    ),
    "sae_lens standard": (
        lambda p: sae_lens(p, architecture="standard", apply_b_dec_to_input=False), {},
        dict(encoder="relu", subtracts=False),
    ),
    "sae_lens norm": (
        lambda p: sae_lens(p, normalize_activations="layer_norm"), {}, dict(encoder="topk", layer_norm=True),
    ),
    "sae_lens jumprelu": (
        lambda p: sae_lens(p, plain("W_enc", "b_enc", "W_dec", "b_dec", "threshold"), architecture="jumprelu"), {},
        dict(encoder="jumprelu", threshold=T),
    ),
    "sae_lens before 6": (
        lambda p: sae_lens(
            p, architecture="standard", activation_fn_str="topk", activation_fn_kwargs={"k": 5}, k=None
        ), {}, dict(encoder="topk"),
    ),
    "sparsify": (lambda p: sparsify(p), {}, dict(encoder="topk")),
    "saev first": (
        lambda p: saev(p / "sae.pt", {"d_vit": D, "exp_factor": 2, "seed": 1}), {"subtracts_bias": True},
        dict(encoder="relu"),
    ),
    "saev 1": (
        lambda p: saev(p / "sae.pt", {"schema": 1, "cls": "TopK", "cfg": {"d_vit": D, "top_k": 5}}),
        {"subtracts_bias": False}, dict(encoder="topk", subtracts=False, relu=False),
    ),
    "saev 2": (
        lambda p: saev(p / "sae.pt", saev_header(2, "TopK", top_k=5)), {},
        dict(encoder="topk", subtracts=False, relu=False),
    ),
    "saev 5": (lambda p: saev(p / "sae.pt", saev_header(5, "Relu")), {}, dict(encoder="relu", subtracts=False)),
    "saev threshold": (
        lambda p: saev(
            p / "sae.pt", saev_header(5, "BatchTopK", top_k=5),
            plain("W_enc", "b_enc", "W_dec", "b_dec", **{"activation.threshold": torch.tensor(0.7)}),
        ), {}, dict(encoder="batchtopk", subtracts=False, threshold=torch.tensor(0.7)),
    ),
    "prisma": (lambda p: prisma(p), {}, dict(encoder="topk", layer_norm=True)),
    "prisma relu": (
        lambda p: prisma(p, "n_images_1300000.pt", activation_fn_str="relu", normalize_activations="none"), {},
        dict(encoder="relu"),
    ),
    "AutoEncoder": (lambda p: dictionary_learning(p, "AutoEncoder", linear("bias")), {}, dict(encoder="relu")),
    "AutoEncoderNew": (
        lambda p: dictionary_learning(p, "AutoEncoderNew", linear("decoder.bias")), {},
        dict(encoder="relu", subtracts=False),
    ),
    "AutoEncoderTopK": (
        lambda p: dictionary_learning(
            p, "AutoEncoderTopK", linear("b_dec", k=torch.tensor(5), threshold=torch.tensor(-1.0))
        ), {}, dict(encoder="topk"),
    ),
    "BatchTopKSAE": (
        lambda p: dictionary_learning(
            p, "BatchTopKSAE", linear("b_dec", k=torch.tensor(5), threshold=torch.tensor(0.7))
        ), {}, dict(encoder="batchtopk", threshold=torch.tensor(0.7)),
    ),
    "JumpReluAutoEncoder": (
        lambda p: dictionary_learning(
            p, "JumpReluAutoEncoder", plain("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
        ), {"subtracts_bias": False}, dict(encoder="jumprelu", subtracts=False, threshold=T),
    ),
    "sdxl_unbox": (lambda p: unbox(p), {}, dict(encoder="topk")),
}  # fmt: skip


@pytest.mark.parametrize("case", GOOD)
def test_a_layout_is_read_to_the_codes_of_its_library(tmp_path, case):
    from vit_lens.dictionaries import Dictionary

    write, said, how = GOOD[case]
    made = write(tmp_path / "sae")
    dictionary = Dictionary.load(made, **said)
    x, codes, recons = expected(**how)
    assert torch.allclose(dictionary.encode(x), codes, atol=1e-5)
    assert torch.allclose(dictionary.decode(dictionary.encode(x), x), recons, atol=1e-4)
    assert 0 < (codes != 0).sum() < codes.numel()
    if made.is_dir():
        for inside in made.iterdir():
            if inside.name not in ("mean.pt",):
                assert torch.equal(Dictionary.load(inside, **said).W_dec, dictionary.W_dec)
    if case == "sdxl_unbox":
        assert dictionary.origin.stream == "update"
    if case.startswith("prisma"):
        assert (dictionary.origin.site, dictionary.origin.tokens) == ("blocks.9.hook_resid_post", "patches")
    if case == "sae_lens topk":
        assert dictionary.origin.site == "blocks.3.hook_resid_post"


class Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit('code in a file has run')",)


def test_what_a_file_does_not_say_is_asked_for_and_pickles_are_refused(tmp_path, monkeypatch, unchecked):
    from faults import outcomes

    from vit_lens import errors
    from vit_lens.dictionaries import Dictionary, save_sae_lens
    from vit_lens.dictionaries.layouts import common

    count = iter(range(100))

    def read(write, **said):
        return Dictionary.load(write(tmp_path / str(next(count))), **said)

    def pickled(path):
        made = prisma(path)
        (made / "weights.pt").write_bytes(pickle.dumps({"config": Evil()}))
        return made

    def zipped(path):
        made = unbox(path)
        torch.save({"config": Evil()}, made / "state_dict.pth")
        return made

    def bounded(path):
        monkeypatch.setattr(common, "_BYTES", 100)
        try:
            return read(sparsify)
        finally:
            monkeypatch.undo()

    def compressed(path):
        import zipfile

        made = unbox(path)
        with zipfile.ZipFile(made / "state_dict.pth") as stored:
            held = {name: stored.read(name) for name in stored.namelist()}
        with zipfile.ZipFile(made / "state_dict.pth", "w", zipfile.ZIP_DEFLATED) as squeezed:
            for name, data in held.items():
                squeezed.writestr(name, data)
        return made

    old = {"schema": 1, "cls": "TopK", "cfg": {"top_k": 5}}

    def both(path):
        prisma(path)
        return unbox(path)

    jump = plain("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
    cases = {
        "no k": (lambda: read(lambda p: sparsify(p, k=None)), "DictionaryError", "does not say k"),
        "bias": (lambda: read(lambda p: saev(p / "a.pt", old)), "DictionaryError", "subtracts_bias=..."),
        "sae_lens bias": (
            lambda: read(lambda p: sae_lens(p, apply_b_dec_to_input=None)), "DictionaryError", "subtracts_bias",
        ),
        "jumprelu bias": (
            lambda: read(lambda p: dictionary_learning(p, "JumpReluAutoEncoder", jump)),
            "DictionaryError", "subtracts_bias",
        ),
        "against": (lambda: read(sparsify, k=7), "DictionaryError", "says 5; leave it out"),
        "no field": (lambda: read(sparsify, kk=7), "DictionaryError", "no field"),
        "architecture": (
            lambda: read(lambda p: sae_lens(p, architecture="gated")), "DictionaryError", "'gated'; read are",
        ),
        "scale": (
            lambda: read(lambda p: sae_lens(p, normalize_activations="expected_average_only_in")),
            "DictionaryError", "Fold or convert it",
        ),
        "heads": (lambda: read(lambda p: sae_lens(p, reshape_activations="hook_z")), "DictionaryError", "reshapes"),
        "a tensor more": (
            lambda: read(lambda p: sae_lens(p, plain("W_enc", "b_enc", "W_dec", "b_dec", r_mag=torch.zeros(N)))),
            "DictionaryError", "r_mag",
        ),
        "a tensor less": (
            lambda: read(lambda p: sae_lens(p, plain("W_enc", "W_dec", "b_dec"))), "DictionaryError", "b_enc",
        ),
        "transcoder": (lambda: read(lambda p: sparsify(p, transcode=True)), "DictionaryError", "transcode=True"),
        "schema": (lambda: read(lambda p: saev(p / "a.pt", {"schema": 9})), "DictionaryError", "schema 9"),
        "activation": (
            lambda: read(lambda p: saev(p / "a.pt", saev_header(5, "Gelu"))), "DictionaryError", "activation 'Gelu'",
        ),
        "prisma gated": (lambda: read(lambda p: prisma(p, architecture="gated")), "DictionaryError", "'gated'"),
        "class": (
            lambda: read(lambda p: dictionary_learning(p, "GatedAutoEncoder", linear("bias"))),
            "DictionaryError", "'GatedAutoEncoder'",
        ),
        "pickle": (lambda: read(pickled), "DictionaryError", "save its tensors alone"),
        "zip with code": (lambda: read(zipped), "DictionaryError", "holds more than tensors"),
        "saev with code": (
            lambda: read(lambda p: saev(p / "a.pt", saev_header(5, "Relu"), {"x": Evil()})),
            "DictionaryError", "holds more than tensors",
        ),
        "compressed": (lambda: read(compressed), "DictionaryError", "is compressed"),
        "size": (lambda: bounded(tmp_path), "DictionaryError", "at most 100 are read"),
        "two layouts": (lambda: read(both), "DictionaryError", "looks like several: prisma, sdxl_unbox"),
        "shapes": (lambda: read(lambda p: unbox(p, k=99)), "DictionaryError", "k=99 of 23"),
        "pursuit": (lambda: save_sae_lens(tiny.make("pursuit"), tmp_path / "x"), "DictionaryError", "'pursuit'"),
        "no relu": (
            lambda: save_sae_lens(tiny.make(relu_after_topk=False), tmp_path / "x"), "DictionaryError", "without ReLU",
        ),
    }  # fmt: skip
    assert not outcomes(errors, cases)


WRITTEN = [
    ("topk", {}), ("topk", dict(rescales_by_decoder_norm=True)), ("relu", dict(subtracts_bias=False)),
    ("jumprelu", {}), ("batchtopk", dict(input_scale=0.3)), ("relu", dict(layer_norm=True)),
    ("topk", dict(input_scale=2.5, rescales_by_decoder_norm=True)), ("jumprelu", dict(rescales_by_decoder_norm=True)),
]  # fmt: skip


@pytest.mark.parametrize("kind, option", WRITTEN, ids=str)
def test_what_is_written_for_sae_lens_is_the_same_function(tmp_path, kind, option):
    from vit_lens.dictionaries import Dictionary, Origin, save_sae_lens

    origin = Origin(site="blocks.1.hook_mlp_out", tokens="patches", model="m", fingerprint="0" * 16, learnt="here")
    dictionary = tiny.make(kind, origin=origin, statistics={"held_out": {"fvu": 0.5}}, **option)
    again = Dictionary.load(save_sae_lens(dictionary, tmp_path / "sae"))
    x = tiny.randn(9, 35, seed=4)
    assert torch.allclose(again.encode(x), dictionary.encode(x), atol=1e-10)
    assert torch.allclose(again.decode(again.encode(x), x), dictionary.decode(dictionary.encode(x), x), atol=1e-10)
    assert again.origin == origin and again.statistics == dictionary.statistics


# ---- with SAELens itself ---------------------------------------------------------------------------------


@pytest.fixture
def library():
    """SAELens, which needs TransformerLens before 4: .ci/run-tl3 has both."""
    try:
        import sae_lens
    except ImportError as error:
        pytest.skip(f"SAELens does not load here: {error}; pip install 'vit-lens[sae]'")
    return sae_lens


@pytest.mark.tl3
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind, option", WRITTEN, ids=str)
def test_sae_lens_reads_what_is_written(library, tmp_path, kind, option):
    from vit_lens.dictionaries import save_sae_lens

    dictionary = tiny.make(kind, dtype=torch.float32, **option)
    sae = library.SAE.load_from_disk(str(save_sae_lens(dictionary, tmp_path / "sae")))
    x = tiny.randn(9, 35, seed=4).float()
    with torch.no_grad():
        codes = sae.encode(x)
        assert torch.allclose(codes, dictionary.encode(x), atol=1e-5)
        assert torch.allclose(sae.decode(codes), dictionary.decode(dictionary.encode(x), x), atol=1e-4)


@pytest.mark.tl3
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu"])
@pytest.mark.parametrize("norm", ["none", "layer_norm"])
def test_what_sae_lens_writes_is_read(library, tmp_path, architecture, norm):
    from vit_lens.dictionaries import Dictionary

    more = {"k": 5} if architecture == "topk" else {}
    sae_class, cfg_class = library.registry.get_sae_class(architecture)
    sae = sae_class(cfg_class(d_in=D, d_sae=N, normalize_activations=norm, **more))
    names = ("W_enc", "b_enc", "W_dec", "b_dec", *(("threshold",) if architecture == "jumprelu" else ()))
    sae.load_state_dict(plain(*names))
    sae.save_model(str(tmp_path / "sae"))
    dictionary, x = Dictionary.load(tmp_path / "sae"), tiny.randn(9, D, seed=4).float()
    with torch.no_grad():
        codes = sae.encode(x)
        assert torch.allclose(dictionary.encode(x), codes, atol=1e-5)
        assert torch.allclose(dictionary.decode(codes, x), sae.decode(codes), atol=1e-4)


@pytest.mark.tl3
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "jumprelu", "matryoshka"])
def test_sae_lens_is_a_trainer(library, architecture):
    from test_dictionary_learning import activations, same, source

    from vit_lens.dictionaries import SAELens, evaluate, fit, untrained_control

    train, held = source(activations(n=200), batch_size=64, buffer=50).split(0.2)
    config = SAELens(n_features=40, k=5, architecture=architecture, n_tokens=12_000, l0_coefficient=0.01)
    state = torch.random.get_rng_state()
    found = fit((train, held), config)
    assert torch.equal(torch.random.get_rng_state(), state) and same(fit((train, held), config), found)
    start = evaluate(untrained_control(found, train), held)
    assert found.statistics["held_out"]["fvu_standardised"] < 0.7 * start.fvu_standardised
    assert found.semantics.encoder == ("topk" if architecture == "topk" else "jumprelu")
    assert found.origin.site == "blocks.1.hook_resid_post"
    with pytest.raises(ValueError, match="keeps no state"):
        fit((train, held), config, checkpoint="state.safetensors")


def test_without_sae_lens_the_trainer_says_what_to_install(monkeypatch):
    import sys

    from test_dictionary_learning import source

    from vit_lens.dictionaries import SAELens, fit

    monkeypatch.setitem(sys.modules, "sae_lens", None)
    with pytest.raises(ValueError, match=r"pip install 'vit-lens\[sae\]'.*transformer-lens<4.*installed is"):
        fit(source(), SAELens(n_features=20, k=4))
