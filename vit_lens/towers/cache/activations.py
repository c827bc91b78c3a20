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

    Args:
        cache_dict: Activations by full hook name; gradients as ``<name>_grad``. Entries under other names are
            left alone by every method.
        model: The model.
        has_batch_dim: Whether activations have a batch axis.
        rows: ``all`` positions, only those that the model's ``readout`` uses, or ``cut`` by ``pos_slice``.
        start_at_layer: Of the run.
        read_out: How the output of the run was read; the model's own by default.
    """

    model: Any  # of the type that made the cache; what the methods above ask of it is ``Tower``
