"""The cache as users meet it: one idea a file, put together."""

__all__ = ["ViTActivationCache"]

from typing import Any

from vit_lens.towers.cache.heads import Heads
from vit_lens.towers.cache.neurons import Neurons
from vit_lens.towers.cache.norms import Norms
from vit_lens.towers.cache.scores import Scores
from vit_lens.towers.cache.stream import Streams


class ViTActivationCache(Norms, Streams, Heads, Neurons, Scores):
    """The activations of one run, with the algebra of TransformerLens' ``ActivationCache``, exact for image towers.

    ``cache["z", 3]`` is the shorthand for a hook name. Every method reads only what it needs, so partial caches
    (``names_filter``, ``pos_slice``, ``rows="readout"``, ``stop_at_layer``, ``start_at_layer``) serve the methods
    whose activations they hold; what is missing is named, with the ``names_filter`` that keeps it. Sums over a
    decomposition are the residual stream of the run, as long as no hook edited the stream itself.

    ====================== ====================================================================================
    file                   methods
    ====================== ====================================================================================
    ``held``               ``cache[...]``, ``readout``, ``apply_slice_to_batch_dim``, ``remove_batch_dim``, ``to``
    ``norms``              ``apply_ln_to_stack``
    ``stream``             ``accumulated_resid``, ``decompose_resid``, ``stack_activation``
    ``heads``              ``compute_head_results``, ``stack_head_results``
    ``neurons``            ``get_neuron_results``, ``stack_neuron_results``, ``get_full_resid_decomposition``
    ``scores``             ``logit_attrs``, ``logit_lens``
    ====================== ====================================================================================

    Where rows are ``readout``, they stand in the place of positions.

    As in TransformerLens, a cache is a mapping of tensors, and the model it names is the one at hand: lenses and
    attribution read the activations that it holds now, edited ones too, with the weights that the model has now. After
    a change of weights, run again.

    Args:
        cache_dict: The activations by full hook name; gradients as ``<name>_grad``. Entries under other names are
            left alone by every method.
        model: The model that made them.
        has_batch_dim: Whether the activations have a batch axis.
        rows: Which positions are there: ``all``, only those that the model's ``readout`` uses, or ``cut`` by
            ``pos_slice``.
        start_at_layer: The first block of the run; None where it began with pixels.
        read_out: How the output of the run was read; None for the model's own read-out.

    >>> cache["pattern", 3].shape
    torch.Size([2, 8, 17, 17])
    >>> parts, labels = cache.decompose_resid(return_labels=True)
    >>> labels[:4], bool(torch.allclose(parts.sum(0), cache["resid_post", 7], atol=1e-3))
    (['embed', 'pos_embed', '0_attn_out', '0_mlp_out'], True)
    >>> cache.stack_head_results(pos_slice=0).shape  # what each head wrote at the class token
    torch.Size([64, 2, 128])
    >>> cache.logit_lens(bank).shape  # zero-shot logits of every layer
    torch.Size([9, 2, 6])
    >>> model.run_with_cache(pixels, names_filter="hook_pooled")[1].decompose_resid()
    Traceback (most recent call last):
    vit_lens.errors.UnknownHookError: decompose_resid reads 'hook_embed', 'hook_pos_embed', ...
    """

    model: Any  # of the type that made the cache; what the methods above ask of it is ``Tower``
