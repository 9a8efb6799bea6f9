"""Chat templates with the constructs of published ones, in our own words, with their tokenizers."""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import AddedToken, Tokenizer

from expertise.lm.data.tokenizer import tokenizer_from, train_tokenizer

WORDS = ["the cat asks why and because it is plus stone [INST] user assistant system model tool yes 1 2 3"]
BASE = train_tokenizer(WORDS * 30, 420)


@dataclass(frozen=True)
class Case:
    """A template with the tokens that its tokenizer has beside its vocabulary."""

    template: str
    special: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()
    """Added with `special: false`."""
    bos: str = ""
    eos: str = ""
    rstrip: bool = False

    def tokenizer(self) -> Tokenizer:
        """The tokenizer; it has runs of spaces as added tokens too, which no template writes on purpose."""
        made = Tokenizer.from_str(BASE.to_str())

        def added(names: tuple[str, ...], special: bool) -> list[AddedToken]:
            return [AddedToken(n, special=special, normalized=False, rstrip=self.rstrip) for n in names]

        made.add_special_tokens(added(self.special, True))
        made.add_tokens(added(self.plain, False))
        made.add_tokens([AddedToken(" " * n, special=False, normalized=False) for n in (3, 4)])
        return tokenizer_from(made.to_str())


LLAMA_2 = """{%- if messages[0]['role'] == 'system' -%}
{%- set head = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' -%}{%- set turns = messages[1:] -%}
{%- else -%}{%- set head = '' -%}{%- set turns = messages -%}{%- endif -%}
{%- for m in turns -%}
{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('user and assistant must take turns') }}
{%- endif -%}
{%- set said = head + m['content'] if loop.index0 == 0 else m['content'] -%}
{%- if m['role'] == 'user' -%}{{ bos_token + '[INST] ' + said.strip() + ' [/INST]' }}
{%- else -%}{{ ' ' ~ said.strip() ~ ' ' ~ eos_token }}{%- endif -%}
{%- endfor -%}"""

LLAMA_3 = """{{- bos_token }}{%- for m in messages %}
{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}
{%- endfor %}{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"""

GEMMA = """{{ bos_token }}{% for m in messages %}
{% if m['role'] == 'assistant' %}{% set who = 'model' %}{% else %}{% set who = m['role'] %}{% endif %}
{{ '<start_of_turn>' + who + '\n' + (m['content'] | trim) + '<end_of_turn>\n' }}{% endfor %}
{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""

TURNS = """{%- macro turn(who, said) -%}
<|turn>{{ who }}
{{ said }}<turn|>
{% endmacro -%}
{%- for m in messages -%}{{ turn('model' if m.role == 'assistant' else m.role, m.content) }}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|turn>model\n' }}{%- endif -%}"""

MISTRAL = """{{- bos_token }}{%- for m in messages %}
{%- if m.role == 'user' %}{%- if tools and loop.last %}
{{- '[AVAILABLE_TOOLS] ' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{%- endif %}
{{- '[INST] ' + m.content + '[/INST]' }}
{%- elif m.tool_calls %}{{- '[TOOL_CALLS] [' }}{%- for c in m.tool_calls %}
{{- '{"name": "%s", "arguments": %s, "id": "%s"}' % (c.function.name, c.function.arguments | tojson, c.id) }}
{%- if not loop.last %}{{- ', ' }}{%- endif %}{%- endfor %}{{- ']' + eos_token }}
{%- elif m.role == 'tool' %}
{{- '[TOOL_RESULTS] {"content": ' ~ m.content ~ ', "call_id": "' ~ m.tool_call_id ~ '"}[/TOOL_RESULTS]' }}
{%- else %}{{- ' ' + m.content | trim + eos_token }}{%- endif %}{%- endfor %}"""

THINKING = """{%- set ns = namespace(last=messages | length, seek=true) %}
{%- for m in messages[::-1] %}{%- set at = messages | length - 1 - loop.index0 %}
{%- if ns.seek and m.role == 'user' and not (m.content.startswith('<tool_response>')) %}
{%- set ns.seek = false %}{%- set ns.last = at %}{%- endif %}{%- endfor %}
{%- for m in messages %}{%- set said = m.content if m.content is string else '' %}
{%- if m.role == 'assistant' %}{%- set why = '' %}
{%- if m.reasoning_content is string %}{%- set why = m.reasoning_content %}
{%- elif '</think>' in said %}
{%- set why = said.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
{%- set said = said.split('</think>')[-1].lstrip('\n') %}{%- endif %}
{%- if loop.index0 > ns.last and (loop.last or why) %}
{{- '<|im_start|>assistant\n<think>\n' + why.strip('\n') + '\n</think>\n\n' + said }}
{%- else %}{{- '<|im_start|>assistant\n' + said }}{%- endif %}
{%- for c in m.tool_calls or [] %}
{{- '\n<tool_call>\n{"name": "' }}{{- c.function.name }}{{- '", "arguments": ' }}
{{- c.function.arguments if c.function.arguments is string else c.function.arguments | tojson }}
{{- '}\n</tool_call>' }}{%- endfor %}{{- '<|im_end|>\n' }}
{%- elif m.role == 'tool' %}
{{- '<|im_start|>user\n<tool_response>\n' + said + '\n</tool_response><|im_end|>\n' }}
{%- else %}{{- '<|im_start|>' + m.role + '\n' + said + '<|im_end|>\n' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""

ZEPHYR = """{% for m in messages %}
{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token }}
{% endfor %}
{% if add_generation_prompt %}
<|assistant|>
{% endif %}"""

PHI = """{% for m in messages %}{{ '<|' + m.role + '|>' + '\n' + m.content + '<|end|>' + '\n' }}{% endfor %}
{% if add_generation_prompt %}{{ '<|assistant|>' + '\n' }}{% endif %}"""

DEEPSEEK = """{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}
{{ '<｜User｜>' + m['content'] }}{% elif m['role'] == 'assistant' %}{% set said = m['content'] %}
{% if '</think>' in said %}{% set said = said.split('</think>')[-1] %}{% endif %}
{{ '<｜Assistant｜>' + said + eos_token }}{% else %}{{ m['content'] }}{% endif %}{% endfor %}
{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}"""

GENERATION = """{{ strftime_now('%d %B %Y') }}
{% for m in messages %}{% if not m.content %}{% continue %}{% endif %}
{% if m.role == 'assistant' %}
{{ '<|start|>assistant\n' }}{% generation %}{{ m.content }}<|stop|>{% endgeneration %}

{% else %}
<|start|>{{ m.role }}: {{ m.content }}<|stop|>
{% endif %}{% if loop.index0 > 50 %}{% break %}{% endif %}{% endfor %}
{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"""

IM = ("<|im_start|>", "<|im_end|>")
THOUGHT = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
TOOLS = ("[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]")

CASES = {
    "llama-2": Case(LLAMA_2, ("<s>", "</s>"), ("[INST]", "[/INST]"), "<s>", "</s>"),
    "llama-3": Case(
        LLAMA_3,
        ("<|begin|>", "<|end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        bos="<|begin|>",
        eos="<|end|>",
    ),
    "gemma": Case(GEMMA, ("<bos>", "<eos>"), ("<start_of_turn>", "<end_of_turn>"), "<bos>", "<eos>"),
    "turns": Case(TURNS, ("<|turn>", "<turn|>")),
    "mistral": Case(MISTRAL, ("<s>", "</s>", "[INST]", "[/INST]"), TOOLS, "<s>", "</s>"),
    "thinking": Case(THINKING, IM, THOUGHT),
    "zephyr": Case(ZEPHYR, ("</s>",), ("<|user|>", "<|assistant|>", "<|system|>"), eos="</s>"),
    "phi": Case(PHI, ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"), rstrip=True),
    "deepseek": Case(
        DEEPSEEK,
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
        ("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"),
        "<｜begin▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
    ),
    "generation": Case(GENERATION, ("<|stop|>",), ("<|start|>",)),
}
