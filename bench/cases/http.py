"""Plain requests: the highest rate, and the CPU time per request at a fixed rate."""

from cases import Case
from generators import CONNECTIONS, Load, measure_run
from runs import run_rounds
from tables import compute_median, format_percent, format_range, format_ratio, format_table, format_value, sort_by_rate
from target import Server
from tools import LOADTEST

BODY = "x" * 2048
MAX_RATE_TOOLS = ["wrk", "h2load", "oha", "k6", "locust", LOADTEST]
# Above this share of its core, the server may be the bottleneck instead of the generator.
SERVER_FULL = 0.85
RATES = (1000, 5000, 10000, 20000)
# This rate is also measured with a server that never sleeps.
AWAKE_RATE = 10000
# `loadtest` with `precision`: arrivals of a millisecond start together.
COARSE_PRECISION = "1ms"
LOADTEST_COARSE = f"{LOADTEST}, precision {COARSE_PRECISION}"
MANY_CONNECTIONS = 256


def build_max_rate_case(name, title, tools=MAX_RATE_TOOLS, note=None, **load):
    def measure(context):
        def run_once(tool, folder):
            return measure_run(tool, context.paths[tool], folder, Load(context.seconds, **load))

        return run_rounds(tools, context, name, run_once, lambda: Server(tls=load.get("tls", False)))

    def build_lines(results):
        head = [
            "tool", "requests/s, median", "min–max", "CPU time per request", "server CPU", "loadtest ÷ tool",
        ]
        rows = [
            [
                tool, format_value(compute_median(results, tool, "rps")),
                format_range(results, tool, "rps", "{:,.0f}"),
                format_value(compute_median(results, tool, "cpu_us"), "{:.1f} µs"),
                format_percent(compute_median(results, tool, "server_busy")),
                format_ratio(results, LOADTEST, tool, "rps"),
            ]
            for tool in sort_by_rate(results, "rps")
        ]
        lines = [f"## {title}", "", *([note, ""] if note else []), *format_table(head, rows)]
        busy = {tool: compute_median(results, tool, "server_busy") or 0 for tool in results}
        if full := [tool for tool in results if busy[tool] > SERVER_FULL]:
            lines += [
                f"With {', '.join(full)}, the server uses nearly its whole core, so the generator may be able to make"
                " a higher rate than shown.", "",
            ]
        return lines

    return Case(name, tools, measure, build_lines)


def list_tools_at(rate):
    # k6 can't make a higher rate on one core.
    return [LOADTEST, LOADTEST_COARSE, "oha", "vegeta"] + (["k6"] if rate <= 10000 else [])


def measure_fixed_rates(context):
    def measure_rate(rate, *options):
        def run_once(tool, folder):
            is_coarse = tool == LOADTEST_COARSE
            load = Load(context.seconds, rate=rate, precision=COARSE_PRECISION if is_coarse else None)
            tool = LOADTEST if is_coarse else tool
            return measure_run(tool, context.paths[tool], folder, load)

        label = " ".join([f"{rate}/s", *options])
        return run_rounds(list_tools_at(rate), context, label, run_once, lambda: Server(*options))

    figures = {str(rate): measure_rate(rate) for rate in RATES}
    return {**figures, "awake": measure_rate(AWAKE_RATE, "--awake")}


def build_fixed_rate_lines(figures):
    lines = [
        "## CPU time per request at a fixed rate", "",
        "A request to a sleeping server also costs the client the CPU time for waking the server. A tool that sends"
        f" many requests at once wakes the server once. {AWAKE_RATE:,}/s is therefore also measured with a server that"
        " never sleeps. With `precision: 1ms`, `loadtest` starts the arrivals of each millisecond together, as the"
        " timer of oha does.", "",
    ]
    for key, results in figures.items():
        head = ["tool", "requests/s", "CPU time per request, median", "min–max", "loadtest ÷ tool"]
        rows = [
            [
                tool, format_value(compute_median(results, tool, "rps")),
                format_value(compute_median(results, tool, "cpu_us"), "{:.1f} µs"),
                format_range(results, tool, "cpu_us"), format_ratio(results, LOADTEST, tool, "cpu_us"),
            ]
            for tool in reversed(sort_by_rate(results, "cpu_us"))
        ]
        rate, server = (AWAKE_RATE, ", server that never sleeps") if key == "awake" else (int(key), "")
        lines += [f"### Target rate {rate:,} requests/s{server}", "", *format_table(head, rows)]
    return lines


MAX = build_max_rate_case("max", f"Highest rate: {CONNECTIONS} connections, small GET, one core")
MAX_MANY = build_max_rate_case(
    "max256", f"Highest rate: {MANY_CONNECTIONS} connections, small GET, one core",
    tools=["wrk", "h2load", "oha", LOADTEST], connections=MANY_CONNECTIONS,
)
POST = build_max_rate_case("post", f"Highest rate: {CONNECTIONS} connections, POST of 2 KB, one core", body=BODY)
TLS = build_max_rate_case(
    "tls", f"Highest rate over TLS 1.3: {CONNECTIONS} keep-alive connections, small GET, one core", tls=True,
    note="All tools use the same cipher, AES-128-GCM. The certificate is self-signed and no tool verifies it.",
)
RATE = Case("rate", [LOADTEST, "oha", "vegeta", "k6"], measure_fixed_rates, build_fixed_rate_lines)
