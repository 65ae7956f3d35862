"""`ulorl bench ...`. Importing this module does not import torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ulorl.cli.output_options import check_output_file
from ulorl.cli.recipe_arguments import load_recipes
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError


class _Benchmarks(TyperGroup):
    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        names = self.list_commands(ctx)
        if args[0] not in names and not args[0].startswith("-"):
            message = f"bench {args[0]}: there is no such benchmark; those there are: {', '.join(names)}"
            raise UserError(message, code=ErrorCode.COMMAND_LINE)
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_Benchmarks,
    help="Compare a component with its usual alternatives: medians and ratios of one run.",
    epilog="Threads are torch's: OMP_NUM_THREADS=1 ulorl bench engine",
    no_args_is_help=True,
)
Repeats = Annotated[int, typer.Option(min=1, help="timed runs of each, after a warm-up")]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="write every figure here")]


@app.command()
def engine(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RECIPE]... [key=value]...",
            help="with --profile: measure the engine and the model of a recipe, vLLM too",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="ulorl:tiny, ulorl:tiny-maze or a model folder; default ulorl:tiny")
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(min=1, help="rows decoded at once; repeatable; default 32 and 128")
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="maximum number of output tokens, with --profile of prompt and output; default 128, with a recipe as "
            "many as it allows and the engine's memory holds",
        ),
    ] = None,
    lengths: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="CSV of real output lengths, in place of the log-normal; repeatable"),
    ] = None,
    equal: Annotated[bool, typer.Option("--equal", help="measure outputs of equal length too")] = False,
    dynamic: Annotated[bool, typer.Option("--dynamic", help="measure generate with the dynamic cache too")] = False,
    generate: Annotated[
        bool, typer.Option("--generate/--no-generate", help="measure transformers' generate too")
    ] = True,
    repeats: Repeats = 5,
    profile: Annotated[
        Path | None,
        typer.Option(
            "--profile",
            metavar="FILE",
            help="measure decode step, prefill and weight sync of the embedded engine, or of a recipe's, and write "
            "them for ulorl plan rollout; rows up to --batch (default 32) or engine.slots, of up to --tokens tokens",
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="with --profile: measure fewer points")] = False,
    json_file: Json = None,
) -> None:
    """Compare the embedded engine with transformers' generate, and with vLLM where it is installed.

    ulorl bench engine --model models/smollm2-135m-instruct --batch 8 --tokens 64

    With --profile it is measured alone: how long a decode step takes by rows and context is what decides which rollout
    schedule is fast on this machine, and ulorl plan rollout reads it.

    ulorl bench engine --model models/smollm2-135m-instruct --batch 32 --tokens 512 --profile cpu.json

    ulorl bench engine recipes/qwen3_8b.toml --profile h100.json
    """
    _check(json_file)
    if (quick and not profile) or (profile and (json_file or lengths)):
        message = "--quick goes with --profile, --json and --lengths go without it; leave one of them out"
        raise UserError(message, code=ErrorCode.BENCH_INPUT, key="--profile")
    if arguments and (not profile or model or batch):
        message = (
            f"{' '.join(arguments)}: a recipe goes with --profile, and without --model and --batch; set model.path=... "
            "and engine.slots=... instead"
        )
        raise UserError(message, code=ErrorCode.BENCH_INPUT, key="--profile")
    if profile:
        check_output_file("--profile", profile)
        from ulorl.bench.engine_profile import run, run_recipe
        from ulorl.planning.latency_profile import write_profile

        if arguments:
            measured = run_recipe(load_recipes(arguments), tokens, quick=quick)
        else:
            measured = run(model or "ulorl:tiny", max(batch or [32]), tokens or 128, quick=quick)
        write_profile(measured, profile)
        print(f"{measured.name}: wrote {profile}")
        return
    from ulorl.bench import engine_bench as bench

    caches = ("static", "dynamic")[: generate * (1 + dynamic)]
    figures = bench.run(
        model or "ulorl:tiny",
        batch or (32, 128),
        tokens or 128,
        lengths=lengths or (),
        equal=equal,
        caches=caches,
        repeats=repeats,
    )
    _show(figures, json_file)


@app.command()
def logprobs(
    tokens: Annotated[int, typer.Option(min=1, help="number of tokens at which both are timed")] = 128,
    memory_tokens: Annotated[
        int, typer.Option(min=1, max=32_768, help="at which our peak is measured, for one stated at 32,768")
    ] = 8192,
    repeats: Repeats = 5,
    json_file: Json = None,
) -> None:
    """Compare log-probs and entropies without logits with the naive computation: memory and time."""
    _check(json_file)
    from ulorl.bench import logprobs_bench as bench

    _show(bench.run(timed_tokens=tokens, memory_tokens=memory_tokens, repeats=repeats), json_file)


@app.command()
def learner(
    tokens: Annotated[
        list[int] | None, typer.Option(help="of the sample; repeatable; default 2048, 4096 and 8192")
    ] = None,
    json_file: Json = None,
) -> None:
    """Measure memory and time of one update on one long sample.

    ulorl bench learner --tokens 8192 --tokens 131072
    """
    _check(json_file)
    from ulorl.bench import learner_bench as bench

    _show(bench.run(tokens or (2048, 4096, 8192)), json_file)


@app.command()
def ulysses(
    tokens: Annotated[int, typer.Option(help="of the sample, prompt and output together")] = 8192,
    processes: Annotated[int, typer.Option(help="that share the sequence: 2 or 4")] = 4,
    json_file: Json = None,
) -> None:
    """Share one long sample between processes, and compare memory and gradient with one process.

    ulorl bench ulysses --tokens 131072
    """
    _check(json_file)
    from ulorl.bench import ulysses_bench as bench

    _show(bench.run(tokens, processes), json_file)


@app.command()
def memory(json_file: Json = None) -> None:
    """Compare the plan of `ulorl plan memory` with the measured peak of a learner of two processes."""
    _check(json_file)
    from ulorl.bench import memory_bench as bench

    _show(bench.run(), json_file)


@app.command()
def rollout(
    tokens: Annotated[int, typer.Option(help="of the output, a multiple of the 8 segments")] = 4096,
    json_file: Json = None,
) -> None:
    """Decode one sample to its full length in segments with the embedded engine."""
    _check(json_file)
    from ulorl.bench import rollout_bench as bench

    _show(bench.run(tokens), json_file)


@app.command()
def step(
    tokens: Annotated[int, typer.Option(min=4, help="output tokens, at most; a multiple of the 4 segments")] = 512,
    repeats: Repeats = 9,
    json_file: Json = None,
) -> None:
    """Measure a whole RL step, and compare it with TRL's GRPOTrainer where it is installed."""
    _check(json_file)
    from ulorl.bench import step_bench as bench

    _show(bench.run(max_tokens=tokens, repeats=repeats), json_file)


@app.command()
def controller(
    samples: Annotated[
        list[int] | None,
        typer.Option(min=8, help="in flight at once; repeatable; default 10000 and 100000"),
    ] = None,
    engines: Annotated[int, typer.Option(min=0, help="the number of engines of the fleet; 0: without a fleet")] = 256,
    json_file: Json = None,
) -> None:
    """Measure the controller's own time a step, with engines that need none."""
    _check(json_file)
    from ulorl.bench import controller_bench as bench

    _show(bench.run(samples or (10_000, 100_000), engines), json_file)


@app.command()
def page(
    results: Annotated[list[Path], typer.Argument(metavar="FILE...", help="what --json wrote")],
    out: Annotated[Path, typer.Option(help="the page to write; pictures go to figures/ beside it")] = Path(
        "docs/benchmarks.md"
    ),
) -> None:
    """Write a page with tables and pictures from the figures of the others."""
    from ulorl.bench.results_page import write_page

    print(write_page(results, out))


def _check(json_file: Path | None) -> None:
    """Refuse a file that could not be written, before the work."""
    if json_file and not json_file.absolute().parent.is_dir():
        message = f"--json {json_file}: there is no folder {json_file.parent}"
        raise UserError(message, code=ErrorCode.FILE_NOT_WRITABLE, key="--json", file=json_file)


def _show(figures: dict[str, Any], json_file: Path | None) -> None:
    from ulorl.bench.results_page import table

    print(table(figures))
    if json_file:
        json_file.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
