"""The examples in docstrings run, and every public name has one or says why it needs none."""

import doctest
import importlib
import inspect
import pkgutil

import pytest
import tiny_pipelines

import vit_lens

# Public names whose meaning an example would not show, by room.
UNSHOWN = {
    # The program itself: README and docs show its commands.
    "cli": ("main",),
    # An executor makes it; the example of Local shows one.
    "engine": ("Drawn",),
    # Sweeps write with them, from a manifest of dozens of keys that a plan gives.
    "records": ("RecordWriter", "write_agreement"),
    # It needs a template and a style sheet in a package, which write_report and plates have.
    "report": ("write_page",),
    # A study runs for minutes; its command and docs/trust.md show it.
    "studies": (
        "content_study", "decoders_study", "factors_study", "faithfulness_study", "importance_study", "overlay_study",
        "planted_study", "reach_study",
        # What plants are made of and with, for the bench; docs/benchmark.md plants.
        "NameRuns", "Plant", "Soil", "direct_shares", "lenses_of_reference", "plant_table", "write_attribute",
    ),
    # What a control is made of and with, which docs/controls.md does; and the three that there are.
    "controls": {"CovarianceMatched", "Material", "OtherImage", "RandomDirection", "control", "stand_in"},
    # It needs weights of hundreds of megabytes, or a test's tiny ones.
    "explaining": {"ImageTextModel"},
    # What control_columns returns, and shows.
    "metrics": {"ControlColumns"},
    # Checks of what was handed over, and of anybody's lens; docs/own_lens.md shows their errors.
    "lenses": ("OwnPictureWarning", "checked_clean", "checked_read", "no_control"),
    # What other rooms multiply contributions with; direct_attribution shows what comes of them.
    "attribution": ("Directions", "Units"),
    # What rows of a table are made of, which has three; tests/test_diffusion.py holds them to stock modules.
    "diffusion": {"Blocks", "Denoiser", "Port"},
    # One registers a class for the rest of the process; docs/own_decoder.md shows it on saved files. The others take an
    # adapter off a UNet and put one on, where the embedded one is trained.
    "decoders": ("adapter_weights", "put_adapter", "reads_layout"),
    # Errors are shown where they are raised.
    "errors": {
        "BatchAxisError", "CheckpointError", "ContractError", "DecoderError", "DictionaryError", "ExplanationError",
        "GalleryError",
        "HookShapeError", "ImageError", "InterventionError", "LensError", "OutputError", "PreprocessError",
        "RecordError", "ReferenceMismatchError", "StudyError", "TextError", "UnfiredHookError", "UnknownHookError",
        "UnknownSiteError", "UnsupportedTowerError", "VitLensError",
    },
    # It is shown in open_tensors.
    "files": {"file_tensors"},
    # Parts and read-outs, which docs/own_tower.md builds a tower from.
    "towers": {
        "MLP", "AllTokens", "AttentionPool", "AttentionPooling", "EndOfText", "MeanOfPatches", "PooledMean",
        "TransformerBlock",
    },
    # A family is a file: tests/test_families.py has a whole one. Reading every tower of open_clip takes long.
    "sources": {"Blueprint", "Family", "register_family", "supported_open_clip", "supported_towers"},
}  # fmt: skip


def rooms():
    """The faces of rooms, and modules that are rooms of their own."""
    return sorted(each.name for each in pkgutil.iter_modules(vit_lens.__path__) if each.name not in ("axes", "lazy"))


def public(room):
    """The names on a room's face with a docstring of their own: classes and functions."""
    face = importlib.import_module(f"vit_lens.{room}")
    found = {name: getattr(face, name) for name in face.__all__}
    return {name: thing for name, thing in found.items() if inspect.isclass(thing) or inspect.isfunction(thing)}


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """What every example may use."""
    import numpy as np
    import torch

    import vit_lens as vl
    from vit_lens.explaining import Explained, Explanations
    from vit_lens.mini import sample_images

    model = vl.HookedViT.from_pretrained("mini").requires_grad_(False)
    images = sample_images()[:2]
    pixels = model.preprocess(images)
    rows = [
        Explained(
            kind=kind, unit=unit, text="colour red", n_firing=99, explained_on=(1, 2), positives=(3,), negatives=(4,),
            score=0.5 + unit / 20, auc=0.6, localisation=None, shuffled=0.5, constant=0.5,
        )
        for kind in ("dictionary", "untrained") for unit in range(6)
    ]  # fmt: skip
    said = {"protocol": "mended", "explainer": "oracle", "judge": "oracle", "n_images": 240, "least": 20, "seed": 0}
    folder = tmp_path_factory.mktemp("examples")
    captions = ["a red star", "a blue star", "a red ring", "a blue ring", "a green cross", "a yellow square"]
    return {
        "vl": vl, "torch": torch, "np": np, "model": model, "images": images, "pixels": pixels,
        "cache": model.run_with_cache(pixels)[1], "bank": vl.TextBank.from_pretrained("mini", captions),
        "text_model": vl.HookedTextEncoder.from_pretrained("mini").requires_grad_(False),
        "text_to_image": vl.decoders.PromptEncoder(tiny_pipelines.make("sd1")),
        "decoder": vl.load_decoder("mini"), "tmp": folder,
        "explained": Explanations(rows=tuple(rows), **said).save(folder / "explanations.json"),
    }  # fmt: skip


@pytest.mark.parametrize("room", rooms())
def test_examples_run(room, names):
    finder, flags = doctest.DocTestFinder(recurse=True), doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    runner, failed = doctest.DocTestRunner(verbose=False, optionflags=flags), []
    for name, thing in public(room).items():
        for example in finder.find(thing, name, globs=vars(inspect.getmodule(thing)) | names):
            told = []
            runner.run(example, out=told.append, clear_globs=False)
            failed += told
    assert not failed, "".join(failed)


@pytest.mark.parametrize("room", rooms())
def test_public_names_show_an_example(room):
    finder = doctest.DocTestFinder(recurse=True)
    for name, thing in public(room).items():
        has = any(each.examples for each in finder.find(thing, name, globs={}))
        both = f"{room}.{name}: {'an example and' if has else 'neither an example nor'} a place in UNSHOWN"
        assert has != (name in UNSHOWN.get(room, ())), both
