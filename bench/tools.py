"""The tools: where they come from, and which versions they are."""

import os
import pathlib
import platform
import shutil
import subprocess
import sys

from machine import run, say

ROOT = pathlib.Path(__file__).resolve().parent.parent
CACHE = pathlib.Path(os.environ.get("LOADTEST_CACHE") or pathlib.Path.home() / ".cache/loadtest-operator") / "bench"
OURS = "loadtest"
RUNNER = "loadtest-runner"
SIMULATOR = "cell0-simulator"
SCRIPTS = ROOT / "bench/scripts"
# A tool that looks for a model's tokenizer is told there is no network, and which one to take.
TOKENIZER = CACHE / "tokenizer"


def apt(program, package):
    if not shutil.which(program):
        apt_install(package)
    return shutil.which(program)


def apt_install(package):
    env = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", package], env=env)


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


def python(name, *packages):
    """A program of Python packages, in an environment of its own; new when they change."""
    home = CACHE / name
    mark, wanted = home / "packages", "\n".join(packages)
    if not mark.exists() or mark.read_text() != wanted:
        say(f"installing {name} ...")
        run([sys.executable, "-m", "venv", str(home)])
        run([str(home / "bin/pip"), "install", "-q", *packages])
        mark.write_text(wanted)
    return str(home / "bin" / name)


def built():
    """Our binaries, built as the images' are: static, with the same features."""
    target = f"{platform.machine()}-unknown-linux-musl"
    env = dict(os.environ)
    env.setdefault(f"CC_{target.replace('-', '_')}", "musl-gcc")
    say("building loadtest ...")
    packages = ["loadtest-operator", RUNNER, SIMULATOR, OURS]
    flags = [flag for package in packages for flag in ("-p", package)]
    run(["cargo", "build", "--release", "--locked", "--target", target, *flags], cwd=ROOT, env=env)
    return pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / target / "release"


def install(wanted, binaries=None):
    """Paths of the tools that cases want; ours from a folder, or built."""
    if not pathlib.Path("/usr/include/openssl/ssl.h").exists():
        apt_install("libssl-dev")
    binaries = binaries or built()
    oha = ["cargo", "install", "-q", "--locked", "oha", "--version", "1.16.0", "--root", str(CACHE)]
    makers = {
        OURS: lambda: str(binaries / OURS),
        RUNNER: lambda: str(binaries / RUNNER),
        SIMULATOR: lambda: str(binaries / SIMULATOR),
        "wrk": lambda: apt("wrk", "wrk"),
        "h2load": lambda: apt("h2load", "nghttp2-client"),
        "oha": lambda: cached("oha", lambda: run(oha)),
        "k6": lambda: go("k6", "go.k6.io/k6@v1.8.1"),
        "vegeta": lambda: go("vegeta", "github.com/tsenart/vegeta/v12@v12.13.0"),
        "locust": lambda: python("locust", "locust==2.47.0", "websocket-client==1.9.2"),
        "guidellm": lambda: python("guidellm", "guidellm==0.8.1"),
        "aiperf": lambda: python("aiperf", "aiperf==0.13.0"),
    }
    paths = {tool: make() for tool, make in makers.items() if tool in wanted}
    if "aiperf" in paths and not TOKENIZER.exists():
        run([str(CACHE / "aiperf/bin/python"), str(SCRIPTS / "tokenizer.py"), str(TOKENIZER)])
    return paths


def first_line(command):
    done = subprocess.run(command, text=True, capture_output=True)
    return (done.stdout + done.stderr).strip().splitlines()[0][:60]


def commit():
    # What the benchmark itself writes is no change.
    results = (":!bench/RESULTS.md", ":!bench/raw.json")
    changed = run(["git", "status", "--porcelain", "--", ".", *results], cwd=ROOT).strip()
    return run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT).strip() + (" with changes" if changed else "")


def versions(paths):
    told = {
        OURS: lambda path: first_line([path, "--version"]),
        "wrk": lambda path: first_line([path, "-v"]),
        "h2load": lambda path: first_line([path, "--version"]),
        "oha": lambda path: first_line([path, "--version"]),
        "k6": lambda path: first_line([path, "version"]),
        "vegeta": lambda _: "vegeta v12.13.0",
        "locust": lambda path: " ".join(first_line([path, "--version"]).split()[:2]),
        "guidellm": lambda _: "guidellm 0.8.1",
        "aiperf": lambda _: "aiperf 0.13.0",
    }
    return {tool: told[tool](path) for tool, path in paths.items() if tool in told}
