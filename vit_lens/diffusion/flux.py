"""HookedFlux: FLUX.1 with hook points."""

__all__ = ["HookedFlux"]

from typing import ClassVar

from vit_lens.diffusion.hooked import HookedDiffusion


class HookedFlux(HookedDiffusion):
    """FLUX.1 [schnell] and [dev], diffusers' ``FluxPipeline``, with hook points.

    ``double`` blocks hold the image and the text in two streams with weights of their own; the image has the names
    below, and the text the same behind ``text.``, such as ``double.3.text.hook_resid_post``. Positions of the image are
    its cells of 16 x 16 pixels in row-major order; those of the text are T5's, ``max_sequence_length`` of them.

    ==================================== ======================= =====================================================
    hook point                           shape                   what it is
    ==================================== ======================= =====================================================
    ``double.{i}.hook_resid_pre``        batch pos d_model       the stream before the block
    ``double.{i}.hook_attn_gate``        batch d_model           what the attention's output is multiplied with
    ``double.{i}.attn.hook_z``           batch pos head d_head   what the heads read, before the output projection
    ``double.{i}.hook_attn_out``         batch pos d_model       what attention adds to the stream, its gate included
    ``double.{i}.hook_resid_mid``        batch pos d_model       ``hook_resid_pre + hook_attn_out``
    ``double.{i}.hook_mlp_gate``         batch d_model           what the MLP's output is multiplied with
    ``double.{i}.mlp.hook_post``         batch pos d_mlp         the MLP's neurons
    ``double.{i}.hook_mlp_out``          batch pos d_model       what the MLP adds to the stream, its gate included
    ``double.{i}.hook_resid_post``       batch pos d_model       ``hook_resid_mid + hook_mlp_out``
    ``single.{i}.hook_resid_pre``        batch pos d_model       the stream before the block
    ``single.{i}.hook_gate``             batch d_model           what the update is multiplied with, for both streams
    ``single.{i}.attn.hook_z``           batch pos head d_head   what the heads read, before the output projection
    ``single.{i}.mlp.hook_post``         batch pos d_mlp         the MLP's neurons
    ``single.{i}.hook_update``           batch pos d_model       what the block adds to the stream, its gate included
    ``single.{i}.hook_resid_post``       batch pos d_model       ``hook_resid_pre + hook_update``
    ==================================== ======================= =====================================================

    The sums are as they were computed, to the last bit; in float16 diffusers cuts the text stream and single blocks off
    at 65504. A ``single`` block computes attention and MLP in parallel and projects both with one matrix, so that what
    each of them adds is not in the model; to rounding it is ``hook_gate * (z @ W[:, :d].T)`` and ``hook_gate *
    (post @ W[:, d:].T)``, with ``W = denoiser.single_transformer_blocks[i].proj_out.weight`` and ``z`` flattened.

    Guidance of [dev] is distilled into the model and [schnell] has none: ``guidance_scale`` changes no branches, and
    there is "cond" alone. With ``negative_prompt=`` and ``true_cfg_scale=`` above 1 each step has two passes, of "cond"
    and then of "uncond".

    >>> vl.HookedFlux(vl.HookedUNet.from_pretrained("mini-sd").pipeline)
    Traceback (most recent call last):
    vit_lens.errors.UnsupportedTowerError: a StableDiffusionPipeline is not hooked here; nearest: 'FluxPipeline' of ...
    """

    formats: ClassVar[tuple[str, ...]] = ("flux",)
