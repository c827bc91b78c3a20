"""The advice of messages works: for each class of error a mistake, what its message says to do, and that done.

Each row is ``class, mistake, advice, cure``: the advice stands in the message, and the cure follows it to the letter
wherever the advice is code.
"""

import pytest
import torch

ADVICE = [
    ("UnknownHookError", "model.run_with_cache(pixels, names_filter='blocks.3.hook_z')",
     "'blocks.3.attn.hook_z'", "model.run_with_cache(pixels, names_filter='blocks.3.attn.hook_z')"),
    ("UnknownHookError", "heads.decompose_resid()",
     "names_filter=lambda name: name.endswith(('hook_embed', 'hook_pos_embed', 'hook_attn_out', 'hook_mlp_out'))",
     "model.run_with_cache(pixels, names_filter=lambda name: name.endswith(('hook_embed', 'hook_pos_embed', "
     "'hook_attn_out', 'hook_mlp_out')))[1].decompose_resid()"),
    ("UnfiredHookError", "model.run_with_hooks(pixels, bwd_hooks=[(z, lambda grad, hook: None)])",
     "with model.hooks(bwd_hooks=", "with model.hooks(bwd_hooks=[(z, seen)]):\n    model(pixels).sum().backward()"),
    ("HookShapeError", "model.run_with_hooks(pixels, fwd_hooks=[(z, lambda act, hook: act[:, :1])])",
     "must keep shape", "model.run_with_hooks(pixels, fwd_hooks=[(z, lambda act, hook: act * (act > 0))])"),
    ("BatchAxisError", "cache.remove_batch_dim()",
     "cache.apply_slice_to_batch_dim(0)", "cache.apply_slice_to_batch_dim(0)"),
    ("UnknownSiteError", "vl.Site.parse('3.mlp')", "'L3.mlp'", "vl.Site.parse('L3.mlp')"),
    ("LensError", "vl.DiffusionSteeringLens(alpha=5.0).embed(cache, ['L3.resid_post'])",
     "DiffusionLens()", "vl.DiffusionLens().embed(cache, ['L3.resid_post'])"),
    ("LensError", "vl.DiffusionLens().embed(model.run_with_cache(pixels, pos_slice=0)[1], 'L3H1')",
     "rows='readout'", "vl.DiffusionLens().embed(model.run_with_cache(pixels, rows='readout')[1], 'L3H1')"),
    ("InterventionError",
     "model.run_with_hooks(pixels, fwd_hooks=interventions.patch(model, 'L3H1', model.run_with_cache(pixels[:1])[1]))",
     "images=", "model.run_with_hooks(pixels, fwd_hooks=interventions.patch("
     "model, 'L3H1', model.run_with_cache(pixels[:1])[1], images=0))"),
    ("ReferenceMismatchError", "vl.ReferenceMeans.load('mini').check(folded)",
     "ReferenceMeans.from_images(model, images)",
     "vl.ReferenceMeans.from_images(folded, images).check(folded)"),
    ("TextError", "bank.index('a rong')", "'a ring'", "bank.index('a ring')"),
    ("TextError", "vl.TextBank.mini(['a picture'])", "red", "vl.TextBank.mini(['a red ring'])"),
    ("PreprocessError", "model(pixels[:, :, :32])", "model.preprocess(images)", "model(model.preprocess(images))"),
    ("PreprocessError", "bare.preprocess(images)",
     "model.preprocess_spec = vit_lens.PreprocessSpec(size=(32, 32), mean=..., std=...",
     "bare.preprocess_spec = vl.PreprocessSpec(size=(32, 32), mean=(.5, .5, .5), std=(.5, .5, .5), "
     "interpolation='bicubic', resize_mode='shortest')\nbare(bare.preprocess(images))"),
    ("ImageError", "model.preprocess([tmp / 'nowhere.png'])", "no such file",
     "(tmp / 'nowhere.png').write_bytes(images[0].read_bytes())\nmodel.preprocess([tmp / 'nowhere.png'])"),
    ("CheckpointError", "vl.HookedViT.from_pretrained('minni')", 'expected "mini"',
     "vl.HookedViT.from_pretrained('mini')"),
    ("UnsupportedTowerError", "vl.HookedViT.from_module(torch.nn.DataParallel(tower))", "itself, not a wrapper",
     "vl.HookedViT.from_module(tower)"),
    ("DecoderError", "decoder.settings(step=10)", "'steps'", "decoder.settings(steps=10)"),
    ("ContractError", "vl.Condition(mask=torch.ones(2, 16, dtype=torch.bool), pooled=embeds)",
     "a mask goes with tokens alone", "vl.Condition(pooled=embeds)"),
    ("DictionaryError", "vl.dictionaries.random_dictionary(8, 20, k=3).encode(torch.zeros(2, 8), 'persuit')",
     "'pursuit'", "vl.dictionaries.random_dictionary(8, 20, k=3).encode(torch.zeros(2, 8), 'pursuit')"),
    ("ExplanationError", "oracle.judge(oracle.pictures[0], 'colour rad')", "'colour red'",
     "oracle.judge(oracle.pictures[0], 'colour red')"),
    ("GalleryError", "Gallery.from_images(model, images).check(folded)", "Gallery.from_folder(model, folder)",
     "Gallery.from_folder(folded, images[0].parent).check(folded)"),
    ("RecordError", "vl.records.merge([tmp / 'part0'], tmp / 'whole')",
     "shards missing: 1 of 2; sweep and give them too",
     "sweep(tmp / 'part1', part=1)\n"
     "vl.records.merge([tmp / 'part0', tmp / 'part1'], tmp / 'whole')"),
    ("RecordError", "sweep(tmp / 'part0', lens='dsl:alpha=10')", "choose another directory",
     "sweep(tmp / 'other', lens='dsl:alpha=10')"),
    ("StudyError", "StudyImages.split(pictures(20), 6)", "give 22 or more", "StudyImages.split(pictures(22), 6)"),
    ("OutputError", "bank.save(tmp / 'part0' / 'record.json' / 'bank.safetensors')", "choose another --out",
     "bank.save(tmp / 'other' / 'bank.safetensors')"),
    ("VitLensError", "model(pixels, stop_at_layer=9)", "from -8 to 8", "model(pixels, stop_at_layer=8)"),
    ("VitLensError", "vl.plan(model, None, images, budget='60s')", "without a decoder",
     "vl.plan(model, decoder, images, budget='60s')"),
]  # fmt: skip


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """What mistakes and cures call by name; part 0 of two of a sweep lies in ``tmp``."""
    import numpy as np
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    import vit_lens as vl
    from vit_lens import interventions
    from vit_lens.mini import sample_images
    from vit_lens.readers import Gallery
    from vit_lens.studies import StudyImages

    model = vl.HookedViT.from_pretrained("mini")
    images, tmp = sample_images()[:2], tmp_path_factory.mktemp("advice")
    pixels = model.preprocess(images)
    embeds, cache = model.run_with_cache(pixels)
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32)
    tower = CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes, patch_size=16, projection_dim=16))

    def sweep(out, lens="diffusion", part=0):
        shard = vl.Execution(shard=(part, 2))
        vl.sweep(model, None, images, lens=lens, sites="L7H0", out=out, execution=shard)

    sweep(tmp / "part0")
    return dict(
        vl=vl, torch=torch, interventions=interventions, Gallery=Gallery, StudyImages=StudyImages, tmp=tmp,
        model=model, images=images, pixels=pixels, embeds=embeds, cache=cache, tower=tower, sweep=sweep,
        heads=model.run_with_cache(pixels, names_filter=lambda name: name.endswith("hook_z"))[1],
        z="blocks.3.attn.hook_z", seen=lambda grad, hook: None, folded=model.process_weights(),
        bare=vl.HookedViT.from_module(tower, encoder_id="mine"), bank=vl.TextBank.mini(),
        decoder=vl.load_decoder("mini"), oracle=vl.explaining.AttributeOracle.of_world(20),
        pictures=lambda n: list(np.random.default_rng(0).integers(0, 256, (n, 64, 64, 3), dtype=np.uint8)),
    )  # fmt: skip


@pytest.mark.parametrize("kind, mistake, advice, cure", ADVICE, ids=[kind for kind, *_ in ADVICE])
def test_the_advice_works(kind, mistake, advice, cure, names, errors, monkeypatch):
    from jaxtyping import config

    monkeypatch.setattr(config, "jaxtyping_disable", True)  # as users call it
    with pytest.raises(getattr(errors, kind)) as caught:
        exec(mistake, dict(names))
    assert type(caught.value) is getattr(errors, kind) and advice in str(caught.value)
    exec(cure, dict(names))


def test_every_class_has_advice(errors):
    classes = {name for name in errors.__all__ if isinstance(getattr(errors, name), type)}
    assert classes == {kind for kind, *_ in ADVICE}
