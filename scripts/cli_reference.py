"""Writes the page with all commands and options from the help of the CLI.

usage: cli_reference.py LOADTEST PAGE
"""
import pathlib
import re
import subprocess
import sys

INTRODUCTION = """# All commands and options

This page is generated from `loadtest --help`. [The command line](cli.md) explains the commands and shows examples.
"""


def read_help(program, *command):
    return subprocess.run([program, *command, "--help"], check=True, capture_output=True, text=True).stdout.strip()


def main():
    program, page = sys.argv[1:]
    overview = read_help(program)
    commands = re.findall(r"^  ([a-z]+) ", overview.split("Commands:")[1].split("\n\n")[0], re.M)
    sections = [INTRODUCTION, f"```text\n{overview}\n```\n"]
    for command in commands:
        if command != "help":
            sections.append(f"## {command}\n\n```text\n{read_help(program, command)}\n```\n")
    text = "\n".join(sections)
    file = pathlib.Path(page)
    changed = not file.exists() or file.read_text() != text
    file.write_text(text)
    print(f"{page}: {'written' if changed else 'unchanged'}")


main()
