"""A real, trained tower on photographs: what random weights cannot show. Run by ``pytest -m real``; see real_vit.py."""

import pytest
import real_vit
import torch
from torch.nn.functional import cosine_similarity

pytestmark = pytest.mark.real
MASSIVE = 278  # the dimension that holds most of the class token's residual stream


@pytest.fixture(scope="session")
def real():
    try:
        return real_vit.fetch()
    except real_vit.Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def photographs(real):
    return sorted((real / "photographs").iterdir())


@pytest.fixture(scope="module")
def model(real):
    from vit_lens import HookedViT

    return HookedViT.from_pretrained(real / "model").requires_grad_(False)


@pytest.fixture(scope="module")
def seen(model, photographs):
    """The embeddings of the photographs, and the cache of everything."""
    return model.run_with_cache(model.preprocess(photographs))


@pytest.fixture(scope="module")
def source(real):
    from transformers import Dinov2Model

    return Dinov2Model.from_pretrained(real / "model", attn_implementation="eager").eval()


# ---- the same numbers as the sources ----------------------------------------------------------------------------


def test_verify_in_three_dtypes(model, real, photographs):
    result = model.verify(real / "model", images=photographs)
    assert result.passed, result
    worst = {dtype: max(row.relative for row in rows) for dtype, rows in result.differences.items()}
    # Hugging Face fits the positions to 224 pixels in float32, whatever the model's dtype is.
    assert worst[torch.float64] < 1e-6 and worst[torch.float32] < 1e-5 and worst[torch.bfloat16] < 5e-2


def test_hugging_face_in_float64(model, seen, source, photographs):
    pixels = model.preprocess(photographs)
    with torch.no_grad():
        found = source(pixels, output_hidden_states=True, output_attentions=True)
    embeds, cache = seen
    assert (found.pooler_output - embeds).abs().max() < 1e-4
    for layer in range(12):
        expected = found.hidden_states[layer + 1]
        assert (cache["resid_post", layer] - expected).norm() < 1e-5 * expected.norm()
        assert (cache["pattern", layer] - found.attentions[layer]).abs().max() < 1e-4


def test_timm_at_the_size_of_the_positions(real, source, photographs):
    from timm.models.vision_transformer import vit_small_patch14_dinov2

    from vit_lens import HookedViT

    theirs = vit_small_patch14_dinov2(pretrained=False).double().eval()
    theirs.load_state_dict(_timm_names(real))
    ours = HookedViT.from_pretrained(real / "model", image_size=518, dtype=torch.float64)
    pixels = ours.preprocess(photographs[:1])
    with torch.no_grad():
        assert (theirs(pixels) - ours(pixels)).abs().max() < 1e-10
        assert (HookedViT.from_module(theirs)(pixels) - ours(pixels)).abs().max() < 1e-10


def _timm_names(real):
    from safetensors.torch import load_file

    held = {name: value.double() for name, value in load_file(real / "model" / "model.safetensors").items()}
    embeddings, layer = "embeddings.", "encoder.layer.{}."
    plain = {"cls_token": "cls_token", "position_embeddings": "pos_embed"}
    named = {ours: held[embeddings + theirs] for theirs, ours in plain.items()}
    for part in ("weight", "bias"):
        named[f"patch_embed.proj.{part}"] = held[f"{embeddings}patch_embeddings.projection.{part}"]
        named[f"norm.{part}"] = held[f"layernorm.{part}"]
        for i in range(12):
            at, block = layer.format(i), f"blocks.{i}."
            qkv = [held[f"{at}attention.attention.{name}.{part}"] for name in ("query", "key", "value")]
            named[f"{block}attn.qkv.{part}"] = torch.cat(qkv)
            named[f"{block}attn.proj.{part}"] = held[f"{at}attention.output.dense.{part}"]
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                named[f"{block}{name}.{part}"] = held[f"{at}{name}.{part}"]
    for i in range(12):
        for k in (1, 2):
            named[f"blocks.{i}.ls{k}.gamma"] = held[f"{layer.format(i)}layer_scale{k}.lambda1"]
    return named


def test_pixels_are_those_of_the_processor(model, real, photographs):
    from PIL import Image
    from transformers import BitImageProcessor

    processor = BitImageProcessor.from_pretrained(real / "model")
    images = [Image.open(path).convert("RGB") for path in photographs]
    theirs = processor(images, return_tensors="pt")["pixel_values"]
    ours = model.preprocess(photographs)
    assert ours.shape == theirs.shape == (8, 3, 224, 224)
    one_level = 1 / 255 / min(model.preprocess_spec.std)
    assert (ours - theirs).abs().max() < 2.1 * one_level  # theirs may resize in tensors, which round otherwise
    assert (ours - theirs).abs().mean() < 0.05 * one_level


# ---- what is read off them --------------------------------------------------------------------------------------


def test_parts_sum_to_the_embedding(real, seen, photographs):
    import vit_lens as vl

    exact = vl.HookedViT.from_pretrained(real / "model", dtype=torch.float64).requires_grad_(False)
    embeds, cache = exact.run_with_cache(exact.preprocess(photographs[:2]))
    parts = vl.attribution.split_embedding(cache)
    assert (parts.total - embeds).abs().max() < 1e-11
    neurons = vl.attribution.split_embedding(cache, neuron_layers=[11])
    assert len(neurons) > 1536 and (neurons.total - embeds).abs().max() < 1e-11
    assert (vl.attribution.split_embedding(seen[1]).total - seen[0]).abs().max() < 1e-4


def test_attention_maps_are_the_sources(seen, source, model, photographs):
    import vit_lens as vl

    with torch.no_grad():
        expected = source(model.preprocess(photographs), output_attentions=True).attentions[11][:, 4, 0, 1:]
    found = vl.attribution.attention_map(seen[1], 11, 4)
    assert found.values.shape == (8, 16, 16)
    assert (found.values.flatten(1) - expected).abs().max() < 1e-4


def test_a_bank_of_images_stands_for_captions(seen, model, photographs):
    """A tower without a text tower: docs/readouts.md, "Captions for a tower without text"."""
    import vit_lens as vl

    embeds, cache = seen
    bank = vl.TextBank(
        captions=tuple(path.stem for path in photographs),
        embeds=embeds,
        logit_scale=10.0,
        logit_bias=None,
        encoder_id=model.encoder_id,
    )
    bank.check(model)
    last = vl.readers.zero_shot_lens(cache, bank, "L11.resid_post").to_frame(k=1)
    assert last.caption.tolist() == [path.stem for path in photographs]
    maps = vl.readers.zero_shot_maps(cache, bank, "L11.resid_post")
    assert maps.of().shape == (8, 1, 16, 16, 8)


def test_retrieval_finds_the_same_picture_in_another_frame(model, real, photographs, tmp_path):
    from PIL import Image

    import vit_lens as vl

    gallery = vl.readers.Gallery.from_folder(model, real / "photographs")
    cropped = tmp_path / "cropped.png"
    with Image.open(photographs[0]) as image:
        image.convert("RGB").crop((40, 0, 490, 450)).save(cropped)
    _, cache = model.run_with_cache(model.preprocess([cropped]))
    near = vl.readers.retrieval_lens(cache, gallery, ["L11.resid_post"], images=[cropped], k=1).to_frame()
    assert near[(near.form == "raw") & (near.control == "")].name.tolist() == [photographs[0].name]


# ---- what real weights showed -----------------------------------------------------------------------------------


def test_one_dimension_holds_most_of_the_class_token(seen):
    """Massive activations (Sun et al. 2024, arXiv 2402.17762): in the class token alone, from L2 to L10."""
    for layer in range(12):
        residual = seen[1]["resid_post", layer]
        share = (residual.square() / residual.square().sum(-1, keepdim=True))[:, 0]
        is_massive = share.mean(0).argmax() == MASSIVE and (share[:, MASSIVE] > 0.3).all()
        assert bool(is_massive) == (2 <= layer <= 10)
        patches = residual[:, 1:].norm(dim=-1)
        assert (patches.amax(1) < 2 * patches.median(1).values).all()  # no patch stands out by its norm


@pytest.mark.parametrize(
    "site, own, isotropic, other",
    [
        ("L2.mlp", 0.944, 0.835, 0.945),
        ("L6.mlp", 0.896, 0.703, 0.896),
        ("L7.mlp", 0.879, 0.735, 0.882),
        ("L8.mlp", 0.724, 0.472, 0.712),
        ("L9.mlp", 0.480, 0.229, 0.469),
    ],
)
def test_a_random_direction_of_equal_norm_is_a_weak_control_here(seen, site, own, isotropic, other):
    """A site is above a random direction, and says no more of its image than the same site of another one does.

    The mean cosine with the image's embedding, steering at D1's alpha of 10; the numbers are those of this tower.
    """
    import vit_lens as vl

    embeds, cache = seen
    lens = vl.DiffusionSteeringLens(alpha=10.0)
    draws = [
        vl.readers.site_embeddings(
            cache, [site], lens=lens, controls=["random", "other"], generator=torch.Generator().manual_seed(seed)
        ).values
        for seed in range(8)
    ]
    found = {
        control: torch.stack([cosine_similarity(draw[control][:, 0], embeds, dim=-1) for draw in draws]).mean().item()
        for control in ("", "random", "other")
    }
    assert found[""] == pytest.approx(own, abs=2e-3)
    assert found["other"] == pytest.approx(other, abs=2e-3)
    assert found["random"] == pytest.approx(isotropic, abs=2e-2)
    assert found[""] - found["random"] > 0.09 and abs(found[""] - found["other"]) < 0.015


@pytest.fixture(scope="module")
def drawn(model, photographs):
    """Every control of D1 at alpha 10, means over draws: of a bank in which no image stands in for itself."""
    import vit_lens as vl

    bank = vl.ControlBank.from_images(model, photographs)
    embeds, cache = model.run_with_cache(model.preprocess(photographs), rows="readout")
    lens, sites = vl.DiffusionSteeringLens(alpha=10.0), ["L2.mlp", "L6.mlp", "L7.mlp", "L8.mlp", "L9.mlp"]
    found = {"": cosine_similarity(lens.embed(cache, sites), embeds[:, None], dim=-1).mean(0)}
    for control in vl.controls.CONTROLS:
        generator, cosines = torch.Generator().manual_seed(0), []
        for turn in range(7):
            others = bank.others(bank.hashes, turn=turn)
            against = vl.controls.Against(control=control, generator=generator, others=others)
            read = lens.pooled_against(cache, sites, against)
            cosines.append(cosine_similarity(read, embeds[:, None], dim=-1))
        found[control] = torch.stack(cosines).mean((0, 1))
    return found


def test_another_images_output_shows_what_the_isotropic_control_hides(drawn):
    """By random directions these sites are about their image; by another image's output they say the same of all."""
    own = drawn[""]
    assert (own - drawn["random"] > 0.1).all()
    assert ((own - drawn["other"]).abs() < 0.02).all()
    assert (own - drawn["random"] > 8 * (own - drawn["other"]).abs()).all()


def test_a_covariance_matched_direction_keeps_the_massive_dimension(drawn):
    """Since it is taken about what the lens measures outputs from: it explains most of what isotropy leaves."""
    own, left = drawn[""], drawn[""] - drawn["covariance"]
    assert (left > 0).all() and (left < 0.5 * (own - drawn["random"])).all()


def test_a_sweep_ranks_by_the_nearest_control(model, photographs, tmp_path):
    """What a budget refines first is not the massive site, as it was by the isotropic control alone."""
    import vit_lens as vl
    from vit_lens.sweeping.order import refining_groups

    lens, sites = vl.DiffusionSteeringLens(alpha=10.0), ["L8.mlp", "L9.mlp", "L11.mlp", "L11.attn", "L9H3"]
    record = vl.sweep(
        model, None, photographs, lens=lens, sites=sites, controls=vl.Controls(draws=7), out=tmp_path / "r"
    )
    table = record.table[record.table["reading"] == next(iter(record.readings))].reset_index(drop=True)
    table = table.assign(row=range(len(table)))
    gap = {name: (table["cos_lens_clean"] - table[f"cos_lens_{name}"]).abs() for name in ("control", "other")}
    massive = table["site"].isin(["L8.mlp", "L9.mlp"])
    assert gap["control"][massive].mean() > 8 * gap["other"][massive].mean()
    of = dict.fromkeys(record.readings, "")
    older = table.drop(columns=["cos_lens_other", "cos_lens_covariance"])
    places = [
        [index for index, group in enumerate(refining_groups(rows, of)) if massive[group].any()]
        for rows in (older, table)
    ]
    assert sum(places[0]) + 8 < sum(places[1])  # later, over eight images


def test_standardised_controls_are_not_fooled_by_it_either(model, photographs):
    """Length that counts every dimension alike: the isotropic control comes near the site's own likeness."""
    import vit_lens as vl

    bank = vl.ControlBank.from_images(model, photographs)
    embeds, cache = model.run_with_cache(model.preprocess(photographs), rows="readout")
    lens, found = vl.DiffusionSteeringLens(alpha=10.0), {}
    own = cosine_similarity(lens.embed(cache, "L9.mlp")[:, 0], embeds, dim=-1).mean()
    for normalise in (None, "std", "whiten"):
        generator, cosines = torch.Generator().manual_seed(0), []
        for _ in range(8):
            against = vl.controls.Against(
                control="random", generator=generator, others=bank.others(bank.hashes), normalise=normalise
            )
            read = lens.pooled_against(cache, "L9.mlp", against)[:, 0]
            cosines.append(cosine_similarity(read, embeds, dim=-1).mean())
        found[normalise] = torch.stack(cosines).mean()
    assert own - found[None] > 0.2 and own - found["std"] < 0.1 and own - found["whiten"] < 0.1
