"""Tables of results, and the figures in their cells."""

import statistics


def format_table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows] + [""]


def list_values(results, tool, figure):
    return [result[figure] for result in results.get(tool, []) if result.get(figure) is not None]


def compute_median(results, tool, figure):
    values = list_values(results, tool, figure)
    return statistics.median(values) if values else None


def format_range(results, tool, figure, form="{:,.1f}"):
    values = list_values(results, tool, figure)
    return f"{form.format(min(values))}–{form.format(max(values))}" if values else "–"


def format_value(value, form="{:,.0f}"):
    return "–" if value is None else form.format(value)


def format_ratio(results, first_tool, second_tool, figure):
    first, second = compute_median(results, first_tool, figure), compute_median(results, second_tool, figure)
    return f"{first / second:.2f}" if first and second else "–"


def sort_by_rate(results, figure):
    """Returns the tools, fastest first."""
    return sorted(results, key=lambda tool: -(compute_median(results, tool, figure) or 0))


def format_percent(value):
    return format_value(value and value * 100, "{:.0f} %")
