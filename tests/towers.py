"""Tiny towers with random weights, and a forward pass on converted weights that uses nothing of the package."""

import math
from types import SimpleNamespace

import torch
from safetensors.torch import save_file

TEXT = dict(context_length=5, vocab_size=11, width=8, heads=2, layers=1)
PATCH = 3


def randomize(module, seed=0):
    """Fill every parameter at random, gains, biases, class token, positions and layer scale included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            is_gain = name.endswith("weight") and parameter.ndim == 1
            scale = 0.3 if parameter.ndim <= 1 else 0.9 / parameter.flatten(1).shape[1] ** 0.5
            parameter.copy_(noise * scale + (1.0 if is_gain else 0.0))
    return module


def native_names():
    """Names of open_clip's native ViTs, counted here on its own from the config files."""
    import open_clip

    names = []
    for name in open_clip.list_models():
        vision = open_clip.get_model_config(name)["vision_cfg"]
        is_timm, is_resnet = "timm_model_name" in vision, isinstance(vision.get("layers", 12), list)
        if not is_timm and not is_resnet and not vision.get("attentional_pool"):
            names.append(name)
    return names


def timm_names():
    """Names of open_clip's timm towers that are plain ViTs: SigLIP, SigLIP 2 and one MobileCLIP2."""
    import open_clip

    return [name for name in open_clip.list_models() if "siglip" in name.lower() or name == "MobileCLIP2-L-14"]


def coca_names():
    """Names of open_clip's towers with attentional pooling."""
    import open_clip

    configs = {name: open_clip.get_model_config(name)["vision_cfg"] for name in open_clip.list_models()}
    return [name for name, vision in configs.items() if vision.get("attentional_pool")]


def shrink(model_cfg):
    """Return a config with head count, ratios, grid, pooling and switches kept, and everything else tiny."""
    vision = dict(model_cfg["vision_cfg"])
    head_width = vision.get("head_width", 64)
    small = head_width // 16
    vision |= {
        "layers": 2,
        "width": vision["width"] // head_width * small,
        "head_width": small,
        "image_size": vision["image_size"] // vision["patch_size"] * PATCH,
        "patch_size": PATCH,
    }
    return {
        "embed_dim": 13,
        "quick_gelu": bool(model_cfg.get("quick_gelu", False)),
        "vision_cfg": vision,
        "text_cfg": dict(TEXT),
    }


def shrunk_open_clip(name, seed=0, **changes):
    """Build the shrunk CLIP of one of open_clip's configs, in float64."""
    import open_clip

    return clip_of(shrink(open_clip.get_model_config(name)) | changes, seed)


def shrink_timm(monkeypatch):
    """Make timm build its ViTs with two narrow layers and 3 x 3 patches; head count, ratios and switches are kept."""
    import timm

    build = timm.create_model

    def create(name, **kwargs):
        size, patch = timm.get_pretrained_cfg(name).input_size[-1], int(name.split("patch")[1].split("_")[0])
        side = 3 * PATCH + (1 if size % patch else 0)
        heads = 12 if "_base_" in name else 16
        return build(name, **(dict(depth=2, embed_dim=3 * heads, img_size=side, patch_size=PATCH) | kwargs))

    monkeypatch.setattr(timm, "create_model", create)


def visual_of(name, seed=0, **changes):
    """Build one of open_clip's vision towers in float64; its timm trunk as :func:`shrink_timm` says."""
    import open_clip
    from open_clip.model import CLIPVisionCfg, _build_vision_tower

    model_cfg = open_clip.get_model_config(name)
    if "timm_model_name" not in model_cfg["vision_cfg"]:
        model_cfg = shrink(model_cfg)
    vision = model_cfg["vision_cfg"] | changes
    visual = _build_vision_tower(model_cfg["embed_dim"], CLIPVisionCfg(**vision), False)
    return randomize(visual.double().eval(), seed)


def tiny_timm(seed=0, **changes):
    """Build timm's VisionTransformer: 2 layers, 3 heads of width 5, 2 x 3 patches."""
    from timm.models.vision_transformer import VisionTransformer

    sizes = dict(img_size=(10, 15), patch_size=5, embed_dim=15, depth=2, num_heads=3, mlp_ratio=2.2, num_classes=0)
    return randomize(VisionTransformer(**(sizes | changes)).double().eval(), seed)


def hf_other(kind, seed=0, **changes):
    """Build a SigLIP or DINOv2 tower of Hugging Face in float64: 2 layers, 3 heads of width 5, 3 x 3 patches."""
    import transformers

    sizes = dict(hidden_size=15, num_hidden_layers=2, num_attention_heads=3, image_size=13, patch_size=4)
    if kind.startswith("Siglip"):
        sizes["intermediate_size"] = 22
    name = kind.removesuffix("Model").removesuffix("ForImageClassification") + "Config"
    config = getattr(transformers, name)(**(sizes | changes))
    return randomize(getattr(transformers, kind)(config).double().eval(), seed)


def siglip_model(seed=0, **changes):
    """Build a whole Hugging Face SiglipModel in float64."""
    import transformers

    text = dict(hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2, vocab_size=17)
    vision = dict(hidden_size=15, intermediate_size=22, num_hidden_layers=2, num_attention_heads=3, image_size=13)
    config = transformers.SiglipConfig(
        text_config=text | dict(max_position_embeddings=5), vision_config=vision | dict(patch_size=4) | changes
    )
    return randomize(transformers.SiglipModel(config).double().eval(), seed)


def clip_of(model_cfg, seed=0):
    """Build open_clip's CLIP of a config, in float64."""
    from open_clip.model import CLIP

    return randomize(CLIP(**model_cfg).double().eval(), seed)


def tiny_visual(seed=0, **changes):
    """Build an open_clip vision tower: 3 layers, 3 heads of width 11, 2 x 3 patches."""
    from open_clip.transformer import VisionTransformer

    sizes = dict(image_size=(10, 15), patch_size=5, width=33, layers=3, heads=3, mlp_ratio=1.7, output_dim=10)
    return randomize(VisionTransformer(**(sizes | changes)).double().eval(), seed)


def hf_vision_config(**changes):
    """Return the config of a Hugging Face vision tower: 3 layers, 5 heads of width 7, 2 x 2 patches."""
    from transformers import CLIPVisionConfig

    sizes = dict(hidden_size=35, intermediate_size=44, num_hidden_layers=3, num_attention_heads=5, image_size=22)
    return CLIPVisionConfig(**(sizes | dict(patch_size=11, projection_dim=13, hidden_act="gelu") | changes))


def hf_tower(kind="CLIPVisionModelWithProjection", seed=0, attn="sdpa", **changes):
    """Build a Hugging Face vision tower in float64."""
    import transformers

    config = hf_vision_config(**changes)
    config._attn_implementation = attn
    return randomize(getattr(transformers, kind)(config).double().eval(), seed)


def hf_clip(seed=0, **changes):
    """Build a whole Hugging Face CLIPModel in float64."""
    import transformers

    text = dict(hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2, vocab_size=17)
    text |= dict(max_position_embeddings=5, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    vision = hf_vision_config(**changes).to_dict()
    config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=9)
    return randomize(transformers.CLIPModel(config).double().eval(), seed)


def pixels_of(size, batch=2, seed=7, dtype=torch.float64):
    """Return random pixels of (height, width)."""
    noise = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return noise.to(dtype)


def block_outputs(tower, blocks, pixels, embed):
    """Run ``embed(pixels)`` and return its result with the output of every block."""
    outputs = []

    def keep(module, args, out):
        outputs.append((out[0] if isinstance(out, tuple) else out).detach())

    handles = [block.register_forward_hook(keep) for block in blocks]
    with torch.no_grad():
        embedding = embed(pixels)
    for handle in handles:
        handle.remove()
    # towers with output_tokens also return the tokens
    return (embedding[0] if isinstance(embedding, tuple) else embedding), outputs


def run_hooked(model, pixels):
    """Run a HookedViT and return its embedding with the output of every block."""
    with torch.no_grad():
        embedding, cache = model.run_with_cache(pixels, names_filter=lambda name: name.endswith("hook_resid_post"))
    return embedding, [cache[f"blocks.{layer}.hook_resid_post"] for layer in range(model.cfg.n_layers)]


def largest_error(ours, theirs):
    """Compare (embedding, residuals) of two towers."""
    assert len(ours[1]) == len(theirs[1])
    pairs = zip([ours[0], *ours[1]], [theirs[0], *theirs[1]], strict=True)
    return max((mine - other).abs().max().item() for mine, other in pairs)


def brute_force(state_dict, cfg, pixels):
    """Forward pass written out patch by patch and head by head; returns the embedding and every block's output."""
    get = state_dict.__getitem__
    batch, (ph, pw) = len(pixels), cfg.patch_size
    tokens = [get("embed.cls_token").expand(batch, -1)] if cfg.has_cls else []
    tokens += [get("embed.registers")[i].expand(batch, -1) for i in range(cfg.n_registers)]
    for row in range(cfg.image_size[0] // ph):
        for column in range(cfg.image_size[1] // pw):
            patch = pixels[:, :, row * ph : row * ph + ph, column * pw : column * pw + pw]
            token = patch.reshape(batch, -1) @ get("embed.W_E")
            tokens.append(token + get("embed.b_E") if cfg.has_patch_bias else token)
    x = torch.stack(tokens, 1) + get("pos_embed.W_pos")
    if cfg.has_ln_pre:
        x = _layer_norm(x, state_dict, "ln_pre", cfg.eps)
    outputs = []
    for layer in range(cfg.n_layers):
        x = _block(x, state_dict, f"blocks.{layer}", cfg)
        outputs.append(x)
    if cfg.ln_final == "before_pool":
        x = _layer_norm(x, state_dict, "ln_final", cfg.eps)
    if cfg.pool == "attn":
        pooled = _attention_pool(x, state_dict, cfg)
    else:
        patches = x[:, cfg.n_prefix :]
        pooled = x[:, 0] if cfg.pool == "cls" else patches.sum(1) / patches.shape[1]
    if cfg.ln_final == "after_pool":
        pooled = _layer_norm(pooled, state_dict, "ln_final", cfg.eps)
    if cfg.has_proj:
        pooled = pooled @ get("unembed.W_U")
    return (pooled + get("unembed.b_U") if cfg.has_proj_bias else pooled), outputs


def _layer_norm(x, state_dict, name, eps):
    centred = x - x.mean(-1, keepdim=True)
    return (
        centred / ((centred**2).mean(-1, keepdim=True) + eps).sqrt() * state_dict[f"{name}.w"] + state_dict[f"{name}.b"]
    )


def _block(x, state_dict, name, cfg):
    get = state_dict.__getitem__
    normed, written = _layer_norm(x, state_dict, f"{name}.ln1", cfg.eps), get(f"{name}.attn.b_O")
    for head in range(cfg.n_heads):
        q, k, v = (normed @ get(f"{name}.attn.W_{c}")[head] + get(f"{name}.attn.b_{c}")[head] for c in "QKV")
        pattern = (q @ k.transpose(-1, -2) / math.sqrt(cfg.d_head)).softmax(-1)
        written = written + pattern @ v @ get(f"{name}.attn.W_O")[head]
    x = x + written
    return x + _mlp(_layer_norm(x, state_dict, f"{name}.ln2", cfg.eps), state_dict, f"{name}.mlp", cfg.act_fn)


def _mlp(x, state_dict, name, act_fn):
    hidden = x @ state_dict[f"{name}.W_in"] + state_dict[f"{name}.b_in"]
    gate = {
        "quick_gelu": lambda h: torch.sigmoid(1.702 * h),
        "gelu": lambda h: (1 + torch.erf(h / math.sqrt(2))) / 2,
        "gelu_pytorch_tanh": lambda h: (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3))) / 2,
    }[act_fn](hidden)
    return (hidden * gate) @ state_dict[f"{name}.W_out"] + state_dict[f"{name}.b_out"]


def _attention_pool(x, state_dict, cfg):
    """One query, head by head, then the MLP or the norm."""
    get, pool = state_dict.__getitem__, cfg.attn_pool
    pooled = get("attn_pool.attn.b_O")
    for head in range(pool.n_heads):
        q = get("attn_pool.query") @ get("attn_pool.attn.W_Q")[head] + get("attn_pool.attn.b_Q")[head]
        k, v = (x @ get(f"attn_pool.attn.W_{c}")[head] + get(f"attn_pool.attn.b_{c}")[head] for c in "KV")
        pattern = (k @ q / math.sqrt(pool.d_head)).softmax(-1)
        pooled = pooled + torch.einsum("bt,btd->bd", pattern, v) @ get("attn_pool.attn.W_O")[head]
    if pool.d_mlp:
        normed = _layer_norm(pooled, state_dict, "attn_pool.ln2", cfg.eps)
        pooled = pooled + _mlp(normed, state_dict, "attn_pool.mlp", cfg.act_fn)
    return _layer_norm(pooled, state_dict, "attn_pool.ln_post", cfg.eps) if pool.has_ln_post else pooled


def save_safely(module, path):
    """Save a module's weights as safetensors."""
    save_file({name: tensor.contiguous() for name, tensor in module.state_dict().items()}, path)


def shrink_registry(monkeypatch):
    """Shrink every native config of open_clip's registry, names and tags kept; returns the configs."""
    import open_clip
    import open_clip.factory

    small = {name: shrink(open_clip.get_model_config(name)) for name in native_names()}
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", open_clip.factory._MODEL_CONFIGS | small)
    return small


def record_downloads(monkeypatch, tmp_path):
    """Let open_clip's download hand over ``.path``; ``.asked`` lists what was asked for."""
    import open_clip

    record = SimpleNamespace(path=tmp_path / "open_clip_model.safetensors", asked=[])

    def fetch(cfg, prefer_hf_hub=True, cache_dir=None):
        record.asked.append(cfg)
        return str(record.path)

    monkeypatch.setattr(open_clip, "download_pretrained", fetch)
    return record
