"""Writes the two Grafana dashboards into charts/loadtest-operator/dashboards. `make generate` calls it.

Runs end and their pods go. So a number of a whole run is the last one in the time range of the
dashboard, and not the current one.
"""
import json
import pathlib

FOLDER = pathlib.Path(__file__).parent / "loadtest-operator" / "dashboards"
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
RUN = 'namespace="$namespace", loadtest="$loadtest"'
TASKS = f'{RUN}, task=~"$task"'
RUNS = 'namespace=~"$namespace", loadtest=~"$loadtest"'
# Interrupted requests have no latency: their outcome is unknown.
COMPLETED = 'outcome=~"success|failure|timeout"'
# The status judges the latency of these requests.
JUDGED = 'outcome!="failure"'
WIDTH = 24


def rate(series):
    return f"rate({series}[$__rate_interval])"


def last(series):
    return f"last_over_time({series}[$__range])"


def quantile(q, metric, labels, by=(), over_run=False):
    """A percentile of a native histogram or, in a Prometheus that has none, of classic buckets.

    Over a run, the last histogram of each runner counts. In old versions of Prometheus, such as 2.42,
    `last_over_time` has no histograms. `increase` takes its place there. It misses the requests before
    the first scrape."""
    groups = f" by ({', '.join(by)}) " if by else ""
    le_groups = ", ".join(["le", *by])
    native, buckets = f"{metric}{{{labels}}}", f"{metric}_bucket{{{labels}}}"
    sums = [f"sum{groups}({rate(native)})", f"sum by ({le_groups}) ({rate(buckets)})"]
    if over_run:
        sums = [
            f"sum{groups}({last(native)})",
            f"sum{groups}(increase({native}[$__range]))",
            f"sum by ({le_groups}) ({last(buckets)})",
        ]
    return " or ".join(f"histogram_quantile({q}, {each})" for each in sums)


def percentiles(metric, labels, over_run=False):
    return [(quantile(q, metric, labels, over_run=over_run), f"p{q * 100:g}") for q in (0.5, 0.95, 0.99)]


def error_share(labels, by=()):
    """Failed requests and dropped arrivals as a share of completed requests and dropped arrivals, as `errorRate` of the
    status. Responses that are larger than a runner reads count in neither."""
    groups = f" by ({', '.join(by)}) " if by else ""
    failed = last(f'loadtest_requests_total{{{labels}, outcome=~"failure|timeout"}}')
    completed = last(f"loadtest_requests_total{{{labels}, {COMPLETED}}}")
    dropped = f"sum{groups}({last(f'loadtest_dropped_total{{{labels}}}')})"
    size_errors = last(f'loadtest_errors_total{{{labels}, kind="size_limit"}}')
    # This series exists only if there was such a response.
    rest = f"{dropped} - (sum{groups}({size_errors}) or 0 * {dropped})"
    return f"(sum{groups}({failed}) + {rest}) / (sum{groups}({completed}) + {rest})"


def targets(kind, queries, instant):
    built = []
    for letter, (expression, legend) in zip("ABCDEFGH", queries):
        target = {
            "datasource": DATASOURCE,
            "refId": letter,
            "expr": expression,
            "legendFormat": legend,
            "instant": instant,
            "range": not instant,
        }
        if kind in ("table", "heatmap"):
            target["format"] = kind
        built.append(target)
    return built


def panel(kind, title, description, unit, queries, width, height, **options):
    instant = kind in ("stat", "table")
    return {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": DATASOURCE,
        "targets": targets(kind, queries, instant),
        "fieldConfig": {"defaults": {"unit": unit} | options.pop("defaults", {}), "overrides": options.pop("overrides", [])},
        "options": options.pop("options", {}),
        "gridPos": {"w": width, "h": height},
    } | options


def stat(title, description, unit, queries, width=4, text_mode="auto", **defaults):
    options = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "textMode": text_mode,
        "colorMode": "value",
        "graphMode": "none",
    }
    return panel("stat", title, description, unit, queries, width, 4, options=options, defaults=defaults)


def lines(title, description, unit, queries, width=12, height=8, stacked=False, **defaults):
    custom = {"lineWidth": 1, "fillOpacity": 10, "showPoints": "auto", "spanNulls": False}
    if stacked:
        custom |= {"fillOpacity": 40, "stacking": {"mode": "normal", "group": "A"}}
    options = {
        "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["max", "lastNotNull"], "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    defaults = {"min": 0, "custom": custom} | defaults
    return panel("timeseries", title, description, unit, queries, width, height, options=options, defaults=defaults)


def row(title):
    return {"type": "row", "title": title, "collapsed": False, "gridPos": {"w": WIDTH, "h": 1}}


def arrange(panels):
    """Gives each panel its place, from left to right and from top to bottom, and its number."""
    x = y = height = 0
    for number, item in enumerate(panels, 1):
        place = item["gridPos"]
        if x + place["w"] > WIDTH:
            x, y, height = 0, y + height, 0
        place |= {"x": x, "y": y}
        x, height = x + place["w"], max(height, place["h"])
        item["id"] = number
    return panels


def datasource_variable():
    return {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "refresh": 1,
        "hide": 0,
        "multi": False,
        "includeAll": False,
        "options": [],
        "current": {},
    }


def variable(name, label, query, several=False):
    built = {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "definition": query,
        "query": {"query": query, "refId": name, "qryType": 1},
        # 2: reads the values again when the time range changes.
        "refresh": 2,
        "sort": 1,
        "hide": 0,
        "multi": several,
        "includeAll": several,
        "options": [],
        "current": {},
    }
    if several:
        built |= {"allValue": ".*", "current": {"text": ["All"], "value": ["$__all"]}}
    return built


def dashboard(uid, title, description, panels, variables, annotations, links):
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["loadtest"],
        "schemaVersion": 39,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [datasource_variable(), *variables]},
        "annotations": {"list": annotations},
        "links": links,
        "panels": arrange(panels),
    }


def event_annotations():
    def annotation(name, events, color):
        series = f'loadtest_operator_event_timestamp_seconds{{{RUN}, event=~"{events}"}}'
        by = "event, message, number"
        return {
            "name": name,
            "datasource": DATASOURCE,
            "enable": True,
            "hide": False,
            "iconColor": color,
            "expr": f"max by ({by}) ({last(series)}) * 1000",
            "step": "10s",
            # The value of the series is the time of the event in milliseconds.
            "useValueForTime": True,
            "titleFormat": "{{event}}",
            "textFormat": "{{message}}",
            "tagKeys": "event",
        }

    return [
        annotation("Start and end", "started|load_ended|cancelled", "blue"),
        annotation("Stages", "stage_ended", "purple"),
        annotation("Abort and losses", "aborted|runners_lost", "red"),
    ]


VERDICT_COLORS = {"Pass": "green", "Warning": "yellow", "Fail": "red", "Critical": "dark-red", "Inconclusive": "orange", "NotJudged": "text"}


def verdict_overrides():
    return [
        {"matcher": {"id": "byName", "options": name}, "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": color}}]}
        for name, color in VERDICT_COLORS.items()
    ]


def summary_panels():
    requests = f"loadtest_requests_total{{{RUN}, {COMPLETED}}}"
    successes = last(f"loadtest_load_successes_total{{{RUN}}}")
    elapsed = last(f"loadtest_elapsed_seconds{{{RUN}}}")
    verdict = stat(
        "Verdict", "The verdict in the status of the LoadTest. It comes when the test is over.", "short",
        [(f"max by (verdict) ({last(f'loadtest_operator_verdict{{{RUN}}}')})", "{{verdict}}")], text_mode="name",
    )
    verdict["fieldConfig"]["overrides"] = verdict_overrides()
    return [
        verdict,
        stat("Requests", "Completed requests of the whole run, failed ones included.", "short",
             [(f"sum({last(requests)})", "requests")]),
        stat("Errors", "Failed requests and dropped arrivals as a share of completed requests and dropped arrivals.", "percentunit",
             [(error_share(RUN), "errors")], decimals=2),
        stat("Throughput", "Successful requests per second of load.", "reqps",
             [(f"sum({successes}) / max({elapsed})", "throughput")]),
        stat("Response time of the run", "Percentiles of the response time of all requests in the time range.", "s",
             percentiles("loadtest_response_time_seconds", f"{RUN}, {JUDGED}", over_run=True), width=8, decimals=3),
    ]


def traffic_panels():
    response = ("loadtest_response_time_seconds", f"{TASKS}, {JUDGED}")
    heat = f"sum({rate('{}{{{}}}'.format(*response))}) or sum by (le) ({rate('{}_bucket{{{}}}'.format(*response))})"
    return [
        row("Load"),
        lines("Users", "Users that run now, on all runners.", "short", [(f"sum(loadtest_users{{{RUN}}})", "users")]),
        lines("Requests by outcome", "Requests that ended, per second. Interrupted ones are included.", "reqps",
              [(f"sum by (outcome) ({rate(f'loadtest_requests_total{{{TASKS}}}')})", "{{outcome}}")], stacked=True),
        lines("Requests by task", "Completed requests per second.", "reqps",
              [(f"sum by (task) ({rate(f'loadtest_requests_total{{{TASKS}, {COMPLETED}}}')})", "{{task}}")], stacked=True),
        lines("Errors by kind", "Errors per second. docs/metrics.md explains each kind.", "reqps",
              [(f"sum by (kind) ({rate(f'loadtest_errors_total{{{TASKS}}}')})", "{{kind}}")], stacked=True),
        row("Latency"),
        lines("Response time", "Time from the planned start of a request to its last byte. Failed requests are left out.",
              "s", percentiles(*response)),
        panel("heatmap", "Response times", "How many requests took how long.", "s", [(heat, "{{le}}")], 12, 8,
              options={"calculate": False, "yAxis": {"unit": "s"}, "color": {"scheme": "Oranges", "mode": "scheme"},
                       "cellGap": 0, "tooltip": {"show": True, "yHistogram": True}}),
        lines("Response time p95 by task", "95th percentile of the time from the planned start of a request to its last byte.",
              "s", [(quantile(0.95, *response, by=("task",)), "{{task}}")]),
        lines("Steps of a new connection, p95", "95th percentile of the time for DNS, TCP, TLS and the WebSocket upgrade.",
              "s", [(quantile(0.95, "loadtest_connect_seconds", TASKS, by=("step",)), "{{step}}")]),
    ]


def protocol_panels():
    chat = [
        (quantile(0.5, "loadtest_time_to_first_token_seconds", f"{TASKS}, {JUDGED}"), "first token p50"),
        (quantile(0.95, "loadtest_time_to_first_token_seconds", f"{TASKS}, {JUDGED}"), "first token p95"),
        (quantile(0.95, "loadtest_time_to_first_response_seconds", f"{TASKS}, {JUDGED}"), "first response p95"),
    ]
    web_socket = [
        (quantile(0.95, "loadtest_websocket_connect_seconds", f"{TASKS}, {JUDGED}"), "connect p95"),
        (quantile(0.95, "loadtest_websocket_round_trip_seconds", f"{TASKS}, {JUDGED}"), "round trip p95"),
    ]
    messages = rate(f"loadtest_websocket_messages_total{{{TASKS}}}")
    return [
        row("Chat"),
        lines("Time to the first token", "Time from the planned start of a chat to its first token, and to its first token of content.",
              "s", chat, width=8),
        lines("Inter-token latency", "Time between two tokens of a streamed chat.", "s",
              percentiles("loadtest_inter_token_latency_seconds", TASKS), width=8),
        lines("Tokens", "Tokens per second by kind.", "short",
              [(f"sum by (kind) ({rate(f'loadtest_tokens_total{{{TASKS}}}')})", "{{kind}}")], width=8, stacked=True),
        row("WebSocket"),
        lines("WebSocket latency, p95", "95th percentile of the time to connect, and of the time from a message to its reply.", "s", web_socket),
        lines("WebSocket messages", "Messages per second.", "short",
              [(f"sum by (direction) ({messages})", "{{direction}}")]),
    ]


def judgement_panels():
    table = panel(
        "table", "Thresholds", "Observed value and target of each threshold. `fraction` is a share from 0 to 1.", "short",
        [(f"max by (threshold, unit) ({last(f'loadtest_operator_threshold_{name}{{{RUN}}}')})", name) for name in ("value", "target")],
        WIDTH, 7,
        transformations=[
            {"id": "merge", "options": {}},
            {"id": "organize", "options": {
                "excludeByName": {"Time": True},
                "renameByName": {"threshold": "Threshold", "unit": "Unit", "Value #A": "Observed", "Value #B": "Target"},
            }},
        ],
    )
    return [row("Thresholds"), table]


def generator_panels():
    return [
        row("Load generator: can the numbers be trusted?"),
        lines("Lag of the load generator, p99", "How late users acted (schedule lag), and how late a load thread ran its timers (event loop lag).",
              "s", [(quantile(0.99, "loadtest_schedule_lag_seconds", RUN), "schedule lag"),
                    (quantile(0.99, "loadtest_event_loop_lag_seconds", RUN), "event loop lag")]),
        lines("CPU of the busiest load thread", "Share of one core. Above 90 %, latencies are Inconclusive.", "percentunit",
              [(f"max by (pod) ({rate(f'loadtest_busiest_thread_cpu_seconds_total{{{RUN}}}')})", "{{pod}}")]),
        lines("Memory of runners", "Maximum of resident memory.", "bytes",
              [(f"max by (pod) (loadtest_runner_memory_bytes{{{RUN}}})", "{{pod}}")]),
        lines("Dropped arrivals and throttling", "Arrivals that were not sent, and seconds per second that a CPU limit kept a runner from running.",
              "short", [(f"sum({rate(f'loadtest_dropped_total{{{TASKS}}}')})", "dropped/s"),
                        (f"sum({rate(f'loadtest_cpu_throttled_seconds_total{{{RUN}}}')})", "throttled")]),
        lines("Bytes", "Bytes per second on sockets.", "Bps",
              [(f"sum({rate(f'loadtest_received_bytes_total{{{TASKS}}}')})", "received"),
               (f"sum({rate(f'loadtest_sent_bytes_total{{{TASKS}}}')})", "sent")]),
        lines("Connections", "Connections opened per second, and those that replaced one that had ended.", "short",
              [(f"sum({rate(f'loadtest_connections_total{{{TASKS}}}')})", "opened"),
               (f"sum({rate(f'loadtest_reconnects_total{{{TASKS}}}')})", "reconnected")]),
    ]


def run_dashboard():
    variables = [
        variable("namespace", "Namespace", "label_values(loadtest_requests_total, namespace)"),
        variable("loadtest", "LoadTest", 'label_values(loadtest_requests_total{namespace="$namespace"}, loadtest)'),
        variable("task", "Task", f"label_values(loadtest_requests_total{{{RUN}}}, task)", several=True),
    ]
    panels = summary_panels() + judgement_panels() + traffic_panels() + protocol_panels() + generator_panels()
    links = [{"type": "dashboards", "title": "Load tests", "tags": ["loadtest"], "asDropdown": False,
              "includeVars": False, "keepTime": True, "icon": "external link", "targetBlank": False, "tooltip": "", "url": ""}]
    return dashboard(
        "loadtest-run", "Load test: one run", "One LoadTest: its load, latencies, errors, thresholds and runners. Choose a time range that holds one run.",
        panels, variables, event_annotations(), links,
    )


def runs_table():
    by = ("namespace", "loadtest")
    groups = ", ".join(by)
    queries = [
        (f"max by ({groups}, verdict) ({last(f'loadtest_operator_verdict{{{RUNS}}}')})", "verdict"),
        (f"max by ({groups}) ({last(f'loadtest_operator_run_duration_seconds{{{RUNS}}}')})", "duration"),
        (f"sum by ({groups}) ({last(f'loadtest_requests_total{{{RUNS}, {COMPLETED}}}')})", "requests"),
        (error_share(RUNS, by), "errors"),
        (quantile(0.95, "loadtest_response_time_seconds", f"{RUNS}, {JUDGED}", by, over_run=True), "p95"),
    ]
    columns = {"namespace": "Namespace", "loadtest": "LoadTest", "verdict": "Verdict", "Value #B": "Duration",
               "Value #C": "Requests", "Value #D": "Errors", "Value #E": "p95"}

    def column(name, *properties):
        return {"matcher": {"id": "byName", "options": name}, "properties": [{"id": key, "value": value} for key, value in properties]}

    url = "/d/loadtest-run?${__url_time_range}&${datasource:queryparam}&var-namespace=${__data.fields.Namespace}&var-loadtest=${__data.fields.LoadTest}"
    mappings = [{"type": "value", "options": {name: {"color": color, "text": name} for name, color in VERDICT_COLORS.items()}}]
    return panel(
        "table", "Runs", "Each LoadTest in the time range. A click on its name opens its dashboard.", "short", queries, WIDTH, 10,
        overrides=[
            column("LoadTest", ("links", [{"title": "Open this run", "url": url}])),
            column("Verdict", ("mappings", mappings), ("custom.cellOptions", {"type": "color-text"})),
            column("Duration", ("unit", "s")),
            column("Errors", ("unit", "percentunit"), ("decimals", 2)),
            column("p95", ("unit", "s"), ("decimals", 3)),
        ],
        transformations=[
            {"id": "merge", "options": {}},
            {"id": "organize", "options": {"excludeByName": {"Time": True, "Value #A": True}, "renameByName": columns}},
        ],
    )


def runs_dashboard():
    variables = [
        variable("namespace", "Namespace", "label_values(loadtest_requests_total, namespace)", several=True),
        variable("loadtest", "LoadTest", 'label_values(loadtest_requests_total{namespace=~"$namespace"}, loadtest)', several=True),
    ]
    by_test = "sum by (namespace, loadtest)"
    name = "{{namespace}}/{{loadtest}}"
    panels = [
        stat("Running now", "LoadTests in phase Starting, Running or Stopping.", "short",
             [("sum(loadtest_operator_running_tests)", "running")]),
        stat("Verdicts", "LoadTests of the time range by verdict.", "short",
             [(f"count by (verdict) (max by (namespace, loadtest, verdict) ({last(f'loadtest_operator_verdict{{{RUNS}}}')}))", "{{verdict}}")], width=12),
        stat("Requests", "Completed requests of all runs in the time range.", "short",
             [(f"sum({last(f'loadtest_requests_total{{{RUNS}, {COMPLETED}}}')})", "requests")]),
        stat("Runners", "Runner pods that send metrics now or did in the time range.", "short",
             [(f"count({last(f'loadtest_runner_info{{{RUNS}}}')})", "runners")]),
        runs_table(),
        row("Over time"),
        lines("Users", "Users that run now.", "short", [(f"{by_test} (loadtest_users{{{RUNS}}})", name)], stacked=True),
        lines("Requests", "Completed requests per second.", "reqps",
              [(f"{by_test} ({rate(f'loadtest_requests_total{{{RUNS}, {COMPLETED}}}')})", name)], stacked=True),
        lines("Threshold values", "Observed value of each threshold, in its own unit.", "short",
              [(f"max by (namespace, loadtest, threshold, unit) (loadtest_operator_threshold_value{{{RUNS}}})", f"{name} {{{{threshold}}}} ({{{{unit}}}})")]),
        lines("Durations of runs", "Time from the start of the load to the end of the test.", "s",
              [(f"max by (namespace, loadtest) (loadtest_operator_run_duration_seconds{{{RUNS}}})", name)]),
        row("Operator"),
        lines("LoadTests by phase", "Number of LoadTests.", "short",
              [("sum by (phase) (loadtest_operator_loadtests)", "{{phase}}")], width=8, stacked=True),
        lines("Reconciliations", "Reconciliations per second by outcome.", "short",
              [(f"sum by (outcome) ({rate('loadtest_operator_reconciles_total')})", "{{outcome}}")], width=8),
        lines("Duration of a reconciliation", "Percentiles of the durations of reconciliations.", "s",
              percentiles("loadtest_operator_reconcile_seconds", ""), width=8),
        lines("Failed scrapes", "Scrapes of runners that failed, per second.", "short",
              [(f"sum({rate('loadtest_operator_scrape_failures_total')})", "failed")], width=8),
        lines("Age of the oldest watch", "Above 200 s, the operator does not see changes.", "s",
              [("max(loadtest_operator_watch_age_seconds)", "age")], width=8),
        lines("Fields that differ from the CRD", "Fields that only the installed CRD or only the operator has.", "short",
              [("max(loadtest_operator_crd_differences)", "fields")], width=8),
    ]
    return dashboard(
        "loadtest-runs", "Load tests: all runs", "All LoadTests and the operator.", panels, variables, [], [],
    )


def main():
    FOLDER.mkdir(exist_ok=True)
    for build in (run_dashboard, runs_dashboard):
        built = build()
        text = json.dumps(built, indent=2, ensure_ascii=False) + "\n"
        file = FOLDER / f"{built['uid']}.json"
        changed = not file.exists() or file.read_text() != text
        file.write_text(text)
        print(f"{file.relative_to(FOLDER.parents[2])}: {'written' if changed else 'unchanged'}")


if __name__ == "__main__":
    main()
