"""Streamed chat: events read and parsed in a second, by one core."""

import json

import ours
from cases import Case
from generators import locust, locust_requests
from runs import generate, rounds_of
from tables import by_rate, cell, median, percent, ratio, spread, table
from target import HTTP
from tools import OURS, SCRIPTS, TOKENIZER

USERS = 16
EVENTS = 500  # of content in each answer, as in server/chat.c
PYTHON = ["locust", "guidellm", "aiperf"]
PROMPT = "Summarize the benefits of load testing in three sentences."
# Neither asks the network for a tokenizer: one has no use for it here, the other one is handed one.
OFFLINE = {"HF_HUB_OFFLINE": "1", "GUIDELLM__MAX_WORKER_PROCESSES": "1"}


def of_ours(path, folder, seconds):
    task = {"name": "chat", "chat": {"models": ["bench"], "messages": [PROMPT], "stream": True}}
    return ours.command(path, folder, ours.spec([task], ours.closed(USERS, seconds)))


def of_locust(path, folder, seconds):
    return [*locust(path, folder, SCRIPTS / "locust_chat.py", USERS, seconds), "--host", HTTP]


def of_guidellm(path, folder, seconds):
    # It stops when it has sent every row once: more than there is time for.
    (folder / "prompts.jsonl").write_text((json.dumps({"prompt": PROMPT}) + "\n") * 2000 * seconds)
    return [
        path, "run", "--disable-progress",
        "--backend", f"kind=openai_http,target={HTTP},model=bench",
        "--profile", f"kind=concurrent,streams={USERS}",
        "--constraint", f"kind=max_duration,seconds={seconds}",
        "--data", f"kind=json_file,path={folder / 'prompts.jsonl'}",
        "--output", f"kind=json,path={folder / 'guidellm.json'}",
    ]


def of_aiperf(path, folder, seconds):
    return [
        path, "profile", "--model", "bench", "--url", HTTP, "--endpoint-type", "chat", "--streaming",
        "--concurrency", str(USERS), "--benchmark-duration", str(seconds), "--use-server-token-count",
        "--tokenizer", str(TOKENIZER), "--isl", "16", "--osl", str(EVENTS), "--num-dataset-entries", "16",
        "--workers-max", "1", "--no-gpu-telemetry", "--no-server-metrics", "--export-level", "summary",
        "--ui", "none", "--output-artifact-dir", str(folder / "aiperf"),
    ]


COMMANDS = {OURS: of_ours, "locust": of_locust, "guidellm": of_guidellm, "aiperf": of_aiperf}


def answers_a_second(tool, folder, seconds):
    """Whole answers, over the time in which the tool itself says it made load."""
    if tool == OURS:
        total = ours.result(folder)["total"]
        assert total["tokens"]["output"] == EVENTS * total["requests"], total["tokens"]
        return total["requests"] / seconds
    if tool == "locust":
        return locust_requests(folder, "answer") / seconds
    if tool == "guidellm":
        told = json.loads((folder / "guidellm.json").read_text())["benchmarks"][0]
        totals = told["metrics"]["request_totals"]
        assert totals["errored"] == 0, totals
        return totals["successful"] / told["duration"]
    told = json.loads((folder / "aiperf/profile_export_aiperf.json").read_text())
    return told["request_throughput"]["avg"]


def measure(context):
    def one(tool, folder):
        line = COMMANDS[tool](context.paths[tool], folder, context.seconds)
        # A tool that first looks whether the server is there has one connection for that.
        ran = generate(line, folder, context.seconds, OFFLINE if tool == "guidellm" else None, USERS // 2)
        rate = answers_a_second(tool, folder, context.seconds) * EVENTS
        return {"eps": rate, "cpu_us": ran.busy / rate * 1e6, "busy": ran.busy, "server_busy": ran.server_busy}

    return rounds_of([OURS, *PYTHON], context, "chat", one)


def lines(results):
    head = ["tool", "events/s, median", "min–max", "CPU per event", "its core busy", "server's core, used by it", "ours ÷ it"]
    rows = [
        [
            tool, cell(median(results, tool, "eps")), spread(results, tool, "eps", "{:,.0f}"),
            cell(median(results, tool, "cpu_us"), "{:.2f} µs"), percent(median(results, tool, "busy")),
            percent(median(results, tool, "server_busy")), ratio(results, OURS, tool, "eps"),
        ]
        for tool in by_rate(results, "eps")
    ]
    return [
        f"## Streamed chat: {USERS} users, answers of {EVENTS} events, one core", "",
        "The server writes events as fast as they are taken, many in one write: what is measured is reading and"
        " parsing them, not waiting. Every tool parses the JSON of every event and takes the time to the first token;"
        " ours, guidellm and aiperf also the times between tokens, which the script for Locust leaves out;"
        f" events are {EVENTS} for each answer that was whole. The Python tools' processes share the one core, with one"
        " worker; aiperf is given a tokenizer of a few words and counts tokens by the server's usage, as guidellm does.",
        "", *table(head, rows),
    ]


CHAT = Case("chat", [OURS, *PYTHON], measure, lines)
