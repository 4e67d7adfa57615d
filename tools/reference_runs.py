"""Trains gates or biases in PyTorch on a GLUE task and prints the metric of every epoch: a cross-check for `finegates train`.

    python tools/reference_runs.py --model MINILM_FOLDER --data GLUE_FOLDER --task mrpc --method gates --epochs 10

One JSON object a line: first the settings, then an epoch each. Random numbers differ from the Rust trainer's, so the curves
agree as two seeds do, not digit by digit.
"""

import argparse
import json
import time

import torch
import transformers
from scipy import stats
from sklearn import metrics

import glue
from training import Trainee, pad, tokenize


def scores(task, logits, labels):
    """The task's metrics as GLUE defines them, the deciding one first."""
    if task == "stsb":
        values = logits.squeeze(-1).double().numpy()
        return {"pearson": stats.pearsonr(labels, values).statistic, "spearman": stats.spearmanr(labels, values).statistic}
    predictions = logits.argmax(dim=-1).tolist()
    if task == "cola":
        return {"matthews": metrics.matthews_corrcoef(labels, predictions)}
    found = {"accuracy": metrics.accuracy_score(labels, predictions)}
    if task == "mrpc":
        found["f1"] = metrics.f1_score(labels, predictions)
    return found


def by_length(examples, size):
    """Groups of `size` places, longest texts first, so that little is padded."""
    order = sorted(range(len(examples)), key=lambda place: -len(examples[place]["input_ids"]))
    return [order[start : start + size] for start in range(0, len(order), size)]


def evaluate(trainee, tokenizer, examples, labels, task):
    groups = by_length(examples, 64)
    logits = trainee.logits(pad(tokenizer, [examples[place] for place in group]) for group in groups)
    places = [place for group in groups for place in group]
    found = scores(task, logits, [labels[place] for place in places])
    return {name: round(float(value), 4) for name, value in found.items()}


def train_epoch(trainee, optimizer, tokenizer, examples, labels, arguments):
    """Mean losses of task and penalty over the epoch."""
    order = torch.randperm(len(examples)).tolist()
    task_sum = penalty_sum = 0.0
    starts = range(0, len(order), arguments.batch_size)
    for start in starts:
        places = order[start : start + arguments.batch_size]
        batch = pad(tokenizer, [examples[place] for place in places])
        task, penalty = trainee.step(
            optimizer,
            batch,
            trainee.labels([labels[place] for place in places]),
            arguments.target_sparsity,
            arguments.sparsity_weight,
            arguments.kurtosis,
        )
        task_sum += float(task)
        penalty_sum += 0.0 if penalty is None else float(penalty)
    return {"task_loss": round(task_sum / len(starts), 4), "penalty": round(penalty_sum / len(starts), 4)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the checkpoint")
    parser.add_argument("--data", required=True, help="folder that holds GLUE's tasks")
    parser.add_argument("--task", choices=glue.TASKS, required=True)
    parser.add_argument("--method", choices=("gates", "bitfit"), required=True)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--train-rows", type=int, help="only the first rows of the training set")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--gate-rate", type=float, default=1e-3)
    parser.add_argument("--bias-rate", type=float, default=1e-3)
    parser.add_argument("--head-rate", type=float, default=1e-3)
    parser.add_argument("--target-sparsity", type=float, default=0.4)
    parser.add_argument("--sparsity-weight", type=float, default=50.0)
    parser.add_argument("--kurtosis", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print(json.dumps({key: value for key, value in vars(arguments).items() if key not in ("model", "data")}), flush=True)

    splits = {}
    for split in ("train", "dev"):
        texts, pairs, labels = glue.read_split(arguments.data, arguments.task, split)
        rows = arguments.train_rows if split == "train" else None
        tokenizer, examples = tokenize(arguments.model, texts[:rows], pairs and pairs[:rows], arguments.max_length)
        splits[split] = examples, labels[:rows]
    trainee = Trainee(arguments.model, glue.classes_of(arguments.task), arguments.method)
    trainee.model.train()
    optimizer = trainee.optimizer(
        {"gate": arguments.gate_rate, "bias": arguments.bias_rate, "head": arguments.head_rate}
    )
    for epoch in range(1, arguments.epochs + 1):
        started = time.perf_counter()
        losses = train_epoch(trainee, optimizer, tokenizer, *splits["train"], arguments)
        elapsed_s = round(time.perf_counter() - started, 1)
        found = evaluate(trainee, tokenizer, *splits["dev"], arguments.task)
        line = {"epoch": epoch, **losses, **found, "removed_by_gates": round(trainee.removed(), 4), "elapsed_s": elapsed_s}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
