"""Writes the results of evaluations as Markdown tables and as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from ulorl.common.markdown import table
from ulorl.evaluation.estimators import Lengths
from ulorl.evaluation.paired_difference import Difference, paired_difference
from ulorl.evaluation.summary import Summary
from ulorl.evaluation.token_entropy import EntropyFigures


@dataclass(frozen=True)
class SuiteResult:
    """The result of one model on one suite, at one output length."""

    model: str  # with its model.rope
    suite: str
    max_tokens: int
    conditions: str  # how answers were drawn and judged; only results under the same ones are compared
    summary: Summary
    entropy: EntropyFigures | None  # None: not measured
    problems: tuple[str, ...]  # a hash for each of `summary.by_problem`: problems with the same one are paired

    @property
    def name(self) -> str:
        """The model with the output length."""
        return f"{self.model}, {self.max_tokens}"


def all_tables(results: Sequence[SuiteResult]) -> str:
    """Return the tables of results, and their differences. Results under other conditions have tables of their own,
    each under a heading that says the conditions."""
    parts = {
        conditions: _tables([result for result in results if result.conditions == conditions])
        for conditions in dict.fromkeys(result.conditions for result in results)
    }
    if len(parts) == 1:
        return next(iter(parts.values()))
    return "\n\n".join(f"## {conditions}\n\n{text}" for conditions, text in parts.items())


def _tables(results: Sequence[SuiteResult]) -> str:
    suites = dict.fromkeys(result.suite for result in results)
    parts = [figures_table([result for result in results if result.suite == suite]) for suite in suites]
    if len(results) > 1:
        parts.insert(0, accuracy_table(results))
    parts += ["\n".join(lines)] if (lines := difference_lines(results)) else []
    return "\n\n".join(parts)


def accuracy_table(results: Sequence[SuiteResult]) -> str:
    """Return the accuracies as table 3 of the paper has them: a row for each model and output length, a column for each
    suite, avg@k in percent with its standard error over problems."""
    suites = {result.suite: result.summary.samples for result in results}
    rows = dict.fromkeys((result.model, result.max_tokens) for result in results)
    cells = {(result.model, result.max_tokens, result.suite): _accuracy(result.summary) for result in results}
    return table(
        ["model", "output length", *(f"{suite}, avg@{samples}" for suite, samples in suites.items())],
        [(model, length, *(cells.get((model, length, suite), "") for suite in suites)) for model, length in rows],
        numbers_from=1,
    )


def figures_table(results: Sequence[SuiteResult]) -> str:
    """Return every figure of the results of one suite, a column for each result."""
    columns = [dict(_figures(result)) for result in results]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [(name, *(column.get(name, "") for column in columns)) for name in names]
    return table([results[0].suite, *(result.name for result in results)], rows, numbers_from=1)


def differences(results: Sequence[SuiteResult]) -> list[tuple[SuiteResult, SuiteResult, Difference | None]]:
    """Return each result with the first one of its suite, output length and conditions, and how they differ on the
    problems that both have."""
    first: dict[tuple[object, ...], SuiteResult] = {}
    found = []
    for result in results:
        baseline = first.setdefault((result.suite, result.max_tokens, result.conditions), result)
        if baseline is not result:
            found.append((result, baseline, _difference(result, baseline)))
    return found


def difference_lines(results: Sequence[SuiteResult]) -> list[str]:
    """Return the differences as sentences."""
    return [
        f"{result.suite}, {result.max_tokens} tokens: {result.model} - {baseline.model} = "
        + (
            f"{difference.value * 100:+.1f} points (95%: {difference.low * 100:+.1f} to {difference.high * 100:+.1f}, "
            f"paired over {difference.problems} problems)"
            if difference
            else "no interval: the difference is the same on every problem, or fewer than two problems are paired"
        )
        + _other_problems(result, baseline)
        for result, baseline, difference in differences(results)
    ]


def as_json(results: Sequence[SuiteResult]) -> dict[str, Any]:
    """Return results and differences as JSON values."""
    return {
        "results": [as_entry(result) for result in results],
        "differences": [
            {
                "suite": result.suite,
                "max_tokens": result.max_tokens,
                "model": result.model,
                "baseline": baseline.model,
                "common_problems": len(_common(result, baseline)),
                "difference": difference and asdict(difference),
            }
            for result, baseline, difference in differences(results)
        ],
    }


def as_entry(result: SuiteResult) -> dict[str, Any]:
    """Return a result as JSON values."""
    interval = result.summary.interval
    return {
        "model": result.model,
        "suite": result.suite,
        "max_tokens": result.max_tokens,
        "conditions": result.conditions,
        **_json_values(asdict(result.summary)),
        "interval": interval and [interval.low, interval.high],
        "entropy": result.entropy and asdict(result.entropy),
        "problems": list(result.problems),
    }


def of_entry(entry: Mapping[str, Any]) -> SuiteResult:
    """Return the result that `as_entry` turned into JSON values. Raises LookupError, TypeError, ValueError or
    AttributeError for anything else."""
    values = {field.name: entry[field.name] for field in fields(Summary)}
    values |= {name: math.nan for name in ("accuracy", "stderr") if values[name] is None}
    values["by_problem"] = tuple(values["by_problem"])
    values["pass_at"] = {int(k): value for k, value in values["pass_at"].items()}
    values["lengths"] = Lengths(**values["lengths"])
    entropy = entry["entropy"] and EntropyFigures(**entry["entropy"])
    about = (entry["model"], entry["suite"], entry["max_tokens"], entry["conditions"])
    return SuiteResult(*about, Summary(**values), entropy, tuple(entry["problems"]))


def _common(result: SuiteResult, baseline: SuiteResult) -> list[str]:
    """Return the problems that both results have. A prompt that is too long for one model is left out of its own
    problems only."""
    theirs = set(baseline.problems)
    return [problem for problem in result.problems if problem in theirs]


def _difference(result: SuiteResult, baseline: SuiteResult) -> Difference | None:
    both = _common(result, baseline)
    one, other = (dict(zip(of.problems, of.summary.by_problem, strict=True)) for of in (result, baseline))
    return paired_difference([one[problem] for problem in both], [other[problem] for problem in both])


def _other_problems(result: SuiteResult, baseline: SuiteResult) -> str:
    """Return how many problems each of two results has, for the end of a sentence; "" when they are the same."""
    if result.problems == baseline.problems:
        return ""
    return (
        f"; {result.model} has {len(result.problems)} problems and {baseline.model} {len(baseline.problems)}, of which "
        f"{len(_common(result, baseline))} are the same"
    )


def _json_values(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in tree.items()}


def _figures(result: SuiteResult) -> Iterator[tuple[str, str]]:
    summary, lengths, interval = result.summary, result.summary.lengths, result.summary.interval
    yield "problems", str(len(summary.by_problem))
    yield f"avg@{summary.samples} ± standard error", _accuracy(summary)
    yield "95% interval", f"{interval.low:.1%} to {interval.high:.1%}" if interval else "-"
    for k, value in summary.pass_at.items():
        if k > 1:
            yield f"pass@{k}", f"{value:.1%}"
    if summary.samples > 1:
        yield f"maj@{summary.samples}", "-" if summary.majority is None else f"{summary.majority:.1%}"
    yield "output tokens: mean", f"{lengths.mean:.0f}"
    yield "output tokens: p50 / p90 / p99", f"{lengths.p50} / {lengths.p90} / {lengths.p99}"
    yield "truncated", f"{summary.truncated:.1%}"
    yield "no answer", f"{summary.no_answer / summary.answers:.1%}"
    yield "repetitive", f"{summary.repetitive:.1%}"
    if summary.unscored:
        yield "unscored answers", str(summary.unscored)
    if entropy := result.entropy:
        yield "mean token entropy (nats)", f"{entropy.mean:.3f}"
        yield "MPTs, of all tokens", f"{entropy.mpts:.1%}"
        yield "entropy of MPTs, of all", "-" if entropy.mpt_entropy is None else f"{entropy.mpt_entropy:.2%}"


def _accuracy(summary: Summary) -> str:
    if math.isnan(summary.accuracy):
        return "-"
    error = "" if math.isnan(summary.stderr) else f" ± {summary.stderr * 100:.1f}"
    return f"{summary.accuracy * 100:.1f}{error}"
