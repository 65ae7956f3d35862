"""Reads the verdict of a generative verifier from its output (section 3.3)."""

from __future__ import annotations

import re

_THINKING = re.compile(r"^.*</think>", re.DOTALL)
_VERDICT = re.compile(r"(?:\*\*)?(?:verdict:\s*)?(?:\*\*)?\s*(yes|no)\.?(?:\*\*)?", re.IGNORECASE)
_STATED = re.compile(r"verdict:\W*(yes|no)\b", re.IGNORECASE)


def parse_verdict(output: str) -> bool | None:
    """Return whether the pair is equivalent, as the last line of a verifier's output says: "Verdict: yes", or "yes".

    What precedes a closing think tag does not count. Anything else is unreadable and gives None, also an output with
    different verdicts or with a thought that does not end.
    """
    said = _THINKING.sub("", output)
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    if not lines or "<think>" in said or not (last := _VERDICT.fullmatch(lines[-1])):
        return None
    found = [match[1] for match in map(_VERDICT.fullmatch, lines) if match] + _STATED.findall(said)
    return last[1].lower() == "yes" if len({verdict.lower() for verdict in found}) == 1 else None
