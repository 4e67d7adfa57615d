"""Tiny tokenizers of the encoders, in the file layout each family is published in. Invented vocabularies, no training."""

import json
import string
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer, XLMRobertaTokenizer

WORDS = (
    "the a an and but is was it this that film plot cast actor music story good great fine bad dull awful very not "
    "never quite really i we they liked loved hated saw slow"
).split()
PIECES = ["##ing", "##ed", "##ly", "##er", "##est"]
PUNCTUATION = list(".,!?'-")

TEXT_MAX_LENGTH = 24
TEXTS = [
    ("The film was good.", None),
    ("the plot is VERY dull, and the cast was not good!", None),
    ("I loved it", "they hated this film"),
    ("", None),
    ("", "really?"),
    ("really?", ""),
    ("Caf\u00e9 na\u00efve", None),
    ("  two   spaces\tand a tab ", None),
    ("unseen zebra \u4e16\u754c \U0001f3ac 42", None),
    ("story " * 60, None),
    ("good " * 30, "bad " * 30),
    ("awful " * 30, "fine music"),
]


def word_piece_vocabulary(first):
    letters = list(string.ascii_lowercase)
    inner = ["##" + letter for letter in letters]
    return first + PUNCTUATION + letters + inner + PIECES + [word for word in WORDS if len(word) > 1]


def write_word_piece(folder, first, tokenizer_class, lower_case, max_length):
    """vocab.txt, without a tokenizer.json."""
    vocabulary = word_piece_vocabulary(first)
    (folder / "vocab.txt").write_text("".join(token + "\n" for token in vocabulary), encoding="utf-8")
    settings = {"tokenizer_class": tokenizer_class, "do_lower_case": lower_case, "model_max_length": max_length}
    write_json(folder / "tokenizer_config.json", settings)


def write_byte_pairs(folder):
    """vocab.json and merges.txt: all bytes, then each word of the list built up from its left end."""
    merges = []
    for word in WORDS[10:22]:
        for symbols in (["\u0120", *word], list(word)):  # with its leading space first, as in English text
            while len(symbols) > 1:
                pair = (symbols[0], symbols[1])
                if pair not in merges:
                    merges.append(pair)
                symbols = [symbols[0] + symbols[1]] + symbols[2:]
    tokens = ["<s>", "<pad>", "</s>", "<unk>"] + sorted(ByteLevel.alphabet())
    for left, right in merges:
        if left + right not in tokens:
            tokens.append(left + right)
    tokens.append("<mask>")
    write_json(folder / "vocab.json", {token: index for index, token in enumerate(tokens)}, indent=None)
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "RobertaTokenizer", "model_max_length": 38})


def write_unigram(folder):
    """tokenizer.json alone."""
    pieces = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    pieces += [("\u2581", -3.0)] + [("\u2581" + word, -4.0 - 0.01 * index) for index, word in enumerate(WORDS)]
    characters = list(string.ascii_lowercase) + PUNCTUATION
    pieces += [(character, -6.0 - 0.01 * index) for index, character in enumerate(characters)]
    pieces += [("ing", -5.0), ("ed", -5.1)]
    tokenizer = XLMRobertaTokenizer(vocab=pieces, model_max_length=38)
    tokenizer.save_pretrained(folder)


def write_json(path, value, indent=2):
    path.write_text(json.dumps(value, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")


def write_tokenizer(folder, family):
    """Writes the family's tokenizer files into `folder` and returns the tokenizer transformers reads from them."""
    folder = Path(folder)
    bert_first = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    if family == "bert":
        write_word_piece(folder, bert_first, "BertTokenizer", lower_case=True, max_length=40)
    elif family == "distilbert":  # cased, so that do_lower_case is seen to be honoured
        write_word_piece(folder, bert_first, "DistilBertTokenizer", lower_case=False, max_length=40)
    elif family == "mpnet":
        first = ["<s>", "<pad>", "</s>", "<unk>", "[UNK]", "<mask>"]
        write_word_piece(folder, first, "MPNetTokenizer", lower_case=True, max_length=148)
    elif family == "roberta":
        write_byte_pairs(folder)
    elif family == "xlm-roberta":
        write_unigram(folder)
    else:
        raise ValueError(family)
    return AutoTokenizer.from_pretrained(folder)


def encode(tokenizer, text, pair, max_length):
    """Token ids and segments as transformers gives them, cut to max_length longest first.

    Called with lists, as data loaders do: called with two strings, transformers drops a second text that is empty.
    """
    pairs = None if pair is None else [pair]
    encoding = tokenizer([text], pairs, truncation="longest_first", max_length=max_length, return_token_type_ids=True)
    return encoding["input_ids"][0], encoding["token_type_ids"][0]
