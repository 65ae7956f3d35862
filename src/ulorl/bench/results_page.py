"""Writes docs/benchmarks.md from the figures of `ulorl bench ... --json`. What is equal and what is not is read from
the docstrings of the benchmarks. The same figures give the same page."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path, PurePath
from statistics import median
from typing import Any

from ulorl.bench import bar_charts
from ulorl.common import markdown
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError

Figures = Mapping[str, Any]

HEAD = """# Benchmarks

Written by `ulorl bench page` from the figures that `make bench` leaves in `runs/bench/`. Each section says what is
equal and what is not. Seconds come from one machine, and ratios from interleaved runs; both depend on the processor,
so each table names the processor and the features that its kernels used. Environment variables next to it limited
these features, to see what a processor without AVX-512 gives.
"""
TITLES = {
    "engine": "Rollout: `ulorl bench engine`",
    "logprobs": "Log-probs and entropies: `ulorl bench logprobs`",
    "learner": "One long sample in the learner: `ulorl bench learner`",
    "ulysses": "One long sample in several processes: `ulorl bench ulysses`",
    "memory": "The memory plan of a learner: `ulorl bench memory`",
    "rollout": "One long sample in the engine: `ulorl bench rollout`",
    "controller": "The controller alone: `ulorl bench controller`",
    "step": "A whole step: `ulorl bench step`",
}
WHO = {
    "engine": "engine",
    "generate_static": "static cache",
    "generate_dynamic": "dynamic cache",
    "vllm": "vLLM",
    "trl": "TRL",
    "ulorl": "ours",
    "naive": "plain",
}
PEERS = {
    "transformers_static": "generate, static cache",
    "transformers_dynamic": "generate, dynamic cache",
    "vllm": "vLLM",
}
RATIOS = {"transformers_static": "to static", "transformers_dynamic": "to dynamic", "vllm": "to vLLM"}


def write_page(results: Sequence[Path], out: Path) -> Path:
    """Write the page to `out` and its pictures to `figures/` beside it: a section for each benchmark and a table for
    each file, in the order given. Raises UserError for a file without the figures of a benchmark."""
    found = [read_figures(path) for path in results]
    if not out.absolute().parent.is_dir():
        message = f"--out {out}: there is no folder {out.parent}"
        raise UserError(message, code=ErrorCode.FILE_NOT_WRITABLE, key="--out", file=out)
    folder = out.parent / "figures"
    folder.mkdir(exist_ok=True)
    bars = [bar for figures in found for bar in _bars(figures)]
    if bars:
        bar_charts.draw_ratios(bars, folder / "benchmarks.svg")
    for figures in found:
        if figures["benchmark"] == "learner":
            bar_charts.draw_memory(figures["results"], folder / "learner_memory.svg")
    out.write_text(page(found), encoding="utf-8")
    return out


def read_figures(path: Path) -> Figures:
    """Read what `--json` wrote. Raises UserError when it is something else, or lacks what the page shows."""
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))
        table(figures)
        list(_bars(figures))
    except (OSError, ValueError) as error:
        message = f"{path}: cannot be read as JSON ({error})"
        raise UserError(message, code=ErrorCode.BENCH_INPUT, file=path) from error
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise UserError(
            f"{path}: not the figures of a benchmark of this version ({type(error).__name__}: {error}); "
            "write them again with ulorl bench WHAT --json FILE",
            code=ErrorCode.BENCH_INPUT,
            file=path,
        ) from error
    return figures  # type: ignore[no-any-return]


def page(found: Sequence[Figures]) -> str:
    """Return the text of the page."""
    parts = [HEAD]
    if any(True for figures in found for _ in _bars(figures)):
        parts.append("![How many times as fast as each peer](figures/benchmarks.svg)\n")
    for name, title in TITLES.items():
        of_this = [figures for figures in found if figures["benchmark"] == name]
        if of_this:
            doc = import_module(f"ulorl.bench.{name}_bench").__doc__ or ""
            parts += [f"## {title}\n", doc.strip() + "\n", *(f"{table(figures)}\n" for figures in of_this)]
            if name == "learner":
                parts.append("![Peak memory over the sample's tokens](figures/learner_memory.svg)\n")
    return "\n".join(parts)


def table(figures: Figures) -> str:
    """Return what was measured and where, and the numbers as a Markdown table."""
    heading, rows = _TABLES[figures["benchmark"]](figures)
    return f"{heading} {_where(figures)}\n\n{markdown.table(rows[0], rows[1:])}"


def _where(figures: Figures) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in figures["versions"].items())
    return (
        f"{figures['date']}, {_count(figures['cores'], 'core')} of {figures['processor']} ({figures['capability']}), "
        f"{_count(figures['threads'], 'thread')}, load average {figures['load_average']} before; {versions}."
    )


Table = tuple[str, list[list[str]]]  # a sentence, and rows of cells, the first of them the header


def _engine(figures: Figures) -> Table:
    results = figures["results"]
    who = list(results[0]["tokens_per_second"])
    ratios = [peer for peer in RATIOS if f"ratio_to_{peer}" in results[0]]
    rows = [["lengths", "rows", "requests", "tokens", *(WHO[w] for w in who), *(f"engine {RATIOS[p]}" for p in ratios)]]
    for r in results:
        rates = [f"{r['tokens_per_second'][w]:,.0f}" for w in who]
        counts = [str(r["batch"]), str(r["requests"]), f"{r['tokens']:,}"]
        rows.append([r["lengths"].replace("_", " "), *counts, *rates, *(f"{r[f'ratio_to_{p}']:.2f}" for p in ratios)])
    worst = ", ".join(f"{figures[f'ratio_to_{p}']:.2f} {RATIOS[p]}" for p in ratios)
    return (
        f"**{_name(figures['model'])}**, outputs of at most {figures['max_tokens']} tokens, tokens a second, medians "
        f"of {figures['repeats']}." + (f" Worst ratio on long-tailed lengths: {worst}." if worst else "")
    ), rows


def _logprobs(figures: Figures) -> Table:
    memory, timed = figures["memory"], figures["time"]
    who = ("ulorl", "naive")
    peaks = [memory["peak_bytes"], memory["naive_peak_bytes"]]
    seconds, at = timed["median_seconds"], f"{timed['tokens']:,} tokens, {timed['words']:,} words, hidden"
    return f"Vocabulary {figures['vocabulary']:,}, medians of {timed['repeats']}.", [
        ["", *(WHO[w] for w in who), "ratio"],
        [
            f"peak memory at {memory['tokens']:,} tokens, hidden {memory['hidden']}",
            f"{_bytes(peaks[0])} ({memory['peak_bytes_from']})",
            f"{_bytes(peaks[1])} ({memory['naive_peak_bytes_from']})",
            f"{figures['peak_memory_ratio']:.2%}",
        ],
        [
            f"seconds at {at} {timed['hidden']:,}",
            *(f"{seconds[w]:.2f}" for w in who),
            f"{figures['time_ratio']:.2f}",
        ],
        [
            "the same, logits recomputed as for many tokens",
            *(f"{seconds[w]:.2f}" for w in ("recomputed", "naive")),
            f"{figures['recomputed_time_ratio']:.2f}",
        ],
    ]


def _learner(figures: Figures) -> Table:
    rows = [["tokens", "peak of the process", "off the straight line", "logits alone would take", "seconds"]]
    for r in figures["results"]:
        sizes = [_bytes(r["peak_bytes"]), f"{r['off_the_line']:.1%}", _bytes(r["logits_would_take_bytes"])]
        rows.append([f"{r['tokens']:,}", *sizes, f"{r['seconds']:.0f}"])
    growth = f" Memory grows by {figures['bytes_a_token']:,} bytes a token." if "bytes_a_token" in figures else ""
    return f"{figures['model']}.{growth}", rows


def _ulysses(figures: Figures) -> Table:
    rows = [
        [
            "processes",
            "peak of a process",
            "before the forward pass",
            "of the sample",
            "seconds",
            "CPU seconds of a process",
        ]
    ]
    for processes in ([figures["alone"]], figures["shared"]):
        peak, before = (max(process[key] for process in processes) for key in ("peak_bytes", "before_bytes"))
        times = [f"{max(process[key] for process in processes):.0f}" for key in ("seconds", "cpu_seconds")]
        rows.append([f"{len(processes)}", _bytes(peak), _bytes(before), _bytes(peak - before), *times])
    apart = f"The gradients differ by {figures['gradient_difference']:.1e} of the largest in a parameter."
    return f"{figures['model']}, {figures['tokens']:,} tokens. {apart}", rows


def _memory(figures: Figures) -> Table:
    rows = [["learner", "tokens", "peak of a process", "smallest peak", "plan", "plan to peak", "phase of the peak"]]
    for r in figures["results"]:
        counts = (r["measured_bytes"], r["smallest_measured_bytes"], r["planned_bytes"])
        sizes = [f"{count / 1e6:.1f} MB" for count in counts]
        rows.append([r["shape"], f"{r['tokens']:,}", *sizes, f"{r['planned_to_measured']:.3f}", r["phase"]])
    return f"{figures['model']}.", rows


def _rollout(figures: Figures) -> Table:
    rows = [["segment", "tokens so far", "tokens prefilled", "seconds"]]
    for number, segment in enumerate(figures["segments"], 1):
        rows.append([f"{number}", f"{segment['tokens']:,}", f"{segment['prefilled']:,}", f"{segment['seconds']:.1f}"])
    return f"{figures['tokens']:,} tokens, which arrived whole.", rows


def _controller(figures: Figures) -> Table:
    rows = [["schedule", "in flight", "came back", "CPU seconds a step", "microseconds a sample", "with the fleet",
             "a full collection"]]  # fmt: skip
    for size in figures["sizes"]:
        seconds, with_fleet = (
            f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})" if values else "not measured"
            for values in (size["cpu_seconds"], size.get("fleet_cpu_seconds"))
        )
        microseconds, collection = f"{size['microseconds_a_sample']:.1f}", f"{size['collection_cpu_seconds']:.2f}"
        counts = f"{size['samples']:,}", f"{median(size['came_back']):,.0f}"
        rows.append([size["schedule"], *counts, seconds, microseconds, with_fleet, collection])
    fleet = f"a fleet of {figures['engines']} engines of {figures['slots']} slots" if figures["engines"] else "no fleet"
    return f"Medians of {len(figures['sizes'][0]['cpu_seconds'])} steps with their range; {fleet}.", rows


def _step(figures: Figures) -> Table:
    rows = [["seconds a step", "rollout", "update", "sync", "whole step", "trained tokens", "trained tokens a second"]]
    for who, seconds in figures["where_the_time_goes"].items():
        times = [f"{seconds[phase]:.2f}" for phase in ("rollout", "update", "sync", "seconds")]
        rate = f"{figures['trained_tokens_per_second'][who]:,.0f}"
        rows.append([_contestant(who), *times, f"{seconds['tokens']:,.0f}", rate])
    ratio = figures.get("ratio_to_trl")
    return (
        f"{figures['samples']} samples of at most {figures['max_tokens']} tokens, medians of {figures['repeats']}."
        + (f" **{ratio:.2f} times TRL's trained tokens a second**, with one segment" if ratio else "")
        + (f" ({figures['ratio_of_totals_to_trl']:.2f} times in all tokens over all seconds)." if ratio else "")
    ), rows


_TABLES: dict[str, Callable[[Figures], Table]] = {
    "engine": _engine,
    "logprobs": _logprobs,
    "learner": _learner,
    "ulysses": _ulysses,
    "memory": _memory,
    "rollout": _rollout,
    "controller": _controller,
    "step": _step,
}


def _bars(figures: Figures) -> Iterator[bar_charts.Ratio]:
    """Yield how many times as fast as each peer ours is."""
    match figures["benchmark"]:
        case "engine":
            for r in figures["results"]:
                what = f"{_name(figures['model'])}, {r['batch']} rows\n{r['lengths'].replace('_', ' ')}"
                for peer in RATIOS:
                    if f"ratio_to_{peer}" in r:
                        yield bar_charts.Ratio(what, PEERS[peer], r[f"ratio_to_{peer}"])
        case "logprobs":
            yield bar_charts.Ratio("log-probs and entropies", "whole logits", 1 / figures["time_ratio"])
        case "step" if "ratio_to_trl" in figures:
            yield bar_charts.Ratio("a whole step", "TRL", figures["ratio_to_trl"])


def _contestant(who: str) -> str:
    if who in WHO:
        return f"{WHO[who]}, 1 segment" if who == "ulorl" else WHO[who]
    return f"{WHO['ulorl']}, {who.removeprefix('ulorl_').replace('_', ' ')}"


def _name(model: str) -> str:
    """Return a model's name; the path of its folder says nothing on another machine."""
    return PurePath(model).name


def _bytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" + ("" if number == 1 else "s")
