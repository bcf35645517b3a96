"""Runs a load test in a terminal, reads its screen with a terminal emulator, and presses its keys.

usage: test_terminal.py FOLDER BROWSER LOADTEST [--screenshots FOLDER]

The screenshot is the emulator's screen, drawn by BROWSER.
"""
import fcntl
import html
import os
import pathlib
import pty
import select
import struct
import sys
import termios
import time

import pyte
from playwright.sync_api import sync_playwright

from results import run_tests

COLUMNS, ROWS = 110, 40
# The emulator names the first colors of the palette by their usual values.
COLORS = {
    "default": "#d6deeb", "cd0000": "#ff8a80", "00cd00": "#5fcf8e", "cdcd00": "#f0b453",
    "0000ee": "#7fa8ff", "e5e5e5": "#a6b0c0",
}


class Terminal:
    """A program in a terminal of its own."""

    def __init__(self, command):
        self.screen = pyte.Screen(COLUMNS, ROWS)
        self.stream = pyte.ByteStream(self.screen)
        self.output = b""
        self.process, self.file = pty.fork()
        if self.process == 0:
            os.environ["TERM"] = "xterm-256color"
            os.environ.pop("NO_COLOR", None)
            os.execv(command[0], command)
        fcntl.ioctl(self.file, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))

    def text(self):
        return "\n".join(self.screen.display)

    def read(self):
        """Reads for a moment. Returns False when the program has ended."""
        if not select.select([self.file], [], [], 0.1)[0]:
            return True
        try:
            data = os.read(self.file, 65536)
        except OSError:
            return False
        self.output += data
        self.stream.feed(data)
        return bool(data)

    def wait_for(self, text, seconds=15):
        end = time.monotonic() + seconds
        while text not in self.text():
            assert self.read() and time.monotonic() < end, f"no {text!r} on the screen:\n{self.text()}"

    def press(self, keys):
        os.write(self.file, keys)

    def wait_until_ended(self, seconds=30):
        end = time.monotonic() + seconds
        while self.read():
            assert time.monotonic() < end, "the program has not ended"
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])


def as_html(screen):
    lines = []
    for y in range(ROWS):
        cells = []
        for x in range(COLUMNS):
            cell = screen.buffer[y][x]
            front, back = COLORS.get(cell.fg, COLORS["default"]), COLORS.get(cell.bg, "#12161c")
            back = "#12161c" if cell.bg == "default" else back
            if cell.reverse:
                front, back = back, front
            weight = "bold" if cell.bold else "normal"
            cells.append(f'<span style="color:{front};background:{back};font-weight:{weight}">{html.escape(cell.data)}</span>')
        lines.append("".join(cells))
    # Characters that the font lacks come from another one, with another width.
    cell = "span{display:inline-block;width:9px;height:18px;overflow:hidden;vertical-align:top}"
    style = "margin:0;padding:12px;background:#12161c;font:15px/18px 'DejaVu Sans Mono',monospace;display:inline-block"
    return f'<style>{cell}</style><body style="margin:0;background:#12161c"><pre style="{style}">' + "\n".join(lines) + "</pre></body>"


def write_screenshot(screen, browser, target):
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 1040, "height": 760})
        page.set_content(as_html(screen))
        page.locator("pre").screenshot(path=target)
        chromium.close()


def main():
    browser, loadtest = sys.argv[2], sys.argv[3]
    command = [
        loadtest, "run", "report/acceptance/loadtest.yaml", "--simulator",
        "--set", "load.stages=null", "--set", "load.users=20", "--set", "load.spawnRate=5", "-t", "5m",
    ]
    terminal = Terminal(command)

    def test_1_the_screen_shows_the_run():
        for part in ["report  Running", "20 users", "all tasks", "health responseTime p95", "http_404", "s: stop the test"]:
            terminal.wait_for(part)
        terminal.wait_for("9s of 5m")
        if "--screenshots" in sys.argv:
            folder = pathlib.Path(sys.argv[sys.argv.index("--screenshots") + 1])
            write_screenshot(terminal.screen, browser, folder / "terminal.png")

    def test_2_keys_choose_and_freeze():
        terminal.press(b"\t")
        terminal.wait_for("response time of chat")
        terminal.press(b"f")
        terminal.wait_for("FROZEN: f goes on   Tab: next task   s: stop the test")
        before = terminal.text()
        for _ in range(25):
            terminal.read()
        changed = [pair for pair in zip(before.split("\n"), terminal.text().split("\n")) if pair[0] != pair[1]]
        assert not changed, f"the frozen screen has changed: {changed}"
        terminal.press(b"f")
        terminal.wait_for("f: freeze")

    def test_3_a_stop_needs_two_keys_and_restores_the_terminal():
        terminal.press(b"s")
        terminal.wait_for("press s again")
        terminal.press(b"x")
        terminal.wait_for("f: freeze")
        terminal.press(b"s")
        terminal.wait_for("press s again")
        terminal.press(b"s")
        code = terminal.wait_until_ended()
        _, _, after = terminal.output.rpartition(b"\x1b[?1049l")
        text = after.decode()
        assert code == 3, f"exit code {code}: {text}"
        assert "VERDICT  Inconclusive: the test was cancelled" in text, text

    tests = [
        test_1_the_screen_shows_the_run,
        test_2_keys_choose_and_freeze,
        test_3_a_stop_needs_two_keys_and_restores_the_terminal,
    ]
    return run_tests(tests, "terminal ")


sys.exit(main())
