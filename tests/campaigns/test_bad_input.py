"""Bad input is refused before any work: exit code 2, one message that names the place, no traceback.

Each mutation several times here, in this process; `make bad-input` takes 5,000, and some by the real command.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from bad_anything import complaint_about
from bad_files import DATA, FILES_RECIPE, good_data
from bad_inputs import (
    CONFIGURATIONS,
    COUNTDOWN,
    RECIPES,
    Mutation,
    campaign,
    literal,
    run,
    run_command,
    toml,
)
from bad_models import MODELS, changed_config, copy_model
from ulorl.config.loading import load

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("mutations", "rounds"),
    [(CONFIGURATIONS, 20), (DATA, 6), (MODELS, 4)],
    ids=["configurations", "data", "models"],
)
def test_every_generated_bad_input_is_refused(mutations: Sequence[Mutation], rounds: int, tmp_path: Path) -> None:
    count = rounds * len(mutations)
    total, complaints = campaign([(mutations, count)], tmp_path)
    assert total == count
    assert not complaints, f"{len(complaints)} of {total}:\n" + "\n\n".join(complaints[:5])


def test_the_real_command_refuses_them_too(tmp_path: Path) -> None:
    """A few of each kind; `make bad-input` takes 50."""
    total, complaints = campaign([(CONFIGURATIONS, 2), (DATA, 1), (MODELS, 1)], tmp_path, seed=1, take=run_command)
    assert total == 4
    assert not complaints, "\n\n".join(complaints)


def test_any_change_is_accepted_or_refused(tmp_path: Path) -> None:
    """50 changes; `make bad-input` takes 200."""
    found = []
    for seed in range(50):
        (folder := tmp_path / f"{seed}").mkdir()
        found.append(complaint_about(seed, folder))
    assert not list(filter(None, found))


def test_what_the_mutations_start_from_is_good(tmp_path: Path) -> None:
    """Else anything would be refused."""
    code, out, err = run([*good_data(tmp_path), f"model.path={copy_model(tmp_path)}", f"run.dir={tmp_path / 'run'}"])
    assert (code, err) == (0, "")
    assert "2 to train on" in out
    for recipe in RECIPES:
        (tmp_path / "r.toml").write_text(toml(json.loads(load([recipe]).model_dump_json())))
        assert load([tmp_path / "r.toml"]) == load([recipe])
    assert literal({"a": [1, "x"]}) == '{a = [1, "x"]}'


def test_a_bad_key_is_found_before_torch_is_imported() -> None:
    code = (
        "import sys; from ulorl.cli.main import main\n"
        f"sys.argv = ['ulorl', 'check', {str(COUNTDOWN)!r}, 'optim.rl=1']\n"
        "try: main()\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "2 False\n"


def test_all_errors_are_reported_at_once(tmp_path: Path) -> None:
    model = changed_config(copy_model(tmp_path), vocab_size=112)
    (model / "tokenizer.json").unlink()
    (tmp_path / "p.jsonl").write_text('{"problem": "1+1"}\n')
    (tmp_path / "q.jsonl").write_text('{"answer": "1"}\n')
    (tmp_path / "run").write_text("x")
    held_out = f"eval.data={{ path = '{tmp_path}/q.jsonl' }}"
    given = (
        *FILES_RECIPE[:-1],
        f"data.path={tmp_path}/p.jsonl",
        held_out,
        f"model.path={model}",
        f"run.dir={tmp_path}/run",
    )
    code, _, err = run(["check", str(COUNTDOWN), *given])
    assert code == 2
    assert err.startswith("error: 5 things are wrong\n")
    for place in ("run is a file", "p.jsonl:1: no field 'answer'", "eval.data: ", "q.jsonl:1: no field 'problem'"):
        assert place in err
    assert "embed_tokens.weight: [111, 128] in the file, [112, 128] by config.json" in err
    assert "no usable tokenizer" in err


def test_prompts_that_are_too_long_are_bad_records(tmp_path: Path) -> None:
    lines = [{"id": f"p{n}", "problem": "1+" * (300 if n in (1, 4) else 2) + "1", "answer": "2"} for n in range(6)]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    given = ["check", str(COUNTDOWN), *FILES_RECIPE, f"data.path={tmp_path}/p.jsonl", "data.max_prompt_tokens=100"]
    code, _, err = run([*given, f"run.dir={tmp_path}/run"])
    assert code == 2
    for n in (1, 4):
        assert (
            f"problem p{n} ({tmp_path}/p.jsonl:{n + 1}): its prompt has 602 tokens, data.max_prompt_tokens=100" in err
        )
    code, out, _ = run([*given, f"run.dir={tmp_path}/run", "data.bad=skip"])
    assert code == 0
    assert "4 to train on" in out


def test_questions_that_occur_twice_are_reported_and_kept(tmp_path: Path) -> None:
    """They may be meant as weights; only their ids must differ."""
    rows = [("1+1", "2"), ("1+1", "2"), ("2+2", "4"), ("2+2", "5"), ("3+3", "6")]
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps({"problem": q, "answer": a}) for q, a in rows))
    given = [*FILES_RECIPE, f"data.path={tmp_path}/p.jsonl", f"run.dir={tmp_path}/run"]
    code, out, _ = run(["check", str(COUNTDOWN), *given])
    assert code == 0
    assert "5 to train on, 0 held out; 2 questions occur more than once, 1 with different answers" in out


def test_check_knows_the_runs_folder(tmp_path: Path) -> None:
    """New, this run unfinished, this run finished, another run."""
    folder = tmp_path / "run"
    given = [*good_data(tmp_path), f"run.dir={folder}"]
    assert f"run folder: {folder}, new" in run(given)[1]
    folder.mkdir()
    (folder / "config.json").write_text(load(given[1:2], given[2:]).model_dump_json())
    assert "holds this run, unfinished" in run([*given, "steps=99"])[1]  # longer: still this run
    code, _, err = run([*given, "rollout.group=4"])
    assert (code, "rollout.group=4 (was 8)" in err) == (2, True)
    (folder / "finished.json").write_text('{"steps": 45}')
    code, _, err = run(given)
    assert (code, "this run, finished" in err) == (2, True)
