#!/usr/bin/env python3
"""Runs this project's load generator and others side by side, and writes bench/RESULTS.md.

    bench/bench.py [--seconds 5] [--rounds 5] [--cases max,post,rate,idle] [--out bench]

One server is pinned to core 0, one generator at a time to core 1. Each round runs every tool
once, in random order; figures are medians over rounds, ratios are of medians. Raw figures go
to bench/raw.json. Needs two cores, root for Debian's packages, Rust, Go and Python; tools come
from their own registries into the project's cache.
"""

import argparse
import csv
import json
import os
import pathlib
import platform
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
CACHE = pathlib.Path(os.environ.get("LOADTEST_CACHE") or pathlib.Path.home() / ".cache/loadtest-operator") / "bench"
PORT = 18990
URL = f"http://127.0.0.1:{PORT}/"
CONNECTIONS = 64
SERVER_CORE, GENERATOR_CORE = 0, 1
OURS = "loadtest"
BODY = "x" * 2048


def run(command, **kwargs):
    return subprocess.run(command, check=True, text=True, capture_output=True, **kwargs).stdout


def say(text):
    print(text, flush=True)


# ---------------------------------------------------------------- the tools


def apt(program, package):
    if not shutil.which(program):
        env = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
        run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", package], env=env)
    return shutil.which(program)


def cached(name, build):
    path = CACHE / "bin" / name
    if not path.exists():
        say(f"building {name} ...")
        path.parent.mkdir(parents=True, exist_ok=True)
        build()
    return str(path)


def go(name, package):
    env = dict(os.environ, GOBIN=str(CACHE / "bin"), GOFLAGS="")
    return cached(name, lambda: run(["go", "install", package], env=env, cwd="/"))


def install():
    """Paths and versions of all tools."""
    target = f"{platform.machine()}-unknown-linux-musl"
    env = dict(os.environ)
    env.setdefault(f"CC_{target.replace('-', '_')}", "musl-gcc")
    say("building loadtest ...")
    # As the images' binaries are built: static, with the same features.
    packages = ["loadtest-operator", "loadtest-runner", "cell0-simulator", "loadtest"]
    flags = [flag for package in packages for flag in ("-p", package)]
    run(["cargo", "build", "--release", "--locked", "--target", target, *flags], cwd=ROOT, env=env)
    built = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    locust = CACHE / "locust"
    if not (locust / "bin/locust").exists():
        say("installing locust ...")
        run([sys.executable, "-m", "venv", str(locust)])
        run([str(locust / "bin/pip"), "install", "-q", "locust==2.47.0"])
    oha = ["cargo", "install", "-q", "--locked", "oha", "--version", "1.16.0", "--root", str(CACHE)]
    paths = {
        OURS: str(built / target / "release/loadtest"),
        "wrk": apt("wrk", "wrk"),
        "h2load": apt("h2load", "nghttp2-client"),
        "oha": cached("oha", lambda: run(oha)),
        "k6": go("k6", "go.k6.io/k6@v1.8.1"),
        "vegeta": go("vegeta", "github.com/tsenart/vegeta/v12@v12.13.0"),
        "locust": str(locust / "bin/locust"),
    }
    def first_line(command):
        done = subprocess.run(command, text=True, capture_output=True)
        return (done.stdout + done.stderr).strip().splitlines()[0][:60]
    commit = run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT).strip()
    versions = {
        OURS: f"{first_line([paths[OURS], '--version'])} at {commit}",
        "wrk": first_line([paths["wrk"], "-v"]),
        "h2load": first_line([paths["h2load"], "--version"]),
        "oha": first_line([paths["oha"], "--version"]),
        "k6": first_line([paths["k6"], "version"]),
        "vegeta": "vegeta v12.13.0",
        "locust": " ".join(first_line([paths["locust"], "--version"]).split()[:2]),
    }
    return paths, versions


# ---------------------------------------------------------------- one run


def pinned(core, command, **kwargs):
    return subprocess.Popen(["taskset", "-c", str(core), *command], **kwargs)


class Server:
    """The target, on its core."""

    def __enter__(self):
        binary = CACHE / "bin/server"
        source = ROOT / "bench/server.c"
        binary.parent.mkdir(parents=True, exist_ok=True)
        run(["gcc", "-O2", "-o", str(binary), str(source)])
        self.process = pinned(SERVER_CORE, [str(binary), str(PORT)])
        deadline = time.monotonic() + 5
        while True:
            try:
                socket.create_connection(("127.0.0.1", PORT), 1).close()
                return self
            except OSError:
                if time.monotonic() > deadline:
                    raise

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


def idle_time(core):
    """Seconds the core has been idle, which a kernel without idle ticks counts exactly.

    User and system time are counted by ticks: work that is always on at a tick, or never, as a
    timer's may be, comes out many times too large or too small.
    """
    for line in pathlib.Path("/proc/stat").read_text().splitlines():
        fields = line.split()
        if fields[0] == f"cpu{core}":
            return (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK")
    raise RuntimeError(f"no cpu{core}")


def spec(load, pause=None, body=None):
    task = {"name": "get", "http": {"path": "/"}}
    if body:
        task["http"] = {"path": "/", "method": "POST", "body": body}
    scenario = {"tasks": [task]}
    if pause:
        scenario["pause"] = {"min": pause, "max": pause}
    return {
        "apiVersion": "loadtest.cell0.io/v1alpha1",
        "kind": "LoadTest",
        "metadata": {"name": "bench"},
        "spec": {"target": {"http": URL.rstrip("/")}, "load": load, "scenario": scenario},
    }


def written(folder, name, text):
    path = folder / name
    path.write_text(text)
    return str(path)


def k6_script(folder, scenario, body):
    call = f"http.post('{URL}', '{body}')" if body else f"http.get('{URL}')"
    options = {"scenarios": {"s": scenario}, "discardResponseBodies": True}
    text = f"import http from 'k6/http';\nexport const options = {json.dumps(options)};\n"
    return written(folder, "k6.js", text + f"export default function () {{ {call}; }}\n")


def command(tool, path, folder, seconds, rate=None, body=None):
    """The command of one run: at the highest rate, or at a fixed one."""
    each = f"{seconds}s"
    n = CONNECTIONS
    if tool == OURS:
        load = {"users": n, "spawnRate": 10000, "duration": each, "gracefulStop": "1s"}
        if rate:
            load = {"arrivalRate": f"{rate}/s", "maxUsers": n, "duration": each, "gracefulStop": "1s"}
        file = written(folder, "test.yaml", json.dumps(spec(load, body=body)))
        return [path, "run", file, "--json", str(folder / "out.json")]
    if tool == "wrk":
        post = f'wrk.method = "POST"\nwrk.body = "{body}"\n'
        script = ["-s", written(folder, "post.lua", post)] if body else []
        return [path, "-t1", f"-c{n}", f"-d{each}", "--latency", *script, URL]
    if tool == "h2load":
        data = ["-d", written(folder, "body", body)] if body else []
        return [path, "--h1", f"-c{n}", "-t1", f"-D{seconds}", *data, URL]
    if tool == "oha":
        limit = ["-q", str(rate)] if rate else []
        data = ["-m", "POST", "-d", body] if body else []
        flags = ["--no-tui", "--output-format", "json", "-c", str(n), "-z", each]
        return [path, *flags, *limit, *data, URL]
    if tool == "k6":
        scenario = {"executor": "constant-vus", "vus": n, "duration": each}
        if rate:
            scenario = {
                "executor": "constant-arrival-rate", "rate": rate, "timeUnit": "1s",
                "duration": each, "preAllocatedVUs": n, "maxVUs": n,
            }
        file = k6_script(folder, scenario, body)
        return [path, "run", "-q", "--no-usage-report", "--summary-export", str(folder / "out.json"), file]
    if tool == "locust":
        call = f"self.client.post('/', data='{body}')" if body else "self.client.get('/')"
        text = (
            "from locust import FastHttpUser, task\n"
            f"class U(FastHttpUser):\n    host = '{URL.rstrip('/')}'\n"
            f"    @task\n    def t(self):\n        {call}\n"
        )
        file = written(folder, "locustfile.py", text)
        flags = ["--headless", "--only-summary", "-L", "ERROR", "-u", str(n), "-r", str(n), "-t", each]
        return [path, "-f", file, *flags, "--csv", str(folder / "out")]
    if tool == "vegeta":
        method = "POST" if body else "GET"
        data = f"-body={written(folder, 'body', body)}" if body else ""
        attack = f"echo '{method} {URL}' | exec {path} attack -rate={rate} -duration={each}"
        return ["sh", "-c", f"{attack} -connections={n} -workers={n} -max-workers={n} {data} > out.bin"]
    raise ValueError(tool)


def requests_of(tool, path, folder, out):
    """Requests that were answered well; one that failed ends the benchmark."""
    if tool == OURS:
        total = json.loads((folder / "out.json").read_text())["total"]
        assert total["failures"] == 0, total["errors"]
        return total["requests"]
    if tool == "wrk":
        return int(re.search(r"(\d+) requests in", out)[1])
    if tool == "h2load":
        return int(re.search(r"requests: .* (\d+) succeeded", out)[1])
    if tool == "oha":
        codes = json.loads(out)["statusCodeDistribution"]
        assert set(codes) == {"200"}, codes
        return codes["200"]
    if tool == "k6":
        metrics = json.loads((folder / "out.json").read_text())["metrics"]
        assert metrics["http_req_failed"]["value"] == 0, metrics["http_req_failed"]
        return metrics["http_reqs"]["count"]
    if tool == "locust":
        rows = list(csv.DictReader((folder / "out_stats.csv").open()))
        assert rows[-1]["Failure Count"] == "0", rows[-1]
        return int(rows[-1]["Request Count"])
    if tool == "vegeta":
        # Not while its attack is measured.
        told = json.loads(run([path, "report", "-type=json", str(folder / "out.bin")]))
        assert told["status_codes"] == {"200": told["requests"]}, told["status_codes"]
        return told["requests"]
    raise ValueError(tool)


def measure(tool, path, seconds, rate=None, body=None):
    """One run: requests a second, and CPU seconds of its core for a request."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        line = command(tool, path, folder, seconds, rate, body)
        began, before = time.monotonic(), idle_time(GENERATOR_CORE)
        process = pinned(
            GENERATOR_CORE, line, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=folder
        )
        out, err = process.communicate(timeout=seconds + 60)
        used = time.monotonic() - began - (idle_time(GENERATOR_CORE) - before)
        try:
            done = requests_of(tool, path, folder, out)
        except Exception as error:
            raise RuntimeError(f"{tool}: {error}\n{out[-800:]}\n{err[-800:]}") from error
    return {"rps": done / seconds, "cpu_us": used / done * 1e6, "busy": used / seconds}


# ---------------------------------------------------------------- cases


def rounds_of(paths, tools, rounds, label, raw, run_one):
    results = {tool: [] for tool in tools}
    for number in range(rounds):
        for tool in random.sample(tools, len(tools)):
            with Server():
                results[tool].append(run_one(tool, paths[tool]))
        say(f"{label}: round {number + 1} of {rounds}")
    raw[label] = results
    return results


def median(results, tool, figure):
    return statistics.median(one[figure] for one in results[tool])


def spread(results, tool, figure):
    values = [one[figure] for one in results[tool]]
    return f"{min(values):,.0f}–{max(values):,.0f}" if figure == "rps" else f"{min(values):.1f}–{max(values):.1f}"


def max_rate(title, results):
    ours = median(results, OURS, "rps")
    rows = [f"## {title}", "", "| tool | requests/s, median | min–max | CPU per request | ours ÷ it |", "|---|---|---|---|---|"]
    for tool in sorted(results, key=lambda t: -median(results, t, "rps")):
        rate = median(results, tool, "rps")
        cpu = median(results, tool, "cpu_us")
        rows.append(f"| {tool} | {rate:,.0f} | {spread(results, tool, 'rps')} | {cpu:.1f} µs | {ours / rate:.2f} |")
    return rows + [""]


def fixed_rate(rate, results):
    ours = median(results, OURS, "cpu_us")
    rows = [f"### {rate:,} requests/s asked for", "", "| tool | requests/s | CPU per request, median | min–max | ours ÷ it |", "|---|---|---|---|---|"]
    for tool in sorted(results, key=lambda t: median(results, t, "cpu_us")):
        cpu = median(results, tool, "cpu_us")
        rps = median(results, tool, "rps")
        rows.append(f"| {tool} | {rps:,.0f} | {cpu:.1f} µs | {spread(results, tool, 'cpu_us')} | {ours / cpu:.2f} |")
    return rows + [""]


def resident(pid):
    """VmRSS in bytes of a process."""
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) * 1024


def idle(paths, raw):
    """Memory for each user that waits with its connection open: the slope over users."""
    seen = {}
    for users in (100, 1000, 5000, 10000):
        with Server(), tempfile.TemporaryDirectory() as name:
            load = {"users": users, "spawnRate": 5000, "duration": "30s"}
            file = written(pathlib.Path(name), "test.yaml", json.dumps(spec(load, pause="60s")))
            process = pinned(GENERATOR_CORE, [paths[OURS], "run", file], stdout=subprocess.DEVNULL)
            wanted, deadline = users, time.monotonic() + 20
            while connected() < wanted and time.monotonic() < deadline:
                time.sleep(0.2)
            time.sleep(1)
            seen[users] = {"rss": resident(process.pid), "open": connected()}
            if seen[users]["open"] < users:
                raise RuntimeError(f"only {seen[users]['open']} of {users} users are connected")
            process.send_signal(signal.SIGKILL)
            process.wait()
        say(f"idle: {users} users, {seen[users]['rss'] / 1e6:.1f} MB")
    raw["idle"] = seen
    low, high = min(seen), max(seen)
    slope = (seen[high]["rss"] - seen[low]["rss"]) / (high - low)
    rows = ["## Memory of users that wait, connection open", "", "| users | resident |", "|---|---|"]
    rows += [f"| {users:,} | {one['rss'] / 2**20:.1f} MiB |" for users, one in seen.items()]
    return rows + ["", f"{slope / 1024:.1f} KiB for a user (the kernel's socket memory is not in it).", ""]


def connected():
    """Established connections to the server, at the clients' side."""
    wanted, count = f":{PORT:04X}", 0
    for line in pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        count += fields[2].endswith(wanted) and fields[3] == "01"
    return count


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", default="max,post,rate,idle")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "bench")
    arguments = parser.parse_args()
    cases, seconds, rounds = arguments.cases.split(","), arguments.seconds, arguments.rounds
    if (os.cpu_count() or 1) < 2:
        sys.exit("bench: needs two cores, one for the server and one for the generator")
    paths, versions = install()
    raw, lines = {"versions": versions, "seconds": seconds, "rounds": rounds}, []
    all_out = ["wrk", "h2load", "oha", "k6", "locust", OURS]
    if "max" in cases:
        results = rounds_of(paths, all_out, rounds, "max rate", raw, lambda t, p: measure(t, p, seconds))
        lines += max_rate(f"Highest rate: {CONNECTIONS} connections, tiny GET, one core", results)
    if "post" in cases:
        post = lambda t, p: measure(t, p, seconds, body=BODY)
        results = rounds_of(paths, all_out, rounds, "2 KB POST", raw, post)
        lines += max_rate(f"Highest rate: {CONNECTIONS} connections, POST of 2 KB, one core", results)
    if "rate" in cases:
        lines += ["## CPU per request at a fixed rate", ""]
        for rate in (1000, 5000, 10000, 20000):
            tools = [OURS, "oha", "vegeta"] + (["k6"] if rate <= 10000 else [])
            at = lambda t, p, rate=rate: measure(t, p, seconds, rate=rate)
            lines += fixed_rate(rate, rounds_of(paths, tools, rounds, f"{rate}/s", raw, at))
    if "idle" in cases:
        lines += idle(paths, raw)
    head = [
        "# Benchmark results",
        "",
        f"Written by `make bench` on {time.strftime('%Y-%m-%d')}: {cpu_name()}, {os.cpu_count()} cores, Linux"
        f" {platform.release()}. Server on core {SERVER_CORE}, generator on core {GENERATOR_CORE};"
        f" {rounds} rounds of {seconds} s in random order. Every measurement of ours is on: response and service time,"
        " schedule lag, bytes, errors. CPU is the time in which the generator's core was not idle, from /proc/stat, start-up included.",
        "",
        "| tool | version |",
        "|---|---|",
        *[f"| {tool} | {version} |" for tool, version in versions.items()],
        "",
    ]
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "RESULTS.md").write_text("\n".join(head + lines))
    (arguments.out / "raw.json").write_text(json.dumps(raw, indent=1) + "\n")
    say("\n".join(lines))


def cpu_name():
    text = pathlib.Path("/proc/cpuinfo").read_text()
    found = re.search(r"model name\s*:\s*(.*)", text)
    return found[1] if found else platform.machine()


if __name__ == "__main__":
    main()
