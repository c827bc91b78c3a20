"""The decoder of patch tokens: ``AutoencoderRAE`` to the bit, loaded from folders, refused for what is not its own."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_rae import ENCODERS, pictures_for, pixels_for, tiny_rae

HOOKED = ("dinov2", "siglip2")  # there is no hooked MAE
WEIGHTS = "diffusion_pytorch_model.safetensors"


def own_tokens(rae, pictures):
    """What the encoder inside gives, as AutoencoderRAE itself takes it."""
    more = [rae.config.encoder_patch_size] if rae.config.encoder_type == "mae" else []
    return rae._encoder_forward_fn(rae.encoder, rae._resize_and_normalize(pictures), *more)


@pytest.fixture(scope="module", params=list(ENCODERS))
def folder(request, tmp_path_factory):
    """A folder that diffusers saved, with what was saved."""
    rae = tiny_rae(request.param)
    path = tmp_path_factory.mktemp(request.param) / "rae"
    rae.save_pretrained(path)
    return path, rae


@pytest.mark.parametrize("kind", list(ENCODERS))
@pytest.mark.parametrize(
    "more", [{}, {"scaling_factor": 1.0}, {"statistics": False}, {"reshape_to_2d": False, "statistics": False}]
)
def test_the_models_own_tokens_give_what_autoencoder_rae_gives_to_the_bit(kind, more):
    import vit_lens as vl

    rae = tiny_rae(kind, **more)
    pictures = pictures_for(rae)
    decoder = vl.RAEDecoder(rae)
    assert torch.equal(decoder.sample(own_tokens(rae, pictures)), rae(pictures).sample)


@pytest.mark.parametrize("kind", HOOKED)
def test_the_hooked_encoder_gives_them_too(kind):
    """In float64: 1e-9 from pixels to picture, by way of the hooked model's own patch tokens."""
    import vit_lens as vl

    rae = tiny_rae(kind, dtype=torch.float64)
    pictures = pictures_for(rae)
    decoder = vl.RAEDecoder(rae)
    model = decoder.encoder
    read = decoder.read(model, pixels_for(rae, pictures))
    assert (read.tokens - own_tokens(rae, pictures)).abs().max() < 1e-9
    assert (decoder.sample(read.tokens) - rae(pictures).sample).abs().max() < 1e-9
    assert model.cfg.n_registers == (4 if kind == "dinov2" else 0)
    decoder.check(read, model)
    drawn = decoder.decode(read, negative=None, encoder=model)
    assert torch.equal(drawn, (rae(pictures).sample * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1))


def test_a_folder_is_what_was_saved(folder):
    import vit_lens as vl

    path, rae = folder
    decoder, pictures = vl.load_decoder(path), pictures_for(rae)
    assert isinstance(decoder, vl.RAEDecoder) and decoder.takes == {"tokens": 128}
    assert torch.equal(decoder.sample(own_tokens(rae, pictures)), rae(pictures).sample)
    assert decoder.encoder_id == vl.RAEDecoder(rae).encoder_id and decoder.decoder_id.startswith("local/rae@")
    if rae.config.encoder_type in HOOKED:
        ours, theirs = decoder.encoder.state_dict(), vl.RAEDecoder(rae).encoder.state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    double = vl.load_decoder(path, dtype=torch.float64)
    assert double.dtype == torch.float64
    assert (double.sample(own_tokens(rae, pictures)) - rae(pictures).sample).abs().max() < 1e-5


_NESTED = [
    (".attention.q_proj.", ".attention.attention.query."),
    (".attention.k_proj.", ".attention.attention.key."),
    (".attention.v_proj.", ".attention.attention.value."),
    (".attention.o_proj.", ".attention.output.dense."),
]
_NAMES_OF_TRANSFORMERS_4 = {
    "dinov2": _NESTED,
    "siglip2": [("encoder.", "encoder.vision_model.")],
    "mae": [
        ("encoder.layers.", "encoder.encoder.layer."),
        *_NESTED,
        (".mlp.fc1.", ".intermediate.dense."),
        (".mlp.fc2.", ".output.dense."),
    ],
}


def test_published_names_of_older_transformers_are_read(folder, tmp_path):
    """diffusers itself would leave parts of the encoder without values; positions of the decoder are computed anew."""
    import vit_lens as vl

    path, rae = folder
    older = shutil.copytree(path, tmp_path / "rae")
    renamed = {}
    for name, tensor in load_file(path / WEIGHTS).items():
        stored = name
        for new, old in _NAMES_OF_TRANSFORMERS_4[rae.config.encoder_type] if name.startswith("encoder.") else ():
            stored = stored.replace(new, old, 1)
        renamed[stored] = tensor
    assert any(name not in load_file(path / WEIGHTS) for name in renamed)
    save_file({**renamed, "decoder.decoder_pos_embed": torch.zeros(1, 10, 24)}, older / WEIGHTS, {"format": "pt"})
    ours, theirs = vl.load_decoder(older), vl.load_decoder(path)
    pictures = pictures_for(rae)
    assert torch.equal(ours.sample(own_tokens(rae, pictures)), rae(pictures).sample)
    mine, others = (one._inside.state_dict() for one in (ours, theirs))
    assert all(torch.equal(mine[name], others[name]) for name in others)


def test_statistics_that_no_file_holds_are_those_of_the_config(folder, tmp_path):
    """Published files of earlier versions hold none; the config does."""
    import vit_lens as vl

    path, rae = folder
    older = shutil.copytree(path, tmp_path / "rae")
    tensors = load_file(path / WEIGHTS)
    kept = {name: value for name, value in tensors.items() if not name.startswith(("_latents", "encoder_"))}
    assert len(kept) == len(tensors) - 4
    save_file(kept, older / WEIGHTS, {"format": "pt"})
    pictures = pictures_for(rae)
    assert torch.equal(vl.load_decoder(older).sample(own_tokens(rae, pictures)), rae(pictures).sample)


def test_from_a_pipeline_in_memory():
    import vit_lens as vl

    class Pipeline:
        vae = tiny_rae("siglip2")

    assert vl.RAEDecoder(Pipeline()).part.decoder is Pipeline.vae.decoder
    with pytest.raises(vl.errors.DecoderError, match=r"a Linear is no AutoencoderRAE.*pipeline\.vae"):
        vl.RAEDecoder(torch.nn.Linear(2, 2))


def test_batches_pad_and_agree():
    import vit_lens as vl

    rae = tiny_rae()
    decoder, tokens = vl.RAEDecoder(rae), own_tokens(rae, pictures_for(rae, 5))
    whole = decoder.decode(vl.Condition(tokens=tokens), batch_size=5)
    assert whole.shape == (5, 15, 15, 3) and whole.dtype == torch.uint8
    parts = decoder.decode(vl.Condition(tokens=tokens), batch_size=2)
    one = decoder.decode(vl.Condition(tokens=tokens[3:4]), batch_size=2)
    assert torch.equal(parts[3:4], one)
    assert (parts.int() - whole.int()).abs().max() <= 1


def test_memory_that_runs_out_halves_the_rows(monkeypatch):
    import vit_lens as vl

    rae = tiny_rae()
    decoder, tokens = vl.RAEDecoder(rae), own_tokens(rae, pictures_for(rae, 5))
    whole, told, forward = decoder.decode(vl.Condition(tokens=tokens), batch_size=1), [], decoder.part.forward

    def short(given):
        if len(given) > 1:
            raise MemoryError("out of memory")
        return forward(given)

    monkeypatch.setattr(decoder.part, "forward", short)
    found = decoder.decode(vl.Condition(tokens=tokens), batch_size=4, on_smaller=told.append)
    assert told == [2, 1] and torch.equal(found, whole)
    monkeypatch.setattr(decoder.part, "forward", lambda given: short([0, 0]))
    with pytest.raises(vl.errors.DecoderError, match="one picture does not fit"):
        decoder.decode(vl.Condition(tokens=tokens), batch_size=1)


def test_the_cost_is_counted_and_grows_with_rows():
    import vit_lens as vl

    rae = tiny_rae()
    decoder = vl.RAEDecoder(rae)
    one, four = (decoder.cost(decoder.defaults, rows) for rows in (1, 4))
    # Of the decoder's matrices alone, for nine tokens and the class token: two operations a weight and token.
    matrices = sum(p.numel() for p in rae.decoder.parameters() if p.ndim == 2)
    assert 2 * 9 * matrices * 0.9 < one.flops < 2 * 10 * matrices * 1.3
    assert 3.9 < four.flops / one.flops < 4.1 and four.peak_bytes > 2.5 * one.peak_bytes
    assert one.weight_bytes == sum(p.numel() * 4 for p in rae.decoder.parameters())
    vl.decoders.check_decoder(decoder)


def test_identity_says_what_changes_a_picture():
    import vit_lens as vl

    rae = tiny_rae()
    decoder = vl.RAEDecoder(rae)
    before = decoder.identity()
    json.dumps(before)
    assert before["encoder_type"] == "dinov2" and before["scaling_factor"] == 1.3
    with torch.no_grad():
        rae.decoder.decoder_pred.bias[0] += 1e-3
    assert decoder.identity()["fingerprint"] != before["fingerprint"]
    rae._latents_mean.add_(1e-3)
    assert decoder.identity()["fingerprint"] not in (before["fingerprint"], "")


# ---- whose tokens


def test_the_encoder_is_told_by_its_weights():
    import vit_lens as vl

    rae = tiny_rae()
    decoder = vl.RAEDecoder(rae)
    own = decoder.encoder
    decoder.check_encoder(own)
    renamed = vl.HookedViT(own.cfg, preprocess_spec=own.preprocess_spec, encoder_id="hf/somebody/renamed")
    renamed.load_weights({name: tensor.clone() for name, tensor in own.state_dict().items()})
    decoder.check_encoder(renamed)  # the same weights under another name
    with torch.no_grad():  # as published: the last norm has a gain and a bias, which patch tokens do not have
        renamed.ln_final.w.mul_(1.7)
        renamed.ln_final.b.add_(0.3)
    decoder.check_encoder(renamed)
    with torch.no_grad():
        renamed.blocks[0].mlp.W_in[0, 0] += 1.0
    with pytest.raises(vl.errors.ContractError, match=r"its own encoder.*another blocks\.0\.mlp\.W_in"):
        decoder.check_encoder(renamed)
    with pytest.raises(vl.errors.ContractError, match=r"d_model|n_layers|image_size"):
        decoder.check_encoder(vl.HookedViT.from_pretrained("mini"))
    with pytest.raises(vl.errors.ContractError, match=r"was made for encoder"):
        decoder.check_encoder("hf/facebook/dinov2-with-registers-base")
    with pytest.raises(vl.errors.ContractError, match=r"its own encoder"):
        vl.RAEDecoder(tiny_rae(seed=5), encoder=own)


def test_an_edited_or_processed_encoder_counts_by_its_name():
    import vit_lens as vl

    decoder = vl.RAEDecoder(tiny_rae())
    own = decoder.encoder
    decoder.check_encoder(own.process_weights(fold_value_biases=True))
    edited = vl.HookedViT.from_module(own.process_weights()) if False else own
    with torch.no_grad():
        edited.blocks[0].mlp.W_in[0, 0] += 1.0
    rae = tiny_rae()
    with pytest.warns(UserWarning, match="weights were changed since"):
        vl.RAEDecoder(rae).check_encoder(edited)


def test_published_sizes_have_published_names():
    from vit_lens.decoders.rae_encoder import ENCODER_TYPES

    assert ENCODER_TYPES["dinov2"].published[768, 12] == "hf/facebook/dinov2-with-registers-base"
    assert set(ENCODER_TYPES) == set(__import__("diffusers").models.autoencoders.autoencoder_rae._ENCODER_FORWARD_FNS)


# ---- wrong input


def test_conditions_that_are_not_all_patch_tokens_are_refused():
    import vit_lens as vl

    rae = tiny_rae()
    decoder, tokens = vl.RAEDecoder(rae), own_tokens(rae, pictures_for(rae))
    bad, nan = vl.errors.ContractError, tokens.clone()
    nan[1, 2, 3] = torch.nan
    for given, told in (
        (torch.zeros(2, 128), r"takes tokens \[9, 128\], got pooled \[128\].*not an embedding"),
        (vl.Condition(tokens=tokens, pooled=torch.zeros(2, 128)), "got tokens .* and pooled"),
        (vl.Condition(tokens=tokens, mask=torch.ones(2, 9, dtype=torch.bool)), "got tokens .* and mask"),
        (vl.Condition(tokens=torch.zeros(2, 10, 128)), r"10 tokens, which is no square.*takes 9, a grid of 3 x 3"),
        (vl.Condition(tokens=torch.zeros(2, 16, 128)), r"16 tokens; decoder .* takes 9"),
        (vl.Condition(tokens=torch.zeros(2, 9, 64)), r"tokens are 64 wide, but the decoder takes 128"),
        (vl.Condition(tokens=nan), r"NaN or infinite values in rows \[1\]"),
        (vl.Condition(tokens=torch.zeros(0, 9, 128)), "no rows"),
    ):
        with pytest.raises(bad, match=told):
            decoder.decode(given)
    with pytest.raises(bad, match="no guidance"):
        decoder.decode(vl.Condition(tokens=tokens), negative=vl.Condition(tokens=tokens[:1]))
    with pytest.raises(vl.errors.DecoderError, match="15 x 15 alone"):
        decoder.decode(vl.Condition(tokens=tokens), settings=decoder.settings(height=30))
    with pytest.raises(vl.errors.DecoderError, match="no decoder setting 'steps'"):
        decoder.settings(steps=3)
    with torch.no_grad():
        rae.decoder.decoder_norm.weight[0] = torch.inf
    with pytest.raises(vl.errors.DecoderError, match="NaN or infinite"):
        decoder.decode(vl.Condition(tokens=tokens))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"encoder_type": "dinov3"}, r"encoder_type is 'dinov3'; nearest: 'dinov2'"),
        ({"encoder_type": 7}, r"encoder_type is 7"),
        ({"encoder_hidden_size": 100}, r"multiple of 64"),
        ({"encoder_hidden_size": 10**9}, r"encoder_hidden_size is 1000000000"),
        ({"encoder_input_size": 43}, r"multiple of encoder_patch_size"),
        ({"encoder_patch_size": 0}, r"encoder_patch_size is 0"),
        ({"decoder_num_hidden_layers": True}, r"decoder_num_hidden_layers is True"),
        ({"decoder_num_attention_heads": 7}, r"decoder_hidden_size is 24"),
        ({"image_size": 16}, r"image_size is 16; expected 15"),
        ({"num_channels": 4}, r"num_channels is 4"),
        ({"scaling_factor": 0}, r"scaling_factor is 0"),
        ({"latents_mean": ["x"]}, r"latents_mean is \['x'\]"),
        ({"latents_mean": [[1.0], [1.0, 2.0]]}, r"latents_mean is no tensor"),
        ({"latents_mean": [1.0, 2.0]}, r"does not fit its config\.json"),
        ({"encoder_norm_mean": [0.5]}, r"three numbers"),
        ({"encoder_typ": "dinov2"}, r"no setting 'encoder_typ'; nearest: 'encoder_type'"),
        ({"_class_name": "AutoencoderKL"}, r"no decoder here reads a AutoencoderKL"),
    ],
)  # fmt: skip
def test_a_folder_that_is_not_one_is_refused(tmp_path, changed, told):
    import vit_lens as vl

    folder = _saved(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changed))
    with pytest.raises(vl.VitLensError, match=told):
        vl.load_decoder(folder)


def _saved(tmp_path):
    if not (saved := tmp_path.parent / "saved_rae").exists():
        tiny_rae(layers=1).save_pretrained(saved)
    return shutil.copytree(saved, tmp_path / "rae")


def test_damaged_weights_are_refused(tmp_path):
    import vit_lens as vl

    folder = _saved(tmp_path)
    whole = (folder / WEIGHTS).read_bytes()
    for data in (whole[: len(whole) // 2], b"", b"\xff" * 64):
        (folder / WEIGHTS).write_bytes(data)
        with pytest.raises(vl.errors.CheckpointError, match="not a whole safetensors file"):
            vl.load_decoder(folder)
    (folder / WEIGHTS).write_bytes(whole)
    tensors = load_file(folder / WEIGHTS)
    lost = {name: value for name, value in tensors.items() if name != "encoder.encoder.layer.0.mlp.fc1.weight"}
    save_file(lost, folder / WEIGHTS)
    with pytest.raises(vl.errors.CheckpointError, match=r"1 missing: encoder\.encoder\.layer\.0\.mlp\.fc1\.weight"):
        vl.load_decoder(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(vl.errors.CheckpointError, match="holds no diffusion_pytorch_model"):
        vl.load_decoder(folder)


def test_a_folder_without_its_encoder_needs_a_card(tmp_path):
    import vit_lens as vl

    folder = _saved(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"encoder_type": "outside", "encoder_hidden_size": 128}))
    kept = {name: value for name, value in load_file(folder / WEIGHTS).items() if not name.startswith("encoder.")}
    save_file(kept, folder / WEIGHTS)
    with pytest.raises(vl.errors.ContractError, match="does not say which encoder"):
        vl.load_decoder(folder)
    assert vl.load_decoder(folder, encoder="mini").encoder_id == "vit_lens/mini"
    (folder / "vit_lens.json").write_text(json.dumps({"encoder_id": "hf/mine/encoder"}))
    decoder = vl.load_decoder(folder)
    assert decoder.encoder_id == "hf/mine/encoder"
    with pytest.raises(vl.errors.ContractError, match="was made for encoder 'hf/mine/encoder'"):
        decoder.check_encoder(vl.HookedViT.from_pretrained("mini"))
    with pytest.raises(vl.errors.DecoderError, match="holds no encoder"):
        decoder.encoder  # noqa: B018
