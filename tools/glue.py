"""Reads GLUE's own TSV files: UTF-8, a header row, split on tabs only, no quoting."""

from pathlib import Path

# task: folder, first text, second text, label, classes (1 is a regression)
TASKS = {
    "cola": ("CoLA", "sentence", None, "label", 2),
    "sst2": ("SST-2", "sentence", None, "label", 2),
    "mrpc": ("MRPC", "#1 String", "#2 String", "Quality", 2),
    "stsb": ("STS-B", "sentence1", "sentence2", "score", 1),
}


def classes_of(task):
    """How many classes the task has; 1 is a regression."""
    return TASKS[task][4]


def read_split(root, task, split):
    """`root` is the folder that holds all tasks; gives texts, second texts (or None) and labels."""
    folder, first, second, label, classes = TASKS[task]
    path = Path(root) / folder / f"{split}.tsv"
    lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    header = lines[0].lstrip("\ufeff").split("\t")
    place = {name: header.index(name) for name in (first, second, label) if name}
    texts, pairs, labels = [], [], []
    for number, line in enumerate(lines[1:], start=2):
        cells = line.rstrip("\r").split("\t")
        if len(cells) <= max(place.values()):
            raise SystemExit(f"{path}:{number}: expected {len(header)} columns, found {len(cells)}")
        texts.append(cells[place[first]])
        if second:
            pairs.append(cells[place[second]])
        labels.append(float(cells[place[label]]) if classes == 1 else int(cells[place[label]]))
    return texts, pairs or None, labels
