"""Takes secrets out of the messages of other libraries."""

from __future__ import annotations

import os
import re

_SECRET_NAMES = ("KEY", "TOKEN", "PASSWORD", "SECRET")  # how names of environment variables with secrets end
_SHORTEST = 6  # characters; a shorter value stands in too many texts that do not mean it
_IN_URL = re.compile(r"(?<=://)[^/@\s]+(?=@)")


def without_secrets(text: str) -> str:
    """Return a text with *** for the values of environment variables whose names end in KEY, TOKEN, PASSWORD or SECRET,
    and for user names and passwords in URLs."""
    secrets = [value for name, value in os.environ.items() if name.upper().endswith(_SECRET_NAMES)]
    for secret in sorted(secrets, key=len, reverse=True):  # one may begin another, whose rest would stay
        if len(secret) >= _SHORTEST:
            text = text.replace(secret, "***")
    return _IN_URL.sub("***", text)
