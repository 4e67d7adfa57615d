"""Writes the tokenizer goldens under ../fixtures/tokenizer: tiny vocabularies of every kind and what transformers makes
of texts with them, and checksums of what it makes of GLUE's sentences with the tokenizers of real models.

    python tools/tokenizer_goldens.py                                    the tiny ones
    python tools/tokenizer_goldens.py SHARED NAME=MODEL_FOLDER...        and those of real models, on SHARED/data/glue

Needs transformers 5 and tokenizers. The tests read the results; nothing here runs with them.
"""

import csv
import json
import os
import shutil
import sys
import warnings

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

warnings.filterwarnings("ignore")
HERE = os.path.dirname(os.path.abspath(__file__))
TARGET = os.path.join(HERE, "..", "fixtures", "tokenizer")

CORPUS = """
The gates of the garden open in the morning, and the gardener closes them at night.
A closed gate lets nothing through; an open gate lets everything through, unchanged.
Where two paths cross, the smaller path is lost under the leaves of the larger one.
Is the path lost? It isn't lost, it's covered: you'll find it again in 2026, or on page 41.
Crème brûlée, naïve façades, Ångström and ÉCOLE: words with marks above and below.
Ein größerer Garten, über den Fluß hinaus, gehört niemandem.
小さな門 門を開く 公园 的 门
Красивый сад за рекой.
""".strip().split("\n")

TEXTS = [
    "The gates open.",
    "the GATES of the Garden aren't open, they're closed!",
    "",
    " ",
    "\t two\nlines \r\n and  spaces\u00a0here ",
    "Crème brûlée in naïve façades; ÅNGSTRÖM, ÉCOLE, e\u0301cole",
    "小さな門を開く公园的门 and words门inside",
    "Красивый САД за рекой",
    "größer über Fluß STRASSE",
    "emoji 👩‍👩‍👧 🚪 and zero\u200bwidth, control \x07 bell, \ufffd and \x00 nul",
    "שלום עולם مرحبا بالعالم",
    "a" * 130 + " long word",
    "[CLS] markers [SEP] in [MASK] the text [UNK] <s> of </s> some <mask> kind <pad> <unk> [PAD]",
    "don't you'll we've I'm he'd it's THEY'RE 's 't",
    "numbers 3.14 1,000,000 ½ ² ① x=2*y+[z] #tag @you http://gate.org/path?a=b&c=d",
    "ﬁne ligatures, full　width ＡＢＣ, combining a\u0308\u0323",
    "word-with-dashes under_score back\\slash \"quotes\" “curly” … — –",
    "the path is lost under the leaves of the larger one and found again where two paths cross the garden " * 3,
]
PAIRS = [(0, 1), (1, 0), (2, 3), (5, 6), (12, 12), (17, 0), (0, 17), (17, 17), (9, 14), (2, 17)]
LENGTHS = [128, 16, 7, 5, 4, 3]


def train_word_piece(special, lower):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=360, special_tokens=special, min_frequency=1, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    vocabulary = tokenizer.get_vocab()
    return [token for token, _ in sorted(vocabulary.items(), key=lambda item: item[1])]


def write(folder, name, content):
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, name), "w", encoding="utf-8", newline="\n") as out:
        if isinstance(content, str):
            out.write(content)
        else:
            json.dump(content, out, ensure_ascii=False, indent=1)
            out.write("\n")


def word_piece(name, model_type, special, settings, lower=True, line_end="\n"):
    folder = os.path.join(TARGET, name)
    vocabulary = train_word_piece(special, lower)
    write(folder, "vocab.txt", "".join(token + line_end for token in vocabulary))
    if settings is not None:
        write(folder, "tokenizer_config.json", settings)
    write(folder, "config.json", config(model_type, len(vocabulary)))


def config(model_type, rows):
    size = {"dim": 8, "n_heads": 2, "hidden_dim": 16} if model_type == "distilbert" else {
        "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16}
    return {"model_type": model_type, "vocab_size": rows, **size}


def byte_level(name, settings):
    folder = os.path.join(TARGET, name)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    os.makedirs(folder, exist_ok=True)
    tokenizer.model.save(folder)
    if settings is not None:
        write(folder, "tokenizer_config.json", settings)
    write(folder, "config.json", config("roberta", tokenizer.get_vocab_size()))


def unigram(name):
    folder = os.path.join(TARGET, name)
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("  ", " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")])
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"], unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    # Saved as if someone had left these on.
    tokenizer.enable_padding(length=64, pad_id=1, pad_token="<pad>")
    tokenizer.enable_truncation(10)
    os.makedirs(folder, exist_ok=True)
    tokenizer.save(os.path.join(folder, "tokenizer.json"))
    # The class that takes tokenizer.json as it is; XLMRobertaTokenizer would rebuild it without the normaliser.
    write(folder, "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    write(folder, "config.json", config("xlm-roberta", tokenizer.get_vocab_size()))


def encode(tokenizer, text, pair, length):
    encoded = tokenizer(text, pair, truncation=True, max_length=length)
    whole = tokenizer(text, pair, truncation=False)
    segments = encoded.get("token_type_ids") or [0] * len(encoded["input_ids"])
    return encoded["input_ids"], list(segments), len(encoded["input_ids"]) < len(whole["input_ids"])


def expected(name):
    """What transformers makes of the texts; only ids within the vocabulary count."""
    folder = os.path.join(TARGET, name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.no_padding()
    cases = []
    for first, second in [(i, None) for i in range(len(TEXTS))] + PAIRS:
        for length in LENGTHS:
            if length < tokenizer.num_special_tokens_to_add(pair=second is not None):
                continue
            pair = None if second is None else TEXTS[second]
            ids, segments, truncated = encode(tokenizer, TEXTS[first], pair, length)
            if name == "unigram":
                segments = [0] * len(ids)  # XLM-RoBERTa knows no segments; the generic class says otherwise
            cases.append({"first": first, "second": second, "length": length, "ids": ids, "segments": segments,
                          "truncated": truncated})
    with open(os.path.join(folder, "expected.json"), "w", encoding="utf-8", newline="\n") as out:
        out.write('{"texts": ' + json.dumps(TEXTS, ensure_ascii=True) + ',\n"cases": [\n')
        out.write(",\n".join(json.dumps(case) for case in cases) + "\n]}\n")


def checksum(values):
    """FNV-1a over little-endian u32."""
    state = 0xCBF29CE484222325
    for value in values:
        for byte in value.to_bytes(4, "little"):
            state = (state ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return state


def sentences(shared):
    """Every few rows of several tasks, as (file, row, first, second)."""
    glue = os.path.join(shared, "data", "glue")
    for path, first, second, step in [("CoLA/dev.tsv", 3, None, 10), ("SST-2/dev.tsv", 0, None, 9),
                                      ("MRPC/dev.tsv", 3, 4, 3), ("STS-B/dev.tsv", 7, 8, 10)]:
        with open(os.path.join(glue, path), encoding="utf-8", newline="\n") as lines:
            rows = lines.read().rstrip("\n").split("\n")
        for row in range(1, len(rows), step):
            fields = rows[row].rstrip("\r").split("\t")
            yield path, row, first, second, fields


def real(shared, name, folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.no_padding()
    rows = []
    for path, row, first, second, fields in sentences(shared):
        pair = None if second is None else fields[second]
        for length in (512, 24):
            ids, segments, truncated = encode(tokenizer, fields[first], pair, length)
            rows.append([path, row, first, second, length, len(ids), truncated, f"{checksum(ids + segments):016x}"])
    with open(os.path.join(TARGET, "real", f"{name}.tsv"), "w", newline="\n") as out:
        writer = csv.writer(out, delimiter="\t", lineterminator="\n")
        writer.writerow(["file", "row", "first", "second", "length", "ids", "truncated", "checksum"])
        writer.writerows(rows)
    print(name, len(rows))


def main():
    bert = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    mpnet = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]
    if len(sys.argv) == 1:
        shutil.rmtree(TARGET, ignore_errors=True)
        word_piece("bert-plain", "bert", bert, None)
        word_piece("bert-cased", "bert", bert, {"do_lower_case": False, "tokenizer_class": "BertTokenizer"}, lower=False)
        word_piece("bert-accents", "bert", bert, {"do_lower_case": True, "strip_accents": False, "tokenize_chinese_chars": False,
                   "tokenizer_class": "BertTokenizerFast"}, line_end="\r\n")
        word_piece("bert-left", "bert", bert, {"truncation_side": "left", "tokenizer_class": "BertTokenizer"})
        word_piece("distilbert", "distilbert", bert, {"do_lower_case": True, "tokenizer_class": "DistilBertTokenizer"})
        word_piece("mpnet", "mpnet", mpnet, {"do_lower_case": True, "tokenizer_class": "MPNetTokenizer"})
        byte_level("roberta", None)
        byte_level("roberta-prefix", {"add_prefix_space": True, "trim_offsets": False, "tokenizer_class": "RobertaTokenizer"})
        unigram("unigram")
        for name in sorted(os.listdir(TARGET)):
            expected(name)
        return
    os.makedirs(os.path.join(TARGET, "real"), exist_ok=True)
    for argument in sys.argv[2:]:
        name, folder = argument.split("=", 1)
        real(sys.argv[1], name, folder)


main()
