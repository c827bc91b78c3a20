"""What was wrong with files that studies and trainings read again: damaged ones are told, with what to do."""

import json

import numpy as np
import pytest
import torch

# ---- R7: files that anybody may have written, or that were cut -----------------------------------------------------

ROW = {
    "measure": "a", "reading": "b", "level": "c", "n": 1, "unit": "image", "controls": {}, "nulls": {},
    "estimate": {"value": 1.0, "low": None, "high": None, "why": None},
}  # fmt: skip
WRONG = {
    "nested without end": '{"a": ' + "[" * 200_000,
    "a number that is none": None,
    "nulls as a list": {"scores": [ROW | {"nulls": [1]}]},
    "controls as a list": {"scores": [ROW | {"controls": [1]}]},
    "a row as a text": {"scores": ["a"]},
    "an estimate as a number": {"scores": [ROW | {"estimate": 3}]},
    "a list": "[]",
}


@pytest.mark.parametrize("case", WRONG)
def test_a_result_that_is_none_is_told(tmp_path, case):
    from vit_lens.errors import StudyError
    from vit_lens.studies import StudyResult, load_result

    path = StudyResult(study="overlay", setup={"encoder": "mine"}, options={}, scores=()).save(tmp_path)
    found, change = json.loads(path.read_text()), WRONG[case]
    if change is None:
        found["scores"] = [ROW | {"estimate": ROW["estimate"] | {"value": float("nan")}}]
    path.write_text(change if isinstance(change, str) else json.dumps(found | (change or {})))
    with pytest.raises(StudyError, match="run the study again"):
        load_result(tmp_path)


def test_a_kept_tile_that_is_damaged_is_told(tmp_path):
    from vit_lens.errors import StudyError
    from vit_lens.studies.paper.kept_tiles import _open

    (tmp_path / "tile.png").write_bytes(b"\x89PNG")
    with pytest.raises(StudyError, match=r"tile.png is no whole picture .*; remove it, and run the same command again"):
        _open(tmp_path / "tile.png")


def test_an_overlay_that_is_huge_is_told(tmp_path, monkeypatch):
    import PIL.Image

    from vit_lens.errors import StudyError
    from vit_lens.studies.overlay import Overlay

    PIL.Image.fromarray(np.zeros((64, 64, 4), np.uint8)).save(tmp_path / "big.png")
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(StudyError, match=r"big.png cannot be read .*exceeds limit"):
        Overlay.from_file(tmp_path / "big.png")


@pytest.mark.parametrize("content", [b"", b"no state", b"\x80\x04."], ids=["empty", "text", "pickle"])
def test_a_training_that_was_cut_is_told(tmp_path, content):
    from vit_lens.errors import OutputError
    from vit_lens.mini.training.progress import _restore

    (tmp_path / "state.pt").write_bytes(content)
    with pytest.raises(OutputError, match=r"state.pt is no whole state of a training .*choose another --out"):
        _restore({}, tmp_path / "state.pt", {})
    torch.save({"step": 1, "settings": {"seed": 0}, "parts": {}}, tmp_path / "state.pt")
    with pytest.raises(OutputError, match=r"state.pt was made with {'seed': 0}, not {'seed': 1}; remove it"):
        _restore({}, tmp_path / "state.pt", {"seed": 1})
