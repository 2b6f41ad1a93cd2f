"""What the local server answers by default: JSON that fits the asked schema, made of the words of the prompt.

The same request gets the same answer. What does not belong here: HTTP, faults and money (`anthropic_server`).
"""

import hashlib
import json
import random
import re

_SENTENCE = re.compile(r"[^\n<>.!?]{20,300}[.!?]")
_NUMBERED = re.compile(r"^ *(\d+)\. .+$", re.MULTILINE)
_MIN_ITEMS = re.compile(r"minItems: (\d+)")
_COUNT = re.compile(r"\b(\d{1,2}) (?:\w+ )?(?:items|questions|answers|examples|rows)\b")


def last_text(request):
    """Return the text of the last message."""
    content = request["messages"][-1]["content"]
    return content if isinstance(content, str) else "\n".join(block.get("text", "") for block in content)


def fill_schema(request):
    """Return JSON that fits `output_config.format.schema`; a sentence of the prompt where there is none.

    An array has as many items as the prompt has numbered lines, else as it counts (`3 questions`), else one, and at
    least as many as its schema asks for. A string is a sentence of the prompt, the same within one object; `answer` is
    three words of it and `question` asks for them. A string whose name stands in the item's numbered line with a value
    (`1. kind number`) takes that value. An integer is the item's number.
    """
    prompt = last_text(request)
    rng = random.Random(hashlib.sha256(prompt.encode()).digest())
    sentences = [" ".join(found.split()) for found in _SENTENCE.findall(prompt)] or [" ".join(prompt.split())[:200]]
    lines = [found.group(0) for found in _NUMBERED.finditer(prompt)]
    schema = (request.get("output_config") or {}).get("format", {}).get("schema")
    if schema is None:
        return rng.choice(sentences)
    return json.dumps(_value(schema, schema.get("$defs", {}), "", 0, rng, sentences, lines, prompt, None))


def _value(schema, defs, name, index, rng, sentences, lines, prompt, sentence):
    rest = (rng, sentences, lines, prompt)
    if "$ref" in schema:
        return _value(defs[schema["$ref"].rsplit("/", 1)[-1]], defs, name, index, *rest, sentence)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return rng.choice(schema["enum"])
    if "anyOf" in schema:
        return _value(schema["anyOf"][0], defs, name, index, *rest, sentence)
    kind = schema["type"]
    if kind == "object":
        own = rng.choice(sentences)
        fields = schema.get("properties", {}).items()
        return {key: _value(part, defs, key, index, *rest, own) for key, part in fields}
    if kind == "array":
        asked = _MIN_ITEMS.search(schema.get("description", ""))
        counted = _COUNT.search(prompt)
        least = max(schema.get("minItems", 0), int(asked[1]) if asked else 0)
        n = max(least, len(lines) or (int(counted[1]) if counted else 1))
        return [_value(schema.get("items", {"type": "string"}), defs, name, i, *rest, None) for i in range(n)]
    if kind == "string":
        return _string(name, index, rng, lines, sentence or rng.choice(sentences))
    return {"integer": index + 1, "number": 0.9, "boolean": True, "null": None}[kind]


def _string(name, index, rng, lines, sentence):
    if index < len(lines) and (given := re.search(rf"\b{re.escape(name)}[ :=]+(\w+)", lines[index])):
        return given[1]
    words = sentence.split()
    start = rng.randrange(max(1, len(words) - 3))
    if name == "answer":
        return " ".join(words[start : start + 3]).rstrip(".,;:!?")
    if name == "question":
        return f"What is said about {' '.join(words[start : start + 4]).rstrip('.,;:!?')}?"
    return sentence
