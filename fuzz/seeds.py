"""Writes small good inputs for every fuzz target into fuzz/corpus, which is not committed."""

import base64
import io
import json
import os
import struct
import zipfile

HERE = os.path.dirname(os.path.abspath(__file__))
TOKENIZERS = os.path.join(HERE, "..", "crates", "checkpoint", "fixtures", "tokenizer")
FIXTURES = os.path.join(HERE, "..", "fixtures", "tiny")
GAP = b"\xff\x00"
# Two rows of a text and a label, written by pyarrow with snappy.
PARQUET = (
    "UEFSMRUAFSAVJCwVBBUAFQYVBhwAAAAQPAIAAAAEAQEAAABhAQAAAGIVABUsFTAsFQQVABUGFQYcAAAAFlQCAAAABAEAAAAAAAAA"
    "AAEAAAAAAAAAFQQZPDUAGAZzY2hlbWEVBAAVDCUCGAR0ZXh0JQBMHAAAABUEJQIYBWxhYmVsABYEGRwZLCYAHBUMGSUGABkYBHRl"
    "eHQVAhYEFkYWSiYISRwVABUAFQIAPBYEGQYZJgAEAAAAJgAcFQQZJQYAGRgFbGFiZWwVAhYEFlIWViZSSRwVABUAFQIAPCkGGSYA"
    "BAAAABaYARYEJggWoAEAKCBwYXJxdWV0LWNwcC1hcnJvdyB2ZXJzaW9uIDI2LjAuMRksHAAAHAAAAMcAAABQQVIx"
)


def seed(target, name, content):
    folder = os.path.join(HERE, "corpus", target)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, name), "wb") as out:
        out.write(content)


def safetensors(tensors):
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    return json.dumps(header).encode(), data


def floats(*values):
    return struct.pack(f"<{len(values)}f", *values)


def indices(*values):
    return struct.pack(f"<{len(values)}I", *values)


def gguf():
    """A Llama model of one layer and a width of 8, with a tokenizer of three tokens."""
    def text(value):
        return struct.pack("<Q", len(value)) + value.encode()

    def texts(*values):
        return 9, struct.pack("<IQ", 8, len(values)) + b"".join(map(text, values))

    def count(value):
        return 4, struct.pack("<I", value)

    keys = {"general.architecture": (8, text("llama")), "llama.embedding_length": count(8), "llama.block_count": count(1),
            "llama.context_length": count(16), "llama.feed_forward_length": count(8),
            "llama.attention.head_count": count(2), "llama.attention.head_count_kv": count(1),
            "llama.attention.layer_norm_rms_epsilon": (6, floats(1e-5)), "tokenizer.ggml.model": (8, text("gpt2")),
            "tokenizer.ggml.pre": (8, text("smollm")), "tokenizer.ggml.tokens": texts("a", "b", "ab"),
            "tokenizer.ggml.merges": texts("a b")}
    tensors = {"token_embd": [8, 3], "output_norm": [8], "blk.0.attn_norm": [8], "blk.0.ffn_norm": [8],
               "blk.0.attn_q": [8, 8], "blk.0.attn_k": [8, 4], "blk.0.attn_v": [8, 4], "blk.0.attn_output": [8, 8],
               "blk.0.ffn_gate": [8, 8], "blk.0.ffn_up": [8, 8], "blk.0.ffn_down": [8, 8]}
    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys))
    for key, (kind, value) in keys.items():
        out += text(key) + struct.pack("<I", kind) + value
    data = b""
    for name, axes in tensors.items():
        out += text(f"{name}.weight") + struct.pack(f"<I{len(axes)}QIQ", len(axes), *axes, 0, len(data))
        values = floats(*range(axes[0] * (axes[1] if len(axes) > 1 else 1)))
        data += values + b"\0" * (-len(values) % 32)
    return out + b"\0" * (-len(out) % 32) + data


def read(*path):
    with open(os.path.join(TOKENIZERS, *path), "rb") as file:
        return file.read()


def main():
    path = "bert.encoder.layer.0.intermediate.dense"
    compact = {"format_version": 1, "projections": {path: {"rows": 4, "columns": 2}}}
    for family, extra in [("bert", {"finegates": compact}), ("roberta", {"classifier_dropout": None}),
                          ("xlm-roberta", {"num_labels": 3}), ("distilbert", {"dim": 8, "n_heads": 2}),
                          ("mpnet", {"relative_attention_num_buckets": 32, "id2label": {"0": "a", "1": "b"}})]:
        seed("config", family, json.dumps({"model_type": family, "hidden_dropout_prob": 0.1, **extra}).encode())
    adapter_config = json.dumps({"peft_type": "FINEGATES", "target_sparsity": 0.4, "target_modules": ["query"],
                                 "modules_to_save": ["classifier"], "bias": "none"}).encode()
    seed("config", "adapter", adapter_config)

    header, data = safetensors({"a": ("F32", [2], floats(1, 2)), "b": ("BF16", [1, 2], b"\0\0\0\0"),
                                "c": ("I64", [1], struct.pack("<q", 3)), "d": ("F16", [2], b"\0\0\0\0")})
    seed("tensors", "raw", struct.pack("<Q", len(header)) + header + data)
    seed("tensors", "parts", header + GAP + data)
    index = json.dumps({"weight_map": {"a": "a.safetensors", "c": "a.safetensors"}}).encode()
    seed("tensors", "shard", header + GAP + data + GAP + index)

    header, data = safetensors({
        "base_model.model.a.query.finegates_rows": ("F32", [2], floats(1, -1)),
        "base_model.model.a.query.finegates_columns.default": ("F32", [1], floats(1)),
        "base_model.model.a.query.bias": ("F32", [2], floats(1, 2)),
        "base_model.model.classifier.modules_to_save.default.weight": ("F32", [1, 2], floats(1, 2))})
    seed("adapter", "small", adapter_config + GAP + header + GAP + data)

    header, data = safetensors({
        f"{path}.bias": ("F32", [2], floats(1, 2)), f"{path}.kept_rows": ("U32", [2], indices(1, 3)),
        f"{path}.kept_columns": ("U32", [1], indices(0)), f"{path}.weight": ("F32", [2, 1], floats(1, 2))})
    seed("compact", "small", json.dumps({"model_type": "bert", "finegates": compact}).encode() + GAP + header + GAP + data)

    seed("tokenizer", "json", bytes([0b1]) + read("unigram", "tokenizer.json"))
    seed("tokenizer", "words", bytes([0b10010]) + read("bert-accents", "vocab.txt") + GAP
         + read("bert-accents", "tokenizer_config.json"))
    seed("tokenizer", "bytes", bytes([0b11100]) + read("roberta-prefix", "vocab.json") + GAP
         + read("roberta-prefix", "merges.txt") + GAP + read("roberta-prefix", "tokenizer_config.json"))
    words = {"model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                       "max_input_chars_per_word": 100, "vocab": {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "gate": 3, "##s": 4}},
             "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
                            "strip_accents": None, "lowercase": True},
             "pre_tokenizer": {"type": "BertPreTokenizer"},
             "post_processor": {"type": "TemplateProcessing",
                                "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                                           {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
                                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                                "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [1], "tokens": ["[CLS]"]},
                                                   "[SEP]": {"id": "[SEP]", "ids": [2], "tokens": ["[SEP]"]}}}}
    seed("tokenizer", "template", bytes([0b1]) + json.dumps(words).encode())
    bytes_model = {"model": {"type": "BPE", "dropout": 0.5, "unk_token": None, "vocab": {"a": 0, "b": 1, "ab": 2, "Ġ": 3},
                             "merges": [["a", "b"]], "byte_fallback": False, "ignore_merges": True},
                   "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                       {"type": "Split", "pattern": {"Regex": "\\p{L}+(?!x)|."}, "behavior": "Isolated", "invert": False},
                       {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": False}]},
                   "post_processor": {"type": "RobertaProcessing", "sep": ["b", 1], "cls": ["a", 0], "trim_offsets": True,
                                      "add_prefix_space": True},
                   "truncation": {"max_length": 2, "strategy": "LongestFirst", "stride": 0},
                   "padding": {"strategy": {"Fixed": 64}, "direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "a"}}
    seed("tokenizer", "split", bytes([0b1]) + json.dumps(bytes_model).encode())
    seed("data", "csv", b'\x00text,label\n"a ""b"",\r\nc",1\nd,0\n')
    seed("data", "csv-labelled", b'\xfftext,label\n"a",yes\nd,0\n')
    seed("data", "tsv", b"\x01sentence1\tsentence2\tlabel\na\tb\t1\n")
    seed("data", "jsonl", b'\x02{"text": "a", "label": 1}\n{"text": 2.5, "label": null}\n')
    seed("data", "lines", b"\x03a line\n\nanother")
    seed("data", "parquet", b"\x04" + base64.b64decode(PARQUET))
    seed("recipe", "small", b'model = "m"\ndata = "/d"\nepochs = 2.5\nevaluate_every = "50 steps"\nmethod = "full"\ntask = "mnli"\n'
         b'schedule = "cosine"\nkurtosis = true\nvalidation = ["/a", "/b"]\nbest_metric = "loss"\nseed = 7\n')
    standing = {"format_version": 2, "step": 1, "evaluation_pending": False, "early_stopped": False,
                "evaluations_since_best": 0, "best": None, "journal_bytes": 9, "sequences": 4, "step_seconds": 0.5,
                "seconds": 0.5, "data": "00", "base_model": "00"}
    header = json.dumps({"__metadata__": {"finegates_state": json.dumps(standing)},
                         "value/a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    seed("state", "small", struct.pack("<Q", len(header)) + header + floats(1))

    for family in ["bert", "roberta", "xlm-roberta", "distilbert", "mpnet"]:
        with open(os.path.join(FIXTURES, family, "config.json"), "rb") as file:
            config = file.read()
        with open(os.path.join(FIXTURES, family, "model.safetensors"), "rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            header, data = file.read(length), file.read()
        seed("model", family, config + GAP + header + GAP + data.replace(GAP, b"\0\0"))
    rows = {"type_vocab_size": 1, "vocab_size": 2, "max_position_embeddings": 2}
    config = {"model_type": "bert", "hidden_size": 2, "num_hidden_layers": 0, "num_attention_heads": 1, **rows}
    header, data = safetensors({f"bert.embeddings.{name}.weight": ("F32", [count, 2], floats(*range(2 * count)))
                                for name, count in [("word_embeddings", 2), ("position_embeddings", 2),
                                                    ("token_type_embeddings", 1)]}
                               | {f"bert.embeddings.LayerNorm.{part}": ("F32", [2], floats(1, 2))
                                  for part in ["weight", "bias"]}
                               | {"bert.pooler.dense.weight": ("F32", [2, 2], floats(1, 2, 3, 4)),
                                  "bert.pooler.dense.bias": ("F32", [2], floats(1, 2)),
                                  "classifier.weight": ("F32", [2, 2], floats(1, 2, 3, 4)),
                                  "classifier.bias": ("F32", [2], floats(1, 2))})
    seed("model", "small", json.dumps(config).encode() + GAP + header + GAP + data)
    seed("artifact", "run", bytes([0b11001]) + b'model = "m"\nmax_length = 8\n' + GAP + adapter_config + GAP + b"{}")
    seed("artifact", "adapter", bytes([0b00010]) + adapter_config)
    seed("artifact", "compact", bytes([0b00100]) + json.dumps({"model_type": "bert", "finegates": compact}).encode())
    seed("listing", "model", json.dumps({"sha": "0123456789abcdef" * 2 + "01234567",
                                         "siblings": [{"rfilename": "config.json"}]}).encode())
    seed("listing", "index", index)
    for method in [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]:
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w", method) as out:
            out.writestr("model/config.json", b"{}" * 40)
            out.writestr("model/", b"")
        seed("archive", str(method), archive.getvalue())
    seed("gguf", "llama", gguf())
    gates = {"open": 1, "fractional": 0, "closed": 1}
    projection = {"path": path, "layer": 0, "gated": True, "rows": 2, "columns": 2, "open_rows": 1, "open_columns": 1,
                  "live_rows": 1, "live_columns": 1, "row_gates": gates, "column_gates": gates}
    totals = {"gated_parameters": 4, "removed_by_gates": 3, "removed_with_liveness": 3, "multiply_adds_before": 4,
              "multiply_adds_after": 1, "gates": {"open": 2, "fractional": 0, "closed": 2}}
    report = {"format_version": 1, "written_by": "seeds", "source": {"base": "b", "adapter": None, "method": "gates"},
              "parameters": {"before": 4, "after": 1}, "size_bytes": {"before": 16, "after": 4},
              "verification": {"sequences": 1, "tokens": 2, "max_abs_difference": 1e-7, "scale": 1.5, "tolerance": 1e-4},
              "notes": [], **totals, "layers": [{"layer": 0, **totals}], "projections": [projection]}
    curve = lambda *sizes: {"sizes": sizes, "milliseconds": [1.0 + at for at in range(len(sizes))]}
    latency = {"feed_forward": curve(0, 32, 96), "value": curve(0, 64), "query_key": curve(0, 32, 64), "together": curve(*range(9)),
               "rest_milliseconds": 0.5, "granularity": 32}
    seed("latency", "small", json.dumps(latency).encode())
    seed("report", "small", json.dumps(report).encode())


main()
