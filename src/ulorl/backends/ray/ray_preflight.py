"""Checks what the Ray backend needs before anything is started. Imports no Ray: it may be missing."""

from __future__ import annotations

import os
import socket
from importlib.metadata import PackageNotFoundError, version

from ulorl.config.backend_config import RayBackendConfig
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError

SUPPORTED = ((2, 56), (3, 0))  # from, below
CONNECT_SECONDS = 10.0


def check_ray(settings: RayBackendConfig) -> None:
    """Raise UserError when Ray is missing or of an unsupported version, or nothing listens at `backend.address`."""
    low, below = (".".join(map(str, bound)) for bound in SUPPORTED)
    install = f"pip install 'ulorl[ray]' on every machine of the cluster (ray>={low},<{below})"
    try:
        found = version("ray")
    except PackageNotFoundError:
        raise _error(f"Ray is not installed; {install}", ErrorCode.EXTRA_MISSING) from None
    if not SUPPORTED[0] <= tuple(int(part) for part in found.split(".")[:2]) < SUPPORTED[1]:
        raise _error(f"ray {found} is not supported; {install}", ErrorCode.EXTRA_MISSING)
    if settings.address not in ("", "auto", "local"):
        _check_reachable(settings.address)


def set_environment(settings: RayBackendConfig) -> None:
    """Set the variables that Ray reads when it is imported: no usage statistics, and a cluster that is started on this
    machine listens on the loopback interface only."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not settings.address:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # also on Linux: Ray's only switch for it


def unreachable(address: str, why: str) -> UserError:
    """Return the error about a cluster that cannot be joined."""
    return UserError(
        f"backend.address={address}: {why}. Start the cluster with `ray start --head` on one machine and `ray start "
        "--address=HOST:6379` on the others, or leave backend.address empty to start one on this machine",
        code=ErrorCode.CLUSTER_UNAVAILABLE,
        key="backend.address",
    )


def _check_reachable(address: str) -> None:
    """Ray itself would try for minutes, and then end the process."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise unreachable(address, 'is neither HOST:PORT, nor "auto"')
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise unreachable(address, f"no Ray cluster answers there ({error.strerror or error})") from None


def _error(problem: str, code: ErrorCode) -> UserError:
    return UserError(f"backend.kind=ray: {problem}", code=code, key="backend.kind")
