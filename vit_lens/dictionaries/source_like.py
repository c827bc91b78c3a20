"""Tokens of other inputs, read as those that a dictionary was learnt from."""

__all__ = ["source_like"]

from typing import Any

from vit_lens.dictionaries.belonging import hook_name_of
from vit_lens.dictionaries.denoisers import replayed
from vit_lens.dictionaries.dictionary import Dictionary
from vit_lens.dictionaries.source import ActivationSource
from vit_lens.hooking import LoudHookedRootModule


def source_like(
    dictionary: Dictionary, model: LoudHookedRootModule, inputs: Any, site: str | None = None, **how: Any
) -> ActivationSource:
    """Return the tokens of inputs, read as those that a dictionary was learnt from.

    Args:
        dictionary: The dictionary; hook point, tokens, and of a diffusion model steps, branch and what its pipeline was
            called with are those that it says.
        model: The model that it is of.
        inputs: Images, pixels or prompts.
        site: The hook point, or its address; None for the dictionary's own. Another is read on the same images, or in
            the same draws.
        **how: What :meth:`ActivationSource.of_model` takes beside these; it stands in the place of what the dictionary
            says. Another ``noise_seed`` draws from noise that the dictionary has not seen.

    Raises:
        DictionaryError: The dictionary is of another model, says no hook point, or the model has no such one.

    >>> flux = vl.HookedFlux.from_pretrained("mini-flux")
    >>> topk = vl.Dictionary.from_pretrained("mini-flux-topk")
    >>> source = source_like(topk, flux, ["a red star", "a ring"], noise_seed=1)
    >>> source.provenance.at_steps, source.provenance.run["steps"], len(source.inputs)
    ((0, 3, 6, 9), 12, 2)
    """
    origin = dictionary.origin
    own = dictionary.check(model, site if origin.site is None else None)
    name = own if site is None else hook_name_of(model, site)
    read = {"tokens": origin.tokens, "stream": origin.stream if name == own else "output", **replayed(origin)}
    return ActivationSource.of_model(model, inputs, name, **(read | how))
