"""LoadTests, plans and results of this project's load generator."""

import hashlib
import json

from target import HTTP_URL


def build_load_test(tasks, load, target=None, pause=None):
    scenario = {"tasks": tasks}
    if pause:
        scenario["pause"] = {"min": pause, "max": pause}
    return {
        "apiVersion": "loadtest.cell0.io/v1alpha1",
        "kind": "LoadTest",
        "metadata": {"name": "bench"},
        "spec": {"target": target or {"http": HTTP_URL}, "load": load, "scenario": scenario},
    }


def build_get_task(name="get"):
    return {"name": name, "http": {"path": "/"}}


def build_post_task(body):
    return {"name": "post", "http": {"path": "/", "method": "POST", "body": body}}


def build_echo_task(messages):
    """Returns a WebSocket task: each user keeps one session and waits for the echo of each message."""
    return {"name": "echo", "webSocket": {"path": "/", "send": messages, "replies": 1, "session": "PerUser"}}


def build_closed_load(users, seconds, spawn_rate=10000):
    """Returns a closed model: users that start at the spawn rate."""
    return {"users": users, "spawnRate": spawn_rate, "duration": f"{seconds}s", "gracefulStop": "1s"}


def build_open_load(rate, users, seconds, ramp=0, precision=None):
    """Returns an open model: an arrival rate, with a linear ramp to it if `ramp` seconds are given."""
    common = {"maxUsers": users, "gracefulStop": "1s"}
    if precision:
        common["precision"] = precision
    if not ramp:
        return {"arrivalRate": f"{rate}/s", "duration": f"{seconds}s", **common}
    durations = (ramp, seconds)
    return {"stages": [{"duration": f"{duration}s", "rate": f"{rate}/s"} for duration in durations], **common}


def build_command(path, folder, load_test):
    """Writes a LoadTest to a file and returns the command that runs it."""
    file = folder / "test.yaml"
    file.write_text(json.dumps(load_test))
    return [path, "run", str(file), "--json", str(folder / "loadtest.json")]


def read_result(folder):
    """Returns the JSON result; a failed request ends the benchmark."""
    result = json.loads((folder / "loadtest.json").read_text())
    assert result["total"]["failures"] == 0, result["total"]["errors"]
    return result


def build_plan(load, tasks, token):
    """Returns the plan that the operator would give to a runner: one runner, constant rate."""
    arrivals = {"rate": load["arrivalRate"], "maxUsers": load["maxUsers"], "duration": load["duration"]}
    kinds = ("http", "chat", "webSocket")
    planned = [
        {"name": task["name"], "weight": 1, "kind": {kind: task[kind]}}
        for task in tasks
        for kind in kinds
        if kind in task
    ]
    return {
        "version": 3,
        "runUid": "bench",
        "name": "bench",
        "runners": 1,
        "threads": 1,
        "tokenSha256": hashlib.sha256(token.encode()).hexdigest(),
        "releaseGrace": "30s",
        "metricsLinger": "1s",
        "test": {
            "target": {"http": HTTP_URL},
            "load": {"arrivals": arrivals},
            "gracefulStop": load["gracefulStop"],
            "scenario": {"pacing": "none", "seed": 0, "tasks": planned},
            "thresholds": [],
        },
    }
