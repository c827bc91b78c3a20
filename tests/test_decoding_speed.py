"""The decoder's fast paths against slow ones, what it does where memory runs out, and what it says a decode costs."""

import gc
import weakref
from contextlib import contextmanager

import pytest
import tiny_kandinsky
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

# As torch's allocators say it: with a class of its own, and without.
RAN_OUT = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to allo"),
]


def build(dtype=torch.float32, **scheduler_overrides):
    from vit_lens.decoders import KandinskyDecoder

    unet, movq, scheduler = tiny_kandinsky.parts(**({"prediction_type": "v_prediction"} | scheduler_overrides))
    return KandinskyDecoder(unet.to(dtype), movq.to(dtype), scheduler, encoder=None, decoder_id="tiny")


@pytest.fixture(scope="module")
def decoder():
    """Shared: tests in which MoVQ's memory runs out, or that change a weight, build their own."""
    return build()


def small(decoder, **overrides):
    return decoder.settings(**(dict(steps=2, height=16, width=16, seed=3) | overrides))


def decode(decoder, n=7, start=0, output="float", batch_size=None, on_smaller=None, **overrides):
    embeds, negative = tiny_kandinsky.embeddings(n)
    return decoder.decode(
        embeds[start:], negative=negative, settings=small(decoder, **overrides), batch_size=batch_size,
        on_smaller=on_smaller, output=output,
    )  # fmt: skip


@contextmanager
def rows_seen(module, limit=None, after=0, error=RAN_OUT[0]):
    """List the rows of every call of a part; raise where they are more than the limit, from a call on."""
    seen, kept = [], []

    def look(_, args):
        seen.append(len(args[0]))
        kept.append(weakref.ref(args[0]))
        if limit is not None and len(seen) > after and len(args[0]) > limit:
            raise type(error)(*error.args)  # a new one each time: its traceback holds what the call held

    seen_by = module.register_forward_pre_hook(look)
    try:
        yield seen, kept
    finally:
        seen_by.remove()


# ---- memory that runs out ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", RAN_OUT, ids=["class", "words"])
def test_where_memory_runs_out_half_as_many_rows_run(decoder, error):
    told = []
    with rows_seen(decoder.unet, limit=4, error=error) as (seen, _):
        pictures = decode(decoder, batch_size=5, on_smaller=told.append)
    assert told == [2]
    assert seen == [6] + [3, 4] * 4  # a first step shares its unguided half; 7 rows are 4 passes of 2
    assert torch.equal(pictures, decode(decoder, batch_size=2))  # bits of a run that never tried more
    told.clear()
    with rows_seen(decoder.unet, limit=2):
        decode(decoder, batch_size=7, on_smaller=told.append)
    assert told == [3, 1]


def test_what_was_finished_is_kept_and_never_decoded_again(decoder):
    told = []
    with rows_seen(decoder.unet, limit=4, after=3) as (seen, _):
        pictures = decode(decoder, n=9, batch_size=4, on_smaller=told.append)
    assert told == [2]
    assert seen == [5, 8, 5, 8] + [3, 4] * 3  # the second pass fails at its second step; five rows are left
    assert torch.equal(pictures[:4], decode(decoder, n=9, batch_size=4)[:4])
    assert torch.equal(pictures[4:], decode(decoder, n=9, start=4, batch_size=2))


def test_what_a_pass_held_is_freed_before_the_next(decoder):
    alive = []
    gc.disable()
    try:
        with rows_seen(decoder.unet, limit=4) as (_, kept):
            decode(decoder, batch_size=5, on_smaller=lambda _: alive.append(kept[0]() is not None))
    finally:
        gc.enable()
    assert alive == [False]


def test_unpadded_passes_halve_too(decoder, monkeypatch):
    from vit_lens.decoders import contract

    monkeypatch.setattr(contract, "rows_that_fit", lambda device, bytes_per_row: 6)
    told, _ = [], decoder.batch_size_for(small(decoder, guidance=1.0))  # counts the cost, which runs the UNet on meta
    with rows_seen(decoder.unet, limit=1, after=2) as (seen, _):
        decode(decoder, n=8, guidance=1.0, on_smaller=told.append)
    assert (told, seen) == ([1], [6, 6, 2] + [1, 1] * 2)  # half of the two rows that were left, not of six


def test_movq_takes_fewer_pictures_before_the_pass_is_split():
    decoder = build()
    told = []
    with rows_seen(decoder.movq.decoder, limit=1) as (movq, _), rows_seen(decoder.unet) as (unet, _):
        pictures = decode(decoder, n=5, batch_size=5, on_smaller=told.append)
        assert (movq, unet) == ([5, 2, 1, 1, 1, 1, 1], [6, 10])
        assert told == [5, 5]  # rows per pass stay; the bits are no longer those of the plan
        again = decode(decoder, n=5, batch_size=5, on_smaller=told.append)
    assert told == [5, 5] and torch.equal(again, pictures)  # what fits is known from now on
    assert movq[7:] == [1] * 5
    assert (pictures - decode(build(), n=5, batch_size=5)).abs().max() < 1e-4


def test_movq_that_cannot_take_one_picture_splits_the_pass():
    from vit_lens.errors import DecoderError

    decoder = build()
    told = []
    with rows_seen(decoder.movq.decoder, limit=0), pytest.raises(DecoderError, match="one picture of 16 x 16"):
        decode(decoder, n=2, batch_size=2, on_smaller=told.append)
    assert told == [2, 1]


def test_one_row_that_does_not_fit_is_refused_with_what_to_do(decoder):
    from vit_lens.errors import DecoderError

    said = r"one picture of 16 x 16 does not fit into the memory of cpu.*float32.*CUDA out of memory.*smaller height"
    with rows_seen(decoder.unet, limit=0), pytest.raises(DecoderError, match=said):
        decode(decoder, batch_size=2)


def test_other_errors_are_not_taken_for_memory(decoder):
    told, error = [], RuntimeError("CUDA error: an illegal memory access was encountered")
    with rows_seen(decoder.unet, limit=0, error=error), pytest.raises(RuntimeError, match="illegal memory access"):
        decode(decoder, batch_size=2, on_smaller=told.append)
    assert told == []


def test_the_bar_ends_where_it_says(decoder, capsys):
    embeds, negative = tiny_kandinsky.embeddings(5)
    with rows_seen(decoder.unet, limit=5, after=2):
        decoder.decode(embeds, negative=negative, settings=small(decoder), batch_size=3, progress=True)
    # One pass of three rows; one that failed at its second step, one step done; two of one row.
    assert "7/7" in capsys.readouterr().err


# ---- how many rows fit -------------------------------------------------------------------------------------------


def test_rows_per_pass_follow_the_free_memory(decoder, monkeypatch):
    from vit_lens.decoders import memory
    from vit_lens.decoders.costs import decoding_cost

    settings = small(decoder)
    one = decoding_cost(decoder, settings, 1).peak_bytes
    for free, rows in [(0, 1), (one, 1), (one * 5 / 0.4 + 3, 5), (one * 6 / 0.4 - 3, 5), (one * 1000, 16)]:
        monkeypatch.setattr(memory, "free_memory", lambda device, free=free: int(free))
        assert decoder.batch_size_for(settings) == rows
    monkeypatch.setattr(memory, "free_memory", lambda device: int(one * 5 / 0.4 + 3))
    assert memory.rows_that_fit(torch.device("cuda"), one) == 10  # whose convolutions do not copy all
    larger = small(decoder, height=32, width=32)
    assert decoding_cost(decoder, larger, 1).peak_bytes > 3 * one
    monkeypatch.setattr(memory, "free_memory", lambda device: int(one * 3 / 0.4) + 3)
    assert decoder.batch_size_for(larger) == 1
    decoder.cost(small(decoder, steps=1), 1)  # counted once, which runs the UNet on the meta device
    with rows_seen(decoder.unet) as (seen, _):
        decode(decoder, n=7, steps=1)
    assert seen == [4, 4, 2]  # passes of three rows, the last unpadded, and one unguided row each


def test_free_memory_by_kind_of_device(monkeypatch):
    from vit_lens.decoders.memory import free_memory
    from vit_lens.errors import DecoderError

    assert 2**20 < free_memory(torch.device("cpu")) < 2**50
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 50)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 20)
    assert free_memory(torch.device("cuda")) == 130  # what the cache holds unused is free to torch
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 100)
    monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: 30)
    assert free_memory(torch.device("mps")) == 70
    with pytest.raises(DecoderError, match="free is not known for device meta; give batch_size"):
        free_memory(torch.device("meta"))


# ---- costs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overrides", [
    dict(), dict(guidance=1.0), dict(guidance_interval=(0.5, 1.0), steps=4), dict(guidance_interval=(0, 0.5), steps=3),
], ids=str)  # fmt: skip
def test_counted_operations_are_those_of_a_run(decoder, overrides):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from vit_lens.decoders.costs import decoding_cost

    cost = decoding_cost(decoder, small(decoder, **overrides), 3)
    # Written out, since the counter of some versions of PyTorch knows nothing of the CPU's fused attention.
    attention = sdpa_kernel(SDPBackend.MATH)
    with attention, FlopCounterMode(display=False) as counter, rows_seen(decoder.unet) as (seen, _):
        decode(decoder, n=3, batch_size=3, **overrides)
    assert (cost.flops, cost.unet_rows) == (counter.get_total_flops(), sum(seen))


@pytest.mark.parametrize("part", ["unet", "movq"])
def test_counted_memory_is_what_the_allocator_hands_out(decoder, part):
    from vit_lens.decoders.costs import decoding_cost
    from vit_lens.decoders.kandinsky_parts import movq_output, unet_output

    settings = small(decoder, height=32, width=32, guidance=1.0)
    rows = 8
    cost = decoding_cost(decoder, settings, rows)
    embeds, _ = tiny_kandinsky.embeddings(rows)
    latents = torch.randn(rows, 4, 16, 16)
    call = {
        "unet": lambda: unet_output(decoder.unet, latents, torch.tensor(500), embeds),
        "movq": lambda: movq_output(decoder.movq, latents),
    }[part]
    found, measured = getattr(cost, f"{part}_peak_bytes"), allocated_peak(call)
    assert found == pytest.approx(measured, rel=0.1), (found, measured)


def allocated_peak(call):
    """The most that the CPU's allocator had handed out at once, above the start, by its own record."""
    with torch.inference_mode():
        call()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
            call()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


# ---- the loop ----------------------------------------------------------------------------------------------------


class NothingReadsTheDevice(TorchDispatchMode):
    """With meta tensors for the device's: they have no values to read, and copies between devices are refused."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        devices = {arg.device.type for arg in args if isinstance(arg, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and devices and out.device.type not in devices:
            raise AssertionError(f"{func} copies from {devices} to {out.device}")
        return out


@pytest.mark.parametrize("guidance", [4.0, 1.0])
@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpm++"])
def test_the_host_never_waits_inside_the_loop(name, guidance):
    from vit_lens.decoders.decode_call import Run

    decoder = build()
    embeds, negative = tiny_kandinsky.embeddings(3)
    parts = decoder.unet.to("meta"), decoder.movq.to("meta")
    run = Run(*parts, decoder.scheduler, small(decoder, steps=4, scheduler=name, guidance=guidance))
    embeds, negative = embeds.to("meta"), negative.to("meta")
    with torch.inference_mode(), NothingReadsTheDevice():
        pictures = run.pictures(run.latents(embeds, negative, lambda: None), 2)
    assert pictures.shape == (3, 3, 16, 16) and pictures.is_meta
    with pytest.raises(RuntimeError), NothingReadsTheDevice():
        bool(torch.isfinite(pictures).all())  # what the loop may not do is refused here
    with pytest.raises(AssertionError, match="copies from"), NothingReadsTheDevice():
        torch.zeros(3).to("meta")


@pytest.mark.parametrize("interval", [None, (0.5, 1.0)])
def test_the_shared_half_of_the_first_step_changes_nothing(interval):
    from vit_lens.decoders.decode_call import Run

    decoder = build(torch.float64, prediction_type="epsilon")
    embeds, negative = tiny_kandinsky.embeddings(3)
    parts = decoder.unet, decoder.movq, decoder.scheduler, small(decoder, steps=3, guidance_interval=interval)
    with torch.inference_mode(), rows_seen(decoder.unet) as (seen, _):
        shared = Run(*parts).latents(embeds.double(), negative.double(), lambda: None)
        each = Run(*parts, movq_decoder=decoder.movq.decoder).latents(embeds.double(), negative.double(), lambda: None)
    assert seen == ([4, 6, 6, 6, 6, 6] if interval is None else [3, 6, 6, 3, 6, 6])
    assert (shared[0] - shared[1]).abs().max() > 0.01
    assert (shared - each).abs().max() < 1e-9


@pytest.mark.parametrize("norm_type", ["spatial", "group"])
def test_movq_without_its_loss_is_movq(norm_type):
    import diffusers

    from vit_lens.decoders.kandinsky_parts import movq_output

    movq = diffusers.VQModel(**(tiny_kandinsky.MOVQ | {"norm_type": norm_type})).eval()
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = movq.decode(latents, force_not_quantize=True).sample
        assert torch.equal(movq_output(movq, latents), expected) and expected.std() > 0


def test_a_movq_that_looks_up_its_codebook_is_refused():
    import diffusers

    from vit_lens.decoders import KandinskyDecoder
    from vit_lens.errors import DecoderError

    unet, _, scheduler = tiny_kandinsky.parts()
    movq = diffusers.VQModel(**tiny_kandinsky.MOVQ, lookup_from_codebook=True)
    with pytest.raises(DecoderError, match="lookup_from_codebook=True"):
        KandinskyDecoder(unet, movq, scheduler, encoder=None)


def test_infinite_values_are_refused_although_a_clamp_would_hide_them():
    from vit_lens.errors import DecoderError

    decoder = build()
    torch.nn.init.constant_(decoder.movq.decoder.conv_out.bias, float("inf"))
    for output in ("float", "uint8"):
        with pytest.raises(DecoderError, match="NaN or infinite"):
            decode(decoder, n=1, output=output)


def test_bytes_are_those_of_the_floats(decoder):
    floats, in_bytes = decode(decoder, n=3), decode(decoder, n=3, output="uint8")
    expected = ((floats.double() + 1) * 127.5).round().permute(0, 2, 3, 1)
    assert floats.min() >= -1 and floats.max() <= 1 and in_bytes.is_contiguous()
    assert (in_bytes.double() - expected).abs().max() <= 1
    assert (in_bytes.double() != expected).double().mean() < 1e-3  # a value at a rounding edge may fall either way


def test_channels_last_changes_the_layout_alone(monkeypatch):
    from vit_lens.decoders import decode_call

    decoder = build()
    expected, fingerprint = decode(decoder, n=2), build().fingerprint
    assert not decoder.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    monkeypatch.setattr(decode_call, "CHANNELS_LAST", ("cpu",))
    pictures = decode(decoder, n=2)
    for part in (decoder.unet.mid_block.resnets[0].conv1, decoder.movq.decoder.conv_in):
        assert part.weight.is_contiguous(memory_format=torch.channels_last)
    assert (pictures - expected).abs().max() < 1e-4
    assert decoder.fingerprint == fingerprint


# ---- compiled, and fast ------------------------------------------------------------------------------------------


def test_a_compiled_decoder_draws_the_same_and_compiles_each_shape_once(monkeypatch):
    from torch._dynamo.utils import counters

    from vit_lens.decoders import contract

    decoder = build()
    torch._dynamo.reset()
    counters.clear()
    expected = decode(decoder, batch_size=3)
    assert decoder.compile(backend="aot_eager") is decoder
    assert (decode(decoder, batch_size=3) - expected).abs().max() < 1e-4
    assert counters["stats"]["unique_graphs"] == 2  # one of the UNet, one of MoVQ; the last pass is a padded row
    monkeypatch.setattr(contract, "rows_that_fit", lambda device, bytes_per_row: 3)
    decode(decoder, n=4)  # padded although no size was said
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]


def test_a_compiled_movq_gets_one_shape(decoder):
    from vit_lens.decoders.decode_call import Run

    parts = decoder.unet, decoder.movq, decoder.scheduler, small(decoder)
    latents = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode(), rows_seen(decoder.movq.decoder) as (seen, _):
        padded = Run(*parts, movq_decoder=decoder.movq.decoder).pictures(latents, 2)
        plain = Run(*parts).pictures(latents, 2)
        whole = Run(*parts, movq_decoder=decoder.movq.decoder).pictures(latents, 8)
    assert seen == [2, 2, 2, 2, 2, 1, 5]
    assert (padded - plain).abs().max() < 1e-5 and (whole - plain).abs().max() < 1e-5


def test_the_fast_profile_is_fast(decoder):
    from vit_lens.errors import DecoderError

    fast = decoder.fast_settings()
    assert 10 <= fast.steps <= 15 and fast.guidance_interval is not None
    assert 6 * decoder.work(fast) <= 100 * 2
    assert (fast.guidance, fast.height, fast.seed) == (4.0, decoder.defaults.height, 0)
    assert decoder.fast_settings(seed=4, steps=9).to_dict() == fast.to_dict() | {"seed": 4, "steps": 9}
    with pytest.raises(DecoderError, match="no decoder setting 'step'"):
        decoder.fast_settings(step=3)
