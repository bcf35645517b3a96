"""Users that ask once and then wait, their connections open."""

from locust import FastHttpUser, constant, task


class Idle(FastHttpUser):
    wait_time = constant(60)

    @task
    def get(self):
        self.client.get("/")
