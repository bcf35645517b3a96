#!/usr/bin/env python3
"""Runs a test for hours on a cluster, and short tests beside it, and records memory and CPU time.

Run it on the node, as root, for example on the testbed with the operator installed:

    testbed/testbed exec -- python3 bench/soak.py --hours 2 --out target/soak

Writes OUT/samples.csv, OUT/soak.svg and OUT/soak.json. With --record, the figures and the plot also go to bench and
docs/images; `bench/bench.py --cases none` writes them to bench/RESULTS.md after that. Exits with 1 if the memory of a
process was not flat: if the highest level in the second half of the time is over 5 % higher than the highest level
before, without the first sixth. A level is the median of five minutes. The highest levels count, because the stored run
over time grows until it is full, and then takes half of the memory.

Let nothing else run on the machine: if the runners get less CPU time, more of their requests are in flight.

The simulator's latencies vary as widely as those of real servers. Histograms grow with the range of what they hold, so
with narrow latencies, memory would grow with each new delay of the machine.
"""

import argparse
import csv
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time

from operator_figures import IMAGES, build_soak_table, describe_origin
from plot import draw_lines

NAMESPACE = "soak"
OPERATOR_NAMESPACE = "loadtest-system"
LIMIT = 0.05
INTERVAL = 15.0
LEVEL_TIME = 300.0
CHURN_INTERVAL = 120.0
LATENCIES = {
    "CELL0_SIMULATOR_CHAT_LATENCY": "{lognormal: {median: 300ms, sigma: 0.8, max: 4s}}",
    "CELL0_SIMULATOR_TOKEN_GAP": "{lognormal: {median: 10ms, sigma: 0.8, max: 500ms}}",
    "CELL0_SIMULATOR_HEALTH_LATENCY": "{lognormal: {median: 5ms, sigma: 1.2, max: 2s}}",
    "CELL0_SIMULATOR_WEBSOCKET_LATENCY": "{lognormal: {median: 5ms, sigma: 1.2, max: 2s}}",
}
PROGRAMS = {"loadtest-operator": "operator", "loadtest-runner": "runner"}
ROOT = pathlib.Path(__file__).resolve().parent.parent


def kubectl(*arguments, document=None):
    text = json.dumps(document) if document is not None else None
    command = ["kubectl", "--namespace", NAMESPACE, *arguments]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout


def spec(users, duration):
    tasks = [
        {"name": "chat", "weight": 70, "chat": {"models": ["cell0-small"], "messages": ["Hello"], "stream": True}},
        {"name": "health", "weight": 25, "http": {"path": "/health"}},
        {"name": "websocket", "weight": 5, "webSocket": {"path": "/", "send": ["{\"type\":\"ping\"}"], "replies": 1}},
    ]
    thresholds = [
        {"metric": "errorRate", "target": "< 1%", "critical": "> 50%", "abort": {"after": "30s", "for": "30s"}},
        {"task": "chat", "metric": "timeToFirstToken", "statistic": "p95", "target": "< 2s", "window": "1m"},
        {"task": "health", "metric": "responseTime", "statistic": "p95", "target": "< 1s", "window": "10s"},
    ]
    return {
        "target": {"http": "http://cell0:18800", "webSocket": "ws://cell0:18801"},
        "load": {"users": users, "spawnRate": users, "duration": duration},
        "scenario": {"pause": {"min": "500ms", "max": "1s"}, "tasks": tasks},
        "thresholds": thresholds,
    }


def create_test(name, users, duration, ttl=None):
    document = {
        "apiVersion": "loadtest.cell0.io/v1alpha1",
        "kind": "LoadTest",
        "metadata": {"name": name},
        "spec": spec(users, duration),
    }
    if ttl is not None:
        document["spec"]["ttlSecondsAfterFinished"] = ttl
    kubectl("create", "-f", "-", document=document)


def find_pods(namespace, selector):
    """Returns the names of pods by their UIDs."""
    command = ["kubectl", "--namespace", namespace, "get", "pods", "-o", "json", "-l", selector]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {pod["metadata"]["uid"]: pod["metadata"]["name"] for pod in json.loads(found)["items"]}


def find_processes(pods):
    """Yields (name, PID) of the operators and runners in pods, which are names by their UIDs."""
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            program = (entry / "cmdline").read_bytes().split(b"\0")[0].decode().rsplit("/", 1)[-1]
            groups = (entry / "cgroup").read_text().replace("_", "-")
        except OSError:
            continue
        names = [name for uid, name in pods.items() if uid in groups]
        if program in PROGRAMS and names:
            yield f"{PROGRAMS[program]} {names[0].rsplit('-', 1)[-1]}", int(entry.name)


def read_memory(pid):
    """Resident memory of its own, without the pages of the program's file, in MiB."""
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    return 0.0


def read_cpu(pid):
    """CPU time in seconds."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wait_for_runners():
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        test = json.loads(kubectl("get", "loadtest", "long", "-o", "json"))
        if test.get("status", {}).get("phase") == "Running":
            return find_pods(NAMESPACE, f"loadtest.cell0.io/uid={test['metadata']['uid']}")
        time.sleep(1)
    sys.exit("the long test does not run")


def record_samples(seconds, out):
    pods = wait_for_runners() | find_pods(OPERATOR_NAMESPACE, "app.kubernetes.io/name=loadtest-operator")
    samples, began, churned, number = [], time.monotonic(), float("-inf"), 0
    with open(out / "samples.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["seconds", "process", "memory_mib", "cpu_seconds"])
        while (elapsed := time.monotonic() - began) < seconds:
            if elapsed - churned >= CHURN_INTERVAL:
                churned, number = elapsed, number + 1
                create_test(f"short-{number}", 10, "20s", ttl=60)
            for name, pid in find_processes(pods):
                try:
                    sample = (round(elapsed, 1), name, round(read_memory(pid), 3), round(read_cpu(pid), 2))
                except OSError:
                    continue
                samples.append(sample)
                writer.writerow(sample)
            file.flush()
            time.sleep(INTERVAL)
    return samples, number


def highest_level(samples, start, end):
    """Returns the highest level of memory in a time, or None without samples. A level is the median of LEVEL_TIME,
    because a runner copies its histograms for a moment in each second.
    """
    parts = {}
    for at, _, memory, _ in samples:
        if start <= at < end:
            parts.setdefault(int((at - start) // LEVEL_TIME), []).append(memory)
    return max((statistics.median(part) for part in parts.values()), default=None)


def judge(samples, seconds):
    """Returns a row for each process: the highest levels of its memory at first and at last, their change, the maximum,
    CPU time.
    """
    rows = []
    for name in sorted({sample[1] for sample in samples}):
        own = [sample for sample in samples if sample[1] == name]
        early = highest_level(own, seconds / 6, seconds / 2)
        late = highest_level(own, seconds / 2, seconds)
        row = {"process": name, "early_mib": None, "late_mib": None, "change": None, "cores": None}
        row["largest_mib"] = max(memory for _, _, memory, _ in own)
        if early and late:
            row["early_mib"], row["late_mib"] = early, late
            row["change"] = row["late_mib"] / row["early_mib"] - 1
            row["cores"] = (own[-1][3] - own[0][3]) / max(own[-1][0] - own[0][0], 1)
        rows.append(row)
    return rows


def draw(samples):
    """A plot of memory over time, with a line for each process."""
    lines = {}
    for name in sorted({sample[1] for sample in samples}):
        own = [(at / 60, memory) for at, process, memory, _ in samples if process == name]
        lines[f"{name} {own[-1][1]:.1f} MiB"] = own
    return draw_lines("Memory of operator and runner over time", lines, "minutes", "MiB")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--users", type=int, default=400)
    parser.add_argument("--record", action="store_true", help="write the figures to the repository")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "target" / "soak")
    options = parser.parse_args()
    seconds = options.hours * 3600
    origin = describe_origin(f"bench/soak.py --hours {options.hours:g} --users {options.users}")
    options.out.mkdir(parents=True, exist_ok=True)
    subprocess.run(["kubectl", "create", "namespace", NAMESPACE], check=True)
    kubectl("apply", "-f", str(ROOT / "examples" / "cell0-simulator.yaml"))
    kubectl("set", "env", "deployment/cell0", *[f"{name}={value}" for name, value in LATENCIES.items()])
    kubectl("rollout", "status", "deployment/cell0", "--timeout=120s")
    create_test("long", options.users, f"{round(seconds + 300)}s")
    samples, shorts = record_samples(seconds, options.out)
    status = json.loads(kubectl("get", "loadtest", "long", "-o", "json"))["status"]
    kubectl("patch", "loadtest", "long", "--type=merge", "--patch", '{"spec":{"cancel":true}}')
    rows = judge(samples, seconds)
    figures = {
        **origin,
        "hours": options.hours,
        "users": options.users,
        "requests": status["summary"]["requests"],
        "short_tests": shorts,
        "rows": rows,
    }
    (options.out / "soak.svg").write_text(draw(samples))
    (options.out / "soak.json").write_text(json.dumps(figures, indent=1) + "\n")
    if options.record:
        shutil.copy(options.out / "soak.json", ROOT / "bench")
        shutil.copy(options.out / "soak.svg", IMAGES)
    print(f"{figures['requests']:,} requests, {shorts} short tests", *build_soak_table(rows), sep="\n")
    flat = all(row["change"] is not None and row["change"] <= LIMIT for row in rows)
    sys.exit(0 if flat else 1)


if __name__ == "__main__":
    main()
