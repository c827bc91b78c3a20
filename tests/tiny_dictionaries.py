"""Dictionaries of random weights and biases, every kind of encoder, on shapes that are not round."""

import torch

KINDS = ("relu", "topk", "batchtopk", "jumprelu", "pursuit", "signed")


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def make(kind="topk", d=35, n=53, k=7, seed=0, dtype=torch.float64, **said):
    """A dictionary of random weights and biases; ``said`` are fields of its semantics, or of itself."""
    from vit_lens.dictionaries import Dictionary, Semantics

    inner = {name: said.pop(name) for name in list(said) if name in Semantics.__dataclass_fields__}
    plain = dict(
        encoder=kind, k=k if kind in ("topk", "pursuit", "signed") else None, subtracts_bias=True,
        relu_after_topk=True, input_scale=1.0, layer_norm=False, rescales_by_decoder_norm=False,
    )  # fmt: skip
    semantics = Semantics(**(plain | inner))
    tensors = dict(W_dec=randn(n, d, seed=seed) / d**0.5, b_dec=randn(d, seed=seed + 1))
    if kind not in ("pursuit", "signed"):
        tensors |= dict(W_enc=randn(d, n, seed=seed + 2) / d**0.5, b_enc=randn(n, seed=seed + 3) * 0.3)
    if kind in ("batchtopk", "jumprelu"):
        tensors["threshold"] = randn(n, seed=seed + 4).abs() * 0.5
    return Dictionary(semantics=semantics, **(tensors | said)).to(dtype=dtype)


def slow_codes(dictionary, x):
    """What a dictionary with an encoder of its own must give, one token and one feature at a time."""
    said, out = dictionary.semantics, torch.zeros(len(x), dictionary.n_features, dtype=x.dtype)
    for t, token in enumerate(x):
        y = token * said.input_scale
        if said.layer_norm:
            y = y - y.sum() / len(y)
            y = y / ((y.square().sum() / (len(y) - 1)).sqrt() + 1e-5)
        y = y - dictionary.b_dec if said.subtracts_bias else y
        pre = []
        for j in range(dictionary.n_features):
            value = float((y * dictionary.W_enc[:, j]).sum() + dictionary.b_enc[j])
            pre.append(value * float(dictionary.W_dec[j].norm()) if said.rescales_by_decoder_norm else value)
        order = sorted(range(len(pre)), key=lambda j: -pre[j])
        for rank, j in enumerate(order):
            if said.encoder == "topk":
                value = pre[j] if rank < said.k else 0.0
                out[t, j] = max(value, 0.0) if said.relu_after_topk else value
            elif said.encoder == "relu":
                out[t, j] = max(pre[j], 0.0)
            else:
                out[t, j] = pre[j] if pre[j] > float(dictionary.threshold[j]) else 0.0
    return out


def slow_pursuit(x, atoms, k):
    """Gradient pursuit with all atoms held, as it was published, but for floors that are relative."""
    eps = torch.finfo(x.dtype).eps
    weights = torch.zeros(len(x), len(atoms), dtype=x.dtype)
    active = torch.zeros_like(weights, dtype=torch.bool)
    for _ in range(k):
        left = x - weights @ atoms
        products = left @ atoms.T
        best, at = products.max(1)
        for t in range(len(x)):
            if best[t] > 64 * eps * x[t].norm():
                active[t, at[t]] = True
        gradient = active * products
        along = gradient @ atoms
        square = along.square().sum(1)
        length = (along * left).sum(1) / square.clamp(min=torch.finfo(x.dtype).tiny)
        length = torch.where(square > eps * gradient.square().sum(1), length, 0)
        weights = (weights + length[:, None] * gradient).relu()
    return weights
