"""Sweeps with the counterfactual lens and projections: readings, captions, pictures of anchors, pages, merging."""

import json

import pytest
import tiny_sweep
import torch


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """A small tower, three pictures of which one is swept, others as anchors and gallery, captions."""
    import vit_lens as vl

    folder = tmp_path_factory.mktemp("pictures")
    model, paths = tiny_sweep.tower(), tiny_sweep.pictures(folder)
    generator = torch.Generator().manual_seed(0)
    width = model.cfg.d_embed
    bank = vl.TextBank(
        captions=tuple("abcdef"), embeds=torch.randn(6, width, generator=generator), logit_scale=1.0, logit_bias=None,
        encoder_id=model.encoder_id,
    )  # fmt: skip
    means = vl.ReferenceMeans.from_images(model, paths)
    return model, paths, bank, means, vl.readers.Gallery.from_folder(model, folder)


LENSES = ["counterfactual:share=0.7", "diffusion:project=20"]


def test_a_record_holds_each_anchor_with_its_picture_and_averaged_captions(setting, tmp_path):
    import vit_lens as vl
    from vit_lens.lenses import OwnPictureWarning

    model, paths, bank, means, gallery = setting
    options = dict(
        lens=LENSES, anchors=paths[1:], reference=means, sites=["L0H1", "L1.mlp"], controls=True,
        beside=vl.Beside(texts=bank, gallery=gallery),
    )  # fmt: skip
    with pytest.warns(OwnPictureWarning, match=r"as 'a.png'"):
        record = vl.sweep(model, None, paths[:1], out=tmp_path / "whole", **options)
    again = vl.Record.load(tmp_path / "whole")
    names = [(one.lens, one.settings.get("anchor"), one.control) for one in again.readings.values()]
    anchors = ["<b>&.png", "c.png"]
    assert names == [
        *(("counterfactual", anchor, control) for anchor in anchors for control in ("", "random")),
        ("diffusion", None, ""), ("diffusion", None, "random"),
    ]  # fmt: skip
    lens = vl.CounterfactualLens(anchors=vl.Anchors.of(model, paths[1:]), norms=means.differences, share=0.7)
    _, cache = model.run_with_cache(model.preprocess(paths[:1]))
    apart = lens.embed_each(cache, ["L0H1", "L1.mlp"])[:, 0]
    held = record.embeddings["lens"]
    for place, rows in enumerate(([0, 1], [4, 5])):
        assert torch.allclose(held[rows], apart[place], atol=1e-4)
    mean = bank.cosines(apart).mean(0)
    for row, site in ((0, 0), (1, 1), (4, 0), (5, 1)):
        said = again.readouts.of(row)["captions"]["averaged"]
        best = mean[site].sort(descending=True).indices[:4].tolist()
        assert [one["caption"] for one in said] == [bank.captions[index] for index in best]
        assert [one["cosine"] for one in said] == pytest.approx(mean[site][best].tolist(), abs=1e-5)
    assert all(again.readouts.of(row)["captions"]["averaged"] for row in (2, 3, 6, 7))  # of the controls, too
    assert not again.readouts.of(8)["captions"]["averaged"]
    near = vl.ProjectedLens(lens=vl.DiffusionLens(), gallery=gallery, kappa=20)
    with pytest.warns(OwnPictureWarning):
        assert torch.allclose(held[[8, 9]], near.embed(cache, ["L0H1", "L1.mlp"])[0], atol=1e-4)
    first, _, second, *_ = again.readings
    assert again.anchor(first).size == (20, 20) and again.anchor(first).tobytes() != again.anchor(second).tobytes()
    with pytest.raises(vl.errors.RecordError, match=r"starts from no other picture"):
        again.anchor(list(again.readings)[4])
    with pytest.raises(vl.errors.RecordError, match=r"no reading 'x'"):
        again.anchor("x")
    page = vl.write_report(again).read_text()
    data = json.loads(page.split('<script type="application/json" id="data">')[1].split("</script>")[0])
    assert "averaged" in page and "anchor: what is changed" in page
    assert [bool(group["anchor_thumb"]) for group in data["groups"]] == [True] * 4 + [False] * 2
    with pytest.warns(OwnPictureWarning):
        for part in range(2):
            vl.sweep(
                model, None, paths[:1], out=tmp_path / str(part), execution=vl.Execution(shard=(part, 2)),
                drawing=vl.Drawing(batch_size=5), **options,
            )  # fmt: skip
    merged = vl.records.merge([tmp_path / "0", tmp_path / "1"], tmp_path / "merged")
    assert merged.anchor(second).tobytes() == again.anchor(second).tobytes()
    assert torch.equal(merged.embeddings["lens"], held)
    assert merged.readouts.of(5) == again.readouts.of(5)


def test_means_leave_out_what_a_lens_starts_from(setting):
    import vit_lens as vl

    model, paths, _, means, gallery = setting
    lens = vl.CounterfactualLens(anchors=vl.Anchors.of(model, paths[:2]), norms=means.differences)
    found = vl.readers.SiteMeans.of_gallery(model, gallery, [lens], "heads")
    assert [one.n for one in found] == [2, 2]
    _, cache = model.run_with_cache(model.preprocess([paths[1], paths[2]]))
    first = lens.each()[0]
    assert torch.allclose(found[0].values, first.embed(cache, "heads").mean(0), atol=1e-5)
    own = vl.ProjectedLens(lens=vl.DiffusionLens(), gallery=gallery)
    assert vl.readers.SiteMeans.of_gallery(model, gallery, [own], "heads")[0].n == 3  # silently: each on the others
    with pytest.raises(vl.errors.LensError, match=r"every image is an anchor"):
        vl.readers.SiteMeans.from_images(model, paths[:1], "heads", lens=first)


def test_an_input_that_is_an_anchor_stops_the_sweep(setting, tmp_path):
    import vit_lens as vl

    model, paths, _, means, _ = setting
    with pytest.raises(vl.errors.LensError, match=r"image 0 is the anchor 'a.png' itself"):
        vl.sweep(
            model, None, paths[:1], lens="counterfactual", anchors=paths[0], reference=means, sites="mlp",
            out=tmp_path / "out",
        )  # fmt: skip
    with pytest.raises(vl.errors.LensError, match=r"anchors= serve the lenses counterfactual and"):
        vl.plan(model, None, paths[:1], lens="diffusion", anchors=paths[1:])
    with pytest.raises(vl.errors.LensError, match=r"counterfactual starts from other images"):
        vl.plan(model, None, paths[:1], lens="counterfactual", reference=means, sites="mlp")
    with pytest.raises(vl.errors.LensError, match=r"counterfactual needs reference means"):
        vl.plan(model, None, paths[:1], lens="counterfactual", anchors=paths[1:], sites="mlp")
    with pytest.raises(vl.errors.LensError, match=r"projects on a gallery, and there is none"):
        vl.plan(model, None, paths[:1], lens="diffusion:project")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lens", "counterfactual"], "give --anchors IMAGES"),
        (["--lens", "diffusion", "--anchors", "{1}"], "--anchors serve the lenses counterfactual and"),
        (["--lens", "counterfactual", "--anchors", "{0}"], "is among the images that are shown"),
        (["--lens", "dsl:alpha=3:project=40", "--model", "ViT-B-32"], "give --gallery FOLDER"),
        (
            ["--lens", "diffusion", "--reference", "x.safetensors"],
            "--reference serves the lenses dsl-mean, counterfactual and",
        ),
        (["--lens", "counterfactual:share=-1", "--anchors", "{1}"], "expected a number above 0"),
    ],
)
@pytest.mark.parametrize("command", ["sweep", "readout"])
def test_commands_refuse_what_is_lacking_before_they_load(vit_lens, setting, command, arguments, message):
    paths = setting[1]
    given = [one.format(*paths) for one in arguments]
    status, _, told = vit_lens(command, paths[0], "--captions", "a cat,a dog", *given)
    assert status and message in " ".join(told.split()), told


def test_the_command_reads_and_draws_with_both(vit_lens, tmp_path):
    """On the embedded pair: anchors and a gallery of its world, its own reference means."""
    import numpy as np
    from PIL import Image

    import vit_lens as vl
    from vit_lens.mini import sample_images, world

    scenes = world.render_codes(world.sample_codes(5, np.random.default_rng(1)))
    for folder, some in (("gallery", scenes[:3]), ("anchors", scenes[3:])):
        (tmp_path / folder).mkdir()
        for place, scene in enumerate(some):
            Image.fromarray(scene).save(tmp_path / folder / f"{place}.png")
    status, _, told = vit_lens(
        "sweep", sample_images()[0], "--lens", "counterfactual", "--lens", "counterfactual:share=1:project",
        "--anchors", tmp_path / "anchors", "--gallery", tmp_path / "gallery", "--sites", "L6.mlp", "--steps", "1",
        "--guidance", "1", "--out", tmp_path / "out", "--no-live",
    )  # fmt: skip
    assert not status, told
    record = vl.Record.load(tmp_path / "out")
    assert [one.label for one in record.readings.values()] == [
        *(f"counterfactual, share 0.5, anchor {name}.png" for name in "01"),
        *(f"counterfactual, share 1, anchor {name}.png, projected (kappa 40)" for name in "01"),
    ]
    assert record.complete and record.picture(3).size == (64, 64)
