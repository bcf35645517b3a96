"""Load tests of ours, as a user would write them."""

import hashlib
import json

from target import HTTP

# Sessions that live across a user's tasks. A loadtest that does not know the field refuses it;
# without it a session lives as long as its task, which is what the two WebSocket cases then say.
SESSION_PER_USER = False


def spec(tasks, load, target=None, pause=None):
    scenario = {"tasks": tasks}
    if pause:
        scenario["pause"] = {"min": pause, "max": pause}
    return {
        "apiVersion": "loadtest.cell0.io/v1alpha1",
        "kind": "LoadTest",
        "metadata": {"name": "bench"},
        "spec": {"target": target or {"http": HTTP}, "load": load, "scenario": scenario},
    }


def get(name="get"):
    return {"name": name, "http": {"path": "/"}}


def post(body):
    return {"name": "post", "http": {"path": "/", "method": "POST", "body": body}}


def web_socket(send, replies, **more):
    task = {"path": "/", "send": send, "replies": replies, **more}
    if SESSION_PER_USER:
        task["session"] = "PerUser"
    return {"name": "echo", "webSocket": task}


def closed(users, seconds, spawn_rate=10000):
    return {"users": users, "spawnRate": spawn_rate, "duration": f"{seconds}s", "gracefulStop": "1s"}


def opened(rate, users, seconds):
    return {"arrivalRate": f"{rate}/s", "maxUsers": users, "duration": f"{seconds}s", "gracefulStop": "1s"}


def command(path, folder, spec):
    file = folder / "test.yaml"
    file.write_text(json.dumps(spec))
    return [path, "run", str(file), "--json", str(folder / "ours.json")]


def result(folder):
    """The JSON result; a request that failed ends the benchmark."""
    told = json.loads((folder / "ours.json").read_text())
    assert told["total"]["failures"] == 0, told["total"]["errors"]
    return told


def plan(load, tasks, token):
    """What the operator gives to a runner."""
    return {
        "version": 1,
        "run": "bench",
        "name": "bench",
        "runners": 1,
        "workers": 1,
        "tokenSha256": hashlib.sha256(token.encode()).hexdigest(),
        "target": {"http": HTTP},
        "load": load,
        "scenario": {"tasks": tasks},
        "thresholds": [],
        "releaseGrace": "30s",
        "metricsLinger": "1s",
    }
