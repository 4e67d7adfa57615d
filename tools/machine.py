"""What a timing says of its machine: the CPU's name, and how busy others kept it meanwhile. Python alone."""

import os
import platform
import time
from pathlib import Path


def cpu_name():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


class OtherLoad:
    """How many cores others kept busy meanwhile (Linux): not this process, its children that ended, and those in `pids`.

    Above a few hundredths, a timing means little. The processes in `pids` must live from start to end.
    """

    def __init__(self, pids=()):
        self.pids = list(pids)
        self.begun = None

    def start(self):
        self.begun = self._read()

    def cores(self):
        if self.begun is None:
            return None
        now = self._read()
        if now is None:
            return None
        wall, busy, own = (after - before for before, after in zip(self.begun, now))
        return round(max(0.0, busy - own) / wall, 2)

    def _read(self):
        try:
            ticks = os.sysconf("SC_CLK_TCK")
            user, nice, system, _, _, irq, soft = map(int, Path("/proc/stat").read_text().split()[1:8])
            children = os.times()
            own = time.process_time() + children.children_user + children.children_system
            for pid in self.pids:
                # The name, in brackets, may hold anything; user and system time are the 12th and 13th field after it.
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                own += (int(fields[11]) + int(fields[12])) / ticks
        except (OSError, AttributeError):
            return None
        return time.perf_counter(), (user + nice + system + irq + soft) / ticks, own
