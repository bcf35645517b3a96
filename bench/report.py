"""The two files of results: raw.json with every figure, RESULTS.md with the tables of it."""

import json
import os
import platform
import time

import targets
from machine import GENERATOR_CORE, SERVER_CORE, cpu_name
from tables import table
from tools import commit, versions


def read(folder):
    """Records of cases by name, as earlier runs have left them."""
    file = folder / "raw.json"
    return json.loads(file.read_text())["cases"] if file.exists() else {}


def record(context, case, figures):
    paths = {tool: path for tool, path in context.paths.items() if tool in case.tools}
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit() + (" (binaries given)" if context.given else ""),
        "machine": f"{cpu_name()}, {os.cpu_count()} cores, Linux {platform.release()}",
        "seconds": context.seconds,
        "rounds": context.rounds,
        "versions": versions(paths),
        "figures": figures,
    }


def write(folder, records, cases):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "raw.json").write_text(json.dumps({"cases": records}, indent=1) + "\n")
    (folder / "RESULTS.md").write_text("\n".join(markdown(records, cases)))


def markdown(records, cases):
    shown = [case for case in cases if case.name in records]
    lines = [
        "# Benchmark results",
        "",
        f"Written by `make bench`. Server on core {SERVER_CORE}, generator on core {GENERATOR_CORE}, tools in random"
        " order. Every measurement of ours is on: response and service time, schedule lag, bytes, errors. CPU is the time"
        " in which the generator's core was not idle, from /proc/stat. Figures are medians over rounds, ratios are of medians.",
        "",
        *targets.lines({name: one["figures"] for name, one in records.items()}),
    ]
    for case in shown:
        one = records[case.name]
        about = f"{one['date']}, commit {one['commit']}, {one['rounds']} rounds of {one['seconds']} s."
        # Under its heading, which is a case's first line.
        first, *rest = case.lines(one["figures"])
        lines += [first, "", about, *rest]
    return lines + provenance(records, shown)


def provenance(records, shown):
    versions_seen, machines = {}, {}
    for case in shown:
        machines.setdefault(records[case.name]["machine"])
        for tool, version in records[case.name]["versions"].items():
            versions_seen.setdefault(tool, {}).setdefault(version)
    rows = [[tool, "; ".join(seen)] for tool, seen in versions_seen.items()]
    return ["## Tools and machine", "", "; ".join(machines) + ".", "", *table(["tool", "version"], rows)]
