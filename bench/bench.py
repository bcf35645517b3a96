#!/usr/bin/env python3
"""Runs this project's load generator and others side by side, and writes bench/RESULTS.md.

    bench/bench.py [--seconds 5] [--rounds 5] [--cases max,chat] [--bin FOLDER] [--out FOLDER]

One server is pinned to core 0, one generator at a time to core 1. Each round runs every tool
once, in random order; figures are medians over rounds, ratios are of medians. Raw figures go
to raw.json, where those of cases that did not run stay as they were; `--cases none` only writes
the tables again. Needs two cores, root for Debian's packages, Rust, Go and Python; tools come
from their own registries into the project's cache.
"""

import argparse
import os
import pathlib
import sys
import traceback

import report
from cases import Context
from cases.chat import CHAT
from cases.first import FIRST
from cases.http import MAX, POST, RATE, TLS
from cases.latency import LATENCY
from cases.memory import IDLE, SOCKET
from cases.schedule import SCHEDULE
from cases.scrape import SCRAPE
from cases.websocket import WEBSOCKET
from machine import say, take_the_machine
from tools import ROOT, install

CASES = [MAX, POST, TLS, RATE, CHAT, FIRST, WEBSOCKET, LATENCY, SCHEDULE, IDLE, SOCKET, SCRAPE]
NAMES = [case.name for case in CASES]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", default=",".join(NAMES), help="of " + ", ".join(NAMES) + "; or none")
    parser.add_argument("--bin", type=pathlib.Path, help="folder of our binaries, in place of building them")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "bench")
    arguments = parser.parse_args()
    asked = [] if arguments.cases == "none" else arguments.cases.split(",")
    if unknown := set(asked) - set(NAMES):
        sys.exit(f"bench: no case {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    if (os.cpu_count() or 1) < 2:
        sys.exit("bench: needs two cores, one for the server and one for the generator")
    chosen = [case for case in CASES if case.name in asked]
    records = report.read(arguments.out)
    if chosen:
        paths = install({tool for case in chosen for tool in case.tools}, arguments.bin and arguments.bin.resolve())
        context = Context(paths, arguments.seconds, arguments.rounds, given=bool(arguments.bin))
        take_the_machine()
    failed = []
    for case in chosen:
        try:
            figures = case.measure(context)
        except Exception:
            # The others are measured all the same; this one keeps the figures that it had.
            traceback.print_exc()
            failed.append(case.name)
            continue
        records[case.name] = report.record(context, case, figures)
        # After each one, so that nothing that comes later loses it.
        report.write(arguments.out, records, CASES)
        say("\n".join(case.lines(figures)))
    report.write(arguments.out, records, CASES)
    if failed:
        sys.exit(f"bench: failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
