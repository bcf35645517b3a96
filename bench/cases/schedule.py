"""The schedule: how far requests arrive from when a constant rate wants them."""

import array
import json
import pathlib
import tempfile

from cases import Case
from generators import COMMANDS, CONNECTIONS, Load, requests_of
from runs import generate, rounds_of
from tables import cell, median, spread, table
from target import FLOOR, Server, ping_command
from tools import OURS

RATES = (1000, 5000)
TOOLS = [OURS, "oha", "vegeta"]


class Stamping(Server):
    """A server that keeps the moments at which requests arrived."""

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory()
        self.file = pathlib.Path(self.folder.name) / "stamps"
        super().__init__("--stamps", self.file)

    def __exit__(self, *error):
        super().__exit__(*error)
        self.folder.cleanup()

    def arrivals(self):
        """Nanoseconds, ascending."""
        self.stop()
        stamps = array.array("Q")
        stamps.frombytes(self.file.read_bytes())
        return sorted(stamps)


def lateness(arrivals, rate):
    """Microseconds by which each is later than the schedule that fits best, ascending.

    The k-th is due k/rate after the first; that schedule is moved so that one arrival in a
    hundred is early. A first arrival that was late is no excuse for all the others.
    """
    late = sorted((at - arrivals[0]) / 1e3 - k * 1e6 / rate for k, at in enumerate(arrivals))
    zero = late[len(late) // 100]
    return [one - zero for one in late]


def measure(context):
    def at(rate):
        def one(tool, folder):
            load, path = Load(context.seconds, rate=rate), context.paths.get(tool)
            line = ping_command(load.seconds, rate, CONNECTIONS) if tool == FLOOR else COMMANDS[tool](path, folder, load)
            ran = generate(line, folder, load.seconds)
            done = json.loads(ran.out)["count"] if tool == FLOOR else requests_of(tool, path, folder, ran.out)
            late = lateness(Server.current.arrivals(), rate)
            found = {name: late[int(q * (len(late) - 1))] for name, q in [("p50", 0.5), ("p99", 0.99), ("max", 1)]}
            return {**found, "early": -late[0], "arrivals": len(late), "rps": done / context.seconds}

        return rounds_of([*TOOLS, FLOOR], context, f"schedule at {rate}/s", one, Stamping)

    return {str(rate): at(rate) for rate in RATES}


def lines(figures):
    found = [
        "## Error of the schedule", "",
        f"How much later than a constant rate wants it each request arrives, by the kernel's stamp, with {CONNECTIONS}"
        " connections. The schedule is the one that fits the tool best: arrival k is due k/rate after the first, moved so"
        " that one arrival in a hundred is early. Start-up is in it. The C client is a loop over epoll and a clock:"
        " what it is late by, the machine is.", "",
    ]
    for rate, results in figures.items():
        rows = [
            [
                tool, cell(median(results, tool, "rps")),
                *(cell(median(results, tool, q), "{:,.0f} µs") for q in ("p50", "p99", "max")),
                spread(results, tool, "max", "{:,.0f}"),
            ]
            for tool in sorted(results, key=lambda tool: median(results, tool, "p99"))
        ]
        head = ["tool", "requests/s", "late, p50", "p99", "max, median of rounds", "min–max of it"]
        found += [f"### {int(rate):,} requests/s", "", *table(head, rows)]
    return found


SCHEDULE = Case("schedule", TOOLS, measure, lines)
