"""The server that load goes to, on its core, and the C client that shows what it adds."""

import json
import pathlib
import signal
import socket
import subprocess

from machine import GENERATOR_CORE, PORT, SERVER_CORE, end, on_cpu, pinned, run, until
from tools import CACHE, ROOT

HTTP, HTTPS = f"http://127.0.0.1:{PORT}", f"https://127.0.0.1:{PORT}"
WEB_SOCKET = f"ws://127.0.0.1:{PORT}"


def compiled(name, sources, *libraries):
    binary = CACHE / "bin" / name
    binary.parent.mkdir(parents=True, exist_ok=True)
    run(["gcc", "-O2", "-Wall", "-Wextra", "-o", str(binary), *map(str, sources), *libraries])
    return str(binary)


def certificate():
    """A self-signed certificate and its key."""
    files = CACHE / "certificate.pem", CACHE / "key.pem"
    if not all(file.exists() for file in files):
        subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
        new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
        run([*new, "-nodes", "-days", "3650", *subject, "-out", str(files[0]), "-keyout", str(files[1])])
    return [str(file) for file in files]


class Server:
    """The target: plain, with TLS, or with the clock's options."""

    current = None  # the one that runs

    def __init__(self, *options, tls=False):
        self.options = [str(option) for option in options]
        if tls:
            self.options += ["--tls", *certificate()]

    def __enter__(self):
        sources = sorted((ROOT / "bench/server").glob("*.c"))
        binary = compiled("server", sources, "-lssl", "-lcrypto")
        self.process = pinned(SERVER_CORE, [binary, str(PORT), *self.options])
        until(self.answers, 5, "a server that listens")
        Server.current = self
        return self

    def answers(self):
        if self.process.poll() is not None:
            raise RuntimeError(f"the server ended with {self.process.returncode}")
        try:
            socket.create_connection(("127.0.0.1", PORT), 1).close()
            return True
        except OSError:
            return False

    def cpu(self):
        """Seconds it has been on a CPU."""
        return sum(on_cpu(self.process.pid).values())

    def stop(self):
        """Ends it so that it writes what it kept."""
        if self.process.poll() is None:
            end(self.process, signal.SIGTERM)

    def __exit__(self, *_):
        if self.process.poll() is None:
            end(self.process)


# What the machine lets a generator be that has nothing but sockets and a clock.
FLOOR = "C client"


def ping_command(seconds, rate=None, connections=None):
    """The C client's: one request after the other, or at a rate."""
    binary = compiled("ping", [ROOT / "bench/ping.c"])
    return [binary, str(PORT), str(seconds), *([str(rate), str(connections)] if rate else [])]


def ping(seconds, hold_ns, folder):
    """Round trips of the C client, and what the server held each: quantiles in nanoseconds."""
    report = pathlib.Path(folder) / "ping-hold.json"
    line = ping_command(seconds)
    with Server("--hold", hold_ns, report) as server:
        client = pinned(GENERATOR_CORE, line, stdout=subprocess.PIPE, text=True)
        trips = json.loads(client.communicate(timeout=seconds + 30)[0])
        server.stop()
    return trips, json.loads(report.read_text())
