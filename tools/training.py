"""Training of gates (METHOD.md, sections 1 to 4) or of biases alone in PyTorch: what the reference scripts share."""

import torch
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import gates


class Trainee:
    """A checkpoint with a fresh head whose gates, biases of gated layers and head train; nothing else has a gradient.

    `method` is `gates` or `bitfit`; the latter is the same without gates. `plain` draws noise and computes the penalty layer by
    layer, with the optimizer as it is; `autocast` may be set to run forward passes in bf16.
    """

    autocast = False

    def __init__(self, folder, classes, method, attention="eager", gate_init_std=0.1, plain=False):
        self.model = AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=classes, attn_implementation=attention, dtype=torch.float32
        )
        self.regression = classes == 1
        self.plain = plain
        self.model.requires_grad_(False)
        paths = gates.gated_paths(self.model)
        self.layers = gates.add_gates(self.model, init_std=gate_init_std) if method == "gates" else {}
        self.vectors = [layer.finegates_rows for layer in self.layers.values()]
        self.vectors += [layer.finegates_columns for layer in self.layers.values()]
        counts = torch.tensor([vector.numel() for vector in self.vectors], dtype=torch.long)
        self.vector_of_gate = torch.repeat_interleave(torch.arange(len(self.vectors)), counts)
        self.share_of_gate = torch.repeat_interleave(1.0 / counts, counts)
        base = self.model.base_model_prefix + "."
        self.groups = {"gate": [], "bias": [], "head": []}
        for name, parameter in self.model.named_parameters():
            path, _, kind = name.rpartition(".")
            if kind.startswith("finegates_"):
                group = "gate"
            elif path in paths and kind == "bias":
                group = "bias"
            elif not name.startswith(base) or ".pooler." in name:
                group = "head"
            else:
                continue
            self.groups[group].append(parameter.requires_grad_(True))

    def optimizer(self, rates, weight_decay=0.01):
        """AdamW, no decay on gates; `rates` maps a group to its learning rate."""
        return torch.optim.AdamW(
            [
                dict(params=parameters, lr=rates[group], weight_decay=0.0 if group == "gate" else weight_decay)
                for group, parameters in self.groups.items()
                if parameters
            ],
            fused=None if self.plain else True,
        )

    def step(self, optimizer, batch, labels, target_sparsity, penalty_weight, kurtosis=False, noise_std=0.1):
        """One training step; gives the losses of task and penalty as tensors."""
        penalty = None
        if self.layers:
            for layers in [{path: layer} for path, layer in self.layers.items()] if self.plain else [self.layers]:
                gates.draw_noise(layers, noise_std)
            gates.set_token_mask(self.layers, batch["attention_mask"] if kurtosis else None)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            logits = self.model(**batch).logits
        loss = task = self.loss(logits.float(), labels)
        if self.layers:
            penalty = self.penalty(target_sparsity, penalty_weight, kurtosis)
            loss = task + penalty
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return task.detach(), None if penalty is None else penalty.detach()

    def penalty(self, target_sparsity, weight, kurtosis):
        """gates.penalty; where it may, for all vectors at once, which spares hundreds of small operations a step."""
        if kurtosis or self.plain:
            return gates.penalty(self.layers, target_sparsity, weight, kurtosis)
        shares = gates.open_probability(torch.cat(self.vectors)) * self.share_of_gate
        means = torch.zeros(len(self.vectors)).index_add(0, self.vector_of_gate, shares)
        return weight * (means - (1.0 - target_sparsity)).abs().mean()

    def loss(self, logits, labels):
        if self.regression:
            return functional.mse_loss(logits.squeeze(-1), labels)
        return functional.cross_entropy(logits, labels)

    def labels(self, labels):
        return torch.tensor(labels, dtype=torch.float32 if self.regression else torch.long)

    @torch.inference_mode()
    def logits(self, batches):
        """Logits at evaluation, in the order of the batches."""
        self.model.eval()
        gates.clear_noise(self.layers)
        gates.set_token_mask(self.layers, None)
        found = torch.cat([self.model(**batch).logits for batch in batches])
        self.model.train()
        return found

    @torch.no_grad()
    def removed(self):
        """The share of the gated layers' parameters in a row or a column that is closed at evaluation."""
        total = kept = 0
        gates.clear_noise(self.layers)
        for layer in self.layers.values():
            rows, columns = layer.gates()
            total += layer.weight.numel()
            kept += int((rows > 0).sum()) * int((columns > 0).sum())
        return (total - kept) / total if total else 0.0


def tokenize(folder, texts, pairs, max_length):
    """Lists of token ids (and segments) a text, without padding."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoded = tokenizer(texts, pairs, truncation="longest_first", max_length=max_length, return_attention_mask=False)
    return tokenizer, [dict(zip(encoded, values)) for values in zip(*encoded.values())]


def pad(tokenizer, examples):
    """A batch padded to its longest text."""
    return dict(tokenizer.pad(examples, padding="longest", return_tensors="pt"))
