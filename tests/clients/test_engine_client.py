"""Our own engine as a model client."""

from __future__ import annotations

import pytest

from refusals import refused
from ulorl.cancellation import Cancelled, CancelToken
from ulorl.clients.client import Prompt
from ulorl.clients.engine_client import EngineClient
from ulorl.config.client_config import EngineClientConfig
from ulorl.error_codes import ErrorCode


def test_our_engine_is_a_model() -> None:
    """The tiny reasoner decodes; what it says depends on prompt and sample alone, not on what is asked beside it."""
    settings = EngineClientConfig(name="ulorl:tiny", max_tokens=12, temperature=1.0)
    model = EngineClient(settings)
    prompts: list[Prompt] = [("3 5 7 = 15", 0), ("3 5 7 = 15", 1), ("2 4 = 8", 0)]
    together = dict(model.complete(prompts))
    alone = dict(model.complete(prompts[1:2]))
    assert alone[0] == together[1]
    assert len({together[0], together[1]}) == 2 or together[0] == ""
    long = "3 " * 5000
    assert dict(model.complete([(long, 0)])) == {0: None}  # it does not fit into the context


def test_engine_settings_are_checked() -> None:
    with refused(ErrorCode.MODEL_NOT_FOUND):
        EngineClient(EngineClientConfig(name="./no-such-folder"))


def test_a_cancelled_client_loses_its_engine_and_makes_another() -> None:
    model, cancel = EngineClient(EngineClientConfig(name="ulorl:tiny", max_tokens=12), keep=True), CancelToken()
    prompts: list[Prompt] = [("3 5 7 = 15", 0)]
    cancel.cancel()
    with pytest.raises(Cancelled):
        list(model.complete(prompts, cancel))
    assert model._engine is None  # it still had a request
    assert len(list(model.complete(prompts))) == 1
    assert model._engine is not None
    model.close()
