"""First responses: what is measured of a chat, against what the simulator knows of it."""

import csv
import json
import math
import pathlib
import tempfile
import urllib.request

import ours
from cases import Case
from machine import GENERATOR_CORE, SERVER_CORE, Busy, end, pinned, say, until
from tables import table
from tools import OURS, SIMULATOR

HTTP_PORT, CONTROL_PORT = 18991, 18993
# An answer of 16 tokens, 10 ms apart, the first after 50 ms.
SETTINGS = "chat: {latency: 50ms, tokens: 16, tokenGap: 10ms}\n"
# Answers a second that are tried, one after the other, until ours or the simulator is half busy.
RATES = (200, 800, 1600, 2400, 3200, 4000, 4800)
HALF = 0.5
QUANTILES = {"p50": 0.50, "p95": 0.95, "p99": 0.99}
# Where ours is counted from, and how that is said.
ORIGINS = {"due": "from when a chat was due", "sent": "from when it was sent"}


class Simulator:
    """The stand-in for Cell 0, on the server's core, with the truth of each run."""

    def __init__(self, path):
        self.path = path

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory()
        settings = pathlib.Path(self.folder.name) / "settings.yaml"
        settings.write_text(SETTINGS)
        ports = ["--http-port", HTTP_PORT, "--websocket-port", 18992, "--control-port", CONTROL_PORT]
        line = [self.path, "--settings", str(settings), "--address", "127.0.0.1", *map(str, ports)]
        log = (pathlib.Path(self.folder.name) / "log").open("w")
        self.process = pinned(SERVER_CORE, line, stdout=log, stderr=log)
        until(self.answers, 5, "a simulator that listens")
        return self

    def get(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{CONTROL_PORT}{path}", timeout=10) as answer:
            return json.loads(answer.read())

    def answers(self):
        try:
            return self.get("/truth") is not None
        except OSError:
            return False

    def truth(self):
        """Quantiles of the latest run's first tokens, in nanoseconds."""
        runs = [one["run"] for one in self.get("/truth")["runs"] if one["run"].startswith("local-")]
        return self.get(f"/truth/{max(runs)}")["endpoints"]["chat"]["successful"]["timeToFirstResponse"]

    def __exit__(self, *_):
        end(self.process)
        self.folder.cleanup()


def from_sent(record):
    """Every time to a first response, from when its request was sent, in microseconds; sorted."""
    with record.open() as file:
        rows = [row for row in csv.DictReader(file) if row["outcome"] == "success"]
        return sorted((float(row["first_response"]) - float(row["sent"])) * 1e6 for row in rows)


def at(context, rate):
    task = {"name": "chat", "chat": {"models": ["cell0-small"], "messages": ["Hello"], "stream": True}}
    # It grows to the rate, as in the case of latencies: a storm of connections is another thing.
    load = {**ours.opened(rate, max(64, rate), context.seconds, ramp=1), "gracefulStop": "5s"}
    target = {"http": f"http://127.0.0.1:{HTTP_PORT}"}
    with Simulator(context.paths[SIMULATOR]) as simulator, tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        line = ours.command(context.paths[OURS], folder, ours.spec([task], load, target))
        line += ["--record", str(folder / "record.csv")]
        with (folder / "out").open("w") as out:
            busy, simulators = Busy(GENERATOR_CORE), Busy(SERVER_CORE)
            pinned(GENERATOR_CORE, line, stdout=out, stderr=out, cwd=folder).wait(context.seconds + 60)
            shares = {"busy": busy.share(), "simulator_busy": simulators.share()}
        found = ours.result(folder)["total"]["timeToFirstResponse"]
        sent = from_sent(folder / "record.csv")
        true = simulator.truth()
    assert true["count"] == found["count"] == len(sent), (true, found, len(sent))
    return {
        **shares,
        "due": {q: found[q] * 1e6 for q in QUANTILES},
        "sent": {q: sent[math.ceil(part * len(sent)) - 1] for q, part in QUANTILES.items()},
        "true": {q: true[q] / 1e3 for q in QUANTILES},
    }


def measure(context):
    for rate in RATES:
        one = at(context, rate)
        say(f"first: {rate}/s keep its core {one['busy']:.0%} busy, the simulator's {one['simulator_busy']:.0%}")
        if max(one["busy"], one["simulator_busy"]) >= HALF:
            break
    else:
        raise RuntimeError(f"neither side is half busy at {rate} chats a second: add a higher rate")
    rounds = [at(context, rate) for _ in range(context.rounds)]
    return {"rate": rate, "rounds": rounds}


def errors(figures, origin, quantile):
    """What ours says more than was, in microseconds, of each round."""
    return sorted(one[origin][quantile] - one["true"][quantile] for one in figures["rounds"])


def middle(found):
    return found[len(found) // 2]


def median_of(figures, key):
    return middle(sorted(one[key] for one in figures["rounds"]))


def lines(figures):
    busy, simulators = median_of(figures, "busy"), median_of(figures, "simulator_busy")
    rows = []
    for quantile in QUANTILES:
        true = middle(sorted(one["true"][quantile] for one in figures["rounds"]))
        row = [quantile, f"{true / 1e3:.2f} ms"]
        for origin in ORIGINS:
            found = errors(figures, origin, quantile)
            row += [f"{middle(found):+,.0f} µs", f"{found[0]:+,.0f}–{found[-1]:+,.0f}"]
        rows.append(row)
    head = ["quantile", "the simulator's"]
    for name in ORIGINS.values():
        head += [f"ours more, {name}", "min–max"]
    return [
        f"## Time to first response: {figures['rate']:,} chats a second", "",
        "The simulator notes when a chat had come, by the kernel's stamp of its last packet, and when its first content"
        " token was written; ours when that token had come. From when a chat was sent, which is out of the raw record, is"
        " what the simulator can know of; ours counts from when it was due, so what it was sent late is in that: mostly"
        f" moments in which the machine stood still. Its core was {busy:.0%} busy, the simulator's {simulators:.0%}; each"
        " answer has 16 tokens, 10 ms apart.", "",
        *table(head, rows),
    ]


FIRST = Case("first", [OURS, SIMULATOR], measure, lines)
