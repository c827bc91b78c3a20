"""Pictures become the same pixels as in open_clip, to the bit, and nothing is guessed."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# (width, height): odd, wide, tall, smaller than the target, equal to it
SIZES = [(61, 47), (47, 61), (200, 33), (31, 222), (17, 19), (40, 40), (39, 160), (41, 23)]


@pytest.fixture(scope="module")
def images():
    import vit_lens.images

    return vit_lens.images


@pytest.fixture(scope="module")
def errors():
    import vit_lens.errors

    return vit_lens.errors


def noise(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def picture(size, mode="RGB", seed=0):
    width, height = size
    return Image.fromarray(noise((height, width, 3) if mode == "RGB" else (height, width), seed))


def spec_of(images, **changes):
    fields = dict(size=(40, 40), mean=MEAN, std=STD, interpolation="bicubic", resize_mode="shortest")
    return images.PreprocessSpec(**(fields | changes))


# ---- parity with open_clip ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("target", [(40, 40), (31, 31), (30, 41), (41, 30)])
@pytest.mark.parametrize(
    "resize_mode, interpolation", list(itertools.product(["shortest", "longest", "squash"], ["bicubic", "bilinear"]))
)
def test_equal_to_open_clip_to_the_bit(mode, target, resize_mode, interpolation, images):
    from open_clip.transform import image_transform

    spec = spec_of(images, size=target, resize_mode=resize_mode, interpolation=interpolation, fill_color=77)
    transform = image_transform(
        target,
        is_train=False,
        mean=MEAN,
        std=STD,
        resize_mode=resize_mode,
        interpolation=interpolation,
        fill_color=77,
    )
    for seed, size in enumerate(SIZES):
        source = picture(size, mode, seed)
        ours = images.preprocess(source, spec)
        assert ours.shape == (1, 3, *target) and ours.dtype == torch.float32
        assert torch.equal(ours[0], transform(source)), size


def test_interpolations_and_modes_differ(images):
    """The parity test above would not see a setting that is ignored on both sides."""
    choices = itertools.product(["shortest", "longest", "squash"], ["bicubic", "bilinear"])
    results = [
        images.preprocess(picture((61, 47)), spec_of(images, resize_mode=mode, interpolation=interpolation))
        for mode, interpolation in choices
    ]
    for a, b in itertools.combinations(results, 2):
        assert not torch.equal(a, b)


def test_display_is_what_the_tower_sees(images):
    spec = spec_of(images, size=(30, 41), resize_mode="longest")
    shown = images.to_display([picture((61, 47)), picture((20, 90), "L")], spec)
    assert [(p.mode, p.size) for p in shown] == [("RGB", (41, 30))] * 2
    pixels = images.preprocess([picture((61, 47)), picture((20, 90), "L")], spec)
    for row, seen in zip(pixels, shown, strict=True):
        back = row * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
        assert np.array_equal((back * 255).round().byte().permute(1, 2, 0).numpy(), np.asarray(seen))


def test_a_literal_matches_its_table(images):
    import typing

    from vit_lens.images.spec import INTERPOLATIONS

    assert set(typing.get_args(images.Interpolation)) == set(INTERPOLATIONS)


def test_batch_dtype_and_sources(images, tmp_path):
    picture((61, 47)).save(tmp_path / "a.png")
    spec = spec_of(images)
    sources = [tmp_path / "a.png", str(tmp_path / "a.png"), picture((61, 47)), noise((47, 61, 3))]
    rows = images.preprocess(sources, spec, dtype=torch.float64)
    assert rows.shape == (4, 3, 40, 40) and rows.dtype == torch.float64
    for row in rows:
        assert torch.equal(row.float(), images.preprocess(sources[0], spec)[0])
    batch = torch.from_numpy(noise((5, 3, 21, 17)))
    assert images.preprocess(batch, spec, layout="CHW").shape == (5, 3, 40, 40)


# ---- files and Pillow images ----------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(orientation, images, tmp_path):
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    upright = picture((31, 23))
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright.save(tmp_path / "a.png", exif=exif)
    expected = upright.transpose(turns[orientation]) if orientation in turns else upright
    assert np.array_equal(np.asarray(images.load_image(tmp_path / "a.png")), np.asarray(expected))


def test_alpha_lies_over_white(images, tmp_path):
    rgba = np.dstack([noise((9, 7, 3)), noise((9, 7), 1)])
    alpha = rgba[..., 3:].astype(float) / 255
    expected = rgba[..., :3] * alpha + 255 * (1 - alpha)
    ours = images.load_image(Image.fromarray(rgba))
    assert ours.mode == "RGB"
    assert np.abs(np.asarray(ours, dtype=float) - expected).max() <= 1  # Pillow composites in integers
    grey = Image.merge("LA", [picture((7, 9), "L"), Image.new("L", (7, 9), 0)])
    assert np.array_equal(np.asarray(images.load_image(grey)), np.full((9, 7, 3), 255))


def test_transparent_colours_lie_over_white(images, tmp_path):
    for mode, transparent in (("P", 3), ("L", 3), ("RGB", (3, 3, 3))):
        source = Image.new(mode, (6, 5), transparent)
        if mode == "P":
            source.putpalette([10] * 768)
        source.putpixel((1, 1), 9 if mode != "RGB" else (9, 9, 9))
        source.save(tmp_path / f"{mode}.png", transparency=transparent)
        ours = np.asarray(images.load_image(tmp_path / f"{mode}.png"))
        assert ours.shape == (5, 6, 3) and (ours[0, 0] == 255).all(), mode
        assert (ours[1, 1] == (10 if mode == "P" else 9)).all(), mode


def test_palette_and_cmyk_are_converted_before_the_resize(images):
    colours = picture((61, 47))
    spec = spec_of(images)
    for source in (colours.quantize(31), colours.convert("CMYK"), colours.convert("YCbCr")):
        expected = images.preprocess(source.convert("RGB"), spec)
        assert torch.equal(images.preprocess(source, spec), expected)


def test_grey_and_black_and_white(images):
    assert images.load_image(picture((7, 9), "L")).mode == "L"
    bits = Image.fromarray(noise((9, 7)) > 100)
    assert bits.mode == "1"
    ours = images.load_image(bits)
    assert ours.mode == "L" and set(np.unique(np.asarray(ours))) == {0, 255}


def test_sixteen_bits_are_scaled(images, tmp_path):
    values = np.array([[0, 257, 65535], [128, 129, 32768]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    ours = np.asarray(images.load_image(tmp_path / "deep.png"))
    assert ours.tolist() == [[0, 1, 255], [0, 1, 128]]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_unknown_ranges_are_refused(mode, images, errors):
    with pytest.raises(errors.ImageError, match=r"mode '[IF]'.*layout="):
        images.load_image(picture((7, 9), "L").convert(mode))


def test_first_frame_of_an_animation_with_a_warning(images, tmp_path):
    frames = [Image.new("RGB", (12, 9), c) for c in ("red", "green", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with pytest.warns(UserWarning, match=r"a\.gif has 3 frames; only frame 0"):
        ours = images.load_image(tmp_path / "a.gif")
    assert np.asarray(ours)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["png", "jpg", "gif", "webp", "tif", "bmp"])
def test_truncated(kind, images, errors, tmp_path):
    path = tmp_path / f"cut.{kind}"
    picture((61, 47)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(errors.ImageError, match=rf"cut\.{kind}"):
        images.load_image(path)


def test_every_cut_is_an_image_error_or_whole(images, errors, tmp_path):
    """However few bytes are left, the error is ours."""
    picture((9, 8)).save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    caught = 0
    for length in range(0, len(data), 7):
        (tmp_path / "cut.png").write_bytes(data[:length])
        try:
            images.load_image(tmp_path / "cut.png")
        except errors.ImageError as error:
            assert "cut.png" in str(error)
            caught += 1
    assert caught > len(data) // 7 * 0.8


def test_a_pillow_image_cut_short_is_named(images, errors, tmp_path):
    picture((61, 47)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:2000])
    with Image.open(tmp_path / "cut.png") as lazy, pytest.raises(errors.ImageError, match=r"cut\.png"):
        images.load_image(lazy)


def test_not_images(images, errors, tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not a picture at all")
    cases = {"empty.png": "is empty", "text.png": "not an image", "missing.png": "no such file", "": "a directory"}
    for name, words in cases.items():
        with pytest.raises(errors.ImageError, match=words) as caught:
            images.load_image(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


def test_sources_are_left_as_they_are(images):
    array = noise((21, 17, 3))
    floats = torch.from_numpy(array).double() / 255
    grey = picture((17, 21), "L")
    before = array.copy(), floats.clone(), grey.copy()
    images.preprocess([array, grey], spec_of(images))
    images.preprocess(floats, spec_of(images), layout="HWC")
    loaded = images.load_image(array)
    loaded.putpixel((0, 0), (1, 2, 3))
    assert np.array_equal(array, before[0]) and torch.equal(floats, before[1])
    assert np.array_equal(np.asarray(grey), np.asarray(before[2]))


# ---- arrays ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_arrays_in_every_layout_are_the_same_picture(dtype, images):
    array = noise((21, 17, 3))
    tensor = torch.from_numpy(array)
    floats = tensor.to(dtype) / 255
    for source, layout in (
        (array, None),
        (array, "HWC"),
        (array.transpose(2, 0, 1), "CHW"),
        (tensor, None),
        (tensor.permute(2, 0, 1), "CHW"),
        (floats, "HWC"),
        (floats.permute(2, 0, 1), "CHW"),
        (floats.numpy(), "HWC"),
    ):
        assert np.array_equal(np.asarray(images.load_image(source, layout=layout)), array)


def test_grey_arrays(images):
    array = noise((21, 17))
    for source in (array, array[..., None]):
        ours = images.load_image(source)
        assert ours.mode == "L" and np.array_equal(np.asarray(ours), array)


@pytest.mark.parametrize(
    "array, layout, words",
    [
        (np.full((5, 4, 3), np.nan), "HWC", "NaN"),
        (np.full((5, 4, 3), np.inf), "HWC", "NaN or infinite"),
        (np.full((5, 4, 3), 1.5), "HWC", r"from 1\.5 to 1\.5; expected \[0, 1\]"),
        (np.full((5, 4, 3), -0.1), "HWC", r"from -0\.1"),
        (np.full((5, 4, 3), 0.5), None, "without a layout"),
        (np.zeros((5, 4, 3), np.uint16), None, "expected uint8"),
        (np.zeros((5, 4, 3), np.int64), None, "expected uint8"),
        (np.zeros((5, 4, 3), bool), None, "expected uint8"),
        (np.zeros((5, 4, 4), np.uint8), None, "1 or 3 channels"),
        (np.zeros((3, 5, 4), np.uint8), None, "1 or 3 channels"),
        (np.zeros((5, 4, 3), np.uint8), "CHW", "1 or 3 channels"),
        (np.zeros((5,), np.uint8), None, "1 or 3 channels"),
        (np.zeros((2, 5, 4, 3), np.uint8), None, "one picture"),
        (np.zeros((0, 4, 3), np.uint8), None, "no pixels"),
    ],
)
def test_arrays_that_do_not_say_what_they_are(array, layout, words, images, errors):
    for source in (array, torch.from_numpy(array)):
        with pytest.raises(errors.PreprocessError, match=words) as caught:
            images.load_image(source, layout=layout)
        assert str(array.shape).strip("()") in str(caught.value)


def test_one_bad_number_is_found(images, errors):
    pixels = torch.rand(40, 40, 3, generator=torch.Generator().manual_seed(0))
    pixels[7, 8, 1] = float("nan")
    with pytest.raises(errors.PreprocessError, match="NaN"):
        images.preprocess(pixels, spec_of(images), layout="HWC")


def test_no_spec_no_pictures_and_slivers(images, errors):
    with pytest.raises(errors.PreprocessError, match="pass a PreprocessSpec"):
        images.preprocess(picture((9, 9)), None)
    with pytest.raises(errors.PreprocessError, match="at least one"):
        images.preprocess([], spec_of(images))
    with pytest.raises(errors.PreprocessError, match="too narrow"):
        images.preprocess(picture((1, 300)), spec_of(images, resize_mode="longest"))


def test_folders_hold_images_alone(images, errors, tmp_path):
    for name in ("b.png", "a.JPG", ".hidden.png", "more/c.png", ".cache/d.png", "text.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    assert images.find_images([tmp_path]) == [tmp_path / "a.JPG", tmp_path / "b.png"]
    below = images.images_in(tmp_path, below=True)
    assert below == [tmp_path / "a.JPG", tmp_path / "b.png", tmp_path / "more" / "c.png"]
    with pytest.raises(errors.ImageError, match="holds no image"):
        images.find_images([tmp_path / "folder.png"])
    assert images.find_images([tmp_path / ".hidden.png"]) == [tmp_path / ".hidden.png"]  # which was named


def test_a_resized_picture_has_the_size_that_is_told(images):
    for size in SIZES:
        spec = spec_of(images, resize_mode="longest", size=(30, 41))
        height, width = images.resized_size((size[1], size[0]), spec)
        top, left = images.margins((height, width), spec)
        seen = np.asarray(images.to_display([picture(size)], spec)[0]).any(-1)
        rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
        assert (rows[0], columns[0]) == (-top, -left) and (len(rows), len(columns)) == (height, width)


# ---- specs ----------------------------------------------------------------------------------------------------


def test_spec_round_trip(images, errors):
    import json

    spec = spec_of(images, size=(30, 41), fill_color=3)
    assert images.PreprocessSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    with pytest.raises(errors.PreprocessError, match=r"unknown key 'colour'.*mean is missing"):
        images.PreprocessSpec.from_dict({k: v for k, v in spec.to_dict().items() if k != "mean"} | {"colour": 1})


@pytest.mark.parametrize(
    "change, words",
    [
        ({"interpolation": "nearest"}, "'bicubic', 'bilinear'"),
        ({"resize_mode": "crop"}, "'shortest', 'longest', 'squash'"),
        ({"size": (0, 4)}, "at least 1"),
        ({"std": (1.0, 0.0, 1.0)}, "positive"),
        ({"mean": (0.0, float("nan"), 0.0)}, "finite"),
        ({"fill_color": 256}, "fill_color=256"),
    ],
)
def test_spec_values_are_checked(change, words, images, errors):
    spec = spec_of(images)
    ((name, value),) = change.items()
    object.__setattr__(spec, name, value)  # the shape checks of the test run would catch a wrong Literal first
    with pytest.raises(errors.PreprocessError, match=words):
        spec.__post_init__()


def test_spec_of_every_open_clip_default(images):
    from open_clip.transform import PreprocessCfg

    default = images.PreprocessSpec.from_open_clip_cfg({})
    reference = PreprocessCfg()
    assert (default.mean, default.std) == (reference.mean, reference.std)
    assert (default.size, default.fill_color) == ((reference.size, reference.size), reference.fill_color)
    assert (default.interpolation, default.resize_mode) == (reference.interpolation, reference.resize_mode)
    assert images.PreprocessSpec.from_open_clip_cfg({"interpolation": "random"}).interpolation == "bicubic"


def test_spec_of_an_hf_processor(images):
    from transformers import CLIPImageProcessor

    cfg = CLIPImageProcessor().to_dict()
    assert images.PreprocessSpec.from_hf_preprocessor(cfg) == images.PreprocessSpec.from_open_clip_cfg({})
    squash = {"size": {"height": 30, "width": 41}, "do_center_crop": False, "resample": 2, "image_mean": [0.5] * 3}
    spec = images.PreprocessSpec.from_hf_preprocessor(squash)
    assert (spec.size, spec.resize_mode, spec.interpolation, spec.mean) == ((30, 41), "squash", "bilinear", (0.5,) * 3)
    old = {"size": 31, "crop_size": 31, "do_center_crop": True}
    assert images.PreprocessSpec.from_hf_preprocessor(old).size == (31, 31)


@pytest.mark.parametrize("edge, crop", [(40, (35, 35)), (41, (40, 40)), (40, (31, 36)), (33, (33, 30)), (30, (30, 30))])
def test_equal_to_hugging_faces_pillow_path_to_the_bit(edge, crop, images):
    """DINOv2 resizes to more than it crops; margins are even and odd, on both axes."""
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

    size = {"height": crop[0], "width": crop[1]}
    processor = BitImageProcessorPil(size={"shortest_edge": edge}, crop_size=size, image_mean=MEAN, image_std=STD)
    cfg = processor.to_dict() | {"image_processor_type": "BitImageProcessor"}
    spec = images.PreprocessSpec.from_hf_preprocessor(cfg)
    assert (spec.size, spec.resize_edge) == (crop, None if crop == (edge, edge) else edge)
    assert images.PreprocessSpec.from_dict(spec.to_dict()) == spec
    for seed, (width, height) in enumerate([(61, 47), (47, 62), (200, 33), (31, 93), (41, 41), (64, 47)]):
        if crop == (edge, edge) and (max(width, height) * edge // min(width, height) - edge) % 4 == 3:
            continue  # one size for both is open_clip's rule, which cuts these margins the other way
        source = picture((width, height), seed=seed)
        theirs = processor(source, return_tensors="pt")["pixel_values"]
        assert torch.equal(images.preprocess(source, spec), theirs), (width, height)


def test_siglips_processor_squashes(images):
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    processor = SiglipImageProcessorPil(size={"height": 30, "width": 41})
    cfg = processor.to_dict() | {"image_processor_type": "SiglipImageProcessor"}
    spec = images.PreprocessSpec.from_hf_preprocessor(cfg)
    assert (spec.size, spec.resize_mode, spec.mean, spec.std) == ((30, 41), "squash", (0.5,) * 3, (0.5,) * 3)
    for size in SIZES:
        theirs = processor(picture(size), return_tensors="pt")["pixel_values"]
        assert torch.equal(images.preprocess(picture(size), spec), theirs)


def test_the_same_steps_at_another_size(images):
    spec = spec_of(images, size=(35, 35), resize_edge=40)
    assert (spec.at((70, 70)).size, spec.at((70, 70)).resize_edge) == ((70, 70), 80)
    assert spec.at((70, 21)).resize_edge == 80
    assert spec_of(images).at((7, 9)).resize_edge is None


def test_edges_that_do_not_fit(images, errors):
    for wrong in (dict(resize_edge=39), dict(resize_edge=50, resize_mode="squash")):
        with pytest.raises(errors.PreprocessError, match="resize_edge="):
            spec_of(images, **wrong)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"resample": 0}, "resample=0"),
        ({"do_normalize": False}, "do_normalize=False"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor"),
        ({"crop_size": {"height": 31, "width": 32}}, "pads to"),
        ({"size": {"height": 31, "width": 31}, "crop_size": {"height": 31, "width": 30}}, "crops to"),
        ({"image_processor_type": "SiglipImageProcessor"}, "leaves out image_mean, image_std, resample"),
        ({"do_center_crop": False}, "shortest_edge"),
    ],
)
def test_hf_processors_that_do_something_else(change, words, images, errors):
    cfg = {"size": {"shortest_edge": 31}, "crop_size": {"height": 31, "width": 31}} | change
    with pytest.raises(errors.PreprocessError, match=words):
        images.PreprocessSpec.from_hf_preprocessor(cfg)
