#!/usr/bin/env python3
"""Compares this project's load generator with others and writes bench/RESULTS.md.

    bench/bench.py [--seconds 5] [--rounds 5] [--cases max,chat] [--bin FOLDER] [--out FOLDER]

One server is pinned to core 0, one generator at a time to core 1. Each round runs every tool
once, in random order. Figures are medians over rounds; ratios are ratios of medians.

All figures are also written to raw.json. The figures of cases that did not run stay there
unchanged, so `--cases none` only writes the tables again.

The benchmark needs two cores, root permissions for Debian packages, Rust, Go and Python. It
installs the other tools from their registries into the project's cache.
"""

import argparse
import os
import pathlib
import sys
import traceback

import report
from cases import Context
from cases.chat import CHAT
from cases.first_response import FIRST_RESPONSE
from cases.http import MAX, MAX_MANY, POST, RATE, TLS
from cases.latency import LATENCY
from cases.live_view import LIVE_VIEW
from cases.memory import IDLE, SOCKETS
from cases.schedule import SCHEDULE
from cases.scrape import SCRAPE
from cases.websocket import WEBSOCKET
from machine import claim_machine, log_progress
from tools import ROOT, install_tools

CASES = [
    MAX, MAX_MANY, POST, TLS, RATE, CHAT, FIRST_RESPONSE, WEBSOCKET, LATENCY, SCHEDULE, IDLE, SOCKETS, SCRAPE,
    LIVE_VIEW,
]
NAMES = [case.name for case in CASES]


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=5, help="duration of one run (default: 5)")
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds (default: 5)")
    parser.add_argument(
        "--cases", default=",".join(NAMES),
        help="cases to run, separated by commas: " + ", ".join(NAMES) + "; or none (default: all)",
    )
    parser.add_argument(
        "--bin", type=pathlib.Path, help="folder with this project's binaries (default: build them)",
    )
    parser.add_argument(
        "--out", type=pathlib.Path, default=ROOT / "bench",
        help="folder for RESULTS.md and raw.json (default: bench)",
    )
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    wanted = [] if arguments.cases == "none" else arguments.cases.split(",")
    if unknown := set(wanted) - set(NAMES):
        sys.exit(f"bench: unknown case {', '.join(sorted(unknown))}; the cases are {', '.join(NAMES)}")
    if (os.cpu_count() or 1) < 2:
        sys.exit("bench: two cores are required, one for the server and one for the generator")
    chosen = [case for case in CASES if case.name in wanted]
    records = report.read_records(arguments.out)
    if chosen:
        binaries = arguments.bin and arguments.bin.resolve()
        paths = install_tools({tool for case in chosen for tool in case.tools}, binaries)
        context = Context(paths, arguments.seconds, arguments.rounds, binaries_given=bool(arguments.bin))
        claim_machine()
    failed = []
    for case in chosen:
        try:
            figures = case.measure(context)
        except Exception:
            # The other cases still run. The failed case keeps its earlier figures.
            traceback.print_exc()
            failed.append(case.name)
            continue
        records[case.name] = report.build_record(context, case, figures)
        # Write the results after each case, so that a later failure can't lose them.
        report.write_results(arguments.out, records, CASES)
        log_progress("\n".join(case.build_lines(figures)))
    report.write_results(arguments.out, records, CASES)
    if failed:
        sys.exit(f"bench: failed cases: {', '.join(failed)}")


if __name__ == "__main__":
    main()
