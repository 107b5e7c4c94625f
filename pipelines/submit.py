"""Hand a command of this program to a Ray cluster as a job, follow its log, return its exit status."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Callable, Sequence

from manifests.errors import RunError


def submit_job(address: str, command: Sequence[str], *, wait: bool, say: Callable[[str], object]) -> int:
    """Submit ``idm-curate COMMAND...``; 0 if the job succeeded (or was accepted, without ``wait``), else 1.

    Raises:
        RunError: the cluster cannot be reached.
    """
    from ray.job_submission import JobStatus, JobSubmissionClient

    try:
        client = JobSubmissionClient(address)
        job = client.submit_job(entrypoint=shlex.join(["idm-curate", *command]))
    except (ConnectionError, RuntimeError) as error:
        raise RunError(
            f"--address {address}: {error}. Give the dashboard's URL (port 8265 by default); if the cluster asks for a "
            "token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
        ) from error
    say(f"job {job} submitted to {address}")
    if not wait:
        return 0

    async def follow() -> None:
        async for text in client.tail_job_logs(job):
            say(text.rstrip("\n"))

    asyncio.run(follow())
    status = client.get_job_status(job)
    say(f"job {job}: {status.value}")
    return 0 if status == JobStatus.SUCCEEDED else 1
