"""Benchmark suites by name, with the sampling of section 4.1 as their preset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ulorl.data.record_files import ENDINGS
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError

# Section 4.1: 32 runs a problem. `problems` is no limit.
PAPER_SAMPLING: Mapping[str, Any] = MappingProxyType(
    {"samples": 32, "temperature": 0.85, "top_p": 0.95, "top_k": 20, "problems": 10**9}
)
BOXED = "{question}\nPlease reason step by step, and put your final answer within \\boxed{}."


@dataclass(frozen=True)
class Suite:
    """The problems of a benchmark, as the sections [data] and [reward] of a configuration."""

    name: str
    data: Mapping[str, Any]
    reward: Mapping[str, Any]

    def sections(self) -> dict[str, Any]:
        """Return the sections of a configuration that evaluates this suite with the paper's sampling."""
        data = dict(self.data)
        held_out = {"kind": data["kind"]}  # the same problems: overrides of `data` reach them
        return {"data": data, "reward": dict(self.reward), "eval": {**PAPER_SAMPLING, "data": held_out}}


def _of_hub(path: str, revision: str, *, split: str = "test", **fields: str) -> dict[str, Any]:
    return {"kind": "hub", "path": path, "revision": revision, "split": split, "template": BOXED, **fields}


# The commit of each dataset, so that a suite stays the same problems. That of BeyondAIME is not known here: `main`.
_DATA: Mapping[str, Mapping[str, Any]] = {
    "aime24": _of_hub("HuggingFaceH4/aime_2024", "2fe88a2f1091d5048c0f36abc874fb997b3dd99a", split="train"),
    "aime25": _of_hub("math-ai/aime25", "563bb8404243c5f09de6ec262f2db674fe5bce9b"),
    "beyondaime": _of_hub("ByteDance-Seed/BeyondAIME", "main"),
    "math500": _of_hub("HuggingFaceH4/MATH-500", "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be"),
    "gsm8k": _of_hub(
        "openai/gsm8k",
        "cc7b047b6e5bb11b4f1af84efc572db110a51b3c",
        subset="main",
        question="question",
        answer_after="####",
    ),
    "countdown": {"kind": "countdown", "size": 1000, "seed": 7, "template": "{question}\n"},
}
NAMES = tuple(_DATA)
_OF_HUB_ONLY = ("revision", "split", "subset")


def find_suite(text: str) -> Suite:
    """Return the suite that the command line names.

    text: NAME, with the problems of the hub or of a generator; NAME=FILE, with those of a local file that has the
    suite's fields; or FILE, a suite of the user's with the fields `problem` and `answer`, named after the file. A file
    may be a glob pattern. Raises UserError.
    """
    name, equals, file = text.partition("=")
    if name in _DATA:
        data = dict(_DATA[name])
        if equals and data["kind"] != "hub":
            raise _error(f"--suite {text}: {name} generates its problems and takes no file")
        if equals:
            data = {key: value for key, value in data.items() if key not in _OF_HUB_ONLY} | _file(file, text)
        return Suite(name, data, {"kind": "countdown" if data["kind"] == "countdown" else "math"})
    if text.endswith(ENDINGS):
        return Suite(Path(text).stem.replace("*", "_"), {**_file(text, text), "template": BOXED}, {"kind": "math"})
    raise _error(
        f"--suite {text}: neither a suite ({', '.join(NAMES)}), nor NAME=FILE, nor a file that ends in "
        f"{', '.join(ENDINGS)}"
    )


def _file(path: str, text: str) -> dict[str, Any]:
    if not path:
        raise _error(f"--suite {text}: name the file after the equals sign")
    return {"kind": "files", "path": path}


def _error(text: str) -> UserError:
    return UserError(text, code=ErrorCode.COMMAND_LINE, key="--suite")
