"""Tests of the harness itself, with stand-ins for the peers: `python bench/test_bench.py`. Needs Python alone."""

import io
import json
import subprocess
import sys
import tempfile
import unittest
from contextlib import redirect_stderr
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import figure  # noqa: E402
import render  # noqa: E402
import turns  # noqa: E402

# A peer that answers each line with the next of its numbers, and writes its name to a file at every turn.
STAND_IN = """
import json, sys
name, log, numbers = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
print(json.dumps({"ready": {"stand-in": "1.0"}}), flush=True)
for number, _ in zip(numbers, sys.stdin):
    open(log, "a").write(name)
    print(json.dumps({"ms": number, "cpu_ms": 2 * number}), flush=True)
sys.exit("nothing left" if len(numbers) < 4 else 0)
"""


def result(suite="encoder", entries=None, **given):
    times = {"median": 10.0, "lower_quartile": 9.0, "upper_quartile": 12.0, "times": [9.0, 10.0, 12.0]}
    slow = {name: 2 * value for name, value in times.items() if name != "times"}
    entries = entries or [
        {"by": "finegates", "name": "finegates f32", "precision": "f32", "ms": times, "gflops": 50.0, "peak_gflops": 200.0},
        {"by": "finegates", "name": "finegates f32, 40% removed", "precision": "f32", "ms": slow, "removed_with_liveness": 0.4},
        {"by": "pytorch", "name": "PyTorch f32", "precision": "f32", "ms": slow, "versions": {"torch": "2.15.0+cpu"}},
        {"by": "openvino", "name": "OpenVINO bf16", "precision": "bf16", "failed": "no such\noperation"},
    ]
    scenario = {"name": "a shape", "input": {"batch": 4, "length": 8}, "cores_busy_elsewhere": 0.02, "entries": entries}
    head = {"format_version": 1, "suite": suite, "date": "2026-01-01", "commit": "abc", "cpu": "a CPU", "threads": 2}
    return head | {"scenarios": [scenario]} | given


class Turns(unittest.TestCase):
    def alternate(self, numbers, rounds, warm_up):
        with tempfile.TemporaryDirectory() as place:
            log = Path(place) / "log"
            log.touch()
            entries = [{"name": name} for name in numbers]
            commands = [[sys.executable, "-c", STAND_IN, name, log, json.dumps(values)] for name, values in numbers.items()]
            results, _ = turns.alternate(entries, commands, rounds, warm_up, say=lambda text: None)
            return results, log.read_text()

    def test_peers_take_turns_and_warming_up_does_not_count(self):
        results, order = self.alternate({"a": [99, 1, 2, 3], "b": [99, 4, 5, 9]}, rounds=3, warm_up=1)
        self.assertEqual(order, "abbaabba")
        self.assertEqual(results[0]["ms"]["times"], [1, 2, 3])
        self.assertEqual(results[1]["ms"]["median"], 5)
        self.assertEqual(results[1]["cpu_ms"]["upper_quartile"], 14)
        self.assertEqual(results[1]["versions"], {"stand-in": "1.0"})

    def test_a_peer_that_fails_is_recorded_and_the_others_go_on(self):
        results, order = self.alternate({"a": [1, 2, 3, 4], "b": [1, 2]}, rounds=4, warm_up=0)
        self.assertEqual(order.count("a"), 4)
        self.assertIn("nothing left", results[1]["failed"])
        self.assertNotIn("ms", results[1])
        self.assertEqual(results[0]["ms"]["times"], [1, 2, 3, 4])

    def test_what_cannot_be_started_or_loaded_says_why(self):
        entries = [{"name": "missing"}, {"name": "refuses"}]
        refuses = [sys.executable, "-c", "print('{\"failed\": \"no such precision\"}')"]
        results, _ = turns.alternate(entries, [["/no/such/program"], refuses], 1, 0, say=lambda text: None)
        self.assertIn("No such file", results[0]["failed"])
        self.assertEqual(results[1]["failed"], "no such precision")

    def test_rates_are_of_the_rounds_that_count(self):
        language = {"steps": 4, "step_bytes": 3_000_000, "measured_gb_per_second": 2.0}
        model = {"multiply_adds": 5_000_000, "sequences": 1, "tokens": 8, "gflops": 99.0, "peak_gflops": 7.0, "language": language}
        report = {"models": [model], "instruction_set": "avx2"}
        times = turns.summary([{"ms": 18.0, "prefill_ms": 10.0, "decode_ms": 8.0}])
        found = turns.reached(report, times)
        self.assertAlmostEqual(found["gflops"], 1.0)
        self.assertAlmostEqual(found["gb_per_second"], 1.5)
        self.assertAlmostEqual(found["share_of_bandwidth"], 0.75)

    def test_quartiles_are_those_of_the_program(self):
        self.assertAlmostEqual(turns.quantile([4, 1, 3, 2], 0.5), 2.5)
        self.assertAlmostEqual(turns.quantile([1, 2, 3, 4, 5], 0.25), 2)
        self.assertEqual(turns.quantile([7], 0.75), 7)


class Render(unittest.TestCase):
    def page(self, *results):
        with tempfile.TemporaryDirectory() as place:
            for number, value in enumerate(results):
                (Path(place) / f"{number}.json").write_text(json.dumps(value), encoding="utf-8")
            return render.page(place)

    def test_a_row_holds_time_speed_and_share(self):
        page = self.page(result())
        self.assertIn("| finegates f32 | 10 (9–12) | 400 |  |  |  | 50 | 25 % |", page)
        self.assertIn("| PyTorch f32 | 20 (18–24) | 200 | 2.00× |", page)
        self.assertIn("| finegates f32, 40% removed | 20 (18–24) | 200 |  | 40 % | 2.00 |", page)
        self.assertIn("Failed: OpenVINO bf16: no such operation", page)
        self.assertIn("commit abc, a CPU, 2 threads; torch 2.15.0; cores busy elsewhere at most 0.02.", page)

    def test_shares_are_of_the_peak_of_their_precision(self):
        times = {"median": 10.0, "lower_quartile": 9.0, "upper_quartile": 12.0, "times": []}
        entries = [
            {"by": "finegates", "name": f"finegates {precision}", "precision": precision, "ms": times, "gflops": gflops, "peak_gflops": peak}
            for precision, gflops, peak in (("f32", 60.0, 100.0), ("bf16", 100.0, 400.0))
        ]
        page = self.page(result("encoder", entries))
        self.assertIn("| finegates f32 | 10 (9–12) | 400 | 60 | 60 % |", page)
        self.assertIn("| finegates bf16 | 10 (9–12) | 400 | 100 | 25 % |", page)
        memory = {"block_bytes": 1e9, "gb_per_second_one_thread": 1.0, "gb_per_second": 2.0}
        peaks = {"gflops_one_thread": 3.0, "gflops": 4.0, "memory": memory}
        plain = self.page(result("machine", machine={"peaks": peaks}, scenarios=[]))
        self.assertNotIn("bf16", plain)
        both = self.page(result("machine", machine={"peaks": peaks | {"bf16": {"gflops_one_thread": 5.0, "gflops": 6.0}}}, scenarios=[]))
        self.assertIn("| f32 multiply-adds, GFLOP/s | 3 | 4 |\n| bf16 multiply-adds, GFLOP/s | 5 | 6 |", both)

    def test_every_machine_has_a_heading(self):
        with tempfile.TemporaryDirectory() as place:
            for name, heading in (("b", None), ("a", "The first one\n")):
                folder = Path(place) / name
                folder.mkdir()
                (folder / "encoder.json").write_text(json.dumps(result()), encoding="utf-8")
                if heading:
                    (folder / "NAME").write_text(heading, encoding="utf-8")
            page = render.page(place)
        headings = [line for line in page.splitlines() if line.startswith("#")]
        self.assertEqual(headings[1:4], ["## The first one", "### Encoders", "#### a shape"])
        self.assertEqual(headings[4:], ["## b", "### Encoders", "#### a shape"])

    def test_decoding_counts_by_the_token(self):
        times = {"median": 64.0, "lower_quartile": 32.0, "upper_quartile": 96.0, "times": []}
        entry = {"by": "finegates", "name": "finegates bf16", "precision": "bf16"}
        entry |= {"ms": times, "decode_ms": times, "step_bytes": 2e8}
        given = result("decoder", [entry])
        given["scenarios"][0]["input"] = {"batch": 1, "length": 128, "steps": 32}
        page = self.page(given)
        self.assertIn("| finegates bf16 | 2 (1–3) | 500 | 200 |", page)

    def test_the_figure_shows_what_removal_saves(self):
        def entry(cpu, **given):
            times = {"median": cpu, "lower_quartile": cpu, "upper_quartile": cpu, "times": [cpu]}
            return {"by": "finegates", "name": "finegates bf16", "precision": "bf16", "ms": times, "cpu_ms": times} | given

        given = result("cpu-time", [entry(40.0), entry(30.0, removed_with_liveness=0.5)])
        self.assertEqual(figure.curves([("", given)]), [("a shape", [(0.0, 0.0), (0.5, 0.25)])])
        drawn = figure.cpu_time([("here", given)])
        self.assertIn("a shape (here)</text>", drawn)
        self.assertIn('points="64.0,374.0 660.0,209.0"', drawn)
        self.assertIsNone(figure.cpu_time([]))

    def test_results_of_another_format_or_suite_are_refused(self):
        with self.assertRaises(SystemExit):
            self.page(result(format_version=7))
        with self.assertRaises(SystemExit):
            self.page(result("nobody's"))

    def test_check_tells_an_old_page(self):
        with tempfile.TemporaryDirectory() as place:
            results, page = Path(place) / "results", Path(place) / "page.md"
            results.mkdir()
            (results / "encoder.json").write_text(json.dumps(result()), encoding="utf-8")
            command = [sys.executable, render.__file__, "--results", results, "--page", page]
            self.assertEqual(subprocess.run([*command, "--check"], stderr=subprocess.DEVNULL).returncode, 1)
            self.assertEqual(subprocess.run(command).returncode, 0)
            self.assertEqual(subprocess.run([*command, "--check"]).returncode, 0)
            page.write_text(page.read_text(encoding="utf-8") + "more", encoding="utf-8")
            self.assertEqual(subprocess.run([*command, "--check"], stderr=subprocess.DEVNULL).returncode, 1)

    def test_the_committed_results_can_be_shown(self):
        with redirect_stderr(io.StringIO()):
            self.assertTrue(render.page(render.ROOT / "bench/results").startswith("# Performance"))


if __name__ == "__main__":
    unittest.main()
