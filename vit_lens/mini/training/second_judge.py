"""Train the second judge on true scenes of the small world, clear, noisy and soft.

It never sees what a model drew, and it sees the scenes that are held out from the models that it judges.
"""

__all__ = ["JudgeSettings", "train_second_judge"]

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from vit_lens.mini import still_life
from vit_lens.mini.second_judge import SecondJudge
from vit_lens.mini.still_life import Lexicon
from vit_lens.mini.training.movq import to_signed
from vit_lens.mini.training.progress import cosine, run_steps, start_step


@dataclass(frozen=True, kw_only=True)
class JudgeSettings:
    """Sizes of the training run."""

    batch: int = 128
    n_steps: int = 400
    lr: float = 3e-3
    noise: float = 0.3


_DEFAULTS = JudgeSettings()


def train_second_judge(
    out: Path, *, seed: int, settings: JudgeSettings = _DEFAULTS, stop_after: int | None = None
) -> SecondJudge:
    """Train the judge in ``out``, going on with what is there; it is saved as ``out/second_judge.safetensors``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = SecondJudge()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=settings.lr, weight_decay=1e-3)
    lexicon = Lexicon(seed)

    def step(index: int) -> dict[str, Tensor]:
        generator = np.random.default_rng([seed, 9, index])
        sentences = still_life.sample(settings.batch, generator, lexicon, pairs=0.7, named=0.0, held_out=None)
        scenes = [sentence.scene for sentence in sentences]
        start_step({optimizer: settings.lr}, cosine(index, settings.n_steps, warm_up=20))
        logits = judge(_worn(to_signed(still_life.draw(scenes, generator)), settings.noise, generator))
        answers = torch.from_numpy(still_life.codes(scenes))
        losses = {
            name: functional.cross_entropy(group, answer, ignore_index=-1)
            for (name, group), answer in zip(logits.items(), answers.T, strict=True)
        }
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        return losses

    done = run_steps(
        step, {"judge": judge, "optimizer": optimizer}, n_steps=settings.n_steps, checkpoint=out / "second_judge.pt",
        settings={"seed": seed, **asdict(settings)}, stop_after=stop_after,
    )  # fmt: skip
    if done == settings.n_steps:
        save_file(judge.state_dict(), out / "second_judge.safetensors")
    return judge.eval()


def _worn(signed: Tensor, noise: float, generator: np.random.Generator) -> Tensor:
    """Soften a third of the pictures, and add up to ``noise`` to each."""
    soft = torch.from_numpy(generator.random(len(signed)) < 1 / 3)[:, None, None, None]
    signed = torch.where(soft, functional.avg_pool2d(signed, 3, stride=1, padding=1, count_include_pad=False), signed)
    scale = torch.from_numpy(generator.random((len(signed), 1, 1, 1), dtype=np.float32)) * noise
    return signed + scale * torch.from_numpy(generator.standard_normal(signed.shape, dtype=np.float32))
