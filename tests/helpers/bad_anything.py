"""Any value for any key, of the recipe or of a model folder's files: good or bad, but never a traceback."""

from __future__ import annotations

import json
import random
from pathlib import Path

from bad_files import good_data
from bad_inputs import LEAVES, WRONG, literal, run
from bad_models import copy_model

ANY = [v for values in WRONG.values() for v in values] + [
    0, -1, 1, 2, 7, 128, 1e-9, 1e300, 10**9, "auto", "~x/y", [], {},
]  # fmt: skip
MODEL_FILES = ("config.json", "tokenizer_config.json", "generation_config.json", "tokenizer.json")


def complaint_about(seed: int, folder: Path) -> str | None:
    """Change something, drawn from the seed, and check it: what is wrong with how that was taken, None when nothing."""
    rng = random.Random(seed)
    arguments = [*good_data(folder), f"run.dir={folder / 'run'}"]
    if seed % 2:
        file = copy_model(folder) / rng.choice(MODEL_FILES)
        settings = json.loads(file.read_text())
        settings[rng.choice([*settings, "quantization_config", "chat_template"])] = rng.choice(ANY)
        file.write_text(json.dumps(settings))
        arguments.append(f"model.path={file.parent}")
    else:
        ours = [key for key in LEAVES if not key.startswith("data.")]  # the data file decides which of those fit
        arguments += [f"{rng.choice(ours)}={literal(rng.choice(ANY))}" for _ in range(rng.randrange(1, 3))]
    code, _, err = run(arguments)
    errors = sum(line.startswith("error:") for line in err.splitlines())
    good = "Traceback" not in err and (code, errors) in [(0, 0), (2, 1)]
    return None if good else f"seed {seed} {arguments}: exit code {code}, {errors} errors\n{err[-1500:]}"
