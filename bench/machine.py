"""The machine: its cores, processes pinned to them, and the kernel's figures about both."""

import contextlib
import os
import pathlib
import platform
import re
import signal
import subprocess
import time

SERVER_CORE, GENERATOR_CORE = 0, 1
PORT = 18990
# The share of each second that programs with a real-time policy may use, in microseconds; -1 for all.
REAL_TIME_SHARE = pathlib.Path("/proc/sys/kernel/sched_rt_runtime_us")
# Real-time priorities. This program has to run beside a server that never sleeps.
OWN_PRIORITY, STARTED_PRIORITY = 2, 1

# A command that gives the programs that this one starts their scheduling policy.
_policy_command = []


def run_command(command, **kwargs):
    """Runs a command and returns its output; a command that fails raises an error."""
    return subprocess.run(command, check=True, text=True, capture_output=True, **kwargs).stdout


def log_progress(text):
    print(text, flush=True)


def claim_machine():
    """Moves this program to the server's core and gives it a higher priority than other programs.

    Servers and generators inherit the priority. It is the same for all of them and for this
    program, so none of them keeps another one from running.
    """
    os.sched_setaffinity(0, {SERVER_CORE})
    try:
        os.setpriority(os.PRIO_PROCESS, 0, -20)
    except PermissionError:
        log_progress("bench: not running as root, so other programs disturb the benchmark more than necessary")


def start_pinned(core, command, **kwargs):
    """Starts a command on one core."""
    return subprocess.Popen([*_policy_command, "taskset", "-c", str(core), *command], **kwargs)


@contextlib.contextmanager
def use_real_time_policy():
    """Runs this program, servers and generators with the policy SCHED_FIFO.

    Nothing but a real-time program of a higher priority then takes a core from them. Needs root.
    """
    share = REAL_TIME_SHARE.read_text()
    REAL_TIME_SHARE.write_text("-1")
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(OWN_PRIORITY))
        _policy_command.extend(["chrt", "--fifo", str(STARTED_PRIORITY)])
        yield
    finally:
        _policy_command.clear()
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        REAL_TIME_SHARE.write_text(share)


def stop_process(process, signal_number=signal.SIGKILL):
    process.send_signal(signal_number)
    process.wait(30)


def wait_until(condition, seconds, description, interval=0.02):
    """Waits until a condition is true; raises a TimeoutError with its description otherwise."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s: {description}")
        time.sleep(interval)


def read_idle_seconds(core):
    """Returns the idle time of a core. A kernel without idle ticks counts it exactly.

    The kernel counts user and system time by ticks. This is wrong by a large factor for work that
    is synchronized with the ticks, as work that a timer starts can be.
    """
    for line in pathlib.Path("/proc/stat").read_text().splitlines():
        fields = line.split()
        if fields[0] == f"cpu{core}":
            return (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK")
    raise RuntimeError(f"no cpu{core}")


class CoreUsage:
    """The usage of a core since the creation of this object."""

    def __init__(self, core):
        self.core, self.start, self.idle_at_start = core, time.monotonic(), read_idle_seconds(core)

    def elapsed_seconds(self):
        return time.monotonic() - self.start

    def busy_seconds(self):
        return self.elapsed_seconds() - (read_idle_seconds(self.core) - self.idle_at_start)

    def busy_share(self):
        return self.busy_seconds() / self.elapsed_seconds()


def read_resident_bytes(pid):
    """Returns the resident memory (VmRSS) of a process."""
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) * 1024


def wait_for_stable_memory(pid):
    """Returns the resident memory of a process once it is stable.

    Stable means that three samples, half a second apart, are within 0.5 % of each other.
    """
    samples = []

    def is_stable():
        samples.append(read_resident_bytes(pid))
        return len(samples) > 2 and max(samples[-3:]) - min(samples[-3:]) <= samples[-1] / 200

    wait_until(is_stable, 60, "memory that no longer grows", interval=0.5)
    return samples[-1]


def read_thread_cpu_seconds(pid):
    """Returns the CPU time of each thread of a process, with a resolution of 1 ns."""
    seconds = {}
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        try:
            seconds[int(task.name)] = int((task / "schedstat").read_text().split()[0]) / 1e9
        except OSError:  # The thread has just ended.
            continue
    return seconds


def count_connections():
    """Returns the number of established connections to the server, seen from the clients."""
    server, count = f":{PORT:04X}", 0
    for line in pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        count += fields[2].endswith(server) and fields[3] == "01"
    return count


def describe_machine():
    return f"{read_cpu_name()}, {os.cpu_count()} cores, Linux {platform.release()}"


def read_cpu_name():
    text = pathlib.Path("/proc/cpuinfo").read_text()
    match = re.search(r"model name\s*:\s*(.*)", text)
    return match[1] if match else platform.machine()
