"""The schedule: the delay of requests compared with a constant rate."""

import array
import json
import pathlib
import tempfile

from cases import Case
from generators import COMMANDS, CONNECTIONS, Load, count_requests
from runs import run_generator, run_rounds
from tables import compute_median, format_range, format_table, format_value
from target import C_CLIENT, Server, build_c_client_command
from tools import LOADTEST

RATES = (1000, 5000)
TOOLS = [LOADTEST, "oha", "vegeta"]
QUANTILES = {"p50": 0.5, "p99": 0.99, "max": 1}


class RecordingServer(Server):
    """A server that records the arrival times of requests."""

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory()
        self.file = pathlib.Path(self.folder.name) / "stamps"
        super().__init__("--stamps", self.file)

    def __exit__(self, *error):
        super().__exit__(*error)
        self.folder.cleanup()

    def read_arrivals(self):
        """Returns the arrival times in nanoseconds, ascending."""
        self.stop()
        arrivals = array.array("Q")
        arrivals.frombytes(self.file.read_bytes())
        return sorted(arrivals)


def compute_delays(arrivals, rate):
    """Returns the delay of each arrival in microseconds, ascending.

    Arrival k is due k/rate after the first arrival. This schedule is then shifted so that 1 % of
    the arrivals are early, because the first arrival may itself be late.
    """
    delays = sorted((arrival - arrivals[0]) / 1e3 - k * 1e6 / rate for k, arrival in enumerate(arrivals))
    zero = delays[len(delays) // 100]
    return [delay - zero for delay in delays]


def measure(context):
    def measure_rate(rate):
        def run_once(tool, folder):
            load, path = Load(context.seconds, rate=rate), context.paths.get(tool)
            if tool == C_CLIENT:
                command = build_c_client_command(load.seconds, rate, CONNECTIONS)
            else:
                command = COMMANDS[tool](path, folder, load)
            run = run_generator(command, folder, load.seconds)
            if tool == C_CLIENT:
                requests = json.loads(run.stdout)["count"]
            else:
                requests = count_requests(tool, path, folder, run.stdout)
            delays = compute_delays(Server.current.read_arrivals(), rate)
            quantiles = {name: delays[int(q * (len(delays) - 1))] for name, q in QUANTILES.items()}
            return {**quantiles, "early": -delays[0], "arrivals": len(delays), "rps": requests / context.seconds}

        return run_rounds([*TOOLS, C_CLIENT], context, f"schedule at {rate}/s", run_once, RecordingServer)

    return {str(rate): measure_rate(rate) for rate in RATES}


def build_lines(figures):
    lines = [
        "## Error of the schedule", "",
        "The delay of each request compared with a constant rate. Arrival times are the kernel's timestamps. Each tool"
        f" has {CONNECTIONS} connections. Arrival k is due k/rate after the first arrival. This schedule is then"
        " shifted so that 1 % of the arrivals are early, which is the best fit for each tool. The start of the tool is"
        " included. The C client consists of an epoll loop and a clock, so its delay is the machine's.", "",
    ]
    for rate, results in figures.items():
        rows = [
            [
                tool, format_value(compute_median(results, tool, "rps")),
                *(format_value(compute_median(results, tool, q), "{:,.0f} µs") for q in QUANTILES),
                format_range(results, tool, "max", "{:,.0f}"),
            ]
            for tool in sorted(results, key=lambda tool: compute_median(results, tool, "p99"))
        ]
        head = ["tool", "requests/s", "delay p50", "p99", "max, median of rounds", "max, min–max of rounds"]
        lines += [f"### {int(rate):,} requests/s", "", *format_table(head, rows)]
    return lines


SCHEDULE = Case("schedule", TOOLS, measure, build_lines)
