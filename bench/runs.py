"""One run of a generator, and rounds of them."""

import dataclasses
import os
import pathlib
import random
import subprocess
import tempfile

from machine import GENERATOR_CORE, Busy, connected, end, on_cpu, pinned, say, until
from target import Server

# What a generator may need to start, and to write its report.
PATIENCE = 90


@dataclasses.dataclass
class Ran:
    """What is known of a run besides what the generator says."""

    out: str
    err: str
    used: float  # seconds in which the generator's core was not idle, start-up included
    busy: float  # its share, from the first connections on, for the time the load lasts
    server_busy: float  # share of its core that the server took in that time
    own: float | None  # and the generator's process, whatever else ran on its core


def generate(line, folder, seconds, env=None, connections=1):
    """Runs a generator to its end; its load is on once it has that many connections."""
    out, err = folder / "stdout", folder / "stderr"
    whole = Busy(GENERATOR_CORE)
    with out.open("w") as to, err.open("w") as error_to:
        process = pinned(
            GENERATOR_CORE, line, stdout=to, stderr=error_to, cwd=folder,
            env=dict(os.environ, **(env or {})), start_new_session=True,
        )
    try:
        until(lambda: connected() >= connections or process.poll() is not None, PATIENCE, "load", every=0.01)
        busy, before, served = Busy(GENERATOR_CORE), own_cpu(process), Server.current.cpu()
        try:
            # Before its end, when the process can still be asked.
            process.wait(seconds * 0.9)
        except subprocess.TimeoutExpired:
            pass
        after = own_cpu(process)
        own = (after - before) / busy.passed() if before is not None and after is not None else None
        shares = busy.share(), (Server.current.cpu() - served) / busy.passed(), own
        process.wait(PATIENCE)
    finally:
        if process.poll() is None:
            end(process)
    return Ran(out.read_text(), err.read_text(), whole.seconds(), *shares)


def own_cpu(process):
    """Seconds on a CPU of a process; None once it has ended."""
    try:
        return sum(on_cpu(process.pid).values())
    except OSError:
        return None


def rounds_of(tools, context, label, run_one, server=Server):
    """Every tool once a round, in random order, each with a server and a folder of its own."""
    results = {tool: [] for tool in tools}
    for number in range(context.rounds):
        for tool in random.sample(tools, len(tools)):
            with tempfile.TemporaryDirectory() as name, server():
                folder = pathlib.Path(name)
                if tool in context.paths:
                    # Into the page cache, from which it may have gone since its last run: no tool
                    # is to wait for the disk in the midst of its load.
                    pathlib.Path(context.paths[tool]).read_bytes()
                try:
                    results[tool].append(run_one(tool, folder))
                except Exception as error:
                    told = [file.read_text()[-800:] for file in sorted(folder.glob("std*"))]
                    raise RuntimeError("\n".join([f"{tool}: {error!r}", *told])) from error
        say(f"{label}: round {number + 1} of {context.rounds}")
    return results
