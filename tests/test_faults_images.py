"""Pictures, folders and preprocessing as they come in the wild: read rightly, or refused in words."""

import os
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from vit_lens import images
from vit_lens.errors import ImageError, PreprocessError

GREY = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bicubic", resize_mode="shortest")
HF = {"size": {"shortest_edge": 31}, "crop_size": {"height": 31, "width": 31}}


pytestmark = pytest.mark.usefixtures("unchecked")


def spec(**changes):
    return images.PreprocessSpec(**(GREY | {"size": (8, 8)} | changes))


def picture(size=(12, 8)):
    return Image.effect_noise(size, 60).convert("RGB")


# ---- M1, tracebacks: settings of processors -------------------------------------------------------------------


def test_null_in_a_processor_is_left_out():
    assert images.PreprocessSpec.from_hf_preprocessor(HF | dict.fromkeys(["image_mean", "image_std", "resample"])) == (
        images.PreprocessSpec.from_hf_preprocessor(HF)
    )
    with pytest.raises(PreprocessError, match="leaves out image_std"):
        said = {"image_processor_type": "BitImageProcessor", "image_mean": [0.5] * 3, "resample": 3, "image_std": None}
        images.PreprocessSpec.from_hf_preprocessor(HF | said)


@pytest.mark.parametrize(
    "change",
    [
        {"image_std": "0.5"}, {"image_std": [0.5, None, 0.5]}, {"image_std": [0.5, 0.5]}, {"image_std": 0},
        {"image_std": [[0.5] * 3]}, {"image_mean": {"red": 0.5}}, {"resample": "bicubic"}, {"resample": [3]},
        {"resample": 3.5}, {"rescale_factor": "1/255"}, {"rescale_factor": True}, {"size": "224"},
        {"size": {"shortest_edge": "31"}}, {"size": {"height": None, "width": None}}, {"size": {"height": 31.5}},
        {"crop_size": {"height": "31", "width": 31}}, {"crop_size": {"height": 31}}, {"crop_size": [31, 31, 31]},
        {"size": {"shortest_edge": 10**6}, "crop_size": {"height": 10**6, "width": 10**6}}, {"crop_size": True},
        {"size": {"shortest_edge": 10**9}},
    ],
    ids=str,
)  # fmt: skip
def test_settings_of_another_kind_are_refused(change):
    with pytest.raises(PreprocessError):
        images.PreprocessSpec.from_hf_preprocessor(HF | change)


@pytest.mark.parametrize(
    "change",
    [
        {"size": "a"}, {"size": [1, 2, 3]}, {"size": 10**9}, {"size": 7.5}, {"mean": "grey"}, {"std": [1, 2]},
        {"std": 0}, {"fill_color": "red"}, {"fill_color": [0, 0, 0]}, {"interpolation": 3}, {"resize_mode": "crop"},
        {"mode": "L"},
    ],
    ids=str,
)  # fmt: skip
def test_settings_of_open_clip_are_checked(change):
    with pytest.raises(PreprocessError):
        images.PreprocessSpec.from_open_clip_cfg(change)


def test_values_of_a_spec_are_plain():
    made = images.PreprocessSpec.from_dict(spec().to_dict())
    assert made == spec() and hash(made) == hash(spec())
    assert images.PreprocessSpec.from_dict({**spec().to_dict(), "mean": [0, 0, 1]}).mean == (0, 0, 1)
    for wrong in (
        {"std": None},
        {"size": [8.0, 8]},
        {"size": [8, True]},
        {"resize_edge": "9"},
        {"interpolation": None},
    ):
        with pytest.raises(PreprocessError, match=f"preprocessing: {next(iter(wrong))} is "):
            images.PreprocessSpec.from_dict(spec().to_dict() | wrong)


# ---- M6, R12: files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["png", "webp"])
@pytest.mark.parametrize("damage", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"], ids=repr)
def test_damaged_exif_leaves_a_picture_as_it_stands(form, damage, tmp_path):
    path, sound = tmp_path / f"a.{form}", picture()
    sound.save(path, exif=damage, lossless=True)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        read = images.load_image(path)
    assert np.array_equal(np.asarray(read), np.asarray(sound))
    assert [str(path) in str(one.message) and "EXIF" in str(one.message) for one in told] in ([True], [])
    assert told or damage == b"Exif\0\0"
    (tmp_path / "cut").write_bytes(path.read_bytes()[:-60])
    with pytest.raises(ImageError, match="cannot be read whole"):
        images.load_image(tmp_path / "cut")


def test_sound_exif_turns_a_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture().save(tmp_path / "a.png", exif=exif.tobytes())
    assert images.load_image(tmp_path / "a.png").size == (8, 12)


def test_limits_and_closed_files_are_told_in_their_own_words(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    picture().save(path)
    closed, left = Image.open(path), Image.open(path)
    closed.close()
    with left:
        pass
    for image in (closed, left):
        with pytest.raises(ImageError, match=r"was its file closed.*load\(\) it first"):
            images.load_image(image)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    with pytest.raises(ImageError, match=r"exceeds limit of 80 pixels.*MAX_IMAGE_PIXELS sets") as caught:
        images.load_image(path)
    assert "truncated" not in str(caught.value)


def test_no_other_program_decodes_a_picture(tmp_path, monkeypatch):
    from PIL import EpsImagePlugin

    ran = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **options: ran.append(args))
    header = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    for name in ("a.png", "a.eps"):
        (tmp_path / name).write_bytes(header)
        with pytest.raises(ImageError, match=r"format that is read \(.*PNG"):
            images.load_image(tmp_path / name)
    (tmp_path / "a.wmf").write_bytes(b"\xd7\xcd\xc6\x9a\x00\x00" + bytes(60))
    with pytest.raises(ImageError, match="format that is read"):
        images.load_image(tmp_path / "a.wmf")
    assert not ran


# ---- R5: a few bytes that ask for gigabytes -------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 100_000), (100_000, 1), (3, 90_000)])
def test_a_thread_of_pixels_is_refused(size):
    with pytest.raises(PreprocessError, match=f"of {size[0]} x {size[1]} pixels is too narrow: resized it would be"):
        images.preprocess(Image.new("L", size), spec(size=(224, 224)))


def test_long_pictures_are_read():
    assert images.preprocess(Image.new("L", (3, 3000)), spec()).shape == (1, 3, 8, 8)
    squashed = images.preprocess(Image.new("L", (1, 100_000)), spec(resize_mode="squash"))
    assert squashed.shape == (1, 3, 8, 8)


# ---- M14: folders ---------------------------------------------------------------------------------------------


def test_every_format_that_is_read_is_found_and_others_are_counted(tmp_path):
    kinds = {
        "a.jfif": "JPEG", "b.jpe": "JPEG", "c.ppm": "PPM", "d.tga": "TGA", "e.jp2": "JPEG2000", "f.pgm": "PPM",
        "g.PNG": "PNG", "h.mpo": "JPEG", "i.dib": "BMP",
    }  # fmt: skip
    for name, kind in kinds.items():
        picture().save(tmp_path / name, kind)
    for name in ("notes.txt", ".hidden.heic", "table.csv"):
        (tmp_path / name).write_bytes(b"x")
    found = images.find_images([tmp_path])
    assert [path.name for path in found] == sorted(kinds)
    assert all(images.load_image(path).size == (12, 8) for path in found)
    for name in ("w.HEIC", "x.svg", "y.nef", "z.jxl"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.warns(UserWarning, match=r"w\.HEIC, x\.svg, y\.nef and 1 more are left out.*convert them to PNG"):
        assert images.find_images([tmp_path]) == found
    with pytest.warns(UserWarning, match="left out"):
        assert images.images_in(tmp_path, below=True) == found


# ---- tracebacks: paths and arrays -----------------------------------------------------------------------------


def test_paths_of_every_kind(tmp_path):
    from pathlib import PurePath

    class Place:
        def __fspath__(self):
            return str(tmp_path / "a.png")

    picture().save(tmp_path / "a.png")
    plain, digest = images.load_with_hash(tmp_path / "a.png")
    (entry,) = os.scandir(tmp_path)
    for path in (str(tmp_path / "a.png"), PurePath(tmp_path / "a.png"), Place(), entry):
        assert images.load_image(path).tobytes() == plain.tobytes()
        assert images.load_with_hash(path)[1] == digest and images.source_name(path) == str(tmp_path / "a.png")
        assert torch.equal(images.preprocess(path, spec()), images.preprocess([plain], spec()))
        assert images.find_images(path) == [tmp_path / "a.png"]


def test_paths_that_are_no_pictures(tmp_path):
    os.mkfifo(tmp_path / "fifo.png")
    for path, words in (("", "no such file"), (tmp_path / "fifo.png", "no regular file"), (tmp_path, "is a directory")):
        with pytest.raises(ImageError, match=words):
            images.load_image(path)


def test_names_that_are_no_text(tmp_path):
    path = os.fsdecode(os.fsencode(str(tmp_path)) + b"/\xff.png")
    picture().save(path)
    assert images.load_image(path).size == (12, 8)
    assert images.source_name(path).endswith(r"\udcff.png") and images.find_images([tmp_path])
    with open(path, "wb") as file:
        file.write(b"junk")
    with pytest.raises(ImageError) as caught:
        images.load_image(path)
    assert r"\udcff.png is not an image" in str(caught.value).encode().decode()


def test_tensors_of_every_kind():
    plain = torch.tensor([0.0, 0.25, 0.5, 1.0]).repeat(3, 8, 2)
    expected = images.preprocess(plain, spec(), layout="CHW")
    for kind in (torch.float8_e5m2, torch.float8_e4m3fn, torch.float16, torch.bfloat16, torch.float64):
        assert torch.equal(images.preprocess(plain.to(kind), spec(), layout="CHW"), expected)
    assert torch.equal(images.preprocess(torch._neg_view(-plain), spec(), layout="CHW"), expected)
    assert torch.equal(images.preprocess(plain.clone().requires_grad_(), spec(), layout="CHW"), expected)
    for wrong in (plain.to("meta"), plain.to_sparse(), torch.empty(3, 8, 8, dtype=torch.float8_e4m3fn, device="meta")):
        with pytest.raises(PreprocessError, match=r"is of the meta device, quantised or sparse"):
            images.preprocess(wrong, spec(), layout="CHW")


def test_what_preprocess_is_given():
    for wrong, words in (
        (dict(dtype=torch.int64), "dtype=torch.int64; expected a floating-point"),
        (dict(dtype="float32"), "dtype='float32'; expected"),
    ):
        with pytest.raises(PreprocessError, match=words):
            images.preprocess(picture(), spec(), **wrong)
    for size in (None, 3, "ab", (3,), (3, 4, 5), (3, 0), (3, 4.5), torch.tensor([3, 4])):
        for of_size, name in ((images.resized_size, "size"), (images.margins, "resized")):
            with pytest.raises(PreprocessError, match=rf"{name}=.*; expected \(height, width\) in pixels"):
                of_size(size, spec())
    for of_spec in (images.resized_size, images.margins):
        with pytest.raises(PreprocessError, match="spec is of type tuple; expected PreprocessSpec"):
            of_spec((3, 4), (2, 2))
    with pytest.raises(PreprocessError, match="spec is of type dict; expected PreprocessSpec"):
        images.preprocess(picture(), spec().to_dict())
