"""Engines and learner ranks as actors of a real Ray cluster on this machine, which the tests of this file share."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

import fault_points
import ulorl
from actor_faults import differences, disturbed, largest_difference, outcome
from fault_points import KILL, STOP, Fault
from paths import COUNTDOWN
from small_runs import lines, samples
from tiny_learner import GROUPS
from ulorl.backends.ray.ray_preflight import check_ray
from ulorl.cancellation import Cancelled, CancelToken
from ulorl.config.backend_config import RayBackendConfig
from ulorl.config.engine_config import TorchEngineConfig
from ulorl.config.model_config import LoraConfig, ModelConfig
from ulorl.config.training_config import ObjectiveConfig, OptimConfig
from ulorl.engines.decode import rollout
from ulorl.engines.engine_spec import EngineSpec
from ulorl.engines.fleet import FleetSettings
from ulorl.error_codes import ErrorCode
from ulorl.errors import CombinedError, EngineMismatch, UserError
from ulorl.learner.learner import LearnerLost
from ulorl.learner.make_learner import LearnerBuild, make_learner
from ulorl.learner.policy_learner import LearnerSpec
from ulorl.models.model_source import TINY, ModelSource
from ulorl.training.run import evaluate_config
from ulorl.types import Group, Request, Sampling

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("ray") is None, reason="needs the extra ray"
    ),  # not imported: its environment comes first
]

SMALL = [
    "steps=6", "rollout.prompts=6", "rollout.group=2", "rollout.max_tokens=96", "rollout.segments=3", "data.size=40",
    "eval.problems=4", "eval.samples=1", "eval.every=3", "objective.dynamic_sampling=false", "run.checkpoint_every=1",
    "model.threads=1", "model.device=cpu", "log.progress=false", "log.report=false",
]  # fmt: skip
RAY = ["backend.kind=ray", "backend.ranks=2", "backend.engines=2", "engine.slots=4"]
DEADLINE = 4.0
SOURCE = ModelSource(TINY)
CPU = torch.device("cpu")


def config(run_dir: Path, *overrides: str) -> ulorl.Config:
    return ulorl.load([COUNTDOWN], [*SMALL, f"run.dir={run_dir}", *overrides])


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder in which faults of the cluster are planned."""
    folder = tmp_path_factory.mktemp("plans")
    with fault_points.cluster(folder, gpus=4):
        yield folder


@pytest.fixture(scope="module")
def undisturbed(plans: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert not fault_points.waiting(plans)
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    ulorl.train(config(run_dir, *RAY))
    return run_dir


def test_two_engines_and_two_ranks_train_as_one_process(undisturbed: Path, tmp_path: Path) -> None:
    ulorl.train(config(tmp_path / "one"))
    assert differences(outcome(undisturbed), outcome(tmp_path / "one")) == []
    assert len(lines(undisturbed)) == 7
    assert {text.count("\n") for text in samples(undisturbed).values()} != {0}
    assert largest_difference(undisturbed, tmp_path / "one") < 1e-6
    alone, spread = (evaluate_config(config(tmp_path, *more)) for more in ([], RAY))
    assert (spread.by_problem, spread.mean_length) == (alone.by_problem, alone.mean_length)


def test_a_run_that_loses_engines_and_ranks_ends_as_the_undisturbed_one(
    undisturbed: Path, plans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import random

    faults = [
        Fault("segment", KILL, skip=40),
        Fault("backward", KILL, skip=1),
        Fault("segment", STOP, skip=20),
    ]
    before = len(fault_points.happened(plans))
    cfg = config(tmp_path / "run", *RAY, f"backend.deadline={DEADLINE}", f"engine.deadline={DEADLINE}")
    disturbed(plans, tmp_path / "run", faults, random.Random(0), train=lambda _: ulorl.train(cfg))
    assert not faults
    assert len(fault_points.happened(plans)) == before + 3
    assert capsys.readouterr().out.count("the learner was lost") >= 1
    assert differences(outcome(tmp_path / "run"), outcome(undisturbed)) == []
    assert largest_difference(tmp_path / "run", undisturbed) < 1e-6


@pytest.mark.usefixtures("plans")
def test_a_fleet_of_actors_and_weights_through_the_object_store() -> None:
    from ulorl.backends.ray.ray_backend import opened

    prompt = np.array([5, 6, 7], dtype=np.int32)
    requests = [Request(i, prompt, 100, Sampling(temperature=0), seed=i) for i in range(12)]
    spec = EngineSpec(TorchEngineConfig(slots=4), CPU, Sampling(), longest=200)
    settings = RayBackendConfig(engines=2, ranks=1)
    faults = list[str]()
    with opened(settings, device="cpu", engine_gpus=1, threads=1) as backend:
        fleet = backend.fleet(spec, SOURCE, FleetSettings(slots=4, group=2, deadline=60), faults.append)
        learner = backend.learner(_build())
        before = {s.sample_id: s.tokens.tolist() for s in rollout(fleet, requests)}
        alone = make_learner(_build(), CPU)
        for each in (learner, alone):
            assert each.update(GROUPS).steps == 1
        weights = learner.publish()
        expected = dict(alone.publish().tensors)
        for _ in range(2):  # a handle that can be iterated again, in any process
            got = dict(weights.tensors)
            assert got.keys() == expected.keys()
            assert all(torch.allclose(got[name], expected[name].detach(), atol=1e-7) for name in got)
        fleet.load_weights(weights.tensors, weights.version)
        segments = list(rollout(fleet, requests))
        assert {v for s in segments for v in s.versions} == {1}
        assert {s.sample_id: s.tokens.tolist() for s in segments} != before
        assert all(s.logprobs.flags.writeable for s in segments)  # else they hold memory of the object store
        assert faults == []
        cancelled = CancelToken()
        cancelled.cancel()
        with pytest.raises(Cancelled):
            learner.update(GROUPS, cancelled)
        assert (learner.version, learner.updates) == (1, 1)
        with pytest.raises(AttributeError):
            learner.update([None])
        assert learner.update(GROUPS).steps == 1  # an error that every rank has raised leaves the learner usable
        fleet.close()
        learner.close()
        with pytest.raises(LearnerLost, match="closed"):
            learner.score([])
        learner = backend.learner(_build(minibatches=2, importance="sais"))
        with pytest.raises(IndexError):
            learner.update([_with_a_wrong_token(GROUPS[0], 1)])  # sample 1 is in the second mini-batch
        assert (learner.version, learner.updates) == (0, 1)  # so the caller knows that the weights have changed
        learner.close()


def _build(*, minibatches: int = 1, importance: str = "pois", lora: int = 0, seed: int = 0) -> LearnerBuild:
    spec = LearnerSpec(
        OptimConfig(lr=1e-2, minibatches=minibatches), ObjectiveConfig(importance=importance),
        temperature=1.0, max_tokens=16, pad_id=0, seed=seed,
    )  # fmt: skip
    return LearnerBuild(spec, ModelConfig(path=TINY, attention="sdpa", lora=LoraConfig(rank=lora)), SOURCE)


def _with_a_wrong_token(group: Group, member: int) -> Group:
    """Return the group with a first token of a member that no vocabulary has."""
    sample = group.members[member].sample
    first, *others = sample.segments
    wrong = replace(first, tokens=np.append(np.int32(10**6), first.tokens[1:]).astype(np.int32))
    members = list(group.members)
    members[member] = replace(members[member], sample=replace(sample, segments=(wrong, *others)))
    return replace(group, members=tuple(members))


def test_adapters_of_a_rank_depend_on_the_seed_of_the_run_only() -> None:
    from ulorl.backends.ray.rank_actor import RankPlace, _make

    pytest.importorskip("peft")
    adapters = []
    for before, seed in ((1, 0), (2, 0), (2, 1)):
        torch.manual_seed(before)  # a new process has any seed
        learner = _make(_build(lora=2, seed=seed), RankPlace(rank=0, world=1, address="", gpu=False, timeout=1.0))
        adapters.append([tensor for name, tensor in learner.model.named_parameters() if "lora_A" in name])
    assert adapters[0]
    for one, same, other in zip(*adapters, strict=True):
        assert torch.equal(one, same)
        assert not torch.equal(one, other)


@pytest.mark.usefixtures("plans")
def test_errors_of_an_actor_arrive_as_they_were_raised(tmp_path: Path) -> None:
    from ulorl.backends.ray.ray_backend import opened

    bad = ModelSource(str(tmp_path / "none"))
    with opened(RayBackendConfig(), device="cpu", engine_gpus=1, threads=0) as backend:
        spec = EngineSpec(TorchEngineConfig(), CPU, Sampling(), longest=200)
        with pytest.raises(UserError) as raised:
            backend.fleet(spec, bad, FleetSettings(slots=4, group=2), print)
        assert raised.value.code == ErrorCode.MODEL_NOT_FOUND
        with pytest.raises(UserError) as raised:
            backend.learner(LearnerBuild(_build().spec, ModelConfig(), bad))
        assert raised.value.code == ErrorCode.MODEL_NOT_FOUND


@pytest.mark.usefixtures("plans")
def test_tensors_in_chunks() -> None:
    from ulorl.backends.ray.stored_weights import store_weights

    torch.manual_seed(0)
    tensors = {
        "a": torch.randn(5, 3), "b": torch.randn(7).bfloat16(), "c": torch.tensor(3.5), "d": torch.randn(40, 40).t(),
        "e": torch.arange(3),
    }  # fmt: skip
    stored = store_weights(tensors.items(), chunk_bytes=200)
    assert [len(stored.chunks), stored.bytes] == [3, 60 + 14 + 4 + 6400 + 24]
    for name, tensor in stored:
        assert tensor.dtype == tensors[name].dtype
        assert torch.equal(tensor, tensors[name])
        tensor.zero_()  # may be written to


@pytest.mark.usefixtures("plans")
def test_too_few_processors_or_gpus_are_refused() -> None:
    from ulorl.backends.ray.ray_backend import opened

    with (
        pytest.raises(UserError, match=r"300 CPUs; the cluster has 4 GPUs and 16 CPUs in all") as raised,
        opened(RayBackendConfig(ranks=100, engines=200), device="cpu", engine_gpus=1, threads=1),
    ):
        pass
    assert raised.value.code == ErrorCode.CLUSTER_UNAVAILABLE
    with (
        pytest.raises(
            UserError, match=r"need 5 GPUs .2 of the GPUs of one machine for each engine. and 3 CPUs"
        ) as raised,
        opened(RayBackendConfig(ranks=1, engines=2), device="auto", engine_gpus=2, threads=1),
    ):
        pass
    assert raised.value.code == ErrorCode.CLUSTER_UNAVAILABLE


@pytest.mark.usefixtures("plans")
def test_ranks_and_engines_share_gpus_or_have_their_own() -> None:
    import ray

    from ulorl.backends.ray.cluster import Needs, Places

    @ray.remote
    class Actor:
        def gpus(self) -> str:
            return os.environ.get("CUDA_VISIBLE_DEVICES", "")

    def visible(places: Places) -> tuple[list[str], list[str]]:
        needs = places.needs
        ranks = [Actor.options(**places.rank(rank)).remote() for rank in range(needs.ranks)]
        engines = [Actor.options(**places.engine(index)).remote() for index in range(needs.engines)]
        found = ray.get([each.gpus.remote() for each in (*ranks, *engines)])
        return found[: needs.ranks], found[needs.ranks :]

    shared = Places(Needs(engines=2, ranks=4, engine_gpus=2, gpus=True, colocate=True))
    ranks, engines = visible(shared)
    assert sorted(ranks) == ["0", "1", "2", "3"]
    assert engines == ["", ""]  # Ray gives GPUs to one process only
    assert [set(shared.visible(i).split(",")) for i in range(2)] == [set(ranks[:2]), set(ranks[2:])]
    shared.close()
    apart = Places(Needs(engines=1, ranks=2, engine_gpus=2, gpus=True))
    ranks, engines = visible(apart)
    assert sorted([*ranks, *engines[0].split(",")]) == ["0", "1", "2", "3"]
    assert apart.visible(0) == ""
    apart.close()


def test_an_address_without_a_cluster_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for address, problem in {"127.0.0.1:9": "no Ray cluster answers", "head": "neither HOST:PORT"}.items():
        with pytest.raises(UserError, match=problem) as raised:
            check_ray(RayBackendConfig(address=address))
        assert (raised.value.code, raised.value.key) == (ErrorCode.CLUSTER_UNAVAILABLE, "backend.address")
    monkeypatch.setattr("ulorl.backends.ray.ray_preflight.version", lambda _: "2.40.0")
    with pytest.raises(UserError, match=r"ray 2.40.0 is not supported") as raised:
        check_ray(RayBackendConfig())
    assert raised.value.code == ErrorCode.EXTRA_MISSING


def test_bundles() -> None:
    from ulorl.backends.ray.cluster import Needs

    apart = Needs(engines=2, ranks=4, engine_gpus=2, gpus=True)
    assert apart.bundles() == [{"CPU": 1, "GPU": 1}] * 4 + [{"CPU": 1, "GPU": 2}] * 2
    assert [apart.bundle_of_rank(r) for r in range(4)] == [0, 1, 2, 3]
    assert [apart.bundle_of_engine(i) for i in range(2)] == [4, 5]
    shared = Needs(engines=2, ranks=4, engine_gpus=2, gpus=True, colocate=True)
    assert shared.bundles() == [{"CPU": 3, "GPU": 2}] * 2
    assert [shared.bundle_of_rank(r) for r in range(4)] == [0, 0, 1, 1]
    assert [shared.bundle_of_engine(i) for i in range(2)] == [0, 1]


def test_user_errors_can_be_pickled() -> None:
    parts = [UserError("a", code=ErrorCode.DATA_NOT_FOUND, file="f", key="k", record="r"),
             EngineMismatch("b", code=ErrorCode.ENGINE_MISMATCH)]  # fmt: skip
    for error in (*parts, CombinedError(parts)):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert (str(again), again.code, again.file, again.key, again.record) == (
            str(error), error.code, error.file, error.key, error.record,
        )  # fmt: skip
    assert [str(part) for part in pickle.loads(pickle.dumps(CombinedError(parts))).each()] == ["a", "b"]


def test_ctrl_c_saves_the_run_and_leaves_no_process(tmp_path: Path) -> None:
    """The command starts a cluster of its own; the signal reaches the whole process group, as in a terminal."""
    run_dir, output = tmp_path / "run", tmp_path / "out.txt"
    overrides = [*SMALL, *RAY, "backend.engines=1", "steps=1000", f"run.dir={run_dir}"]
    with output.open("w") as file:
        run = subprocess.Popen([sys.executable, "-m", "ulorl", "train", str(COUNTDOWN), *overrides], stdout=file,
                               stderr=file, start_new_session=True)  # fmt: skip
    until = time.monotonic() + 120
    try:
        while not list((run_dir / "checkpoints").glob("step_??????")):
            assert run.poll() is None, output.read_text()
            assert time.monotonic() < until
            time.sleep(0.1)
        actors = _descendants(run.pid)
        assert sum("EngineActor" in name for name in actors.values()) == 1
        assert sum("RankActor" in name for name in actors.values()) == 2
        os.killpg(run.pid, signal.SIGINT)
        assert run.wait(60) == 128 + signal.SIGINT, output.read_text()
    finally:
        run.kill()
    assert "everything is saved" in output.read_text()
    until = time.monotonic() + 30
    while any(_name(pid) == name for pid, name in actors.items()):
        assert time.monotonic() < until, "processes of the run still exist"
        time.sleep(0.2)


def _descendants(pid: int) -> dict[int, str]:
    """The names of all processes that a process started, by id."""
    listed = subprocess.run(["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(child): int(parent) for child, parent in map(str.split, listed.splitlines())}
    found: dict[int, str] = {}
    for child in parents:
        above = child
        while above in parents and above != pid:
            above = parents[above]
        if above == pid and child != pid:
            found[child] = _name(child)
    return found


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    except OSError:
        return ""
