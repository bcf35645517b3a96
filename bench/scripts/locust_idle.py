"""Each user sends one request and then waits with an open connection."""

from locust import FastHttpUser, constant, task


class Idle(FastHttpUser):
    wait_time = constant(60)

    @task
    def get(self):
        self.client.get("/")
