"""Generators of plain requests: the command of each, and the count of what it did."""

import dataclasses
import json
import re

import ours
from machine import run
from runs import generate
from target import HTTP, HTTPS
from tools import OURS

CONNECTIONS = 64


@dataclasses.dataclass
class Load:
    """What a generator is asked for: the highest rate, or a fixed one."""

    seconds: int
    rate: int | None = None
    body: str | None = None
    tls: bool = False
    connections: int = CONNECTIONS
    # Whether a tool that can count latency from when a request was due is told to.
    corrected: bool = False
    # Seconds over which ours grows to the rate, before the time that is asked for. An open load that
    # begins at its full rate begins with a storm of connections, each of which delays all that are
    # due behind it: real, and no part of how far a quantile is off in the time after it.
    ramp: int = 0

    @property
    def base(self):
        return HTTPS if self.tls else HTTP

    @property
    def url(self):
        return self.base + "/"


def written(folder, name, text):
    path = folder / name
    path.write_text(text)
    return str(path)


def of_ours(path, folder, load):
    task = ours.post(load.body) if load.body else ours.get()
    shape = ours.closed(load.connections, load.seconds)
    if load.rate:
        shape = ours.opened(load.rate, load.connections, load.seconds, load.ramp)
    target = {"http": load.base}
    if load.tls:
        target["tls"] = {"insecureSkipVerify": True}
    return ours.command(path, folder, ours.spec([task], shape, target))


def of_wrk(path, folder, load):
    post = f'wrk.method = "POST"\nwrk.body = "{load.body}"\n'
    script = ["-s", written(folder, "post.lua", post)] if load.body else []
    return [path, "-t1", f"-c{load.connections}", f"-d{load.seconds}s", "--latency", *script, load.url]


def of_h2load(path, folder, load):
    data = ["-d", written(folder, "body", load.body)] if load.body else []
    return [path, "--h1", f"-c{load.connections}", "-t1", f"-D{load.seconds}", *data, load.url]


def of_oha(path, _, load):
    limit = ["-q", str(load.rate)] if load.rate else []
    data = ["-m", "POST", "-d", load.body] if load.body else []
    flags = ["--no-tui", "--output-format", "json", "-c", str(load.connections), "-z", f"{load.seconds}s"]
    flags += ["--insecure"] if load.tls else []
    flags += ["--latency-correction"] if load.corrected else []
    return [path, *flags, *limit, *data, load.url]


def of_k6(path, folder, load):
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
    file = written(folder, "k6.js", text + f"export default function () {{ {call}; }}\n")
    return [path, "run", "-q", "--no-usage-report", "--summary-export", str(folder / "k6.json"), file]


def of_locust(path, folder, load):
    call = f"self.client.post('/', data='{load.body}')" if load.body else "self.client.get('/')"
    text = (
        "from locust import FastHttpUser, task\n"
        f"class U(FastHttpUser):\n    host = '{load.base}'\n"
        f"    @task\n    def t(self):\n        {call}\n"
    )
    return locust(path, folder, written(folder, "locustfile.py", text), load.connections, load.seconds)


def locust(path, folder, file, users, seconds):
    flags = ["--headless", "--only-summary", "-L", "ERROR", "-u", str(users), "-r", str(users)]
    # The JSON (it adds .json), not the CSV, which is written every second and lacks what came after.
    return [path, "-f", str(file), *flags, "-t", f"{seconds}s", "--json-file", str(folder / "locust")]


def of_vegeta(path, folder, load):
    method = "POST" if load.body else "GET"
    data = f"-body={written(folder, 'body', load.body)}" if load.body else ""
    n = load.connections
    attack = f"echo '{method} {load.url}' | exec {path} attack -rate={load.rate} -duration={load.seconds}s"
    return ["sh", "-c", f"{attack} -connections={n} -workers={n} -max-workers={n} {data} > vegeta.bin"]


COMMANDS = {
    OURS: of_ours, "wrk": of_wrk, "h2load": of_h2load, "oha": of_oha, "k6": of_k6,
    "locust": of_locust, "vegeta": of_vegeta,
}


def k6_metrics(folder):
    return json.loads((folder / "k6.json").read_text())["metrics"]


def locust_requests(folder, name=None):
    """Requests of a Locust run, or those of a name; one that failed ends the benchmark."""
    rows = json.loads((folder / "locust.json").read_text())
    assert all(row["num_failures"] == 0 for row in rows), rows
    return sum(row["num_requests"] for row in rows if name in (None, row["name"]))


def vegeta_report(path, folder):
    """Made after the attack, not while it is measured."""
    return json.loads(run([path, "report", "-type=json", str(folder / "vegeta.bin")]))


def requests_of(tool, path, folder, out):
    """Requests that were answered well; one that failed ends the benchmark."""
    if tool == OURS:
        return ours.result(folder)["total"]["requests"]
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
        metrics = k6_metrics(folder)
        assert metrics["http_req_failed"]["value"] == 0, metrics["http_req_failed"]
        return metrics["http_reqs"]["count"]
    if tool == "locust":
        return locust_requests(folder)
    if tool == "vegeta":
        told = vegeta_report(path, folder)
        assert told["status_codes"] == {"200": told["requests"]}, told["status_codes"]
        return told["requests"]
    raise ValueError(tool)


def wrk_seconds(out):
    number, unit = re.search(r"requests in ([\d.]+)([smh])", out).groups()
    return float(number) * {"s": 1, "m": 60, "h": 3600}[unit]


def measure(tool, path, folder, load):
    """One run: requests a second, and CPU seconds of its core for a request."""
    ran = generate(COMMANDS[tool](path, folder, load), folder, load.seconds)
    done = requests_of(tool, path, folder, ran.out)
    # It looks at its clock every 100 ms, and goes on meanwhile.
    took = wrk_seconds(ran.out) if tool == "wrk" else load.seconds
    return {
        "rps": done / took, "cpu_us": ran.used / done * 1e6,
        "busy": ran.busy, "server_busy": ran.server_busy,
    }
