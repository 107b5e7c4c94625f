"""A cluster: the launcher's file is valid, and a job submitted to a real head node does the work there."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
import yaml

from manifests import rundir, status

ROOT = Path(__file__).parent.parent
SCRIPTS = Path(sysconfig.get_path("scripts"))


def test_cluster_yaml_fits_rays_own_schema() -> None:
    import ray

    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    jsonschema.validate(cluster, schema)
    gpu = cluster["available_node_types"]["gpu"]
    assert gpu["min_workers"] == 0 < gpu["max_workers"] <= cluster["max_workers"]
    assert any("pip install" in c and "idm-curate" in c for c in cluster["setup_commands"])


def test_the_autoscaler_takes_cluster_yaml() -> None:
    from ray.autoscaler._private.util import fillout_defaults, validate_config

    filled = fillout_defaults(yaml.safe_load((ROOT / "cluster.yaml").read_text()))
    validate_config(filled)


def free_ports(n: int) -> list[int]:
    sockets = [socket.socket() for _ in range(n)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [int(s.getsockname()[1]) for s in sockets]
    for s in sockets:
        s.close()
    return ports


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A head node of its own on loopback, with two logical GPUs; yields the environment to reach it."""
    port, dashboard, client, agent = free_ports(4)
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
        "RAY_AUTH_MODE": "disabled",  # loopback only
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_DASHBOARD_URL": f"http://127.0.0.1:{dashboard}",
        "PATH": f"{SCRIPTS}:{os.environ['PATH']}",
    }
    command = [
        str(SCRIPTS / "ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}",
        f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}",
        f"--dashboard-agent-listen-port={agent}",  # jobs go through it; another Ray on this machine has the usual one
        "--num-cpus=2", "--num-gpus=2",
        "--object-store-memory=100000000", f"--temp-dir={tmp_path_factory.mktemp('ray', numbered=False)}",
        "--disable-usage-stats",
    ]  # fmt: skip
    log = tmp_path_factory.mktemp("head") / "log"
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
        try:
            deadline = time.monotonic() + 60
            while not _answers(dashboard):
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.5)
            yield environment
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def _answers(port: int) -> bool:
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/version", timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def curate(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipelines", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, cwd=ROOT)


def test_a_submitted_job_does_the_work_on_two_pinned_actors(head: dict[str, str], tmp_path: Path) -> None:
    root = tmp_path / "run"
    done = curate(
        head, "submit", "--address", head["RAY_DASHBOARD_URL"], "--", "run", "--dataset", "sample", "--limit", "48",
        "--shard-size", "12", "--run", str(root), "--workers", "2", "--gpus-per-worker", "1",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    text, complete = status.describe(rundir.read(str(root)))
    assert complete, text
    assert (root / "report.html").stat().st_size > 10_000
    workers = [line for line in (root / "run.log").read_text().splitlines() if "restored/round1: worker at" in line]
    assert {line.split("'visible': ")[1].split("'")[1] for line in workers} == {"0", "1"}


def test_a_job_that_fails_fails_the_submission(head: dict[str, str], tmp_path: Path) -> None:
    done = curate(head, "submit", "--address", head["RAY_DASHBOARD_URL"], "--", "status", str(tmp_path / "nothing"))
    assert done.returncode == 1
    assert "is no run directory" in done.stdout + done.stderr


def test_a_cluster_that_is_not_there_is_an_error_with_a_hint() -> None:
    (port,) = free_ports(1)
    done = curate(dict(os.environ), "submit", "--address", f"http://127.0.0.1:{port}", "--", "doctor")
    assert done.returncode == 1 and "--address" in done.stderr and "Traceback" not in done.stderr


def test_jobs_of_a_proof_are_spread_over_the_nodes(tmp_path: Path) -> None:
    """Their tasks need no CPU; all are there at the same time, so none has another's place."""
    program = """
import sys, time, uuid
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from pipelines.proof.jobs import _SPREAD

def meet(place):
    (place / uuid.uuid4().hex).touch()
    while len(list(place.iterdir())) < 4:
        time.sleep(0.05)
    return ray.get_runtime_context().get_node_id()

node = {"num_cpus": 1, "object_store_memory": 80_000_000}
cluster = Cluster(initialize_head=True, head_node_args=node)
cluster.add_node(**node)
cluster.wait_for_nodes()
ray.init(address=cluster.address)
remote = ray.remote(num_cpus=0, **_SPREAD)(meet)
print(len(set(ray.get([remote.remote(Path(sys.argv[1])) for _ in range(4)], timeout=200))))
ray.shutdown()
cluster.shutdown()
"""
    environment = {**{k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}, "RAY_raylet_start_wait_time_s": "120"}
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "2"
