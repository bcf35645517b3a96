"""One run of a generator, and rounds of runs."""

import dataclasses
import os
import pathlib
import random
import subprocess
import tempfile

from machine import (
    GENERATOR_CORE, CoreUsage, count_connections, log_progress, read_thread_cpu_seconds, start_pinned, stop_process,
    wait_until,
)
from target import Server

# Maximum seconds for a generator to start, and to write its report.
TIMEOUT = 90


@dataclasses.dataclass
class RunResult:
    """The output of a run, and the CPU usage while it lasted."""

    stdout: str
    stderr: str
    cpu_seconds: float  # busy time of the generator's core, including the generator's start
    busy: float  # busy share of the generator's core, from the first connections to the end of the load
    server_busy: float  # share of its core that the server used in this time
    process_busy: float | None  # share that the generator's process used, without other processes


def run_generator(command, folder, seconds, env=None, connections=1):
    """Runs a generator until it ends. The load begins with this number of connections."""
    stdout, stderr = folder / "stdout", folder / "stderr"
    whole_run = CoreUsage(GENERATOR_CORE)
    with stdout.open("w") as stdout_file, stderr.open("w") as stderr_file:
        process = start_pinned(
            GENERATOR_CORE, command, stdout=stdout_file, stderr=stderr_file, cwd=folder,
            env=dict(os.environ, **(env or {})), start_new_session=True,
        )

    def has_started():
        return count_connections() >= connections or process.poll() is not None

    try:
        wait_until(has_started, TIMEOUT, "load", interval=0.01)
        usage, before = CoreUsage(GENERATOR_CORE), read_process_cpu_seconds(process)
        server_before = Server.current.read_cpu_seconds()
        try:
            # The CPU time of a process can only be read before the process ends.
            process.wait(seconds * 0.9)
        except subprocess.TimeoutExpired:
            pass
        after = read_process_cpu_seconds(process)
        is_known = before is not None and after is not None
        process_busy = (after - before) / usage.elapsed_seconds() if is_known else None
        busy = usage.busy_share()
        server_busy = (Server.current.read_cpu_seconds() - server_before) / usage.elapsed_seconds()
        process.wait(TIMEOUT)
    finally:
        if process.poll() is None:
            stop_process(process)
    return RunResult(
        stdout.read_text(), stderr.read_text(), whole_run.busy_seconds(), busy, server_busy, process_busy,
    )


def read_process_cpu_seconds(process):
    """Returns the CPU time of a process; None if the process has ended."""
    try:
        return sum(read_thread_cpu_seconds(process.pid).values())
    except OSError:
        return None


def run_rounds(tools, context, label, run_once, server=Server):
    """Runs every tool once per round, in random order, each with its own server and folder."""
    results = {tool: [] for tool in tools}
    for number in range(context.rounds):
        for tool in random.sample(tools, len(tools)):
            with tempfile.TemporaryDirectory() as name, server():
                folder = pathlib.Path(name)
                if tool in context.paths:
                    # The binary may have left the page cache since its last run. Read it, so that
                    # no tool waits for the disk during its load.
                    pathlib.Path(context.paths[tool]).read_bytes()
                try:
                    results[tool].append(run_once(tool, folder))
                except Exception as error:
                    outputs = [file.read_text()[-800:] for file in sorted(folder.glob("std*"))]
                    raise RuntimeError("\n".join([f"{tool}: {error!r}", *outputs])) from error
        log_progress(f"{label}: round {number + 1} of {context.rounds}")
    return results
