"""Cached outputs: what is asked again, and what an output depends on."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest

from refusals import refused
from scripted_client import ScriptedClient, cached
from ulorl.clients.client import CachedClient, Prompt, model_identity
from ulorl.clients.output_cache import OutputCache, output_key
from ulorl.config.client_config import EndpointClientConfig
from ulorl.error_codes import ErrorCode


def test_the_cache_outlives_the_process(tmp_path: Path) -> None:
    """Interrupted after 2 of 3, asked again: the third only. Other samples and other models are other questions."""
    prompts: list[Prompt] = [("a", 0), ("b", 0), ("a", 1)]
    first = ScriptedClient(lambda prompt, sample: f"{prompt}{sample}", stop_after=2)
    with pytest.raises(KeyboardInterrupt):
        cached(first, tmp_path).complete(prompts)
    second = ScriptedClient(lambda prompt, sample: f"{prompt}{sample}")
    seen: list[int] = []
    model = cached(second, tmp_path)
    assert model.complete(prompts, seen.append) == ["a0", "b0", "a1"]
    assert (second.asked, model.hits, sum(seen)) == (1, 2, 3)
    other = CachedClient("other", lambda: second, OutputCache(tmp_path / "cache.sqlite"))
    other.complete(prompts)
    assert second.asked == 4


def test_failures_are_asked_again(tmp_path: Path) -> None:
    failing = cached(ScriptedClient(lambda _, __: None), tmp_path)
    assert failing.complete([("a", 0)]) == [None]
    assert failing.failed == 1
    assert cached(ScriptedClient(lambda _, __: "yes"), tmp_path).complete([("a", 0)]) == ["yes"]


def test_a_file_that_is_no_cache_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cache.sqlite").write_text("no database, just a text that is long enough to be read as a header")
    with refused(ErrorCode.CACHE_UNUSABLE, file=tmp_path / "cache.sqlite"):
        OutputCache(tmp_path / "cache.sqlite")


def test_outputs_of_a_cache(tmp_path: Path) -> None:
    """One that is not there is None; half a surrogate pair, which JSON can hold, is replaced."""
    with closing(OutputCache(tmp_path / "c.sqlite")) as cache:
        assert cache.get("nothing") is None
        cache.put("key", "a\ud800")
        assert cache.get("key") == "a?"
    with closing(OutputCache(tmp_path / "c.sqlite")) as again:
        assert again.get("key") == "a?"


def test_keys_differ_by_model_message_and_sample() -> None:
    """The key of a stored output must stay: caches outlive versions of UloRL."""
    keys = {output_key(*given) for given in (("m", "a", 0), ("m", "a", 1), ("m", "b", 0), ("n", "a", 0))}
    assert len(keys) == 4
    assert output_key("m", "a", 0) == "6cf4713e33758c003afdd327054768dc57d7bc1ae4ec3c9b92201dfbb093c6ac"


def test_an_identity_holds_what_outputs_depend_on() -> None:
    one = EndpointClientConfig(name="m", api_key_env="A")
    assert model_identity(one) == model_identity(
        one.model_copy(update={"api_key_env": "B", "timeout": 3.0, "concurrency": 2})
    )
    assert model_identity(one) != model_identity(one.model_copy(update={"temperature": 0.1}))
    assert json.loads(model_identity(one))["name"] == "m"
