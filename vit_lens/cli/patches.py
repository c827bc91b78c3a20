"""The command for patch tokens: sweep what sites write at every patch, and write the page of it."""

__all__ = ["PATCHES_EXAMPLES", "patches"]

import webbrowser
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vit_lens.cli import flags, intake
from vit_lens.errors import VitLensError

if TYPE_CHECKING:
    from vit_lens.decoders import Decoder as AnyDecoder
    from vit_lens.models import HookedViT

_LENS = "patch-dsl-mean:alpha=5"
_MEAN = "patch-dsl-mean:alpha=0"  # the anchor, whatever the site: drawn once
_USUAL_SITES: list[str] = []  # depend on the model: see the command
PATCHES_EXAMPLES = """\b
Examples:
  vit-lens patches photo.png --controls
  vit-lens patches photo.png --controls --control-kind random --control-kind other --control-images others/
  vit-lens patches photo.png --sites L5.mlp,L3H4 --patch "patch5,(1,2)"
  vit-lens patches photo.png --model facebook/dinov2-with-registers-base \\
    --decoder nyu-visionx/RAE-dinov2-wReg-base-ViTXL-n08 --lens patch-dsl:alpha=5 --sites L11.mlp --patch "(7,7)"
"""


@dataclass(kw_only=True)
class PatchPair(flags.Tower):
    """Options that name an encoder and what draws its patch tokens."""

    decoder: flags.Decoder = "mini-rae"
    decoder_encoder: flags.DecoderEncoder = None

    def load_decoder(self, dtype: str, model: "HookedViT") -> "AnyDecoder":
        """Return the decoder that the options name, in this dtype."""
        named = flags.Pair(**{name: getattr(self, name) for name in vars(self)})
        return named.load_decoder(dtype, model)


def patches(
    pair: PatchPair,
    paths: flags.ImagePaths = None,
    images: flags.Images = None,
    lens: flags.Lenses = None,
    sites: flags.Sites = _USUAL_SITES,
    patch: Annotated[
        list[str] | None,
        typer.Option(
            help="A patch that is drawn alone: patch5, or (1,2) for row and column. Commas or repeat; default each."
        ),
    ] = None,
    reference: flags.Reference = None,
    out: flags.Out = Path("vit-lens-patches"),
    batch_size: flags.BatchSize = None,
    controls: flags.Controls = False,
    control_kind: flags.ControlKinds = None,
    control_images: flags.ControlImages = None,
    normalise: flags.Normalise = None,
    control_seed: flags.ControlSeed = 0,
    decoder_dtype: flags.DecoderDtype = "float32",
    only_plan: flags.OnlyPlan = False,
    open_page: flags.Open = False,
) -> None:
    """Draw what sites write at every patch of images, one patch at a time. Run it again to go on.

    For encoders whose patch tokens a representation autoencoder draws. Default: patch-dsl-mean:alpha=5 at the MLPs of
    the first, the middle and the last layer, and at the attention of the middle one.
    """
    from vit_lens.decoders import RAEDecoder
    from vit_lens.lenses import EACH_PATCH, is_patch_spelling
    from vit_lens.mini import mini_notes
    from vit_lens.report import write_patches_page
    from vit_lens.sweeping import Controls as Against
    from vit_lens.sweeping import Drawing, plan, run

    if pair.decoder == "none":
        raise VitLensError("--decoder none: this command draws; for numbers alone take vit-lens sweep")
    found, spec = intake.find_given(paths, images), flags.one(flags.split_list(lens or ()), "--lens") or _LENS
    if not is_patch_spelling(spec) or spec.startswith("patch-diffusion") or ":at=" in spec:
        raise VitLensError(
            f"--lens {spec}: here it is patch-dsl-mean:alpha=5 or patch-dsl:alpha=5; --patch says which patches"
        )
    flags.torch_dtype(decoder_dtype)  # refuses a misspelt one before the model is loaded
    if control_kind and not controls:
        raise VitLensError("--control-kind says which controls are drawn, and none are without --controls: give both")
    kinds = flags.split_list(control_kind or ()) or ("random",)
    against = Against(drawn=controls, seed=control_seed, kinds=kinds, normalise=normalise)
    still = [_MEAN] if spec.startswith("patch-dsl-mean") else []  # a clean anchor is the model's own tokens
    alone = [f"{spec}:at={one}" for one in flags.split_list(patch or ()) or [EACH_PATCH]]
    specs = [spec, *alone, *still, "patch-diffusion"]
    intake.check_lenses(specs, pair, reference=reference)
    model = pair.load()
    n = model.cfg.n_layers
    usual = dict.fromkeys(["L0.mlp", f"L{n // 2}.attn", f"L{n // 2}.mlp", f"L{n - 1}.mlp"])
    wanted = list(dict.fromkeys([*(flags.split_list(sites) if sites else usual), f"L{n - 1}.resid_post"]))
    drawer = pair.load_decoder(decoder_dtype, model)
    if not isinstance(drawer, RAEDecoder):
        takes = " and ".join(drawer.takes)
        raise VitLensError(
            f"decoder {drawer.decoder_id} takes {takes} and draws no patch tokens; take mini-rae, or a RAE"
        )
    lenses = intake.read_lenses(specs, reference, model)
    if control_images:
        against = replace(against, bank=intake.read_bank(model, control_images, lenses, control_seed))
    drawing = Drawing(batch_size=batch_size)
    made = plan(model, drawer, found, lens=lenses, sites=wanted, drawing=drawing, controls=against)
    if only_plan:
        typer.echo(str(made))
        return
    record = run(made, out, progress=True, command=intake.command_line(), notes=mini_notes(model))
    page = write_patches_page(record)
    typer.echo(f"page: {page}")
    if open_page:
        webbrowser.open(page.resolve().as_uri())
