"""The engines that receive one broadcast of weights. Needs neither vLLM nor a GPU: the engines are fakes."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from ulorl.engines.vllm.transfer_client import TransferClient

NCCL = {"master_address": "10.0.0.1", "master_port": 29500, "rank_offset": 1, "world_size": 7, "packed": True}


def client(engines: int, workers: int) -> tuple[TransferClient, list[list[tuple[str, Any]]]]:
    """A client, and what each engine was called with. Every call waits until all engines are in it."""
    together, called = threading.Barrier(engines, timeout=10), [list[tuple[str, Any]]() for _ in range(engines)]

    def engine(index: int) -> Any:
        def call(name: str, arguments: dict[str, Any]) -> None:
            together.wait()
            called[index].append((name, arguments))

        return call

    return TransferClient([engine(i) for i in range(engines)], workers), called


def test_every_worker_of_three_engines_has_a_rank_of_its_own() -> None:
    fleet, called = client(engines=3, workers=2)
    assert fleet.world_size == 7
    fleet.init_weight_transfer_engine(NCCL)
    offsets = [dict(calls)["init_weight_transfer_engine"]["init_info"]["rank_offset"] for calls in called]
    ranks = [offset + worker for offset in offsets for worker in range(2)]
    assert ranks == [1, 2, 3, 4, 5, 6]  # 0 is the trainer's
    others = [dict(calls)["init_weight_transfer_engine"]["init_info"] | {"rank_offset": 1} for calls in called]
    assert others == [NCCL] * 3
    assert NCCL["rank_offset"] == 1


def test_an_old_group_is_left_before_a_new_one_is_joined() -> None:
    fleet, called = client(engines=2, workers=1)
    for _ in range(2):
        fleet.init_weight_transfer_engine(NCCL)
    expected = ["shutdown_weight_transfer_engine", "init_weight_transfer_engine"] * 2
    assert [[name for name, _ in calls] for calls in called] == [expected] * 2


def test_all_engines_take_part_in_an_update_at_the_same_time() -> None:
    fleet, called = client(engines=3, workers=4)
    fleet.start_weight_update()
    fleet.update_weights({"names": ["a"]})
    fleet.finish_weight_update("5")
    update = ("update_weights", {"update_info": {"names": ["a"]}})
    assert called == [[("start_weight_update", {}), update, ("finish_weight_update", {})]] * 3


def test_cuda_ipc_has_no_ranks_and_errors_of_an_engine_are_raised() -> None:
    one, called = client(engines=1, workers=1)
    one.init_weight_transfer_engine({"packed": True})
    assert called[0][-1] == ("init_weight_transfer_engine", {"init_info": {"packed": True}})

    def broken(name: str, arguments: dict[str, Any]) -> None:
        raise RuntimeError(f"{name} {arguments}")

    with pytest.raises(RuntimeError, match="start_weight_update"):
        TransferClient([broken], 1).start_weight_update()
