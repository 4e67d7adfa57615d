"""Imports a GGUF file with the `finegates` binary and compares with transformers' own reading of the same file: every
weight to the bit, and the token ids of every line of some texts. Exit status 1 if anything differs.

    python tools/check_gguf_import.py target/release/finegates model.gguf texts.txt [more.txt ...]
"""

import argparse
import os
import subprocess
import sys
import tempfile

import torch
from gguf import GGUFReader
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPT = "The capital of France is"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("finegates")
    parser.add_argument("gguf")
    parser.add_argument("texts", nargs="+")
    parser.add_argument("--lines", type=int, default=500, help="lines of each text file")
    arguments = parser.parse_args()
    failures = 0
    with tempfile.TemporaryDirectory() as place:
        folder = os.path.join(place, "model")
        subprocess.run([arguments.finegates, "import", arguments.gguf, "--output", folder], check=True)
        ours = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        where, name = os.path.split(os.path.abspath(arguments.gguf))
        theirs = AutoModelForCausalLM.from_pretrained(where, gguf_file=name, dtype=torch.float32)
        weights, others = ours.state_dict(), theirs.state_dict()
        if weights.keys() != others.keys():
            failures += 1
            print("names differ:", sorted(weights.keys() ^ others.keys())[:10])
        different = [key for key in weights if key in others and not torch.equal(weights[key], others[key])]
        failures += len(different)
        print(f"weights: {len(weights)} tensors, {len(different)} differ {different[:5]}")
        for field in ["hidden_size", "rope_parameters", "rms_norm_eps", "vocab_size", "num_key_value_heads", "head_dim",
                      "tie_word_embeddings", "max_position_embeddings"]:
            one, other = getattr(ours.config, field, None), getattr(theirs.config, field, None)
            if one != other:
                print(f"config: {field}: {one} here, {other} there")

        tokenizer = AutoTokenizer.from_pretrained(folder)
        reference = AutoTokenizer.from_pretrained(where, gguf_file=name)
        rule = GGUFReader(arguments.gguf).fields.get("tokenizer.ggml.pre")
        rule = rule and rule.contents()
        # transformers does not know this rule by its name; the published tokenizers cut every digit off.
        if rule == "smollm":
            reference.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
        lines = []
        for path in arguments.texts:
            with open(path, encoding="utf-8", errors="replace") as file:
                lines += [line.rstrip("\n") for _, line in zip(range(arguments.lines), file)]
        lines += ["\t tabs\t\tand   spaces  ", "I'LL I'll we've THEY'D", "1234567 3.14 \u0663\u0664", "caf\u00e9 cafe\u0301",
                  "\u4f60\u597d\uff0c\u4e16\u754c", "\U0001f44d\U0001f3fd", "a\r\nb\n\n\nc", " ", "", "<|im_start|>user\nhi<|im_end|>"]
        wrong = [line for line in lines if tokenizer(line)["input_ids"] != reference(line)["input_ids"]]
        failures += len(wrong)
        print(f"tokenizer: {len(lines)} texts, {len(wrong)} differ {wrong[:3]!r}")
        ids = tokenizer(PROMPT, return_tensors="pt")
        said = ours.generate(**ids, max_new_tokens=16, do_sample=False)
        print(f"greedy: {tokenizer.decode(said[0])!r}")
        if tokenizer.chat_template:
            chat = [{"role": "user", "content": "Hi"}]
            same = tokenizer.apply_chat_template(chat, tokenize=False) == reference.apply_chat_template(chat, tokenize=False)
            failures += not same
            print(f"chat template: {'the same' if same else 'differs'}")
    sys.exit(1 if failures else 0)


main()
