"""Compares a whole RL step with TRL's GRPOTrainer: same model, prompts, group size, output length and learning rate.

The workload is long-tailed: a model of the tiny reasoner's shape with random weights is close to uniform over its 111
tokens, so outputs end with probability 1/111 a token (mean 111, median 77, 99th percentile 511), cut at `max_tokens`.

Equal: model, float32, threads, tokenizer, prompts, 8 samples a problem, temperature, one gradient update a step of
AdamW on all samples, group advantages, token-level loss, no KL term, entropies, the reward function.

Not equal: the draws, so the outputs and their number of tokens (rates are trained tokens a second). TRL decodes with
transformers' `generate` (dynamic cache, its default) until the longest output is done, pads every micro-batch to it,
and counts 16 samples a micro-batch where ours counts 8,192 tokens. Ours checks the engine's weights after the update.
Ours is the step that `ulorl train` repeats, in the components that it builds, without log; TRL's is timed by a
callback, from the beginning of the step to its end, in its own training loop, without log too.

Both take turns in one process, a step at a time, so that both meet the same load of the machine: before each of its
steps, TRL's callback runs a step of each of ours. The ratio to TRL is that of the medians of both rates. Three other
ratios are recorded: that of all tokens over all seconds, in which steps with a very long output count in full, while
medians ignore them; the median over rounds, whose two steps met the same machine, but not the same draws; and the ratio
of medians in CPU seconds, which waiting for a core does not lengthen.

Rollout includes decoding and rewards. `sync` is sending new weights to the engine and checking them; TRL decodes with
the weights that it trains.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers

from ulorl.algorithm import Step, ulorl_step
from ulorl.bench.machine_facts import facts, installed
from ulorl.config import loading
from ulorl.data.countdown import Countdown
from ulorl.data.countdown import problems as countdown
from ulorl.engines.engine import Engine
from ulorl.training.build import Components, build
from ulorl.training.measured_step import measured_step
from ulorl.training.preflight import load_inputs
from ulorl.types import Problem
from ulorl.warmup.word_tokenizer import build_tokenizer

GROUP = 8
MICRO_TOKENS = 8192  # of ours; TRL's micro-batches are counted in samples
MICRO_SAMPLES = 16  # of TRL's
PHASES = ("rollout", "update", "sync", "seconds")
Measured = dict[str, float]  # one step: seconds of each phase, CPU seconds, tokens trained


def even_length(_problem: Problem, text: str) -> float:
    """Return the reward 1 for an even number of characters, which takes almost no time."""
    return float(len(text) % 2 == 0)


def run(prompts: int = 8, max_tokens: int = 512, segments: int = 4, repeats: int = 9) -> dict[str, Any]:
    """Measure seconds and trained tokens of `repeats` rounds after a warm-up. A round is a step of each: ours with one
    segment (synchronous, as TRL's) and with several, and TRL's where it is installed."""
    about = facts("trl")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        path = Path(folder) / "model"
        _write_model(path, max_tokens)
        ours = {
            who: stack.enter_context(closing(_ours(path, prompts, max_tokens, parts)))
            for who, parts in (("ulorl", 1), (f"ulorl_{segments}_segments", segments))
        }
        results: dict[str, list[Measured]] = {who: [] for who in ours}

        def ours_step() -> None:
            for who, steps in ours.items():
                results[who].append(next(steps))

        if installed("trl"):
            results["trl"] = _trl(path, prompts, max_tokens, repeats, before=ours_step)
        else:
            for _ in range(repeats):
                ours_step()
    return {
        "benchmark": "step",
        **about,
        "samples": prompts * GROUP,
        "max_tokens": max_tokens,
        "repeats": repeats,
        "trained_tokens_per_second": {who: round(median(_rates(steps)), 1) for who, steps in results.items()},
        "where_the_time_goes": {who: _medians(steps) for who, steps in results.items()},
        "steps": results,
        **(_ratios(results["ulorl"], results["trl"]) if "trl" in results else {}),
    }


def _rates(steps: Sequence[Measured], clock: str = "seconds") -> list[float]:
    """Return the trained tokens a second of each step."""
    return [step["tokens"] / step[clock] for step in steps]


def _ratios(ours: Sequence[Measured], trl: Sequence[Measured]) -> dict[str, Any]:
    """Return the ratios of trained tokens a second to TRL's, as the docstring of this file defines them."""

    def medians(clock: str) -> float:
        return median(_rates(ours, clock)) / median(_rates(trl, clock))

    def total(steps: Sequence[Measured]) -> float:
        return sum(step["tokens"] for step in steps) / sum(step["seconds"] for step in steps)

    rounds = [one / other for one, other in zip(_rates(ours), _rates(trl), strict=True)]
    return {
        "ratio_to_trl": round(medians("seconds"), 2),
        "ratio_of_totals_to_trl": round(total(ours) / total(trl), 2),
        "ratio_of_rounds_to_trl": round(median(rounds), 2),
        "ratio_in_cpu_seconds_to_trl": round(medians("cpu"), 2),
        "ratios_to_trl": [round(ratio, 2) for ratio in rounds],
    }


def _write_model(path: Path, max_tokens: int) -> None:
    """Write a model of the tiny reasoner's shape with seeded random weights, and its tokenizer."""
    tokenizer = build_tokenizer(Countdown.words)
    shape = transformers.Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=max_tokens + 64, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.Qwen3ForCausalLM(shape).save_pretrained(path)
    tokenizer.save_pretrained(path)


def _ours(path: Path, prompts: int, max_tokens: int, segments: int) -> Generator[Measured, None, None]:
    """Yield the measurements of a step for each `next()`. The first steps, which fill the pools, are not yielded."""
    with tempfile.TemporaryDirectory() as folder:
        cfg = loading.build(
            {
                "run": {"dir": f"{folder}/run", "checkpoint_every": 0},
                "model": {"path": str(path), "device": "cpu"},
                "engine": {"slots": prompts * GROUP * segments},
                "rollout": {
                    "prompts": prompts, "group": GROUP, "max_tokens": max_tokens, "segments": segments,
                    "temperature": 1.0,
                },
                "objective": {"dynamic_sampling": False, "mpt": {"mask": "off"}},
                "optim": {"lr": 1e-6, "microbatch_tokens": MICRO_TOKENS},
                "reward": {"kind": "function", "function": "ulorl.bench.step_bench:even_length"},
                "data": {"kind": "files", "path": _problem_file(folder, prompts), "template": "{question}\n"},
                "log": {"progress": False},
            }
        )  # fmt: skip
        parts = build(cfg, load_inputs(cfg))
    with closing(parts.engine):
        parts.weight_check(parts.engine, parts.learner)
        for number in count():
            started = time.process_time()
            make_step = partial(_step, parts)
            step = measured_step(make_step, parts.engine, parts.learner, parts.weight_check)
            if number >= segments:
                after = step.reward_seconds + step.update_seconds  # as TRL's "update" is measured
                phases = (step.rollout_seconds, after, step.sync_seconds)
                figures = (*phases, sum(phases), time.process_time() - started, step.step.update.tokens)
                yield dict(zip((*PHASES, "cpu", "tokens"), figures, strict=True))


def _step(parts: Components, engine: Engine) -> Step:
    return ulorl_step(parts.scheduler, engine, parts.inputs.scorer, parts.learner, parts.stream)


def _problem_file(folder: str, prompts: int) -> str:
    path = Path(folder) / "problems.jsonl"
    lines = [json.dumps({"problem": p.prompt, "answer": "0"}) for p in countdown(prompts, 0)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def _trl(path: Path, prompts: int, max_tokens: int, repeats: int, before: Callable[[], None]) -> list[Measured]:
    """Measure the steps of TRL's GRPOTrainer on the same folder after a first one, which warms up. The clocks run
    around the step and, inside it, around generation with rewards. before: is called before each step but the first."""
    from datasets import Dataset
    from trl import GRPOTrainer

    clock: dict[str, float] = {"rollout": 0.0}
    steps: list[Measured] = []

    class Timed(GRPOTrainer):  # type: ignore[misc]
        def _generate_and_score_completions(self, inputs: Any) -> Any:
            started = time.perf_counter()
            output = super()._generate_and_score_completions(inputs)
            clock["rollout"] += time.perf_counter() - started
            return output

    class Steps(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if steps:
                before()
            clock.update(begin=time.perf_counter(), cpu=time.process_time(), rollout=0.0)

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds = time.perf_counter() - clock["begin"]
            lengths = trainer._metrics["train"]["completions/mean_length"][-1]
            steps.append(
                {
                    "tokens": float(lengths) * prompts * GROUP,
                    "seconds": seconds,
                    "rollout": clock["rollout"],
                    "update": seconds - clock["rollout"],
                    "sync": 0.0,
                    "cpu": time.process_time() - clock["cpu"],
                }
            )

    with tempfile.TemporaryDirectory() as folder:
        trainer = Timed(
            model=str(path),
            args=_trl_settings(folder, prompts * GROUP, max_tokens, repeats),
            train_dataset=Dataset.from_list([{"prompt": f"{p.prompt}\n"} for p in countdown(prompts, 0)]),
            reward_funcs=_even_lengths,
            callbacks=[Steps()],
        )
        trainer.train()
    if not all(step["rollout"] for step in steps):  # 0 if TRL renamed its private method
        raise RuntimeError("TRL's generation was not timed: this version of TRL generates elsewhere")
    return steps[1:]


def _trl_settings(folder: str, samples: int, max_tokens: int, repeats: int) -> Any:
    """Return TRL's GRPOConfig for `repeats` steps after a warm-up."""
    from trl import GRPOConfig

    return GRPOConfig(
        output_dir=folder, use_cpu=True, bf16=False, report_to="none", save_strategy="no", logging_strategy="no",
        disable_tqdm=True, seed=0, max_steps=repeats + 1, learning_rate=1e-6, lr_scheduler_type="constant",
        per_device_train_batch_size=min(samples, MICRO_SAMPLES),
        gradient_accumulation_steps=max(1, samples // MICRO_SAMPLES),
        num_generations=GROUP, max_completion_length=max_tokens, temperature=1.0, top_p=1.0, top_k=0, beta=0.0,
        num_iterations=1, loss_type="dapo", scale_rewards="group", gradient_checkpointing=False,
        dataloader_pin_memory=False,
    )  # fmt: skip


def _even_lengths(completions: Sequence[str], **_: Any) -> list[float]:
    return [even_length(Problem("", ""), text) for text in completions]


def _medians(steps: Sequence[Measured]) -> dict[str, float]:
    """Return the medians of each phase, in seconds, and of the tokens trained."""
    return {name: round(median(step[name] for step in steps), 3) for name in (*PHASES, "cpu", "tokens")}
