"""A decoder and a lens of another kind: one deterministic pass over a grid of patch tokens, and the patch rows."""

from dataclasses import dataclass

import torch
from torch import nn

SIDE = 2  # patches along each side of tiny_sweep's tower, and of the grid of tokens
PIXELS = 8  # of a picture for each patch


def make(model, seed=3):
    """Return the decoder for a model, with random weights, and its lens."""
    from vit_lens import Condition, Decoder, Lens
    from vit_lens.identity import fingerprint
    from vit_lens.lenses import check_cache

    def patches(model, stream):
        """Every patch token of a residual stream, read alone: [... patch d_embed]."""
        return model.embed_rows(stream[..., model.cfg.n_prefix :, :][..., None, :])

    @dataclass(frozen=True, kw_only=True)
    class Look:
        """Settings of their own type, without a seed: nothing is drawn at random."""

        contrast: float = 1.0

    class GridDecoder(Decoder):
        """Each token paints its own square."""

        decoder_id, encoder_id = "test/grid", model.encoder_id
        defaults = Look()

        def __init__(self):
            self.takes = {"tokens": model.cfg.d_embed}
            generator = torch.Generator().manual_seed(seed)
            self.paint = nn.Linear(model.cfg.d_embed, 3 * PIXELS * PIXELS)
            with torch.no_grad():
                for weight in self.paint.parameters():
                    weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
            self.calls = []

        @property
        def fingerprint(self):
            return fingerprint(self.paint.state_dict())

        def read(self, model, pixels):
            _, cache = model.run_with_cache(pixels, names_filter=[f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"])
            return Condition(tokens=patches(model, cache["resid_post", -1]))

        def decode(self, condition, *, negative, settings, batch_size, on_smaller=None):
            assert negative is None and len(condition) == batch_size
            self.calls.append(batch_size)
            with torch.inference_mode():
                squares = self.paint(settings.contrast * condition.tokens).sigmoid().mul(255).round().to(torch.uint8)
            n = len(squares)
            grid = squares.reshape(n, SIDE, SIDE, PIXELS, PIXELS, 3).permute(0, 1, 3, 2, 4, 5)
            return grid.reshape(n, SIDE * PIXELS, SIDE * PIXELS, 3).contiguous()

    @dataclass(frozen=True)
    class PatchLens(Lens):
        """Reads every patch token of the residual stream as if it were the last, times a gain."""

        gain: float = 1.0
        parts, rows = ("tokens",), "all"

        def reads(self, site):
            return site.is_residual

        def read(self, cache, sites):
            check_cache(cache)
            return Condition(
                tokens=self.gain * torch.stack([self._patches(cache, s) for s in self._own(cache, sites)], 1)
            )

        def read_control(self, cache, sites, *, generator):
            found = self.read(cache, sites).tokens
            noise = torch.randn(found.shape, generator=generator, dtype=found.dtype)
            return Condition(tokens=noise * found.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True))

        def clean(self, embeds, cache):
            return Condition(tokens=self._patches(cache, f"L{cache.model.cfg.n_layers - 1}.resid_post"))

        def _own(self, cache, sites):
            return self.check_sites(cache.model, sites)

        def _patches(self, cache, site):
            from vit_lens import Site

            site = Site.parse(site) if isinstance(site, str) else site
            return patches(cache.model, cache[site.hook_name])

    return GridDecoder(), PatchLens
