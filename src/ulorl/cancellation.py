"""Cancels long work from outside: one token is passed down to all code that decodes, trains or waits."""

from __future__ import annotations


class Cancelled(BaseException):
    """The work in progress was cancelled. It is no Exception, so that code which retries failures lets it pass."""


class CancelToken:
    """Is cancelled once and stays cancelled. A signal handler or another thread may cancel it: it takes no lock.

    parent: cancels this token too.
    """

    def __init__(self, parent: CancelToken | None = None) -> None:
        self._cancelled, self._parent = False, parent

    @property
    def cancelled(self) -> bool:
        """Whether the work should stop."""
        return self._cancelled or (self._parent is not None and self._parent.cancelled)

    def cancel(self) -> None:
        """Ask the code that holds the token to stop at its next check."""
        self._cancelled = True

    def check(self) -> None:
        """Raise Cancelled when the token was cancelled. Costs next to nothing: call it before every decode step."""
        if self.cancelled:
            raise Cancelled


NEVER = CancelToken()  # for work that is never cancelled
