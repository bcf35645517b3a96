"""The machine: its cores, processes on them, and what the kernel counts of both."""

import os
import pathlib
import platform
import re
import signal
import subprocess
import time

SERVER_CORE, GENERATOR_CORE = 0, 1
PORT = 18990


def run(command, **kwargs):
    return subprocess.run(command, check=True, text=True, capture_output=True, **kwargs).stdout


def say(text):
    print(text, flush=True)


def take_the_machine():
    """What else it runs comes after the benchmark, whose own work is done on the server's core.

    Servers and generators inherit the priority; as it is the same for all of them, and for this
    program, none is kept from running by another one.
    """
    os.sched_setaffinity(0, {SERVER_CORE})
    try:
        os.setpriority(os.PRIO_PROCESS, 0, -20)
    except PermissionError:
        say("bench: not root, so other programs disturb it more than they need to")


def pinned(core, command, **kwargs):
    return subprocess.Popen(["taskset", "-c", str(core), *command], **kwargs)


def end(process, how=signal.SIGKILL):
    process.send_signal(how)
    process.wait(30)


def until(condition, seconds, what, every=0.02):
    """Waits for a condition; what it was is the error when it does not come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s: {what}")
        time.sleep(every)


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


class Busy:
    """The share of time in which a core was not idle, since this was made."""

    def __init__(self, core):
        self.core, self.began, self.idle = core, time.monotonic(), idle_time(core)

    def passed(self):
        return time.monotonic() - self.began

    def seconds(self):
        return self.passed() - (idle_time(self.core) - self.idle)

    def share(self):
        return self.seconds() / self.passed()


def resident(pid):
    """VmRSS in bytes of a process."""
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) * 1024


def settled_resident(pid):
    """VmRSS once it no longer grows: half a second apart, twice within a two-hundredth."""
    seen = []

    def settled():
        seen.append(resident(pid))
        return len(seen) > 2 and max(seen[-3:]) - min(seen[-3:]) <= seen[-1] / 200

    until(settled, 60, "memory that no longer grows", every=0.5)
    return seen[-1]


def on_cpu(pid):
    """Seconds on a CPU of each thread there is, to the nanosecond."""
    found = {}
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        try:
            found[int(task.name)] = int((task / "schedstat").read_text().split()[0]) / 1e9
        except OSError:  # It has just ended.
            continue
    return found


def connected():
    """Established connections to the server, at the clients' side."""
    wanted, count = f":{PORT:04X}", 0
    for line in pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        count += fields[2].endswith(wanted) and fields[3] == "01"
    return count


def cpu_name():
    text = pathlib.Path("/proc/cpuinfo").read_text()
    found = re.search(r"model name\s*:\s*(.*)", text)
    return found[1] if found else platform.machine()
