"""What a small sweep needs: a random tower as wide as the tiny decoder, that decoder, and three pictures."""

import numpy as np
import tiny_kandinsky
import torch
from conftest import randomize
from PIL import Image


def tower(encoder_id="test/tower", act="gelu"):
    """A random CLIP tower of two layers and three heads."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    from vit_lens import HookedViT, PreprocessSpec

    config = CLIPVisionConfig(
        hidden_size=33, intermediate_size=44, num_hidden_layers=2, num_attention_heads=3, image_size=20, patch_size=10,
        projection_dim=tiny_kandinsky.D_EMBED, hidden_act=act,
    )  # fmt: skip
    spec = PreprocessSpec(
        size=(20, 20), mean=(0.5, 0.4, 0.45), std=(0.3, 0.2, 0.25), interpolation="bicubic", resize_mode="shortest"
    )
    found = randomize(CLIPVisionModelWithProjection(config).eval())
    with torch.no_grad():
        found.visual_projection.weight.mul_(8)  # a natural length of embedding
    return HookedViT.from_module(found, preprocess_spec=spec, encoder_id=encoder_id).requires_grad_(False)


def decoder(**settings):
    """The tiny decoder, made for that tower."""
    from vit_lens import DecodeSettings, KandinskyDecoder

    defaults = dict(steps=2, guidance=3.0, scheduler="ddim", height=32, width=32) | settings
    return KandinskyDecoder(*tiny_kandinsky.parts(), encoder="test/tower", defaults=DecodeSettings(**defaults))


def pictures(folder):
    """Three pictures of noise, one of which has a name to be careful with."""
    generator = np.random.default_rng(0)
    paths = [folder / name for name in ("a.png", "<b>&.png", "c.png")]
    for path in paths:
        Image.fromarray(generator.integers(0, 256, (31, 25, 3), dtype=np.uint8)).save(path)
    return paths


def lenses(model, images):
    """A steering lens, anchored on the mean of some images, and the Diffusion Lens."""
    from vit_lens import DiffusionLens, DiffusionSteeringLens, ReferenceMeans

    means = ReferenceMeans.from_images(model, images)
    return [DiffusionSteeringLens(alpha=4.0, anchor="mean", reference=means), DiffusionLens()]


def options(**flat):
    """Arguments of a sweep from a flat list of settings: those of its option objects by their names."""
    from vit_lens import Beside, Controls, Drawing, Execution

    def taken(*names):
        return {name: flat.pop(name) for name in names if name in flat}

    beside = taken("labels", "texts", "groups", "gallery", "means", "live")
    drawing, execution = taken("settings", "seeds", "batch_size"), taken("executor", "shard", "threads")
    against = {
        "drawn": flat.pop("controls", False),
        "seed": flat.pop("control_seed", 0),
        "draws": flat.pop("draws", 20),
    }
    flat["controls"] = Controls(**against)
    return flat | {
        "drawing": Drawing(**drawing), "execution": Execution(**execution), "beside": Beside(**beside)
    }  # fmt: skip


def contents(path):
    """Every file below a folder, by its relative name."""
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def quick_decoder():
    """A decoder whose pictures cost nothing: noise that embedding, settings and rows per pass decide.

    ``calls`` are the (rows, settings, batch_size) it was asked for, ``before`` is called with the settings of each,
    ``room`` is how many rows of the UNet fit into its memory.
    """
    import hashlib

    from vit_lens import DecodeSettings, KandinskyDecoder
    from vit_lens.errors import DecoderError

    class Quick(KandinskyDecoder):
        calls, before, room, n_free = (), staticmethod(lambda settings: None), 10**9, 5

        def batch_size(self, settings):
            return 5

        def batch_size_for(self, settings):
            return min(self.n_free, self.batch_size(settings))

        def decode(self, condition, *, negative, settings, batch_size, on_smaller=None):
            embeds = condition.pooled
            assert len(embeds) == batch_size and negative.pooled.shape == (1, tiny_kandinsky.D_EMBED)
            n_rows = len(torch.unique(embeds, dim=0)) if batch_size > 1 else 1  # the rest fills the batch up
            self.calls = (*self.calls, (n_rows, settings, batch_size))
            self.before(settings)
            while batch_size * (1 + any(settings.guided_steps)) > self.room:
                if batch_size == 1:
                    raise DecoderError("one picture does not fit")
                batch_size //= 2
                on_smaller(batch_size)
            return torch.stack([self._picture(embed, settings, batch_size) for embed in embeds])

        def _picture(self, embed, settings, batch_size):
            said = embed.numpy().tobytes() + repr((settings, batch_size)).encode()
            generator = np.random.default_rng(list(hashlib.sha256(said).digest()))
            return torch.from_numpy(generator.integers(0, 256, (20, 20, 3), dtype=np.uint8))

    defaults = DecodeSettings(steps=6, guidance=3.0, scheduler="ddpm", height=32, width=32)
    return Quick(*tiny_kandinsky.parts(), encoder="test/tower", defaults=defaults)
