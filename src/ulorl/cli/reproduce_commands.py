"""`ulorl reproduce ...`. Importing this module does not import torch."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ulorl.cli.output_options import check_output_file
from ulorl.config.loading import load
from ulorl.config.tree import Config

app = typer.Typer(
    help="Measure on this machine what the paper reports.",
    no_args_is_help=True,
    rich_markup_mode=None,
    epilog="Threads are torch's: OMP_NUM_THREADS=1 ulorl reproduce table1",
)


class Dtype(StrEnum):
    """Of the engine's weights."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class EngineKind(StrEnum):
    """Which engine decodes."""

    TORCH = "torch"
    VLLM = "vllm"


@app.command()
def table1(
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="smollm2-135m (its size, random weights), ulorl:tiny, or a model folder; repeatable; "
            "default: the first two, and with --quick the first"
        ),
    ] = None,
    lengths: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="CSV of real output lengths, scaled so that the longest is --tokens"),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="maximum output length; default 512, with --quick 256")
    ] = None,
    prompts: Annotated[int | None, typer.Option(min=1, help="groups a step; default 2, for ulorl:tiny 8")] = None,
    group: Annotated[int | None, typer.Option(min=1, help="samples a group; default 2, for ulorl:tiny 8")] = None,
    slots: Annotated[int | None, typer.Option(min=1, help="rows at once; default 32, for ulorl:tiny 256")] = None,
    dtype: Annotated[Dtype, typer.Option(help="of the engine's weights")] = Dtype.FLOAT32,
    engine: Annotated[EngineKind, typer.Option(help="the embedded engine, or vLLM in this process")] = EngineKind.TORCH,
    minutes: Annotated[float | None, typer.Option(min=0, help="for each model; default 20, with --quick 3.25")] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="measured steps of each schedule; default: as many as fit into --minutes")
    ] = None,
    update: Annotated[bool, typer.Option("--update/--no-update", help="measure updates of the model too")] = True,
    quick: Annotated[
        bool, typer.Option("--quick", help="one model, shorter outputs, fewer schedules: about 4 minutes on 2 cores")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="write every figure here")] = None,
) -> None:
    """Measure what rollout schedules bring on this machine, as Table 1 of the paper does for segments.

    One segment, 2, 4 and 8 segments, oversubscribe and refill train equal batches of the same groups, whose output
    lengths are replayed from a real distribution. A speed-up is completed groups a second over those of one segment, in
    the same engine, which drops finished rows.

    Whether there is one depends on the latency profile that is printed with it: more samples in flight pay off where a
    decode step of many rows takes hardly longer than that of one. Computing carried samples again costs prefill; tokens
    become older. ulorl plan rollout tells the same of other machines.

    ulorl reproduce table1 --quick --json table1.json

    ulorl reproduce table1 --lengths lengths.csv --minutes 30

    ulorl reproduce table1 --model ulorl:tiny --prompts 16 --group 4
    """
    check_output_file("--json", json_file)
    from ulorl.common.progress import ProgressBars
    from ulorl.reproduce import table1 as measurement
    from ulorl.reproduce.comparison import tables
    from ulorl.reproduce.setups import LARGE_BATCH, SMALL_BATCH

    chosen = model or [SMALL_BATCH.model, LARGE_BATCH.model][: 1 if quick else 2]
    setups = [
        replace(
            LARGE_BATCH if path == LARGE_BATCH.model else SMALL_BATCH,
            model=path,
            dtype=dtype.value,
            engine=engine.value,
        ).sized(tokens or (256 if quick else None), prompts, group, slots)
        for path in chosen
    ]
    options = measurement.Options(lengths, rounds or 0, minutes or (3.25 if quick else 20), update, quick)
    with ProgressBars() as bars:
        figures = measurement.run(setups, options, bars)
    print(tables(figures))
    if json_file:
        json_file.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


@app.command()
def screen(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="ulorl:tiny, ulorl:tiny-maze, a model folder or a hub name")
    ],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[key=value]...", help="of the recipe")] = None,
    *,
    recipe: Annotated[list[Path], typer.Option(metavar="FILE", help="TOML recipe: task, reward, sampling; repeatable")],
    tau: Annotated[
        list[float] | None,
        typer.Option(min=0.001, max=1, help="an MPT has at least this probability; repeatable; default .8, .95, .99"),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="write every figure here")] = None,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="write the change of each class here")
    ] = None,
) -> None:
    """Predict, before any training, whether masking MPTs can raise entropy, as figure 4 of the paper shows.

    Two steps' prompts are answered. The change of the entropy of one half's outputs by a small step on the other half
    is attributed to MPTs, other tokens of right samples and tokens of wrong samples, to first order. Masking can only
    raise entropy where all tokens but MPTs do not lower it by themselves. Nothing is trained.

    ulorl reproduce screen ulorl:tiny --recipe recipes/countdown.toml --json screen.json

    ulorl reproduce screen my/model --recipe mine.toml rollout.prompts=16 rollout.max_tokens=128
    """
    check_output_file("--json", json_file)
    check_output_file("--csv", csv_file)
    config = load(recipe, [*(overrides or []), f"model.path={model}"])  # before anything slow is imported
    from ulorl.common.progress import ProgressBars
    from ulorl.reproduce import screen as screening
    from ulorl.reproduce.screen_tables import as_csv, page

    with ProgressBars() as bars:
        figures = screening.run(config, tau or screening.TAUS, bars)
    print(page(figures))
    if json_file:
        json_file.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if csv_file:
        csv_file.write_text(as_csv(figures), encoding="utf-8")


_FIGURES = {
    "fig2": "TOIS, POIS, SAIS, MinPRO and truncated weights, with several segments and mini-batches.",
    "fig4": "Entropy with all tokens, with all MPTs masked, and with DMMPTs.",
    "fig5": "Entropy with DMMPTs at several targets.",
    "table2": "Accuracy before training, with UloRL, and without DMMPTs.",
    "table3": "Accuracy against output length: a quarter, half, three quarters and all of the recipe's.",
    "entropy": "DMMPTs beside Clip-Cov, KL-Cov, clip-higher, an adaptive bonus and top-entropy tokens.",
}
_EXPLANATION = """\
{what}

The recipe and its model are the subject. Each arm is the paper's objective on this recipe with one setting changed,
trained with the same seeds; arms that several figures share are trained once. --out gets {files}, and every run. The
same command continues what was stopped.

ulorl reproduce {name} --recipe recipes/quickstart.toml --out reproduction

ulorl reproduce {name} --recipe mine.toml --seeds 5 steps=200 objective.mpt.tau=0.9"""


def _figure_command(name: str, what: str, names: Sequence[str], files: str) -> Callable[..., None]:
    """Return the command that trains the arms of the experiments `names`."""

    def command(
        overrides: Annotated[list[str] | None, typer.Argument(metavar="[key=value]...", help="of the recipe")] = None,
        *,
        recipe: Annotated[
            list[Path], typer.Option(metavar="FILE", help="TOML recipe: model, task, sampling; repeatable")
        ],
        out: Annotated[Path, typer.Option(help="the folder of runs, CSV files, pictures and pages")] = Path(
            "reproduction"
        ),
        seeds: Annotated[int, typer.Option(min=1, help="runs of each arm, with the seeds 0, 1, ...")] = 3,
        jobs: Annotated[
            int, typer.Option(min=0, help="runs at a time; 0: cores / model.threads, and one if that is not set")
        ] = 0,
        sigma: Annotated[
            list[float] | None,
            typer.Option(
                min=1e-6, help="target entropy in nats; repeatable; default: .8, 1 and 1.2 of that at the start"
            ),
        ] = None,
    ) -> None:
        config = load(recipe, overrides or [])  # before anything slow is imported
        _reproduce(names, config, recipe, overrides or [], out, seeds, jobs, sigma or [])

    command.__name__, command.__doc__ = name, _EXPLANATION.format(what=what, name=name, files=files)
    return command


def _reproduce(
    names: Sequence[str],
    config: Config,
    recipes: Sequence[Path],
    overrides: Sequence[str],
    out: Path,
    seeds: int,
    jobs: int,
    sigmas: Sequence[float],
) -> None:
    from ulorl.cancellation import Cancelled
    from ulorl.common.progress import ProgressBars
    from ulorl.reproduce.arm_runs import Trainer
    from ulorl.reproduce.paper_figures import VERDICTS, PaperFigures
    from ulorl.training.interrupts import catching_signals

    threads = config.model.threads
    at_once = jobs or (max(1, (os.cpu_count() or 1) // threads) if threads else 1)
    trainer = Trainer(tuple(recipes), tuple(overrides), out, seeds, at_once)
    with catching_signals() as interrupts:
        try:
            with ProgressBars() as bars:
                found = PaperFigures(trainer, tuple(sigmas)).run(names, bars, interrupts.cancel)
        except Cancelled:
            print(f"\nstopped; {out} holds what is finished. The same command continues", file=sys.stderr)
            sys.exit(128 + interrupts.received)
    for experiment, claims in found.items():
        print(f"{out / experiment.name}.md")
        for claim in claims:
            print(f"- {claim}")
    print(f"all verdicts: {out / VERDICTS}")


for _name, _what in _FIGURES.items():
    app.command(_name)(
        _figure_command(_name, _what, [_name], f"{_name}.csv, {_name}_problems.csv, {_name}.svg and {_name}.md")
    )
app.command("all")(
    _figure_command(
        "all",
        f"The screen, and all of {', '.join(_FIGURES)}: 20 arms.",
        ["screen", *_FIGURES],
        "two CSV files, a picture and a page for each, and verdicts.md",
    )
)
