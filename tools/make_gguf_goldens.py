"""Writes crates/checkpoint/fixtures/gguf: blocks of every format with the values that the `gguf` package of llama.cpp's
authors gives them, and small tokenizers with the token ids that transformers' classes and SentencePiece give for a few texts."""

import io
import json
import os

import numpy as np
import sentencepiece as spm
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from safetensors.numpy import save_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import GPT2Tokenizer, Qwen2Tokenizer
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "crates", "checkpoint", "fixtures", "gguf")
BLOCKS = 4
# Where the f16 scales of a block lie.
SCALES = {"Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q4_K": [0, 2], "Q5_K": [0, 2],
          "Q6_K": [208]}
TEXTS = [
    "", " ", "a", "The capital of France is", "Hello, we can use 1234567 gates; 3.14159 of them.",
    "I'LL say it's what we've done, they'd agree, I'm sure you're right. DON'T!",
    "  two spaces,   three,\tone tab\n\nand lines\r\n  end  ", "x\n", "\n\n\n", "a \n b", "tab\t\tstop   ",
    "Caf\u00e9 d\u00e9j\u00e0 vu, cafe\u0301 again", "\u041f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002", "\U0001f44d\U0001f3fd ok \u00bd \u2167 \u0663\u0664\u0665", "snake_case camelCase HTTPServer",
    "if (x != 0) { return a[i] + b->c; } // done", "$5.00 + 7% = ~12^2 | <tag/>", "\u00a0nbsp\u2003em",
    "<|end|>inside<|end|> and <|mark|>", "http://example.org/a/b?c=d#e", "\u0627\u0644\u0633\u0644\u0627\u0645 \u0639\u0644\u064a\u0643\u0645", "1", "12", "123", "1234", "a1b22c333",
]
CORPUS = [
    "the gates open and the gates close, and what is closed is removed from the model; it's then a smaller model.",
    "we've seen that they'd use it, I'm sure you're right, and I'll say so. Don't, won't, can't.",
    "return the value of the function if it is not zero, else 1, 2, 3, 12, 123, 1234 or 2024.",
    "The capital of France is Paris; the capital of Italy is Rome. Hello, hello, world!",
    "caf\u00e9 d\u00e9j\u00e0 vu \u041f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440 \u4f60\u597d \u4e16\u754c",
] * 4


def quants():
    random = np.random.default_rng(7)
    tensors = {}
    for name in ["F32", "F16", "BF16", *SCALES]:
        kind = GGMLQuantizationType[name]
        values, size = GGML_QUANT_SIZES[kind]
        count = BLOCKS if values > 32 else 4 * BLOCKS
        if name in SCALES:
            blocks = random.integers(0, 256, (count, size), dtype=np.uint8)
            for place in SCALES[name]:
                scales = (random.standard_normal(count) * 0.05).astype(np.float16)
                scales[0] = np.float16(6e-8)  # the smallest subnormal
                blocks[:, place:place + 2] = scales.view(np.uint8).reshape(count, 2)
        else:
            numbers = (random.standard_normal(64) * 3).astype(np.float32)
            numbers[:4] = [0.0, -0.0, 1e-7, 65504.0]
            raw = {"F32": numbers, "F16": numbers.astype(np.float16), "BF16": (numbers.view(np.uint32) >> 16).astype(np.uint16)}
            blocks = raw[name].view(np.uint8).reshape(1, -1)
        tensors[f"{name}.blocks"] = blocks.reshape(-1).copy()
        tensors[f"{name}.values"] = dequantize(blocks, kind).astype(np.float32).reshape(-1).copy()
    save_file(tensors, os.path.join(FOLDER, "quants.safetensors"))


def byte_level():
    """A vocabulary trained here, and what each kind of pre-tokenizer makes of the texts with it."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=["<|begin|>", "<|end|>"],
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False)
    trained.train_from_iterator(CORPUS, trainer)
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    vocabulary = dict(model["vocab"])
    # A word that is a token although no merges lead to it: kinds that ignore merges find it.
    vocabulary["camelCase"] = len(vocabulary)
    vocabulary["<|mark|>"] = len(vocabulary)
    tokens = sorted(vocabulary, key=vocabulary.get)
    types = [3, 3] + [1] * (len(tokens) - 3) + [4]
    mark = "<|mark|>"

    def ids(tokenizer, begin):
        tokenizer.add_special_tokens(["<|begin|>", "<|end|>"])
        tokenizer.add_tokens([mark])
        return [([0] if begin else []) + tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]

    def split_by(rule):
        made = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
        made.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS[rule]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        return made

    gpt2 = GPT2Tokenizer(vocab=vocabulary, merges=merges, unk_token=None, bos_token="<|begin|>", eos_token="<|end|>")
    qwen2 = Qwen2Tokenizer(vocab=vocabulary, merges=merges, unk_token=None, eos_token="<|end|>", pad_token="<|end|>")
    digits = Tokenizer(models.BPE(vocabulary, merges))
    digits.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    expected = {
        "gpt-2": ids(gpt2.backend_tokenizer, False),
        "smollm": ids(digits, False),
        "qwen2": ids(qwen2.backend_tokenizer, False),
        "llama-bpe": ids(split_by("llama-bpe"), True),
        "tekken": ids(split_by("tekken"), True),
    }
    return {"tokens": tokens, "types": types, "merges": [" ".join(merge) for merge in merges], "begin": 0, "end": 1,
            "expected": expected}


def sentencepiece_model(prefix):
    """A small model in the settings of Llama's, by SentencePiece's own trainer."""
    out = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=out, model_type="bpe", vocab_size=460, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
        add_dummy_prefix=prefix, allow_whitespace_only_pieces=True, user_defined_symbols=["<|mark|>"],
        character_coverage=0.98, minloglevel=2, num_threads=1)
    return spm.SentencePieceProcessor(model_proto=out.getvalue())


def sentencepiece():
    """Its pieces with scores and types, as llama.cpp's converter stores them, and its own ids for the texts: with and
    without a space put before them. A space is not put after a token found in the text, where Llama's tokenizers do put
    one, so texts with such tokens are left out."""
    golden = {}
    for prefix in [True, False]:
        model = sentencepiece_model(prefix)
        every = range(model.vocab_size())

        def kind(id):
            if model.is_unknown(id):
                return 2
            if model.is_control(id):
                return 3
            if model.is_byte(id):
                return 6
            return 4 if model.id_to_piece(id) == "<|mark|>" else 1

        pieces = {"tokens": [model.id_to_piece(id) for id in every], "scores": [model.get_score(id) for id in every],
                  "types": [kind(id) for id in every]}
        expected = [None if "<|" in text else [1] + model.encode(text) for text in TEXTS]
        golden[str(prefix).lower()] = {**pieces, "expected": expected}
    return golden


def main():
    os.makedirs(FOLDER, exist_ok=True)
    quants()
    golden = {"texts": TEXTS, "bytes": byte_level(), "sentencepiece": sentencepiece()}
    with open(os.path.join(FOLDER, "tokenizers.json"), "w", encoding="utf-8") as out:
        json.dump(golden, out, ensure_ascii=True, separators=(",", ":"))
        out.write("\n")


main()
