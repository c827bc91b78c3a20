"""What draws and looks: a decoder, the encoder that it was made for, and readers of the pictures."""

__all__ = ["OWN", "Bench", "machine_kind", "recorded_threads"]

import os
import platform
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from vit_lens.conditions import Condition
from vit_lens.decoders import Decoder, check_pictures, stated_numerics
from vit_lens.errors import ContractError
from vit_lens.models import HookedViT

OWN = "own"
"""Under which name pictures are read as the decoder's own conditions."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Bench:
    """A decoder at work.

    Attributes:
        model: The encoder that the decoder was made for; it reads the pictures again. None where it reads no pictures.
        decoder: What draws.
        negative: The condition that guidance leads away from; None for nothing.
        readers: Other encoders that look at the pictures, by name.

    >>> from vit_lens.conditions import Condition
    >>> bench = vl.engine.Bench(model=model, decoder=decoder, negative=decoder.negative(model))
    >>> pictures = bench.draw(Condition(pooled=model(pixels)), decoder.settings(steps=1), 2)
    >>> pictures.shape, bench.look(pictures, 2)["own"]
    (torch.Size([2, 64, 64, 3]), Condition([2] rows of pooled [128]))
    """

    model: HookedViT | None
    decoder: Decoder
    negative: Condition | None
    readers: Mapping[str, HookedViT] = field(default_factory=dict)

    @property
    def recipe(self) -> dict[str, Any] | None:
        """How another process makes this bench: names and settings; None where something was made in memory."""
        parts = {"model": self.model, "decoder": self.decoder, **self.readers}
        sources = {name: getattr(part, "source", None) for name, part in parts.items()}
        return None if None in sources.values() else sources

    @torch.no_grad()
    @stated_numerics()
    def draw(
        self, condition: Condition, settings: Any, size: int, on_smaller: Callable[[int], object] | None = None, *,
        noise: str = "shared",
    ) -> UInt8[Tensor, "row height width 3"]:  # fmt: skip
        """Draw rows, filled up to ``size``: a picture does not depend on how many there are.

        Args:
            condition: What is drawn, at most ``size`` rows; with legacy noise as many as there are.
            settings: The decoder's settings, the noise seed included.
            size: How many rows run together.
            on_smaller: A function that is called with a smaller size where memory runs out, as
                :meth:`vit_lens.Decoder.decode` says; None for none.
            noise: ``shared``, or ``legacy`` of a :class:`vit_lens.decoders.TextDecoder`.

        Returns:
            Pictures, 0 to 255.

        Raises:
            ContractError: The decoder did not return a picture for each row.
        """
        device = self.decoder.device
        negative = None if self.negative is None else self.negative.to(device)
        rows, more = condition.padded(max(size, len(condition))), {} if noise == "shared" else {"noise": noise}
        pictures = self.decoder.decode(
            rows.to(device), negative=negative, settings=settings, batch_size=size, on_smaller=on_smaller, **more
        )
        return check_pictures(self.decoder, pictures, len(rows))[: len(condition)]

    @torch.no_grad()
    @stated_numerics()
    def look(self, pictures: UInt8[Tensor, "row height width 3"], size: int) -> dict[str, Condition]:
        """Read pictures again: as the decoder's conditions (``own``), and by every reader under its name.

        Args:
            pictures: At most ``size`` pictures, 0 to 255.
            size: How many are read together; fewer are filled up, so that bits do not depend on their number.

        Raises:
            ContractError: The decoder's ``read`` did not return a row for each picture.
        """
        found = {} if self.model is None else {OWN: self._read(self.model, pictures, size, self.decoder.read)}
        for name, reader in self.readers.items():
            found[name] = self._read(reader, pictures, size, lambda model, pixels: Condition(pooled=model(pixels)))
        return found

    def _read(self, model: HookedViT, pictures: Tensor, size: int, read: Any) -> Condition:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            pixels = torch.cat(list(pool.map(lambda picture: model.preprocess([picture.numpy()]), pictures)))
        padding = pixels[-1:].expand(size - len(pixels), -1, -1, -1)  # one shape for every batch: one set of bits
        seen = read(model, torch.cat([pixels, padding]))
        if not isinstance(seen, Condition) or seen.rows != (size,):
            raise ContractError(
                f"decoder {self.decoder.decoder_id} read {seen!r} of {size} pictures; read(model, pixels) returns a "
                "Condition with a row for each"
            )
        return seen.kept()[: len(pictures)]


def machine_kind(device: torch.device) -> str:
    """Return what decides bits beside versions: of a CPU its instructions, of a GPU its name, and coarser products.

    >>> vl.engine.machine_kind(torch.device("cpu"))
    'cpu (...)'
    """
    precision = torch.get_float32_matmul_precision()
    coarse = "" if precision == "highest" else f", float32 products in {precision} precision"
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)}{coarse})"
    if device.type == "cpu":
        return f"cpu ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()}{coarse})"
    return f"{device.type}{coarse}"


@contextmanager
def recorded_threads(n: int) -> Iterator[None]:
    """Compute as a record says within the block: with so many threads, and whatever defaults the process has.

    >>> with vl.engine.recorded_threads(1):
    ...     torch.get_num_threads()
    1
    """
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        with stated_numerics():
            yield
    finally:
        torch.set_num_threads(before)
