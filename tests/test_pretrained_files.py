"""Towers from files and names: strict about tensors, no network for local paths, one meaning per name."""

import json
import shutil
import socket

import pytest
import torch
import towers
from safetensors.torch import load_file, save_file

PREPROCESSOR = {
    "size": {"shortest_edge": 22},
    "crop_size": {"height": 22, "width": 22},
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.4, 0.5, 0.6],
    "resample": 2,
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Any connection is a failure of the test."""

    def refuse(*args, **kwargs):
        raise AssertionError(f"network: {args}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def hub_offline(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def same_weights(source, module_source):
    assert source.cfg == module_source.cfg
    assert source.state_dict.keys() == module_source.state_dict.keys()
    for name, tensor in source.state_dict.items():
        assert torch.equal(tensor, module_source.state_dict[name].to(tensor.dtype)), name


def edit(path, change):
    """Apply a change to the dict of tensors of a safetensors file."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


# ---- open_clip ------------------------------------------------------------------------------------------------


def test_the_silent_tag_follows_its_config_with_a_warning(pre, small_registry, downloads):
    name = "roberta-ViT-B-32"
    towers.save_safely(towers.clip_of(small_registry[name]), downloads.path)
    with pytest.warns(UserWarning, match="does not name its activation"):
        source = pre.read_pretrained(name, tag="laion2b_s12b_b32k")
    assert source.cfg.act_fn == "quick_gelu"
    assert pre.read_pretrained(name, tag="laion2b_s12b_b32k", quick_gelu=False).cfg.act_fn == "gelu"


def test_the_ways_to_name_a_tag(pre, small_registry, downloads):
    tower = towers.clip_of(small_registry["ViT-B-32"] | {"quick_gelu": True})
    towers.save_safely(tower, downloads.path)
    ways = [("ViT-B-32", "openai"), ("ViT-B-32/openai", None), ("open_clip/ViT-B-32/openai", None)]
    ways += [("open_clip/ViT-B-32", "openai"), ("ViT-B-32-quickgelu", "openai")]
    for name, tag in ways:
        source = pre.read_pretrained(name, tag=tag, dtype=torch.float64)
        assert source.encoder_id == "open_clip/ViT-B-32/openai"
        same_weights(source, pre.read_module(tower))
    assert len(downloads.asked) == len(ways)


def test_preprocessing_comes_from_the_tag(pre, small_registry, downloads):
    name = "ViT-L-14-CLIPA"
    towers.save_safely(towers.clip_of(small_registry[name]), downloads.path)
    spec = pre.read_pretrained(name, tag="datacomp1b").preprocess_spec
    assert (spec.mean[0], spec.interpolation, spec.resize_mode) == (0.485, "bilinear", "squash")
    assert spec.size == (48, 48)


@pytest.mark.parametrize("form", ["pt", "safetensors", "nested", "module", "tower", "half"])
def test_local_checkpoints(form, pre, small_registry, tmp_path):
    model = towers.clip_of(small_registry["ViT-B-16"])
    state_dict = dict(model.state_dict())
    path = tmp_path / ("my.safetensors" if form == "safetensors" else "my.pt")
    if form == "safetensors":
        towers.save_safely(model, path)
    elif form == "nested":
        torch.save({"epoch": 3, "state_dict": state_dict}, path)
    elif form == "module":
        torch.save({"state_dict": {f"module.{k}": v for k, v in state_dict.items()}}, path)
    elif form == "tower":
        torch.save(model.visual.state_dict(), path)
    else:
        model = model.half() if form == "half" else model
        torch.save(model.state_dict(), path)
    source = pre.read_pretrained("ViT-B-16", tag=path, quick_gelu=False, dtype=torch.float64)
    same_weights(source, pre.read_module(model.double()))
    assert source.encoder_id.startswith(f"local/{path.name}@")
    assert all(t.untyped_storage().nbytes() == t.nbytes for t in source.state_dict.values())


def test_ambiguous_activation_of_a_local_checkpoint(pre, errors, small_registry, tmp_path):
    for name, expected in (("ViT-B-32", None), ("ViT-L-14-336", None), ("ViT-B-32-quickgelu", "quick_gelu")):
        path = tmp_path / f"{name}.pt"
        torch.save(towers.clip_of(small_registry[name]).state_dict(), path)
        if expected is None:
            with pytest.raises(errors.CheckpointError, match=rf"{name} exist with both activations.*quick_gelu="):
                pre.read_pretrained(name, tag=path)
            for quick_gelu, act in ((True, "quick_gelu"), (False, "gelu")):
                assert pre.read_pretrained(name, tag=str(path), quick_gelu=quick_gelu).cfg.act_fn == act
        else:
            assert pre.read_pretrained(name, tag=path).cfg.act_fn == expected


def test_preprocessing_of_a_local_checkpoint(pre, small_registry, tmp_path):
    from vit_lens.images import PreprocessSpec

    path = tmp_path / "w.pt"
    torch.save(towers.clip_of(small_registry["ViT-L-14-CLIPA"]).state_dict(), path)
    assert pre.read_pretrained("ViT-L-14-CLIPA", tag=path).preprocess_spec.resize_mode == "squash"
    torch.save(towers.clip_of(small_registry["ViT-L-16"]).state_dict(), path)
    assert pre.read_pretrained("ViT-L-16", tag=path).preprocess_spec.resize_mode == "shortest"
    torch.save(towers.clip_of(small_registry["ViT-H-14"]).state_dict(), path)
    assert pre.read_pretrained("ViT-H-14", tag=path, quick_gelu=False).preprocess_spec is None  # its tags disagree
    own = PreprocessSpec.from_open_clip_cfg({"size": 48, "mean": (0.5,) * 3})
    source = pre.read_pretrained("ViT-H-14", tag=path, quick_gelu=False, preprocess_spec=own)
    assert source.preprocess_spec == own


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_damaged_checkpoints(suffix, pre, errors, small_registry, tmp_path):
    path = tmp_path / f"w.{suffix}"
    model = towers.clip_of(small_registry["ViT-B-16-plus"])

    def save(state_dict):
        state_dict = {k: v.contiguous() for k, v in state_dict.items()}
        save_file(state_dict, path) if suffix == "safetensors" else torch.save(state_dict, path)

    def refused(words):
        with pytest.raises(errors.CheckpointError, match=words) as caught:
            pre.read_pretrained("ViT-B-16-plus", tag=path)
        assert str(path) in str(caught.value)

    whole = dict(model.state_dict())
    save({k: v for k, v in whole.items() if k != "visual.ln_post.bias"})
    refused(r"1 missing: ln_post\.bias")
    save(whole | {"visual.ln_post.gain": torch.ones(3)})
    refused(r"1 extra: ln_post\.gain")
    save(whole | {"queue": torch.ones(3)})
    refused(r"1 extra: queue")
    save(whole | {"visual.positional_embedding": torch.ones(26, 56)})
    refused(r"positional_embedding \[26, 56\] instead of \[197, 56\]")
    save(whole)
    path.write_bytes(path.read_bytes()[:-4000])
    refused("cannot be read|not a whole safetensors file")
    path.write_bytes(b"")
    refused("is empty")
    path.write_text("not tensors")
    refused("cannot be read|not a whole safetensors file")


def test_pickled_objects_are_not_run(pre, errors, small_registry, tmp_path):
    path = tmp_path / "w.pt"
    torch.save(towers.clip_of(small_registry["ViT-B-16-plus"]), path)
    with pytest.raises(errors.CheckpointError, match="holds more than tensors"):
        pre.read_pretrained("ViT-B-16-plus", tag=path)
    torch.save([torch.ones(3)], path)
    with pytest.raises(errors.CheckpointError, match="does not hold a state dict"):
        pre.read_pretrained("ViT-B-16-plus", tag=path)


def test_open_clip_names_that_are_not_plain_vits(pre, errors):
    cases = {
        ("RN50", "openai"): "ModifiedResNet",
        ("EVA02-L-14", "merged2b_s4b_b131k"): r"timm trunk \(eva02_large_patch14_clip_224: EVA",
        ("convnext_base", "laion400m_s13b_b51k"): r"timm trunk \(convnext_base: ConvNeXt",
    }
    for (name, tag), words in cases.items():
        with pytest.raises(errors.UnsupportedTowerError, match=words):
            pre.read_pretrained(name, tag=tag)


def test_open_clip_download_that_fails(pre, errors, small_registry, hub_offline, tmp_path):
    with pytest.raises(errors.CheckpointError, match=r"ViT-B-32/openai could not be downloaded.*pass its path as tag="):
        pre.read_pretrained("ViT-B-32", tag="openai", cache_dir=tmp_path)


# ---- Hugging Face ---------------------------------------------------------------------------------------------


@pytest.fixture(params=["CLIPVisionModelWithProjection", "CLIPVisionModel", "CLIPModel"])
def hf_folder(request, tmp_path):
    """A tower saved by transformers, with its directory."""
    tower = (towers.hf_clip() if request.param == "CLIPModel" else towers.hf_tower(request.param)).float()
    tower.save_pretrained(tmp_path / "saved")
    return tower, tmp_path / "saved"


def test_saved_by_transformers(hf_folder, pre):
    tower, folder = hf_folder
    for name in (folder, str(folder)):
        source = pre.read_pretrained(name)
        same_weights(source, pre.read_module(tower))
        assert source.encoder_id.startswith("local/saved@") and source.preprocess_spec is None
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    spec = pre.read_pretrained(folder).preprocess_spec
    assert (spec.size, spec.mean, spec.interpolation) == ((22, 22), (0.1, 0.2, 0.3), "bilinear")


def test_half_precision_files_become_float32(pre, tmp_path):
    tower = towers.hf_tower().half()
    tower.save_pretrained(tmp_path)
    source = pre.read_pretrained(tmp_path)
    assert {t.dtype for t in source.state_dict.values()} == {torch.float32}
    same_weights(source, pre.read_module(tower.float()))
    half = pre.read_pretrained(tmp_path, dtype=torch.float16)
    assert {t.dtype for t in half.state_dict.values()} == {torch.float16}


def test_shards_and_pytorch_files(hf_folder, pre):
    tower, folder = hf_folder
    expected = pre.read_module(tower)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for part, members in parts.items():
        save_file({name: tensors[name] for name in members}, folder / part)
    index = {"weight_map": {name: part for part, members in parts.items() for name in members}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    same_weights(pre.read_pretrained(folder), expected)
    for file in folder.glob("model*"):
        file.unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    same_weights(pre.read_pretrained(folder), expected)


@pytest.mark.parametrize(
    "shard", ["../outside.safetensors", "a/../../outside.safetensors", "{root}/outside.safetensors"]
)
def test_shards_outside_of_the_directory(shard, pre, errors, hf_folder, tmp_path):
    _, folder = hf_folder
    shard = shard.format(root=folder.parent)
    (folder / "a").mkdir()
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": shard}}))
    with pytest.raises(errors.CheckpointError, match=r"index\.json names .*outside of its directory"):
        pre.read_pretrained(folder)


@pytest.mark.parametrize("place", ["image_encoder", "image_processor", "feature_extractor", ""])
def test_subfolder_of_a_pipeline(place, pre, tmp_path):
    tower = towers.hf_tower().float()
    tower.save_pretrained(tmp_path / "prior" / "image_encoder")
    (tmp_path / "prior" / place).mkdir(exist_ok=True)
    (tmp_path / "prior" / place / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    source = pre.read_pretrained(f"{tmp_path}/prior:image_encoder")
    same_weights(source, pre.read_module(tower))
    assert source.preprocess_spec.mean == (0.1, 0.2, 0.3)
    assert source.encoder_id.startswith("local/prior:image_encoder@")


def test_the_extra_position_ids_of_published_files(pre, tmp_path):
    tower = towers.hf_tower().half()
    tower.save_pretrained(tmp_path)
    extra = {"vision_model.embeddings.position_ids": torch.arange(5)[None]}
    edit(tmp_path / "model.safetensors", lambda tensors: tensors.update(extra))
    same_weights(pre.read_pretrained(tmp_path), pre.read_module(tower.float()))


def test_damaged_hf_folders(hf_folder, pre, errors, tmp_path):
    _, folder = hf_folder
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    name = next(n for n in load_file(weights) if n.endswith("encoder.layers.1.mlp.fc1.bias") and "text" not in n)
    plain = name.removeprefix("vision_model.").replace(".", r"\.")
    changes = {
        rf"1 missing: {plain}": lambda t: t.pop(name),
        rf"1 extra: {plain}s": lambda t: t.update({name + "s": torch.ones(2)}),
        rf"{plain} \[2\] instead of \[44\]": lambda t: t.update({name: torch.ones(2)}),
    }
    for words, change in changes.items():
        edit(weights, change)
        with pytest.raises(errors.CheckpointError, match=words) as caught:
            pre.read_pretrained(folder)
        assert str(weights) in str(caught.value)
        weights.write_bytes(whole)
    weights.write_bytes(whole[:-100])
    with pytest.raises(errors.CheckpointError, match="not a whole safetensors file"):
        pre.read_pretrained(folder)
    weights.unlink()
    with pytest.raises(errors.CheckpointError, match="has no weights; expected one of"):
        pre.read_pretrained(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(errors.CheckpointError, match=r"config\.json cannot be read as JSON"):
        pre.read_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(errors.CheckpointError, match=r"has no config\.json"):
        pre.read_pretrained(folder)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"model_type": "vit"}, "of model_type 'vit'; expected 'clip'"),
        ({"model_type": "siglip2"}, "NaFlex"),
        ({"hidden_act": "gelu_new"}, "NewGELUActivation"),
        ({"hidden_act": "no_such"}, "hidden_act='no_such'"),
        ({"num_channels": 4}, "4 input channels"),
    ],
)
def test_hf_configs_that_are_refused(change, words, pre, errors, tmp_path):
    towers.hf_tower().float().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(errors.UnsupportedTowerError, match=words):
        pre.read_pretrained(tmp_path)


def test_a_directory_as_open_clip_publishes_it(pre, small_registry, tmp_path):
    for quick_gelu, act in ((False, "gelu"), (True, "quick_gelu")):
        config = small_registry["ViT-B-32"] | {"quick_gelu": quick_gelu}
        model = towers.clip_of(config).float()
        towers.save_safely(model, tmp_path / "open_clip_model.safetensors")
        content = {"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "interpolation": "bilinear"}}
        (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
        source = pre.read_pretrained(tmp_path)
        same_weights(source, pre.read_module(model))
        assert (source.cfg.act_fn, source.preprocess_spec.mean) == (act, (0.5, 0.5, 0.5))


# ---- names ----------------------------------------------------------------------------------------------------


def test_hub_ids_read_the_same_files(pre, monkeypatch, tmp_path):
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    tower = towers.hf_tower().float()
    tower.save_pretrained(tmp_path / "image_encoder")
    (tmp_path / "image_processor").mkdir()
    (tmp_path / "image_processor" / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))

    def fetch(repo_id, filename, *, revision=None, cache_dir=None):
        assert (repo_id, revision) == ("kandinsky-community/kandinsky-2-2-prior", "main")
        if not (tmp_path / filename).is_file():
            raise EntryNotFoundError(filename)
        return str(tmp_path / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    for prefix in ("", "hf/"):
        name = f"{prefix}kandinsky-community/kandinsky-2-2-prior:image_encoder"
        source = pre.read_pretrained(name, revision="main")
        same_weights(source, pre.read_module(tower))
        assert source.encoder_id == "hf/kandinsky-community/kandinsky-2-2-prior:image_encoder"
        assert source.preprocess_spec.mean == (0.1, 0.2, 0.3)


def test_a_hub_that_cannot_be_reached(pre, errors, hub_offline, tmp_path):
    with pytest.raises(
        errors.CheckpointError, match=r"Hub could not be reached for 'owner/name'.*pass their directory"
    ):
        pre.read_pretrained("owner/name", cache_dir=tmp_path)
    with pytest.raises(errors.CheckpointError, match=r"'own er/name' could not be read from the Hub"):
        pre.read_pretrained("own er/name", cache_dir=tmp_path)


def test_an_unknown_repository(pre, errors, monkeypatch):
    import httpx
    import huggingface_hub
    from huggingface_hub.errors import RepositoryNotFoundError

    def fetch(*args, **kwargs):
        raise RepositoryNotFoundError("404", response=httpx.Response(404, request=httpx.Request("GET", "http://x")))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    with pytest.raises(errors.CheckpointError, match="no public repository 'owner/name'"):
        pre.read_pretrained("owner/name")


def test_mini(pre, errors, monkeypatch, tmp_path):
    """The name resolves inside the package, whatever lies in the working directory."""
    from vit_lens.sources import naming

    tower = towers.hf_clip().half()
    tower.save_pretrained(tmp_path / "mini" / "pair" / "encoder")
    monkeypatch.setattr(naming, "MINI_FILES", tmp_path / "mini" / "pair")
    monkeypatch.chdir(tmp_path)
    for name in ("mini", "vit_lens/mini"):
        source = pre.read_pretrained(name)
        same_weights(source, pre.read_module(tower.float()))
        assert source.encoder_id == "vit_lens/mini"
    shutil.rmtree(tmp_path / "mini")
    with pytest.raises(errors.CheckpointError, match="embedded encoder is not in this installation"):
        pre.read_pretrained("mini")


def test_names_that_are_wrong_or_ambiguous(pre, errors, small_registry, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.pt").touch()
    (tmp_path / "ViT-B-32" / "openai").mkdir(parents=True)
    cases = [
        (("ViT-B-16",), r"needs tag=: one of its pretrained tags \(openai, "),
        (("ViT-S-16",), r"needs tag=.*there are none"),
        (("ViT-B-16", "no_such_tag"), "neither a file nor a pretrained tag of ViT-B-16"),
        (("ViT-B-16", tmp_path / "no.pt"), r"no\.pt is neither a file"),
        (("ViT-B-61",), r"unknown model 'ViT-B-61'; expected .*'ViT-B-16'"),
        (("ViT-B-61", "openai"), r"tag= belongs to open_clip names.*'ViT-B-16'"),
        (("open_clip/ViT-B-61/openai",), "open_clip has no model"),
        (("ViT-B-16/openai", "openai"), "already names the tag"),
        (("ViT-B-32/openai",), "is a directory here and an open_clip tag"),
        (("./no/such/dir",), r"no/such/dir: no such directory"),
        ((tmp_path / "file.pt",), "is a file; for an open_clip checkpoint"),
        (("mini", "openai"), "tag= belongs to open_clip names"),
    ]
    for (name, *tag), words in cases:
        with pytest.raises(errors.CheckpointError, match=words):
            pre.read_pretrained(name, tag=tag[0] if tag else None)
    with pytest.raises(errors.CheckpointError, match="quick_gelu= belongs to open_clip"):
        pre.read_pretrained("mini", quick_gelu=True)
    with pytest.raises(errors.CheckpointError, match="was trained with quick_gelu=True"):
        pre.read_pretrained("ViT-B-16", tag="openai", quick_gelu=False)
    with pytest.raises(errors.CheckpointError, match="revision= belongs to Hub ids"):
        pre.read_pretrained("ViT-B-16", tag="openai", revision="main")
    with pytest.raises(errors.CheckpointError, match="revision= belongs to Hub ids; mini is a directory"):
        pre.read_pretrained("mini", revision="main")
    with pytest.raises(errors.CheckpointError, match=r"torch\.int8"):
        pre.read_pretrained("mini", dtype=torch.int8)
