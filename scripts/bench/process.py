"""Runs a program on chosen cores and tells what it took."""

import os
import resource
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


class NotMeasured(Exception):
    """Why a figure could not be had."""


@dataclass(frozen=True)
class Finished:
    output: str
    secs: float  # wall time
    peak_bytes: int  # largest resident size
    other_cores: float  # what other processes used meanwhile, in cores


def free_memory_gib():
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) / 2**20


def first_cores(cores):
    """The first cores that this process may use, as taskset writes them."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < cores:
        raise NotMeasured(f"{cores} cores needed, {len(allowed)} there")
    return ",".join(map(str, allowed[:cores]))


def busy_secs():
    """CPU time that the whole machine has spent."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9])
    return (user + nice + system + irq + softirq + steal) / TICKS


def child_secs():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(command, cores):
    """Runs `command` on the first `cores` cores, with as many threads, to its end.

    Raises `NotMeasured` with the end of its messages where it fails.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(cores), "RAYON_NUM_THREADS": str(cores)}
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as messages:
        begun, busy, own = time.perf_counter(), busy_secs(), child_secs()
        process = subprocess.Popen(
            ["taskset", "-c", first_cores(cores), *map(str, command)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=messages,
            env=environment,
        )
        # wait4 tells the peak of this process alone.
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        secs = time.perf_counter() - begun
        others = (busy_secs() - busy - (child_secs() - own)) / secs
        output.seek(0)
        messages.seek(0)
        if process.returncode != 0:
            text = " ".join(messages.read().decode(errors="replace").split())
            raise NotMeasured(f"{Path(command[0]).name} ended with {process.returncode}: ...{text[-300:]}")
        return Finished(output.read().decode(), secs, used.ru_maxrss * 1024, max(others, 0.0))
