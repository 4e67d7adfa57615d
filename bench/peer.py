"""One peer in a process of its own: loads a model once and then runs a round for every line that it reads.

    python bench/peer.py '{"peer": "pytorch", "task": "encoder", "precision": "f32", "model": FOLDER, "threads": 2, "batch": 16, "length": 64}'

It speaks as `finegates bench --on-request` does: a line `{"ready": …}` with the versions of what computes, then for each line on
standard input an object with `ms` and `cpu_ms` (of all threads), and `prefill_ms` and `decode_ms` of a decoder. What cannot be
loaded is said in a line `{"failed": …}`. `bench/compare.py` starts these; it says what the fields of the job mean.
"""

import importlib
import json
import os
import sys
import time
from pathlib import Path

# Peers by name: the module in `peers/` that runs them.
MODULES = {"pytorch": "peers.pytorch", "onnxruntime": "peers.onnx_runtime", "openvino": "peers.open_vino"}


def main():
    # Libraries print where they please; answers keep a standard output of their own.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(value):
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    job = json.loads(sys.argv[1])
    job["kept"] = Path(job["kept"]) if "kept" in job else None
    os.environ["OMP_NUM_THREADS"] = str(job["threads"])
    try:
        module = importlib.import_module(MODULES[job["peer"]])
        run, versions = getattr(module, job["task"])(job)
    except Exception as error:  # whatever a peer cannot do is a result of its own
        answer({"failed": f"{type(error).__name__}: {error}"})
        raise
    answer({"ready": versions})
    for _ in sys.stdin:
        started, spent = time.perf_counter(), time.process_time()
        parts = run() or {}
        elapsed, spent = time.perf_counter() - started, time.process_time() - spent
        answer({"ms": 1e3 * elapsed, "cpu_ms": 1e3 * spent} | parts)


if __name__ == "__main__":
    main()
