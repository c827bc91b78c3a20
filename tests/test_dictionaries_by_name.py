"""Dictionaries by name: those that ship, those on the Hub, and names that are neither."""

import pytest
import torch

import vit_lens as vl
from vit_lens import dictionaries as vd
from vit_lens.dictionaries.by_name import EMBEDDED, find_dictionary
from vit_lens.errors import DictionaryError
from vit_lens.mini.training.dictionaries import RECIPES, Recipe, train_dictionaries


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub whose one repository has a dictionary in a folder, and what was asked of it."""
    import huggingface_hub

    asked = {}
    found = vd.random_dictionary(6, 11, k=3, site="blocks.2.hook_resid_post", seed=4)
    vd.save_sae_lens(found, tmp_path / "snapshot" / "layer 2" / "a")

    def fetch(name, allow_patterns, **given):
        asked.update(given, name=name, patterns=allow_patterns)
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    (tmp_path / "snapshot" / "layer 2").rename(tmp_path / "snapshot" / "layer_2")
    return found, asked


def test_a_folder_of_a_repository_is_fetched_and_no_more(hub):
    found, asked = hub
    loaded = vl.Dictionary.from_pretrained("someone/saes:layer_2/a", revision="v1", cache_dir="kept")
    assert torch.equal(loaded.W_dec, found.W_dec) and loaded.origin.site == "blocks.2.hook_resid_post"
    assert (asked["name"], asked["revision"], asked["cache_dir"]) == ("someone/saes", "v1", "kept")
    assert asked["patterns"] == [f"layer_2/a/{one}" for one in ("*.json", "*.safetensors", "*.pt", "*.pth")]


def test_layout_and_what_is_said_are_passed_on(hub):
    with pytest.raises(DictionaryError, match=r"'blocks.1.hook_resid_post', and .* says 'blocks.2.hook_resid_post'"):
        vl.Dictionary.from_pretrained("someone/saes:layer_2/a", "sae_lens", site="blocks.1.hook_resid_post")
    with pytest.raises(DictionaryError, match="layout='sae_lense'; nearest: 'sae_lens'"):
        vl.Dictionary.from_pretrained("someone/saes:layer_2/a", "sae_lense")


def test_a_path_is_read_as_it_is(tmp_path):
    path = vd.random_dictionary(6, 11, k=3).save(tmp_path / "one.safetensors")
    assert vl.Dictionary.from_pretrained(path).n_features == 11


@pytest.mark.parametrize(
    "name, said",
    [("mini-topkk", r"no dictionary 'mini-topkk': .*nearest: 'mini-topk'"), ("nowhere", "no file or folder"),
     ("a/b:../c", "no dictionary"), ("a/b/c", "no dictionary"), ("", "path is empty")],
)  # fmt: skip
def test_names_that_are_none(name, said, hub, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DictionaryError, match=said):
        vl.Dictionary.from_pretrained(name)
    assert not hub[1]


def test_a_hub_that_cannot_be_reached(monkeypatch):
    import huggingface_hub

    def fetch(name, **given):
        raise OSError("not reachable")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    with pytest.raises(DictionaryError, match="dictionary 'a/b' cannot be fetched from the Hub: not reachable"):
        vl.Dictionary.from_pretrained("a/b")


@pytest.mark.parametrize("name", EMBEDDED)
def test_what_ships_belongs_to_its_model_and_its_card_says_what_it_is_worth(name):
    found = vl.Dictionary.from_pretrained(name)
    model, kind = name.rsplit("-", 1)
    recipe = RECIPES[model]
    assert found.check(recipe.load()) == found.origin.site and found.W_dec.dtype == torch.float16
    assert found.origin.learnt.startswith(kind)
    assert find_dictionary(name).with_suffix(".md").read_text() == vd.card(found)
    own, controls = found.statistics["held_out"], found.statistics["controls"]
    at_k = next(point for point in found.statistics["fidelity"]["points"] if point["k"] == found.semantics.k)
    assert own["dead"] <= 0.1
    assert (at_k["fidelity"] < 0.9) == ("A model with so much missing is another model" in vd.card(found))
    beats = controls["dictionary, by pursuit"]["fvu_standardised"] < controls["random data points"]["fvu_standardised"]
    words = next(one.words for one in vd.verdicts(found) if "random data points" in one.words)
    assert beats != ("no more than as many random data points" in words) and words in vd.card(found)


@pytest.mark.filterwarnings("ignore:.*features fired on none")  # of six images
def test_what_ships_is_made_by_one_call_that_goes_on(tmp_path):
    model, images = vl.HookedViT.from_pretrained("mini"), vl.mini.sample_images() * 6
    recipe = Recipe(
        load=lambda: model, inputs=lambda: images, site="L1.resid_post", where={"tokens": "patches"},
        trainers={"topk": vd.TopK(n_features=20, k=3, n_tokens=2000), "itda": vd.ITDA(k=3, max_atoms=9, n_tokens=200)},
    )  # fmt: skip
    files = train_dictionaries(tmp_path, "mini", recipe)
    assert [file.name for file in files] == ["mini-topk.safetensors", "mini-itda.safetensors"]
    first = files[0].read_bytes()
    files[1].unlink()
    assert train_dictionaries(tmp_path, "mini", recipe) == files and files[0].read_bytes() == first
    found = vl.Dictionary.load(files[1])
    held_out = vl.ActivationSource.of_model(model, images, "L1.resid_post", tokens="patches", seed=15).split(0.1)[1]
    assert vd.evaluate(found, held_out).numbers() == found.statistics["held_out"]  # of the file, rounded as it is
