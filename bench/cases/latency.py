"""Latency: how far a reported quantile is from the true one, at rates that keep ours busy."""

import json
import pathlib
import tempfile

import ours
from cases import Case
from generators import COMMANDS, Load, k6_metrics, requests_of, vegeta_report
from machine import say
from runs import generate, rounds_of
from tables import cell, median, percent, spread, table
from target import FLOOR, Server, ping, ping_command
from tools import OURS

HOLD_NS = 1_000_000
# Users, or connections, for each request that is open at a rate: enough for a stall, and few
# enough that making them is no hundredth of the requests.
SPARE, FEWEST = 24, 64
# The part of a rate that has to come about for it to be kept.
KEPT = 0.98
PINGS = 3
# Seconds in which ours, and only it, grows to the rate: see Load.
RAMP = 1
# Shares of its core that ours is to be busy.
LEVELS = (10, 50, 80)
LADDER = (500, 1000, 2000, 5000, 10000, 15000, 20000, 30000, 40000, 60000, 80000, 100000, 120000, 150000)
TOOLS = [OURS, "oha", "vegeta", "k6"]
SERVICE = "loadtest, from sent"
QUANTILES = ("p50", "p99")


def connections(rate):
    return max(FEWEST, SPARE * rate * HOLD_NS // 10**9)


def busy_at(context, rate, hold_ns=HOLD_NS):
    """The share of its core that ours needs for a rate, whatever else runs there.

    None when the rate is beyond it, or the server.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        options = ("--hold", hold_ns, folder / "hold.json") if hold_ns is not None else ()
        with Server(*options):
            load = Load(2, rate=rate, connections=connections(rate))
            ran = generate(COMMANDS[OURS](context.paths[OURS], folder, load), folder, load.seconds)
            done = requests_of(OURS, None, folder, ran.out) / load.seconds
    say(f"calibration: {rate:,}/s keep ours {ran.own:.0%} busy, its core {ran.busy:.0%}; {done:,.0f}/s came about")
    return ran.own if done > KEPT * rate else None


def rates_for(context, levels, hold_ns=HOLD_NS):
    """Rates that keep ours so busy: between two steps of a ladder, as on a line."""
    points = [(0, 0.0)]
    for rate in LADDER:
        # Twice, as it may not have been the rate that was too much, but the machine's other work.
        busy = busy_at(context, rate, hold_ns) or busy_at(context, rate, hold_ns)
        if busy is None:
            break
        # A core is no less busy for more requests: what a noisy neighbour takes is not believed.
        points.append((rate, max(points[-1][1], busy)))
        if busy * 100 >= max(levels):
            break
    found = {}
    for level in levels:
        above = next((i for i, (_, busy) in enumerate(points) if busy * 100 >= level), len(points) - 1)
        (low, low_busy), (high, high_busy) = points[above - 1], points[above]
        part = min(1, (level / 100 - low_busy) / max(high_busy - low_busy, 1e-9))
        found[level] = max(100, round((low + part * (high - low)) / 100) * 100)
    return found


def reported(tool, path, folder, out):
    """Quantiles as the tool tells them, in microseconds."""
    if tool == FLOOR:
        told = json.loads(out)
        return {tool: {q: told[q] / 1e3 for q in QUANTILES}}
    if tool == OURS:
        total = ours.result(folder)["total"]
        kinds = {OURS: "responseTime", SERVICE: "serviceTime"}
        return {name: {q: total[kind][q] * 1e6 for q in QUANTILES} for name, kind in kinds.items()}
    if tool == "oha":
        told = json.loads(out)["latencyPercentiles"]
        return {tool: {q: told[q] * 1e6 for q in QUANTILES}}
    if tool == "vegeta":
        told = vegeta_report(path, folder)["latencies"]
        return {tool: {"p50": told["50th"] / 1e3, "p99": told["99th"] / 1e3}}
    told = k6_metrics(folder)["http_req_duration"]
    return {tool: {"p50": told["med"] * 1e3, "p99": told["p(99)"] * 1e3}}


class Holding(Server):
    """A server that holds answers, and leaves its report for the run that it is for."""

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory()
        self.report = pathlib.Path(self.folder.name) / "hold.json"
        super().__init__("--hold", HOLD_NS, self.report)

    def __exit__(self, *error):
        super().__exit__(*error)
        self.folder.cleanup()

    def truth(self):
        self.stop()
        return json.loads(self.report.read_text())


def at_level(context, level, rate, baseline):
    def one(tool, folder):
        path = context.paths.get(tool)
        load = Load(context.seconds, rate=rate, connections=connections(rate), corrected=True, ramp=RAMP)
        if tool == FLOOR:
            line = ping_command(load.seconds, rate, load.connections)
        else:
            line = COMMANDS[tool](path, folder, load)
        ran = generate(line, folder, load.seconds)
        true = Server.current.truth()
        done = json.loads(ran.out)["count"] if tool == FLOOR else requests_of(tool, path, folder, ran.out)
        dropped = ours.result(folder)["total"]["dropped"] if tool == OURS else 0
        if tool == OURS:
            done -= rate * RAMP / 2
        common = {"rps": done / load.seconds, "dropped": dropped, "busy": ran.busy, "own": ran.own, "true": true}
        told = reported(tool, path, folder, ran.out)
        return {
            name: {**common, **{q: quantiles[q] - true[q] / 1e3 - baseline for q in QUANTILES}}
            for name, quantiles in told.items()
        }

    by_tool = rounds_of([*TOOLS, FLOOR], context, f"latency at {level} %", one, Holding)
    results = {}
    for rounds in by_tool.values():
        for one_round in rounds:
            for name, figures in one_round.items():
                results.setdefault(name, []).append(figures)
    return {"rate": rate, "results": results}


def measure(context):
    with tempfile.TemporaryDirectory() as folder:
        pings = [ping(context.seconds, 0, folder) for _ in range(PINGS)]
    # What a round trip takes that is not the server's holding: sockets, the kernel, waking up. The
    # least of them, as all that disturbs one only adds to it.
    baseline = min(trips["p50"] - held["p50"] for trips, held in pings) / 1e3
    say(f"latency: baseline {baseline:.1f} µs")
    rates = rates_for(context, LEVELS)
    say("latency: rates " + ", ".join(f"{level} %: {rate:,}/s" for level, rate in rates.items()))
    return {
        "baseline_us": baseline,
        "levels": {str(level): at_level(context, level, rate, baseline) for level, rate in rates.items()},
    }


def lines(figures):
    found = [
        "## Error of reported latency", "",
        f"The server sends each answer {HOLD_NS / 1e6:g} ms after its request arrived, by the kernel's stamp, with a loop"
        " that never sleeps, and keeps how long each was really held. Error = reported quantile − the same quantile of"
        f" what was held − {figures['baseline_us']:.1f} µs, which is what a round trip of a C client takes when nothing is"
        " held. The C client in the tables has the same rate, a loop over epoll and a clock: its error is what the"
        " machine adds, by waking a core that slept, and by all else that runs on it. It, ours, and oha with"
        " --latency-correction count from when a request was due; vegeta and k6 from when they sent it, so they are to be"
        f" compared with \"{SERVICE}\". That one is off by less than nothing: it ends when the kernel received the answer,"
        f" the C client's round trip when that had woken it. Ours grows to its rate over {RAMP} s before, as an open load"
        " that begins at once begins with a storm of connections; the C client has its connections before it begins.", "",
    ]
    for level, one in figures["levels"].items():
        results = one["results"]
        order = sorted(results, key=lambda tool: abs(median(results, tool, "p99")))
        dropped = sum(one["dropped"] for one in results[OURS])
        rows = [
            [
                tool, cell(median(results, tool, "rps")), percent(median(results, tool, "busy")),
                cell(median(results, tool, "p50"), "{:+,.0f} µs"), spread(results, tool, "p50", "{:+,.0f}"),
                cell(median(results, tool, "p99"), "{:+,.0f} µs"), spread(results, tool, "p99", "{:+,.0f}"),
            ]
            for tool in order
        ]
        head = ["tool", "requests/s", "its core busy", "error of p50", "min–max", "error of p99", "min–max"]
        found += [f"### {one['rate']:,} requests/s, meant to keep ours {level} % busy", "", *table(head, rows)]
        if dropped:
            found += [f"Ours dropped {dropped} arrivals, which found no user free: they are in no quantile here.", ""]
    return found


LATENCY = Case("latency", TOOLS, measure, lines)
