"""A model in the forms that other engines read: CTranslate2, and a folder for Ollama.

What does not belong here: which form is served (`export`), and whether a form says what the model says (`parity`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from ev_platform.errors import UserError
from ev_platform.prompting import Messages
from ev_platform.training.base import architecture_of, hide_loading_bars, is_encoder, load_tokenizer
from ev_platform.training.gguf_file import write_gguf

# What the engine needs beside the weights.
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")
# Memory for a longer window than this is not taken unasked.
MAX_CONTEXT_TOKENS = 4096
# Texts that a chat template repeats unchanged, unless it does something to them.
_MARKS = ("<<zero>>", "<<one>>", "<<two>>", "<<three>>", "<<four>>", "<<five>>")
_ROLES = ("system", "user", "assistant", "user", "assistant", "user")


def write_ctranslate2(model: Path, out: Path, compute: Literal["int8", "float16"] = "int8") -> None:
    """Write a CTranslate2 export with the tokenizer and the window that the engine reads.

    Args:
        model: Directory of a causal language model.
        out: Empty folder.
        compute: How weights are stored: `int8` for CPUs, `float16` for GPUs. A CPU that cannot compute in float16
            widens such weights to float32 as it loads them.

    Raises:
        UserError: If CTranslate2 has no converter for the architecture.
    """
    from ctranslate2.converters import TransformersConverter

    hide_loading_bars()
    try:
        # The folder is there already: the converter may replace it.
        TransformersConverter(str(model)).convert(str(out), quantization=compute, force=True)
    except ValueError as error:
        if "No conversion is registered" not in str(error):
            raise
        raise UserError(f"CTranslate2 cannot convert {architecture_of(model)}: serve the model itself.") from error
    for name in _TOKENIZER_FILES:
        if (model / name).exists():
            shutil.copy2(model / name, out / name)
    (out / "window.txt").write_text(str(_window(model)))


def _window(model: Path) -> int:
    return json.loads((model / "config.json").read_text())["max_position_embeddings"]


def write_ollama(model: Path, out: Path, *, instructions: str, example: Messages, max_new_tokens: int) -> None:
    """Write a folder from which `ollama create NAME -f Modelfile` makes a model: a GGUF file and a Modelfile.

    Ollama up to 0.2x converts safetensors itself, newer ones import them for few architectures and only where MLX runs;
    a GGUF file is read by all. The syntax is that of Ollama's Modelfile reference.

    Args:
        model: Directory of a causal language model.
        out: Empty folder.
        instructions: The task's system message.
        example: A chat that asks as the model was trained to be asked; its user message is shown in a comment.
        max_new_tokens: Longest answer.

    Raises:
        UserError: If the model writes no text, or it, its template or the instructions have no form in Ollama.
    """
    if is_encoder(model):
        raise UserError(
            f"{architecture_of(model)} writes no text, so Ollama cannot run it: serve it with this platform."
        )
    tokenizer = load_tokenizer(model)
    template = go_template(tokenizer)
    question = next(message["content"] for message in example if message["role"] == "user")
    window = min(_window(model), MAX_CONTEXT_TOKENS)
    lines = [
        "# Made by ev-platform. A prompt reads as it did in training:",
        *(f"#   {line}".rstrip() for line in question.splitlines()),
        "FROM ./model.gguf",
        f"TEMPLATE {_quoted(template, 'The chat template')}",
        f"SYSTEM {_quoted(instructions, 'The system message')}",
        # Greedy, as the model was evaluated: a penalty would keep it from repeating what a passage says.
        "PARAMETER temperature 0",
        "PARAMETER repeat_penalty 1",
        f"PARAMETER num_ctx {window}",
        f"PARAMETER num_predict {max_new_tokens}",
        f'PARAMETER stop "{tokenizer.eos_token}"',
    ]
    (out / "Modelfile").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_gguf(model, out / "model.gguf")


def go_template(tokenizer: Any) -> str:
    """Return a tokenizer's chat template in the syntax of Go's text/template, with Ollama's variables.

    A chat is rendered with marks as its messages, and cut at them: what lies between is the template. The result is
    compared with the chat template on chats of one, two and three questions. Where only the first agrees (Mistral puts
    the system message into the last question), the result is a template for single questions.

    Raises:
        UserError: If the chat template refuses a system message, or changes messages in a way that cannot be cut.
    """
    cuts = {n: _cut(tokenizer, n) for n in (2, 4, 6)}
    first, whole = cuts[2], cuts[6]
    if first is None:
        raise UserError("The chat template does not repeat its messages as they are, so Ollama has no form of it.")
    start, after_system, after_question = first
    # In a longer chat every question and every answer is followed by what followed the one before. Some templates
    # (Llama 2) write a space before an answer, but leave it to the model where it begins one.
    between, after_answer = (whole[2], whole[3]) if whole else ("", "")
    repeated = [start, after_system, between, after_answer, between, after_answer, after_question]
    if whole != repeated or cuts[4] != [*repeated[:4], after_question] or not between.startswith(after_question):
        return "".join(
            (
                f"{_literal(start)}{{{{ .System }}}}{_literal(after_system)}{{{{ .Prompt }}}}",
                f"{_literal(after_question)}{{{{ .Response }}}}{_literal(tokenizer.eos_token)}",
            )
        )
    before_answer = between.removeprefix(after_question)
    return "".join(
        (
            f"{_literal(start)}{{{{ range .Messages }}}}",
            f'{{{{ if eq .Role "system" }}}}{{{{ .Content }}}}{_literal(after_system)}',
            f'{{{{ else if eq .Role "user" }}}}{{{{ .Content }}}}{_literal(after_question)}',
            f"{{{{ else }}}}{_literal(before_answer)}{{{{ .Content }}}}{_literal(after_answer)}",
            "{{ end }}{{ end }}",
        )
    )


def _cut(tokenizer: Any, n: int) -> list[str] | None:
    """Return what lies before, between and after the first n messages of a chat; None where that is not clear."""
    from jinja2 import TemplateError

    messages = [{"role": role, "content": mark} for role, mark in zip(_ROLES[:n], _MARKS, strict=False)]
    try:
        rest: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        if n > 2:
            return None
        raise UserError(f"The chat template refuses a system message, which every prompt has: {error}.") from error
    pieces = []
    for mark in _MARKS[:n]:
        if rest.count(mark) != 1:
            return None
        piece, rest = rest.split(mark)
        pieces.append(piece)
    return [*pieces, rest]


def _literal(text: str) -> str:
    return text.replace("{{", '{{ "{{" }}')


def _quoted(text: str, what: str) -> str:
    # Ollama's reader ends such a value at the next three quotes, and drops what it cannot print.
    lost: Sequence[str] = [letter for letter in text if not letter.isprintable() and letter not in "\n\t"]
    if '"""' in text or lost:
        raise UserError(f"{what} holds {repr(lost[0]) if lost else 'three quotes in a row'}, which a Modelfile cannot.")
    return f'"""{text}"""'
