"""Compares the finegates binary with transformers on a real checkpoint: one f32 logit a text, within 2e-4.

    python tools/check_real_parity.py MODEL_FOLDER [MODEL_FOLDER ...] --binary target/release/finegates

The checkpoint is copied to a temporary folder with a regression head that is the same every time (tools/counter_normal.py),
because the answer to a regression is the logit itself. `--classes N` takes a classifier instead and compares the logarithms of
the scores with the reference's log-softmax. Exit status: 0 equal, 1 not, 2 the comparison could not be made.

`--command` is what runs: {binary}, {model} and {input} are filled in; the input is JSON lines with `text` and, for pairs,
`text_pair`. Standard output must be a JSON object a line, in order, with `value` (regression) or `scores`.
A decoder whose tokenizer adds no token of its own (SmolLM2) makes no tokens of an empty text: give `--no-empty`.
"""

import argparse
import json
import math
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoTokenizer

from make_real_goldens import load_with_head, logits_of
from real_texts import EXAMPLES
from tiny_tokenizers import encode

COMMAND = "{binary} predict {model} {input} --format jsonl --text text --json"
COMMAND_PAIRS = COMMAND + " --text-pair text_pair"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


def write_checkpoint(model, source, folder):
    """The model with its head, and the original tokenizer files untouched."""
    model.save_pretrained(folder)
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            shutil.copy(source / name, folder / name)


def run_binary(command, binary, model, texts):
    """The binary's answers to texts, all of them pairs or none."""
    with tempfile.TemporaryDirectory() as scratch:
        rows = Path(scratch) / "texts.jsonl"
        with rows.open("w", encoding="utf-8") as out:
            for text, pair in texts:
                row = {"text": text} if pair is None else {"text": text, "text_pair": pair}
                out.write(json.dumps(row) + "\n")
        filled = [part.format(binary=binary, model=model, input=rows) for part in shlex.split(command)]
        done = subprocess.run(filled, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        print(f"`{shlex.join(filled)}` ended with status {done.returncode}", file=sys.stderr)
        raise SystemExit(2)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    if len(answers) != len(texts):
        print(f"{len(texts)} texts went in, {len(answers)} answers came out", file=sys.stderr)
        raise SystemExit(2)
    return answers


def answer_numbers(answer, labels):
    """What is compared: the logit of a regression, the log-probabilities of a classifier."""
    if len(labels) == 1:
        return [answer["value"]]
    scores = answer["scores"]
    return [math.log(scores[label] if isinstance(scores, dict) else scores[index]) for index, label in enumerate(labels)]


def reference_numbers(logits):
    return logits if len(logits) == 1 else torch.log_softmax(torch.tensor(logits, dtype=torch.float64), dim=0).tolist()


def check(folder, arguments):
    """The largest difference of one checkpoint."""
    model, _ = load_with_head(folder, torch.float32, classes=arguments.classes)
    if arguments.classes == 1:
        model.config.problem_type = "regression"
    labels = [model.config.id2label[index] for index in range(arguments.classes)]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    worst = 0.0
    with tempfile.TemporaryDirectory() as copy:
        write_checkpoint(model, folder, Path(copy))
        for command, pairs in ((arguments.command, False), (arguments.command_pairs, True)):
            texts = [(text, pair) for text, pair in EXAMPLES if (pair is not None) == pairs]
            if arguments.no_empty:
                texts = [(text, pair) for text, pair in texts if text.strip() and pair != ""]
            answers = run_binary(command, arguments.binary, copy, texts)
            for (text, pair), answer in zip(texts, answers):
                ids, segments = encode(tokenizer, text, pair, 512)
                expected = reference_numbers(logits_of(model, ids, segments))
                found = answer_numbers(answer, labels)
                difference = max(abs(left - right) for left, right in zip(expected, found, strict=True))
                worst = max(worst, difference)
                if not difference <= arguments.tolerance:
                    print(f"{folder}: {text[:60]!r}, {(pair or '')[:40]!r}: expected {expected}, found {found}")
    return worst


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="unpacked checkpoints")
    parser.add_argument("--binary", default="finegates")
    parser.add_argument("--command", default=COMMAND, help="for single texts [default: %(default)s]")
    parser.add_argument("--command-pairs", default=COMMAND_PAIRS, help="for pairs [default: %(default)s]")
    parser.add_argument("--classes", type=int, default=1)
    parser.add_argument("--tolerance", type=float, default=2e-4)
    parser.add_argument("--no-empty", action="store_true", help="leave texts out that are empty or only spaces")
    arguments = parser.parse_args()
    failed = False
    for folder in arguments.folders:
        worst = check(folder, arguments)
        passed = worst <= arguments.tolerance
        failed |= not passed
        print(f"{folder}: largest difference {worst:.2e}, {'within' if passed else 'MORE THAN'} {arguments.tolerance:g}")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
