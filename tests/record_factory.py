"""Synthetic records with the numbers of a small model, for tests of records, figures and the page."""

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import torch

HOSTILE = "<script>window.hacked=1</script>\"'>,\n</script><!-- \u2028 .png"
D_EMBED = 7


def edit_manifest(path, **changes):
    """Change what a record's manifest says, as whoever wrote it would have."""
    from vit_lens.records.opening import manifest_content

    file = Path(path) / "record.json"
    said = {**json.loads(file.read_text()), **changes}
    del said["content"]
    file.write_text(json.dumps({**said, "content": manifest_content(said)}))


def unlist(path):
    """Make a complete record one that does not say what its files are."""
    edit_manifest(path, complete=False, files=None)
    (Path(path) / "files.csv").unlink()


def without_list(record):
    """Return an unfinished record that does not say what its files are."""
    from vit_lens.records import Record

    (record.path / "files.csv").unlink()
    return Record.load(record.path)


def reading(lens, label, words="", /, **settings):
    """Return a reading as manifests hold it; its id follows from the settings."""
    digits = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    return {
        "id": f"{lens}-{digits}", "lens": lens, "settings": settings, "control": "", "of": "", "label": label,
        "words": words,
    }  # fmt: skip


def control_of(found, name="random"):
    """Return the reading of a control."""
    said = "Control: a random direction of the same length stands in for what the site writes."
    words = f"{found['words']} {said}".strip()
    return found | {"id": f"{found['id']}.{name}", "control": name, "of": found["id"], "words": words}


def mean_anchored(reference, alpha=5.0):
    """Return the mean-anchored DSL on means of this content."""
    return reading(
        "dsl", f"DSL, mean-anchored, alpha {alpha:g}", "Steers what this site writes.", definition="mean-anchored DSL",
        alpha=alpha, share=None, anchor="mean", reference=reference, reference_n=500,
    )  # fmt: skip


STEERING = mean_anchored("00aa11bb")
PLAIN = reading("diffusion", "Diffusion Lens", "Reads a vector as the last residual.", definition="LN(v) proj")
READINGS = [STEERING, control_of(STEERING), PLAIN]


def manifest(n_rows, names, *, decoder=True, encoder_id="vit_lens/mini", n_layers=8, n_heads=8, **changes):
    """Return a manifest that has every key."""
    from vit_lens.records import COLUMNS

    card = {"decoder_id": "vit_lens/mini", "encoder_id": encoder_id, "settings": {"steps": 10, "guidance": 1.5}}
    card |= {"words": "10 steps, guidance 1.5", "takes": {"pooled": [D_EMBED]}}
    return {
        "format": 2,
        "model": {
            "encoder_id": encoder_id,
            "fingerprint": "0123abcd",
            "dtype": "float32",
            "config": {"n_layers": n_layers, "n_heads": n_heads},
        },
        "decoder": {**card, "dtype": "float32"} if decoder else None,
        "readings": READINGS,
        "inputs": [
            {"kind": "image", "index": i, "name": name, "sha256": f"{i:064x}"} for i, name in enumerate(names)
        ],
        "columns": dict(COLUMNS),
        "seeds": {"decoder": [0], "control": 1},
        "machine": "cpu",
        "versions": {"vit_lens": "0.1.0", "torch": "2.0"},
        "threads": 1,
        "batch_plan": {"batch_size": 16, "n_rows": n_rows, "order": "row"},
        "beside": None,
        "controls": {"embedding_draws": 20},
        "conditions": None,
        "files": None,
        "command": "vit-lens sweep cup.png",
        "complete": False,
        "shard": None,
        "notes": [],
        **changes,
    }  # fmt: skip


def sites(n_layers, n_heads, pool=0):
    """Return (site, type, layer, head) of every head, attention block and MLP, layer by layer, then of the pool."""
    found = []
    for layer in range(n_layers):
        found += [(f"L{layer}H{head}", "head", layer, head) for head in range(n_heads)]
        found += [(f"L{layer}.{part}", part, layer, None) for part in ("attn", "mlp")]
    if pool:
        found += [(f"poolH{head}", "pool_head", None, head) for head in range(pool)]
        found += [(f"pool.{part}", f"pool_{part}", None, None) for part in ("attn", "mlp")]
    return found


def rows(
    names, *, n_layers=8, n_heads=8, pool=0, seed=0, numbers=True, plain_sites=True, controls=True, seeds=(0,),
    steering=(STEERING,), scores=False,
):  # fmt: skip
    """Return the rows of a sweep of the Diffusion Lens and of steering lenses, each with a control of each site.

    ``scores`` gives them a column ``score``, which the manifest has to declare.
    """
    rng = np.random.default_rng(seed)
    residuals = [(f"L{n}.{part}", part, n, None) for n in range(n_layers) for part in ("resid_pre", "resid_post")]
    parts = sites(n_layers, n_heads, pool)
    plan = [(site, PLAIN) for site in residuals + (parts if plain_sites else [])]
    for lens in steering:
        plan += [(site, one) for site in parts for one in ((lens, control_of(lens)) if controls else (lens,))]
    found = []
    for image, name, noise in ((image, name, noise) for image, name in enumerate(names) for noise in seeds):
        for (site, kind, layer, head), lens in plan:
            row, control = len(found), lens["control"]
            late = (n_layers if layer is None else layer + 1) / n_layers * (0.35 if control else 1.0)
            values = {
                "norm_h": float(rng.gamma(3.0, 2.0)),
                "cos_lens_clean": float(np.tanh(late * 1.2 + rng.normal(0, 0.35))),
                "faithfulness": float(np.clip(rng.normal(0.78, 0.14), -1, 1)),
                "cos_input": float(np.tanh(late + rng.normal(0, 0.4))),
                "label": str(rng.choice(["red ring", "blue square", "green star"])),
            }
            found.append(
                {"row": row, "input": image, "input_name": name, "site": site, "site_type": kind, "layer": layer}
                | {"head": head, "reading": lens["id"], "seed": noise}
                | (values if numbers else {"norm_h": values["norm_h"]})
                | ({} if control or kind.startswith("resid") else of_controls(row) if numbers else {})
                | {"picture": f"pictures/{row:06d}.png"}
                | ({"score": row / 7} if scores else {})
            )
    return found


def of_controls(row):
    """Return numbers of the controls before decoding; the leak index of some is undefined, of one it is large."""
    leak = {0: None, 1: 7.5}.get(row % 11, 0.01 * (row % 83))
    return {"cos_lens_control": 0.002 * (row % 97) - 0.03, "leak": leak}


def picture(seed, size=64):
    """Return a picture with an object on a background, as uint8 [height width 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    cx, cy, radius = rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.7), rng.uniform(0.12, 0.32)
    back, front, tilt = rng.uniform(20, 235, 3), rng.uniform(20, 235, 3), rng.uniform(-60, 60, 3)
    distance = np.hypot(x - cx, y - cy) if seed % 2 else np.maximum(abs(x - cx), abs(y - cy))
    inside = 1 / (1 + np.exp((distance - radius) * size * 0.6))
    stripes = 0.5 + 0.5 * np.sin((x * math.cos(seed) + y * math.sin(seed)) * rng.uniform(20, 50))
    ground = back + tilt * (x + y - 1)[..., None]
    body = front * (0.7 + 0.3 * stripes[..., None])
    image = ground * (1 - inside[..., None]) + body * inside[..., None] + rng.normal(0, 3, (size, size, 3))
    return image.clip(0, 255).astype(np.uint8)


def embeddings(n_rows, n_images):
    """Return random embeddings in the shapes of a record."""
    generator = torch.Generator().manual_seed(0)
    sizes = {"lens": n_rows, "reencoded": n_rows, "clean": n_images, "negative": 1}
    return {name: torch.randn(n, D_EMBED, generator=generator) for name, n in sizes.items()}


CAPTIONS = (f"a photo of a {HOSTILE}", "a photo of a dog", "a photo of a cat", "a photo of a red cat", "a ship")
GALLERY = {0: "near.png", 3: HOSTILE, 7: "sea & sand.png", 9: "from memory", 11: "far.png"}


def beside(n_rows, *, bias=None, groups=None, seed=3):
    """Return random answers to every row: captions of `CAPTIONS`, pictures of `GALLERY`."""
    from vit_lens.records.answers import Found, Readouts

    generator = torch.Generator().manual_seed(seed)

    def found(names):
        order = torch.rand(n_rows, len(names), generator=generator).argsort(-1)[:, :4]
        cosine = torch.rand(n_rows, 4, generator=generator).sort(-1, descending=True).values
        return Found(torch.tensor(names)[order].int(), cosine)

    texts = torch.randn(len(CAPTIONS), D_EMBED, generator=generator)
    return Readouts(
        captions=CAPTIONS, texts=texts / texts.norm(dim=1, keepdim=True), logit_scale=7.0, logit_bias=bias,
        groups=groups or {"captions": list(range(len(CAPTIONS)))}, names=GALLERY, means="the mean of 5 images",
        by_caption={form: found(list(range(len(CAPTIONS)))) for form in ("raw", "centred")},
        by_image={form: found(list(GALLERY)) for form in ("raw", "centred")},
    )  # fmt: skip


def live(n_layers, n_heads, *, images=(0,), recomputed=True, seed=4):
    """Return live numbers of random parts in a stream of 11 numbers."""
    from vit_lens.records import LiveNumbers

    generator = torch.Generator().manual_seed(seed)
    labels = ["start"]
    for layer in range(n_layers):
        labels += [f"L{layer}H{head}" for head in range(n_heads)] + [f"L{layer}.b_O", f"L{layer}.mlp"]
    written = torch.randn(len(images), len(labels), 11, generator=generator).double()
    written -= written.mean(-1, keepdim=True)
    gram = written @ written.mT / 11
    along, variance = gram.sum(-1), gram.sum((-1, -2)) + 1e-5
    contributions = written @ torch.randn(11, D_EMBED, generator=generator).double() / variance.sqrt()[:, None, None]
    constant = 0.2 * torch.randn(len(images), D_EMBED, generator=generator)
    upper = torch.triu_indices(len(labels), len(labels))
    scale = {"gram": gram[:, upper[0], upper[1]], "along": along, "variance": variance} if recomputed else {}
    return LiveNumbers(
        labels=tuple(labels), images=images, recomputed=recomputed, eps=1e-5, contributions=contributions.float(),
        constant=constant, embedding=(contributions.sum(1) + constant).float(),
        **{name: value.float() for name, value in scale.items()},
    )  # fmt: skip


COARSE = {"steps": 3, "guidance": 1.0, "height": 64, "words": "3 steps, no guidance"}


def within_budget(table, n_full):
    """Make rows those of a sweep within a budget: the first refined, the rest coarse, the last as the one before."""
    for row in table:
        drawn = "full" if row["row"] < n_full else "coarse"
        row |= {"drawn": drawn, "picture": f"pictures/{'coarse/' * (drawn == 'coarse')}{row['row']:06d}.png"}
    table[-1]["same_as"] = len(table) - 2
    plan = {"batch_size": 16, "n_rows": len(table), "order": "row", "budget": {"same_above": 0.9999, "coarse": COARSE}}
    return {"batch_plan": plan, "budgets": ["60s", "200 pictures"]}


def write_embeddings(writer, found):
    """Write every condition of a record: what `embeddings` returned, or conditions with other parts."""
    from vit_lens.conditions import Condition

    held = {name: Condition.of(value) for name, value in found.items()}
    writer.begin_conditions({name: condition.shapes() for name, condition in held.items()})
    for name, condition in held.items():
        writer.write_conditions(name, condition, range(len(condition)))


def build(
    path, *, names=("cup.png",), size=64, stop_after=None, noise=False, changes=None, read=None, alive=None,
    n_full=None, **options
):  # fmt: skip
    """Write a synthetic record to ``path``; ``stop_after`` pictures leaves it unfinished, ``n_full`` are refined."""
    from vit_lens.records import Record, RecordWriter

    table = rows(names, **options)
    shape = {key: options[key] for key in ("n_layers", "n_heads") if key in options}
    if "seeds" in options:
        changes = {"seeds": {"decoder": list(options["seeds"]), "control": 1}} | (changes or {})
    if n_full is not None:
        changes = (changes or {}) | within_budget(table, n_full)
    writer = RecordWriter(path, manifest(len(table), names, **shape, **_read_with(options), **(changes or {})), table)
    for image in range(len(names)):
        writer.write_input(image, picture(1000 + image, size))
    rng = np.random.default_rng(5)
    for row in range(len(table) if stop_after is None else stop_after):
        random = rng.integers(0, 256, (size, size, 3), dtype=np.uint8) if noise else picture(row, size)
        writer.write_picture(row, random, table[row].get("drawn", "full"))
    if read is not None:
        _write_neighbours(writer, GALLERY, size)
        writer.write_readouts(read)
    if alive is not None:
        writer.write_live(alive)
    write_embeddings(writer, embeddings(len(table), len(names)))
    if stop_after is None and n_full in (None, len(table)):
        writer.finish()
    return Record.load(Path(path))


def build_part(
    path, held, index, of, *, names, size=64, finish=True, changes=None, read=None, alive=None, **options
):  # fmt: skip
    """Write the part of a divided sweep that holds the ranges ``held`` of the whole's rows; returns its directory.

    ``read`` and ``alive`` are those of the whole.
    """
    from dataclasses import replace

    from vit_lens.records import RecordWriter

    whole = rows(names, **options)
    mine = [row for start, stop in held for row in range(start, stop)]
    table = [whole[row] | {"row": at, "picture": f"pictures/{at:06d}.png"} for at, row in enumerate(mine)]
    inputs = sorted({row["input"] for row in table})
    shape = {key: options[key] for key in ("n_layers", "n_heads") if key in options}
    said = {"index": index, "of": of, "n_rows": len(whole), "rows": [list(one) for one in held]}
    said = manifest(len(table), names, **shape, **_read_with(options), shard=said, **(changes or {}))
    said["inputs"] = [said["inputs"][image] for image in inputs]
    writer = RecordWriter(path, said, table)
    for image in inputs:
        writer.write_input(image, picture(1000 + image, size))
    for at, row in enumerate(mine):
        writer.write_picture(at, picture(row, size))
    if table and read is not None:
        by = {
            what: {form: type(found)(found.index[mine], found.cosine[mine]) for form, found in given.items()}
            for what, given in (("by_caption", read.by_caption), ("by_image", read.by_image))
        }
        occur = {int(i) for found in by["by_image"].values() for i in found.index.flatten()}
        names_there = {i: name for i, name in read.names.items() if i in occur}
        _write_neighbours(writer, names_there, size)
        writer.write_readouts(replace(read, names=names_there, **by))
    if table and alive is not None:
        at = [alive.images.index(image) for image in inputs]
        tensors = {name: value[at] for name, value in vars(alive).items() if isinstance(value, torch.Tensor)}
        writer.write_live(replace(alive, images=tuple(inputs), **tensors))
    if table:
        everything = embeddings(len(whole), len(names))
        picks = {"lens": mine, "reencoded": mine, "clean": inputs, "negative": [0]}
        write_embeddings(writer, {name: everything[name][pick] for name, pick in picks.items()})
    if finish:
        writer.finish()
    return Path(path)


def _read_with(options):
    if "steering" not in options:
        return {}
    return {"readings": [one for lens in options["steering"] for one in (lens, control_of(lens))] + [PLAIN]}


def _write_neighbours(writer, indices, size):
    for index in indices:
        if GALLERY[index] != "from memory":
            writer.write_neighbour(index, picture(2000 + index, size))
