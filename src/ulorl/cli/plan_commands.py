"""`ulorl plan ...`. Importing this module does not import torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ulorl.cli.output_options import check_output_file
from ulorl.cli.recipe_arguments import load_recipes

app = typer.Typer(
    help="Compute before a run what it will need. No GPU and no weights are used.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command()
def memory(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE... [key=value]...", help="TOML recipes, layered from left to right, then overrides"
        ),
    ],
    gpu_memory: Annotated[
        float, typer.Option("--gpu-memory", min=1, metavar="GB", help="the memory of one GPU, in 10^9 bytes")
    ] = 80,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="write every number into this file, in bytes")
    ] = None,
) -> None:
    """Compute the memory of every GPU of a run, and say whether it fits.

    The learner's memory is shown by phase of an update, for the longest sample: weights, gradients and AdamW's moments;
    weights that are gathered from other GPUs; gradients that are being reduced; saved inputs of layers; activations of
    a layer or of the head. The engine's is its copy of the weights, and keys and values. If it does not fit, the plan
    names the smallest changes of the recipe with which it does; the exit code is then 1.

    Only config.json of the model is read: model.path may be a folder that holds nothing else.

    ulorl plan memory recipes/qwen3_8b.toml

    ulorl plan memory recipes/qwen3_8b.toml optim.offload=true --gpu-memory 141
    """
    config = load_recipes(arguments)
    check_output_file("--json", json_file)
    from ulorl.planning.plan_text import plan_json, plan_text
    from ulorl.planning.recipe_settings import plan_recipe

    result = plan_recipe(config, gpu_memory)
    print(plan_text(result))
    if json_file:
        json_file.write_text(json.dumps(plan_json(result), indent=2) + "\n", encoding="utf-8")
    if not result.fits:
        raise typer.Exit(1)


@app.command(no_args_is_help=True)
def rollout(
    profile: Annotated[
        str, typer.Option(metavar="PRESET|FILE", help="how fast the engine and the learner are: see above")
    ],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RECIPE]... [key=value]...",
            help="TOML recipes, and changes of keys of the recipe or of the profile, as engines=16 workload.mean=9000",
        ),
    ] = None,
    lengths: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="CSV of output lengths: a row a sample, its problem if known, or a row a length with its probability",
        ),
    ] = None,
    scale: Annotated[float, typer.Option(min=1e-6, metavar="FACTOR", help="multiply all output lengths")] = 1.0,
    max_age: Annotated[
        float, typer.Option("--max-age", min=0, metavar="VERSIONS", help="the highest mean age of trained tokens")
    ] = 2.0,
    max_versions: Annotated[
        int | None,
        typer.Option(
            "--max-versions",
            min=0,
            metavar="N",
            help="the most versions of a sample, which every schedule then keeps; 0: no limit [default: the recipe's]",
        ),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="W",
            help="the collect window of every schedule, in groups (docs/schedules.md); 0: none [default: the recipe's]",
        ),
    ] = None,
    kv_limit: Annotated[
        float, typer.Option("--kv-limit", min=0, metavar="SHARE", help="the highest use of keys and values")
    ] = 0.9,
    steps: Annotated[
        int, typer.Option(min=0, metavar="N", help="steps to simulate of each schedule; 0: as many as are needed")
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help="of the output lengths")] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="write every number into this file")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE.svg", help="draw which sample decodes when, by version of the weights")
    ] = None,
) -> None:
    """Compare rollout schedules before a run, and recommend one within limits on age and memory.

    Every schedule is simulated with the run's own scheduling code, on the same output lengths: `segment` (1: each step
    waits for its longest output; 2, 4, 8: the paper's), `oversubscribe` and `refill` (docs/schedules.md). Speed is
    completed groups a second, so that schedules with different batches compare fairly. Age is what speed costs: the
    versions of the weights between drawing a token and training on it. In our simulation of the paper's run, 4 segments
    have a mean age of 1.6.

    A profile says how long a decode step, a prefill, an update and a weight sync take. Measure it with `ulorl bench
    engine --profile FILE`, or take a preset: paper (table 1 of UloRL), h100-8b (one node), h100-30b-a3b (128 GPUs).
    Presets rest on assumptions, which they name; they also hold a workload: prompts, samples, lengths. Without a
    recipe the profile's workload is planned.

    The recommendation is the schedule with the youngest tokens among those within 2% of the highest speed that the
    limits allow; its mean batch is 97% to 125% of the prompts, and steady. The bound is what no
    schedule exceeds: every engine always decodes as many rows as are best for it, and prefills each prompt once. If the
    recommended schedule is near it, only a shorter update, more memory or more engines help. The exit code is 1 when no
    schedule is allowed. The recipe's window, order and max_versions hold for every schedule.

    ulorl plan rollout --profile h100-8b --max-age 1

    ulorl plan rollout recipes/qwen3_8b.toml --profile measured.json --lengths lengths.csv --picture timeline.svg
    """
    check_output_file("--json", json_file)
    check_output_file("--picture", picture)
    from ulorl.common.progress import ProgressBars
    from ulorl.planning.schedule_inputs import choices_of, lengths_source, not_simulated, read_inputs, workload_of
    from ulorl.planning.schedule_plan import PlanSetting, plan_schedules
    from ulorl.planning.schedule_plan_text import schedule_plan_json, schedule_plan_text

    machine, config = read_inputs(profile, arguments or [])
    workload = workload_of(machine)
    own = config.rollout.schedule if config else None
    setting = PlanSetting(
        profile=machine,
        source=lengths_source(workload, lengths, scale),
        prompts=workload.prompts,
        group=workload.group,
        max_tokens=workload.max_tokens,
        prompt_tokens=workload.prompt_tokens,
        seed=seed,
        steps=steps,
        max_age=max_age,
        max_versions=_given_or(max_versions, own.max_versions if own else 0),
        window=_given_or(window, own.window if own else 0),
        order=own.order if own else "fifo",
        kv_limit=kv_limit,
    )
    choices = choices_of(config, workload.max_tokens)
    with ProgressBars() as bars:
        bar = bars.add("schedules", len(choices))
        result = plan_schedules(setting, choices, lambda _: bar.advance())
    print(schedule_plan_text(result))
    if config and (keys := not_simulated(config)):
        print(f"\nNot simulated, though the recipe sets them: {', '.join(keys)}")
    if json_file:
        json_file.write_text(json.dumps(schedule_plan_json(result), indent=2) + "\n", encoding="utf-8")
    if picture:
        from ulorl.planning.timeline_picture import draw_timelines

        best = result.recommended or result.fastest
        draw_timelines(setting, list(dict.fromkeys([choices[0], best.choice])), picture)
    if not result.recommended:
        raise typer.Exit(1)


def _given_or(option: int | None, default: int) -> int:
    return default if option is None else option
