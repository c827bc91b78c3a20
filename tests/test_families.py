"""A family of towers is one object: with it towers are read, loaded by name and verified, and nothing else knows it."""

import json

import pytest
import torch
import torch.nn.functional as F
import towers
from torch import nn

from vit_lens.sources import Blueprint, Family, Recipe, SourceTower, SupportedTower, register_family

# float64 sums of a few dozen terms of order one, over two layers
EXACT = 1e-12
PREPROCESSOR = dict(
    do_resize=True, size={"shortest_edge": 13}, crop_size={"height": 13, "width": 13}, image_mean=[0.1, 0.2, 0.3],
    image_std=[0.4, 0.5, 0.6],
)  # fmt: skip


class Layer(nn.Module):
    """Attention and an MLP, under names of no library."""

    def __init__(self, width, n_heads, hidden):
        super().__init__()
        self.n_heads = n_heads
        self.calm, self.poise = nn.LayerNorm(width, eps=3e-4), nn.LayerNorm(width, eps=3e-4)
        self.ask, self.offer, self.tell, self.merge = (nn.Linear(width, width) for _ in range(4))
        self.widen, self.narrow = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        y = self.calm(x)
        q, k, v = (
            part(y).unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in (self.ask, self.offer, self.tell)
        )
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        x = x + self.merge((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return x + self.narrow(F.gelu(self.widen(self.poise(x))))


class Eye(nn.Module):
    """A tower without class token: the mean of the patches is normed, then projected with a bias."""

    def __init__(self, width=15, n_heads=3, hidden=22, depth=2, side=13, patch=4, out=7):
        super().__init__()
        self.sizes = dict(width=width, n_heads=n_heads, hidden=hidden, depth=depth, side=side, patch=patch, out=out)
        self.tiles = nn.Conv2d(3, width, patch, patch)
        self.places = nn.Parameter(torch.zeros((side // patch) ** 2, width))
        self.storeys = nn.ModuleList(Layer(width, n_heads, hidden) for _ in range(depth))
        self.rest, self.say = nn.LayerNorm(width, eps=3e-4), nn.Linear(width, out)

    def forward(self, pixels):
        x = self.tiles(pixels).flatten(2).transpose(1, 2) + self.places
        for storey in self.storeys:
            x = storey(x)
        return self.say(self.rest(x.mean(1)))


class Eyes(Family):
    """All that there is to know about :class:`Eye`."""

    towers = "the eyes of this test"
    homes = (__name__,)
    classes = ("Eye",)
    prefix = "eye."
    other_prefixes = ("ear.",)
    model_types = {"eye": None}  # noqa: RUF012

    def blueprint(self, tower, image_size=None):
        from vit_lens import HookedViTConfig

        at, d = tower.sizes, tower.sizes["width"]
        cfg = HookedViTConfig(
            n_layers=len(tower.storeys), d_model=d, n_heads=at["n_heads"], d_head=d // at["n_heads"],
            d_mlp=at["hidden"], d_embed=at["out"], image_size=(at["side"],) * 2, patch_size=(at["patch"],) * 2,
            has_cls=False, n_registers=0, has_patch_bias=True, act_fn="gelu", eps=tower.rest.eps, has_ln_pre=False,
            pool="avg", attn_pool=None, ln_final="after_pool", has_proj=True, has_proj_bias=True,
        )  # fmt: skip
        return Blueprint(cfg, lambda tensors: self.recipe(cfg))

    def recipe(self, cfg):
        steps, d = Recipe(), cfg.d_model
        steps.patches("tiles.weight", d, cfg.patch_size, "tiles.bias")
        steps.take("pos_embed.W_pos", "places", (cfg.n_ctx, d))
        steps.blocks(
            cfg, "storeys", norms=("calm", "poise"), qkv=("ask.", "offer.", "tell."), out="merge",
            mlp=("widen", "narrow"),
        )  # fmt: skip
        steps.norm("ln_final", "rest", d)
        steps.take("unembed.W_U", "say.weight", (cfg.d_embed, d), lambda x: x.T)
        steps.take("unembed.b_U", "say.bias", (cfg.d_embed,))
        return steps

    def listen(self, tower):
        return SourceTower("a test's Eye", tower, run, blocks=tower.storeys, final_norm=tower.rest)

    def build(self, config, path, names):
        with torch.device("meta"):
            return Eye(**config["sizes"])

    def load(self, folder, config):
        from safetensors.torch import load_file

        stored = load_file(folder.find("model.safetensors"))
        eye = Eye(**config["sizes"]).double()
        eye.load_state_dict({name.removeprefix("eye."): stored[name] for name in stored if name.startswith("eye.")})
        return eye


def run(tower, pixels):
    return tower(pixels)


@pytest.fixture
def known(monkeypatch):
    """Register the family for one test."""
    from vit_lens.sources import families

    monkeypatch.setattr(families, "_FAMILIES", [*families._FAMILIES])
    register_family(Eyes())


def eye(seed=0, **sizes):
    return towers.randomize(Eye(**sizes).double().eval(), seed)


def save(tower, folder):
    from safetensors.torch import save_file

    tensors = {f"eye.{name}": tensor.contiguous() for name, tensor in tower.state_dict().items()}
    save_file(tensors | {"ear.weight": torch.ones(3)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "eye", "sizes": tower.sizes}))
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))


@pytest.mark.parametrize("sizes", [{}, dict(width=22, n_heads=2, depth=3, patch=5)], ids=str)
def test_from_memory(known, sizes):
    from vit_lens import HookedViT

    tower = eye(**sizes)
    model, pixels = HookedViT.from_module(tower), towers.pixels_of((13, 13))
    assert model.dtype == torch.float64 and model.encoder_id.startswith("module@")
    with torch.no_grad():
        assert (model(pixels) - tower(pixels)).abs().max() < EXACT


def test_it_is_verified_block_by_block(known):
    from vit_lens import HookedViT

    tower = eye()
    model = HookedViT.from_module(tower).requires_grad_(False)
    result = model.verify(tower)
    assert result.passed and result.source == "a test's Eye", result
    (rows,) = result.differences.values()
    assert [row.place for row in rows] == ["into L0", "L0", "L1", "final norm", "embedding"]
    assert model.process_weights().verify(tower).passed
    model.blocks[1].mlp.b_out.data[4] += 1e-3
    assert model.verify(tower).failure.startswith("block L1 is off by")
    assert not HookedViT.from_module(tower).verify(eye(seed=1)).passed


def test_from_a_directory_and_back(known, errors, tmp_path):
    from vit_lens import HookedViT

    tower, pixels = eye(), towers.pixels_of((13, 13))
    save(tower, tmp_path)
    model = HookedViT.from_pretrained(tmp_path, dtype=torch.float64).requires_grad_(False)
    with torch.no_grad():
        assert torch.equal(model(pixels), HookedViT.from_module(tower)(pixels))
    assert model.preprocess_spec is not None and model.preprocess_spec.mean == (0.1, 0.2, 0.3)
    result = model.verify(tmp_path)
    assert result.passed and result.source.startswith("a test's Eye of "), result
    assert HookedViT.from_pretrained(tmp_path, device="meta").W_Q.shape == model.W_Q.shape
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "eye", "sizes": tower.sizes | {"hidden": 23}}))
    with pytest.raises(errors.CheckpointError, match=r"storeys\.0\.widen\.weight \[22, 15\] instead of \[23, 15\]"):
        HookedViT.from_pretrained(tmp_path)


def test_what_towers_are_refused_for(known, errors):
    from vit_lens import HookedViT

    with pytest.raises(errors.UnsupportedTowerError, match="no interpolate_pos_encoding"):
        HookedViT.from_module(eye(), image_size=20)
    tower = eye()
    tower.storeys[1].register_forward_hook(lambda *args: None)
    with pytest.raises(errors.UnsupportedTowerError, match=r"storeys\.1 \(a forward hook\)"):
        HookedViT.from_module(tower)
    tower = eye()
    tower.extra = nn.Linear(2, 2)
    with pytest.raises(errors.CheckpointError, match=r"2 extra: extra\.weight"):
        HookedViT.from_module(tower)


def test_lists_and_messages_name_it(known, errors):
    from vit_lens.sources import read_module, supported_towers

    assert SupportedTower(name="Eye", library="test_families", tier="B") in supported_towers()
    with pytest.raises(errors.UnsupportedTowerError, match="the eyes of this test"):
        read_module(nn.Linear(2, 2))


def test_unregistered_it_is_no_tower(errors, tmp_path):
    from vit_lens import HookedViT

    with pytest.raises(errors.UnsupportedTowerError, match="a Eye from test_families"):
        HookedViT.from_module(eye())
    save(eye(), tmp_path)
    with pytest.raises(errors.UnsupportedTowerError, match="of model_type 'eye'; expected 'clip'"):
        HookedViT.from_pretrained(tmp_path)


def test_a_family_from_memory_alone_says_so(known, errors, monkeypatch, tmp_path):
    from vit_lens import HookedViT

    save(eye(), tmp_path)
    model = HookedViT.from_pretrained(tmp_path)
    for method, ask in {
        "load": lambda: model.verify(tmp_path),
        "build": lambda: HookedViT.from_pretrained(tmp_path),
    }.items():
        monkeypatch.setattr(Eyes, method, getattr(Family, method))
        with pytest.raises(errors.CheckpointError, match=r"the eyes of this test are .*; hand over the module"):
            ask()


def test_every_family_that_ships_is_asked_about_its_own():
    """No module is two families' of one kind, and none is read by a name that another one has."""
    from vit_lens.sources import families

    texts = families.families("text")
    assert [type(family).__name__ for family in texts] == ["ClipText", "OpenClipText", "T5"]
    assert len({home for family in texts for home in family.homes}) == 3
    shipped = families.families("image")
    assert len({home for family in shipped for home in family.homes}) == sum(len(family.homes) for family in shipped)
    types = [model_type for family in shipped for model_type in family.model_types]
    assert len(set(types)) == len(types) == 6
    for build in (towers.hf_tower, towers.siglip_model, towers.tiny_visual, towers.tiny_timm):
        assert sum(family.owns(build()) for family in shipped) == 1


def test_other_rooms_know_the_face_alone():
    """Whatever they need of sources is in ``vit_lens.sources`` itself."""
    from test_architecture import PACKAGE, imports

    found = {(str(path.relative_to(PACKAGE)), name) for path, room, name in imports() if room != "sources"}
    assert not {pair for pair in found if pair[1].startswith("vit_lens.sources.")}


def test_a_family_of_yours_lets_no_foreign_code_into_others(known, errors):
    """What is trusted on a tower is its own family's library, not that of every family."""
    from transformers import CLIPVisionConfig, CLIPVisionModel
    from transformers.models.clip.modeling_clip import CLIPMLP

    from vit_lens import HookedViT

    class Doubled(CLIPMLP):
        def forward(self, x):
            return 2 * super().forward(x)

    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    tower = CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=20, patch_size=5))
    blocks = getattr(tower, "vision_model", tower).encoder.layers
    blocks[0].mlp.__class__ = Doubled
    with pytest.raises(errors.UnsupportedTowerError, match=r"layers\.0\.mlp \(of type test_families"):
        HookedViT.from_module(tower)
