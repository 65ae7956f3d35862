"""Which releases of TRL the adapter works with. Importing this module does not import trl."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from packaging.specifiers import SpecifierSet

from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError

# Private methods of GRPOTrainer are overridden, so only releases whose tests passed are here, as in the extra `trl`.
SUPPORTED = SpecifierSet(">=1.16,<1.17")


def require_trl() -> None:
    """Raise UserError if TRL is not installed, or is a release that the adapter was not tested with."""
    install = 'pip install "ulorl[trl]"'
    try:
        found = version("trl")
    except PackageNotFoundError:
        message = f"ulorl.adapters.trl needs TRL, which is not installed: {install}"
        raise UserError(message, code=ErrorCode.EXTRA_MISSING) from None
    if not SUPPORTED.contains(found, prereleases=True):
        message = f"ulorl.adapters.trl needs trl{SUPPORTED}, found {found}: {install}"
        raise UserError(message, code=ErrorCode.EXTRA_MISSING)
