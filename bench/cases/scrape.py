"""A scrape: what it costs a runner under load, and what it does to that load's schedule."""

import http.client
import json
import subprocess
import time

import ours
from cases import Case
from cases.latency import rates_for
from exposition import between, native_histogram, quantile
from machine import GENERATOR_CORE, connected, end, on_cpu, pinned, until
from runs import rounds_of
from tables import cell, median, spread, table
from tools import OURS, RUNNER

LISTEN = 18991
TOKEN = "bench"
TASKS = 10
CONNECTIONS = 64
BUSY = 50
# As Prometheus asks: for native histograms, and without them.
PROTOBUF = (
    "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.6,"
    "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
TEXT = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
SHAPES = {
    "none": (0, PROTOBUF), "protobuf, 1/s": (1, PROTOBUF), "protobuf, 10/s": (10, PROTOBUF),
    "text, 1/s": (1, TEXT), "text, 10/s": (10, TEXT),
}
LAG = "loadtest_schedule_lag_seconds"


def asked(connection, method, path, accept="*/*", body=None):
    headers = {"Accept": accept, "Accept-Encoding": "gzip", "Authorization": f"Bearer {TOKEN}"}
    if body is not None:
        headers["Content-Type"] = "application/json"
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    data = answer.read()
    if answer.status >= 300:
        raise RuntimeError(f"{method} {path}: {answer.status} {data[:200]!r}")
    return data


def listening():
    try:
        asked(http.client.HTTPConnection("127.0.0.1", LISTEN, timeout=5), "GET", "/readyz")
        return True
    except OSError:
        return False


def scraped(connection, accept, each_second, seconds):
    """Scrapes at that rate for so long; the bytes of each."""
    began, sizes = time.monotonic(), []
    while each_second and len(sizes) < each_second * seconds:
        time.sleep(max(0, began + len(sizes) / each_second - time.monotonic()))
        sizes.append(len(asked(connection, "GET", "/metrics", accept)))
    time.sleep(max(0, began + seconds - time.monotonic()))
    return sizes


def one_run(path, folder, rate, shape, seconds):
    each_second, accept = SHAPES[shape]
    tasks = [ours.get(f"task-{n}") for n in range(TASKS)]
    plan = ours.plan(ours.opened(rate, CONNECTIONS, seconds + 30), tasks, TOKEN)
    file = folder / "plan.json"
    file.write_text(json.dumps(plan))
    line = [path, "run", "--plan", str(file), "--listen", f"127.0.0.1:{LISTEN}", "--index", "0"]
    with (folder / "stdout").open("w") as out:
        process = pinned(GENERATOR_CORE, line, stdout=out, stderr=subprocess.STDOUT, cwd=folder)
    try:
        until(listening, 10, "a runner that listens")
        connection = http.client.HTTPConnection("127.0.0.1", LISTEN, timeout=10)
        asked(connection, "POST", "/start", body=json.dumps({"inSeconds": 1}))
        until(lambda: connected() > 0, 10, "load")
        # Two scrapes outside the time that is measured tell what came between them.
        before = native_histogram(asked(connection, "GET", "/metrics", PROTOBUF), LAG)
        cpu, began = on_cpu(process.pid), time.monotonic()
        sizes = scraped(connection, accept, each_second, seconds)
        took, cpu_after = time.monotonic() - began, on_cpu(process.pid)
        after = native_histogram(asked(connection, "GET", "/metrics", PROTOBUF), LAG)
        asked(connection, "POST", "/release")
    finally:
        if process.poll() is None:
            end(process)
    used = {thread: cpu_after[thread] - cpu.get(thread, 0) for thread in cpu_after}
    lag = between(after, before)
    return {
        "scrapes": len(sizes), "bytes": sizes[-1] if sizes else None,
        "process_ms": sum(used.values()) / took * 1e3,
        "serving_ms": used[process.pid] / took * 1e3,
        "per_scrape_ms": used[process.pid] / len(sizes) * 1e3 if sizes else None,
        "lag_p99_us": quantile(lag, 0.99) * 1e6, "lag_p999_us": quantile(lag, 0.999) * 1e6,
        "rps": sum(lag.values()) / took,
    }


def measure(context):
    rate = rates_for(context, (BUSY,), hold_ns=None)[BUSY]

    def one(shape, folder):
        return one_run(context.paths[RUNNER], folder, rate, shape, context.seconds)

    return {"rate": rate, "results": rounds_of(list(SHAPES), context, "scrape", one)}


def lines(figures):
    results = figures["results"]
    idle = median(results, "none", "process_ms")
    rows = []
    for shape in SHAPES:
        each_second = SHAPES[shape][0]
        process = median(results, shape, "process_ms")
        rows.append([
            shape, cell(median(results, shape, "bytes")), cell(median(results, shape, "per_scrape_ms"), "{:.2f} ms"),
            spread(results, shape, "per_scrape_ms", "{:.2f}"),
            cell((process - idle) / each_second if each_second else None, "{:+.1f} ms"),
            cell(median(results, shape, "lag_p99_us"), "{:,.1f} µs"),
            cell(median(results, shape, "lag_p999_us"), "{:,.1f} µs"),
        ])
    head = [
        "scrapes", "bytes", "CPU of the serving thread per scrape", "min–max", "CPU of the process per scrape",
        "schedule lag p99", "p99.9",
    ]
    return [
        "## Cost of a scrape", "",
        f"One runner, {TASKS} tasks, {figures['rate']:,} requests/s, which keep its core about half busy; its serving thread"
        " and its load thread share that core. CPU is what the kernel counts for the threads; the process's is the"
        " difference to no scrapes at all, and as exact as two runs are alike.", "", *table(head, rows),
    ]


SCRAPE = Case("scrape", [OURS, RUNNER], measure, lines)
