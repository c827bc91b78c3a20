"""What features fire on: held to a loop over inputs and tokens, for images and prompts."""

import dataclasses
import math

import numpy as np
import pytest
import tiny_dictionaries as tiny
import torch

SITE = "blocks.1.hook_resid_post"


def of(model, kind="topk", tokens="all", site=SITE, d=35, **said):
    from vit_lens.dictionaries import Origin

    return tiny.make(kind, d=d, origin=Origin(site=site, tokens=tokens), **said)


def codes_of(dictionary, model, pixels, positions):
    """Every input's codes at the positions of its tokens, one token at a time; NaN elsewhere."""
    _, cache = model.run_with_cache(pixels)
    x = cache[SITE]
    out = torch.full((*x.shape[:2], dictionary.n_features), torch.nan, dtype=torch.float64)
    for i in range(len(x)):
        for p in positions:
            out[i, p] = dictionary.encode(x[i, p])
    return out


@pytest.fixture(scope="module")
def many():
    return torch.randn(23, 3, 22, 22, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("kind", ["topk", "signed", "pursuit"])
@pytest.mark.parametrize("tokens, positions", [("all", range(5)), ("patches", range(1, 5)), ("cls", [0])])
def test_examples_are_those_of_a_loop(vit, many, kind, tokens, positions):
    from vit_lens.dictionaries import feature_examples

    dictionary = of(vit, kind, tokens)
    slow = codes_of(dictionary, vit, many, positions)
    found = feature_examples(dictionary, vit, many, [5, 0, 31], per_band=2, inputs_at_once=4)
    assert found.n_inputs == 23 and found.grid == (2, 2) and found.n_prefix == 1
    for k, feature in enumerate((5, 0, 31)):
        own = slow[..., feature].nan_to_num()
        largest = [max(row.tolist(), key=abs) for row in own]
        order = sorted((i for i in range(23) if largest[i]), key=lambda i: (-abs(largest[i]), i))
        starts = [math.ceil(share * len(order)) for share in (0, 0.25, 0.5, 0.75)]
        assert found.n_firing[k] == len(order)
        fires = float((own[:, list(positions)] != 0).double().mean())
        assert abs(float(found.frequency[k]) - fires) < 1e-6
        for band, start, end in zip(found.bands[k], starts, [*starts[1:], len(order)], strict=True):
            expected = order[start : min(start + 2, end)]
            assert [one.input for one in band.examples] == expected
            for one in band.examples:
                assert torch.allclose(one.map.double(), slow[one.input, :, feature], atol=1e-6, equal_nan=True)
                assert abs(one.activation - largest[one.input]) < 1e-5
                assert one.position == int(own[one.input].abs().argmax())
                grid = found.on_grid(one)
                expected = slow[one.input, 1 + 2, feature].float()
                assert torch.allclose(grid[1, 0], expected, atol=1e-5, equal_nan=True)
    shown = {one.input for bands in found.bands for band in bands for one in band.examples}
    assert set(found.pictures) == shown


def test_no_input_is_in_two_bands_and_few_inputs_fill_the_first_ones():
    from vit_lens.dictionaries import bands_of

    def inputs(values, n):
        assert [start for start, _ in bands_of(values, n)] == [0.0, 0.25, 0.5, 0.75]
        return [band for _, band in bands_of(values, n)]

    assert inputs(torch.tensor([0.0, 2.0, 0.0]), 3) == [[1], [], [], []]
    assert inputs(torch.tensor([1.0, 2.0, -3.0]), 3) == [[2], [1], [0], []]
    assert inputs(torch.ones(9), 2) == [[0, 1], [3, 4], [5, 6], [7, 8]]  # of equals the first
    assert inputs(torch.zeros(4), 2) == [[], [], [], []]


def test_prompts_keep_their_tokens():
    import vit_lens as vl
    from vit_lens.dictionaries import feature_examples, random_dictionary

    model = vl.HookedTextEncoder.from_pretrained("mini").requires_grad_(False)
    prompts = ["a red star", "a small blue ring on white", "a cross"]
    dictionary = random_dictionary(model.cfg.d_model, 40, k=9, site="blocks.1.hook_resid_post")
    found = feature_examples(dictionary, model, prompts, n=40)
    assert found.grid is None and not found.pictures
    _, cache = model.run_with_cache(prompts)
    for index, tokens in found.texts.items():
        assert tokens == model.to_str_tokens(prompts[index])
    for k, feature in enumerate(found.features):
        for band in found.bands[k]:
            for one in band.examples:
                expected = dictionary.encode(cache["blocks.1.hook_resid_post"][one.input, : len(one.map)])[:, feature]
                assert torch.allclose(one.map, expected, atol=1e-5)
                assert len(one.map) == len(found.texts[one.input])  # what is filled up has no code


def test_features_are_spread_over_their_frequency(vit, many):
    from vit_lens.dictionaries import ActivationSource, spread_features

    dictionary = of(vit)
    frequency = torch.linspace(0, 1, 53)
    measured = dataclasses.replace(dictionary, frequency=frequency)
    source = ActivationSource.of_model(vit, many, SITE)
    assert spread_features(measured, source, 3) == [52, 26, 1] and 0 not in spread_features(measured, source, 60)
    counted = (dictionary.encode(torch.cat([b.tokens for b in source.in_order()])) != 0).double().mean(0)
    live = [int(i) for i in counted.argsort(descending=True, stable=True) if counted[i] > 0]
    picks = [live[i] for i in np.linspace(0, len(live) - 1, 7).round().astype(int)]
    assert spread_features(dictionary, source, 7) == picks


def test_what_cannot_be_shown_is_refused(vit, many):
    from vit_lens.dictionaries import feature_examples
    from vit_lens.errors import DictionaryError

    dictionary = of(vit)
    with pytest.raises(DictionaryError, match="no feature 53: there are 53"):
        feature_examples(dictionary, vit, many, [53])
    with pytest.raises(DictionaryError, match="width"):
        feature_examples(of(vit, d=34), vit, many, [1])
    with pytest.raises(DictionaryError, match="no features to show"):
        feature_examples(dictionary, vit, many, [])
    with pytest.raises(DictionaryError, match="per_band=0"):
        feature_examples(dictionary, vit, many, [1], per_band=0)
    silent = dataclasses.replace(dictionary, b_enc=dictionary.b_enc - 1e6)
    with pytest.raises(DictionaryError, match="none of 53 features fires"):
        feature_examples(silent, vit, many)
    dead = feature_examples(silent, vit, many, [4])
    assert dead.n_firing == (0,) and not dead.pictures and not any(band.examples for band in dead.bands[0])
