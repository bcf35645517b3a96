"""WebSockets: echoes per second that one core can make."""

import load_test
from cases import Case
from generators import build_locust_script_command, count_locust_requests, read_k6_metrics
from runs import run_generator, run_rounds
from tables import compute_median, format_percent, format_range, format_ratio, format_table, format_value, sort_by_rate
from target import WEB_SOCKET_URL
from tools import LOADTEST, SCRIPTS

SESSIONS = 64
# The maximum number of messages in a task of `loadtest`.
MESSAGES = 64
MESSAGE = "m" * 64


def build_loadtest_command(path, folder, seconds):
    task = load_test.build_echo_task([MESSAGE] * MESSAGES)
    load = load_test.build_closed_load(SESSIONS, seconds)
    test = load_test.build_load_test([task], load, {"webSocket": WEB_SOCKET_URL})
    return load_test.build_command(path, folder, test)


def build_k6_command(path, folder, _):
    flags = ["run", "-q", "--no-usage-report", "--summary-export", str(folder / "k6.json")]
    return [path, *flags, str(SCRIPTS / "k6_websocket.js")]


def build_locust_command(path, folder, seconds):
    file = SCRIPTS / "locust_websocket.py"
    return [*build_locust_script_command(path, folder, file, SESSIONS, seconds), "--host", WEB_SOCKET_URL]


COMMANDS = {LOADTEST: build_loadtest_command, "k6": build_k6_command, "locust": build_locust_command}


def build_environment(users, seconds, pause=0):
    """Returns the environment variables of the scripts for k6 and Locust."""
    return {
        "BENCH_URL": WEB_SOCKET_URL, "BENCH_MESSAGE": MESSAGE, "BENCH_USERS": str(users),
        "BENCH_SECONDS": str(seconds), "BENCH_PAUSE": str(pause),
    }


def count_echoes(tool, folder):
    if tool == LOADTEST:
        return load_test.read_result(folder)["total"]["requests"] * MESSAGES
    if tool == "k6":
        return read_k6_metrics(folder)["ws_msgs_received"]["count"]
    return count_locust_requests(folder)


def measure(context):
    def run_once(tool, folder):
        command = COMMANDS[tool](context.paths[tool], folder, context.seconds)
        environment = build_environment(SESSIONS, context.seconds)
        run = run_generator(command, folder, context.seconds, environment)
        rate = count_echoes(tool, folder) / context.seconds
        return {"mps": rate, "cpu_us": run.busy / rate * 1e6, "busy": run.busy, "server_busy": run.server_busy}

    return run_rounds(list(COMMANDS), context, "websocket", run_once)


def build_lines(results):
    head = ["tool", "echoes/s, median", "min–max", "CPU time per echo", "server CPU", "loadtest ÷ tool"]
    rows = [
        [
            tool, format_value(compute_median(results, tool, "mps")), format_range(results, tool, "mps", "{:,.0f}"),
            format_value(compute_median(results, tool, "cpu_us"), "{:.1f} µs"),
            format_percent(compute_median(results, tool, "server_busy")),
            format_ratio(results, LOADTEST, tool, "mps"),
        ]
        for tool in sort_by_rate(results, "mps")
    ]
    return [
        f"## WebSocket: {SESSIONS} sessions, echo of messages of {len(MESSAGE)} bytes, one core", "",
        "A session has one message in flight and stays open for the whole run. The task of `loadtest` has"
        f" {MESSAGES} messages.",
        "", *format_table(head, rows),
    ]


WEBSOCKET = Case("websocket", list(COMMANDS), measure, build_lines)
