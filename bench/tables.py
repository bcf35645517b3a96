"""Tables of results, and what goes into their cells."""

import statistics


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows] + [""]


def values(results, tool, figure):
    return [one[figure] for one in results.get(tool, []) if one.get(figure) is not None]


def median(results, tool, figure):
    found = values(results, tool, figure)
    return statistics.median(found) if found else None


def spread(results, tool, figure, shown="{:,.1f}"):
    found = values(results, tool, figure)
    return f"{shown.format(min(found))}–{shown.format(max(found))}" if found else "–"


def cell(value, shown="{:,.0f}"):
    return "–" if value is None else shown.format(value)


def ratio(results, ours, tool, figure):
    a, b = median(results, ours, figure), median(results, tool, figure)
    return f"{a / b:.2f}" if a and b else "–"


def by_rate(results, figure):
    """Tools, the fastest first."""
    return sorted(results, key=lambda tool: -(median(results, tool, figure) or 0))


def percent(value):
    return cell(value and value * 100, "{:.0f} %")
