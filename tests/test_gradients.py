"""Gradients through every hook point: against the source towers, plain PyTorch, and finite differences."""

import math

import pytest
import torch
from conftest import open_clip_tower
from kinds import KINDS, OPEN_CLIP, OWN, close, images, own_tower

pytestmark = pytest.mark.tl3

GATED = ("hook_attn_in", "hook_q_input", "hook_k_input", "hook_v_input", "hook_mlp_in")


def weights_like(out):
    return torch.linspace(-1, 2, out.numel(), dtype=out.dtype).reshape(out.shape)


def gradients(model, pixels, names):
    """The gradient of a weighted sum of the output at hook points, by backward hooks in one run."""
    seen = {}

    def keep(grad, hook):
        assert hook.name not in seen, "fired twice"
        seen[hook.name] = grad.clone()

    with model.hooks(bwd_hooks=[(name, keep) for name in names]):
        out = model(pixels)
        (out * weights_like(out)).sum().backward()
    assert set(seen) == set(names)
    return seen


def every_gradient(model, pixels):
    """Gradients at all hook points; gated ones by themselves, since they change what runs."""
    always = [n for n in model.hook_dict if not n.endswith(GATED)]
    found = gradients(model, pixels, always)
    for gate in GATED:
        found |= gradients(model, pixels, [n for n in model.hook_dict if n.endswith(gate)])
    return found


@pytest.fixture(scope="module")
def trainable(hf_tower):
    from vit_lens import HookedViT

    return HookedViT.from_module(hf_tower)


@pytest.fixture(scope="module")
def found(trainable, pixels):
    return every_gradient(trainable, pixels)


def source_gradients(tower, run, pixels, points):
    """Gradients at inputs (``<``) and outputs (``>``) of a source tower's modules, and at its pixels."""
    held, handles = {}, []

    def keep(where):
        def hook(module, args, out=None):
            tensor = args[0] if out is None else out[0] if isinstance(out, tuple) else out
            tensor.retain_grad()
            held[where] = tensor

        return hook

    for where in set(points.values()):
        module = tower.get_submodule(where[1:])
        add = module.register_forward_pre_hook if where[0] == "<" else module.register_forward_hook
        handles.append(add(keep(where)))
    pixels = pixels.clone().requires_grad_()
    out = run(pixels)
    (out * weights_like(out)).sum().backward()
    for handle in handles:
        handle.remove()
    return {name: held[where].grad for name, where in points.items()}, pixels.grad


def hf_points(n_layers):
    """Where Hugging Face's CLIP has the tensor of a hook point."""
    tower, points = (
        "vision_model",
        {"hook_image_embeds": ">visual_projection", "hook_pooled": ">vision_model.post_layernorm"},
    )
    for name in ("hook_embed_raw", "hook_pos_embed_raw"):  # through the norm, both see what their sum sees
        points[name] = f"<{tower}.pre_layrnorm"
    for name in ("hook_embed", "hook_pos_embed"):
        points[name] = f">{tower}.pre_layrnorm"
    for n in range(n_layers):
        ours, theirs = f"blocks.{n}", f"{tower}.encoder.layers.{n}"
        points |= {f"{ours}.attn.hook_{c}": f">{theirs}.self_attn.{c}_proj" for c in "qkv"}
        points |= {
            f"{ours}.attn.hook_z": f"<{theirs}.self_attn.out_proj",
            f"{ours}.hook_attn_out": f">{theirs}.self_attn.out_proj",
            f"{ours}.hook_resid_pre": f"<{theirs}.layer_norm1",
            f"{ours}.ln1.hook_normalized": f">{theirs}.layer_norm1",
            f"{ours}.hook_resid_mid": f"<{theirs}.layer_norm2",
            f"{ours}.ln2.hook_normalized": f">{theirs}.layer_norm2",
            f"{ours}.mlp.hook_pre": f">{theirs}.mlp.fc1",
            f"{ours}.mlp.hook_post": f"<{theirs}.mlp.fc2",
            f"{ours}.hook_mlp_out": f">{theirs}.mlp.fc2",
            f"{ours}.hook_resid_post": f">{theirs}",
        }
    return points


def test_gradients_of_the_hugging_face_tower(hf_tower, trainable, found, pixels):
    points = hf_points(trainable.cfg.n_layers)
    expected, of_pixels = source_gradients(hf_tower, lambda x: hf_tower(x).image_embeds, pixels, points)
    for name, grad in expected.items():
        close(found[name].reshape(grad.shape), grad)
        assert grad.abs().max() > 0, name
    ours = pixels.clone().requires_grad_()
    out = trainable(ours)
    (out * weights_like(out)).sum().backward()
    close(ours.grad, of_pixels)
    assert len(points) == 6 + 13 * 3


def open_clip_points(n_layers):
    points = {"hook_embed": ">ln_pre", "hook_pos_embed": ">ln_pre", "ln_final.hook_normalized": ">ln_post"}
    for n in range(n_layers):
        ours, theirs = f"blocks.{n}", f"transformer.resblocks.{n}"
        points |= {
            f"{ours}.hook_attn_out": f">{theirs}.ls_1",
            f"{ours}.ln1.hook_normalized": f">{theirs}.ln_1",
            f"{ours}.hook_resid_mid": f"<{theirs}.ln_2",
            f"{ours}.ln2.hook_normalized": f">{theirs}.ln_2",
            f"{ours}.mlp.hook_pre": f">{theirs}.mlp.c_fc",
            f"{ours}.mlp.hook_post": f">{theirs}.mlp.gelu",
            f"{ours}.hook_mlp_out": f">{theirs}.ls_2",
            f"{ours}.hook_resid_post": f">{theirs}",
        }
    return points


@pytest.mark.parametrize("kind", OPEN_CLIP)
def test_gradients_of_open_clip_towers(kind):
    """Every kind of read-out, with layer scale, which the conversion folds into the weights."""
    from vit_lens import HookedViT

    tower = open_clip_tower(**OPEN_CLIP[kind])
    model = HookedViT.from_module(tower)
    x, points = images(model), open_clip_points(3)
    expected, of_pixels = source_gradients(tower, tower, x, points)
    found = gradients(model, x, list(points))
    for name, grad in expected.items():
        close(found[name].reshape(grad.shape), grad)
        assert grad.abs().max() > 0, name
    ours = x.clone().requires_grad_()
    out = model(ours)
    (out * weights_like(out)).sum().backward()
    close(ours.grad, of_pixels)


# ---- what no source tower has as a tensor: scales, scores, patterns, results, inputs split by head -------------


def plain_gradients(model, pixels):
    """Gradients at every hook point of a CLS tower, from a forward pass written out with nothing of the package."""
    state, cfg, leaves = model.state_dict(), model.cfg, {}

    def at(name, x):
        leaves[name] = torch.zeros(x.shape, dtype=x.dtype, requires_grad=True)
        return x + leaves[name]

    def norm(name, x, shape=None):
        """LayerNorm; its hook points have no head axis, though its input may have one."""
        scale = (x.var(-1, correction=0, keepdim=True) + cfg.eps).sqrt()
        per_head = (slice(None),) * 2 + (None,) if x.ndim == 4 else (...,)
        leaf = at(f"{name}.hook_scale", torch.zeros_like(scale[:, :, 0] if x.ndim == 4 else scale))
        out = (x - x.mean(-1, keepdim=True)) / (scale + leaf[per_head]) * state[f"{name}.w"] + state[f"{name}.b"]
        if shape is None:
            return out
        leaf = at(f"{name}.hook_normalized", torch.zeros(shape, dtype=x.dtype))
        return out + leaf[per_head]

    (rows, columns), (ph, pw) = cfg.grid, cfg.patch_size
    patches = (
        pixels.unfold(2, ph, ph).unfold(3, pw, pw).permute(0, 2, 3, 1, 4, 5).reshape(len(pixels), rows * columns, -1)
    )
    cls = state["embed.cls_token"].expand(len(pixels), 1, -1)
    embed = at("hook_embed_raw", torch.cat([cls, patches @ state["embed.W_E"]], 1))
    pos = at("hook_pos_embed_raw", state["pos_embed.W_pos"].expand_as(embed))
    x = norm("ln_pre", embed + pos)
    x = at("hook_pos_embed", at("hook_embed", x))
    for n in range(cfg.n_layers):
        b = f"blocks.{n}"
        x = at(f"{b}.hook_resid_pre", x)
        per_head = at(f"{b}.hook_attn_in", x[:, :, None].repeat(1, 1, cfg.n_heads, 1))
        # one norm for all three: shared leaves for scale and output, own leaves for the split inputs
        split = torch.stack([at(f"{b}.hook_{c}_input", per_head) for c in "qkv"])
        three = split.permute(1, 2, 0, 3, 4).flatten(2, 3)
        q, k, v = norm(f"{b}.ln1", three, x.shape).unflatten(2, (3, cfg.n_heads)).unbind(2)
        q, k, v = (
            at(f"{b}.attn.hook_{c}", torch.einsum("bphd,hde->bphe", y, state[f"{b}.attn.W_{c.upper()}"])
               + state[f"{b}.attn.b_{c.upper()}"])
            for c, y in zip("qkv", (q, k, v), strict=True)
        )  # fmt: skip
        scores = at(f"{b}.attn.hook_attn_scores", torch.einsum("bqhe,bkhe->bhqk", q, k) / math.sqrt(cfg.d_head))
        pattern = at(f"{b}.attn.hook_pattern", scores.exp() / scores.exp().sum(-1, keepdim=True))
        z = at(f"{b}.attn.hook_z", torch.einsum("bhqk,bkhe->bqhe", pattern, v))
        result = at(f"{b}.attn.hook_result", torch.einsum("bphe,hed->bphd", z, state[f"{b}.attn.W_O"]))
        x = at(f"{b}.hook_resid_mid", x + at(f"{b}.hook_attn_out", result.sum(2) + state[f"{b}.attn.b_O"]))
        hidden = norm(f"{b}.ln2", at(f"{b}.hook_mlp_in", x), x.shape)
        hidden = at(f"{b}.mlp.hook_pre", hidden @ state[f"{b}.mlp.W_in"] + state[f"{b}.mlp.b_in"])
        hidden = at(f"{b}.mlp.hook_post", hidden * torch.sigmoid(1.702 * hidden))
        out = at(f"{b}.hook_mlp_out", hidden @ state[f"{b}.mlp.W_out"] + state[f"{b}.mlp.b_out"])
        x = at(f"{b}.hook_resid_post", x + out)
    pooled = at("hook_pooled", norm("ln_final", x, x.shape)[:, 0])
    out = at("hook_image_embeds", pooled @ state["unembed.W_U"])
    (out * weights_like(out)).sum().backward()
    return {name: leaf.grad for name, leaf in leaves.items()}, out


def test_gradients_of_every_hook_point_in_plain_pytorch(trainable, found, pixels):
    expected, out = plain_gradients(trainable, pixels)
    close(out, trainable(pixels))
    assert set(expected) == set(found) == set(trainable.hook_dict)
    for name, grad in expected.items():
        close(found[name], grad)
        assert grad.abs().max() > 0, name


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_what_small_edits_do(kind, trainable):
    """A forward hook that adds a little to one point changes the output as the backward hook there says."""
    from vit_lens import HookedViT

    model = trainable
    if kind in OPEN_CLIP:
        model = HookedViT.from_module(open_clip_tower(**OPEN_CLIP[kind]))
    elif kind in OWN:
        model = own_tower(kind)
    x, step = images(model)[:1], 1e-5
    grads = every_gradient(model, x)
    assert set(grads) == set(model.hook_dict)
    generator = torch.Generator().manual_seed(3)
    for name, grad in grads.items():
        direction = torch.randn(grad.shape, generator=generator, dtype=grad.dtype)

        def edited(sign, name=name, direction=direction):
            def edit(act, hook):
                return act + sign * step * direction

            out = model.run_with_hooks(x, fwd_hooks=[(name, edit)])
            return (out * weights_like(out)).sum()

        with torch.no_grad():
            slope = (edited(1) - edited(-1)) / (2 * step)
        predicted = (grad * direction).sum()
        assert abs(slope - predicted) < 1e-6 * (1 + abs(predicted)), name


# ---- the ways to a gradient agree ----------------------------------------------------------------------------


def test_incl_bwd_is_the_gradient_of_the_sum(trainable, pixels):
    """With every hook point in the cache, gated ones one kind at a time; gradients have their activations' shape."""
    always = [n for n in trainable.hook_dict if not n.endswith(GATED)]
    groups = [always, *([n for n in trainable.hook_dict if n.endswith(gate)] for gate in GATED)]
    seen = {}

    def keep(grad, hook):
        seen[hook.name] = grad.clone()

    for names in groups:
        _, cache = trainable.run_with_cache(pixels, names_filter=names, incl_bwd=True)
        with trainable.hooks(bwd_hooks=[(n, keep) for n in names]):
            trainable(pixels).sum().backward()
        assert len(cache.keys()) == 2 * len(names)
        for name in names:
            close(cache[f"{name}_grad"], seen[name])
            assert cache[f"{name}_grad"].shape == cache[name].shape
    assert torch.equal(seen.pop("blocks.0.hook_mlp_in"), cache["blocks.0.hook_mlp_in_grad"])
    assert not trainable.list_hooks()


@pytest.mark.parametrize("wrap", [lambda grad: grad, lambda grad: (grad,)], ids=["tensor", "tuple"])
def test_a_backward_hook_edits_the_gradient(trainable, pixels, wrap):
    """Zero the gradient of one MLP's output: its weights get none, the others' follow."""
    trainable.zero_grad()
    with trainable.hooks(bwd_hooks=[("blocks.1.hook_mlp_out", lambda grad, hook: wrap(grad * 0))]):
        trainable(pixels).sum().backward()
    assert trainable.blocks[1].mlp.W_out.grad.abs().max() == 0
    assert trainable.blocks[0].mlp.W_out.grad.abs().max() > 0
    cut = trainable.W_E.grad.clone()
    trainable.zero_grad()
    trainable(pixels).sum().backward()
    assert (cut - trainable.W_E.grad).abs().max() > 1e-6
    trainable.zero_grad()


def test_a_backward_hook_that_only_looks_changes_nothing(trainable, pixels):
    trainable.zero_grad()
    trainable(pixels).sum().backward()
    expected = trainable.W_E.grad.clone()
    trainable.zero_grad()
    seen = []
    with trainable.hooks(bwd_hooks=[(lambda n: n.endswith("hook_z"), lambda grad, hook: seen.append(hook.name))]):
        trainable(pixels).sum().backward()
    close(trainable.W_E.grad, expected)
    assert seen == [f"blocks.{n}.attn.hook_z" for n in (2, 1, 0)]
    trainable.zero_grad()
