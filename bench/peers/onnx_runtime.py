"""ONNX Runtime on a graph that PyTorch exports once, kept in the job's folder; f32."""

import onnxruntime
import torch
import transformers
from transformers import AutoModelForSequenceClassification

from . import encoder_batches
from .logits import Logits

VERSIONS = {"onnxruntime": onnxruntime.__version__, "torch": torch.__version__, "transformers": transformers.__version__}


def exported(job):
    """The file of the graph."""
    file = job["kept"] / "encoder.onnx"
    if not file.exists():
        model = AutoModelForSequenceClassification.from_pretrained(job["model"], dtype=torch.float32).eval()
        example = torch.ones(2, 8, dtype=torch.long)
        sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
        part = file.with_suffix(".part.onnx")
        torch.onnx.export(
            Logits(model),
            (example, example),
            part,
            input_names=["input_ids", "attention_mask"],
            output_names=["logits"],
            dynamic_shapes={"input_ids": sizes, "attention_mask": sizes},
            dynamo=True,
            external_data=False,
        )
        part.rename(file)
    return file


def encoder(job):
    """Logits of batches."""
    config = transformers.AutoConfig.from_pretrained(job["model"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job["threads"]
    session = onnxruntime.InferenceSession(exported(job), options, providers=["CPUExecutionProvider"])
    batches = encoder_batches(job, config)

    def run():
        for batch in batches:
            session.run(None, batch)

    return run, VERSIONS
