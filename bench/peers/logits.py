"""What peers that convert a graph convert."""

import torch


class Logits(torch.nn.Module):
    """An encoder with tensors in and out alone."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits
