"""Screens a model and a task before RL: which tokens of one update change the entropy, and in which direction.

Twice a step's prompts are answered once, as the recipe samples. Each half is an update (eq. 10 without a mask, every
ratio 1), and the other half's outputs are the held-out ones whose entropy it changes, so all prompts serve both ways.

The attribution is given for two steps. Plain gradient descent ("SGD") has no settings and is exact to first order;
AdamW, which trains, gives each weight its own rate ("Adam"). A verdict needs both: where they differ, the direction
depends on the optimizer's state, which only a run has. Both steps have the length lr * sqrt(number of weights), that of
a step in which Adam moves each weight by lr, so that their changes of entropy can be compared.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ulorl.bench.machine_facts import facts
from ulorl.common.progress import SILENT, ProgressBars
from ulorl.config.model_config import LoraConfig
from ulorl.config.training_config import ObjectiveConfig
from ulorl.config.tree import Config
from ulorl.data.problem_stream import ProblemStream
from ulorl.engines.factory import pick_device
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.evaluation.avg_at_k import EvaluationSettings, answer_problems
from ulorl.evaluation.stored_evaluation import AnswerScores
from ulorl.evaluation.token_entropy import entropy_figures
from ulorl.learner.experience import Experience, prepare, row_of
from ulorl.learner.policy import Policy
from ulorl.models.attention import set_attention
from ulorl.models.cpu.linear_products import use_onednn
from ulorl.models.model_loading import load_model
from ulorl.reproduce.entropy_derivatives import MOVED, Direction, EntropyDerivatives, adam_scaled, dot, step_for
from ulorl.reproduce.token_classes import TrainedTokens, sentence, verdict
from ulorl.training.build import evaluation_engine, set_threads
from ulorl.training.preflight import Inputs, load_inputs
from ulorl.training.specifications import rollout_sampling
from ulorl.types import Group

TAUS = (0.8, 0.95, 0.99)  # 0.99 is the paper's
STEPS = ("SGD", "Adam")


def run(cfg: Config, taus: Sequence[float] = TAUS, bars: ProgressBars = SILENT) -> dict[str, Any]:
    """Screen the model and the task of a configuration, and return all figures.

    The whole model is taken, also with `model.lora`. taus: probabilities from which a token is an MPT. Raises UserError
    for an unusable recipe, and where no group has right and wrong answers, so that there is no update.
    """
    about, started = facts(), time.process_time()
    cfg = cfg.model_copy(update={"model": cfg.model.model_copy(update={"lora": LoraConfig()})})
    inputs = load_inputs(cfg)
    set_threads(cfg.model.threads)
    groups = _groups(cfg, inputs, bars)
    sampled = time.process_time()
    samples = [member for group in groups for member in group.members]
    tokens, scores = _trained_tokens(_derivatives(cfg, inputs), groups, cfg)
    answers = [(scores[m.sample.id], len(m.sample), m.reward == 1.0) for m in samples]
    return {
        "reproduces": "screen",
        **about,
        "model": cfg.model.path,
        "prompts": len(groups),
        "trained_prompts": len(np.unique(tokens.prompt_N)),
        "samples": len(samples),
        "tokens": sum(len(m.sample) for m in samples),
        "accuracy": sum(m.reward == 1.0 for m in samples) / len(samples),
        "entropy": entropy_figures(answers, 1.0).mean,
        "learning_rate": cfg.optim.lr,
        "sampling_cpu_seconds": round(sampled - started, 1),
        "cpu_seconds": round(time.process_time() - started, 1),
        "taus": [_figures_at(tau, tokens, answers) for tau in taus],
    }


def _figures_at(tau: float, tokens: TrainedTokens, answers: Sequence[tuple[AnswerScores, int, bool]]) -> dict[str, Any]:
    """Return what is found with one threshold. answers: as `entropy_figures` takes them."""
    shares, found = entropy_figures(answers, tau), {step: tokens.attribution(step, tau) for step in STEPS}
    return {
        "tau": tau,
        "mpt_share": shares.mpts,
        "mpt_entropy_share": shares.mpt_entropy,
        "attribution": {step: {name: asdict(one) for name, one in of.items()} for step, of in found.items()},
        "verdict": verdict(found),
        "verdict_text": sentence(found, tau),
    }


def _groups(cfg: Config, inputs: Inputs, bars: ProgressBars) -> list[Group]:
    """Answer the first problems of the run's stream, two steps' worth. Return the groups in which all are scored."""
    problems = list(islice(ProblemStream(inputs.problems, cfg.seed), 2 * cfg.rollout.prompts))
    size = cfg.rollout.group
    settings = EvaluationSettings(size, rollout_sampling(cfg), cfg.rollout.max_tokens, cfg.seed)
    with closing(evaluation_engine(cfg, inputs, None)) as engine:
        bar = bars.add("sample", len(problems) * size, lambda: engine.stats.decode_tokens)
        scored = answer_problems(engine, inputs.scorer, problems, settings, on_answer=bar.advance)
        bar.remove()
    groups = [
        Group(index, problem, scored[index * size : (index + 1) * size]) for index, (problem, _) in enumerate(problems)
    ]
    return [group for group in groups if not group.unscored]


def _derivatives(cfg: Config, inputs: Inputs) -> EntropyDerivatives:
    """Load the model in float32, as the learner does by default."""
    model = load_model(inputs.source, dtype=torch.float32, device=pick_device(cfg.model.device))
    set_attention(model, cfg.model.attention)
    if cfg.model.cpu_kernels:
        use_onednn(model)
    policy = Policy(
        model, cfg.rollout.temperature, autocast=False, cpu_kernels=cfg.model.cpu_kernels, entropy_gradient=True
    )
    pad_id = inputs.tokenizer.pad_token_id
    return EntropyDerivatives(
        policy, pad_id=0 if pad_id is None else int(pad_id), microbatch_tokens=cfg.optim.microbatch_tokens
    )


def _trained_tokens(
    derivatives: EntropyDerivatives, groups: Sequence[Group], cfg: Config
) -> tuple[TrainedTokens, dict[int, AnswerScores]]:
    """Return the tokens that both halves train on with what they add, and the scores of every sample by its id."""
    halves = groups[: len(groups) // 2], groups[len(groups) // 2 :]
    trained = [_trained_groups(half, cfg.objective, cfg.rollout.max_tokens) for half in halves]
    if not all(trained):
        raise UserError(
            f"of {len(groups)} prompts, one half has no group with right and wrong answers, so there is no update to "
            "attribute; give more prompts (rollout.prompts), more samples (rollout.group), or another task",
            code=ErrorCode.BENCH_INPUT,
            key="rollout.prompts",
        )
    scores: dict[int, AnswerScores] = {}
    gradients = list[Direction]()
    for half in halves:
        samples = [member.sample for group in half for member in group.members]
        gradient, found = derivatives.of_entropy([row_of(sample) for sample in samples])
        gradients.append(gradient)
        scores |= {sample.id: one for sample, one in zip(samples, found, strict=True)}
    objective, squares = derivatives.of_objective([group for half in trained for group in half])
    length = cfg.optim.lr * math.sqrt(sum(one.numel() for one in objective.values()))
    moved = MOVED * entropy_figures(((one, len(one.logprobs), False) for one in scores.values()), 1.0).mean
    experience = [[e for group in half for e in group] for half in trained]
    changes: dict[str, list[NDArray[np.float64]]] = {}
    for step in STEPS:
        scaled = [_scaled(step, one, squares, cfg.optim.eps) for one in (objective, *gradients)]
        rate = length / math.sqrt(dot(scaled[0], scaled[0]))
        changes[step] = [
            1000 * rate * change_T
            for own, gradient, direction in zip(experience, gradients[::-1], scaled[:0:-1], strict=True)
            for change_T in derivatives.along(direction, step_for(gradient, direction, moved), [e.row for e in own])
        ]
    return _joined([e for own in experience for e in own], scores, changes, groups), scores


def _scaled(step: str, gradient: Direction, squares: Direction, eps: float) -> Direction:
    return adam_scaled(gradient, squares, eps) if step == "Adam" else gradient


def _trained_groups(groups: Sequence[Group], objective: ObjectiveConfig, max_tokens: int) -> list[list[Experience]]:
    """Return the samples that an update trains on, for each group that has any."""
    prepared = [prepare([group], objective, max_tokens)[0] for group in groups]
    return [found for found in prepared if any(e.advantage for e in found)]


def _joined(
    experience: Sequence[Experience],
    scores: Mapping[int, AnswerScores],
    changes: Mapping[str, Sequence[NDArray[np.float64]]],
    groups: Sequence[Group],
) -> TrainedTokens:
    """Return the tokens of all samples with what they add: advantage / tokens of the update * derivative."""
    lengths = [len(e.row.tokens) for e in experience]
    prompts = {member.sample.id: index for index, group in enumerate(groups) for member in group.members}
    factor_N = np.repeat([e.advantage for e in experience], lengths) / sum(lengths)
    return TrainedTokens(
        prompts=len(groups),
        prompt_N=np.repeat([prompts[e.sample_id] for e in experience], lengths),
        right_N=np.repeat([e.correct for e in experience], lengths),
        logprobs_N=np.concatenate([scores[e.sample_id].logprobs for e in experience]),
        changes={step: factor_N * np.concatenate(of) for step, of in changes.items()},
    )
