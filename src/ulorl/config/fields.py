"""The parts of configuration sections: their base class, number types, and refusals of a validator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from ulorl.error_codes import ErrorCode

Positive = Annotated[int, Field(gt=0)]
Natural = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(gt=0, le=1)]

# Whether a resumed run may change a key is said at its field: `Field(..., json_schema_extra=MAY_CHANGE)`. The mark of a
# section is that of all its keys, and every key without a mark is fixed (`resumable_keys` lists them).
MAY_CHANGE: dict[str, JsonValue] = {"resume": "may change"}
FIXED: dict[str, JsonValue] = {"resume": "fixed"}  # of a section: it overrides what its keys say


class StrictConfig(BaseModel):
    """A section of a configuration: frozen, without unknown keys, and strict about types.

    3.0, "3" and true are not whole numbers. TOML has no tuples, so fields that are tuples say `strict=False`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


@dataclass(frozen=True)
class Finding:
    """One key of a configuration that is refused.

    key: the dotted key, in a validator relative to its section. text: what is wrong, and how to fix it.
    """

    key: str
    text: str
    code: ErrorCode = ErrorCode.CONFIG_CONFLICT

    @property
    def line(self) -> str:
        """The line that a message shows."""
        return f"{self.key}: {self.text}" if self.key else self.text


class RefusedKeys(ValueError):  # noqa: N818 - says what was refused
    """Raised by a validator, with one finding for each key that it refuses."""

    def __init__(self, *findings: Finding) -> None:
        super().__init__("\n".join(finding.line for finding in findings))
        self.findings = findings
