"""PyTorch through transformers, as its users run it: inference mode, weights in f32 or bf16, or autocast."""

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, DynamicCache

from . import encoder_batches, prompts_and_steps, timed_parts

VERSIONS = {"torch": torch.__version__, "transformers": transformers.__version__}


def load(kind, job):
    torch.set_num_threads(job["threads"])
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    dtype = torch.bfloat16 if job["precision"] == "bf16" else torch.float32
    # Attention is what transformers chooses: `sdpa`, where a family has it.
    return kind.from_pretrained(job["model"], dtype=dtype).eval()


def autocast(job):
    return torch.autocast("cpu", torch.bfloat16, enabled=job["precision"] == "bf16 autocast")


def encoder(job):
    """Logits of batches."""
    model = load(AutoModelForSequenceClassification, job)
    batches = [
        {name: torch.from_numpy(values) for name, values in batch.items()} for batch in encoder_batches(job, model.config)
    ]

    @torch.inference_mode()
    def run():
        with autocast(job):
            for batch in batches:
                model(**batch)

    return run, VERSIONS


def decoder(job):
    """Prompts, then tokens one a step with a cache."""
    model = load(AutoModelForCausalLM, job)
    prompts, steps = prompts_and_steps(job, model.config)
    prompts, steps = torch.from_numpy(prompts), [torch.from_numpy(tokens) for tokens in steps]

    @torch.inference_mode()
    def run():
        cache = DynamicCache(config=model.config)

        def read(tokens):
            model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)

        with autocast(job):
            return timed_parts(lambda: read(prompts), read, steps)

    return run, VERSIONS
