"""Which model it is, and which of its hook points."""

__all__ = ["hook_name_of", "identity_of"]

from contextlib import suppress
from typing import Any

from vit_lens.addresses import find_address
from vit_lens.errors import DictionaryError, UnknownSiteError, nearest
from vit_lens.identity import fingerprint


def identity_of(model: Any) -> tuple[str, str]:
    """Return the id of a model, and the digits that identify its weights.

    Args:
        model: A hooked model.

    >>> identity_of(model)[0]
    'vit_lens/mini'
    """
    digits = getattr(model, "fingerprint", None)
    digits = digits if isinstance(digits, str) else fingerprint(model.state_dict())
    known = (getattr(model, name, None) for name in ("encoder_id", "model_id"))  # the second of diffusion models
    return next((each for each in known if isinstance(each, str)), f"module@{digits}"), digits


def hook_name_of(model: Any, site: str) -> str:
    """Return the hook point that a name or an address is of.

    Args:
        model: A hooked model.
        site: The name of a hook point, or an address such as ``L5.resid_post``.

    Raises:
        DictionaryError: The model has none, or it is of a head, whose activations are not [input token d].

    >>> hook_name_of(model, "L5.resid_post")
    'blocks.5.hook_resid_post'
    """
    points = model.hook_dict
    if site in points:
        return site
    address = find_address(site)
    if address is not None and address == address.part and not {address.head, address.neuron, address.feature} - {None}:
        with suppress(UnknownSiteError):  # what is of no one hook point
            if address.hook_name in points:
                return address.hook_name
    raise DictionaryError(
        f"the model has no hook point {site!r} for a dictionary; nearest: {nearest(site, points)}. A site such as "
        "'L5.resid_post', 'L5.mlp' or 'L5.attn' names one too"
    )
