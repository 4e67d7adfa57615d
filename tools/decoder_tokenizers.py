"""Tiny tokenizers of the decoders: byte-level BPE as SmolLM2, Llama 3 and Qwen2 split text, and BPE on characters with a
few fallback bytes as Llama 2 and Mistral have it. Each is a tokenizer.json of invented merges.

A vocabulary of 96 has no room for 256 bytes: the byte-level ones drop bytes they do not know, as the library does.
"""

import string
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import AutoTokenizer

from tiny_tokenizers import write_json

VOCABULARY = 96
# The words that become tokens, their beginnings with them, as far as the vocabulary has room.
WORDS = "the was film good bad and plot not it dull great very awful loved hated".split()
LETTERS = list(string.ascii_lowercase) + list("TIVERY.,!?'-2")
SPACE, ACUTE_E = "\u0120", ["\u00c3", "\u00a9"]  # in the byte-level alphabet
META_SPACE = "\u2581"

# The patterns of the published tokenizers; they differ in how many digits hold together.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Special tokens come first, in this order. `bos` is put before every text where `adds_bos` is set.
TOKENS = {
    "llama": dict(
        special=["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"], bos="<|im_start|>", eos="<|im_end|>",
        pad="<|pad|>", adds_bos=False,
    ),
    "llama3": dict(
        special=["<|begin_of_text|>", "<|end_of_text|>"], bos="<|begin_of_text|>", eos="<|end_of_text|>", pad=None,
        adds_bos=True,
    ),
    "mistral": dict(special=["<unk>", "<s>", "</s>"], bos="<s>", eos="</s>", pad="</s>", adds_bos=True),
    "qwen2": dict(
        special=["<|endoftext|>", "<|im_start|>", "<|im_end|>"], bos=None, eos="<|im_end|>", pad="<|endoftext|>",
        adds_bos=False,
    ),
}  # fmt: skip
SHARED = {"linear": "llama", "dynamic": "llama"}


def write_decoder_tokenizer(folder, name, max_length):
    """Writes tokenizer.json and tokenizer_config.json; returns the tokenizer transformers reads from them."""
    folder, name = Path(folder), SHARED.get(name, name)
    tokens = TOKENS[name]
    tokenizer = _characters(tokens) if name == "mistral" else _byte_level(name, tokens)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in tokens["special"]])
    assert tokenizer.get_vocab_size() == VOCABULARY
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_length}
    settings |= {f"{kind}_token": tokens[kind] for kind in ("bos", "eos", "pad") if tokens[kind]}
    if name == "mistral":
        settings["unk_token"] = "<unk>"
    write_json(folder / "tokenizer_config.json", settings)
    return AutoTokenizer.from_pretrained(folder)


def _vocabulary(first, space):
    """Token ids, and the merges that build WORDS from their left end, until the vocabulary is full."""
    tokens, merges = list(first), []
    for word in WORDS:
        left = space
        for letter in word:
            if left + letter not in tokens:
                if len(tokens) == VOCABULARY:
                    break
                tokens.append(left + letter)
                merges.append((left, letter))
            left += letter
    assert len(tokens) == VOCABULARY
    return {token: index for index, token in enumerate(tokens)}, merges


def _byte_level(name, tokens):
    vocabulary, merges = _vocabulary(tokens["special"] + [SPACE] + LETTERS + ACUTE_E, SPACE)
    tokenizer = Tokenizer(BPE(vocabulary, merges, ignore_merges=name == "llama3"))
    if name == "llama":
        digits = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    else:
        pattern = Regex(SPLIT.replace("DIGITS", "{1,3}" if name == "llama3" else ""))
        split = pre_tokenizers.Split(pattern, behavior="isolated")
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    if name == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    level = processors.ByteLevel(trim_offsets=True)
    tokenizer.post_processor = processors.Sequence([level, _bos_template(tokens)]) if tokens["adds_bos"] else level
    return tokenizer


def _characters(tokens):
    fallback = [f"<0x{byte:02X}>" for byte in (0x09, 0xC3, 0xA9, 0xF0, 0x9F, 0x8E, 0xAC)]  # tab, e acute, a clapper board
    vocabulary, merges = _vocabulary(tokens["special"] + fallback + [META_SPACE] + LETTERS, META_SPACE)
    tokenizer = Tokenizer(BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(META_SPACE), normalizers.Replace(" ", META_SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(META_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = _bos_template(tokens)
    return tokenizer


def _bos_template(tokens):
    bos = tokens["bos"]
    return processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, tokens["special"].index(bos))]
    )
