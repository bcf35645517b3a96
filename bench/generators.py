"""Generators of plain requests: their commands, and the number of requests they made."""

import dataclasses
import json
import re

import load_test
from machine import run_command
from runs import run_generator
from target import HTTP_URL, HTTPS_URL
from tools import LOADTEST

CONNECTIONS = 64


@dataclasses.dataclass
class Load:
    """The load that a generator must make: the highest rate, or a fixed rate."""

    seconds: int
    rate: int | None = None
    body: str | None = None
    tls: bool = False
    connections: int = CONNECTIONS
    # Measure latency from the time at which a request was due, in tools that have an option for this.
    corrected: bool = False
    # Arrivals within this time start together, such as "1ms"; `loadtest` only.
    precision: str | None = None
    # Seconds of a ramp to the rate, before `seconds`; `loadtest` only. An open model without a ramp
    # opens many connections at once. Each of them delays the requests after it. This delay is real,
    # but it is not an error of the quantiles in the time after it.
    ramp: int = 0

    @property
    def base(self):
        return HTTPS_URL if self.tls else HTTP_URL

    @property
    def url(self):
        return self.base + "/"


def write_file(folder, name, text):
    path = folder / name
    path.write_text(text)
    return str(path)


def build_loadtest_command(path, folder, load):
    task = load_test.build_post_task(load.body) if load.body else load_test.build_get_task()
    model = load_test.build_closed_load(load.connections, load.seconds)
    if load.rate:
        model = load_test.build_open_load(load.rate, load.connections, load.seconds, load.ramp, load.precision)
    target = {"http": load.base}
    if load.tls:
        target["tls"] = {"insecureSkipVerify": True}
    return load_test.build_command(path, folder, load_test.build_load_test([task], model, target))


def build_wrk_command(path, folder, load):
    post = f'wrk.method = "POST"\nwrk.body = "{load.body}"\n'
    script = ["-s", write_file(folder, "post.lua", post)] if load.body else []
    return [path, "-t1", f"-c{load.connections}", f"-d{load.seconds}s", "--latency", *script, load.url]


def build_h2load_command(path, folder, load):
    data = ["-d", write_file(folder, "body", load.body)] if load.body else []
    return [path, "--h1", f"-c{load.connections}", "-t1", f"-D{load.seconds}", *data, load.url]


def build_oha_command(path, _, load):
    limit = ["-q", str(load.rate)] if load.rate else []
    data = ["-m", "POST", "-d", load.body] if load.body else []
    flags = ["--no-tui", "--output-format", "json", "-c", str(load.connections), "-z", f"{load.seconds}s"]
    flags += ["--insecure"] if load.tls else []
    flags += ["--latency-correction"] if load.corrected else []
    return [path, *flags, *limit, *data, load.url]


def build_k6_command(path, folder, load):
    n, each = load.connections, f"{load.seconds}s"
    scenario = {"executor": "constant-vus", "vus": n, "duration": each}
    if load.rate:
        scenario = {
            "executor": "constant-arrival-rate", "rate": load.rate, "timeUnit": "1s",
            "duration": each, "preAllocatedVUs": n, "maxVUs": n,
        }
    options = {"scenarios": {"s": scenario}, "discardResponseBodies": True}
    options["insecureSkipTLSVerify"] = load.tls
    options["summaryTrendStats"] = ["med", "p(99)", "p(99.9)"]
    call = f"http.post('{load.url}', '{load.body}')" if load.body else f"http.get('{load.url}')"
    text = f"import http from 'k6/http';\nexport const options = {json.dumps(options)};\n"
    file = write_file(folder, "k6.js", text + f"export default function () {{ {call}; }}\n")
    return [path, "run", "-q", "--no-usage-report", "--summary-export", str(folder / "k6.json"), file]


def build_locust_command(path, folder, load):
    call = f"self.client.post('/', data='{load.body}')" if load.body else "self.client.get('/')"
    text = (
        "from locust import FastHttpUser, task\n"
        f"class U(FastHttpUser):\n    host = '{load.base}'\n"
        f"    @task\n    def t(self):\n        {call}\n"
    )
    file = write_file(folder, "locustfile.py", text)
    return build_locust_script_command(path, folder, file, load.connections, load.seconds)


def build_locust_script_command(path, folder, file, users, seconds):
    flags = ["--headless", "--only-summary", "-L", "ERROR", "-u", str(users), "-r", str(users)]
    # Locust appends .json to the name. Its CSV is written once per second, so it lacks the last requests.
    return [path, "-f", str(file), *flags, "-t", f"{seconds}s", "--json-file", str(folder / "locust")]


def build_vegeta_command(path, folder, load):
    method = "POST" if load.body else "GET"
    data = f"-body={write_file(folder, 'body', load.body)}" if load.body else ""
    n = load.connections
    attack = f"echo '{method} {load.url}' | exec {path} attack -rate={load.rate} -duration={load.seconds}s"
    return ["sh", "-c", f"{attack} -connections={n} -workers={n} -max-workers={n} {data} > vegeta.bin"]


COMMANDS = {
    LOADTEST: build_loadtest_command, "wrk": build_wrk_command, "h2load": build_h2load_command,
    "oha": build_oha_command, "k6": build_k6_command, "locust": build_locust_command, "vegeta": build_vegeta_command,
}


def read_k6_metrics(folder):
    return json.loads((folder / "k6.json").read_text())["metrics"]


def count_locust_requests(folder, name=None):
    """Returns the number of requests, of one name if given; a failed request ends the benchmark."""
    rows = json.loads((folder / "locust.json").read_text())
    assert all(row["num_failures"] == 0 for row in rows), rows
    return sum(row["num_requests"] for row in rows if name in (None, row["name"]))


def create_vegeta_report(path, folder):
    """Returns vegeta's report; called after the attack, so its CPU time is not measured."""
    return json.loads(run_command([path, "report", "-type=json", str(folder / "vegeta.bin")]))


def count_requests(tool, path, folder, out):
    """Returns the number of successful requests; a failed request ends the benchmark."""
    if tool == LOADTEST:
        return load_test.read_result(folder)["total"]["requests"]
    if tool == "wrk":
        assert "Non-2xx" not in out and "Socket errors" not in out, out
        return int(re.search(r"(\d+) requests in", out)[1])
    if tool == "h2load":
        return int(re.search(r"requests: .* (\d+) succeeded", out)[1])
    if tool == "oha":
        codes = json.loads(out)["statusCodeDistribution"]
        assert set(codes) == {"200"}, codes
        return codes["200"]
    if tool == "k6":
        metrics = read_k6_metrics(folder)
        assert metrics["http_req_failed"]["value"] == 0, metrics["http_req_failed"]
        return metrics["http_reqs"]["count"]
    if tool == "locust":
        return count_locust_requests(folder)
    if tool == "vegeta":
        vegeta = create_vegeta_report(path, folder)
        assert vegeta["status_codes"] == {"200": vegeta["requests"]}, vegeta["status_codes"]
        return vegeta["requests"]
    raise ValueError(tool)


def parse_wrk_seconds(out):
    number, unit = re.search(r"requests in ([\d.]+)([smh])", out).groups()
    return float(number) * {"s": 1, "m": 60, "h": 3600}[unit]


def measure_run(tool, path, folder, load):
    """Returns the figures of one run: requests per second, and CPU time per request."""
    run = run_generator(COMMANDS[tool](path, folder, load), folder, load.seconds)
    requests = count_requests(tool, path, folder, run.stdout)
    # wrk checks its clock every 100 ms, so it can run longer than requested.
    duration = parse_wrk_seconds(run.stdout) if tool == "wrk" else load.seconds
    return {
        "rps": requests / duration, "cpu_us": run.cpu_seconds / requests * 1e6,
        "busy": run.busy, "server_busy": run.server_busy,
    }
