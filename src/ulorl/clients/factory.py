"""Makes clients: the one place that knows their kinds."""

from __future__ import annotations

from ulorl.clients.client import ModelClient
from ulorl.config.client_config import ClientConfig


def make_client(key: str, settings: ClientConfig) -> ModelClient:
    """Return the client of `settings.kind`. key: of the settings in the configuration, for messages.

    Raises UserError for settings that cannot be used.
    """
    if settings.kind == "endpoint":
        from ulorl.clients.server_client import ServerClient

        return ServerClient(key, settings)
    from ulorl.clients.engine_client import EngineClient

    return EngineClient(settings)
