"""Keys that had another name in an earlier version.

A recipe that uses the old name is refused with the new one; the saved configuration of a run is upgraded silently.
"""

from __future__ import annotations

RENAMED: dict[str, str] = {}  # the old dotted key: the new one
