"""Latency: the error of reported quantiles at rates that keep `loadtest` busy."""

import json
import pathlib
import tempfile

import load_test
from cases import Case
from generators import COMMANDS, Load, count_requests, create_vegeta_report, read_k6_metrics
from machine import log_progress, use_real_time_policy
from runs import run_generator, run_rounds
from tables import compute_median, format_percent, format_range, format_table, format_value
from target import C_CLIENT, Server, build_c_client_command, measure_round_trips
from tools import LOADTEST

HOLD_NS = 1_000_000
# Users or connections per request in flight: enough for a stall of the machine, and few enough that
# opening the connections is less than 1 % of the requests.
CONNECTIONS_PER_REQUEST, MIN_CONNECTIONS = 24, 64
# A tool keeps a rate if it makes this share of the requests.
KEPT_SHARE = 0.98
ROUND_TRIP_RUNS = 3
# Seconds of the ramp of `loadtest`; see Load.ramp.
RAMP = 1
# CPU usage of `loadtest` in percent of its core.
LEVELS = (10, 50, 80)
# This level is also measured under SCHED_FIFO. Its record is `50 fifo`.
FIFO_LEVEL = 50
FIFO_KEY = f"{FIFO_LEVEL} fifo"
CALIBRATION_RATES = (
    500, 1000, 2000, 5000, 10000, 15000, 20000, 30000, 40000, 60000, 80000, 100000, 120000, 150000,
)
TOOLS = [LOADTEST, "oha", "vegeta", "k6"]
# The name of the service time of `loadtest` in results; LOADTEST is its response time.
LOADTEST_SERVICE_TIME = "loadtest, from sent"
QUANTILES = ("p50", "p99")


def count_needed_connections(rate):
    return max(MIN_CONNECTIONS, CONNECTIONS_PER_REQUEST * rate * HOLD_NS // 10**9)


def measure_busy_share(context, rate, hold_ns=HOLD_NS):
    """Returns the share of its core that `loadtest` uses at a rate, without other processes.

    Returns None if `loadtest` or the server can't keep the rate.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        options = ("--hold", hold_ns, folder / "hold.json") if hold_ns is not None else ()
        with Server(*options):
            load = Load(2, rate=rate, connections=count_needed_connections(rate))
            command = COMMANDS[LOADTEST](context.paths[LOADTEST], folder, load)
            run = run_generator(command, folder, load.seconds)
            actual_rate = count_requests(LOADTEST, None, folder, run.stdout) / load.seconds
    log_progress(
        f"calibration: at {rate:,}/s, loadtest uses {run.process_busy:.0%} of its core, which is {run.busy:.0%} busy;"
        f" actual rate {actual_rate:,.0f}/s"
    )
    return run.process_busy if actual_rate > KEPT_SHARE * rate else None


def find_rates(context, levels, hold_ns=HOLD_NS):
    """Returns the rate for each CPU usage, by linear interpolation between measured rates."""
    points = [(0, 0.0)]
    for rate in CALIBRATION_RATES:
        # A second attempt, because other work of the machine may be why the first one failed.
        busy = measure_busy_share(context, rate, hold_ns) or measure_busy_share(context, rate, hold_ns)
        if busy is None:
            break
        # More requests can't use less CPU. A lower figure comes from a noisy neighbour.
        points.append((rate, max(points[-1][1], busy)))
        if busy * 100 >= max(levels):
            break
    rates = {}
    for level in levels:
        above = next((i for i, (_, busy) in enumerate(points) if busy * 100 >= level), len(points) - 1)
        (low, low_busy), (high, high_busy) = points[above - 1], points[above]
        part = min(1, (level / 100 - low_busy) / max(high_busy - low_busy, 1e-9))
        rates[level] = max(100, round((low + part * (high - low)) / 100) * 100)
    return rates


def read_reported_quantiles(tool, path, folder, out):
    """Returns the quantiles that a tool reports, in microseconds, by name in the results."""
    if tool == C_CLIENT:
        reported = json.loads(out)
        return {tool: {q: reported[q] / 1e3 for q in QUANTILES}}
    if tool == LOADTEST:
        total = load_test.read_result(folder)["total"]
        fields = {LOADTEST: "responseTime", LOADTEST_SERVICE_TIME: "serviceTime"}
        return {name: {q: total[field][q] * 1e6 for q in QUANTILES} for name, field in fields.items()}
    if tool == "oha":
        reported = json.loads(out)["latencyPercentiles"]
        return {tool: {q: reported[q] * 1e6 for q in QUANTILES}}
    if tool == "vegeta":
        reported = create_vegeta_report(path, folder)["latencies"]
        return {tool: {"p50": reported["50th"] / 1e3, "p99": reported["99th"] / 1e3}}
    reported = read_k6_metrics(folder)["http_req_duration"]
    return {tool: {"p50": reported["med"] * 1e3, "p99": reported["p(99)"] * 1e3}}


class HoldingServer(Server):
    """A server that holds responses and writes a report about the hold times."""

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory()
        self.report = pathlib.Path(self.folder.name) / "hold.json"
        super().__init__("--hold", HOLD_NS, self.report)

    def __exit__(self, *error):
        super().__exit__(*error)
        self.folder.cleanup()

    def read_hold_times(self):
        self.stop()
        return json.loads(self.report.read_text())


def measure_level(context, label, tools, rate, baseline):
    def run_once(tool, folder):
        path = context.paths.get(tool)
        load = Load(
            context.seconds, rate=rate, connections=count_needed_connections(rate), corrected=True, ramp=RAMP,
        )
        if tool == C_CLIENT:
            command = build_c_client_command(load.seconds, rate, load.connections)
        else:
            command = COMMANDS[tool](path, folder, load)
        run = run_generator(command, folder, load.seconds)
        true = Server.current.read_hold_times()
        if tool == C_CLIENT:
            requests = json.loads(run.stdout)["count"]
        else:
            requests = count_requests(tool, path, folder, run.stdout)
        dropped = load_test.read_result(folder)["total"]["dropped"] if tool == LOADTEST else 0
        if tool == LOADTEST:
            requests -= rate * RAMP / 2
        common = {
            "rps": requests / load.seconds, "dropped": dropped, "busy": run.busy, "own": run.process_busy,
            "true": true,
        }
        reported = read_reported_quantiles(tool, path, folder, run.stdout)
        return {
            name: {**common, **{q: quantiles[q] - true[q] / 1e3 - baseline for q in QUANTILES}}
            for name, quantiles in reported.items()
        }

    rounds_by_tool = run_rounds([*tools, C_CLIENT], context, f"latency at {label}", run_once, HoldingServer)
    results = {}
    for rounds in rounds_by_tool.values():
        for one_round in rounds:
            for name, figures in one_round.items():
                results.setdefault(name, []).append(figures)
    return {"rate": rate, "results": results}


def measure(context):
    with tempfile.TemporaryDirectory() as folder:
        runs = [measure_round_trips(context.seconds, 0, folder) for _ in range(ROUND_TRIP_RUNS)]
    # The part of a round trip that is not the server's hold time: sockets, kernel and wake-ups. The
    # smallest figure is used, because every disturbance only adds to it.
    baseline = min(round_trips["p50"] - held["p50"] for round_trips, held in runs) / 1e3
    log_progress(f"latency: baseline {baseline:.1f} µs")
    rates = find_rates(context, LEVELS)
    log_progress("latency: rates " + ", ".join(f"{level} %: {rate:,}/s" for level, rate in rates.items()))
    levels = {}
    for level, rate in rates.items():
        levels[str(level)] = measure_level(context, f"{level} %", TOOLS, rate, baseline)
    try:
        with use_real_time_policy():
            levels[FIFO_KEY] = measure_level(
                context, f"{FIFO_LEVEL} %, SCHED_FIFO", [LOADTEST], rates[FIFO_LEVEL], baseline,
            )
    except PermissionError as error:
        log_progress(f"latency: not measured under SCHED_FIFO, which needs root: {error}")
    return {"baseline_us": baseline, "levels": levels}


def build_lines(figures):
    lines = [
        "## Error of reported latency", "",
        f"The server sends each response {HOLD_NS / 1e6:g} ms after the kernel's timestamp of its request. Its loop"
        " never sleeps, and it records the actual hold time of each response. Error = reported quantile − same quantile"
        f" of the hold times − {figures['baseline_us']:.1f} µs. The last value is the round trip of a C client without"
        " a hold time.",
        "",
        "The C client in the tables makes the same rate with an epoll loop and a clock. Its error is what the machine"
        " adds: waking a sleeping core, and other work on the core.",
        "",
        "The C client, `loadtest` and oha (with `--latency-correction`) measure from the time at which a request was"
        f" due. vegeta and k6 measure from the send time, so compare them with \"{LOADTEST_SERVICE_TIME}\". The error"
        f" of \"{LOADTEST_SERVICE_TIME}\" is negative: `loadtest` stops its clock when the kernel receives the"
        " response, but the round trip of the C client ends when the kernel has woken the client.",
        "",
        f"`loadtest` first increases its rate over {RAMP} s, because an open model without a ramp opens many"
        " connections at once. The C client opens its connections before it starts.", "",
    ]
    for key, level_figures in figures["levels"].items():
        level = key.split()[0]
        results = level_figures["results"]
        order = sorted(results, key=lambda tool: abs(compute_median(results, tool, "p99")))
        dropped = sum(result["dropped"] for result in results[LOADTEST])
        rows = [
            [
                tool, format_value(compute_median(results, tool, "rps")),
                format_percent(compute_median(results, tool, "busy")),
                format_value(compute_median(results, tool, "p50"), "{:+,.0f} µs"),
                format_range(results, tool, "p50", "{:+,.0f}"),
                format_value(compute_median(results, tool, "p99"), "{:+,.0f} µs"),
                format_range(results, tool, "p99", "{:+,.0f}"),
            ]
            for tool in order
        ]
        head = ["tool", "requests/s", "generator core busy", "error of p50", "min–max", "error of p99", "min–max"]
        title = f"### {level_figures['rate']:,} requests/s, chosen so that loadtest uses {level} % of its core"
        if key == FIFO_KEY:
            title += ", under SCHED_FIFO"
        lines += [title, ""]
        if key == FIFO_KEY:
            lines += [
                "Server and generator have the real-time policy SCHED_FIFO, so other programs can't take their cores."
                " The host of a virtual machine still can.", "",
            ]
        lines += format_table(head, rows)
        if dropped:
            lines += [
                f"`loadtest` dropped {dropped} arrivals because no user was free. The quantiles do not include dropped"
                " arrivals.", "",
            ]
    return lines


LATENCY = Case("latency", TOOLS, measure, build_lines)
