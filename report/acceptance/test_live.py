"""Watches a running load test on its live page in Chromium.

usage: test_live.py FOLDER BROWSER LOADTEST [--screenshots FOLDER]

Starts LOADTEST run --web with the simulator, uses every control of the page, stops the test with the
button, and compares the page with the result. FOLDER gets the files of the run.
"""
import json
import pathlib
import re
import subprocess
import sys

from playwright.sync_api import sync_playwright

from browser import check_layout, selection, wait_until, watch_problems
from results import run_tests


class LivePage:
    def __init__(self, page, process, result):
        self.page = page
        self.process = process
        self.result = result

    def points(self):
        return self.page.evaluate("loadtestPage.series.points.length")

    def test_1_new_numbers_come_each_second(self):
        before = self.points()
        wait_until(self.page, f"loadtestPage.series.points.length >= {before} + 3")
        ends = self.page.evaluate("loadtestPage.series.points.map(point => [point.start, point.end])")
        assert all(a[1] == b[0] for a, b in zip(ends, ends[1:])), ends
        assert "Running" in self.page.text_content("#part-verdict h1")
        assert self.page.text_content("#state").startswith("The test runs")
        plotted = self.page.evaluate("loadtestPage.plots[0].data[0].length")
        assert abs(plotted - self.points()) <= 1, (plotted, self.points())

    def test_2_the_charts_can_be_frozen(self):
        page = self.page
        page.check("#freeze")
        plotted = page.evaluate("loadtestPage.plots[0].data[0].length")
        wait_until(page, f"loadtestPage.series.points.length >= {plotted} + 2")
        assert page.evaluate("loadtestPage.plots[0].data[0].length") == plotted
        page.uncheck("#freeze")
        wait_until(page, f"loadtestPage.plots[0].data[0].length > {plotted}")

    def test_3_a_choice_stays_while_numbers_come(self):
        page = self.page
        page.select_option("#task", "chat")
        page.select_option("#metric", "timeToFirstToken")
        page.fill("#from", "1")
        page.fill("#to", "3")
        page.press("#to", "Enter")
        page.locator("#to").blur()
        head = page.locator("#part-tasks table.sortable th button", has_text="requests")
        head.click()
        head.focus()
        before = self.points()
        wait_until(page, f"loadtestPage.series.points.length >= {before} + 3")
        assert list(selection(page)) == ["chat"]
        assert page.input_value("#metric") == "timeToFirstToken"
        start, end = float(page.input_value("#from")), float(page.input_value("#to"))
        assert start <= 1 and 3 <= end <= 4.5, (start, end)
        cells = page.locator("#part-tasks table.sortable").first.locator("tbody td:nth-child(2)")
        counts = [int(text) for text in cells.all_text_contents()]
        assert counts == sorted(counts), counts
        assert page.evaluate("document.activeElement.textContent") == "requests"
        page.click("#reset")
        page.select_option("#task", "")
        page.select_option("#metric", "responseTime")
        # The whole run grows with the run.
        before = float(page.input_value("#to"))
        wait_until(page, f"Number(document.getElementById('to').value) > {before}")

    def test_4_layout_and_accessibility(self):
        check_layout(self.page)

    def test_5_the_button_stops_the_test(self):
        page = self.page
        page.click("#stop")
        assert page.text_content("#stop") == "Click again to stop"
        assert self.process.poll() is None
        page.click("#stop")
        wait_until(page, "document.getElementById('state').textContent.startsWith('The test is over')")
        assert self.process.wait(20) == 3, self.process.returncode
        assert page.locator("#stop").is_hidden()

    def test_6_the_last_state_is_the_result(self):
        result = json.loads(self.result.read_text())
        assert "Inconclusive" in self.page.text_content("#part-verdict h1")
        assert result["status"]["phase"] == "Cancelled"
        assert self.points() == len(result["series"]["points"])
        rows = selection(self.page)
        assert rows["all tasks"]["requests"] == str(result["total"]["requests"])
        for task in result["tasks"]:
            assert rows[task["name"]]["requests"] == str(task["requests"]), (rows, task["name"])


def main():
    folder, browser, loadtest = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    result = folder / "live.json"
    command = [
        loadtest, "run", "report/acceptance/loadtest.yaml", "--simulator", "--web=127.0.0.1:0",
        "--set", "load.stages=null", "--set", "load.users=20", "--set", "load.spawnRate=5",
        "-t", "10m", "--json", str(result),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    problems = []
    try:
        lines = iter(process.stderr.readline, "")
        url = next(match[0] for line in lines if (match := re.search(r"http://127.0.0.1:\d+/(?=$|\s)", line)))
        with sync_playwright() as playwright:
            chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
            page = chromium.new_page(viewport={"width": 1440, "height": 900})
            watch_problems(page, problems, lambda requested: requested.startswith(url))
            page.goto(url)
            page.wait_for_selector("#charts:not([hidden])")
            live = LivePage(page, process, result)

            def test_the_page_has_no_errors_and_asks_nobody_else():
                assert not problems, problems

            tests = [getattr(live, name) for name in sorted(dir(live)) if name.startswith("test_")]

            def write_screenshot(test):
                # The page runs and has seen every control by then.
                if "--screenshots" in sys.argv and test.__name__.startswith("test_5"):
                    target = pathlib.Path(sys.argv[sys.argv.index("--screenshots") + 1])
                    page.set_viewport_size({"width": 1100, "height": 1250})
                    wait_until(page, "document.querySelector('#rates canvas').clientWidth <= document.body.clientWidth")
                    page.evaluate("scrollTo(0, 0)")
                    page.screenshot(path=target / "live.png")

            code = run_tests(
                [*tests, test_the_page_has_no_errors_and_asks_nobody_else], "live ", write_screenshot,
            )
            chromium.close()
    finally:
        process.kill()
    return code


sys.exit(main())
