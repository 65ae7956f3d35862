"""The one exception a user causes: bad configuration, data or model folder. The command line prints it without a
traceback and exits with code 2."""

from __future__ import annotations


class UserError(Exception):
    """Says what is wrong, where (file, key or record) and how to mend it."""
