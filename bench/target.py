"""The server that receives the load, on its own core, and the C client."""

import json
import pathlib
import signal
import socket
import subprocess

from machine import (
    GENERATOR_CORE, PORT, SERVER_CORE, read_thread_cpu_seconds, run_command, start_pinned, stop_process, wait_until,
)
from tools import CACHE, ROOT

HTTP_URL, HTTPS_URL = f"http://127.0.0.1:{PORT}", f"https://127.0.0.1:{PORT}"
WEB_SOCKET_URL = f"ws://127.0.0.1:{PORT}"


def compile_c(name, sources, *libraries):
    """Compiles C sources and returns the path of the binary."""
    binary = CACHE / "bin" / name
    binary.parent.mkdir(parents=True, exist_ok=True)
    run_command(["gcc", "-O2", "-Wall", "-Wextra", "-o", str(binary), *map(str, sources), *libraries])
    return str(binary)


def create_certificate():
    """Returns the paths of a self-signed certificate and its key; creates them if necessary."""
    files = CACHE / "certificate.pem", CACHE / "key.pem"
    if not all(file.exists() for file in files):
        subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
        new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
        output = ["-out", str(files[0]), "-keyout", str(files[1])]
        run_command([*new, "-nodes", "-days", "3650", *subject, *output])
    return [str(file) for file in files]


class Server:
    """The server in bench/server, with its command-line options and optionally with TLS."""

    current = None  # the running server

    def __init__(self, *options, tls=False):
        self.options = [str(option) for option in options]
        if tls:
            self.options += ["--tls", *create_certificate()]

    def __enter__(self):
        sources = sorted((ROOT / "bench/server").glob("*.c"))
        binary = compile_c("server", sources, "-lssl", "-lcrypto")
        self.process = start_pinned(SERVER_CORE, [binary, str(PORT), *self.options])
        wait_until(self.is_listening, 5, "a server that listens")
        Server.current = self
        return self

    def is_listening(self):
        if self.process.poll() is not None:
            raise RuntimeError(f"the server ended with exit code {self.process.returncode}")
        try:
            socket.create_connection(("127.0.0.1", PORT), 1).close()
            return True
        except OSError:
            return False

    def read_cpu_seconds(self):
        """Returns the CPU time of the server."""
        return sum(read_thread_cpu_seconds(self.process.pid).values())

    def stop(self):
        """Stops the server with SIGTERM, so that it writes its reports."""
        if self.process.poll() is None:
            stop_process(self.process, signal.SIGTERM)

    def __exit__(self, *_):
        if self.process.poll() is None:
            stop_process(self.process)


# The name of bench/ping.c in results. It consists of sockets and a clock, so its errors are those
# of the machine.
C_CLIENT = "C client"


def build_c_client_command(seconds, rate=None, connections=None):
    """Returns the command of the C client: one request after the other, or at a rate."""
    binary = compile_c("ping", [ROOT / "bench/ping.c"])
    return [binary, str(PORT), str(seconds), *([str(rate), str(connections)] if rate else [])]


def measure_round_trips(seconds, hold_ns, folder):
    """Returns quantiles, in nanoseconds, of the C client's round trips and of the server's hold times."""
    report = pathlib.Path(folder) / "ping-hold.json"
    command = build_c_client_command(seconds)
    with Server("--hold", hold_ns, report) as server:
        client = start_pinned(GENERATOR_CORE, command, stdout=subprocess.PIPE, text=True)
        round_trips = json.loads(client.communicate(timeout=seconds + 30)[0])
        server.stop()
    return round_trips, json.loads(report.read_text())
