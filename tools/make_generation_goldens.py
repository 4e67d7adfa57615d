"""Writes fixtures/generation.json: what transformers makes of logits and of chats before the next token is drawn.

    python tools/make_generation_goldens.py [--output fixtures/generation.json]

`sampling` holds rows of logits after the processors and warpers of `generate` in its own order; `chats` holds texts from
`apply_chat_template`. The templates were written for this project, in the forms that published ones have; a tokenizer
of three words is enough to render them.
"""

import argparse
import json
from datetime import datetime, timezone
from pathlib import Path
from unittest import mock

import numpy
import torch
from counter_normal import counter_normal
from tokenizers import Tokenizer, models
from transformers import GenerationConfig, PreTrainedTokenizerFast
from transformers.generation.utils import GenerationMixin
from transformers.utils import chat_template_utils

SHORT = [
    [0.5, 1.5, -2.0, 1.5, 0.0, 3.25, -0.75, 1.5, 2.875, -4.0, 0.125, 3.25],
    [2.0] * 12,
    [float("-inf"), 1.0, 0.25, float("-inf"), -3.0, 2.0, 2.0, 1.75, float("-inf"), 0.0, -1.0, 0.75],
]
PROMPT = [5, 1, 5, 2, 9, 5]
SETTINGS = [
    {"do_sample": False},
    {"do_sample": False, "repetition_penalty": 1.3},
    {"do_sample": True, "top_k": 0},
    {"do_sample": True, "top_k": 4},
    {"do_sample": True, "top_k": 3, "temperature": 0.7},
    {"do_sample": True, "top_k": 0, "top_p": 0.6},
    {"do_sample": True, "top_k": 0, "top_p": 0.05},
    {"do_sample": True, "top_k": 0, "top_p": 0.97, "temperature": 1.7},
    {"do_sample": True, "top_k": 0, "min_p": 0.2},
    {"do_sample": True, "top_k": 0, "min_p": 0.31, "top_p": 0.83, "temperature": 0.9},
    {"do_sample": True, "repetition_penalty": 1.7, "top_k": 5, "top_p": 0.77, "temperature": 1.3},
    {"do_sample": True, "repetition_penalty": 0.8, "top_k": 50, "top_p": 0.9, "min_p": 0.05, "temperature": 0.6},
]
LONG_COUNT, LONG_SCALE = 4000, 2.5


def processors(settings):
    """The list that `generate` itself builds."""
    config = GenerationConfig(**settings)
    model = mock.Mock()
    model.config.is_encoder_decoder = False
    build = GenerationMixin._get_logits_processor
    model._merge_criteria_processor_list.side_effect = lambda default, custom: default
    return build(model, generation_config=config, input_ids_seq_length=len(PROMPT), model_kwargs={})


def shortest(value):
    return float(str(numpy.float32(value)))


def process(row, settings):
    scores = processors(settings)(torch.tensor([PROMPT]), torch.tensor([row], dtype=torch.float32))[0]
    if not settings["do_sample"]:
        best = int(scores.argmax())
        return {"ids": [best], "scores": [shortest(scores[best])]}
    kept = torch.nonzero(scores > float("-inf")).flatten().tolist()
    return {"ids": kept, "scores": [shortest(scores[index]) for index in kept]}


def sampling_cases():
    for settings in SETTINGS:
        for index, row in enumerate(SHORT):
            yield {"row": index, "settings": settings, **process(row, settings)}
    long = counter_normal(40, LONG_COUNT, LONG_SCALE).tolist()
    for settings in SETTINGS[3:]:
        found = process(long, settings)
        # Where everything but a few is kept, the number and both ends say as much.
        ids = found["ids"]
        summary = {"count": len(ids), "first": ids[:40], "last": ids[-40:], "id_sum": sum(ids)}
        summary["score_sum"] = float(numpy.asarray(found["scores"], dtype=numpy.float32).sum(dtype=numpy.float64))
        yield {"row": "long", "settings": settings, **summary}


TEMPLATES = {
    # SmolLM2 and its relatives: ChatML with a system turn of its own.
    "chatml": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
        "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    # Llama 3: headers, the date, a system turn taken out of the list, and block tags on lines of their own.
    "llama3": """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}

{#- The system turn, if there is one. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: tools\\n" }}
{%- endif %}
{{- "Today: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    # Mistral and Llama 2: turns must alternate, and the template says so itself.
    "mistral": (
        "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] %}"
        "{%- set loop_messages = messages[1:] %}{%- else %}{%- set loop_messages = messages %}{%- endif %}"
        "{{- bos_token }}{%- for message in loop_messages %}"
        "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{- raise_exception('Roles must alternate user/assistant/user/assistant') }}{%- endif %}"
        "{%- if message['role'] == 'user' %}{%- if loop.last and system is defined %}"
        "{{- '[INST] ' + system + '\\n\\n' + message['content'].strip() + '[/INST]' }}{%- else %}"
        "{{- '[INST] ' ~ message['content'].strip() ~ '[/INST]' }}{%- endif %}"
        "{%- elif message['role'] == 'assistant' %}{{- ' ' + message['content'] | trim + eos_token }}"
        "{%- else %}{{- raise_exception('Only user and assistant roles are supported, not ' + message['role']) }}"
        "{%- endif %}{%- endfor %}"
    ),
    # Qwen 2.5 and 3: namespaces, loops backwards, string methods, thoughts cut out of earlier answers.
    "qwen": """{%- set ns = namespace(last_query=messages|length - 1, open=true, count=0) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.open and message.role == "user" and not (message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.open = false %}
        {%- set ns.last_query = index %}
    {%- endif %}
{%- endfor %}
{%- macro turn(role, text) %}
{{- '<|im_start|>' + role + '\\n' + text + '<|im_end|>\\n' }}
{%- endmacro %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role in ["user", "system"] %}
        {{- turn(message.role, content) }}
    {%- elif message.role == "assistant" %}
        {%- if '</think>' in content %}
            {%- set thoughts = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
            {%- if loop.index0 > ns.last_query %}
                {{- '<think>' ~ thoughts ~ '</think>' }}
            {%- endif %}
        {%- endif %}
        {%- set ns.count = ns.count + 1 %}
        {{- turn('assistant', content) }}
    {%- else %}
        {%- continue %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
{{- ns.count }}
""",
    # What the others leave out: plain block tags on lines of their own, JSON, filters, tests, slices, values written out.
    "rest": """{# a comment #}
  {% for message in messages %}
    {% if loop.index is odd %}
{{ loop.index }}/{{ loop.length }} {{ message['role'].upper()[:3] }}: {{ message.content | replace('a', 'A') | upper | lower }}
    {% else %}
{{ message | tojson }}
    {% endif %}
    {% generation %}
{{ message.content.title() if message.content else 'empty' }}
    {% endgeneration %}
  {% endfor %}
{{ {"b": [1, 2.5, none, true], "a": {"x": "é\\"<&>'\\n"}, "e": [], "f": {}} | tojson }}
{{ {"b": [1, {"c": "d"}], "e": [], "f": {}} | tojson(indent=4) }}
{{ [1, "é🦀"] | tojson(ensure_ascii=True) }}{{ {"a": [1, 2]} | tojson(separators=(",", ":")) }}
{{ messages | map(attribute='role') | join(',') }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{{ true }} {{ none }} {{ 1 == 1.0 }} {{ 7 // 2 }} {{ 7 % 3 }} {{ 7 / 2 }} {{ 'a' * 3 }} {{ [1, 2] + [3] }} {{ undefined_name }}
{{ messages[-1].role }} {{ messages[0].get('name', 'nobody') }} {{ messages[0].nothing is defined }} {{ 'x' in 'axb' }}
{% set text %}
  kept {{ bos_token }}
{% endset %}
{{ text | trim }}|{{ text.strip() }}|{{ '  a b '.split() | length }}|{{ 'a,b,c'.split(',', 1)[1] }}
{%- for key, value in {"z": 1, "y": 2}.items() %} {{ key }}={{ value }}{% if not loop.last %},{% endif %}{% endfor %}
{% for i in range(5) if i != 3 %}{% if i == 4 %}{% break %}{% endif %}{{ i }}{% else %}none{% endfor %}
{{ strftime_now('%A %d %B %Y') }}{{ '%s-%d' | format('a', 3) }} {{ 'Xa'.removeprefix('X') }} {{ '{}!'.format('hi') }}
{{ eos_token }}
""",
}
CHATS = {
    "one": [{"role": "user", "content": "  What is a gate?\n"}],
    "several": [
        {"role": "system", "content": " Answer briefly. "},
        {"role": "user", "content": "Hello, <b>world</b> & \"all\" of 世界 🦀"},
        {"role": "assistant", "content": "<think>\nwho?\n</think>\n\nHello."},
        {"role": "user", "content": ""},
    ],
    "ends with an answer": [
        {"role": "user", "content": "one {{ two }} {% three %}"},
        {"role": "assistant", "content": "<think>a</think>b</think>\nfour "},
    ],
    "not in turns": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
    "unknown role": [{"role": "user", "content": "a"}, {"role": "critic", "content": "b"}],
}
NOW = 1709210096  # 29 February 2024, 12:34:56 UTC


class Clock(datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.fromtimestamp(NOW, timezone.utc)


def chat_cases():
    library = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "a": 2}, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=library, bos_token="<s>", eos_token="</s>")
    for template in TEMPLATES:
        for chat, messages in CHATS.items():
            for prompt in (True, False):
                case = {"template": template, "chat": chat, "add_generation_prompt": prompt}
                try:
                    with mock.patch.object(chat_template_utils, "datetime", Clock):
                        case["text"] = tokenizer.apply_chat_template(
                            messages,
                            chat_template=TEMPLATES[template],
                            add_generation_prompt=prompt,
                            tokenize=False,
                        )
                except Exception as error:  # noqa: BLE001: the template's own refusal
                    case["refusal"] = str(error)
                yield case


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(__file__).resolve().parent.parent
    parser.add_argument("--output", type=Path, default=root / "fixtures" / "generation.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [[None if value == float("-inf") else value for value in row] for row in SHORT]
    parts = {
        "rows": rows,
        "long": {"stream": 40, "count": LONG_COUNT, "scale": LONG_SCALE},
        "prompt": PROMPT,
        "sampling": list(sampling_cases()),
        "now": NOW,
        "special_tokens": {"bos_token": "<s>", "eos_token": "</s>"},
        "templates": TEMPLATES,
        "chats": CHATS,
        "rendered": list(chat_cases()),
    }
    blocks = []
    for name, part in parts.items():
        dump = lambda value: json.dumps(value, ensure_ascii=False)  # noqa: E731
        if isinstance(part, list):
            text = "[\n" + ",\n".join("    " + dump(item) for item in part) + "\n  ]"
        else:
            text = dump(part)
        blocks.append(f'  "{name}": {text}')
    arguments.output.write_text('{\n  "format": 1,\n' + ",\n".join(blocks) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
