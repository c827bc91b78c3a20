"""Compare a model with the tower that it came from."""

__all__ = ["load_source", "verify"]

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vit_lens.config import HookedTextConfig, HookedViTConfig
from vit_lens.errors import CheckpointError, VitLensError
from vit_lens.identity import forget_fingerprints
from vit_lens.sources import SourceTower, load_module, resolve_name, source_tower
from vit_lens.towers import HookedTower
from vit_lens.verification.copying import exact_float32
from vit_lens.verification.lockstep import differences, norm_faults
from vit_lens.verification.result import BARS, FOLDING_BAR, Verification

_N_RANDOM = 2
_N_POS = 77  # tokens of prompts for a tower without a table of positions
_SEED = 0


def verify(
    model: HookedTower,
    source: nn.Module | str | Path,
    *,
    tag: str | Path | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    images: Any = None,
    prompts: Any = None,
    dtypes: Sequence[torch.dtype] | None = None,
) -> Verification:
    """Run a model and its source on the same inputs and compare every layer; also ``model.verify(source)``.

    ``HookedViT.from_module(tower).verify(tower)`` certifies a fine-tune of your own.

    Both start from two images of normal noise (a fixed seed, so that a result can be repeated anywhere), and from
    ``images``; text towers from two prompts of random ids, and from ``prompts``. Each goes on with its own results, as
    in use. Both run as copies: the source's mode, dtype and device stay as they are. Weights that need no cast are
    shared with the copies, blocks are cast one at a time, and activations are held one layer at a time. The source is
    first cast to the model's dtype, so a model in half precision is compared with a source rounded likewise. float32 is
    computed as float32 on a GPU too.

    Args:
        model: The model to check, whose weights may be processed, without hooks.
        source: The tower in memory (open_clip, timm or Hugging Face), or a name as for ``HookedViT.from_pretrained``,
            which is then loaded with its own library.
        tag: The pretrained tag, or path of a checkpoint, of an open_clip name; None for any other source.
        revision: The branch, tag or commit of a name on the Hub; None takes its main branch.
        cache_dir: Where downloads are kept; None takes the default of the library that downloads.
        images: What both look at besides noise: pixels [batch channel height width], or images as
            ``model.preprocess`` takes them; None for nothing.
        prompts: What both text towers read besides random ids: texts, or ids as wide as those; None for nothing.
        dtypes: What to compute in; None takes float32, bfloat16 and float64, which sees what the others cannot, and
            for a float64 model float64 alone.

    Raises:
        UnsupportedTowerError: The source is of no known kind, or hooks or other code are on it.
        CheckpointError: The source cannot be loaded by its own library.
        VitLensError: The source is another tower in size, hooks are on the model, ``images`` or ``prompts`` do not fit
            it, or a dtype has no bar.

    >>> verify(model, "mini", images=images, dtypes=[torch.float32]).passed
    True
    >>> broken = vl.HookedViT.from_pretrained("mini")
    >>> with torch.no_grad():
    ...     broken.blocks[3].mlp.b_out += 1
    >>> verify(broken, "mini", dtypes=[torch.float32]).failure
    'block L3 is off by ... in float32, where the bar is 1e-05'
    """
    where: dict[str, Any] = {"tag": tag, "revision": revision, "cache_dir": cache_dir}
    if isinstance(source, nn.Module) and (given := [name for name, value in where.items() if value is not None]):
        raise VitLensError(f"{given[0]}= goes with the name of a source; this one is in memory")
    chosen = _dtypes(model, dtypes)
    model.refuse_hooks("a verdict on the model")
    forget_fingerprints(model)
    inputs = _prompts(model, prompts, images) if _kind(model) == "text" else _pixels(model, images, prompts)
    is_here = isinstance(source, nn.Module)
    tower = source_tower(source, _kind(model)) if is_here else load_source(source, model, **where)
    if len(tower.blocks) != model.cfg.n_layers:
        raise VitLensError(
            f"the {tower.kind} has {len(tower.blocks)} blocks, the model {model.cfg.n_layers}; it is another tower"
        )
    with exact_float32():
        found = {dtype: differences(model, tower, inputs, dtype) for dtype in chosen}
    given = f", {len(inputs) - _N_RANDOM} given" if len(inputs) > _N_RANDOM else ""
    noise = "images" if _kind(model) == "image" else f"prompts of {inputs.shape[1]} tokens"
    return Verification(
        differences=found, bars={dtype: _bar(dtype, model, tower) for dtype in chosen},
        faults=norm_faults(model, tower), model=model.encoder_id, fingerprint=model.fingerprint, source=tower.kind,
        inputs=f"{_N_RANDOM} random {noise} (seed {_SEED}){given}", notes=_notes(model, tower),
    )  # fmt: skip


def load_source(
    name: str | Path,
    model: HookedTower,
    *,
    tag: str | Path | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
) -> SourceTower:
    """Load the weights of a name with the library that published them, wherever ``model`` came from.

    Args:
        name: The name of the weights, as for ``HookedViT.from_pretrained``.
        model: The model to be compared; where a local open_clip checkpoint leaves the activation open, the model's is
            taken.
        tag: The pretrained tag, or path of a checkpoint, of an open_clip name; None for any other name.
        revision: The branch, tag or commit of a name on the Hub; None takes its main branch.
        cache_dir: Where downloads are kept; None takes the default of the library that downloads.

    Returns:
        The tower, of the model's dtype and on its device; ``kind`` says where it was loaded from.

    Raises:
        CheckpointError: There is nothing of this name, or that library cannot load it.

    >>> source = load_source("mini", model)
    >>> source.kind, len(source.blocks)
    ('transformers CLIPModel of vit_lens/mini', 8)
    """
    from safetensors import SafetensorError

    kind = _kind(model)
    found = resolve_name(name, tag=tag, revision=revision, cache_dir=cache_dir)
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # of the load reports of the libraries, what matters is checked here
    try:
        module = load_module(found, quick_gelu=model.cfg.act_fn == "quick_gelu", cache_dir=cache_dir, kind=kind)
    except VitLensError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"the source of {name} cannot be loaded by its own library: {reason}") from error
    finally:
        logging.disable(before)
    tower = source_tower(module, kind).to(device=model.device, dtype=model.dtype)
    tower.kind += f" of {found.told}"
    return tower


def _dtypes(model: HookedTower, dtypes: Sequence[torch.dtype] | None) -> list[torch.dtype]:
    if dtypes is None:
        if model.dtype == torch.float64:
            return [torch.float64]
        exact = [] if model.device.type == "mps" else [torch.float64]  # Apple's GPUs have no float64
        return [torch.float32, torch.bfloat16, *exact]
    dtypes = [dtypes] if isinstance(dtypes, torch.dtype) else list(dtypes)
    unknown = [dtype for dtype in dtypes if dtype not in BARS]
    if unknown or not dtypes:
        raise VitLensError(f"dtypes={dtypes}; expected some of {', '.join(map(str, BARS))}")
    return list(dict.fromkeys(dtypes))


def _kind(model: HookedTower) -> Literal["image", "text"]:
    return "text" if isinstance(model.cfg, HookedTextConfig) else "image"


def _prompts(model: Any, prompts: Any, images: Any) -> Int[Tensor, "batch pos"]:
    if images is not None:
        raise VitLensError(f"images= goes with image towers, and a {type(model).__name__} reads prompts=")
    cfg: HookedTextConfig = model.cfg
    n_pos = cfg.n_ctx if cfg.has_pos_embed else min(cfg.n_ctx, _N_POS)
    seeded = torch.Generator("cpu").manual_seed(_SEED)
    ids = torch.randint(cfg.n_vocab, (_N_RANDOM, n_pos), generator=seeded, device="cpu")
    if cfg.eos_token_id is not None:
        ids[0, n_pos // 2], ids[1:, -1] = cfg.eos_token_id, cfg.eos_token_id
    ids = ids.to(model.device)
    if prompts is None:
        return ids
    given = prompts if isinstance(prompts, Tensor) else model.to_tokens(prompts, pad_to=n_pos)
    if tuple(given.shape[1:]) != (n_pos,):
        raise VitLensError(f"prompts= of shape {list(given.shape)}; expected texts, or ids [batch, {n_pos}]")
    return torch.cat([ids, given.to(ids)])


def _pixels(model: HookedTower, images: Any, prompts: Any) -> Float[Tensor, "batch channel height width"]:
    if prompts is not None:
        raise VitLensError(f"prompts= goes with text towers, and a {type(model).__name__} sees images=")
    seeded = torch.Generator("cpu").manual_seed(_SEED)  # whatever dtype and device are the default
    noise = torch.randn(_N_RANDOM, 3, *_size(model), generator=seeded, dtype=torch.float32, device="cpu")
    noise = noise.to(model.device, model.dtype)
    if images is None:
        return noise
    pixels = images if isinstance(images, Tensor) else model.preprocess(images)
    if pixels.ndim != 4 or pixels.shape[1:] != noise.shape[1:]:
        expected = ", ".join(map(str, noise.shape[1:]))
        raise VitLensError(f"images= of shape {list(pixels.shape)}; expected [batch, {expected}]")
    return torch.cat([noise, pixels.to(noise)])


def _bar(dtype: torch.dtype, model: HookedTower, tower: SourceTower) -> float:
    is_resized = tower.own_size is not None and tower.own_size != _size(model)  # positions interpolated at load
    least = max(BARS[dtype], tower.least_bar)
    if not (tower.is_folded or is_resized or model.processing):
        return least
    return max(least, FOLDING_BAR * torch.finfo(model.dtype).eps)


def _notes(model: HookedTower, tower: SourceTower) -> list[str]:
    steps = model.processing.steps if model.processing else ()
    notes = []
    if tower.least_bar:
        notes.append(f"the source rounds its norms to float32 in every dtype: no bar is below {tower.least_bar:.0e}")
    if "center_writing_weights" in steps:
        notes.append("writing weights are centred: residual streams are compared without their mean over d_model")
    if "fold_ln" in steps:
        notes.append("LayerNorms are folded: the final norm means something else and is not compared")
    return notes


def _size(model: HookedTower) -> tuple[int, int]:
    if not isinstance(model.cfg, HookedViTConfig):
        raise VitLensError(f"a {type(model).__name__} sees no images; what is compared so far is image towers")
    return model.cfg.image_size
