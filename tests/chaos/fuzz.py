"""Damaged and hostile files: hypothesis draws what is done to one, and a child reads the folder that it lies in.

What this package wrote must give the ``same`` result or be ``refused`` by a VitLensError. What comes from elsewhere (a
model, a decoder, captions, images) may give another result, if everything made from it says ``other content``, and
nothing that was begun with the first goes on with it. All else is a fault.
"""

import argparse
import json
import os
import random
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import tiny_kandinsky
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from . import mutations
from .children import Tally, in_child
from .kill import interrupted, part
from .sweeps import World, digest, gives

FINE = ("same", "refused", "other content")
_CONTENT = ("model", "decoder", "inputs", "beside", "readings")  # of a manifest
Mutant = tuple[str, str, int, int]  # file, mutation, and its two numbers


# ---- folders that this package wrote


def _complete(world, folder):
    world.sweep(folder / "record", **world.beside)


def _unfinished(world, folder):
    interrupted(world, _complete, folder)  # with numbers of both images, and some of the pictures


def _read(world, folder):
    return gives(folder / "record")


def _run_again(world, folder):
    _complete(world, folder)
    return gives(folder / "record")


def _parts(world, folder):
    for index in (0, 1):
        part(world, folder, index)


def _merged(world, folder):
    from vit_lens.records import merge

    return gives(merge([folder / "part0", folder / "part1"], folder.parents[0] / "merged").path)


def _make_indices(world, folder, model=None):
    from vit_lens import ReferenceMeans
    from vit_lens.readers import Gallery

    model = model or world.model
    ReferenceMeans.from_images(model, world.images).save(folder / "means.safetensors")
    Gallery.from_folder(model, world.folder / "images", out=folder / "gallery.safetensors")
    world.beside["texts"].save(folder / "bank.safetensors")


def _read_indices(world, folder, model=None):
    from vit_lens import DiffusionSteeringLens, ReferenceMeans, TextBank
    from vit_lens.readers import Gallery

    model = model or world.model
    means = ReferenceMeans.load(folder / "means.safetensors").check(model)
    gallery = Gallery.load(folder / "gallery.safetensors").check(model)
    bank = TextBank.load(folder / "bank.safetensors").check(world.model)
    again = Gallery.from_folder(model, world.folder / "images", out=folder / "gallery.safetensors")
    _, cache = model.run_with_cache(model.preprocess(world.images[:1]))
    read = DiffusionSteeringLens(alpha=4.0, anchor="mean", reference=means).embed(cache, ["L0H1"])[0]
    found = {"means": [means.content, str(means)], "lens": read, "nearest": gallery.nearest(read, 2)[1]}
    held = {"bank": bank, "gallery": gallery, "gallery gone on with": again}
    said = {name: {key: digest(value) for key, value in vars(one).items()} for name, one in held.items()}
    return {name: digest(value) for name, value in (found | said).items()}


# ---- what comes from elsewhere


def _make_model(world, folder):
    from transformers import CLIPImageProcessor

    world.hf_tower.save_pretrained(folder / "tower")
    CLIPImageProcessor(size={"shortest_edge": 20}, crop_size={"height": 20, "width": 20}).save_pretrained(
        folder / "tower"
    )


def _with_model(world, folder, out):
    from vit_lens import HookedViT

    return world.sweep(out, model=HookedViT.from_pretrained(folder / "tower"), lens=world.lenses[1], drawn=False)


def _with_indices_of_the_first(world, folder):
    from vit_lens import HookedViT

    model, first = HookedViT.from_pretrained(folder / "tower"), world.folder / "indices of the first"
    if not first.exists():
        _make_indices(world, first, model)
    return _read_indices(world, first, model)


def _make_decoder(world, folder):
    (folder / "decoder").mkdir()
    tiny_kandinsky.save(folder / "decoder", {"encoder_id": world.model.encoder_id})


def _with_decoder(world, folder, out):
    from vit_lens import load_decoder

    decoder = load_decoder(folder / "decoder")
    drawn = {"settings": decoder.settings(steps=1, guidance=1.0, height=32, width=32), "sites": ["L0H1", "L1.mlp"]}
    return world.sweep(out, decoder=decoder, images=world.images[:1], lens=world.lenses[1], **drawn)


def _make_captions(world, folder):
    (folder / "captions.txt").write_text("a red star\na blue ring\n\na green heart\n")


def _with_captions(world, folder, out):
    from vit_lens.cli.flags import Tower
    from vit_lens.cli.intake import read_captions

    texts = read_captions(str(folder / "captions.txt"), Tower())
    return world.sweep(out, model=world.mini, images=world.images[:1], lens="diffusion", drawn=False, texts=texts)


def _make_images(world, folder):
    shutil.copytree(world.folder / "images", folder / "images")


def _with_images(world, folder, out):
    from vit_lens.images import find_images

    return world.sweep(out, images=find_images([folder / "images"]))


class Kind(NamedTuple):
    """A folder that is damaged: who fills it, and who says what it gives, or sweeps with it if it is from elsewhere."""

    make: Callable
    read: Callable | None = None
    sweep: Callable | None = None


KINDS = {
    "record": Kind(_complete, _read),
    "record, run again": Kind(_complete, _run_again),
    "unfinished": Kind(_unfinished, _read),
    "unfinished, gone on with": Kind(_unfinished, _run_again),
    "parts, merged": Kind(_parts, _merged),
    "indices": Kind(_make_indices, _read_indices),
    "model": Kind(_make_model, sweep=_with_model),
    "model, with indices of the first": Kind(_make_model, _with_indices_of_the_first),
    "decoder": Kind(_make_decoder, sweep=_with_decoder),
    "captions": Kind(_make_captions, sweep=_with_captions),
    "images": Kind(_make_images, sweep=_with_images),
}


# ---- mutants


class Bench:
    """A kind's folder as it was made, what it gives, and mutants of it."""

    def __init__(self, world: World, kind: str):
        self.world, self.kind = world, KINDS[kind]
        place = Path(tempfile.mkdtemp(dir=world.folder))
        self._place, self._whole = place, place / mutations.FOLDER
        self._whole.mkdir()
        self.kind.make(world, self._whole)
        if sweep := self.kind.sweep:
            interrupted(world, lambda world, out: sweep(world, self._whole, out / "record"), place / "begun")
        found = (path for path in self._whole.rglob("*") if path.is_file() and not path.name.startswith(".vit_lens"))
        self.files = sorted(str(path.relative_to(self._whole)) for path in found)
        self._gives = self._try(None)  # here, so that no child has to load anything
        again = in_child(self._try, None)
        assert again == ("value", self._gives), (again, self._gives)

    def _try(self, mutant: Mutant | None) -> dict[str, str]:
        with tempfile.TemporaryDirectory(dir=self._place) as place:
            folder = Path(place) / mutations.FOLDER
            shutil.copytree(self._whole, folder, copy_function=_copy)
            if mutant is not None:
                mutations.mutate(folder, mutant)
            found = self._swept(folder) if self.kind.sweep else self.kind.read(self.world, folder)
            return {name: said.replace(place, "") for name, said in found.items()}

    def _swept(self, folder: Path) -> dict[str, str]:
        """Sweep anew, and in a record that was begun with the first."""
        made = self.kind.sweep(self.world, folder, folder.parents[0] / "new")
        found = gives(made.path, shown=False) | {"content": digest({key: made.manifest[key] for key in _CONTENT})}
        begun = shutil.copytree(self._place / "begun", folder.parents[0] / "begun")
        return found | {"begun": _told(lambda: self.kind.sweep(self.world, folder, begun / "record").path)}

    def mutant(self, chance: random.Random) -> Mutant:
        """Draw a kind of file, a file of it, and what is done to it."""
        suffix = chance.choice(sorted({Path(name).suffix for name in self.files}))
        name = chance.choice([name for name in self.files if Path(name).suffix == suffix])
        how = chance.choice(mutations.mutations_of(suffix))
        return name, how, chance.randrange(mutations.N), chance.randrange(mutations.N)

    def judge(self, mutant: Mutant) -> tuple[str, str]:
        """Read a mutant in a child; return what became of it, and where or in which words."""
        outcome = in_child(self._try, mutant)
        if outcome.how != "value":
            return outcome.how, str(outcome.what)
        found, whole = outcome.what, self._gives
        other = sorted(name for name in {*found, *whole} if found.get(name) != whole.get(name))
        told = [name for name in other if str(found.get(name)).startswith("refused")]
        changed = [name for name in other if name not in told]
        if not other:
            return "same", ""
        if not changed:
            return "refused", found[told[0]]
        if not self.kind.sweep or "content" not in changed:
            return "another result", ", ".join(changed)
        if "begun" not in told:
            return "went on with other content", ", ".join(changed)
        return "other content", ""


def _told(sweep):
    from vit_lens.errors import VitLensError

    try:
        return digest(gives(sweep(), shown=False))
    except VitLensError as error:
        return f"refused: {error}"


def _copy(source, target):
    shutil.copyfile(source, target)
    status = os.stat(source)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def fault(mutant: Mutant, how: str, what: str) -> str | None:
    """Name a fault so that two of one kind have one name: by where it was raised, or by the file."""
    where = what.split(":")[0] if how in ("traceback", "memory") else re.sub(r"\d+", "#", mutant[0])
    return None if how in FINE else f"{how}: {where}"


def campaign(world: World, kind: str, tally: Tally, n: int) -> None:
    """Judge so many mutants of a kind of folder."""
    bench = Bench(world, kind)

    @seed(tally.given.seed + list(KINDS).index(kind))
    @settings(max_examples=n, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=HealthCheck)
    @given(st.randoms(use_true_random=True))  # one number of hypothesis's: of several it would make many copies
    def judge(chance):
        mutant = bench.mutant(chance)
        how, what = bench.judge(mutant)
        tally.add(kind, how, fault(mutant, how, what), {"mutant": mutant, "what": what})

    judge()
    tally.keep()


def main(arguments=None) -> dict:
    """Run the campaigns and write what came of them."""
    parser = argparse.ArgumentParser("python -m tests.chaos.fuzz", description=__doc__)
    parser.add_argument("--mutants", type=int, default=110, help="of all kinds together")
    parser.add_argument("--kinds", nargs="*", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--again", nargs=2, metavar=("KIND", "MUTANT"), help="one mutant, as an example has it")
    tally = Tally(parser, arguments)
    chosen = tally.given
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        if chosen.again:
            kind, mutant = chosen.again
            found = Bench(world, kind).judge(json.loads(mutant))
            sys.stdout.write(": ".join(found) + "\n")
            return {}
        for kind in chosen.kinds:
            campaign(world, kind, tally, -(-chosen.mutants // len(chosen.kinds)))
    return tally.keep()


if __name__ == "__main__":
    main()
