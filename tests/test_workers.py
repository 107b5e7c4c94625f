"""The shard loop on a real Ray: everything is done or named, whatever dies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from manifests import attempts, rundir
from manifests.errors import ConfigError, RunError
from manifests.rundir import Run
from pipelines.config import Resources
from pipelines.train_distributed import gpus_of_a_process as spread
from pipelines.workers import GivenUp, map_shards, placement
from tests.shard_work import open_broken, open_counting


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return rundir.create_or_open(str(tmp_path / "run"), "run", {})


def outcomes(run: Run, shards: list[str], resources: Resources, **options: Any) -> tuple[list[str], list[str]]:
    done, lost = [], []
    for shard, outcome in map_shards(run, "source", shards, open_counting, resources, **options):
        (lost if isinstance(outcome, GivenUp) else done).append(shard)
    return sorted(done), sorted(lost)


def times(run: Run) -> Counter[str]:
    return Counter(p.name.rsplit(".", 1)[0] for p in (Path(run.root) / "traces").iterdir())


@pytest.mark.parametrize("workers", [0, 2])
def test_every_shard_is_done_once(run: Run, workers: int, local_ray: None) -> None:
    shards = [f"s-{i}" for i in range(7)]
    assert outcomes(run, shards, Resources(workers=workers)) == (shards, [])
    assert set(times(run).values()) == {1}


def test_a_dead_actor_is_replaced_and_poison_is_named(run: Run, local_ray: None) -> None:
    shards = ["poison-0", "s-1", "weak-2", "s-3", "s-4"]
    done, lost = outcomes(run, shards, Resources(workers=2))
    assert (done, lost) == (["s-1", "s-3", "s-4", "weak-2"], ["poison-0"])
    assert times(run)["poison-0"] == attempts.MAX_ATTEMPTS and times(run)["weak-2"] == 2
    assert [f["shard"] for f in attempts.given_up(run)] == ["poison-0"]
    # The same call again does not touch it a fourth time, until it is forgiven.
    assert outcomes(run, ["poison-0"], Resources(workers=1)) == ([], ["poison-0"])
    assert times(run)["poison-0"] == attempts.MAX_ATTEMPTS
    attempts.forgive(run, "source", "poison-0")
    assert attempts.given_up(run) == [] and attempts.count(run, "source", "poison-0") == 0


@pytest.fixture
def get_raises(monkeypatch: pytest.MonkeyPatch, local_ray: None) -> Callable[..., None]:
    """Has ``ray.get`` raise these in turn, and nothing where one is None, before it is itself again."""
    import ray

    def begin(*errors: Exception | None) -> None:
        get, left = ray.get, iter(errors)

        def raising(ref: Any) -> Any:
            if (error := next(left, None)) is not None:
                raise error
            return get(ref)

        monkeypatch.setattr(ray, "get", raising)

    return begin


def test_an_actor_that_had_no_memory_or_no_node_is_replaced(run: Run, get_raises: Callable[..., None]) -> None:
    """Ray's errors for these are no RayActorErrors."""
    from ray.exceptions import ActorUnschedulableError, OutOfMemoryError

    get_raises(ActorUnschedulableError("no such node"), None, OutOfMemoryError("killed"), OutOfMemoryError("killed"))
    assert outcomes(run, ["s-0"], Resources(workers=1)) == (["s-0"], [])


def test_an_error_of_our_own_outside_of_a_shard_ends_the_stage(run: Run, get_raises: Callable[..., None]) -> None:
    from ray.exceptions import RayTaskError

    get_raises(None, RayTaskError("work", "Traceback: the disk is full", OSError("the disk is full")))
    with pytest.raises(RayTaskError, match="the disk is full"):
        outcomes(run, ["s-0"], Resources(workers=1))


@pytest.mark.parametrize("workers", [0, 1])
def test_what_may_pass_is_tried_again_and_what_does_not_is_given_up(run: Run, workers: int, local_ray: None) -> None:
    assert outcomes(run, ["flaky-0", "raises-1", "s-2"], Resources(workers=workers)) == (
        ["flaky-0", "s-2"],
        ["raises-1"],
    )
    assert times(run) == {"flaky-0": 3, "raises-1": 3, "s-2": 1}
    (failure,) = attempts.given_up(run)
    assert "the disk is on holiday" in failure["error"] and failure["attempts"] == 3


def test_the_driver_is_told_how_far_a_shard_is(run: Run, local_ray: None) -> None:
    told: list[int] = []

    def watch(samples: int) -> None:
        told.append(samples)
        if samples == 10:  # both shards have done five; without being told so they would wait for ever
            (Path(run.root) / "noticed").touch()

    shards = ["slow-0", "slow-1", "s-2"]
    assert outcomes(run, shards, Resources(workers=2), watch=watch) == (sorted(shards), [])
    assert max(told) == 10 and told[-1] == 0
    assert not list((run.staging / "ticks").iterdir()), "nothing of it stays"


def test_a_worker_in_this_process_tells_it_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.workers.LOOK_SECONDS", 0.0)
    told: list[int] = []
    (Path(run.root) / "noticed").touch()
    assert outcomes(run, ["slow-0", "slow-1"], Resources(workers=0), watch=told.append) == (["slow-0", "slow-1"], [])
    assert told == [1, 2, 3, 4, 5, 0] * 2


def test_each_actor_sees_its_own_gpu_alone(run: Run, local_ray: None) -> None:
    shards = ["pair-0", "pair-1", *(f"s-{i}" for i in range(6))]
    assert outcomes(run, shards, Resources(workers=2, gpus_per_worker=1, cpus_per_worker=1), uses_gpu=True) == (
        shards,
        [],
    )
    seen = {p.read_text() for p in (Path(run.root) / "traces").iterdir()}
    assert seen == {"0", "1"}


def test_workers_that_cannot_start_end_the_stage(run: Run, local_ray: None) -> None:
    with pytest.raises(RunError, match="no such model"):
        list(map_shards(run, "source", ["s-0"], open_broken, Resources(workers=1)))


def test_more_gpus_than_there_are_is_an_error_and_not_a_wait(run: Run, local_ray: None) -> None:
    with pytest.raises(ConfigError, match="3 GPUs per worker"):
        list(map_shards(run, "source", ["s-0"], open_counting, Resources(gpus_per_worker=3), uses_gpu=True))


def test_a_cluster_that_shows_no_gpu_is_not_worked_on_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its GPUs may come when they are asked for; a machine of one's own has what it has."""
    import ray

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0})
    for asked in (lambda: placement(Resources(address="head:6379"), True, 1), lambda: spread(1, 1, None, local=False)):
        with pytest.raises(ConfigError, match=r"no GPU: say `--gpus-per-worker 1` .* or 0 to"):
            asked()
    for gpus in (0, 1):
        assert placement(Resources(address="head:6379", workers=3, gpus_per_worker=gpus), True, 5) == (3, gpus)
        assert spread(1, 1, gpus, local=False) == gpus
    assert placement(Resources(address="head:6379"), False, 1) == placement(Resources(), True, 1) == (1, 0)
    assert spread(1, 1, None, local=True) == 0
