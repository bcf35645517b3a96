"""The performance targets. The measured values come from the figures of the cases."""

from cases.first_response import ORIGINS, QUANTILES, list_errors, middle_of, middle_of_rounds
from cases.http import COARSE_PRECISION, LOADTEST_COARSE, MANY_CONNECTIONS
from cases.latency import FIFO_KEY, LOADTEST_SERVICE_TIME
from cases.memory import compute_bytes_per_user
from tables import compute_median, format_table
from target import C_CLIENT
from tools import LOADTEST

PYTHON_TOOLS = ("locust", "guidellm", "aiperf")
SOCKETS = "15000"


def build_table(figures):
    """Returns the lines of the table. Figures are given by the name of their case."""
    rows = [build_row(*target) for list_targets in TARGETS for target in list_targets(figures)]
    return ["## Targets", "", *format_table(["measure", "target", "measured", "result"], rows)]


def build_row(description, target, measured, is_met):
    if is_met is None:
        return [description, target, "not measured", "–"]
    return [description, target, measured, "met" if is_met else "**not met**"]


def at_least(description, value, bound, form):
    measured = value and form.format(value)
    return description, "≥ " + form.format(bound), measured, None if value is None else value >= bound


def at_most(description, value, bound, form):
    measured = None if value is None else form.format(value)
    return description, "≤ " + form.format(bound), measured, None if value is None else value <= bound


def error_at_most(description, error, bound):
    return at_most(description, None if error is None else abs(error), bound, "{:,.0f} µs")


def compute_ratio(results, tool, figure, own_tool=LOADTEST):
    """Returns the median of `loadtest` divided by the median of a tool; None if one is missing."""
    own, other = compute_median(results, own_tool, figure), compute_median(results, tool, figure)
    return own / other if own and other else None


def list_max_rate_targets(figures):
    results = figures.get("max", {})
    for tool, bound in (("wrk", 1.03), ("oha", 1.2), ("k6", 6.0), ("locust", 10.0)):
        value = compute_ratio(results, tool, "rps")
        yield at_least(f"highest rate, small GET, loadtest ÷ {tool}", value, bound, "{:.2f} ×")
    value = compute_ratio(figures.get("max256", {}), "wrk", "rps")
    description = f"highest rate, small GET, {MANY_CONNECTIONS} connections, loadtest ÷ wrk"
    yield at_least(description, value, 1.03, "{:.2f} ×")


def list_cpu_targets(figures):
    for key, server in (("10000", "a server that sleeps"), ("awake", "a server that never sleeps")):
        results = figures.get("rate", {}).get(key, {})
        value = compute_ratio(results, "oha", "cpu_us")
        description = f"CPU time per request at 10,000/s to {server}, loadtest ÷ oha"
        yield at_most(description, value, 1.0, "{:.2f} ×")
        value = compute_ratio(results, "oha", "cpu_us", LOADTEST_COARSE)
        yield at_most(f"{description}, precision {COARSE_PRECISION}", value, 1.0, "{:.2f} ×")


def list_memory_targets(figures):
    steps = figures.get("idle", {}).get(LOADTEST)
    value = compute_bytes_per_user(steps) / 1024 if steps else None
    yield at_most("memory per additional waiting user", value, 8.0, "{:.2f} KiB")


def list_socket_targets(figures):
    step = figures.get("sockets", {}).get(LOADTEST, {}).get(SOCKETS)
    yield at_most(f"memory with {int(SOCKETS):,} open WebSockets", step and step["rss"] / 2**20, 150, "{:.0f} MiB")


def list_chat_targets(figures):
    results = figures.get("chat", {})
    yield at_least("events/s of streamed chat", compute_median(results, LOADTEST, "eps"), 200_000, "{:,.0f}")
    for tool in PYTHON_TOOLS:
        value = compute_ratio(results, tool, "eps")
        yield at_least(f"events/s of streamed chat, loadtest ÷ {tool}", value, 20.0, "{:.1f} ×")


def list_latency_targets(figures):
    levels = figures.get("latency", {}).get("levels", {})
    for level, name, bound in (
        ("50", "half a core", 50), (FIFO_KEY, "half a core under SCHED_FIFO", 50), ("80", "80 % of a core", 200),
    ):
        level_figures = levels.get(level, {"results": {}})
        results = level_figures["results"]
        load = f"at {name}"
        if busy := compute_median(results, LOADTEST, "busy"):
            load += f" ({level_figures['rate']:,}/s, {busy * 100:.0f} % busy)"
        yield error_at_most(
            f"service time, error of p99, {load}", compute_median(results, LOADTEST_SERVICE_TIME, "p99"), bound,
        )
        if c_client := compute_median(results, C_CLIENT, "p99"):
            load += f"; C client: {c_client:,.0f} µs"
        yield error_at_most(f"response time, error of p99, {load}", compute_median(results, LOADTEST, "p99"), bound)


def list_first_response_targets(figures):
    figures = figures.get("first")
    for origin, name in ORIGINS.items():
        worst = figures and max(
            (middle_of(list_errors(figures, origin, quantile)) for quantile in QUANTILES), key=abs,
        )
        description = f"time to first response {name}, largest error of p50, p95 and p99, at half load"
        if figures:
            share = max(middle_of_rounds(figures, key) for key in ("busy", "simulator_busy"))
            description += f" ({figures['rate']:,} chats/s, the busier core {share:.0%} busy)"
        yield error_at_most(description, worst, 1000)


def list_schedule_targets(figures):
    rates = figures.get("schedule", {})

    def worst_of_rates(tool, quantile):
        return max((compute_median(results, tool, quantile) for results in rates.values()), default=None)

    for quantile, bound in (("p99", 100), ("max", 1000)):
        description = f"error of the schedule, {quantile}"
        if rates:
            description += f" (C client: {worst_of_rates(C_CLIENT, quantile):,.0f} µs)"
        yield at_most(description, worst_of_rates(LOADTEST, quantile), bound, "{:,.0f} µs")


def list_live_targets(figures):
    results = figures.get("live", {}).get("results", {})
    alone, watched = (compute_median(results, view, "watching_ms") for view in ("none", "both"))
    cost = None if alone is None or watched is None else (watched - alone) / 10
    yield at_most("live page and terminal view of 1,000 requests/s, share of a core", cost, 3.0, "{:.2f} %")


TARGETS = [
    list_max_rate_targets, list_cpu_targets, list_memory_targets, list_socket_targets, list_chat_targets,
    list_first_response_targets, list_latency_targets, list_schedule_targets,
    list_live_targets,
]
