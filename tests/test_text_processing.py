"""Text towers held against their sources layer by layer, and the same function with other weights."""

import pytest
import text_towers
import torch
from conftest import randomize
from text_towers import PROMPTS

pytestmark = pytest.mark.tl3
EXACT = dict(atol=1e-11, rtol=1e-10)

SOURCES = {
    "clip": lambda: text_towers.clip_text(randomize),
    "clip without projection": lambda: text_towers.clip_text(randomize, projected=False, eos_token_id=2),
    "t5 gated": lambda: text_towers.t5_encoder(randomize, gated=True),
    "t5 relu": lambda: text_towers.t5_encoder(randomize, gated=False),
}


def hooked(source):
    from vit_lens import HookedTextEncoder

    is_t5 = type(source).__name__ == "T5EncoderModel"
    tokenizer = text_towers.t5_tokenizer() if is_t5 else text_towers.clip_tokenizer()
    return HookedTextEncoder.from_module(source, tokenizer=tokenizer).requires_grad_(False)


def process(model):
    if model.cfg.normalization_type == "LN":
        return model.process_weights()
    return model.process_weights(fold_value_biases=False, center_writing_weights=False)


@pytest.mark.parametrize("kind", SOURCES)
def test_verified_layer_by_layer(kind):
    source = SOURCES[kind]()
    model = hooked(source)
    found = model.verify(source, prompts=["a red star", ""])
    places = [row.place for row in found.differences[torch.float64]]
    assert found.passed and places == ["into L0", "L0", "L1", "L2", "final norm", "embedding"], found
    assert found.inputs == f"2 random prompts of {model.cfg.n_ctx} tokens (seed 0), 2 given"
    is_t5 = kind.startswith("t5")
    assert found.bars[torch.float64] == (1e-5 if is_t5 else 1e-9)
    assert any("rounds its norms to float32" in note for note in found.notes) == is_t5
    processed = process(model)
    assert processed.verify(source).passed
    with torch.no_grad():
        model.blocks[1].mlp.W_out[3] += 0.1
    assert model.verify(source).failure.startswith("block L1 is off by")


def test_a_verified_t5_is_exact_where_its_source_is(monkeypatch):
    text_towers.exact_t5_norms(monkeypatch)
    source = text_towers.t5_encoder(randomize, gated=True)
    rows = hooked(source).verify(source).differences[torch.float64]
    assert max(row.relative for row in rows) < 1e-12


def test_verified_in_lower_precision_and_with_open_clip():
    from vit_lens import HookedTextEncoder

    source = text_towers.clip_text(randomize)
    assert hooked(source.float()).verify(source).passed
    tower = text_towers.open_clip_text(randomize)
    assert HookedTextEncoder.from_module(tower).verify(tower).passed


def test_verified_by_name(tmp_path):
    from transformers import T5ForConditionalGeneration

    from vit_lens import HookedTextEncoder

    assert HookedTextEncoder.from_pretrained("mini").verify("mini").passed
    whole = T5ForConditionalGeneration(text_towers.t5_config(gated=True, is_encoder_decoder=True, num_layers=2))
    randomize(whole).save_pretrained(tmp_path)
    model = HookedTextEncoder.from_pretrained(tmp_path)
    assert model.verify(tmp_path).passed and model.verify(whole).passed


def test_an_eps_that_is_not_the_source_s_is_told():
    source = text_towers.t5_encoder(randomize, gated=False)
    model = hooked(source)
    model.blocks[1].ln2.eps = 1e-5
    assert "blocks.1.ln2 has eps 1e-05, the source 1e-06" in model.verify(source).failure


def test_inputs_of_the_other_kind_are_refused(vit):
    from vit_lens.errors import VitLensError

    source = text_towers.clip_text(randomize)
    with pytest.raises(VitLensError, match="images= goes with image towers"):
        hooked(source).verify(source, images=torch.zeros(1, 3, 4, 4))
    with pytest.raises(VitLensError, match="prompts= goes with text towers"):
        vit.verify(torch.nn.Identity(), prompts=["a"])
    with pytest.raises(VitLensError, match=r"prompts= of shape \[1, 3\]; expected texts, or ids \[batch, 19\]"):
        hooked(source).verify(source, prompts=torch.zeros(1, 3, dtype=torch.long))


@pytest.mark.parametrize("kind", SOURCES)
def test_processed_weights_compute_the_same(kind):
    model = hooked(SOURCES[kind]())
    processed = process(model)
    out, cache = model.run_with_cache(PROMPTS)
    again, other = processed.run_with_cache(PROMPTS)
    torch.testing.assert_close(again, out, **EXACT)
    for name in cache:
        if name not in processed.processing.changed:
            torch.testing.assert_close(other[name], cache[name], **EXACT, msg=name)
    assert set(processed.processing.changed) <= set(model.hook_dict)
    norms = [part for name, part in processed.named_modules() if name.endswith(("ln1", "ln2", "ln_final"))]
    assert all(bool((norm.w == 1).all()) and not bool(norm.b.any()) for norm in norms)
    assert processed.tokenizer is model.tokenizer and processed.encoder_id == model.encoder_id
    with pytest.raises(ValueError, match="the final norm is folded into the projection"):
        processed.states(PROMPTS)


def test_what_a_norm_forbids_is_told():
    from vit_lens.errors import VitLensError

    model = hooked(text_towers.t5_encoder(randomize, gated=True))
    told = r"no biases; .*RMS norm reads the mean too. Call process_weights\(fold_value_biases=False, center_writing_we"
    with pytest.raises(VitLensError, match=told):
        model.process_weights()
