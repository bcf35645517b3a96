#!/usr/bin/env python3
"""Figures of the operator on a cluster: with many tests and runners, and over hours.

    bench/operator_figures.py [--record] < LINES

Reads what e2e/src/bin/scale prints and prints it as a table. With --record, it writes the figures to bench/scale.json
and to a plot in docs/images. After that, `bench/bench.py --cases none` writes them to bench/RESULTS.md. Without
--record, the program exits with 1 if a goal is not met.
"""

import argparse
import json
import sys
import time

from machine import describe_machine
from plot import draw_lines
from tables import format_table
from tools import ROOT, read_commit

IMAGES = ROOT / "docs" / "images"


def describe_origin(command):
    """Returns when, from what and with what command figures are measured."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": read_commit(),
        "machine": describe_machine(),
        "command": command,
    }


def with_goal(text, value, goal, goal_text):
    """Returns a cell with a figure, the goal for it, and whether it is met."""
    if goal is None:
        return text
    return f"{text} (goal {goal_text}: {'met' if value <= goal else '**not met**'})"


def meets_goals(row):
    figures = [(row["memory_mib"], row.get("memory_goal")), (row["cores"], row.get("cores_goal"))]
    if row.get("figure"):
        figures.append((row["figure"]["value"], row["figure"]["goal"]))
    return all(goal is None or (value is not None and value <= goal) for value, goal in figures)


def describe_figure(figure):
    """Returns a figure with its goal; nothing for `None`."""
    if figure is None:
        return []
    value, goal, unit = figure["value"], figure["goal"], figure["unit"]
    if value is None:
        return [f"{figure['what']} unknown (goal ≤ {goal:g} {unit}: **not met**)"]
    return [with_goal(f"{figure['what']} {value:.1f} {unit}", value, goal, f"≤ {goal:g} {unit}")]


def build_scale_table(rows):
    cells = []
    for row in rows:
        memory, cores = row["memory_mib"], row["cores"]
        memory_goal, cores_goal = row.get("memory_goal"), row.get("cores_goal")
        cells.append([
            row["what"],
            with_goal(f"{memory:.0f} MiB", memory, memory_goal, f"≤ {memory_goal} MiB"),
            with_goal(f"{cores:.1%}", cores, cores_goal, f"≤ {cores_goal or 0:.0%}"),
            "; ".join(filter(None, [*describe_figure(row.get("figure")), row["note"]])),
        ])
    return format_table(["what runs", "memory, largest", "CPU, share of a core", ""], cells)


def build_soak_table(rows):
    def format_row(row):
        if row["change"] is None:
            return [row["process"], "not there all the time", "", "", f"{row['largest_mib']:.1f}", ""]
        mebibytes = [f"{row[key]:.1f}" for key in ("early_mib", "late_mib", "largest_mib")]
        return [row["process"], *mebibytes[:2], f"{row['change']:+.1%}", mebibytes[2], f"{row['cores']:.1%}"]

    head = ["process", "MiB at first", "MiB at last", "change", "MiB at most", "CPU, share of a core"]
    return format_table(head, [format_row(row) for row in rows])


def format_origin(record):
    return f"{record['date']}, commit {record['commit']}, {record['machine']}. Command: `{record['command']}`."


def build_lines(folder):
    """Returns the sections of RESULTS.md about the figures that are recorded in a folder."""
    lines = []
    scale, soak = folder / "scale.json", folder / "soak.json"
    if scale.exists():
        record = json.loads(scale.read_text())
        lines += [
            "## The operator with many tests and runners", "", format_origin(record),
            "The pods are pretended: kwok plays the node, and a program answers as the runners, with expositions that"
            " grow as those of four chat tasks. The API server, etcd and the pretended runners share the machine's cores"
            " with the operator. Memory is the resident memory of the leader.",
            "", *build_scale_table(record["rows"]),
        ]
    if soak.exists():
        record = json.loads(soak.read_text())
        lines += [
            "## Memory over hours", "", format_origin(record),
            f"{record['hours']:g} h of {record['users']} users against the simulator, {record['requests']:,} requests,"
            f" and {record['short_tests']} tests of 20 s beside them. Memory is anonymous resident memory: the"
            " highest median of five minutes in the first half of the time, without its first sixth, and in the second"
            " half. Goal: a rise of at most 5 %.",
            "", *build_soak_table(record["rows"]),
        ]
    return lines


def draw_curve(rows):
    """A plot of memory and CPU time against the number of running tests."""
    points = [(row["running_tests"], row) for row in rows if row.get("running_tests") is not None]
    lines = {
        "memory, MiB": [(count, row["memory_mib"]) for count, row in points],
        "CPU, % of a core": [(count, row["cores"] * 100) for count, row in points],
    }
    return draw_lines("The operator with 1,000 idle tests and a growing number of running ones", lines, "running tests", "")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="write the figures to the repository instead")
    options = parser.parse_args()
    if options.record:
        rows = [json.loads(line) for line in sys.stdin]
        plot, record = draw_curve(rows), {**describe_origin("bench/scale/run"), "rows": rows}
        (ROOT / "bench" / "scale.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        (IMAGES / "scale.svg").write_text(plot)
        return
    rows = []
    for line in sys.stdin:
        rows.append(json.loads(line))
        table = build_scale_table(rows)
        print("\n".join(table[:-1] if len(rows) == 1 else table[-2:-1]), flush=True)
    sys.exit(0 if all(map(meets_goals, rows)) else 1)


if __name__ == "__main__":
    main()
