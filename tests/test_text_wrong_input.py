"""Prompts that a text tower does not read, each with what to do."""

import pytest
import text_towers
import torch
from conftest import randomize

pytestmark = pytest.mark.tl3


@pytest.fixture(scope="module")
def model():
    from vit_lens import HookedTextEncoder

    source = text_towers.clip_text(randomize)
    made = HookedTextEncoder.from_module(source, tokenizer=text_towers.clip_tokenizer())
    return made.requires_grad_(False)


LONG = "a red star of blue stars " * 4


@pytest.mark.parametrize(
    ("prompts", "told"),
    [
        (LONG, r"has \d+ tokens, and there is room for 19; shorten it, .*truncate=True"),
        ([], "no prompts; give at least one text, which may be empty"),
        (["a", 3], "3 is no prompt; expected texts, or a tensor of ids"),
        (7, r"prompts is a int; expected a text, a list of texts"),
        (torch.zeros(2, 5), r"dtype torch.float32; expected ids, .*start_at_layer="),
        (torch.zeros(5, dtype=torch.long), r"a tensor of shape \(5,\); expected texts, or ids \[batch pos\]"),
        (torch.zeros(1, 0, dtype=torch.long), r"a tensor of shape \(1, 0\)"),
        (torch.zeros(1, 20, dtype=torch.long), "prompts of 20 tokens; this tower reads 19"),
        (torch.full((1, 3), 67), "id 67 in prompts: the tower embeds 67 ids, counted from 0"),
        (torch.tensor([[1, -1, 2]]), "id -1 in prompts"),
        (torch.tensor([[1, 2, 3]]), r"prompt 0 has no end, id 66: give texts, or ids as model.to_tokens"),
    ],
)
def test_prompts_that_are_not_read(model, prompts, told, unchecked):
    from vit_lens.errors import TextError

    with pytest.raises(TextError, match=told):
        model(prompts)


def test_a_long_prompt_is_cut_where_that_is_asked_for(model):
    ids = model.to_tokens(LONG, truncate=True)
    theirs = model.tokenizer(LONG, truncation=True, max_length=19, return_tensors="pt").input_ids
    assert torch.equal(ids, theirs) and model(ids).shape == (1, 13)
    short = model.to_tokens(LONG, truncate=True, pad_to=7)
    assert short.shape == (1, 7) and short[0, -1] == 66
    with pytest.raises(ValueError, match="pad_to=20; the text tower reads 1 to 19 tokens"):
        model.to_tokens("a", pad_to=20)


def test_the_empty_prompt_is_one(model):
    assert model("").shape == (1, 13) and model.ends("").tolist() == [1]
    torch.testing.assert_close(model(["", "a red star"])[:1], model(""))


def test_words_that_a_tokenizer_does_not_know():
    from vit_lens import HookedTextEncoder
    from vit_lens.errors import TextError

    with pytest.raises(TextError, match=r"does not know 'stair' .*nearest: 'star'.* in the prompt 'a red stair'"):
        HookedTextEncoder.from_pretrained("mini")("a red stair")


def test_masks_and_streams_of_other_sizes(model):
    from vit_lens.errors import PreprocessError, TextError, VitLensError

    ids = model.to_tokens(["a red star", "blue"])
    with pytest.raises(VitLensError, match=r"attention_mask of \(2, 4\); expected \[batch pos\] = \(2, 5\)"):
        model(ids, attention_mask=torch.ones(2, 4))
    with pytest.raises(VitLensError, match="mask leaves a query no key to look at"):
        model(ids, attention_mask=torch.tensor([[0, 1, 1, 1, 1]] * 2))
    with pytest.raises(VitLensError, match=r"expected bool of shape \(5, 5\)"):
        model(ids, mask=torch.ones(19, 19, dtype=torch.bool))
    resid = model(ids, stop_at_layer=1)
    with pytest.raises(PreprocessError, match=r"expected \(batch, 5, 30\)"):
        model(resid[..., :29], start_at_layer=1)
    with pytest.raises(VitLensError, match="where 2 texts end is nowhere"):
        model(resid, start_at_layer=1)
    with pytest.raises(TextError, match="tokens= goes with start_at_layer"):
        model(ids, tokens=ids)
    torch.testing.assert_close(model(resid, start_at_layer=1, tokens=ids), model(ids))
    with pytest.raises(TextError, match="prepend_bos=False: the tokenizer says what begins a prompt"):
        model.to_tokens("a", prepend_bos=False)


def test_configs_that_contradict_themselves(model):
    from dataclasses import replace

    from vit_lens.errors import VitLensError

    with pytest.raises(VitLensError, match="pool='cls' reads an image; a text is read by 'eos' or 'all'"):
        replace(model.cfg, pool="cls")
    with pytest.raises(VitLensError, match="eos_token_id=67 is none of n_vocab=67 ids"):
        replace(model.cfg, eos_token_id=67)
    assert replace(model.cfg, eos_token_id=0).eos_token_id == 0


def test_hooks_are_as_loud_as_those_of_images(model):
    from vit_lens.errors import HookShapeError, UnfiredHookError, UnknownHookError

    with pytest.raises(UnknownHookError, match=r"no hook point 'hook_image_embeds'; nearest: 'hook_text_embeds'"):
        model.run_with_hooks("a", fwd_hooks=[("hook_image_embeds", lambda x, hook: x)])
    with pytest.raises(HookShapeError):
        model.run_with_hooks("a", fwd_hooks=[("blocks.0.hook_mlp_out", lambda x, hook: x[:, 1:])])
    with pytest.raises(UnfiredHookError):
        model.run_with_hooks("a", fwd_hooks=[("hook_embed", lambda x, hook: x)], stop_at_layer=0, start_at_layer=0)


def test_every_hook_point_is_read(model):
    """No hook point is called in vain."""
    from vit_lens import HookedTextEncoder

    t5 = HookedTextEncoder.from_module(
        text_towers.t5_encoder(randomize, gated=True), tokenizer=text_towers.t5_tokenizer()
    ).requires_grad_(False)
    prompts = ["a red star", "blue"]

    def tilt(x, hook):  # not by one factor, which a norm takes off again
        return x * torch.linspace(0.5, 1.5, x.shape[-1], dtype=x.dtype)

    for tower in (model, t5):
        out = tower(prompts)
        for name in tower.hook_dict:
            changed = tower.run_with_hooks(prompts, fwd_hooks=[(name, tilt)])
            assert (changed - out).abs().max() > 1e-6, name


def test_changing_a_copy_leaves_the_weights_alone(model):
    before = {name: weight.clone() for name, weight in model.state_dict().items()}

    def wipe(x, hook):
        x.zero_()

    names = ["hook_embed", *(["hook_pos_embed"] if model.cfg.has_pos_embed else [])]
    model.run_with_hooks("a red star", fwd_hooks=[(name, wipe) for name in names])
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
