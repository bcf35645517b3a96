"""The targets, and how far they are met: computed from the figures of the cases."""

from cases.first import ORIGINS, QUANTILES, errors, median_of, middle
from cases.latency import SERVICE
from tables import median, table
from target import FLOOR
from tools import OURS

PYTHON = ("locust", "guidellm", "aiperf")
SOCKETS = "15000"


def lines(figures):
    """The table; figures are those of each case that has run, by its name."""
    rows = [row for make in ALL for row in make(figures)]
    return ["## Targets", "", *table(["what", "target", "measured", ""], [shown(*row) for row in rows])]


def shown(what, target, measured, met):
    if met is None:
        return [what, target, "not measured", "–"]
    return [what, target, measured, "met" if met else "**not met**"]


def at_least(what, value, bound, form):
    return what, "≥ " + form.format(bound), value and form.format(value), None if value is None else value >= bound


def at_most(what, value, bound, form):
    measured = None if value is None else form.format(value)
    return what, "≤ " + form.format(bound), measured, None if value is None else value <= bound


def over(results, tool, figure):
    """Ours divided by a tool's, of the medians; None when one of them is missing."""
    ours, its = median(results, OURS, figure), median(results, tool, figure)
    return ours / its if ours and its else None


def fastest(figures):
    results = figures.get("max", {})
    for tool, bound in (("wrk", 1.0), ("oha", 1.2), ("k6", 6.0), ("locust", 10.0)):
        yield at_least(f"highest rate, tiny GET, beside {tool}", over(results, tool, "rps"), bound, "{:.2f} ×")


def cpu(figures):
    for key, server in (("10000", "a server that sleeps"), ("awake", "one that never sleeps")):
        results = figures.get("rate", {}).get(key, {})
        value = over(results, "oha", "cpu_us")
        yield at_most(f"CPU per request at 10,000/s to {server}, beside oha", value, 1.0, "{:.2f} ×")


def memory(figures):
    steps = figures.get("idle", {}).get(OURS)
    value = None
    if steps:
        low, high = min(steps, key=int), max(steps, key=int)
        value = (steps[high]["rss"] - steps[low]["rss"]) / (int(high) - int(low)) / 1024
    yield at_most("memory for one more user that waits", value, 8.0, "{:.2f} KiB")


def sockets(figures):
    one = figures.get("sockets", {}).get(OURS, {}).get(SOCKETS)
    yield at_most(f"{int(SOCKETS):,} WebSockets held open", one and one["rss"] / 2**20, 150, "{:.0f} MiB")


def chat(figures):
    results = figures.get("chat", {})
    yield at_least("events of streamed chat in a second", median(results, OURS, "eps"), 200_000, "{:,.0f}")
    for tool in PYTHON:
        yield at_least(f"events of streamed chat, beside {tool}", over(results, tool, "eps"), 20.0, "{:.1f} ×")


def latency(figures):
    levels = figures.get("latency", {}).get("levels", {})
    for level, name, bound in (("50", "half a core", 50), ("80", "80 % of a core", 200)):
        one = levels.get(level, {"results": {}})
        results = one["results"]
        at = f"at {name}"
        if busy := median(results, OURS, "busy"):
            at += f" ({one['rate']:,}/s, {busy * 100:.0f} % busy)"
        yield off_by(f"service time, error of p99, {at}", median(results, SERVICE, "p99"), bound)
        if floor := median(results, FLOOR, "p99"):
            at += f"; the C client's: {floor:,.0f} µs"
        yield off_by(f"response time, error of p99, {at}", median(results, OURS, "p99"), bound)


def off_by(what, error, bound):
    return at_most(what, None if error is None else abs(error), bound, "{:,.0f} µs")


def first(figures):
    figures = figures.get("first")
    for origin, name in ORIGINS.items():
        worst = figures and max((middle(errors(figures, origin, quantile)) for quantile in QUANTILES), key=abs)
        what = f"time to first response {name}, off the simulator's, p50 to p99, at half load"
        if figures:
            share = max(median_of(figures, key) for key in ("busy", "simulator_busy"))
            what += f" ({figures['rate']:,} chats/s, the busier of the two {share:.0%} busy)"
        yield off_by(what, worst, 1000)


def schedule(figures):
    rates = figures.get("schedule", {})
    for quantile, bound in (("p99", 100), ("max", 1000)):
        # The worse of the rates.
        worst = lambda tool: max((median(results, tool, quantile) for results in rates.values()), default=None)
        what = f"error of the schedule, {quantile}"
        if rates:
            what += f" (the C client's: {worst(FLOOR):,.0f} µs)"
        yield at_most(what, worst(OURS), bound, "{:,.0f} µs")


ALL = [fastest, cpu, memory, sockets, chat, first, latency, schedule]
