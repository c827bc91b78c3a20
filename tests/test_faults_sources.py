"""Model folders, files and names as they come in the wild: read rightly, or refused in words."""

import json
import re
import shutil
import warnings

import pytest
import torch
import towers

from vit_lens.errors import CheckpointError, TextError, UnsupportedTowerError, VitLensError

PREPROCESSOR = dict(
    do_resize=True, size={"shortest_edge": 22}, crop_size={"height": 22, "width": 22}, resample=3,
    image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6],
)  # fmt: skip


pytestmark = pytest.mark.usefixtures("unchecked")


def load(name, **options):
    from vit_lens import HookedViT

    return HookedViT.from_pretrained(name, **options)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A whole tower in Hugging Face's format."""
    folder = tmp_path_factory.mktemp("saved") / "tower"
    towers.hf_tower().float().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    return folder


@pytest.fixture
def changed(saved, tmp_path):
    """Make a copy of the folder with other values in one of its JSON files, or without some."""

    def change(values, name="config.json"):
        folder = tmp_path / "tower"
        shutil.copytree(saved, folder, dirs_exist_ok=True)
        content = json.loads((folder / name).read_text()) | values
        (folder / name).write_text(json.dumps({key: value for key, value in content.items() if value != "absent"}))
        return folder

    return change


# ---- H11: what a config says beside sizes ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "values, words",
    [
        ({"quantization_config": {"quant_method": "fp8"}}, "quantised weights"),
        ({"compression_config": {"bits": 4}}, "compressed weights"),
        ({"auto_map": {"AutoModel": "modeling.Evil"}}, "code of its own"),
        ({"architectures": ["EvilModel"]}, r"saved as \['EvilModel'\].*expected CLIPModel or"),
        ({"architectures": "CLIPVisionModel"}, "saved as CLIPVisionModel"),
        ({"architectures": [["CLIPModel"]]}, "saved as"),
    ],
)
def test_what_would_be_another_tower_is_refused(values, words, changed):
    with pytest.raises(UnsupportedTowerError, match=words):
        load(changed(values))


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_weights_of_eight_bits_are_refused(kind, form, changed):
    from safetensors.torch import load_file, save_file

    folder = changed({})
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("mlp.fc1.weight"))
    tensors[name] = tensors[name].to(kind)
    if form == "bin":
        (folder / "model.safetensors").unlink()
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"1 quantised: .*fc1\.weight \({kind}\)"):
        load(folder)


# ---- R8, R10: sizes from files --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {"num_hidden_layers": 100_000}, {"num_hidden_layers": 0}, {"num_hidden_layers": 2.0},
        {"num_hidden_layers": True}, {"num_hidden_layers": None}, {"num_hidden_layers": "2"}, {"patch_size": 0},
        {"patch_size": -3},
        {"patch_size": [5, 4]}, {"patch_size": []}, {"hidden_size": 36}, {"hidden_size": 10**12},
        {"image_size": 10**7}, {"image_size": {"height": 22}}, {"num_attention_heads": 0}, {"num_attention_heads": 3},
        {"layer_norm_eps": 1e30}, {"layer_norm_eps": 0}, {"layer_norm_eps": -1e-5}, {"layer_norm_eps": "1e-5"},
        {"layer_norm_eps": None}, {"hidden_act": 7}, {"hidden_act": ["gelu"]}, {"projection_dim": 0},
        {"intermediate_size": -1}, {"layer_norm_eps": float("nan")}, {"initializer_range": float("inf")},
    ],
    ids=str,
)  # fmt: skip
def test_sizes_that_no_tower_has_are_refused(values, changed):
    folder, (key,) = changed(values), values
    with pytest.raises((CheckpointError, UnsupportedTowerError), match=r"config\.json|hidden_act=") as caught:
        load(folder)
    assert re.search(rf"{key}|not a multiple|not finite|//", str(caught.value)), caught.value


@pytest.mark.parametrize(
    "values, words",
    [
        ({"vision_config": 3}, "vision_config in .* is of type int; expected dict"),
        ({"vision_config": {"num_hidden_layers": 10**6}}, "num_hidden_layers is 1000000"),
        ({"vision_config_dict": {"patch_size": 0}}, "patch_size is 0"),
        ({"text_config": {"vocab_size": 10**12}}, "vocab_size is"),
    ],
)
def test_sizes_of_parts_are_checked_too(values, words, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"} | values))
    towers.save_safely(towers.hf_tower(), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=words):
        load(tmp_path)


@pytest.mark.parametrize(
    "values, words",
    [
        ({"model_cfg": "absent"}, "model_cfg in .* is of type NoneType"),
        ({"model_cfg": [1]}, "model_cfg in .* is of type list"),
        ({"preprocess_cfg": 3}, "preprocess_cfg in .* is of type int"),
        ({"layers": 10**6}, "layers is 1000000"),
        ({"patch_size": 0}, "patch_size is 0"),
        ({"head_width": 0}, "head_width is 0"),
        ({"layers": "3"}, "layers is '3'"),
        ({"no_ln_pre": "false"}, "no_ln_pre is 'false'; expected bool"),
        ({"evil": 1}, "unknown key 'evil'"),
        ({"norm_kwargs": {"evil": 1}}, "describes no tower"),
        ({"norm_kwargs": {"eps": 1e30}}, "eps is 1e"),
        ({"timm_model_name": "hf-hub:evil/evil"}, "timm trunk"),
        ({"timm_model_name": "/tmp/evil"}, "timm trunk"),
        ({"quick_gelu": "false"}, "quick_gelu in .* is of type str"),
        ({"embed_dim": "absent"}, "embed_dim in .* is of type NoneType"),
        ({"embed_dim": True}, "embed_dim is True"),
    ],
    ids=str,
)
def test_configs_of_open_clip_are_checked(values, words, tmp_path):
    vision = dict(layers=1, width=22, head_width=11, image_size=14, patch_size=7)
    config = {"model_cfg": {"embed_dim": 13, "vision_cfg": vision, "text_cfg": {}}, "preprocess_cfg": {}}
    (key, value), *_ = values.items()
    part = config if key in config else config["model_cfg"] if key in ("embed_dim", "quick_gelu") else vision
    part[key] = value
    if value == "absent":
        del part[key]
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    towers.save_safely(towers.tiny_visual(), tmp_path / "open_clip_model.safetensors")
    with pytest.raises((CheckpointError, UnsupportedTowerError), match=words):
        load(tmp_path)


# ---- R11: known keys alone reach a library --------------------------------------------------------------------

EVIL = {
    "_attn_implementation": "kernels-community/evil@branch", "attn_implementation": "kernels-community/evil",
    "dtype": "float8_e4m3fn", "torchscript": True, "id2label": 3, "num_labels": 10**9, "pruned_heads": {"0": [1]},
    "_name_or_path": "evil/evil", "use_kernels": True, "output_attentions": True, "problem_type": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def evil(tmp_path_factory):
    """The embedded encoder, whose config asks transformers for more than sizes."""
    from vit_lens.identity import MINI_FILES

    folder = tmp_path_factory.mktemp("evil") / "mini"
    shutil.copytree(MINI_FILES / "encoder", folder)
    config = json.loads((folder / "config.json").read_text())
    for part in (config, config["vision_config"], config["text_config"]):
        part |= EVIL
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_config_asks_transformers_for_sizes_alone(evil):
    from vit_lens import TextBank
    from vit_lens.verification import verify

    model, mini = load(evil), load("mini")
    assert model.fingerprint == mini.fingerprint and model.cfg == mini.cfg
    assert verify(model, evil, dtypes=[torch.float32]).passed
    bank = TextBank.from_pretrained(evil, ["a red star"])
    assert torch.equal(bank.embeds, TextBank.mini(["a red star"]).embeds)


def test_the_text_tower_of_an_open_clip_folder_is_not_built(tmp_path, monkeypatch):
    """Its config may name a repository on the Hub, which open_clip would fetch."""
    from vit_lens.verification import verify

    vision = dict(layers=2, width=22, head_width=11, image_size=14, patch_size=7)
    tower = towers.clip_of({"embed_dim": 13, "vision_cfg": vision, "text_cfg": dict(towers.TEXT)}).float()
    config = {"embed_dim": 13, "vision_cfg": vision, "text_cfg": {"hf_model_name": "evil/evil"}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    towers.save_safely(tower, tmp_path / "open_clip_model.safetensors")
    assert verify(load(tmp_path), tmp_path, dtypes=[torch.float32]).passed


def test_code_of_a_tokenizer_is_not_run(evil, tmp_path):
    from vit_lens import TextBank

    shutil.copytree(evil, tmp_path / "mini")
    path = tmp_path / "mini" / "tokenizer_config.json"
    said = json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": ["tok.Evil", None]}, "tokenizer_class": "Evil"}
    path.write_text(json.dumps(said))
    (tmp_path / "mini" / "tok.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    try:
        TextBank.from_pretrained(tmp_path / "mini", ["a red star"])
    except TextError:
        pass
    assert not (tmp_path / "ran").exists()


def test_a_revision_of_a_folder_is_refused(evil):
    from vit_lens import TextBank

    with pytest.raises(VitLensError, match="revision= belongs to Hub ids"):
        TextBank.from_pretrained(evil, ["a red star"], revision="main")


# ---- M5: files that are no checkpoints ------------------------------------------------------------------------

STRANGERS = {
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1": "is a Git LFS pointer.*git lfs pull",
    b"<!DOCTYPE html><html>": "is a web page.*resolve/",
    b"\n <HTML>": "is a web page",
    b"<?xml version='1.0'?><Error>": "is a web page",
    b"\x1f\x8b\x08\x00": "is a gzip archive",
    b"\x89HDF\r\n": "is an HDF5 file",
    b'{"weight_map": {}}': "is a JSON file",
    b"not a checkpoint": "truncated, or PyTorch did not write it",
    b"PK\x03\x04": "truncated, or PyTorch did not write it",
    b"\x80\x02}q\x00.": "does not hold a state dict|truncated",
    b"\x80": "truncated, or PyTorch did not write it",
}


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("data", STRANGERS, ids=lambda data: repr(data[:12]))
def test_files_that_are_no_checkpoints_are_named(data, suffix, tmp_path):
    from vit_lens.sources.tensors import open_tensors

    path = tmp_path / f"w.{suffix}"
    path.write_bytes(data)
    words = STRANGERS[data] if "is a" in STRANGERS[data] or suffix == "pt" else "is not a whole safetensors file"
    with pytest.raises(CheckpointError, match=words) as caught:
        open_tensors([path])
    assert "weights_only" not in str(caught.value) and "\x1b" not in str(caught.value)


def test_checkpoints_that_hold_code_or_more_are_named(tmp_path):
    import numpy as np

    from vit_lens.sources.tensors import open_tensors

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an old format's age
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "script.pt")
    torch.save({"state_dict": {"w": torch.ones(2)}, "loss": np.float64(3)}, tmp_path / "scalars.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    torch.save({3: torch.ones(2)}, tmp_path / "numbers.pt")
    for name, words in (
        ("script", r"TorchScript archive.*torch\.jit\.load\(path\)\.state_dict\(\)"),
        ("scalars", r"more than tensors \(numpy\S+\).*state_dict\(\) alone"),
        ("module", r"more than tensors \(torch\.nn\.modules\.linear\.Linear\)"),
        ("numbers", "does not hold a state dict"),
    ):
        with pytest.raises(CheckpointError, match=words) as caught:
            open_tensors([tmp_path / f"{name}.pt"])
        assert "weights_only" not in str(caught.value) and "\x1b" not in str(caught.value)


def test_a_format_is_known_by_its_content(changed):
    folder = changed({})
    before = load(folder).fingerprint
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert load(folder).fingerprint == before


# ---- M15: wrappers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize(
    "wrap",
    ["module.{}", "_orig_mod.{}", "_orig_mod.module.{}", "module._orig_mod.{}", "_fsdp_wrapped_module.{}"],
)
def test_names_of_wrappers_come_off_in_every_format(wrap, form, changed):
    from safetensors.torch import load_file, save_file

    folder = changed({})
    before, tensors = load(folder).fingerprint, load_file(folder / "model.safetensors")
    wrapped = {wrap.format(name): tensor for name, tensor in tensors.items()}
    if form == "bin":
        (folder / "model.safetensors").unlink()
        torch.save(wrapped, folder / "pytorch_model.bin")
    else:
        save_file(wrapped, folder / "model.safetensors")
    assert load(folder).fingerprint == before


def test_names_of_wrapped_parts_come_off_and_no_tensor_is_lost(changed):
    from safetensors.torch import load_file, save_file

    folder = changed({})
    before, tensors = load(folder).fingerprint, load_file(folder / "model.safetensors")
    parts = {name.replace(".layers.1.", ".layers.1._orig_mod."): tensor for name, tensor in tensors.items()}
    save_file(parts, folder / "model.safetensors")
    assert load(folder).fingerprint == before and parts.keys() != tensors.keys()
    name = next(iter(tensors))
    save_file(tensors | {f"module.{name}": tensors[name] + 1}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"holds (module.)?{name}, which it or another shard holds too"):
        load(folder)


def test_wrappers_in_memory_say_what_they_hold():
    from vit_lens import HookedViT

    tower = towers.hf_tower()
    for wrapper, words in (
        (torch.nn.DataParallel(tower), r"itself, not a wrapper .*: its \.module \(CLIPVisionModelWithProjection\)"),
        (torch.compile(tower), r"around it: its \._orig_mod \(CLIP"),
        (torch.nn.ModuleDict({"model": torch.nn.ModuleDict({"vision_tower": tower})}), r"its \.model\.vision_tower \("),
        (torch.nn.Linear(2, 2), "hand over the model itself"),
    ):
        with pytest.raises(UnsupportedTowerError, match=words):
            HookedViT.from_module(wrapper)


def test_an_adapter_is_merged_and_not_removed():
    from vit_lens import HookedViT

    tower = towers.hf_tower()
    layers = (tower.vision_model if hasattr(tower, "vision_model") else tower).encoder.layers
    layers[0].mlp.fc1 = type("Lora", (torch.nn.Linear,), {})(35, 44).double()
    with pytest.raises(UnsupportedTowerError, match=r"merge_and_unload\(\)"):
        HookedViT.from_module(tower)


# ---- M1: where processors are kept ----------------------------------------------------------------------------


def test_the_file_of_a_whole_processor_is_read(changed):
    folder = changed({})
    expected = load(folder).spec()
    kept = (folder / "preprocessor_config.json").read_text()
    (folder / "preprocessor_config.json").unlink()
    said = {"processor_class": "CLIPProcessor", "image_processor": json.loads(kept)}
    (folder / "processor_config.json").write_text(json.dumps(said))
    assert load(folder).spec() == expected
    (folder / "preprocessor_config.json").write_text(kept.replace("0.1", "0.7"))
    assert load(folder).spec() == expected  # transformers looks into the first too
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "CLIPProcessor"}))
    assert load(folder).spec().mean[0] == 0.7
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": [1]}))
    with pytest.raises(VitLensError, match=r"image_processor in .* is of type list"):
        load(folder)


def test_dinov2_takes_the_size_of_a_processors_own_file(tmp_path):
    towers.hf_other("Dinov2Model", image_size=36).float().save_pretrained(tmp_path)
    size = {"height": 12, "width": 12}
    said = PREPROCESSOR | {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 16},
        "crop_size": size,
    }
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": said}))
    assert load(tmp_path).cfg.image_size == (12, 12)


# ---- M7, tracebacks: names ------------------------------------------------------------------------------------


def test_a_colon_in_a_path_that_is_there(tmp_path, monkeypatch):
    from vit_lens.sources import resolve_name

    monkeypatch.chdir(tmp_path)
    for folder in ("run:12h30", "a:b/c:d", "plain/sub:x", "C"):
        (tmp_path / folder).mkdir(parents=True)
    for name, root, subfolder in (
        ("run:12h30", "run:12h30", ""), (str(tmp_path / "run:12h30"), str(tmp_path / "run:12h30"), ""),
        ("./run:12h30:e", "run:12h30", "e"), ("a:b:c:d", "a:b", "c:d"), ("a:b/c:d", "a:b/c:d", ""),
        ("plain:sub:x", "plain", "sub:x"), ("C:sub", "C", "sub"), ("plain:", "plain", ""),
    ):  # fmt: skip
        found = resolve_name(name)
        assert (str(found.root), found.subfolder) == (root, subfolder), name
    assert resolve_name("facebook/dinov2-base:a:b").subfolder == "a:b"


@pytest.mark.parametrize(
    "name",
    ["", "  ", ":", ":x", "x" * 300, "./" + "x" * 300, "x/" * 3000, "D:\\models\\clip", "D:/models/clip", "\0", 3, None,
     b"mini", ["mini"], "hf/", "open_clip/", "a/b:../../etc", "a/b/c", "mini:x"],
    ids=lambda name: repr(name)[:20],
)  # fmt: skip
def test_names_that_are_none(name):
    with pytest.raises(VitLensError):
        load(name)


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(device="gpu"), "device='gpu'.*such as 'cpu'"),
        (dict(dtype="float32"), "expected a torch.dtype"), (dict(preprocess_spec={}), "preprocess_spec is of type"),
        (dict(image_size=2.5), "image_size=2.5; expected a side"), (dict(image_size=True), "image_size=True"),
        (dict(image_size=(64, "64")), "image_size=.*expected a side"), (dict(image_size=10**9), "up to 16384"),
        (dict(image_size=(64, None)), "expected a side"), (dict(image_size=0), "expected a side"),
    ],
    ids=str,
)  # fmt: skip
def test_options_of_another_kind(options, words, saved):
    with pytest.raises(VitLensError, match=words):
        load(saved, **options)


def test_what_is_no_module_or_family():
    from vit_lens import HookedViT
    from vit_lens.sources import Family, register_family

    for thing in (None, "mini", torch.nn.Linear, object()):
        with pytest.raises(UnsupportedTowerError, match="known are Hugging Face's CLIP"):
            HookedViT.from_module(thing)
        with pytest.raises(UnsupportedTowerError, match="expected Family: an object of a class that inherits it"):
            register_family(thing)
    with pytest.raises(UnsupportedTowerError, match="not the class"):
        register_family(Family)
    with pytest.raises(VitLensError, match="preprocess_spec is of type dict"):
        HookedViT.from_module(towers.hf_tower(), preprocess_spec={})


def test_the_embedded_pair_is_among_the_nearest_names(errors):
    from vit_lens import HookedViT

    for name in ("minni", "Mini", "mni"):
        with pytest.raises(errors.CheckpointError, match=rf"unknown model '{name}'.*Nearest names: 'mini'"):
            HookedViT.from_pretrained(name)
    with pytest.raises(errors.CheckpointError, match=r"tag= belongs to open_clip names; minni is none, nearest: 'ViT"):
        HookedViT.from_pretrained("minni", tag="openai")
