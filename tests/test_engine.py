"""Tasks carry recipes, executors register by name, another process needs nothing but the task."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import tiny_sweep
import torch


@pytest.fixture(scope="module")
def images():
    from vit_lens.mini.shipped import sample_images

    return sample_images()[:1]


def test_another_process_draws_the_same_bits_from_tasks_alone(images, tmp_path):
    """An executor that hands tasks to a fresh process, and yields what comes, last first."""
    import vit_lens as vl
    from vit_lens.engine import executor, work

    seen = []

    @executor("elsewhere")
    class Elsewhere:
        def __init__(self, batches="1"):
            self.batches = int(batches)

        def run(self, bench, tasks, conditions):
            tasks = list(tasks)
            seen.append((len(tasks), len(repr(tasks))))
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                yield from pool.map(work, reversed(tasks))

    model, decoder = vl.HookedViT.from_pretrained("mini"), vl.load_decoder("mini")
    given = dict(
        lens=["diffusion", "dsl-mean:alpha=5"], sites=["L7.mlp", "L6H1", "L3H0"], controls=True,
        drawing=vl.Drawing(settings=decoder.settings(steps=2), batch_size=5),
    )  # fmt: skip
    here = vl.sweep(model, decoder, images, out=tmp_path / "here", **given)
    there = vl.sweep(
        model, decoder, images, out=tmp_path / "there", execution=vl.Execution(executor="elsewhere:batches=2"), **given
    )  # fmt: skip
    assert seen == [(3, seen[0][1])] and seen[0][1] < 4000  # characters: no tensor is among them
    left = [{k: v for k, v in tiny_sweep.contents(r.path).items() if k != ".vit_lens.lock"} for r in (here, there)]
    assert left[0] == left[1]


def test_what_was_made_in_memory_has_no_recipe_and_says_so(tmp_path):
    from vit_lens.engine import Bench, Task, work
    from vit_lens.errors import VitLensError

    model, decoder = tiny_sweep.tower(), tiny_sweep.decoder()
    bench = Bench(model=model, decoder=decoder, negative=None)
    assert bench.recipe is None
    with pytest.raises(VitLensError, match=r"in memory, which another process cannot load: load both by name"):
        work(Task(rows=(0,), settings=decoder.defaults, size=1, folder=tmp_path, recipe=bench.recipe))


def test_a_model_that_was_changed_has_no_recipe():
    import vit_lens as vl

    model = vl.HookedViT.from_pretrained("mini")
    assert model.source["name"] == "mini" and model.double().source["dtype"] == torch.float64
    with torch.no_grad():
        model.blocks[0].attn.b_O[0] += 1
    assert model.source is None


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("locla", "no executor 'locla'; nearest: 'local'"),
        ("local:actors", "write options as local:key=value"),
        ("local:actors=3", "executor 'local:actors=3'"),
    ],
)
def test_executors_that_are_not_there_are_named(name, said):
    from vit_lens.engine import make_executor
    from vit_lens.errors import VitLensError

    with pytest.raises(VitLensError, match=said):
        make_executor(name)


def test_a_row_depends_on_its_place_and_on_the_others_by_rounding_alone():
    """Rows permuted and filled up otherwise; that bits may differ is why a sweep is divided by whole batches."""
    from vit_lens import Condition
    from vit_lens.engine import OWN, Bench, draw

    model, decoder = tiny_sweep.tower(), tiny_sweep.decoder()
    bench = Bench(model=model, decoder=decoder, negative=decoder.negative(model))
    embeds = 3 * torch.randn(11, 32, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(11, generator=torch.Generator().manual_seed(1))
    pictures, seen = draw(bench, Condition(pooled=embeds), decoder.defaults, 4)
    other, again = draw(bench, Condition(pooled=embeds[order]), decoder.defaults, 4)
    assert (pictures[order].int() - other.int()).abs().max() <= 1
    assert (seen[OWN].flat[order] - again[OWN].flat).abs().max() < 0.05 * again[OWN].flat.abs().max()
    assert len(np.unique(pictures.numpy().reshape(11, -1), axis=0)) == 11


def test_each_image_is_read_and_decoded_once(images, tmp_path, monkeypatch):
    """With captions, controls, several lenses and seeds, drawn and embedded."""
    from pathlib import Path

    from PIL import Image

    from vit_lens import sweep

    model, decoder = tiny_sweep.tower(), tiny_sweep.decoder()
    paths = tiny_sweep.pictures(tmp_path)
    lenses, reads, opened = tiny_sweep.lenses(model, paths[1:]), [], []
    read, open_ = Path.read_bytes, Image.open
    monkeypatch.setattr(Path, "read_bytes", lambda self: (reads.append(self), read(self))[1])

    def spy(source, *arguments, **keywords):
        opened.append(source)
        return open_(source, *arguments, **keywords)

    monkeypatch.setattr(Image, "open", spy)
    given = dict(lens=lenses, sites=["L0H0", "L1.mlp"], controls=True, seeds=[0, 1], live=True)
    sweep(model, decoder, paths, out=tmp_path / "out", **tiny_sweep.options(**given))
    assert sorted(path for path in reads if path in paths) == sorted(paths)
    assert len([source for source in opened if not isinstance(source, (str, Path))]) == len(paths)
    assert not [source for source in opened if source in paths]


def test_threads_are_the_recorded_ones_within_the_block():
    from vit_lens.engine import recorded_threads

    before = torch.get_num_threads()
    with recorded_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_control_directions_are_an_inputs_own():
    from vit_lens import DiffusionLens
    from vit_lens.sweeping.lens_readings import make_readings

    model = tiny_sweep.tower()
    _, cache = model.run_with_cache(torch.zeros(1, 3, *model.cfg.image_size))
    _, control = make_readings(model, [DiffusionLens()], ["heads"], ("random",))
    one, other, again = (
        control.read(cache, control.directions(digits * 16, 0)).pooled for digits in ("0123", "4567", "0123")
    )
    assert torch.equal(one, again) and not torch.allclose(one, other, atol=1e-3)
