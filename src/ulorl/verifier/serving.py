"""`ulorl verifier serve`: loads a model into our engine and serves it on this machine."""

from __future__ import annotations

import shlex
import signal
import socket
import sys
from pathlib import Path

import uvicorn

from ulorl.clients.shared_engine import SharedEngine
from ulorl.engines.engine_spec import EngineSpec
from ulorl.engines.factory import check_engine, make_retrying_engine, pick_device
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.models.model_source import ModelSource
from ulorl.rewards.verdict_prompt import FOLDER_FILE
from ulorl.types import Sampling
from ulorl.verifier.chat_app import ChatModel, make_app
from ulorl.verifier.serving_config import ServingConfig

LONGEST = 32768  # tokens of prompt and output, where the model's own context is longer and `context` is 0
GRACE = 5  # seconds that requests in progress get when the server stops


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens, so that no other process can take the port while the model is loaded.

    Connections wait in it until the server accepts them. port: 0 for a free one. Raises UserError.
    """
    bound = None
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.listen()  # only now is the port taken: two sockets with SO_REUSEADDR can both be bound to it
    except OSError as error:
        if bound:
            bound.close()
        raise UserError(
            f"{host}:{port}: the server cannot listen there ({error.strerror}); give another --port or --host",
            code=ErrorCode.ADDRESS_UNAVAILABLE,
            key="--port",
        ) from None
    return bound


def load(path: str, name: str, settings: ServingConfig) -> tuple[ChatModel, SharedEngine]:
    """Load a model. path: a transformers folder or hub name. name: by which requests call it. Raises UserError."""
    check_engine(settings.engine)
    source = ModelSource(path)
    longest = settings.context or min(source.context_length or sys.maxsize, LONGEST)
    if source.context_length and longest > source.context_length:
        raise UserError(
            f"context={longest}: {path} is made for {source.context_length} tokens",
            code=ErrorCode.MODEL_CONTEXT,
            key="context",
        )
    spec = EngineSpec(settings.engine, pick_device(settings.device), Sampling(), longest)
    engine = SharedEngine(make_retrying_engine(spec, source), settings.engine.slots)
    model = ChatModel(
        name,
        engine,
        source.tokenizer,
        context=longest,
        max_tokens=settings.max_tokens,
        max_requests=settings.max_requests,
        chat=settings.chat,
        seed=settings.seed,
    )
    return model, engine


def make_server(model: ChatModel, key: str = "") -> uvicorn.Server:
    """Return the HTTP server of a model. It logs warnings and errors, never requests. key: as of `make_app`."""
    config = uvicorn.Config(
        make_app(model, key), log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=GRACE
    )
    return uvicorn.Server(config)


def serve(path: str, name: str, settings: ServingConfig, *, host: str, port: int, key: str) -> int:
    """Serve a model until SIGINT or SIGTERM, and return how many requests were answered. For the main thread only.

    Requests in progress get 5 seconds to end. Raises UserError for a model, a setting or an address that cannot be
    used. key: that requests must carry, "" for none.
    """
    with bind(host, port) as listening:  # before the model is loaded
        model, engine = load(path, name, settings)
        try:
            shown = f"[{host}]" if ":" in host else host
            url = f"http://{shown}:{listening.getsockname()[1]}/v1"
            print(f"{name}: {path} at {url}. Ctrl-C stops it. In a run:\n{run_arguments(url, name, path)}", flush=True)
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            make_server(model, key).run([listening])
        except KeyboardInterrupt:  # the server has stopped, and raises the signal again
            pass
        finally:
            engine.close()
    return model.answered


def run_arguments(url: str, name: str, path: str) -> str:
    """Return the arguments with which a run asks the served model."""
    trained = (Path(path).expanduser() / FOLDER_FILE).is_file()
    prompt = f" reward.verifier.prompt={shlex.quote(path)}" if trained else ""
    return f"reward.kind=generative reward.verifier.base_url={url} reward.verifier.name={shlex.quote(name)}{prompt}"
