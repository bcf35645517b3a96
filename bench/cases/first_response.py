"""Time to first response: the measured time of chats, compared with the simulator's truth."""

import csv
import json
import math
import pathlib
import tempfile
import urllib.request

import load_test
from cases import Case
from machine import GENERATOR_CORE, SERVER_CORE, CoreUsage, log_progress, start_pinned, stop_process, wait_until
from tables import format_table
from tools import LOADTEST, SIMULATOR

HTTP_PORT, CONTROL_PORT = 18991, 18993
# A response has 16 tokens, 10 ms apart. The first token follows after 50 ms.
SETTINGS = "chat: {latency: 50ms, tokens: 16, tokenGap: 10ms}\n"
# Chats per second, tried in this order until `loadtest` or the simulator uses half of its core.
RATES = (200, 800, 1600, 2400, 3200, 4000, 4800)
HALF_BUSY = 0.5
QUANTILES = {"p50": 0.50, "p95": 0.95, "p99": 0.99}
# The starting points of a measured time, and their names in the tables.
ORIGINS = {"due": "from the due time", "sent": "from the send time"}


class Simulator:
    """The simulator of Cell 0 on the server's core."""

    def __init__(self, path):
        self.path = path

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory()
        settings = pathlib.Path(self.folder.name) / "settings.yaml"
        settings.write_text(SETTINGS)
        ports = ["--http-port", HTTP_PORT, "--websocket-port", 18992, "--control-port", CONTROL_PORT]
        command = [self.path, "--settings", str(settings), "--address", "127.0.0.1", *map(str, ports)]
        log = (pathlib.Path(self.folder.name) / "log").open("w")
        self.process = start_pinned(SERVER_CORE, command, stdout=log, stderr=log)
        wait_until(self.is_listening, 5, "a simulator that listens")
        return self

    def get_json(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{CONTROL_PORT}{path}", timeout=10) as response:
            return json.loads(response.read())

    def is_listening(self):
        try:
            return self.get_json("/truth") is not None
        except OSError:
            return False

    def read_first_token_times(self):
        """Returns quantiles, in nanoseconds, of the times to first token in the latest run."""
        runs = [run["run"] for run in self.get_json("/truth")["runs"] if run["run"].startswith("local-")]
        return self.get_json(f"/truth/{max(runs)}")["endpoints"]["chat"]["successful"]["timeToFirstResponse"]

    def __exit__(self, *_):
        stop_process(self.process)
        self.folder.cleanup()


def read_times_from_sent(request_log):
    """Returns all times from send time to first response, in microseconds, in ascending order."""
    with request_log.open() as file:
        rows = [row for row in csv.DictReader(file) if row["outcome"] == "success"]
        return sorted((float(row["first_response"]) - float(row["sent"])) * 1e6 for row in rows)


def measure_rate(context, rate):
    task = {"name": "chat", "chat": {"models": ["cell0-small"], "messages": ["Hello"], "stream": True}}
    # A ramp avoids opening many connections at once, as in the latency case.
    load = load_test.build_open_load(rate, max(64, rate), context.seconds, ramp=1)
    load["gracefulStop"] = "5s"
    test = load_test.build_load_test([task], load, {"http": f"http://127.0.0.1:{HTTP_PORT}"})
    with Simulator(context.paths[SIMULATOR]) as simulator, tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        command = load_test.build_command(context.paths[LOADTEST], folder, test)
        command += ["--request-log", str(folder / "requests.csv")]
        with (folder / "out").open("w") as out:
            generator_usage, simulator_usage = CoreUsage(GENERATOR_CORE), CoreUsage(SERVER_CORE)
            process = start_pinned(GENERATOR_CORE, command, stdout=out, stderr=out, cwd=folder)
            process.wait(context.seconds + 60)
            busy = {"busy": generator_usage.busy_share(), "simulator_busy": simulator_usage.busy_share()}
        measured = load_test.read_result(folder)["total"]["timeToFirstResponse"]
        from_sent = read_times_from_sent(folder / "requests.csv")
        true = simulator.read_first_token_times()
    assert true["count"] == measured["count"] == len(from_sent), (true, measured, len(from_sent))
    return {
        **busy,
        "due": {q: measured[q] * 1e6 for q in QUANTILES},
        "sent": {q: from_sent[math.ceil(part * len(from_sent)) - 1] for q, part in QUANTILES.items()},
        "true": {q: true[q] / 1e3 for q in QUANTILES},
    }


def measure(context):
    for rate in RATES:
        figures = measure_rate(context, rate)
        log_progress(
            f"first: at {rate}/s, the core of loadtest is {figures['busy']:.0%} busy,"
            f" the simulator's core {figures['simulator_busy']:.0%}"
        )
        if max(figures["busy"], figures["simulator_busy"]) >= HALF_BUSY:
            break
    else:
        raise RuntimeError(f"neither core is half busy at {rate} chats/s: add a higher rate to RATES")
    rounds = [measure_rate(context, rate) for _ in range(context.rounds)]
    return {"rate": rate, "rounds": rounds}


def list_errors(figures, origin, quantile):
    """Returns the measured minus the true quantile of each round, in microseconds, ascending."""
    return sorted(figure[origin][quantile] - figure["true"][quantile] for figure in figures["rounds"])


def middle_of(values):
    return values[len(values) // 2]


def middle_of_rounds(figures, key):
    return middle_of(sorted(figure[key] for figure in figures["rounds"]))


def build_lines(figures):
    busy, simulator_busy = middle_of_rounds(figures, "busy"), middle_of_rounds(figures, "simulator_busy")
    rows = []
    for quantile in QUANTILES:
        true = middle_of(sorted(figure["true"][quantile] for figure in figures["rounds"]))
        row = [quantile, f"{true / 1e3:.2f} ms"]
        for origin in ORIGINS:
            errors = list_errors(figures, origin, quantile)
            row += [f"{middle_of(errors):+,.0f} µs", f"{errors[0]:+,.0f}–{errors[-1]:+,.0f}"]
        rows.append(row)
    head = ["quantile", "true time (simulator)"]
    for name in ORIGINS.values():
        head += [f"error of loadtest, {name}", "min–max"]
    return [
        f"## Time to first response: {figures['rate']:,} chats/s", "",
        "The simulator's true time starts at the kernel's timestamp of the request's last packet and ends when the"
        " first content token is written. `loadtest` stops its clock when the first content token arrives. It reports"
        " the time from the due time, which also includes the delay between due time and send time. Most of this delay"
        " comes from short times when the machine did not run. The simulator can't know the due time. The time from the"
        " send time, computed from the file of `--request-log`, is therefore the one to compare with the true time."
        f" The core of `loadtest` was {busy:.0%} busy, the simulator's core {simulator_busy:.0%}. Each response has 16"
        " tokens, 10 ms apart.", "",
        *format_table(head, rows),
    ]


FIRST_RESPONSE = Case("first", [LOADTEST, SIMULATOR], measure, build_lines)
