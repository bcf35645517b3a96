"""The result files: raw.json has all figures, RESULTS.md has tables of them."""

import json
import time

import operator_figures
import targets
from machine import GENERATOR_CORE, SERVER_CORE, describe_machine
from tables import format_table
from tools import read_commit, read_versions


def read_records(folder):
    """Returns the records of earlier runs by the name of their case."""
    file = folder / "raw.json"
    return json.loads(file.read_text())["cases"] if file.exists() else {}


def build_record(context, case, figures):
    paths = {tool: path for tool, path in context.paths.items() if tool in case.tools}
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": read_commit() + (" (binaries given)" if context.binaries_given else ""),
        "machine": describe_machine(),
        "seconds": context.seconds,
        "rounds": context.rounds,
        "versions": read_versions(paths),
        "figures": figures,
    }


def write_results(folder, records, cases):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "raw.json").write_text(json.dumps({"cases": records}, indent=1) + "\n")
    (folder / "RESULTS.md").write_text("\n".join(build_markdown(folder, records, cases)))


def build_markdown(folder, records, cases):
    shown = [case for case in cases if case.name in records]
    lines = [
        "# Benchmark results",
        "",
        f"Written by `make bench`. The server runs on core {SERVER_CORE}, the generator on core {GENERATOR_CORE}. The"
        " tools run in random order. `loadtest` is this project's generator. All its measurements are enabled: response"
        " and service time, schedule lag, bytes and errors. CPU time is the time during which the generator's core was"
        " not idle, from /proc/stat. Server CPU is the share of its core that the server used. Figures are medians over"
        " rounds. Ratios are ratios of medians.",
        "",
        *targets.build_table({name: record["figures"] for name, record in records.items()}),
    ]
    for case in shown:
        record = records[case.name]
        origin = f"{record['date']}, commit {record['commit']}, {record['rounds']} rounds of {record['seconds']} s."
        # The first line of a case is its heading.
        heading, *rest = case.build_lines(record["figures"])
        lines += [heading, "", origin, *rest]
    return lines + operator_figures.build_lines(folder) + list_tools_and_machine(records, shown)


def list_tools_and_machine(records, shown):
    versions, machines = {}, {}
    for case in shown:
        machines.setdefault(records[case.name]["machine"])
        for tool, version in records[case.name]["versions"].items():
            versions.setdefault(tool, {}).setdefault(version)
    rows = [[tool, "; ".join(tool_versions)] for tool, tool_versions in versions.items()]
    return ["## Tools and machine", "", "; ".join(machines) + ".", "", *format_table(["tool", "version"], rows)]
