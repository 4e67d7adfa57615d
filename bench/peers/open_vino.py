"""OpenVINO on models that it converts from PyTorch once, kept in the job's folder; f32, or bf16 by its precision hint.

A decoder keeps keys and values as the state of the model, with the reordering of a beam search in front of them, which is
the form that OpenVINO's own exporter gives it and its CPU plugin fuses.
"""

import numpy
import openvino
import torch
import transformers
from openvino import opset13
from openvino._offline_transformations import apply_make_stateful_transformation
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, DynamicCache
from transformers.cache_utils import DynamicLayer

from . import encoder_batches, prompts_and_steps, timed_parts
from .logits import Logits

VERSIONS = {"openvino": openvino.__version__, "torch": torch.__version__, "transformers": transformers.__version__}


class Step(torch.nn.Module):
    """A decoder with its keys and values as plain tensors, two a layer, and the mask made here."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, *past):
        cache = DynamicCache()
        for keys, values in zip(past[::2], past[1::2]):
            # Set and not appended to an empty one, which would stay in the graph.
            layer = DynamicLayer()
            layer.keys, layer.values, layer.is_initialized = keys, values, True
            layer.dtype, layer.device = keys.dtype, keys.device
            cache.layers.append(layer)
        before, length = past[0].shape[2], input_ids.shape[1]
        places = torch.arange(before, before + length)
        seen = torch.arange(before + length)[None, :] <= places[:, None]
        mask = torch.zeros(seen.shape, dtype=torch.float32).masked_fill(~seen, torch.finfo(torch.float32).min)
        output = self.model(
            input_ids=input_ids,
            attention_mask=mask[None, None],
            position_ids=places[None],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        present = [part for layer in output.past_key_values.layers for part in (layer.keys, layer.values)]
        return (output.logits, *present)


def kept(job, name, convert):
    """The file of a converted model."""
    file = job["kept"] / f"{name}.xml"
    if not file.exists():
        transformers.logging.set_verbosity_error()
        openvino.save_model(convert(), job["kept"] / f"{name}.part.xml", compress_to_fp16=False)
        (job["kept"] / f"{name}.part.bin").rename(job["kept"] / f"{name}.bin")
        (job["kept"] / f"{name}.part.xml").rename(file)
    return file


def compiled(job, model):
    settings = {
        "INFERENCE_NUM_THREADS": job["threads"],
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": job["precision"],
    }
    return openvino.Core().compile_model(model, "CPU", settings)


def encoder(job):
    """Logits of batches; a fixed shape is made known, which is the best case for a graph compiler."""

    def convert():
        model = AutoModelForSequenceClassification.from_pretrained(job["model"], dtype=torch.float32).eval()
        example = {name: torch.ones(2, 8, dtype=torch.long) for name in ("input_ids", "attention_mask")}
        dynamic = openvino.PartialShape([-1, -1])
        inputs = [(name, dynamic, openvino.Type.i64) for name in example]
        with torch.no_grad():
            return openvino.convert_model(Logits(model), example_input=example, input=inputs)

    model = openvino.Core().read_model(kept(job, "encoder", convert))
    if "texts" not in job:
        shape = [job["batch"], job["length"]]
        model.reshape({"input_ids": shape, "attention_mask": shape})
    request = compiled(job, model).create_infer_request()
    batches = encoder_batches(job, transformers.AutoConfig.from_pretrained(job["model"]))

    def run():
        for batch in batches:
            request.infer(batch)

    return run, VERSIONS


def numbers(*values):
    return opset13.constant(numpy.array(values, dtype=numpy.int64))


def convert_decoder(job):
    """A decoder whose state is its keys and values."""
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32, attn_implementation="sdpa").eval()
    config = model.config
    heads, width = config.num_key_value_heads, getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    count = 2 * config.num_hidden_layers
    example = (torch.ones(2, 3, dtype=torch.long), *(torch.zeros(2, heads, 4, width) for _ in range(count)))
    with torch.no_grad():
        converted = openvino.convert_model(Step(model), example_input=example)
    converted.inputs[0].get_tensor().set_names({"input_ids"})
    converted.inputs[0].get_node().set_partial_shape(openvino.PartialShape([-1, -1]))
    parts = [f"{place // 2}.{('key', 'value')[place % 2]}" for place in range(count)]
    names = [f"{kind}.{part}" for kind in ("past", "present") for part in parts]
    for port, name in zip([*converted.inputs[1:], *converted.outputs[1:]], names):
        port.get_tensor().set_names({name})
    beams = opset13.parameter(openvino.PartialShape([-1]), openvino.Type.i32, "beam_idx")
    beams.output(0).get_tensor().set_names({"beam_idx"})
    converted.add_parameters([beams])
    first = opset13.constant(numpy.int64(0))
    batch = opset13.gather(opset13.shape_of(converted.input("input_ids"), "i64"), numbers(0), first)
    for port in converted.inputs[1 : 1 + count]:
        port.get_node().set_partial_shape(openvino.PartialShape([-1, heads, -1, width]))
        consumers = port.get_target_inputs()
        gathered = opset13.gather(port, beams, first)
        for consumer in consumers:
            consumer.replace_source_output(gathered.output(0))
    converted.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(converted, dict(zip(names[:count], names[count:])))
    # What the state is before the first prompt: no token yet, as many sequences as the prompts are.
    shape = opset13.concat([batch, numbers(heads), numbers(0), numbers(width)], 0)
    for operation in converted.get_ops():
        if operation.get_type_name() == "ReadValue":
            zero = opset13.broadcast(opset13.constant(numpy.float32(0.0)), shape)
            operation.set_arguments([zero.output(0)])
    converted.validate_nodes_and_infer_types()
    return converted


def decoder(job):
    """Prompts, then tokens one a step with a cache."""
    model = openvino.Core().read_model(kept(job, "decoder", lambda: convert_decoder(job)))
    request = compiled(job, model).create_infer_request()
    prompts, steps = prompts_and_steps(job, transformers.AutoConfig.from_pretrained(job["model"]))
    beams = numpy.arange(job["batch"], dtype=numpy.int32)

    def read(tokens):
        request.infer({"input_ids": tokens, "beam_idx": beams})

    def run():
        request.reset_state()
        return timed_parts(lambda: read(prompts), read, steps)

    return run, VERSIONS
