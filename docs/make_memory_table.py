"""Writes the section "Memory" of docs/cluster.md from `ulorl plan memory`: `python docs/make_memory_table.py`."""

from __future__ import annotations

import re
from pathlib import Path

from ulorl.config.loading import load
from ulorl.planning.plan_text import comparison_table
from ulorl.planning.recipe_settings import plan_recipe

ROOT = Path(__file__).parents[1]
MODELS = {"Qwen3-4B": "qwen3_4b", "Qwen3-8B": "qwen3_8b", "Qwen3-30B-A3B": "qwen3_30b_a3b"}
EIGHT = ("backend.kind=ray", "backend.ranks=8", "optim.sequence_parallel=8", "optim.microbatch_tokens=16640")
VARIANTS = {"the recipe": (), "8 learner GPUs": EIGHT, "8, moments on the host": (*EIGHT, "optim.offload=true")}
TEXT = """## Memory

`ulorl plan memory RECIPE` computes the memory of every GPU, without a GPU and without weights. The table shows its
numbers for samples of 133,120 tokens, in GB (10^9 bytes) a GPU of 80 GB, of which 5% are left for the CUDA context,
NCCL and the allocator. "State" is weights, gradients and AdamW's moments in float32. The four columns after it belong
to the phase with the largest sum, and the peak is state and these four. "Host" is the machine's memory for AdamW's step
with `optim.offload`: copies of weights and gradients, and the moments. Keys and values are those of one full sample on
all GPUs of an engine.

{table}

The head needs less memory than the backward pass of a layer in these runs, and the two are not held at the same time,
so the peak does not add them up. Qwen3-30B-A3B on 8 learner GPUs is at the limit: take 16, or the host.

`ulorl bench memory` compares the plan with the peak of learners of two processes over gloo: dense and with experts, in
float32 and bfloat16, of padded and packed samples, with and without a shared sequence. The plan is 0% to 4% above the
peak ([figures](benchmarks.md#the-memory-plan-of-a-learner-ulorl-bench-memory)).
"""


def section() -> str:
    """Return the text of the section."""
    plans = {}
    for name, recipe in MODELS.items():
        for variant, overrides in VARIANTS.items():
            config = load(
                [str(ROOT / "recipes" / f"{recipe}.toml")],
                [f"model.path={ROOT / 'tests' / 'fixtures' / 'model_configs' / recipe}", *overrides],
            )
            plans[f"{name}, {variant}"] = plan_recipe(config, 80)
    return TEXT.format(table=comparison_table(plans))


def with_section(page: str) -> str:
    """Return a page with the section in place of its old one, or at the end."""
    kept = re.sub(r"\n## Memory\n.*?(?=\n## |\Z)", "", page, flags=re.DOTALL).rstrip("\n")
    return f"{kept}\n\n{section()}"


if __name__ == "__main__":
    path = ROOT / "docs" / "cluster.md"
    path.write_text(with_section(path.read_text(encoding="utf-8")), encoding="utf-8")
