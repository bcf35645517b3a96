#!/usr/bin/env python3
"""Prints the table of faults.

usage: fault_table.py [--markdown] FILE

FILE has a line of JSON for each row, as the tests of e2e/tests/faults write it. With --markdown, the table is that of
docs/reliability.md.
"""
import json
import sys
import textwrap

WIDTHS = (44, 40, 56)


def print_text(rows):
    print(f"\n{'':4}  {'fault':{WIDTHS[0]}}  {'expected':{WIDTHS[1]}}  {'seen':{WIDTHS[2]}}  settled")
    for row in rows:
        cells = [textwrap.wrap(row[name], width) or [""] for name, width in zip(("fault", "expected", "seen"), WIDTHS)]
        seconds = "-" if row["seconds"] is None else f"{row['seconds']:.0f} s"
        settled = f"{seconds} of {row['limit']} s"
        for line in range(max(map(len, cells))):
            texts = [cell[line] if line < len(cell) else "" for cell in cells]
            columns = "  ".join(f"{text:{width}}" for text, width in zip(texts, WIDTHS))
            first = line == 0
            mark = ("pass" if row["passed"] else "FAIL") if first else ""
            print(f"{mark:4}  {columns}  {settled if first else ''}".rstrip())
    failed = sum(not row["passed"] for row in rows)
    print(f"\n{len(rows) - failed} of {len(rows)} faults passed")


def print_markdown(rows):
    print("| fault | what must happen | within | measured | test |")
    print("|---|---|---|---|---|")
    for row in rows:
        cells = [row["fault"], row["expected"], f"{row['limit']} s", f"{row['seconds']:.0f} s", f"`{row['test']}`"]
        print("| " + " | ".join(cells) + " |")


def main():
    *options, path = sys.argv[1:]
    with open(path) as file:
        rows = sorted((json.loads(line) for line in file), key=lambda row: row["fault"])
    (print_markdown if options == ["--markdown"] else print_text)(rows)


if __name__ == "__main__":
    main()
