"""Draws docs/figures/segment_rollout.svg: the samples that still decode, with one segment (synchronous) and with four.

Run it with `python docs/make_rollout_figure.py`. The shipped tiny model answers 32 new problems x 8 samples in every
step, all samples decode at once, and nothing is trained, so that both schedules meet the same model. A decode step is
one forward pass for all samples that still decode. On a GPU it takes about as long for many samples as for few, which
is what segment rollout uses.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

from ulorl.common.plot_style import STYLE
from ulorl.data.countdown import problems
from ulorl.data.prompts import PromptFormat, PromptLimits, encode_prompts
from ulorl.engines.decode import scheduled_rollout
from ulorl.engines.torch.torch_engine import TorchEngine
from ulorl.models.model_loading import load_model
from ulorl.models.model_source import ModelSource
from ulorl.rollout.scheduler import Scheduler
from ulorl.rollout.schedules import SegmentSchedule
from ulorl.types import Sampling, Scored, Status

PROMPTS, GROUP, MAX_TOKENS, STEPS, SHOWN = 32, 8, 256, 12, 4
OUT = Path(__file__).parent / "figures" / "segment_rollout.svg"


def lengths_of_steps(segments: int) -> list[list[int]]:
    """Tokens of every segment that a step decodes, for STEPS steps, the samples that were carried over included."""
    source = ModelSource("ulorl:tiny")
    model = load_model(source, dtype=torch.float32, device="cpu")
    engine = TorchEngine(model, eos_ids=source.eos_ids, slots=768, prefill_tokens=8192)
    schedule = SegmentSchedule(prompts=PROMPTS, group=GROUP, tokens=MAX_TOKENS // segments)
    scheduler = Scheduler(schedule, max_tokens=MAX_TOKENS, sampling=Sampling(1.0), seed=0)
    asked = problems(PROMPTS * STEPS, 0)
    prompts = encode_prompts(asked, source.tokenizer, PromptFormat("{question}\n"), PromptLimits())
    steps = []
    for step in range(STEPS):
        new = list(zip(asked, prompts, strict=True))[step * PROMPTS : (step + 1) * PROMPTS]
        lengths = []
        scheduler.begin_step(new)
        for segment in scheduled_rollout(engine, scheduler.next_requests):
            sample = scheduler.end_segment(segment)
            lengths.append(len(segment))
            if sample.status is not Status.UNFINISHED:
                scheduler.experience.add(Scored(sample, 0.0, ""))
        scheduler.release()
        steps.append(lengths)
    return steps


def decoding(steps: list[list[int]]) -> list[np.ndarray]:
    """For each step, the number of samples that still decode at each of its decode steps."""
    return [np.array([sum(length > at for length in lengths) for at in range(max(lengths))]) for lengths in steps]


def draw(curves: dict[str, list[np.ndarray]], path: Path) -> None:
    """A row a schedule: the last SHOWN steps, one after the other."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.5, 3.6), layout="constrained")
        rows = figure.subplots(len(curves), 1, sharex=True, sharey=True)
        for axes, (title, steps) in zip(rows, curves.items(), strict=True):
            start = 0
            for number, rows_decoding in enumerate(steps[-SHOWN:]):
                at = np.arange(start, start + len(rows_decoding))
                axes.fill_between(at, rows_decoding, step="post", color=("#4878a8", "#8fb3d4")[number % 2], linewidth=0)
                start += len(rows_decoding)
            per_step = np.mean([len(s) for s in steps[-SHOWN:]])
            mean = np.concatenate(steps[-SHOWN:]).mean()
            axes.set_title(
                f"{title}: {per_step:.0f} decode steps a training step, {mean:.0f} samples decoding on average",
                loc="left",
                fontsize=9,
            )
            axes.set_ylabel("samples decoding")
        rows[-1].set_xlabel(f"decode steps of {SHOWN} training steps, in alternating shades")
        figure.savefig(path, metadata={"Date": None, "Creator": None})


def main() -> None:
    """Measure both schedules, print the figures and draw them."""
    torch.set_num_threads(1)
    curves = {}
    for segments, title in ((1, "1 segment"), (2, "2 segments"), (4, "4 segments")):
        steps = lengths_of_steps(segments)
        curves[title] = decoding(steps)
        last = steps[-SHOWN:]
        print(
            f"{title}: decode steps {[max(lengths) for lengths in last]}, tokens {[sum(lengths) for lengths in last]}, "
            f"samples {[len(lengths) for lengths in last]}"
        )
    draw({title: curves[title] for title in ("1 segment", "4 segments")}, OUT)


if __name__ == "__main__":
    main()
