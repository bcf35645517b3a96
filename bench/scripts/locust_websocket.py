"""Each user keeps one WebSocket open: it sends a message, waits for the echo, optionally pauses, and repeats."""

import os
import time

from locust import User, constant, task
from websocket import create_connection

MESSAGE = os.environ["BENCH_MESSAGE"]


class Echo(User):
    wait_time = constant(float(os.environ.get("BENCH_PAUSE", "0")))

    def on_start(self):
        self.socket = create_connection(self.host)

    def on_stop(self):
        self.socket.close()

    @task
    def echo(self):
        start = time.perf_counter()
        self.socket.send(MESSAGE)
        reply = self.socket.recv()
        self.environment.events.request.fire(
            request_type="WS", name="echo", response_time=(time.perf_counter() - start) * 1000,
            response_length=len(reply), exception=None, context={},
        )
