"""Memory of users that wait with an open HTTP connection or an open WebSocket."""

import os
import pathlib
import subprocess
import tempfile

import load_test
from cases import Case
from cases.websocket import MESSAGE, build_environment
from machine import (
    GENERATOR_CORE, count_connections, log_progress, start_pinned, stop_process, wait_for_stable_memory, wait_until,
)
from tables import format_table
from target import HTTP_URL, WEB_SOCKET_URL, Server
from tools import LOADTEST, SCRIPTS

OTHER_TOOLS = ["k6", "locust"]
IDLE_USERS = {LOADTEST: (100, 1000, 5000, 10000), "k6": (100, 1000), "locust": (100, 1000)}
SOCKET_USERS = {LOADTEST: (200, 2000, 15000), "k6": (200, 2000), "locust": (200, 2000)}
# Longer than any measurement takes. A generator is stopped after its measurement.
SECONDS, PAUSE = 120, 60


def build_k6_command(path, script):
    return [path, "run", "-q", "--no-usage-report", "--no-summary", str(SCRIPTS / script)]


def build_locust_command(path, script, users, host):
    flags = ["--headless", "--only-summary", "-L", "ERROR", "-u", str(users), "-r", "500", "-t", f"{SECONDS}s"]
    return [path, "-f", str(SCRIPTS / script), "--host", host, *flags]


def build_idle_command(tool, path, folder, users):
    if tool == "k6":
        return build_k6_command(path, "k6_idle.js")
    if tool == "locust":
        return build_locust_command(path, "locust_idle.py", users, HTTP_URL)
    load = load_test.build_closed_load(users, SECONDS, spawn_rate=5000)
    test = load_test.build_load_test([load_test.build_get_task()], load, pause=f"{PAUSE}s")
    return load_test.build_command(path, folder, test)


def build_socket_command(tool, path, folder, users):
    if tool == "k6":
        return build_k6_command(path, "k6_websocket.js")
    if tool == "locust":
        return build_locust_command(path, "locust_websocket.py", users, WEB_SOCKET_URL)
    load = load_test.build_closed_load(users, SECONDS, spawn_rate=5000)
    task = load_test.build_echo_task([MESSAGE])
    test = load_test.build_load_test([task], load, {"webSocket": WEB_SOCKET_URL}, pause=f"{PAUSE}s")
    return load_test.build_command(path, folder, test)


def measure_memory(build_command, tool, path, users, url):
    """Returns the resident memory of a generator after all its users have connected and wait."""
    env = {**os.environ, **build_environment(users, SECONDS, PAUSE), "BENCH_URL": url}
    with Server(), tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        process = start_pinned(
            GENERATOR_CORE, build_command(tool, path, folder, users), stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, env=env, cwd=folder,
        )

        def has_connected():
            return count_connections() >= users or process.poll() is not None

        try:
            wait_until(has_connected, 60, f"{users} users of {tool}", interval=0.2)
            rss = wait_for_stable_memory(process.pid)
            connections = count_connections()
        finally:
            if process.poll() is None:
                stop_process(process)
    if connections < users:
        raise RuntimeError(f"only {connections} of {users} users of {tool} are connected")
    return {"rss": rss, "open": connections}


def build_measure(label, build_command, users_by_tool, url):
    """Returns the function that measures a case."""

    def measure(context):
        figures = {tool: {} for tool in users_by_tool}
        for tool, steps in users_by_tool.items():
            for users in steps:
                figure = measure_memory(build_command, tool, context.paths[tool], users, url)
                figures[tool][str(users)] = figure
                log_progress(f"{label}: {tool}, {users} users, {figure['rss'] / 2**20:.1f} MiB")
        return figures

    return measure


def compute_bytes_per_user(steps):
    """Returns the slope of memory over users, from the fewest to the most users."""
    low, high = min(steps, key=int), max(steps, key=int)
    return (steps[high]["rss"] - steps[low]["rss"]) / (int(high) - int(low))


def build_memory_table(figures):
    loadtest_bytes = compute_bytes_per_user(figures[LOADTEST])
    return format_table(
        ["tool", "users: resident memory", "per additional user", "loadtest ÷ tool"],
        [
            [
                tool, ", ".join(f"{int(n):,}: {step['rss'] / 2**20:,.1f} MiB" for n, step in steps.items()),
                f"{compute_bytes_per_user(steps) / 1024:,.1f} KiB",
                f"{loadtest_bytes / compute_bytes_per_user(steps):.3f}",
            ]
            for tool, steps in figures.items()
        ],
    )


def build_idle_lines(figures):
    return [
        "## Memory of waiting users with an open connection", "", *build_memory_table(figures),
        "The memory does not include the kernel's socket buffers.", "",
    ]


def build_socket_lines(figures):
    note = f"Each user has received one echo and then pauses for {PAUSE} s with its session open."
    return ["## Memory of open WebSockets", "", note, "", *build_memory_table(figures)]


IDLE = Case(
    "idle", [LOADTEST, *OTHER_TOOLS],
    build_measure("idle", build_idle_command, IDLE_USERS, HTTP_URL + "/"), build_idle_lines,
)
SOCKETS = Case(
    "sockets", [LOADTEST, *OTHER_TOOLS],
    build_measure("sockets", build_socket_command, SOCKET_USERS, WEB_SOCKET_URL), build_socket_lines,
)
