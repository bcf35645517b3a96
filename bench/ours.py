"""Load tests of ours, as a user would write them."""

import hashlib
import json

from target import HTTP


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


def web_socket(send):
    """Messages that are sent back, in a session that lives as long as its user."""
    return {"name": "echo", "webSocket": {"path": "/", "send": send, "replies": 1, "session": "PerUser"}}


def closed(users, seconds, spawn_rate=10000):
    return {"users": users, "spawnRate": spawn_rate, "duration": f"{seconds}s", "gracefulStop": "1s"}


def opened(rate, users, seconds, ramp=0):
    common = {"maxUsers": users, "gracefulStop": "1s"}
    if not ramp:
        return {"arrivalRate": f"{rate}/s", "duration": f"{seconds}s", **common}
    lengths = (ramp, seconds)
    return {"stages": [{"duration": f"{length}s", "rate": f"{rate}/s"} for length in lengths], **common}


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
        "version": 2,
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
