"""Evaluates models on benchmark suites: the work of `ulorl eval --suite`. Everything is stored, and what is stored is
not computed again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ulorl.cancellation import NEVER, CancelToken
from ulorl.common.key_paths import flatten
from ulorl.common.progress import SILENT, ProgressBars
from ulorl.config.resumable_keys import may_change
from ulorl.config.tree import Config
from ulorl.engines.factory import pick_device
from ulorl.evaluation.avg_at_k import answer_problems
from ulorl.evaluation.result_tables import SuiteResult
from ulorl.evaluation.stored_evaluation import StoredEvaluation
from ulorl.evaluation.stored_results import store_results
from ulorl.evaluation.summary import Answer, cut_at, summarise
from ulorl.evaluation.token_entropy import EntropyFigures, entropy_figures, score_tokens
from ulorl.learner.policy import Policy
from ulorl.models.attention import set_attention
from ulorl.models.cpu.linear_products import use_onednn
from ulorl.models.model_loading import load_model
from ulorl.models.model_source import ModelSource
from ulorl.training.build import evaluation_engine, opened_backend, set_threads
from ulorl.training.preflight import Inputs, load_evaluation
from ulorl.training.specifications import evaluation_settings

_BATCHES = 4  # a block holds so many times the samples that the engines decode at once
_ANSWER_KEYS = ("model.", "engine.", "reward.", "eval.samples", "eval.temperature", "eval.top_p", "eval.top_k", "seed")


@dataclass(frozen=True)
class SuiteEvaluation:
    """One model on one suite.

    model: its name in tables. config: whose held-out problems are the suite, and whose eval.max_tokens is the longest
    of `lengths`. lengths: output lengths to report; a shorter one cuts the same outputs. folder: where everything is
    stored. entropy: whether the entropy is measured.
    """

    model: str
    suite: str
    config: Config
    lengths: tuple[int, ...]
    folder: Path
    entropy: bool = True

    def check(self) -> Inputs:
        """Check model, problems and reward without loading the model. Raises UserError."""
        return load_evaluation(self.config)

    def run(self, inputs: Inputs, bars: ProgressBars = SILENT, cancel: CancelToken = NEVER) -> list[SuiteResult]:
        """Answer the problems that are not answered yet; store the result at each length, and return them.

        inputs: what `check` returned. The caller holds the lock of the folder (`stored_evaluation.locked`) from before
        the first call until it has the results. Raises UserError when the folder holds another evaluation, and
        Cancelled: whole blocks are stored then.
        """
        cfg, problems = self.config, inputs.held_out
        samples = cfg.eval.samples
        at_once = cfg.engine.slots * cfg.engine_count
        stored = StoredEvaluation(self.folder, len(problems), samples, block=-(-_BATCHES * at_once // samples))
        stored.open(self._settings(inputs, stored.block))
        set_threads(cfg.model.threads)
        self._answer(inputs, stored, bars, cancel)
        answers = stored.answers()
        if self.entropy:
            self._score(inputs, stored, answers, bars, cancel)
        # Without the token ids, because models with other tokenizers are compared on the same problems too.
        keys = tuple(_hash((problem.id, problem.prompt, problem.answer)) for problem, _ in problems)
        results = [self._result(stored, answers, length, keys) for length in self.lengths]
        store_results(self.folder, results)
        return results

    def _settings(self, inputs: Inputs, block: int) -> dict[str, Any]:
        """Return what decides the answers."""
        keys = flatten(self.config.model_dump(mode="json"))
        chosen = {key: value for key, value in keys.items() if key.startswith(_ANSWER_KEYS) and not may_change(key)}
        weights = _weights(inputs.source)
        max_tokens = evaluation_settings(self.config).max_tokens
        return {
            "suite": self.suite,
            "problems": _hash([(problem.id, problem.answer, prompt.tolist()) for problem, prompt in inputs.held_out]),
            "max_tokens": max_tokens,
            "block": block,
            "weights": weights,
            **chosen,
        }

    def _answer(self, inputs: Inputs, stored: StoredEvaluation, bars: ProgressBars, cancel: CancelToken) -> None:
        """Decode and store the blocks that are not stored yet."""
        cfg, problems, done = self.config, inputs.held_out, stored.answered
        if done == len(problems):
            return
        settings = evaluation_settings(cfg)
        with opened_backend(cfg, learner=False) as backend, closing(evaluation_engine(cfg, inputs, backend)) as engine:
            bar = bars.add("evaluate", stored.problems * stored.samples, lambda: engine.stats.decode_tokens)
            bar.advance(done * stored.samples)
            for block in stored.blocks():
                if block.start < done:
                    continue
                some = problems[block.start : block.stop]
                scored = answer_problems(
                    engine, inputs.scorer, some, settings, first=block.start, on_answer=bar.advance, cancel=cancel
                )
                stored.append(scored, [problem for problem, _ in some])
                engine.sleep()  # the next block begins with an engine as it was when it was made
            bar.remove()

    def _score(
        self,
        inputs: Inputs,
        stored: StoredEvaluation,
        answers: Sequence[Answer],
        bars: ProgressBars,
        cancel: CancelToken,
    ) -> None:
        """Compute and store the log-probs and entropies of the blocks that are not scored yet."""
        todo = [block for block in stored.blocks() if block.start not in stored.scored_blocks()]
        if not todo:
            return
        cfg, pad_id = self.config, inputs.tokenizer.pad_token_id
        policy, bar = _policy(cfg, inputs.source), bars.add("entropy", len(todo))
        for block in todo:
            outputs = [
                (inputs.held_out[index][1], answers[index * stored.samples + run].tokens)
                for index in block
                for run in range(stored.samples)
            ]
            scores = score_tokens(
                policy,
                outputs,
                pad_id=0 if pad_id is None else int(pad_id),
                microbatch_tokens=cfg.optim.microbatch_tokens,
                cancel=cancel,
            )
            stored.store_scores(block, scores)
            bar.advance()
        bar.remove()

    def _result(
        self, stored: StoredEvaluation, answers: Sequence[Answer], length: int, problems: tuple[str, ...]
    ) -> SuiteResult:
        cut = [cut_at(answer, length) for answer in answers]
        entropy = self._entropy(stored, cut) if self.entropy else None
        summary = summarise(cut, stored.samples)
        return SuiteResult(self.model, self.suite, length, self._conditions(), summary, entropy, problems)

    def _conditions(self) -> str:
        """Return what results need to share to be compared."""
        how = self.config.eval
        return (
            f"avg@{how.samples}, temperature {how.temperature:g}, top-p {how.top_p:g}, top-k {how.top_k}, judged by "
            f"reward.kind={self.config.reward.kind}"
        )

    def _entropy(self, stored: StoredEvaluation, answers: Sequence[Answer]) -> EntropyFigures:
        """Return the entropy figures of answers that may be cut."""
        scores = (one for block in stored.blocks() for one in stored.scores(block))
        scored = ((one, len(answer.tokens), answer.reward == 1.0) for one, answer in zip(scores, answers, strict=True))
        return entropy_figures(scored, self.config.objective.mpt.tau)


def _policy(cfg: Config, source: ModelSource) -> Policy:
    """Load the model that scores tokens, as a learner loads it."""
    import torch

    device = pick_device(cfg.model.device)
    model = load_model(source, dtype=getattr(torch, cfg.model.dtype), device=device)
    set_attention(model, cfg.model.attention)
    if cfg.model.cpu_kernels:
        use_onednn(model)
    temperature = cfg.eval.temperature or 1.0  # greedy decoding has the log-probs of temperature 1
    return Policy(model, temperature, autocast=False, cpu_kernels=cfg.model.cpu_kernels)


def _weights(source: ModelSource) -> str:
    """Return a hash that changes when the weights are written again: of names, sizes and times. A hub model, whose
    files are elsewhere, has that of its name."""
    folder = Path(source.location)
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    return _hash([source.location] + [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files])


def _hash(values: Any) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]
