"""Decoders from files: the published layout, cards, and files that are broken."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import tiny_kandinsky
import torch

PUBLISHED = Path(__file__).parent / "data" / "kandinsky-2-2"
CARD = {
    "encoder_id": "vit_lens/mini",
    "image_size": 16,
    "steps": 2,
    "guidance": 1.5,
    "scheduler": "ddim",
    "embed_dim": 32,
}
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return tiny_kandinsky.save(tmp_path_factory.mktemp("saved") / "tiny", card=CARD)


@pytest.fixture
def directory(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "tiny"))


@pytest.fixture
def no_network(monkeypatch):
    import socket

    def refuse(*args, **kwargs):
        raise AssertionError("a local directory must not reach for the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def load(directory, **arguments):
    from vit_lens.decoders import KandinskyDecoder

    return KandinskyDecoder.from_pretrained(directory, **arguments)


def rewrite(path, change):
    """Change the tensors of a safetensors file."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_a_saved_decoder_comes_back(saved, no_network):
    from vit_lens.decoders import KandinskyDecoder

    loaded = load(saved)
    assert (loaded.encoder_id, loaded.d_embed) == ("vit_lens/mini", 32)
    assert loaded.decoder_id.startswith("local/tiny@")
    assert loaded.defaults.to_dict() == {
        "steps": 2, "guidance": 1.5, "guidance_interval": None, "scheduler": "ddim", "seed": 0,
        "height": 16, "width": 16,
    }  # fmt: skip
    memory = KandinskyDecoder(*tiny_kandinsky.parts(), encoder=None)
    assert memory.decoder_id.split("@")[1] == loaded.decoder_id.split("@")[1]  # one content, one fingerprint
    embeds, negative = tiny_kandinsky.embeddings(2)
    expected = memory.decode(embeds, negative=negative, settings=loaded.defaults)
    assert torch.equal(loaded.decode(embeds, negative=negative), expected)
    assert not loaded.unet.training and not loaded.movq.training


def test_dtype_and_inventory(saved):
    loaded = load(str(saved), dtype=torch.bfloat16, device="cpu")
    assert (loaded.dtype, loaded.device) == (torch.bfloat16, torch.device("cpu"))
    parts = loaded.parts()
    assert {part: sum(t.numel() for t in tensors.values()) for part, tensors in parts.items()} == {
        "unet": 884_456, "movq": 715_327,
    }  # fmt: skip
    assert {t.dtype for tensors in parts.values() for t in tensors.values()} == {torch.bfloat16}


def test_the_card_is_the_contract(directory):
    from vit_lens.errors import ContractError, DecoderError

    assert load(directory, encoder="mini").encoder_id == "vit_lens/mini"
    with pytest.raises(ContractError, match=r"was made for encoder 'vit_lens/mini'.*'open_clip/ViT-B-32/openai'"):
        load(directory, encoder="open_clip/ViT-B-32/openai")
    card = directory / "vit_lens.json"
    for change, said in [
        ({"embed_dim": 33}, "card says embed_dim 33, the UNet takes 32"),
        ({"guidence": 4}, "unknown key 'guidence'; nearest: 'guidance'"),
        ({"steps": "many"}, "steps is 'many'"),
        ({"scheduler": "euler"}, "no scheduler 'euler'"),
    ]:
        card.write_text(json.dumps(CARD | change))
        with pytest.raises((ContractError, DecoderError), match=said):
            load(directory)
    card.write_text('{"steps": 3}')
    with pytest.raises(DecoderError, match="encoder_id is missing"):
        load(directory)
    card.write_text("[1")
    with pytest.raises(DecoderError, match=r"vit_lens.json cannot be read as JSON"):
        load(directory)


def test_without_a_card_the_encoder_must_be_said(directory):
    from vit_lens.errors import ContractError

    (directory / "vit_lens.json").unlink()
    with pytest.raises(ContractError, match=r"does not say which encoder.*pass encoder="):
        load(directory)
    assert load(directory, encoder="vit_lens/mini").defaults.guidance == 4.0


@pytest.mark.parametrize("part", ["unet", "movq"])
def test_broken_weights_are_refused_by_file_and_tensor(directory, part):
    from vit_lens.errors import CheckpointError

    path = directory / part / WEIGHTS
    first = {"unet": "conv_in.weight", "movq": "quant_conv.weight"}[part]
    whole = path.read_bytes()
    for change, said in [
        (lambda t: t.pop(first), rf"tensors 1 missing: {first}"),
        (lambda t: t.update(extra=torch.zeros(2)), "tensors 1 not in the model: extra"),
        (lambda t: t.update({first: torch.zeros(3, 5)}), rf"1 of another shape: {first} \[3, 5\] instead of"),
    ]:
        path.write_bytes(whole)
        rewrite(path, change)
        with pytest.raises(CheckpointError, match=rf"{part}/{WEIGHTS} does not fit.*{said}"):
            load(directory)
    for cut in (0, 5, 1000, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match=rf"{part}/{WEIGHTS} is not a whole safetensors file"):
            load(directory)
    path.unlink()
    (directory / part / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(CheckpointError, match=rf"{part} holds no {WEIGHTS}.*\.bin is never read"):
        load(directory)


@pytest.mark.parametrize(("file", "content", "said"), [
    ("unet/config.json", "{", "unet/config.json cannot be read as JSON"),
    ("unet/config.json", "[]", "holds a JSON list; expected an object"),
    ("unet/config.json", '{"_class_name": "UNet2DModel"}', "'UNet2DModel', expected UNet2DConditionModel"),
    ("movq/config.json", '{"_class_name": "AutoencoderKL"}', "'AutoencoderKL', expected VQModel"),
    ("movq/config.json", '{"_class_name": "VQModel", "up_block_types": ["Nonsense"]}', "VQModel cannot be built"),
    ("scheduler/scheduler_config.json", '{"_class_name": "UnCLIPScheduler"}', "'UnCLIPScheduler' is not supported"),
    ("scheduler/scheduler_config.json", None, "scheduler_config.json: no such file; expected the published layout"),
])  # fmt: skip
def test_broken_configurations_are_refused(directory, file, content, said):
    from vit_lens.errors import DecoderError

    path = directory / file
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    with pytest.raises(DecoderError, match=said):
        load(directory)


def test_weights_in_shards(directory):
    from safetensors.torch import load_file, save_file

    from vit_lens.errors import CheckpointError

    folder = directory / "unet"
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(tensors)
    shards = {f"diffusion_pytorch_model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for shard, keys in shards.items():
        save_file({key: tensors[key] for key in keys}, folder / shard)
    weight_map = {key: shard for shard, keys in shards.items() for key in keys}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    loaded = load(directory)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in loaded.unet.state_dict().items())
    (folder / list(shards)[1]).unlink()
    with pytest.raises(CheckpointError, match=r"00002-of-00002.safetensors: no such file; download the decoder again"):
        load(directory)


@pytest.mark.parametrize("name", ["no/such/place", "./nothing", "nothing"])
def test_names_that_are_neither_directories_nor_hub_ids(name, no_network):
    from vit_lens.errors import DecoderError

    with pytest.raises(DecoderError, match=f"no decoder '{name}': it is not an existing directory; expected 'mini'"):
        load(name)


def test_mini_is_package_data(saved, tmp_path, monkeypatch):
    from vit_lens.decoders import part_files
    from vit_lens.errors import DecoderError

    monkeypatch.setitem(part_files._EMBEDDED, "mini", tmp_path / "vit_lens" / "mini" / "pair" / "decoder")
    with pytest.raises(DecoderError, match="lacks the embedded 'mini'"):
        load("mini")
    shutil.copytree(saved, tmp_path / "vit_lens" / "mini" / "pair" / "decoder")
    assert load("mini").decoder_id == "vit_lens/mini"


def test_a_path_is_a_folder_whatever_its_name(saved, tmp_path, monkeypatch):
    """Text is the name of what ships; a path called so is the user's own."""
    from vit_lens.decoders.part_files import fetch

    monkeypatch.chdir(tmp_path)
    for name in ("mini", "mini-sd"):
        shutil.copytree(saved, tmp_path / name)
        assert fetch(Path(name), []) == Path(name) and fetch(name, []) != Path(name)


def test_an_empty_directory_is_not_a_decoder(tmp_path):
    from vit_lens.errors import DecoderError

    with pytest.raises(DecoderError, match=r"scheduler_config.json: no such file; expected the published layout"):
        load(tmp_path)


def test_hub_ids_are_fetched_and_their_contract_known(saved, monkeypatch):
    import huggingface_hub

    from vit_lens.errors import DecoderError

    asked = {}

    def fetch(hub_id, allow_patterns):
        asked[hub_id] = allow_patterns
        if hub_id == "someone/offline":
            raise OSError("not reachable")
        return str(saved)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    hub_id = "kandinsky-community/kandinsky-2-2-decoder"
    loaded = load(hub_id)
    assert loaded.encoder_id == "hf/kandinsky-community/kandinsky-2-2-prior:image_encoder"
    assert loaded.decoder_id == f"hf/{hub_id}"
    assert (loaded.defaults.steps, loaded.defaults.guidance, loaded.defaults.scheduler) == (25, 4.0, "ddpm")
    assert loaded.defaults.height == 128  # the size of these parts, not of the published ones
    assert not any(pattern.endswith((".bin", "*")) for pattern in asked[hub_id])
    with pytest.raises(DecoderError, match="'someone/offline' cannot be fetched from the Hub: not reachable"):
        load("someone/offline")


def test_the_published_configurations_are_the_published_ones():
    wanted = {
        "unet": "4f30206052776397195b5f1c9df9d7f7e34f50b1cb1ad9a027856021a94b62d6",
        "movq": "b7448f3ea8aecf233629b20c1f606887e22244656edcee1be6a419079717a23e",
        "scheduler": "b0900b16ee3e47c7b1e3c3fda579835d8dbc8bb5ba8434395412fed5c732c597",
    }
    for name, digest in wanted.items():
        assert hashlib.sha256((PUBLISHED / f"{name}.json").read_bytes()).hexdigest() == digest


@pytest.fixture(scope="module")
def published():
    """The published shapes without weights."""
    import diffusers

    from vit_lens.decoders import KandinskyDecoder

    config = {name: json.loads((PUBLISHED / f"{name}.json").read_text()) for name in ("unet", "movq", "scheduler")}
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel.from_config(config["unet"])
        movq = diffusers.VQModel.from_config(config["movq"])
    scheduler = diffusers.DDPMScheduler.from_config(config["scheduler"])
    return KandinskyDecoder(unet, movq, scheduler, encoder=None, decoder_id="shapes only")


def test_the_published_shapes_make_a_decoder(published):
    from vit_lens.decoders.sampling import make_stepper

    sizes = {part: [t.numel() for t in tensors.values()] for part, tensors in published.parts().items()}
    assert (sum(sizes["unet"]), len(sizes["unet"])) == (1_253_057_288, 724)
    assert (sum(sizes["movq"]), len(sizes["movq"])) == (67_832_495, 431)
    assert published.movq.quantize.embedding.weight.numel() == 65_536
    assert published.d_embed == 1280
    assert (published.defaults.height, published.layout.multiple) == (512, 64)
    stepper = make_stepper(published.scheduler, published.settings(steps=10))
    assert stepper.timesteps == [901 - 100 * i for i in range(10)]


def test_what_the_published_shapes_cost(published):
    from vit_lens.decoders.costs import decoding_cost

    one = decoding_cost(published, published.settings(steps=1, guidance=1), 1)
    assert one.unet_flops / 1e12 == pytest.approx(0.8561, abs=5e-5)
    assert one.movq_flops / 1e12 == pytest.approx(2.000, abs=5e-4)
    assert one.weight_bytes == 4 * (1_253_057_288 + 67_832_495)
    sweep = decoding_cost(published, published.settings(), 16)
    assert sweep.unet_rows == 25 * 32 - 15  # the unguided half of the first step is one row
    assert sweep.flops == one.unet_flops * sweep.unet_rows + one.movq_flops * 16
    assert sweep.peak_bytes == max(sweep.unet_peak_bytes, sweep.movq_peak_bytes)
    assert sweep.unet_peak_bytes == pytest.approx(32 * one.unet_peak_bytes, rel=0.01)
    assert sweep.movq_peak_bytes == pytest.approx(8 * one.movq_peak_bytes, rel=0.01)  # eight at a time
