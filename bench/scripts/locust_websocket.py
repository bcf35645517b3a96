"""A user that keeps its WebSocket: one message, its echo, then the next, or a long pause."""

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
        began = time.perf_counter()
        self.socket.send(MESSAGE)
        answer = self.socket.recv()
        self.environment.events.request.fire(
            request_type="WS", name="echo", response_time=(time.perf_counter() - began) * 1000,
            response_length=len(answer), exception=None, context={},
        )
