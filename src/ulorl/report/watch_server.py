"""Serves the page of a run on this machine while the run goes on: `ulorl watch`.

The server listens on the loopback address only. It refuses requests whose Host is not its own, so that a page of
another site cannot read a run by giving its name this address (DNS rebinding). It opens no file that a request names: a
request chooses among three answers, and a step is looked up among the stored ones.
"""

from __future__ import annotations

import re
import signal
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.report.live_run import Cursor, as_bytes, live_page, news, samples_of
from ulorl.runs.saved_run import read_run

LOOPBACK = "127.0.0.1"
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
}


class WatchServer(ThreadingHTTPServer):
    """Answers requests about the run in `run_dir`, until it is shut down. port: 0 is a free one; `url` names it.

    Raises UserError when there is no run, or the port is in use.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, run_dir: Path, port: int) -> None:
        read_run(run_dir)
        self.run_dir = run_dir
        try:
            super().__init__((LOOPBACK, port), _Handler)
        except (OSError, OverflowError) as error:
            message = f"--port {port}: cannot listen there ({error}); give another one, or 0 for a free one"
            raise UserError(message, code=ErrorCode.COMMAND_LINE, key="--port") from None

    @property
    def url(self) -> str:
        """Return the address of the page."""
        return f"http://{LOOPBACK}:{self.server_port}/"

    @property
    def hosts(self) -> tuple[str, str]:
        """Return the values of the Host header that are answered."""
        return f"{LOOPBACK}:{self.server_port}", f"localhost:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print an error of an answer, but not that a browser closed its connection."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: WatchServer
    timeout = 30  # seconds for a request to arrive
    server_version, sys_version = "ulorl", ""

    def do_GET(self) -> None:
        """Answer with the page, with what is new, or with the samples of a step."""
        if self.headers.get("Host") not in self.server.hosts:
            self._send(HTTPStatus.MISDIRECTED_REQUEST, "text/plain", b"This server answers under its own address only.")
            return
        place, run_dir = urlsplit(self.path), self.server.run_dir
        asked = {name: values[0] for name, values in parse_qs(place.query).items()}
        try:
            if place.path == "/":
                self._send(HTTPStatus.OK, "text/html", live_page(run_dir).encode())
            elif place.path == "/news":
                self._json(HTTPStatus.OK, news(run_dir, Cursor.parse(asked.get("cursor", ""))))
            elif place.path == "/samples" and re.fullmatch(r"[0-9]{1,15}", asked.get("step", "")):
                self._json(HTTPStatus.OK, samples_of(run_dir, int(asked["step"])))
            else:
                self._send(HTTPStatus.NOT_FOUND, "text/plain", b"There is no such page.")
        except (UserError, ValueError) as error:
            self._json(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": str(error)})
        except ConnectionError:
            raise
        except OSError as error:  # a file that was just removed: the run is being overwritten
            self._json(HTTPStatus.SERVICE_UNAVAILABLE, {"error": f"{error}: the page asks again"})

    def log_message(self, *_: object) -> None:
        """Print nothing for a request."""

    def _json(self, status: HTTPStatus, answer: Any) -> None:
        self._send(status, "application/json", as_bytes(answer))

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        headers = {"Content-Type": f"{kind}; charset=utf-8", "Content-Length": str(len(body)), **_HEADERS}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def watch(run_dir: Path, port: int) -> None:
    """Serve the page of a run until SIGINT (Ctrl-C) or SIGTERM. For the main thread only. Raises UserError as
    `WatchServer` does."""
    signals = (signal.SIGINT, signal.SIGTERM)
    with WatchServer(run_dir, port) as server:
        # A shell lets what it starts in the background ignore SIGINT, and Python would leave it so.
        before = [signal.signal(number, signal.default_int_handler) for number in signals]
        print(f"{server.url} shows {run_dir} and follows it. Ctrl-C ends.", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
        finally:
            for number, handler in zip(signals, before, strict=True):
                signal.signal(number, handler)
