"""Builds the prompt of a generative verifier (section 3.3) from a file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError

FOLDER_FILE = "verifier.json"  # in the folder of a trained verifier: how it was asked when it was trained
SHIPPED = ("judge", "short")  # for models that follow instructions; for those trained by `ulorl verifier train`
_FOLDER = Path(__file__).parent / "prompts"
_FIELD = re.compile(r"\{(question|reference|answer)\}")
_WRAPPER = re.compile(r"</?\s*(?:question|reference|predicted)\b[^>]*>?", re.IGNORECASE)
# Special tokens of chat templates, which the judged model may write: tokenizers would read the end of a turn.
_TURN = re.compile(
    r"<[|｜][\w▁ -]{3,}[|｜]>|</?s>|</?(?:start|end)_of_turn>|\[/?INST\]|</?think>|</?bos>|</?eos>", re.IGNORECASE
)


@dataclass(frozen=True)
class VerdictPrompt:
    """A text with the fields {question}, {reference} and {answer}; other braces are text.

    question_chars: of a longer question only the end is shown, where it says what is asked for; 0: all of it.
    """

    text: str
    question_chars: int = 0

    def render(self, question: str, reference: str, answer: str) -> str:
        """Return the user's message for one pair.

        The text of a field is never read as a field. The answer, which the judged model wrote, becomes one line without
        tags of the prompt or of chat templates.
        """
        question = question.strip()
        if self.question_chars and len(question) > self.question_chars:
            question = "…" + question[-self.question_chars :]
        fields = {"question": question, "reference": reference.strip(), "answer": plain(answer)}
        return _FIELD.sub(lambda field: fields[field[1]], self.text)


def plain(answer: str) -> str:
    """Return a predicted answer as verifiers see it: one line, without tags of the prompt or of chat templates."""
    before = None
    while before != answer:  # removing a tag may join the halves of another one
        before, answer = answer, _TURN.sub(" ", _WRAPPER.sub(" ", answer))
    return " ".join(answer.split())


def load_prompt(name: str, question_chars: int = 0, *, key: str = "") -> VerdictPrompt:
    """Return the prompt `name`: one of `SHIPPED`, or a file. key: of the setting that names it, for errors.

    Raises UserError when the file cannot be read, or when it lacks a field.
    """
    path = _FOLDER / f"{name}.txt" if name in SHIPPED else Path(name)
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"the verifier's prompt {name} cannot be read ({error}); give a text file, or one of {', '.join(SHIPPED)}",
            code=ErrorCode.VERIFIER_PROMPT,
            file=path,
            key=key,
        ) from error
    missing = [field for field in ("{reference}", "{answer}") if field not in text]
    if missing:
        raise UserError(
            f"the verifier's prompt {path} lacks {' and '.join(missing)}: the model would not see it",
            code=ErrorCode.VERIFIER_PROMPT,
            file=path,
            key=key,
        )
    return VerdictPrompt(text, question_chars)
