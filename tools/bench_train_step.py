"""Times one training step of PyTorch on a GLUE task: gates as in tools/gates.py, or biases and head alone.

    python tools/bench_train_step.py --model MINILM_FOLDER --data GLUE_FOLDER [--task mrpc] [--steps 40]

The recipe is METHOD.md's: batches of 16 in the file's order, padded to the longest text of the batch, dropout as in the
checkpoint, gates (or none), biases of gated layers and head trained by AdamW. Texts are tokenized and padded before the
clock starts. PyTorch gets what helps it without changing the method: the fused optimizer, one noise draw and one penalty
for all layers together, gradients only where something trains, and eager attention, which is a little faster here than `sdpa`
(with dropout, that has no fused kernel on a CPU). With `--plain` it gets none of that: noise and penalty layer by layer and
the optimizer as it is, as the method is written down. `--precision bf16` runs the forward pass under autocast. Prints one JSON object; a timing counts only if `cores_busy_elsewhere`
is near 0, because PyTorch's threads wait for each other in every operation.
"""

import argparse
import json
import statistics
import time

import torch
import transformers

import glue
from machine import OtherLoad, cpu_name
from training import Trainee, pad, tokenize

LEARNING_RATE = 1e-3
TARGET_SPARSITY, PENALTY_WEIGHT = 0.4, 50.0


def time_steps(method, arguments, batches):
    """Milliseconds and task loss of each timed step, warm-up excluded, and the cores busy elsewhere meanwhile."""
    torch.manual_seed(arguments.seed)
    trainee = Trainee(arguments.model, glue.classes_of(arguments.task), method, arguments.attention, plain=arguments.plain)
    trainee.autocast = arguments.precision == "bf16"
    trainee.model.train()
    optimizer = trainee.optimizer({group: LEARNING_RATE for group in trainee.groups})
    elapsed_ms, losses = [], []
    clock = OtherLoad()
    for number in range(arguments.warmup + arguments.steps):
        batch, labels = batches[number % len(batches)]
        labels = trainee.labels(labels)
        if number == arguments.warmup:
            clock.start()
        started = time.perf_counter()
        task, _ = trainee.step(optimizer, batch, labels, TARGET_SPARSITY, PENALTY_WEIGHT, arguments.kurtosis)
        losses.append(float(task))
        elapsed_ms.append((time.perf_counter() - started) * 1e3)
    return elapsed_ms[arguments.warmup :], losses[arguments.warmup :], clock.cores()


def report(elapsed_ms, losses, other_cores, arguments, batches):
    timed = [batches[(arguments.warmup + number) % len(batches)][0] for number in range(len(elapsed_ms))]
    sequences = sum(batch["input_ids"].shape[0] for batch in timed)
    tokens = sum(int(batch["attention_mask"].sum()) for batch in timed)
    padded = sum(batch["input_ids"].numel() for batch in timed)
    seconds = sum(elapsed_ms) / 1e3
    return {
        "median_ms": round(statistics.median(elapsed_ms), 2),
        "mean_ms": round(statistics.fmean(elapsed_ms), 2),
        "minimum_ms": round(min(elapsed_ms), 2),
        "sequences_per_second": round(sequences / seconds, 2),
        "tokens_per_second": round(tokens / seconds, 1),
        "tokens_a_step": round(tokens / len(timed), 1),
        "padded_tokens_a_step": round(padded / len(timed), 1),
        "last_task_loss": round(losses[-1], 4),
        "cores_busy_elsewhere": other_cores,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the checkpoint")
    parser.add_argument("--data", required=True, help="folder that holds GLUE's tasks")
    parser.add_argument("--task", choices=glue.TASKS, default="mrpc")
    parser.add_argument("--methods", nargs="+", choices=("gates", "bitfit"), default=["gates", "bitfit"])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--attention", choices=("eager", "sdpa"), default="eager")
    parser.add_argument("--precision", choices=("f32", "bf16"), default="f32", help="bf16 is autocast")
    parser.add_argument("--plain", action="store_true", help="as the method is written down, without what helps PyTorch")
    parser.add_argument("--kurtosis", action="store_true", help="the kurtosis-informed penalty")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    needed = (arguments.steps + arguments.warmup) * arguments.batch_size
    texts, pairs, labels = glue.read_split(arguments.data, arguments.task, "train")
    texts, pairs, labels = texts[:needed], pairs and pairs[:needed], labels[:needed]
    tokenizer, examples = tokenize(arguments.model, texts, pairs, arguments.max_length)
    size = arguments.batch_size
    batches = [
        (pad(tokenizer, examples[start : start + size]), labels[start : start + size])
        for start in range(0, len(examples) - size + 1, size)
    ]
    result = {
        "task": arguments.task,
        "model": arguments.model.rstrip("/").rsplit("/", 1)[-1],
        "batch_size": size,
        "steps": arguments.steps,
        "threads": torch.get_num_threads(),
        "precision": arguments.precision,
        "plain": arguments.plain,
        "attention": arguments.attention,
        "kurtosis": arguments.kurtosis,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cpu": cpu_name(),
    }
    for method in arguments.methods:
        result[method] = report(*time_steps(method, arguments, batches), arguments, batches)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
