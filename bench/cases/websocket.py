"""WebSockets: how many messages go there and back in a second, by one core."""

import ours
from cases import Case
from generators import k6_metrics, locust, locust_requests
from runs import generate, rounds_of
from tables import by_rate, cell, median, percent, ratio, spread, table
from target import WEB_SOCKET
from tools import OURS, SCRIPTS

SESSIONS = 64
# As many as a task of ours may send.
MESSAGES = 64
MESSAGE = "m" * 64


def of_ours(path, folder, seconds):
    task = ours.web_socket([MESSAGE] * MESSAGES)
    load = ours.closed(SESSIONS, seconds)
    return ours.command(path, folder, ours.spec([task], load, {"webSocket": WEB_SOCKET}))


def of_k6(path, folder, _):
    flags = ["run", "-q", "--no-usage-report", "--summary-export", str(folder / "k6.json")]
    return [path, *flags, str(SCRIPTS / "k6_websocket.js")]


def of_locust(path, folder, seconds):
    file = SCRIPTS / "locust_websocket.py"
    return [*locust(path, folder, file, SESSIONS, seconds), "--host", WEB_SOCKET]


COMMANDS = {OURS: of_ours, "k6": of_k6, "locust": of_locust}


def environment(users, seconds, pause=0):
    return {
        "BENCH_URL": WEB_SOCKET, "BENCH_MESSAGE": MESSAGE, "BENCH_USERS": str(users),
        "BENCH_SECONDS": str(seconds), "BENCH_PAUSE": str(pause),
    }


def messages(tool, folder):
    if tool == OURS:
        total = ours.result(folder)["total"]
        return total["requests"] * MESSAGES
    if tool == "k6":
        return k6_metrics(folder)["ws_msgs_received"]["count"]
    return locust_requests(folder)


def measure(context):
    def one(tool, folder):
        line = COMMANDS[tool](context.paths[tool], folder, context.seconds)
        ran = generate(line, folder, context.seconds, environment(SESSIONS, context.seconds))
        rate = messages(tool, folder) / context.seconds
        return {"mps": rate, "cpu_us": ran.busy / rate * 1e6, "busy": ran.busy, "server_busy": ran.server_busy}

    return rounds_of(list(COMMANDS), context, "websocket", one)


def lines(results):
    head = ["tool", "echoes/s, median", "min–max", "CPU per echo", "server's core, used by it", "ours ÷ it"]
    rows = [
        [
            tool, cell(median(results, tool, "mps")), spread(results, tool, "mps", "{:,.0f}"),
            cell(median(results, tool, "cpu_us"), "{:.1f} µs"), percent(median(results, tool, "server_busy")),
            ratio(results, OURS, tool, "mps"),
        ]
        for tool in by_rate(results, "mps")
    ]
    return [
        f"## WebSocket: {SESSIONS} sessions, messages of {len(MESSAGE)} bytes sent back, one core", "",
        f"A session has one message under way and is kept for the whole run; ours has a task of {MESSAGES} messages.",
        "", *table(head, rows),
    ]


WEBSOCKET = Case("websocket", list(COMMANDS), measure, lines)
