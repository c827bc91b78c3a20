"""HookedUNet: Stable Diffusion and SDXL with hook points."""

__all__ = ["HookedUNet"]

from typing import ClassVar

from vit_lens.diffusion.hooked import HookedDiffusion


class HookedUNet(HookedDiffusion):
    """Stable Diffusion 1 and 2, SDXL, and their Turbo forms, with hook points.

    A UNet has blocks ``down.{i}``, ``mid`` and ``up.{i}``; those with attention have transformers ``down.{i}.{j}``,
    ``mid.{j}`` and ``up.{i}.{j}`` (diffusers' ``attentions``), and each of these has blocks of its own. Pictures of
    channels are given as tokens, cells in row-major order: [batch pos d_model]. ``down.2.1``, ``mid.0``, ``up.0.0`` and
    ``up.0.1`` are where the published dictionaries of SDXL were trained, on what is ``hook_update`` here.

    ========================================== ======================= =================================================
    hook point, for ``B`` a block of the UNet  shape                   what it is
    ========================================== ======================= =================================================
    ``B.hook_resid_pre``                       batch pos d_in          what the block is given, without skip connections
    ``B.hook_resid_post``                      batch pos d_model       what it hands on; of ``down``, across as well
    ``B.{j}.hook_resid_pre``                   batch pos d_model       what a transformer is given
    ``B.{j}.hook_update``                      batch pos d_model       what it adds to that
    ``B.{j}.hook_resid_post``                  batch pos d_model       ``hook_resid_pre + hook_update``
    ``B.{j}.blocks.{k}.hook_resid_pre``        batch pos d_model       the stream in the transformer, before a block
    ``B.{j}.blocks.{k}.attn.hook_z``           batch pos head d_head   heads of self-attention, before the projection
    ``B.{j}.blocks.{k}.hook_attn_out``         batch pos d_model       what self-attention adds
    ``B.{j}.blocks.{k}.hook_resid_mid``        batch pos d_model       the stream behind self-attention
    ``B.{j}.blocks.{k}.cross_attn.hook_z``     batch pos head d_head   heads that read the prompt
    ``B.{j}.blocks.{k}.hook_cross_attn_out``   batch pos d_model       what attention to the prompt adds
    ``B.{j}.blocks.{k}.hook_resid_mid_cross``  batch pos d_model       the stream behind it
    ``B.{j}.blocks.{k}.mlp.hook_post``         batch pos d_mlp         the MLP's neurons
    ``B.{j}.blocks.{k}.hook_mlp_out``          batch pos d_model       what the MLP adds
    ``B.{j}.blocks.{k}.hook_resid_post``       batch pos d_model       the stream behind the block
    ========================================== ======================= =================================================

    The sums are as they were computed, to the last bit. Output minus input, which those dictionaries were trained on,
    is ``hook_update`` to rounding.

    With ``guidance_scale`` above 1 the pipeline runs both branches as rows of one pass; hooks are called for "uncond"
    and then for "cond", each with rows of its own.

    >>> sd = vl.HookedUNet.from_pretrained("mini-sd")
    >>> def steer(update, hook):
    ...     return 1.5 * update if hook.branch == "cond" and hook.step.index < 3 else None
    >>> steered = sd.run_with_hooks("a red star", fwd_hooks=[("mid.0.hook_update", steer)])
    >>> steered[0].size, sd.model_id
    ((32, 32), 'vit_lens/mini-sd')
    >>> sd.run_with_hooks("a red star", fwd_hooks=[("mid.0.hook_updat", steer)])
    Traceback (most recent call last):
    vit_lens.errors.UnknownHookError: no hook point 'mid.0.hook_updat'; nearest: 'mid.0.hook_update', ...
    """

    formats: ClassVar[tuple[str, ...]] = ("unet",)
