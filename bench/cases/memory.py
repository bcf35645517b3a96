"""Memory of users that wait: with an HTTP connection, and with a WebSocket."""

import os
import pathlib
import subprocess
import tempfile

import ours
from cases import Case
from cases.websocket import MESSAGE, environment
from machine import GENERATOR_CORE, connected, end, pinned, say, settled_resident, until
from tables import table
from target import HTTP, WEB_SOCKET, Server
from tools import OURS, SCRIPTS

PEERS = ["k6", "locust"]
IDLE_USERS = {OURS: (100, 1000, 5000, 10000), "k6": (100, 1000), "locust": (100, 1000)}
SOCKETS = {OURS: (200, 2000, 15000), "k6": (200, 2000), "locust": (200, 2000)}
# Longer than any measurement takes; ended when it is done.
SECONDS, PAUSE = 120, 60


def k6(path, script):
    return [path, "run", "-q", "--no-usage-report", "--no-summary", str(SCRIPTS / script)]


def locust(path, script, users, host):
    flags = ["--headless", "--only-summary", "-L", "ERROR", "-u", str(users), "-r", "500", "-t", f"{SECONDS}s"]
    return [path, "-f", str(SCRIPTS / script), "--host", host, *flags]


def idle_command(tool, path, folder, users):
    if tool == "k6":
        return k6(path, "k6_idle.js")
    if tool == "locust":
        return locust(path, "locust_idle.py", users, HTTP)
    load = ours.closed(users, SECONDS, spawn_rate=5000)
    return ours.command(path, folder, ours.spec([ours.get()], load, pause=f"{PAUSE}s"))


def socket_command(tool, path, folder, users):
    if tool == "k6":
        return k6(path, "k6_websocket.js")
    if tool == "locust":
        return locust(path, "locust_websocket.py", users, WEB_SOCKET)
    load = ours.closed(users, SECONDS, spawn_rate=5000)
    task = ours.web_socket([MESSAGE])
    return ours.command(path, folder, ours.spec([task], load, {"webSocket": WEB_SOCKET}, pause=f"{PAUSE}s"))


def of_process(command, tool, path, users, url):
    """Resident memory of a generator once all its users are connected and wait."""
    env = {**os.environ, **environment(users, SECONDS, PAUSE), "BENCH_URL": url}
    with Server(), tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        process = pinned(
            GENERATOR_CORE, command(tool, path, folder, users), stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, env=env, cwd=folder,
        )
        try:
            until(lambda: connected() >= users or process.poll() is not None, 60, f"{users} users of {tool}", every=0.2)
            rss = settled_resident(process.pid)
            here = connected()
        finally:
            if process.poll() is None:
                end(process)
    if here < users:
        raise RuntimeError(f"only {here} of {users} users of {tool} are connected")
    return {"rss": rss, "open": here}


def measured(label, command, users_of, url):
    def measure(context):
        figures = {tool: {} for tool in users_of}
        for tool, steps in users_of.items():
            for users in steps:
                one = of_process(command, tool, context.paths[tool], users, url)
                figures[tool][str(users)] = one
                say(f"{label}: {tool}, {users} users, {one['rss'] / 2**20:.1f} MiB")
        return figures

    return measure


def each(steps):
    """Bytes for one more user: the slope from the fewest to the most."""
    low, high = min(steps, key=int), max(steps, key=int)
    return (steps[high]["rss"] - steps[low]["rss"]) / (int(high) - int(low))


def rows(figures):
    ours_each = each(figures[OURS])
    return table(
        ["tool", "users: resident", "for one more user", "ours ÷ it"],
        [
            [
                tool, ", ".join(f"{int(n):,}: {one['rss'] / 2**20:,.1f} MiB" for n, one in steps.items()),
                f"{each(steps) / 1024:,.1f} KiB", f"{ours_each / each(steps):.3f}",
            ]
            for tool, steps in figures.items()
        ],
    )


def idle_lines(figures):
    return [
        "## Memory of users that wait, connection open", "", *rows(figures),
        "The kernel's socket memory is not in it.", "",
    ]


def socket_lines(figures):
    held = f"Users have had one echo and pause {PAUSE} s, their session open."
    return ["## Memory of WebSockets held open", "", held, "", *rows(figures)]


IDLE = Case("idle", [OURS, *PEERS], measured("idle", idle_command, IDLE_USERS, HTTP + "/"), idle_lines)
SOCKET = Case("sockets", [OURS, *PEERS], measured("sockets", socket_command, SOCKETS, WEB_SOCKET), socket_lines)
