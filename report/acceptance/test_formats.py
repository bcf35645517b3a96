"""Reads the files of a result with programs that others wrote, and compares them with the result.

usage: test_formats.py FOLDER

FOLDER holds the files of one run: result.json, schema.json, junit.xml, report.md, k6.json, log.hlog and
locust_*.csv.
"""
import ast
import csv
import importlib.util
import json
import math
import pathlib
import sys

import jsonschema
from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader
from junitparser import Error, Failure, JUnitXml
from markdown_it import MarkdownIt

from results import run_tests

FOLDER = pathlib.Path(sys.argv[1])
RESULT = json.loads((FOLDER / "result.json").read_text())
# The fields of k6's metrics, as its documentation of `--summary-export` lists them.
K6_TREND = {"avg", "min", "med", "max", "p(90)", "p(95)"}
K6_FIELDS = {
    "http_req_duration": K6_TREND,
    "http_req_waiting": K6_TREND,
    "http_req_connecting": K6_TREND,
    "http_req_failed": {"passes", "fails", "value"},
    "http_reqs": {"count", "rate"},
    "iterations": {"count", "rate"},
    "data_sent": {"count", "rate"},
    "data_received": {"count", "rate"},
    "vus": {"value", "min", "max"},
    "vus_max": {"value", "min", "max"},
}


def locust_columns():
    """The columns in the source of Locust. Importing it would need all that it depends on."""
    path = pathlib.Path(importlib.util.find_spec("locust").origin).parent / "stats.py"
    tree = ast.parse(path.read_text())
    names = {}
    percentiles = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "PERCENTILES_TO_REPORT":
            shares = ast.literal_eval(node.value)
            percentiles = [f"{round(share * 100, 4):g}%" for share in shares]
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "attr", "").endswith("columns"):
            columns = []
            for item in node.value.elts:
                columns += percentiles if isinstance(item, ast.Starred) else [item.value]
            names[node.targets[0].attr] = columns
    return names


def read_csv(name):
    with open(FOLDER / name, newline="") as file:
        return list(csv.reader(file))


def test_locust_has_the_same_columns():
    columns = locust_columns()
    for file, name in [
        ("locust_stats.csv", "requests_csv_columns"),
        ("locust_stats_history.csv", "stats_history_csv_columns"),
        ("locust_failures.csv", "failures_columns"),
        ("locust_exceptions.csv", "exceptions_columns"),
    ]:
        rows = read_csv(file)
        assert rows[0] == columns[name], (file, rows[0], columns[name])
        assert all(len(row) == len(rows[0]) for row in rows), file
    stats = {row[1]: row for row in read_csv("locust_stats.csv")[1:]}
    for task in RESULT["tasks"]:
        assert int(stats[task["name"]][2]) == task["requests"]
        assert int(stats[task["name"]][3]) == task["failures"]
    assert int(stats["Aggregated"][2]) == RESULT["total"]["requests"]
    history = read_csv("locust_stats_history.csv")
    assert [float(row[0]) for row in history[1:]] == sorted(float(row[0]) for row in history[1:])


def test_hdrhistogram_reads_the_log():
    whole = {}
    reader = HistogramLogReader(str(FOLDER / "log.hlog"), HdrHistogram(1, 3_600_000_000_000, 3))
    while (histogram := reader.get_next_interval_histogram()) is not None:
        tag = histogram.get_tag()
        whole.setdefault(tag, HdrHistogram(1, 3_600_000_000_000, 3)).add(histogram)
    for task in RESULT["tasks"]:
        latency = task["responseTime"]
        if latency is None:
            assert task["name"] not in whole
            continue
        found = whole[task["name"]]
        assert found.get_total_count() == latency["count"], task["name"]
        for name, p in [("p50", 0.5), ("p95", 0.95), ("p99", 0.99)]:
            # This reader rounds a rank to the nearest, and the result rounds it up.
            rank = math.ceil(p * latency["count"] * (1 - 1e-12))
            seconds = found.get_value_at_percentile(100 * rank / latency["count"]) / 1e9
            # Both histograms round: to 0.1 % and to 0.2 %.
            assert abs(seconds / latency[name] - 1) < 0.003, (task["name"], name, seconds, latency[name])


def test_junit_has_a_case_for_each_threshold():
    suites = list(JUnitXml.fromfile(str(FOLDER / "junit.xml")))
    assert len(suites) == 1
    cases = list(suites[0])
    rows = RESULT["thresholds"]
    assert len(cases) == len(rows) == suites[0].tests
    for case, row in zip(cases, rows):
        failed = [type(part) for part in case.result]
        wanted = {"Fail": [Failure], "Critical": [Failure], "Inconclusive": [Error]}.get(row["verdict"], [])
        assert failed == wanted, (case.name, row["verdict"], failed)


def test_the_json_matches_its_schema():
    schema = json.loads((FOLDER / "schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(RESULT, schema)
    broken = {**RESULT, "total": {**RESULT["total"], "requests": "many"}}
    try:
        jsonschema.validate(broken, schema)
    except jsonschema.ValidationError:
        return
    raise AssertionError("the schema accepts a text as a number of requests")


def test_markdown_renders_as_tables():
    text = (FOLDER / "report.md").read_text()
    assert len(text.splitlines()) <= 60
    tokens = MarkdownIt("commonmark", {"html": False}).enable("table").parse(text)
    rows = [token for token in tokens if token.type == "tr_open"]
    heads = [token for token in tokens if token.type == "thead_open"]
    errors = len(RESULT["status"]["errors"])
    assert len(heads) == 3, text
    assert len(rows) == 3 + len(RESULT["thresholds"]) + len(RESULT["tasks"]) + errors, text


def test_k6_has_the_same_fields():
    summary = json.loads((FOLDER / "k6.json").read_text())
    assert set(summary) == {"root_group", "metrics"}
    assert set(summary["root_group"]) == {"name", "path", "id", "groups", "checks"}
    for name, fields in K6_FIELDS.items():
        found = set(summary["metrics"][name]) - {"thresholds"}
        assert found == fields, (name, found)
    total = RESULT["total"]
    assert summary["metrics"]["http_reqs"]["count"] == total["requests"]
    assert abs(summary["metrics"]["http_req_duration"]["p(95)"] / 1000 - total["responseTime"]["p95"]) < 1e-9


def main():
    return run_tests([test for name, test in list(globals().items()) if name.startswith("test_")])


sys.exit(main())
