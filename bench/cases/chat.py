"""Streamed chat: events per second that one core can read and parse."""

import json

import load_test
from cases import Case
from generators import build_locust_script_command, count_locust_requests
from runs import run_generator, run_rounds
from tables import compute_median, format_percent, format_range, format_ratio, format_table, format_value, sort_by_rate
from target import HTTP_URL
from tools import LOADTEST, SCRIPTS, TOKENIZER

USERS = 16
EVENTS = 500  # content events per response; CONTENT_EVENTS in server/responses.c must be equal
PYTHON_TOOLS = ["locust", "guidellm", "aiperf"]
PROMPT = "Summarize the benefits of load testing in three sentences."
# guidellm must not download a tokenizer; it needs none here.
GUIDELLM_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "GUIDELLM__MAX_WORKER_PROCESSES": "1"}


def build_loadtest_command(path, folder, seconds):
    task = {"name": "chat", "chat": {"models": ["bench"], "messages": [PROMPT], "stream": True}}
    load = load_test.build_closed_load(USERS, seconds)
    return load_test.build_command(path, folder, load_test.build_load_test([task], load))


def build_locust_command(path, folder, seconds):
    command = build_locust_script_command(path, folder, SCRIPTS / "locust_chat.py", USERS, seconds)
    return [*command, "--host", HTTP_URL]


def build_guidellm_command(path, folder, seconds):
    # guidellm stops after it has sent every row once, so there are more rows than it can send.
    (folder / "prompts.jsonl").write_text((json.dumps({"prompt": PROMPT}) + "\n") * 2000 * seconds)
    return [
        path, "run", "--disable-progress",
        "--backend", f"kind=openai_http,target={HTTP_URL},model=bench",
        "--profile", f"kind=concurrent,streams={USERS}",
        "--constraint", f"kind=max_duration,seconds={seconds}",
        "--data", f"kind=json_file,path={folder / 'prompts.jsonl'}",
        "--output", f"kind=json,path={folder / 'guidellm.json'}",
    ]


def build_aiperf_command(path, folder, seconds):
    return [
        path, "profile", "--model", "bench", "--url", HTTP_URL, "--endpoint-type", "chat", "--streaming",
        "--concurrency", str(USERS), "--benchmark-duration", str(seconds), "--use-server-token-count",
        "--tokenizer", str(TOKENIZER), "--isl", "16", "--osl", str(EVENTS), "--num-dataset-entries", "16",
        "--workers-max", "1", "--no-gpu-telemetry", "--no-server-metrics", "--export-level", "summary",
        "--ui", "none", "--output-artifact-dir", str(folder / "aiperf"),
    ]


COMMANDS = {
    LOADTEST: build_loadtest_command, "locust": build_locust_command,
    "guidellm": build_guidellm_command, "aiperf": build_aiperf_command,
}


def compute_response_rate(tool, folder, seconds):
    """Returns complete responses per second of the time in which the tool reports that it made load."""
    if tool == LOADTEST:
        total = load_test.read_result(folder)["total"]
        assert total["tokens"]["output"] == EVENTS * total["requests"], total["tokens"]
        return total["requests"] / seconds
    if tool == "locust":
        return count_locust_requests(folder, "response") / seconds
    if tool == "guidellm":
        benchmark = json.loads((folder / "guidellm.json").read_text())["benchmarks"][0]
        totals = benchmark["metrics"]["request_totals"]
        assert totals["errored"] == 0, totals
        return totals["successful"] / benchmark["duration"]
    profile = json.loads((folder / "aiperf/profile_export_aiperf.json").read_text())
    return profile["request_throughput"]["avg"]


def measure(context):
    def run_once(tool, folder):
        command = COMMANDS[tool](context.paths[tool], folder, context.seconds)
        environment = GUIDELLM_ENVIRONMENT if tool == "guidellm" else None
        # A tool that checks the server first opens one connection for that. Half of the users'
        # connections show that the load has begun.
        run = run_generator(command, folder, context.seconds, environment, connections=USERS // 2)
        rate = compute_response_rate(tool, folder, context.seconds) * EVENTS
        return {"eps": rate, "cpu_us": run.busy / rate * 1e6, "busy": run.busy, "server_busy": run.server_busy}

    return run_rounds([LOADTEST, *PYTHON_TOOLS], context, "chat", run_once)


def build_lines(results):
    head = [
        "tool", "events/s, median", "min–max", "CPU time per event", "generator core busy", "server CPU",
        "loadtest ÷ tool",
    ]
    rows = [
        [
            tool, format_value(compute_median(results, tool, "eps")), format_range(results, tool, "eps", "{:,.0f}"),
            format_value(compute_median(results, tool, "cpu_us"), "{:.2f} µs"),
            format_percent(compute_median(results, tool, "busy")),
            format_percent(compute_median(results, tool, "server_busy")),
            format_ratio(results, LOADTEST, tool, "eps"),
        ]
        for tool in sort_by_rate(results, "eps")
    ]
    return [
        f"## Streamed chat: {USERS} users, responses of {EVENTS} events, one core", "",
        "The server writes events as fast as the client reads them, many events per write. This case therefore measures"
        " reading and parsing, not waiting. Every tool parses the JSON of every event and measures the time to first"
        " token. `loadtest`, guidellm and aiperf also measure inter-token latency; the script for Locust does not."
        f" Only complete responses count, with {EVENTS} events each. The processes of the Python tools share one core"
        " and use one worker. aiperf gets a tokenizer with a few words. aiperf and guidellm take the number of tokens"
        " from the server's usage field.",
        "", *format_table(head, rows),
    ]


CHAT = Case("chat", [LOADTEST, *PYTHON_TOOLS], measure, build_lines)
