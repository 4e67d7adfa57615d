"""What the peers share: the input of a job, and timing of a decoder's two parts."""

import json
import time

import numpy

# As users of sentence encoders batch: this many texts, in their order, padded to the longest.
TEXTS_A_BATCH = 16


def random_ids(batch, length, vocabulary, padding):
    """Token ids `[batch, length]` of a fixed seed, without padding."""
    ids = numpy.random.default_rng(0).integers(0, vocabulary, (batch, length), dtype=numpy.int64)
    ids[ids == padding] = (padding or 0) + 1
    return ids


def encoder_batches(job, config):
    """A list of batches, each a dict of arrays that a model of transformers takes."""
    if "texts" not in job:
        ids = random_ids(job["batch"], job["length"], config.vocab_size, config.pad_token_id)
        return [{"input_ids": ids, "attention_mask": numpy.ones_like(ids)}]
    from transformers import AutoTokenizer

    with open(job["texts"], encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    batches = []
    for start in range(0, len(rows), TEXTS_A_BATCH):
        part = rows[start : start + TEXTS_A_BATCH]
        pairs = [row["pair"] for row in part] if "pair" in part[0] else None
        longest = min(tokenizer.model_max_length, 512)
        encoded = tokenizer([row["text"] for row in part], pairs, padding="longest", truncation=True, max_length=longest)
        batches.append({name: numpy.asarray(encoded[name], dtype=numpy.int64) for name in ("input_ids", "attention_mask")})
    return batches


def prompts_and_steps(job, config):
    """Prompts `[batch, length]`, and the tokens `[batch, 1]` of the steps after them."""
    ids = random_ids(job["batch"], job["length"] + job["steps"], config.vocab_size, config.pad_token_id)
    steps = [ids[:, place : place + 1] for place in range(job["length"], job["length"] + job["steps"])]
    return ids[:, : job["length"]], steps


def timed_parts(read_prompts, read_tokens, steps):
    """Milliseconds of reading the prompts and of all steps."""
    started = time.perf_counter()
    read_prompts()
    read = time.perf_counter()
    for tokens in steps:
        read_tokens(tokens)
    return {"prefill_ms": 1e3 * (read - started), "decode_ms": 1e3 * (time.perf_counter() - read)}
