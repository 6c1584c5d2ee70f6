"""Starts ranks as torchrun does, from a process that has imported torch already: a start costs a fork and not seconds.

Reads a list of launches a line on stdin, each `{"folder", "argv", "size", "within", "term"}`, runs them side by side, and
answers with the ranks' exit codes, negative the number of a signal, and the seconds until the last one ended. After `term`
seconds all are told to end; whoever still runs after `within` is aborted, and leaves where it stood. Each rank runs in the
folder and writes what it says to `rank-N.log`.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

#: What a rank would import: torch's own of DDP and of a first step among it.
_HELD = (
    "torch._dynamo", "torch.distributed.fsdp", "torch.distributed.tensor.parallel", "torch.onnx.operators",
    "nanhunt.commands.replay", "pandas", "nanhunt.stats.cpu_kernel", "tests.ranks.programs.net",
)  # fmt: skip


def serve() -> None:
    """Answer until stdin ends."""
    for name in _HELD:
        importlib.import_module(name)
    _load_kernel()
    for line in sys.stdin:
        print(json.dumps(_launched(json.loads(line))), flush=True)


def _load_kernel() -> None:
    """Let Numba load what it compiled, which takes it a second or two."""
    import torch

    from nanhunt.stats.cpu_kernel import measure_on_cpu

    measure_on_cpu(torch.ones(8), torch.finfo(torch.float32).tiny, histogram=True)


def _launched(asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Run some launches side by side, and return what came of each."""
    began = time.monotonic()
    running: dict[int, tuple[int, int]] = {}
    for number, launch in enumerate(asked):
        port = _free_port()
        for rank in range(launch["size"]):
            running[_fork(Path(launch["folder"]), launch["argv"], rank, launch["size"], port)] = number, rank
    answers: list[dict[str, Any]] = [{"codes": [None] * launch["size"], "seconds": 0.0} for launch in asked]
    while running:
        time.sleep(0.01)
        passed = time.monotonic() - began
        for pid, (number, rank) in list(running.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del running[pid]
                answers[number]["codes"][rank] = os.waitstatus_to_exitcode(status)
                answers[number]["seconds"] = passed
            elif passed > asked[number]["within"]:
                os.kill(pid, signal.SIGABRT)
            elif passed > (asked[number]["term"] or passed):
                os.kill(pid, signal.SIGTERM)
                asked[number]["term"] = None
    return answers


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def _fork(folder: Path, argv: list[str], rank: int, size: int, port: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        os.chdir(folder)
        log = os.open(f"rank-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        faulthandler.enable()
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        code = _run(argv)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run(argv: list[str]) -> int:
    from nanhunt.cli import main

    sys.argv = ["nanhunt", *argv]
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


if __name__ == "__main__":
    serve()
