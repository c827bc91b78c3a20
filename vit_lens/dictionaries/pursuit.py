"""Sparse codes by pursuit: inference without a trained encoder, over unit atoms."""

__all__ = ["SparseCodes", "gradient_pursuit", "matching_pursuit"]

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_lens.addresses import as_index
from vit_lens.errors import DictionaryError

_ATOMS_AT_ONCE = 2**15  # the product with all atoms is [token atom]
_NUMBERS_AT_ONCE = 2**25  # chosen atoms are [token k d]
_ROUNDING = 64  # what is left below this many units in the last place of a token is rounding, and gets no atom


@dataclass(frozen=True, eq=False)
class SparseCodes:
    """Codes of tokens by the atoms that they use; an atom may stand several times in a row, and then adds up.

    Attributes:
        indices: Which atoms; 0 where ``values`` is 0.
        values: How much of each.

    >>> codes = vl.dictionaries.gradient_pursuit(torch.tensor([[2.0, 3.0, 0.0]]), torch.eye(3), k=2)
    >>> codes.dense(3)
    tensor([[2., 3., 0.]])
    """

    indices: Int[Tensor, "token k"]
    values: Float[Tensor, "token k"]

    def dense(self, n_features: int) -> Float[Tensor, "token feature"]:
        """Return the codes with a column for each atom.

        Args:
            n_features: The number of atoms.
        """
        out = self.values.new_zeros(len(self.values), n_features)
        return out.scatter_add_(1, self.indices, self.values)


@torch.no_grad()
def gradient_pursuit(x: Float[Tensor, "token d"], atoms: Float[Tensor, "feature d"], k: int) -> SparseCodes:
    """Return non-negative codes by gradient pursuit, as ITDA of arXiv 2505.24360 finds them.

    In each of ``k`` steps the atom with the largest positive product joins the active set, and the codes of the active
    set go one step along their gradient, of the length that is best along it, to where none is negative. Only the
    active set is held, so a step costs one dense product. The published step is divided by at least 1e-3, which stops
    activations of small scale; here that floor is relative, and the support does not depend on the scale of ``x``.

    Args:
        x: The tokens, without the dictionary's bias.
        atoms: The atoms, of length 1 each.
        k: The number of steps, so of atoms at most.

    Raises:
        DictionaryError: Tokens and atoms differ in width or dtype, or ``k`` is not at least 1.

    >>> codes = vl.dictionaries.gradient_pursuit(torch.tensor([[2.0, 0.0, -3.0]]), torch.eye(3), k=2)
    >>> codes.indices, codes.values
    (tensor([[0, 0]]), tensor([[2., 0.]]))
    """
    return _in_parts(_gradient_pursuit, x, atoms, k)


@torch.no_grad()
def matching_pursuit(x: Float[Tensor, "token d"], atoms: Float[Tensor, "feature d"], k: int) -> SparseCodes:
    """Return codes of either sign by matching pursuit, as ITDA of arXiv 2505.17769 finds them.

    In each of ``k`` steps the atom with the largest product, of either sign, takes its part of what is left.

    Args:
        x: The tokens, without the dictionary's bias.
        atoms: The atoms, of length 1 each.
        k: The number of steps, so of atoms at most.

    Raises:
        DictionaryError: Tokens and atoms differ in width or dtype, or ``k`` is not at least 1.

    >>> vl.dictionaries.matching_pursuit(torch.tensor([[2.0, 0.0, -3.0]]), torch.eye(3), k=2).dense(3)
    tensor([[ 2.,  0., -3.]])
    """
    return _in_parts(_matching_pursuit, x, atoms, k)


def _in_parts(pursue, x: Tensor, atoms: Tensor, k: int) -> SparseCodes:
    if x.ndim != 2 or atoms.ndim != 2 or x.shape[1] != atoms.shape[1] or x.dtype != atoms.dtype or not len(atoms):
        raise DictionaryError(
            f"tokens {tuple(x.shape)} {x.dtype} and atoms {tuple(atoms.shape)} {atoms.dtype}; expected [token d] and "
            "[feature d] of one dtype, with at least one atom"
        )
    if (steps := as_index(k)) is None or steps < 1:
        raise DictionaryError(f"k={k!r}; a pursuit takes at least one step, and a whole number of them")
    size = max(1, _NUMBERS_AT_ONCE // max(steps * x.shape[1], min(len(atoms), _ATOMS_AT_ONCE)))
    parts = [pursue(part, atoms, steps) for part in (x.split(size) if len(x) else [x])]
    indices, values = (torch.cat(each) for each in zip(*parts, strict=True))
    return SparseCodes(indices, values)


def _gradient_pursuit(x: Tensor, atoms: Tensor, k: int) -> tuple[Tensor, Tensor]:
    n, d = x.shape
    eps = torch.finfo(x.dtype).eps
    least = _ROUNDING * eps * x.norm(dim=1)
    indices, active = x.new_zeros(n, k, dtype=torch.long), x.new_zeros(n, k, dtype=torch.bool)
    chosen, values, residual = x.new_zeros(n, k, d), x.new_zeros(n, k), x
    for step in range(k):
        best, at = _best(residual, atoms, signed=False)
        is_new = (best > least) & ~((indices == at[:, None]) & active).any(1)
        indices[:, step], active[:, step] = at * is_new, is_new
        chosen[:, step] = atoms[at] * is_new[:, None]
        part, held = chosen[:, : step + 1], values[:, : step + 1]
        gradient = torch.einsum("nkd,nd->nk", part, residual)
        along = torch.einsum("nk,nkd->nd", gradient, part)
        square = gradient.square().sum(1)
        floor = (eps * square).clamp(min=torch.finfo(x.dtype).tiny)
        length = (along * residual).sum(1) / along.square().sum(1).clamp(min=floor)
        values[:, : step + 1] = (held + length[:, None] * gradient).relu()
        residual = x - torch.einsum("nk,nkd->nd", values[:, : step + 1], part)
    return indices, values


def _matching_pursuit(x: Tensor, atoms: Tensor, k: int) -> tuple[Tensor, Tensor]:
    least = _ROUNDING * torch.finfo(x.dtype).eps * x.norm(dim=1)
    indices, values = x.new_zeros(len(x), k, dtype=torch.long), x.new_zeros(len(x), k)
    residual = x
    for step in range(k):
        product, at = _best(residual, atoms, signed=True)
        product = product * (product.abs() > least)
        indices[:, step], values[:, step] = at * (product != 0), product
        residual = residual - product[:, None] * atoms[at]
    return indices, values


def _best(residual: Tensor, atoms: Tensor, *, signed: bool) -> tuple[Tensor, Tensor]:
    """Return the largest product of each token with an atom, by size where ``signed``, and the atom."""
    best = residual.new_full((len(residual),), -torch.inf)
    at = torch.zeros(len(residual), dtype=torch.long, device=residual.device)
    found = torch.zeros_like(best)
    for start in range(0, len(atoms), _ATOMS_AT_ONCE):
        products = residual @ atoms[start : start + _ATOMS_AT_ONCE].T
        top, index = (products.abs() if signed else products).max(1)
        better = top > best
        best = torch.where(better, top, best)
        at = torch.where(better, index + start, at)
        found = torch.where(better, products.gather(1, index[:, None])[:, 0], found)
    return found, at
