"""Streamed chats: the script parses each event and measures the time to first token."""

import json
import time

from locust import FastHttpUser, events, task

REQUEST = {
    "model": "bench",
    "messages": [{"role": "user", "content": "Hello"}],
    "stream": True,
    "stream_options": {"include_usage": True},
}


def report_time(name, start, tokens):
    events.request.fire(
        request_type="chat", name=name, response_time=(time.perf_counter() - start) * 1000,
        response_length=tokens, exception=None, context={},
    )


class Chat(FastHttpUser):
    host = "set by --host"

    @task
    def chat(self):
        start, tokens = time.perf_counter(), 0
        for line in self.client.iter_lines("/v1/chat/completions", "POST", json=REQUEST):
            if not line.startswith("data:"):
                continue
            data = line[5:].strip()
            if data == "[DONE]":
                report_time("response", start, tokens)
                continue
            choices = json.loads(data)["choices"]
            if choices and choices[0]["delta"].get("content"):
                if tokens == 0:
                    report_time("first token", start, 0)
                tokens += 1
