"""Processes that take turns: each loads its model once, then runs a round when it is asked to, while the others wait.

A peer that cannot be loaded, or fails in a round, is left out from then on, and the reason is kept with its results.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from machine import OtherLoad  # noqa: E402

# Between two turns, so that threads which wait busily for more work have gone to sleep.
PAUSE_SECONDS = 0.1
# What is kept of a reason, from its end.
REASON_CHARACTERS = 600


class Failed(Exception):
    """Why a peer has no times."""


class Live:
    """A process that answers a line with the times of a round."""

    def __init__(self, command):
        self.errors = tempfile.TemporaryFile()
        streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors}
        try:
            self.process = subprocess.Popen([str(part) for part in command], **streams, text=True)
        except OSError:
            self.errors.close()
            raise
        try:
            self.versions = self._read().get("ready")
        except (Failed, ValueError):
            self.stop()
            raise

    def round(self):
        """Times in milliseconds by name."""
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        except OSError as error:
            raise Failed(self._last_words()) from error
        answer = self._read()
        # The program answers for each model that it was given, which is one.
        times = answer["models"][0] if "models" in answer else answer
        return {name: value for name, value in times.items() if name.endswith("ms")}

    def stop(self):
        """Ends the process; gives its last line, which is the program's summary."""
        try:
            last = self.process.communicate(timeout=120)[0].strip()
        except (OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
            return None
        finally:
            self.errors.close()
        return json.loads(last) if last else None

    def _read(self):
        line = self.process.stdout.readline()
        if not line:
            raise Failed(self._last_words())
        answer = json.loads(line)
        if "failed" in answer:
            self.process.wait()
            raise Failed(answer["failed"][-REASON_CHARACTERS:])
        return answer

    def _last_words(self):
        status = self.process.wait()
        self.errors.seek(0)
        words = self.errors.read().decode("utf-8", "replace").strip()[-REASON_CHARACTERS:]
        return f"exit status {status}: {words}" if words else f"exit status {status}"


def chosen(entries, words):
    """Entries whose name holds one of the words; all without any."""
    return [entry for entry in entries if not words or any(word.lower() in entry["name"].lower() for word in words)]


def quantile(values, share):
    """Interpolated between neighbours, as `finegates bench` does."""
    values = sorted(values)
    place = share * (len(values) - 1)
    below = int(place)
    above = min(below + 1, len(values) - 1)
    return values[below] + (values[above] - values[below]) * (place - below)


def summary(times):
    """Median and quartiles of each kind of time, and the times themselves."""
    found = {}
    for name in times[0]:
        values = [round_[name] for round_ in times]
        found[name] = {
            "median": round(statistics.median(values), 3),
            "lower_quartile": round(quantile(values, 0.25), 3),
            "upper_quartile": round(quantile(values, 0.75), 3),
            "times": [round(value, 3) for value in values],
        }
    return found


def alternate(entries, commands, rounds, warm_up, say=lambda text: print(text, file=sys.stderr, flush=True)):
    """Runs `rounds` rounds of all commands in turns, after some to warm up.

    `entries` are dicts that say what each command is, with a `name`; gives them with `ms` (and what else was timed) or `failed`,
    and the cores that others kept busy.
    """
    results, live, times = [dict(entry) for entry in entries], {}, {}

    def lose(index, reason):
        results[index]["failed"] = str(reason)
        say(f"  {entries[index]['name']}: {reason}")
        if index in live:
            live.pop(index).stop()

    for index, command in enumerate(commands):
        started = time.perf_counter()
        try:
            live[index], times[index] = Live(command), []
            results[index]["versions"] = live[index].versions if isinstance(live[index].versions, dict) else {}
            say(f"  {entries[index]['name']}: loaded in {time.perf_counter() - started:.0f} s")
        except (Failed, OSError, ValueError) as error:
            lose(index, error)
    load = OtherLoad(peer.process.pid for peer in live.values())
    for number in range(warm_up + rounds):
        if number == warm_up:
            load.start()
        # Each round begins with another, so that none always follows the same one.
        order = sorted(live)
        for index in order[number % max(1, len(order)) :] + order[: number % max(1, len(order))]:
            time.sleep(PAUSE_SECONDS)
            try:
                taken = live[index].round()
            except (Failed, ValueError, KeyError) as error:
                lose(index, error)
                # What the others take is counted anew, without the one that is gone.
                load = OtherLoad(peer.process.pid for peer in live.values())
                if number >= warm_up:
                    load.start()
                continue
            if number >= warm_up:
                times[index].append(taken)
    busy = load.cores()
    for index, peer in live.items():
        results[index] |= summary(times[index])
        last = peer.stop()
        if last and "models" in last:
            results[index] |= reached(last, results[index])
        say(f"  {results[index]['name']}: {results[index]['ms']['median']:.1f} ms")
    return results, busy


def reached(report, times):
    """How near `finegates bench` comes to the machine's peaks, by its own counts and the medians of rounds that count."""
    model = report["models"][0]
    found = {name: model[name] for name in ("multiply_adds", "sequences", "tokens")}
    found |= {"instruction_set": report["instruction_set"], "peak_gflops": model["peak_gflops"]}
    found["gflops"] = 2 * model["multiply_adds"] / times.get("prefill_ms", times["ms"])["median"] / 1e6
    language = model.get("language", {})
    if "step_bytes" in language:
        found |= {name: language[name] for name in ("step_bytes", "measured_gb_per_second")}
        found["gb_per_second"] = language["step_bytes"] * language["steps"] / times["decode_ms"]["median"] / 1e6
        found["share_of_bandwidth"] = found["gb_per_second"] / found["measured_gb_per_second"]
    return found
