"""Runs a command that ends, with everything it started, when its standard input does: with whoever holds the other end.

``python supervisor.py COMMAND ...`` exits as the command does. A trainer starts processes of its own (torchrun, data
loaders), some in sessions of their own; none of them may live on and hold a GPU when a driver was killed. Linux keeps
orphans near: they become children of the supervisor, which sees to the last of them.

The supervisor is a child of the process that was started: a worker of Ray that ends kills its children, not theirs.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36  # of <sys/prctl.h>
#: What the command gets to end in order.
_GRACE_SECONDS = 8.0


def main(command: list[str]) -> int:
    """Have it supervised; the exit status, 128 and the signal's number where it was killed."""
    if supervisor := os.fork():
        return _exit_status(os.waitstatus_to_exitcode(os.waitpid(supervisor, 0)[1]))
    os.setsid()
    return _supervise(command)


def _exit_status(code: int) -> int:
    return code if code >= 0 else 128 - code


def _supervise(command: list[str]) -> int:
    on_linux = sys.platform == "linux"
    if on_linux:
        ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def in_the_child() -> None:
        if on_linux:  # should this process be killed itself
            ctypes.CDLL(None).prctl(_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])  # Ray's processes block SIGINT, and it would be inherited

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # What was handed to this process, which holds the job's folder, is the command's too: it may outlive a supervisor
    # that is killed.
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=in_the_child, close_fds=False
    )
    try:
        while child.poll() is None:
            ready, _, _ = select.select([0], [], [], 0.1)
            if ready and not os.read(0, 1):
                break
    finally:
        _end(child)
    return _exit_status(child.returncode)


def _end(child: subprocess.Popen[bytes]) -> None:
    """The command in order if it can, then whatever it has left behind."""
    if child.poll() is None:
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_GRACE_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    deadline = time.monotonic() + _GRACE_SECONDS
    while (left := _children()) and time.monotonic() < deadline:
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        for process in left:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(process, 0)


def _children() -> list[int]:
    """Processes whose parent this is, orphans of its children among them; empty where there is no /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid():
                found.append(int(stat.parent.name))
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
