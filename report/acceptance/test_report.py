"""Checks the HTML report of a run in Chromium.

usage: test_report.py FOLDER BROWSER [--screenshots FOLDER]

FOLDER holds report.html, and from the same run result.json and requests.csv. The numbers of the charts
are compared with those of the result, and the percentiles of a selected span with those of the request
log, which has every request.
"""
import csv
import json
import math
import pathlib
import sys

from playwright.sync_api import sync_playwright

from browser import check_layout, selection, wait_until, watch_problems
from results import run_tests

# A percentile of the report is at most this far from the exact one, as a share: the width of a bucket,
# and the rounding to four digits.
TOLERANCE = 0.0025
# A request that ended this close to the end of an interval may be counted in the next one, in seconds.
# A runner copies its tasks one after another, so the end of an interval isn't the same for all of them.
MIN_BOUNDARY = 0.02
UNITS = {"ns": 1e-9, "µs": 1e-6, "ms": 1e-3, "s": 1.0}


def read_seconds(text):
    for unit, factor in UNITS.items():
        number = text.removesuffix(unit)
        if number != text and number.replace(".", "", 1).isdigit():
            return float(number) * factor
    raise ValueError(f"{text!r} is not a duration below one minute")


def select_span(page, start, end):
    page.fill("#to", str(end))
    page.fill("#from", str(start))
    page.press("#from", "Enter")
    page.locator("#to").blur()


def nearest_rank(times, p):
    return times[max(math.ceil(p * len(times) * (1 - 1e-12)), 1) - 1]


class Report:
    def __init__(self, folder, page):
        self.page = page
        self.result = json.loads((folder / "result.json").read_text())
        self.points = self.result["series"]["points"]
        with open(folder / "requests.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        self.requests = [row for row in rows if row["outcome"] != "failure"]
        self.boundary = {task: self.find_boundary(task, rows) for task in ["chat", "health", "websocket"]}

    def find_boundary(self, task, rows):
        """Returns how far the end of an interval may be from the time at which the task's requests were
        counted, in seconds. The number of counted requests says which request was the last one."""
        ended = sorted(float(row["last"]) for row in rows if row["task"] == task)
        counted, boundary = 0, MIN_BOUNDARY
        # The last interval also holds the graceful stop.
        for point in self.points[:-1]:
            counted += point["tasks"].get(task, {}).get("requests", 0)
            if counted < len(ended) and ended[counted] < point["end"]:
                boundary = max(boundary, point["end"] - ended[counted])
            if counted and ended[counted - 1] > point["end"]:
                boundary = max(boundary, ended[counted - 1] - point["end"])
        # More would be a fault of the runner: an interval is one second long.
        assert boundary < 0.5, f"{task}: {boundary} s"
        return boundary * 1.01

    def check_span(self, task, start, end):
        """Compares a span's percentiles with the request log. Requests near the ends of the span may
        belong to it or not. So each percentile is between those of the fastest and of the slowest
        choice with the right number of requests."""
        select_span(self.page, start, end)
        row = selection(self.page)[task]
        # The last interval also holds the graceful stop.
        end = math.inf if end >= self.points[-1]["end"] else end
        # Nothing ended before the start of the load.
        start = -math.inf if start == 0 else start
        boundary, certain, possible = self.boundary[task], [], []
        for request in self.requests:
            last = float(request["last"])
            if request["task"] != task:
                continue
            response_time = last - float(request["planned"])
            if start + boundary < last <= end - boundary:
                certain.append(response_time)
            elif start - boundary < last <= end + boundary:
                possible.append(response_time)
        possible.sort()
        chosen = int(row["requests"]) - len(certain)
        assert 0 <= chosen <= len(possible), f"{task} {start}–{end}: {row['requests']} requests, {len(certain)} certain"
        fastest = sorted(certain + possible[:chosen])
        slowest = sorted(certain + possible[len(possible) - chosen:])
        known = certain + possible
        for name, p in [("p50", 0.5), ("p90", 0.9), ("p95", 0.95), ("max", 1.0)]:
            found = read_seconds(row[name])
            low, high = nearest_rank(fastest, p), nearest_rank(slowest, p)
            label = f"{task} {name} {start}–{end}: {found}, exact {low}–{high}"
            assert low * (1 - TOLERANCE) <= found <= high * (1 + TOLERANCE), label
            assert any(abs(found / value - 1) <= TOLERANCE for value in known), label

    def test_the_selected_span_has_exact_percentiles(self):
        last = self.points[-1]["end"]
        for task in ["chat", "health", "websocket"]:
            self.check_span(task, 0, last)
            self.check_span(task, self.points[3]["start"], self.points[7]["end"])
            self.check_span(task, self.points[5]["start"], last)

    def test_the_whole_run_has_the_numbers_of_the_result(self):
        self.page.click("#reset")
        rows = selection(self.page)
        for task in self.result["tasks"]:
            row = rows[task["name"]]
            assert row["requests"] == str(task["requests"]), (row, task["requests"])
            latency = task["responseTime"]
            if latency is None:
                assert row["p95"] == "–", row
                continue
            for name in ["p50", "p90", "p95", "p99", "max"]:
                assert abs(read_seconds(row[name]) / latency[name] - 1) < 0.0006, (name, row, latency[name])
            assert abs(read_seconds(row["mean"]) / latency["mean"] - 1) < 0.001
        assert rows["all tasks"]["requests"] == str(self.result["total"]["requests"])

    def test_charts_draw_the_numbers_of_the_result(self):
        self.page.select_option("#task", "")
        self.page.select_option("#metric", "responseTime")
        plots = self.page.evaluate("loadtestPage.plots.map(plot => plot.data.map(values => [...values]))")
        rates, latency, users = plots[:3]
        for index, point in enumerate(self.points):
            seconds = point["end"] - point["start"]
            tasks = point["tasks"].values()
            successes = sum(task.get("successesInLoad", 0) for task in tasks) / seconds
            assert rates[0][index] == point["end"]
            assert abs(rates[1][index] - successes) < 1e-6, (index, rates[1][index], successes)
            failures = sum(task.get("failures", 0) for task in tasks) / seconds
            assert abs(rates[2][index] - failures) < 1e-6
            assert users[1][index] == point["users"]
            assert latency[1][index] <= latency[2][index] <= latency[3][index]
        blank = self.page.eval_on_selector_all(
            "#charts canvas",
            """canvases => canvases.filter(canvas => {
                const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
                return !data.some(value => value !== 0);
            }).length""",
        )
        assert blank == 0, f"{blank} charts are blank"

    def test_every_control_works(self):
        page = self.page
        page.select_option("#task", "chat")
        assert list(selection(page)) == ["chat"]
        metrics = page.eval_on_selector_all("#metric option", "options => options.map(option => option.value)")
        assert metrics[0] == "responseTime" and "timeToFirstToken" in metrics, metrics
        for metric in metrics:
            page.select_option("#metric", metric)
            assert selection(page)["chat"]["p50"] != "–", metric
        page.select_option("#task", "")
        page.select_option("#metric", "responseTime")
        # A drag over a chart selects the intervals that it touches.
        box = page.locator("#rates .u-over").bounding_box()
        page.mouse.move(box["x"] + box["width"] * 0.26, box["y"] + 20)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.49, box["y"] + 40, steps=5)
        page.mouse.up()
        start, end = float(page.input_value("#from")), float(page.input_value("#to"))
        last = self.points[-1]["end"]
        assert 0.1 * last < start < 0.27 * last and 0.45 * last < end < 0.6 * last, (start, end)
        assert "of the run" in page.text_content("#selected")
        # By keyboard alone.
        page.focus("#reset")
        page.keyboard.press("Enter")
        assert page.text_content("#selected").startswith("Whole run")
        page.focus("#task")
        page.keyboard.press("ArrowDown")
        assert page.input_value("#task") == self.result["tasks"][0]["name"]
        page.select_option("#task", "")
        requests = page.locator("table.sortable").first.locator("th button", has_text="requests")
        column = lambda: [int(text) for text in page.locator("table.sortable").first.locator("tbody td:nth-child(2)").all_text_contents()]
        requests.click()
        assert column() == sorted(column()), column()
        requests.click()
        assert column() == sorted(column(), reverse=True), column()

    def test_axes_begin_at_a_whole_number_of_units(self):
        # uPlot never ends if a logarithmic axis begins just below a power of ten.
        bad = self.page.evaluate(
            """() => Array.from({ length: 20000 }, (_, i) => 10 ** (-9 + i / 1600)).filter((low) => {
                const [start, end] = logRange(low, low * 2);
                const units = start / 10 ** Math.floor(Math.log10(start) + 1e-9);
                return !(start > 0 && start <= low && end > low && Math.abs(units - Math.round(units)) < 1e-6);
            }).slice(0, 5)"""
        )
        assert not bad, bad

    def test_main_facts_are_there_without_javascript(self):
        context = self.page.context.browser.new_context(java_script_enabled=False)
        page = context.new_page()
        page.goto(self.page.url)
        text = page.inner_text("main")
        context.close()
        for part in ["report: Fail", "health responseTime p95", "http_404", "The charts need JavaScript."]:
            assert part in text, part
        assert str(self.result["tasks"][0]["requests"]) in text

    def test_layout_and_accessibility(self):
        check_layout(self.page)


def write_screenshots(page, folder):
    folder.mkdir(parents=True, exist_ok=True)
    for scheme in ["light", "dark"]:
        page.set_viewport_size({"width": 1100, "height": 1250})
        page.emulate_media(color_scheme=scheme)
        wait_until(page, "document.querySelector('#rates canvas').clientWidth <= document.body.clientWidth")
        page.evaluate("scrollTo(0, 0)")
        page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        page.screenshot(path=folder / f"report-{scheme}.png")


def main():
    folder = pathlib.Path(sys.argv[1])
    problems = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=sys.argv[2], args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        url = (folder / "report.html").resolve().as_uri()
        watch_problems(page, problems, lambda requested: requested == url)
        page.goto(url)
        page.wait_for_selector("#charts:not([hidden])")
        report = Report(folder, page)

        def test_the_page_has_no_errors_and_loads_nothing():
            assert not problems, problems

        tests = [getattr(report, name) for name in dir(report) if name.startswith("test_")]
        code = run_tests([*tests, test_the_page_has_no_errors_and_loads_nothing])
        if "--screenshots" in sys.argv:
            write_screenshots(page, pathlib.Path(sys.argv[sys.argv.index("--screenshots") + 1]))
        browser.close()
    return code


sys.exit(main())
