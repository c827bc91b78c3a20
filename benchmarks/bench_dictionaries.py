"""What it costs to learn a sparse dictionary: our TopK against SAELens, pursuit over the active set against all atoms.

Random activations of a published width, in memory, the same for all. "TopK" and SAELens' TopK take as many steps over
the same batches with as many features and codes; SAELens needs TransformerLens before 4, and where it does not load the
result says so. "active set" is our gradient pursuit; "all atoms" is the published form of ITDA, which holds the codes
of all atoms and multiplies by all of them three times a step. The two are held to each other before anything is timed.

    python benchmarks/bench_dictionaries.py
    python benchmarks/bench_dictionaries.py --width 1024 --features 16384 --device cuda
"""

import argparse
import importlib.util
import sys
from collections.abc import Callable

import torch
from measuring import add_options, interleave, positive, start, summarise, table, write_result

import vit_lens as vl
from vit_lens.dictionaries import SAELens, TopK, Trainer, fit, gradient_pursuit
from vit_lens.errors import DictionaryError

COLUMNS = ("name", "tokens_per_s", "seconds_median", "ratio", "ratio_low", "ratio_high")
TOLERANCE = 1e-3  # of the reconstruction, relative: both choose atoms by products in float32


def main() -> None:
    """Time training and pursuit, print tables and write the JSON."""
    options = parse()
    device = start(options)
    if options.dtype != "float32":
        sys.exit("dictionaries learn in float32: --dtype float32")
    x = torch.randn(options.tokens, options.width)
    training = trainers(options, x)
    learning = rates(training, "TopK", options, device)
    pursuing = rates(pursuits(options, x.to(device)), "active set", options, device)
    print(table(learning, COLUMNS))
    print(table(pursuing, COLUMNS))
    found = importlib.util.find_spec("sae_lens") is not None and "SAELens TopK" in training
    write_result(
        options, f"dictionaries_{options.width}_{device.type}_{options.dtype}",
        {
            "benchmark": "dictionaries", "width": options.width, "features": options.features, "k": options.k,
            "tokens": options.tokens, "batch": options.batch, "dtype": options.dtype, "weights": "random",
            "sae_lens": "run" if found else "not run: SAELens does not load here",
            "rows": learning, "pursuit": pursuing,
        },
    )  # fmt: skip


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=positive, default=768, help="of the activations")
    parser.add_argument("--features", type=positive, default=4096, help="of a dictionary")
    parser.add_argument("--k", type=positive, default=32, help="codes of a token")
    parser.add_argument("--tokens", type=positive, default=16384, help="in memory; each run takes all once")
    parser.add_argument("--batch", type=positive, default=1024, help="tokens of a training step, and of a pursuit")
    add_options(parser)
    return parser.parse_args()


def trainers(options: argparse.Namespace, x: torch.Tensor) -> dict[str, Callable[[], object]]:
    """Return one training by every library that is here: one pass over the tokens, measured on one batch of them."""
    shared = {"n_features": options.features, "k": options.k, "n_tokens": len(x), "normalisation": "none"}
    made: dict[str, Trainer] = {
        "TopK": TopK(**shared, patience=0, device=options.device),
        "SAELens TopK": SAELens(**shared),
    }
    source = vl.ActivationSource.of_array(x[:, None], batch_size=options.batch, buffer=len(x))
    few = vl.ActivationSource.of_array(x[: options.batch, None], batch_size=options.batch)
    found: dict[str, Callable[[], object]] = {}
    for name, config in made.items():
        try:
            fit((few, few), type(config)(**{**shared, "n_tokens": options.batch}))
        except DictionaryError as error:
            print(f"{name}: not run ({error})")
            continue
        found[name] = lambda config=config: fit((source, few), config)
    return found


def pursuits(options: argparse.Namespace, x: torch.Tensor) -> dict[str, Callable[[], object]]:
    """Return both forms of gradient pursuit over random atoms; exits where they differ."""
    x = x[: options.batch]
    atoms = torch.nn.functional.normalize(torch.randn(options.features, options.width, device=x.device), dim=1)
    codes = gradient_pursuit(x, atoms, options.k).dense(options.features)
    differs = float((codes @ atoms - dense_pursuit(x, atoms, options.k) @ atoms).norm() / x.norm())
    if not differs < TOLERANCE:
        sys.exit(f"the two pursuits differ by {differs:.2g} of the tokens; expected less than {TOLERANCE}")
    return {
        "active set": lambda: gradient_pursuit(x, atoms, options.k),
        "all atoms": lambda: dense_pursuit(x, atoms, options.k),
    }


def dense_pursuit(x: torch.Tensor, atoms: torch.Tensor, k: int) -> torch.Tensor:
    """Return the codes [token feature] of gradient pursuit as published, but for floors that are relative."""
    weights = torch.zeros(len(x), len(atoms), device=x.device)
    active = torch.zeros_like(weights, dtype=torch.bool)
    for _ in range(k):
        left = x - weights @ atoms
        products = left @ atoms.T
        active.scatter_(1, products.argmax(1, keepdim=True), True)
        gradient = active * products
        along = gradient @ atoms
        square = along.square().sum(1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
        weights = (weights + (along * left).sum(1, keepdim=True) / square * gradient).relu()
    return weights


def rates(
    candidates: dict[str, Callable[[], object]], base: str, options: argparse.Namespace, device: torch.device
) -> list[dict[str, object]]:
    """Time candidates in turns; a row has the tokens of a second beside the ratio to the base."""
    seconds = interleave(candidates, repeats=options.repeats, warmup=1, device=device)
    n = options.tokens if base == "TopK" else min(options.batch, options.tokens)
    return [{**row, "tokens_per_s": round(n / row["seconds_median"])} for row in summarise(seconds, base)]


if __name__ == "__main__":
    main()
