"""Learning dictionaries: streams that are the same again, trainings that go on to the same bits, measures, controls."""

import dataclasses
import resource
import warnings

import pytest
import tiny_dictionaries as tiny
import torch

# A few wide directions, a far mean, and inputs whose tokens are alike.
D, N_INPUTS, N_TOKENS = 13, 60, 5


def activations(seed=0, n=N_INPUTS):
    atoms = tiny.randn(30, D, seed=1)
    codes = tiny.randn(n, N_TOKENS, 30, seed=seed).clamp(min=1) - 1
    x = codes @ atoms + 0.01 * tiny.randn(n, N_TOKENS, D, seed=seed + 1)
    return (x * torch.linspace(1, 9, D) + 20 * tiny.randn(D, seed=2)).float()


def source(x=None, **options):
    from vit_lens.dictionaries import ActivationSource, Provenance

    given = activations() if x is None else x
    said = Provenance(site="blocks.1.hook_resid_post", tokens="patches", model="m", fingerprint="1" * 16)
    return ActivationSource.of_array(given, said, **({"batch_size": 32, "buffer": 7} | options))


def tensors(dictionary):
    return {name: value for name, value in vars(dictionary).items() if isinstance(value, torch.Tensor)}


def same(one, other):
    a, b = tensors(one), tensors(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---- sources ---------------------------------------------------------------------------------------------


def test_an_epoch_gives_every_token_once_and_goes_on_from_anywhere():
    own, x = source(), activations()
    batches = list(own.stream(epochs=2))
    for epoch in (0, 1):
        held = [b for b in own.epoch(epoch)]
        labels = torch.cat([b.labels for b in held])
        assert len({tuple(row) for row in labels.tolist()}) == len(labels) == N_INPUTS * N_TOKENS
        for batch in held:
            assert torch.equal(batch.tokens, x[batch.labels[:, 0], batch.labels[:, 1]])
    assert not torch.equal(batches[0].labels, next(own.epoch(1)).labels)
    for at in (0, 3, 9, len(batches) // 2, len(batches) - 2):
        rest = list(own.stream(batches[at].then, epochs=2))
        assert len(rest) == len(batches) - at - 1
        assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(rest, batches[at + 1 :], strict=True))
    other = next(source(seed=1).epoch())
    assert not torch.equal(other.labels, batches[0].labels)
    assert torch.equal(torch.cat([b.tokens for b in own.in_order()]), x.flatten(0, 1))
    spread = torch.cat([b.labels[:, 0] for b in own.epoch()])[:35]
    assert spread.unique().numel() == 7  # one buffer, and its tokens are mixed
    assert (spread[:5] != spread[0]).any()


def test_inputs_are_held_out_whole_and_equal_ones_together():
    own = source()
    train, held = own.split(0.2)
    assert len(held.inputs) == 12 and sorted(train.inputs + held.inputs) == list(range(N_INPUTS))
    seen = {row[0] for batch in held.in_order() for row in batch.labels.tolist()}
    assert seen == set(held.inputs)
    assert own.split(0.2)[1].inputs == held.inputs and source(seed=3).split(0.2)[1].inputs != held.inputs

    class Named:
        provenance, keys = own.provenance, [f"prompt {i // 3}" for i in range(12)]
        read = staticmethod(own.reader.read)

    twins = dataclasses.replace(own, reader=Named(), inputs=tuple(range(12)))
    for part in twins.split(0.3):
        assert len(part.inputs) % 3 == 0 and len({i // 3 for i in part.inputs}) == len(part.inputs) // 3


def test_a_model_is_a_source(vit, pixels):
    from vit_lens import ActivationSource

    site = "blocks.1.hook_mlp_out"
    many = torch.cat([pixels, pixels + 0.1, pixels - 0.2])
    _, cache = vit.run_with_cache(many, names_filter=[site])
    for tokens, part in (("all", slice(None)), ("patches", slice(1, None)), ("cls", slice(1))):
        own = ActivationSource.of_model(vit, many, "L1.mlp", tokens=tokens, inputs_at_once=2, buffer=3, batch_size=4)
        found = torch.cat([b.tokens for b in own.in_order()])
        assert torch.allclose(found, cache[site][:, part].flatten(0, 1), atol=1e-12)
        for batch in own.epoch():
            expected = cache[site][:, part][batch.labels[:, 0], batch.labels[:, 1]]
            assert torch.allclose(batch.tokens, expected, atol=1e-12)
    said = own.provenance
    assert (said.site, said.tokens, said.fingerprint) == (site, "cls", vit.fingerprint)
    ends = ["blocks.1.hook_resid_post", "blocks.1.hook_resid_pre"]
    _, cache = vit.run_with_cache(many, names_filter=ends)
    own = ActivationSource.of_model(vit, many, "L1.resid_post", stream="update")
    found = torch.cat([b.tokens for b in own.in_order()])
    assert torch.allclose(found, (cache[ends[0]] - cache[ends[1]]).flatten(0, 1), atol=1e-12)
    pooled = ActivationSource.of_model(vit, many, "hook_pooled")
    assert len(torch.cat([b.tokens for b in pooled.in_order()])) == 9


def test_prompts_are_read_without_their_filling():
    import text_towers
    from conftest import randomize

    from vit_lens import ActivationSource, HookedTextEncoder

    tower = HookedTextEncoder.from_module(
        text_towers.clip_text(randomize), tokenizer=text_towers.clip_tokenizer()
    ).requires_grad_(False)
    prompts = [*text_towers.PROMPTS, "a star", "red"]
    own = ActivationSource.of_model(tower, prompts, "L1.resid_post", inputs_at_once=4)
    _, cache = tower.run_with_cache(prompts, names_filter="blocks.1.hook_resid_post")
    mask = tower.attention_mask(tower.to_tokens(prompts)).bool()
    found = torch.cat([b.tokens for b in own.in_order()])
    assert torch.allclose(found, cache["blocks.1.hook_resid_post"][mask], atol=1e-12) and not mask.all()
    ends = ActivationSource.of_model(tower, prompts, "L1.resid_post", tokens="eos")
    assert len(torch.cat([b.tokens for b in ends.in_order()])) == len(prompts)


def test_steps_are_tokens_of_their_input():
    from test_dictionary_splicing import Linear

    from vit_lens import ActivationSource

    model = Linear()
    plain = type(model)

    class Stepped(plain):
        def forward(self, x):
            for index in range(3):
                with self.step(index):
                    out = plain.forward(self, x * (index + 1))
            return out

    model.__class__ = Stepped
    x = tiny.randn(4, 2, 35)
    own = ActivationSource.of_model(model, x, "hook_x")
    batch = next(own.in_order())
    expected = torch.stack([torch.tanh(x * (i + 1) @ model.first) for i in range(3)], 1).flatten(1, 2).flatten(0, 1)
    assert torch.allclose(batch.tokens, expected, atol=1e-12)
    assert batch.labels[:7].tolist() == [[0, i] for i in range(6)] + [[1, 0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_shards_give_what_was_written_and_go_on(tmp_path, dtype):
    from vit_lens import ActivationSource

    parts = [row[: 1 + i % N_TOKENS] / 8 for i, row in enumerate(activations())]
    own = source(parts)
    folder = own.write(tmp_path / "shards", dtype=dtype, inputs_per_shard=7)
    kept = sorted(path.name for path in folder.iterdir())
    assert len([name for name in kept if name.endswith("safetensors")]) == 9
    again = ActivationSource.open(folder, batch_size=32, buffer=7)
    assert again.provenance == own.provenance
    for one, other in zip(own.stream(epochs=2), again.stream(epochs=2), strict=True):
        assert torch.equal(one.labels, other.labels) and torch.equal(one.tokens.to(dtype).float(), other.tokens)
    before = (folder / "activations_00003.safetensors").read_bytes()
    (folder / "activations_00005.safetensors").unlink()
    (folder / "activations.json").unlink()
    with pytest.raises(ValueError, match="no such file"):
        ActivationSource.open(folder)
    own.write(folder, dtype=dtype, inputs_per_shard=7)
    assert (folder / "activations_00003.safetensors").read_bytes() == before
    assert next(ActivationSource.open(folder).in_order()).tokens.shape[1] == D


def test_damaged_shards_are_refused(tmp_path, unchecked):
    import json

    from faults import outcomes

    from vit_lens import ActivationSource, errors
    from vit_lens.dictionaries import ITDA, Normalisation, Provenance, TopK, evaluate, fit

    folder = source().write(tmp_path / "shards", dtype=torch.float32, inputs_per_shard=20)
    shard, index = folder / "activations_00001.safetensors", folder / "activations.json"
    whole, said = shard.read_bytes(), json.loads(index.read_text())

    def read(change=None, data=None):
        index.write_text(json.dumps({**said, **(change or {})}))
        shard.write_bytes(whole if data is None else data)
        return list(ActivationSource.open(folder).in_order())

    flipped = bytearray(whole)
    flipped[-5] ^= 4
    other = source(activations() + 1).write(tmp_path / "other", dtype=torch.float32, inputs_per_shard=20)
    wide = dataclasses.replace(source(), reader=source().reader, inputs=(0, 1))
    x = activations()
    cases = {
        "flipped": (lambda: read(data=bytes(flipped)), "DictionaryError", "another hash"),
        "cut": (lambda: read(data=whole[:-9]), "DictionaryError", "safetensors"),
        "counts": (lambda: read({"counts": [5] * 59 + [6]}), "DictionaryError", "the index says"),
        "less": (lambda: read({"counts": [1] * 60}), "DictionaryError", "the index says"),
        "huge": (lambda: read({"counts": [2**40] + [5] * 59}), "DictionaryError", "are read at once"),
        "keys": (lambda: read({"keys": ["a"]}), "DictionaryError", "how many tokens"),
        "a key more": (lambda: read({"pickle": 1}), "DictionaryError", "unknown key 'pickle'"),
        "another writing": (
            lambda: source(activations() * 2).split(0.5)[0].write(folder), "DictionaryError", "write the whole",
        ),
        "there is another": (
            lambda: ActivationSource.of_array(x, Provenance(site="other")).write(other, inputs_per_shard=20),
            "DictionaryError", "of other activations",
        ),
        "too wide": (lambda: source(x * 1e6).write(tmp_path / "narrow"), "DictionaryError", "do not fit"),
        "dtype": (lambda: source().write(tmp_path / "n", dtype=torch.int8), "DictionaryError", "float16"),
        "nan": (lambda: source(x * torch.nan), "DictionaryError", "NaN"),
        "axes": (lambda: source(x[0, 0]), "DictionaryError", "in memory are floats"),
        "split": (lambda: wide.split(1.0), "DictionaryError", "below 1"),
        "one input": (lambda: dataclasses.replace(wide, inputs=(0,)).split(0.5), "DictionaryError", "cannot be split"),
        "batch": (lambda: source(batch_size=0), "DictionaryError", "batch_size=0"),
        "trainer": (lambda: fit(source(), {"trainer": "topkk"}), "DictionaryError", "nearest: 'topk'"),
        "setting": (
            lambda: fit(source(), {"trainer": "topk", "n_feature": 3}), "DictionaryError", "unknown key 'n_feature'",
        ),
        "k": (lambda: TopK(n_features=4, k=5), "DictionaryError", "k=5 of 4"),
        "form": (lambda: ITDA(form="omp"), "DictionaryError", "'pursuit' or 'signed'"),
        "threshold": (lambda: fit(source(), ITDA(threshold=1e9)), "DictionaryError", "no atoms"),
        "statistics": (
            lambda: Normalisation.fit(x[0]).apply(torch.zeros(2, 5)), "DictionaryError", "do not belong together",
        ),
        "another site": (
            lambda: evaluate(tiny.make(d=D, origin=_origin(site="blocks.0.hook_mlp_out")), source()),
            "DictionaryError", "of site 'blocks.0.hook_mlp_out'",
        ),
        "another model": (
            lambda: evaluate(tiny.make(d=D, origin=_origin(fingerprint="2" * 16)), source()),
            "DictionaryError", "fingerprint",
        ),
        "another width": (lambda: evaluate(tiny.make(d=12), source()), "DictionaryError", "of width 12"),
    }  # fmt: skip
    assert not outcomes(errors, cases)


def _origin(**said):
    from vit_lens.dictionaries import Origin

    return Origin(**said)


# ---- ITDA ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form, threshold", [("pursuit", 0.3), ("signed", 0.02)])
def test_batches_do_not_matter_and_a_state_goes_on(form, threshold):
    from vit_lens.dictionaries import ITDA, ITDAState, Normalisation

    x = activations(n=120).flatten(0, 1)
    config, statistics = ITDA(k=4, threshold=threshold, form=form), Normalisation.fit(x)
    made, sizes = [], []
    for parts in ([x], x.split(1), x.split(77), [x[:130], x[130:131], x[131:]]):
        state = ITDAState.empty(config, statistics)
        for part in parts:
            state.add(part)
            sizes.append(len(state.atoms))
        state.finish()
        made.append(state)
    assert all(torch.equal(s.atoms, made[0].atoms) and torch.equal(s.labels, made[0].labels) for s in made)
    assert 20 < len(made[0].atoms) < 400
    one = ITDAState.empty(config, statistics)
    one.add(x[:301])
    halfway = ITDAState.of(config, statistics, *one.kept())
    halfway.add(x[301:])
    halfway.finish()
    assert torch.equal(halfway.atoms, made[0].atoms) and halfway.n_tokens == 600
    before = one.atoms
    assert torch.equal(made[0].atoms[: len(before)], before)  # it only grows
    z = statistics.apply(x)
    unit = z / z.norm(dim=1, keepdim=True)
    assert torch.allclose(made[0].atoms, unit[made[0].labels[:, 0]], atol=1e-6)  # atoms are tokens, and say which
    cosines = (made[0].atoms @ made[0].atoms.T).fill_diagonal_(0)
    assert (cosines.abs() if form == "signed" else cosines).max() <= 0.8 + 1e-6


@pytest.mark.filterwarnings("ignore:.*of .* features fired on none")
def test_a_lower_threshold_explains_more_and_the_number_of_atoms_is_bounded():
    from vit_lens.dictionaries import ITDA, fit

    own = source(activations(n=260))
    found = [fit(own, ITDA(k=4, threshold=t), held_out=0.2) for t in (0.6, 0.2, 0.05)]
    fvu = [one.statistics["held_out"]["fvu_standardised"] for one in found]
    assert fvu[0] > fvu[1] > fvu[2] and found[0].n_features < found[1].n_features < found[2].n_features
    capped = fit(own, ITDA(k=4, threshold=0.05, max_atoms=11), held_out=0.2)
    assert capped.n_features == 11 and torch.equal(capped.labels, found[2].labels[:11])
    for batch_size in (5, 64):
        again = fit(dataclasses.replace(own, batch_size=batch_size), ITDA(k=4, threshold=0.2), held_out=0.2)
        assert same(again, found[1])


# ---- training --------------------------------------------------------------------------------------------


class Stop(Exception):
    pass


def _until(monkeypatch, n):
    """Stop a training after ``n`` checkpoints."""
    from vit_lens.dictionaries import Checkpoint

    save, saved = Checkpoint.save, []

    def counted(self, *state):
        save(self, *state)
        saved.append(1)
        if len(saved) == n:
            raise Stop

    monkeypatch.setattr(Checkpoint, "save", counted)


@pytest.mark.filterwarnings("ignore:.*of .* features fired on none")
@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
def test_a_training_that_was_stopped_goes_on_to_the_same_bits(tmp_path, monkeypatch, activation):
    from vit_lens.dictionaries import TopK, fit

    config = TopK(n_features=29, k=4, n_tokens=3000, activation=activation, save_every=20, dead_after=300, patience=0)
    whole = fit(source(), config, held_out=0.2)
    with monkeypatch.context() as patched, pytest.raises(Stop):
        _until(patched, 2)
        fit(source(), config, held_out=0.2, checkpoint=tmp_path / "state.safetensors")
    on = fit(source(), config, held_out=0.2, checkpoint=tmp_path / "state.safetensors")
    assert same(on, whole) and on.statistics == whole.statistics
    assert not same(fit(source(), dataclasses.replace(config, seed=1), held_out=0.2), whole)
    with pytest.raises(ValueError, match="another training"):
        fit(source(), dataclasses.replace(config, lr=2e-3), held_out=0.2, checkpoint=tmp_path / "state.safetensors")
    assert whole.semantics.encoder == activation and whole.W_dec.dtype == torch.float32


def test_itda_that_was_stopped_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    from vit_lens.dictionaries import ITDA, fit, itda

    monkeypatch.setattr(itda, "_SAVE_EVERY", 3)
    config, own = ITDA(k=4, threshold=0.1, n_tokens=900), source(activations(n=260), batch_size=50)
    whole = fit(own, config)
    with monkeypatch.context() as patched, pytest.raises(Stop):
        _until(patched, 3)
        fit(own, config, checkpoint=tmp_path / "state.safetensors")
    on = fit(own, config, checkpoint=tmp_path / "state.safetensors")
    assert same(on, whole) and on.statistics == whole.statistics
    assert whole.statistics["training"]["n_tokens_seen"] == 900


def test_a_full_disk_loses_nothing_that_was_saved(tmp_path, monkeypatch):
    from vit_lens.dictionaries import ITDA, TopK, fit
    from vit_lens.errors import OutputError

    config, path = TopK(n_features=29, k=4, n_tokens=2000, save_every=20, patience=0), tmp_path / "state.safetensors"
    whole = fit(source(), config, held_out=0.2)
    with monkeypatch.context() as patched, pytest.raises(Stop):
        _until(patched, 1)
        fit(source(), config, held_out=0.2, checkpoint=path)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))  # the kernel refuses byte 101 of any file
    try:
        for call in (
            lambda: fit(source(), config, held_out=0.2, checkpoint=path),
            lambda: whole.save(path),
            lambda: source().write(tmp_path / "shards", dtype=torch.float32),
        ):
            with pytest.raises(OutputError, match="cannot write"):
                call()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before and not list(tmp_path.glob("**/*.tmp"))
    assert same(fit(source(), config, held_out=0.2, checkpoint=path), whole)
    assert fit(source(), ITDA(k=4), held_out=0.2, checkpoint=tmp_path / "itda").n_features > 5


def test_training_explains_more_than_its_start_and_stops_early():
    from vit_lens.dictionaries import TopK, evaluate, fit, untrained_control

    train, held = source(activations(n=300), batch_size=64, buffer=50).split(0.2)
    config = TopK(n_features=40, k=5, n_tokens=60_000, window=10_000, lr=3e-3, patience=1, least_gain=0.5)
    found = fit((train, held), config)
    told, measured = found.statistics["training"], found.statistics["held_out"]
    assert told["n_tokens_seen"] < 60_000 and told["windows"][-1] < told["windows"][0]
    start = evaluate(untrained_control(found, train), held)
    assert measured["fvu_standardised"] < 0.6 * start.fvu_standardised and measured["dead"] <= 0.1
    assert abs(measured["l0"] - 5) < 0.5 and abs(start.l0 - 5) < 0.5
    rows = found.W_dec / torch.linspace(1, 9, D)
    assert rows.norm(dim=1).std() / rows.norm(dim=1).mean() < 0.6
    assert found.origin.fingerprint == "1" * 16 and found.origin.tokens == "patches"


def test_dead_latents_are_warned_of_and_std_keeps_them_alive():
    """Three dimensions x 60 on a stream: without normalisation raw FVU looks good, and most latents die."""
    from vit_lens.dictionaries import TopK, fit

    x = tiny.randn(400, 5, 24, seed=3)
    x = torch.where(torch.arange(24) < 3, 60 * x + 5000, x).float()
    config = TopK(n_features=96, k=4, n_tokens=20_000, normalisation="none", patience=0)
    own = source(x, batch_size=64, buffer=100).split(0.2)
    with pytest.warns(UserWarning, match="features fired on none of"):
        none = fit(own, config).statistics["held_out"]
    std = fit(own, dataclasses.replace(config, normalisation="std")).statistics["held_out"]
    assert none["dead"] > 0.3 and std["dead"] < 0.1
    assert none["fvu"] < std["fvu"] and none["fvu_standardised"] > std["fvu_standardised"]


def test_another_trainer_is_one_class():
    from vit_lens.dictionaries import TRAINERS, Dictionary, Semantics, Trainer, fit, trainer

    @trainer("zeros")
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Zeros(Trainer):
        n: int = 3

        def learn(self, source, normalisation, checkpoint):
            d = len(normalisation.mean)
            return Dictionary(
                W_dec=torch.eye(self.n, d), b_dec=torch.zeros(d), semantics=Semantics.plain("signed", 1)
            ), {}

    try:
        assert fit(source(), {"trainer": "zeros", "n": 4}).n_features == 4
    finally:
        TRAINERS.pop("zeros")
    with pytest.raises(ValueError, match="is not registered"):
        fit(source(), Zeros())


# ---- measures and controls -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_statistics_are_those_of_the_whole_at_once(kind):
    from vit_lens.dictionaries import evaluate

    x = activations().double()
    dictionary = tiny.make(kind, d=D, n=21, k=4)
    found = evaluate(dictionary, source(x, batch_size=17))
    flat = x.flatten(0, 1)
    codes = dictionary.encode(flat)
    error = (flat - dictionary.decode(codes)).square()
    centred = (flat - flat.mean(0)).square()
    assert abs(found.fvu - float(error.sum() / centred.sum())) < 1e-10 * found.fvu
    assert abs(found.fvu_standardised - float((error.sum(0) / centred.sum(0)).mean())) < 1e-10 * found.fvu_standardised
    share = (codes != 0).double().mean(0)
    assert torch.allclose(found.frequency, share.float())
    assert found.l0 == pytest.approx(float(share.sum())) and found.n_tokens == 300 and found.n_inputs == 60
    assert found.dead == float((share == 0).double().mean()) and found.dense == float((share > 0.1).double().mean())


@pytest.mark.parametrize("n_features, k", [(40, 4), (9, 3)])
def test_controls_have_as_many_features_and_codes(n_features, k):
    from vit_lens.dictionaries import (
        ITDA,
        TopK,
        data_points_control,
        evaluate,
        fit,
        pca_control,
        untrained_control,
    )

    train, held = source(activations(n=200)).split(0.2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = fit((train, held), TopK(n_features=n_features, k=k, n_tokens=4000))
    for control in (untrained_control, data_points_control, pca_control):
        made = control(found, train)
        measured = evaluate(made, held)
        assert made.n_features == (min(n_features, D) if control is pca_control else n_features)
        assert abs(measured.l0 - k) < 0.5 and measured.fvu < 1.5
        assert same(made, control(found, train))
        assert made.origin.site == found.origin.site
    draw = ITDA(k=3, seed=5).from_random(train, 12)
    at = torch.stack([train.reader._parts[i][t] for i, t in draw.labels.tolist()]).double()
    assert set(draw.labels[:, 0].tolist()) <= set(train.inputs) and len({tuple(r) for r in draw.labels.tolist()}) == 12
    offset = at - draw.b_dec.double()
    cosine = torch.nn.functional.cosine_similarity(offset, draw.W_dec.double(), dim=1)
    assert (cosine > 1 - 1e-5).all()  # what an atom writes is its token
    unmeasured = dataclasses.replace(tiny.make("relu", d=D), statistics={})
    with pytest.raises(ValueError, match="was not measured"):
        untrained_control(unmeasured, train)


def test_pca_of_all_codes_is_exact_and_the_best_of_one():
    from vit_lens.dictionaries import evaluate, pca_control

    own = source(activations(n=100))
    x = activations(n=100).double().flatten(0, 1)
    full = evaluate(pca_control(tiny.make("signed", d=D, n=D, k=D), own), own)
    assert full.fvu < 1e-9
    values = torch.linalg.eigvalsh((x - x.mean(0)).T @ (x - x.mean(0)))
    one = pca_control(tiny.make("signed", d=D, n=1, k=1), own)
    assert evaluate(one, own).fvu == pytest.approx(1 - float(values[-1] / values.sum()), abs=1e-5)


def test_fidelity_is_one_for_a_whole_basis_and_zero_for_the_mean(vit, pixels):
    from vit_lens.dictionaries import Origin, fidelity

    many = torch.cat([pixels, pixels.flip(-1), pixels * 0.3])
    site, d = "blocks.1.hook_resid_post", 35
    origin = Origin(site=site, tokens="patches")
    basis = dataclasses.replace(
        tiny.make("signed", d=d, n=d, k=d, origin=origin), W_dec=torch.eye(d, dtype=torch.float64)
    )
    x = vit.run_with_cache(many, names_filter=site)[1][site]
    zero = tiny.make("relu", origin=origin, b_enc=torch.full((53,), -1e4, dtype=torch.float64),
                     b_dec=x[:, 1:].mean((0, 1)))  # fmt: skip
    found = fidelity(vit, {"basis": basis, "mean": zero}, many, ks=[1, 9, d], batch_size=4)
    assert [p.k for p in found.points] == [1, 9, d, None] and found.n == 9
    low, middle, high = (fid for _, fid in found.curve("basis"))
    assert low < middle < high and high == pytest.approx(1, abs=1e-9)
    assert found.points[3].fidelity == pytest.approx(0, abs=1e-9) and found.points[3].l0 == 0
    assert found.points[2].l0 == pytest.approx(d) and found.clean == pytest.approx(1)

    def ablate(act, hook):
        act[:, 1:] = x[:, 1:].mean((0, 1))
        return act

    plain, ablated = vit(many), vit.run_with_hooks(many, fwd_hooks=[(site, ablate)])
    assert found.ablated == pytest.approx(float(torch.nn.functional.cosine_similarity(plain, ablated).mean()), abs=1e-9)
    with pytest.raises(ValueError, match="no dictionary 'bases'; nearest: 'basis'"):
        found.curve("bases")


def test_zero_shot_accuracy_is_a_metric():
    import vit_lens as vl
    from vit_lens.mini import sample_images

    model = vl.HookedViT.from_pretrained("mini").requires_grad_(False)
    images = sample_images()[:6]
    bank = vl.TextBank.mini(["a blue star", "a red ring", "a green cross", "a yellow square"])
    labels = [bank.captions[i] for i in bank.cosines(model(model.preprocess(images))).argmax(-1)]
    made = vl.dictionaries.random_dictionary(128, 64, k=8, site="blocks.5.hook_resid_post")
    metric = vl.dictionaries.zero_shot_accuracy(bank, labels)
    found = vl.dictionaries.fidelity(model, made, images, metric)
    assert found.clean == 1 and 0 <= found.points[0].value <= 1 and len(set(labels)) > 1


def test_a_source_knows_weights_that_were_changed_unseen():
    """PyTorch counts no change through .data, and a dictionary is bound to the weights that there are."""
    import vit_lens as vl

    model = vl.HookedViT.from_pretrained("mini")
    pixels = torch.zeros(2, 3, 64, 64)
    before = vl.ActivationSource.of_model(model, pixels, "L5.resid_post").provenance.fingerprint
    model.W_E.data.mul_(2)
    assert model.fingerprint == before
    assert vl.ActivationSource.of_model(model, pixels, "L5.resid_post").provenance.fingerprint != before
