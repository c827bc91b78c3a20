"""Files that this package keeps for later (means, banks, galleries) say what was written, or are refused."""

import pytest
import torch


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """One file of each kind, with the function that reads it."""
    import vit_lens as vl
    from vit_lens.mini import sample_images
    from vit_lens.readers import Gallery, SiteMeans

    folder, model = tmp_path_factory.mktemp("kept"), vl.HookedViT.from_pretrained("mini")
    images = sample_images()
    made = {
        "means": vl.ReferenceMeans.from_images(model, images), "bank": vl.TextBank.mini(["a red ring", "a star"]),
        "gallery": Gallery.from_images(model, images),
        "site means": SiteMeans.from_images(model, images, ["L7H0"], lens=vl.DiffusionLens()),
    }  # fmt: skip
    return {kind: (held.save(folder / f"{kind}.safetensors"), type(held).load) for kind, held in made.items()}


@pytest.mark.parametrize("kind", ["means", "bank", "gallery", "site means"])
def test_what_was_changed_behind_our_back_is_refused(kind, kept, tmp_path, errors):
    from safetensors import safe_open
    from safetensors.torch import save_file

    path, load = kept[kind]
    load(path)
    with safe_open(path, "pt") as file:
        tensors, said = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()
    name = max(tensors, key=lambda name: tensors[name].numel())

    def changed(**others):
        return {**tensors, **others}

    nudged = tensors[name].clone()
    nudged.view(torch.uint8).view(-1)[0] ^= 1  # the last bit of one number
    words = next(key for key in said if key not in ("format", "content"))
    content = {key: word for key, word in said.items() if key != "content"}
    for these, meta in (
        (changed(**{name: nudged}), said),
        (changed(**{name: tensors[name].flatten()}), said),
        (changed(more=torch.zeros(1)), said),
        (tensors, said | {words: said[words] + " "}),
        (tensors, content),
    ):
        save_file(these, tmp_path / "changed.safetensors", meta)
        with pytest.raises(errors.VitLensError, match="is not what was written there"):
            load(tmp_path / "changed.safetensors")


def test_means_of_the_first_format_need_no_hash_and_keep_to_one_that_they_have(kept, tmp_path, errors):
    from safetensors import safe_open
    from safetensors.torch import save_file

    import vit_lens as vl
    from vit_lens.identity import MINI_FILES

    with safe_open(MINI_FILES / "reference_means.safetensors", "pt") as file:
        tensors, said = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()
    path = tmp_path / "old.safetensors"
    first = {key: word for key, word in said.items() if key != "content"} | {"format": "vit_lens.reference_means.1"}
    save_file({name: x for name, x in tensors.items() if not name.startswith("difference.")}, path, first)
    assert torch.equal(vl.ReferenceMeans.load(path).z, vl.ReferenceMeans.load("mini").z)
    save_file(tensors | {"z": tensors["z"] + 1}, path, said)
    with pytest.raises(errors.VitLensError, match="another hash"):
        vl.ReferenceMeans.load(path)


def test_equal_content_is_equal_bytes():
    from vit_lens.files import to_bytes

    tensors, said = (
        {"b": torch.ones(3, dtype=torch.bool), "a": torch.rand(2, 2).half()},
        dict(zip("qwerty", "123456", strict=True)),
    )
    assert len({to_bytes(dict(order), said) for order in [[*tensors.items()], [*tensors.items()][::-1]] * 10}) == 1
