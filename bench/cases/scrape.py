"""Scrapes: their CPU time in a runner under load, and their effect on the schedule lag."""

import http.client
import json
import subprocess
import time

import load_test
from cases import Case
from cases.latency import find_rates
from exposition import find_quantile, read_native_histogram, subtract_counts
from machine import (
    GENERATOR_CORE, count_connections, read_thread_cpu_seconds, start_pinned, stop_process, wait_until,
)
from runs import run_rounds
from tables import compute_median, format_range, format_table, format_value
from tools import LOADTEST, RUNNER

RUNNER_PORT = 18991
TOKEN = "bench"
TASKS = 10
CONNECTIONS = 64
BUSY_PERCENT = 50
# The Accept headers of Prometheus: with native histograms (protobuf), and without (text).
PROTOBUF = (
    "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.6,"
    "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
TEXT = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
# Scrapes per second, and their Accept header.
SCRAPES = {
    "none": (0, PROTOBUF), "protobuf, 1/s": (1, PROTOBUF), "protobuf, 10/s": (10, PROTOBUF),
    "text, 1/s": (1, TEXT), "text, 10/s": (10, TEXT),
}
LAG_METRIC = "loadtest_schedule_lag_seconds"


def send_request(connection, method, path, accept="*/*", body=None):
    headers = {"Accept": accept, "Accept-Encoding": "gzip", "Authorization": f"Bearer {TOKEN}"}
    if body is not None:
        headers["Content-Type"] = "application/json"
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    data = response.read()
    if response.status >= 300:
        raise RuntimeError(f"{method} {path}: {response.status} {data[:200]!r}")
    return data


def is_listening():
    try:
        send_request(http.client.HTTPConnection("127.0.0.1", RUNNER_PORT, timeout=5), "GET", "/readyz")
        return True
    except OSError:
        return False


def scrape_at_rate(connection, accept, per_second, seconds):
    """Scrapes at a rate for some seconds. Returns the number of bytes of each scrape."""
    start, sizes = time.monotonic(), []
    while per_second and len(sizes) < per_second * seconds:
        time.sleep(max(0, start + len(sizes) / per_second - time.monotonic()))
        sizes.append(len(send_request(connection, "GET", "/metrics", accept)))
    time.sleep(max(0, start + seconds - time.monotonic()))
    return sizes


def measure_scrapes(path, folder, rate, scrapes, seconds):
    per_second, accept = SCRAPES[scrapes]
    tasks = [load_test.build_get_task(f"task-{n}") for n in range(TASKS)]
    load = load_test.build_open_load(rate, CONNECTIONS, seconds + 30)
    plan = load_test.build_plan(load, tasks, TOKEN)
    file = folder / "plan.json"
    file.write_text(json.dumps(plan))
    command = [path, "run", "--plan", str(file), "--listen", f"127.0.0.1:{RUNNER_PORT}", "--index", "0"]
    with (folder / "stdout").open("w") as out:
        process = start_pinned(GENERATOR_CORE, command, stdout=out, stderr=subprocess.STDOUT, cwd=folder)
    try:
        wait_until(is_listening, 10, "a runner that listens")
        connection = http.client.HTTPConnection("127.0.0.1", RUNNER_PORT, timeout=10)
        send_request(connection, "POST", "/start", body=json.dumps({"inSeconds": 1}))
        wait_until(lambda: count_connections() > 0, 10, "load")
        # Two scrapes outside the measured time give the schedule lag of this time.
        before = read_native_histogram(send_request(connection, "GET", "/metrics", PROTOBUF), LAG_METRIC)
        cpu_before, start = read_thread_cpu_seconds(process.pid), time.monotonic()
        sizes = scrape_at_rate(connection, accept, per_second, seconds)
        duration, cpu_after = time.monotonic() - start, read_thread_cpu_seconds(process.pid)
        after = read_native_histogram(send_request(connection, "GET", "/metrics", PROTOBUF), LAG_METRIC)
        send_request(connection, "POST", "/release")
    finally:
        if process.poll() is None:
            stop_process(process)
    cpu_seconds = {thread: cpu_after[thread] - cpu_before.get(thread, 0) for thread in cpu_after}
    lag = subtract_counts(after, before)
    return {
        "scrapes": len(sizes), "bytes": sizes[-1] if sizes else None,
        "process_ms": sum(cpu_seconds.values()) / duration * 1e3,
        "serving_ms": cpu_seconds[process.pid] / duration * 1e3,
        "per_scrape_ms": cpu_seconds[process.pid] / len(sizes) * 1e3 if sizes else None,
        "lag_p99_us": find_quantile(lag, 0.99) * 1e6, "lag_p999_us": find_quantile(lag, 0.999) * 1e6,
        "rps": sum(lag.values()) / duration,
    }


def measure(context):
    rate = find_rates(context, (BUSY_PERCENT,), hold_ns=None)[BUSY_PERCENT]

    def run_once(scrapes, folder):
        return measure_scrapes(context.paths[RUNNER], folder, rate, scrapes, context.seconds)

    return {"rate": rate, "results": run_rounds(list(SCRAPES), context, "scrape", run_once)}


def build_lines(figures):
    results = figures["results"]
    without_scrapes = compute_median(results, "none", "process_ms")
    rows = []
    for scrapes in SCRAPES:
        per_second = SCRAPES[scrapes][0]
        process = compute_median(results, scrapes, "process_ms")
        rows.append([
            scrapes, format_value(compute_median(results, scrapes, "bytes")),
            format_value(compute_median(results, scrapes, "per_scrape_ms"), "{:.2f} ms"),
            format_range(results, scrapes, "per_scrape_ms", "{:.2f}"),
            format_value((process - without_scrapes) / per_second if per_second else None, "{:+.1f} ms"),
            format_value(compute_median(results, scrapes, "lag_p99_us"), "{:,.1f} µs"),
            format_value(compute_median(results, scrapes, "lag_p999_us"), "{:,.1f} µs"),
        ])
    head = [
        "scrapes", "bytes", "CPU time of the serving thread per scrape", "min–max",
        "CPU time of the process per scrape", "schedule lag p99", "p99.9",
    ]
    return [
        "## CPU time of a scrape", "",
        f"One runner with {TASKS} tasks makes {figures['rate']:,} requests/s, which keeps its core about half busy. Its"
        " serving thread and its load thread share this core. The CPU times are the kernel's figures for the threads."
        " The CPU time of the process is the difference to a run without scrapes. It is not exact, because no two runs"
        " are equal.", "", *format_table(head, rows),
    ]


SCRAPE = Case("scrape", [LOADTEST, RUNNER], measure, build_lines)
