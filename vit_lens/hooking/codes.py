"""Hook points that hold codes of a dictionary, and the features that addresses name there."""

__all__ = ["CODES", "CodesPoint", "find_feature"]

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vit_lens.addresses import Address, address_of
from vit_lens.errors import UnknownSiteError

CODES = ".hook_sae_acts_post"  # behind the name of the hook point that a dictionary is spliced at


class CodesPoint(HookPoint):
    """The hook point of a spliced dictionary's codes [batch pos feature], which says what they are of.

    Args:
        n_features: How many features there are.
        positions: The positions of tokens that the dictionary is of; None for all, and where inputs have their own.
        frequency: The share of tokens on which each feature fires; None where that was not measured.

    >>> found = vl.dictionaries.random_dictionary(128, 40, k=4, site="blocks.5.hook_resid_post")
    >>> with model.spliced(found):
    ...     _ = model(pixels)
    ...     model.hook_dict["blocks.5.hook_resid_post.hook_sae_acts_post"].n_features
    40
    """

    def __init__(self, n_features: int, positions: Sequence[int] | None, frequency: Float[Tensor, " feature"] | None):
        super().__init__()
        self.n_features, self.positions = n_features, None if positions is None else tuple(positions)
        self.frequency = frequency


def find_feature(points: Mapping[str, HookPoint], address: Address) -> tuple[Address, CodesPoint]:
    """Return the full address of a feature of a spliced dictionary, and the hook point of its codes.

    A feature that fired on no held-out token is named in a warning.

    Args:
        points: The hook points of a model by name.
        address: ``L5.f3796``, or ``L5.resid_post.f3796`` where there are several dictionaries.

    Raises:
        UnknownSiteError: No dictionary is spliced there, several are, the feature is none of its, or the address says
            more than a feature: a tower, a position or a step.

    >>> found = vl.dictionaries.random_dictionary(128, 40, k=4, site="blocks.5.hook_resid_post")
    >>> with model.spliced(found):
    ...     _ = model(pixels)
    ...     find_feature(model.hook_dict, vl.Address.parse("L5.f39"))[0]
    Address('L5.resid_post.f39')
    """
    if address != address.part:
        raise UnknownSiteError(
            f"'{address}': a feature alone is asked for, without tower, position or step: '{address.part}'"
        )
    spliced = {
        site: point
        for name, point in points.items()
        if isinstance(point, CodesPoint) and (site := address_of(name.removesuffix(CODES))) is not None
    }
    if not spliced:
        raise UnknownSiteError(
            f"feature {address}: no dictionary is spliced in; `with model.spliced(dictionary):` does"
        )
    full = address.resolve_feature(spliced)
    feature, point = full.feature or 0, spliced[replace(full, feature=None)]
    if feature >= point.n_features:
        raise UnknownSiteError(f"feature {full}: the dictionary there has features f0 to f{point.n_features - 1}")
    if point.frequency is not None and point.frequency[feature] == 0:
        warnings.warn(f"feature {full} is dead: it fired on no held-out token", stacklevel=3)
    return full, point
