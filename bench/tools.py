"""The tools: their installation and their versions."""

import os
import pathlib
import platform
import shutil
import subprocess
import sys

from machine import log_progress, run_command

ROOT = pathlib.Path(__file__).resolve().parent.parent
CACHE = pathlib.Path(os.environ.get("LOADTEST_CACHE") or pathlib.Path.home() / ".cache/loadtest-operator") / "bench"
LOADTEST = "loadtest"
RUNNER = "loadtest-runner"
SIMULATOR = "cell0-simulator"
SCRIPTS = ROOT / "bench/scripts"
# The tokenizer for aiperf, which can't download one without a network.
TOKENIZER = CACHE / "tokenizer"


def install_apt_program(program, package):
    if not shutil.which(program):
        install_apt_package(package)
    return shutil.which(program)


def install_apt_package(package):
    env = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    run_command(["apt-get", "install", "-y", "-qq", "--no-install-recommends", package], env=env)


def build_once(name, build):
    """Returns the path of a program in the cache; builds it if it is missing."""
    path = CACHE / "bin" / name
    if not path.exists():
        log_progress(f"building {name} ...")
        path.parent.mkdir(parents=True, exist_ok=True)
        build()
    return str(path)


def install_go_program(name, package):
    env = dict(os.environ, GOBIN=str(CACHE / "bin"), GOFLAGS="")
    return build_once(name, lambda: run_command(["go", "install", package], env=env, cwd="/"))


def install_python_program(name, *packages):
    """Returns the path of a program in its own virtual environment.

    The environment is created again when the packages change.
    """
    home = CACHE / name
    marker, wanted = home / "packages", "\n".join(packages)
    if not marker.exists() or marker.read_text() != wanted:
        log_progress(f"installing {name} ...")
        run_command([sys.executable, "-m", "venv", str(home)])
        run_command([str(home / "bin/pip"), "install", "-q", *packages])
        marker.write_text(wanted)
    return str(home / "bin" / name)


def build_binaries():
    """Builds this project's binaries like those of the images: static, with the same features."""
    target = f"{platform.machine()}-unknown-linux-musl"
    env = dict(os.environ)
    env.setdefault(f"CC_{target.replace('-', '_')}", "musl-gcc")
    log_progress("building loadtest ...")
    packages = ["loadtest-operator", RUNNER, SIMULATOR, LOADTEST]
    flags = [flag for package in packages for flag in ("-p", package)]
    run_command(["cargo", "build", "--profile", "optimized", "--locked", "--target", target, *flags], cwd=ROOT, env=env)
    return pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / target / "optimized"


def install_tools(wanted, binaries=None):
    """Installs tools and returns their paths.

    This project's binaries come from the folder `binaries`; without one, they are built.
    """
    if not pathlib.Path("/usr/include/openssl/ssl.h").exists():
        install_apt_package("libssl-dev")
    binaries = binaries or build_binaries()
    oha = ["cargo", "install", "-q", "--locked", "oha", "--version", "1.16.0", "--root", str(CACHE)]
    installers = {
        LOADTEST: lambda: str(binaries / LOADTEST),
        RUNNER: lambda: str(binaries / RUNNER),
        SIMULATOR: lambda: str(binaries / SIMULATOR),
        "wrk": lambda: install_apt_program("wrk", "wrk"),
        "h2load": lambda: install_apt_program("h2load", "nghttp2-client"),
        "oha": lambda: build_once("oha", lambda: run_command(oha)),
        "k6": lambda: install_go_program("k6", "go.k6.io/k6@v1.8.1"),
        "vegeta": lambda: install_go_program("vegeta", "github.com/tsenart/vegeta/v12@v12.13.0"),
        "locust": lambda: install_python_program("locust", "locust==2.47.0", "websocket-client==1.9.2"),
        "guidellm": lambda: install_python_program("guidellm", "guidellm==0.8.1"),
        "aiperf": lambda: install_python_program("aiperf", "aiperf==0.13.0"),
    }
    paths = {tool: install() for tool, install in installers.items() if tool in wanted}
    if "aiperf" in paths and not TOKENIZER.exists():
        run_command([str(CACHE / "aiperf/bin/python"), str(SCRIPTS / "tokenizer.py"), str(TOKENIZER)])
    return paths


def read_first_line(command):
    result = subprocess.run(command, text=True, capture_output=True)
    return (result.stdout + result.stderr).strip().splitlines()[0][:60]


def read_commit():
    # The files that the benchmark writes don't count as changes.
    results = (":!bench/RESULTS.md", ":!bench/*.json", ":!docs/images")
    changed = run_command(["git", "status", "--porcelain", "--", ".", *results], cwd=ROOT).strip()
    return run_command(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT).strip() + (" with changes" if changed else "")


def read_versions(paths):
    readers = {
        LOADTEST: lambda path: read_first_line([path, "--version"]),
        "wrk": lambda path: read_first_line([path, "-v"]),
        "h2load": lambda path: read_first_line([path, "--version"]),
        "oha": lambda path: read_first_line([path, "--version"]),
        "k6": lambda path: read_first_line([path, "version"]),
        "vegeta": lambda _: "vegeta v12.13.0",
        "locust": lambda path: " ".join(read_first_line([path, "--version"]).split()[:2]),
        "guidellm": lambda _: "guidellm 0.8.1",
        "aiperf": lambda _: "aiperf 0.13.0",
    }
    return {tool: readers[tool](path) for tool, path in paths.items() if tool in readers}
