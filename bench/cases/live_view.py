"""Watching a run: the CPU time of the live page and of the view in the terminal, and the schedule lag."""

import fcntl
import http.client
import json
import os
import pathlib
import pty
import struct
import termios
import threading
import time

import load_test
from cases import Case
from machine import GENERATOR_CORE, count_connections, read_thread_cpu_seconds, start_pinned, stop_process, wait_until
from runs import run_rounds
from tables import compute_median, format_range, format_table, format_value
from tools import LOADTEST

RATE = 1000
CONNECTIONS = 64
PAGE_PORT = 18992
COLUMNS, ROWS = 160, 50
# Whether the page has a viewer, and whether a terminal shows the run.
VIEWS = {"none": (False, False), "page": (True, False), "terminal": (False, True), "both": (True, True)}


def read_all(read):
    """Reads until the end, in a thread of its own."""
    def loop():
        try:
            while read():
                pass
        except OSError:
            pass

    threading.Thread(target=loop, daemon=True).start()


def list_load_threads(pid):
    """Returns the threads that make the load. All other threads watch it."""
    names = {task: (task / "comm").read_text() for task in pathlib.Path(f"/proc/{pid}/task").iterdir()}
    return {int(task.name) for task, name in names.items() if name.startswith("load-thread")}


def open_terminal():
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    read_all(lambda: os.read(master, 65536))
    return slave


def watch_page():
    """Reads the updates of the page, as a browser does."""
    connection = http.client.HTTPConnection("127.0.0.1", PAGE_PORT, timeout=120)
    connection.request("GET", "/events")
    response = connection.getresponse()
    read_all(lambda: response.read1(65536))


def measure_view(path, folder, view, seconds):
    has_page, has_terminal = VIEWS[view]
    load = load_test.build_open_load(RATE, CONNECTIONS, seconds + 5)
    file, result = folder / "test.json", folder / "result.json"
    file.write_text(json.dumps(load_test.build_load_test([load_test.build_get_task()], load)))
    command = [path, "run", str(file), "--json", str(result)]
    command += [f"--web={PAGE_PORT}"] if has_page else []
    terminal = open_terminal() if has_terminal else os.open(os.devnull, os.O_RDWR)
    environment = dict(os.environ, TERM="xterm-256color")
    with (folder / "stdout").open("w") as out:
        process = start_pinned(
            GENERATOR_CORE, command, stdin=terminal, stdout=out, stderr=terminal, cwd=folder, env=environment,
        )
    try:
        wait_until(lambda: count_connections() > 0, 30, "load")
        if has_page:
            watch_page()
        load_threads = list_load_threads(process.pid)
        before, start = read_thread_cpu_seconds(process.pid), time.monotonic()
        time.sleep(seconds)
        after, duration = read_thread_cpu_seconds(process.pid), time.monotonic() - start
        process.wait(60)
    finally:
        if process.poll() is None:
            stop_process(process)
        os.close(terminal)
    cpu_seconds = {thread: after[thread] - before.get(thread, 0) for thread in after}
    lag = json.loads(result.read_text())["scheduleLag"]
    return {
        "load_ms": sum(cpu_seconds[thread] for thread in load_threads) / duration * 1e3,
        "watching_ms": sum(cpu_seconds[thread] for thread in cpu_seconds.keys() - load_threads) / duration * 1e3,
        "lag_p50_us": lag["p50"] * 1e6, "lag_p99_us": lag["p99"] * 1e6,
    }


def measure(context):
    def run_once(view, folder):
        return measure_view(context.paths[LOADTEST], folder, view, context.seconds)

    return {"results": run_rounds(list(VIEWS), context, "live view", run_once)}


def build_lines(figures):
    results = figures["results"]
    alone = compute_median(results, "none", "watching_ms")
    rows = []
    for view in VIEWS:
        watching = compute_median(results, view, "watching_ms")
        rows.append([
            view, format_value(watching, "{:.1f} ms"), format_range(results, view, "watching_ms", "{:.1f}"),
            "–" if view == "none" else f"{(watching - alone) / 10:+.2f} %",
            format_value(compute_median(results, view, "load_ms"), "{:.1f} ms"),
            format_value(compute_median(results, view, "lag_p50_us"), "{:,.1f} µs"),
            format_value(compute_median(results, view, "lag_p99_us"), "{:,.1f} µs"),
        ])
    head = [
        "viewers", "CPU time of the watching threads per second", "min–max", "cost, share of a core",
        "CPU time of the load thread per second", "schedule lag p50", "p99",
    ]
    return [
        "## Watching a run", "",
        f"`loadtest run` makes {RATE:,} requests/s on one core. A viewer reads the live page, which gets an update a second,"
        f" and a terminal of {COLUMNS} × {ROWS} characters shows the run. Without viewers the command prints lines of"
        " progress. The CPU times are the kernel's figures for the threads. The cost is the difference to a run without"
        " viewers.", "",
        *format_table(head, rows),
    ]


LIVE_VIEW = Case("live", [LOADTEST], measure, build_lines)
