"""`ulorl plan ...`. Importing this module does not import torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ulorl.cli.output_options import check_output_file
from ulorl.config.loading import load

app = typer.Typer(
    help="Compute before a run what it will need. No GPU and no weights are used.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.callback()
def plan() -> None:
    """Keep `memory` a subcommand: typer runs the only command of a group without its name."""


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
    config = load([a for a in arguments if "=" not in a], [a for a in arguments if "=" in a])
    check_output_file("--json", json_file)
    from ulorl.planning.plan_text import plan_json, plan_text
    from ulorl.planning.recipe_settings import plan_recipe

    result = plan_recipe(config, gpu_memory)
    print(plan_text(result))
    if json_file:
        json_file.write_text(json.dumps(plan_json(result), indent=2) + "\n", encoding="utf-8")
    if not result.fits:
        raise typer.Exit(1)
