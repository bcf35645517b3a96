"""Plain requests: the highest rate, and CPU for a request at a fixed one."""

from cases import Case
from generators import CONNECTIONS, Load, measure
from runs import rounds_of
from tables import by_rate, cell, median, percent, ratio, spread, table
from target import Server
from tools import OURS

BODY = "x" * 2048
ALL_OUT = ["wrk", "h2load", "oha", "k6", "locust", OURS]
# Of the server's core: from here on it may be what holds a generator back.
FULL = 0.85
RATES = (1000, 5000, 10000, 20000)
# At one of them also to a server that never sleeps, in figures of their own.
AWAKE = 10000


def highest(name, title, tools=ALL_OUT, note=None, **load):
    def run(context):
        def one(tool, folder):
            return measure(tool, context.paths[tool], folder, Load(context.seconds, **load))

        return rounds_of(tools, context, name, one, lambda: Server(tls=load.get("tls", False)))

    def lines(results):
        head = ["tool", "requests/s, median", "min–max", "CPU per request", "server's core, used by it", "ours ÷ it"]
        rows = [
            [
                tool, cell(median(results, tool, "rps")), spread(results, tool, "rps", "{:,.0f}"),
                cell(median(results, tool, "cpu_us"), "{:.1f} µs"),
                percent(median(results, tool, "server_busy")), ratio(results, OURS, tool, "rps"),
            ]
            for tool in by_rate(results, "rps")
        ]
        found = [f"## {title}", "", *([note, ""] if note else []), *table(head, rows)]
        if full := [tool for tool in results if (median(results, tool, "server_busy") or 0) > FULL]:
            found += [f"With {', '.join(full)} the server's core is nearly full: more could not be seen here.", ""]
        return found

    return Case(name, tools, run, lines)


def tools_at(rate):
    # k6 does not reach more on a core.
    return [OURS, "oha", "vegeta"] + (["k6"] if rate <= 10000 else [])


def fixed(context):
    def at(rate, *options):
        def one(tool, folder):
            return measure(tool, context.paths[tool], folder, Load(context.seconds, rate=rate))

        return rounds_of(tools_at(rate), context, " ".join([f"{rate}/s", *options]), one, lambda: Server(*options))

    return {**{str(rate): at(rate) for rate in RATES}, "awake": at(AWAKE, "--awake")}


def fixed_lines(figures):
    lines = [
        "## CPU per request at a fixed rate", "",
        "Who sends to a server that sleeps pays for waking it; a tool that sends many requests at once wakes it once. At"
        f" {AWAKE:,}/s also to a server that never sleeps.", "",
    ]
    for rate, results in figures.items():
        head = ["tool", "requests/s", "CPU per request, median", "min–max", "ours ÷ it"]
        rows = [
            [
                tool, cell(median(results, tool, "rps")), cell(median(results, tool, "cpu_us"), "{:.1f} µs"),
                spread(results, tool, "cpu_us"), ratio(results, OURS, tool, "cpu_us"),
            ]
            for tool in reversed(by_rate(results, "cpu_us"))
        ]
        asked, server = (AWAKE, ", of a server that never sleeps") if rate == "awake" else (int(rate), "")
        lines += [f"### {asked:,} requests/s asked for{server}", "", *table(head, rows)]
    return lines


MAX = highest("max", f"Highest rate: {CONNECTIONS} connections, tiny GET, one core")
POST = highest("post", f"Highest rate: {CONNECTIONS} connections, POST of 2 KB, one core", body=BODY)
TLS = highest(
    "tls", f"Highest rate over TLS 1.3: {CONNECTIONS} connections kept open, tiny GET, one core", tls=True,
    note="One cipher for all, AES-128-GCM; nobody checks the certificate, which is self-signed.",
)
RATE = Case("rate", [OURS, "oha", "vegeta", "k6"], fixed, fixed_lines)
