"""What Anthropic's Messages API accepts, how it words an error, and how long a prompt counts.

A token is a run of four bytes of UTF-8. What does not belong here: HTTP, faults and money (`anthropic_server`).
"""

import hashlib
import json
import math
import re

ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}
# The first five pass after `fault_times` requests of the same content; the last three are what the content gets always.
TRANSIENT = {"rate_limited": 429, "server_error": 500, "overloaded": 529, "stalled": 200, "dropped": 200}
FAULTS = (*TRANSIENT, "malformed", "refused", "truncated")
CUSTOM_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")
PARAMS = {
    "model",
    "messages",
    "max_tokens",
    "system",
    "output_config",
    "metadata",
    "stop_sequences",
    "service_tier",
    "cache_control",
    "stream",
    "temperature",
    "top_p",
    "top_k",
    "thinking",
    "tools",
    "tool_choice",
    "speed",
}


class ApiError(Exception):
    """An error as the API words it."""

    def __init__(self, status, message, headers=None):
        super().__init__(message)
        self.status, self.headers = status, headers or {}

    def body(self, request_id):
        error = {"type": ERRORS[self.status], "message": str(self)}
        return {"type": "error", "error": error, "request_id": request_id}


def content_hash(params):
    """Hash what determines a reply."""
    return hashlib.sha256(json.dumps(params, sort_keys=True).encode()).hexdigest()[:20]


def n_tokens(text):
    return math.ceil(len(text.encode()) / 4)


def segments(params):
    """Return (text, whether a cached prefix may end here) of the schema, the system part and the messages, in order."""
    schema = (params.get("output_config") or {}).get("format")
    parts = [(json.dumps(schema), False)] if schema else []
    contents = [("system", params.get("system", []))]
    contents += [(message["role"], message["content"]) for message in params["messages"]]
    for _, content in contents:
        blocks = [{"text": content}] if isinstance(content, str) else content
        parts += [(block["text"], bool(block.get("cache_control"))) for block in blocks]
    if params.get("cache_control"):
        parts[-1] = (parts[-1][0], True)
    return parts


def check(params, *, is_count=False):
    """Raise the API's 400 for what is wrong with the parameters of a message."""

    def wrong(where, what):
        raise ApiError(400, f"{where}: {what}")

    if not isinstance(params, dict):
        wrong("body", "Input should be a valid dictionary")
    for name in sorted(set(params) - PARAMS):
        wrong(name, "Extra inputs are not permitted")
    for name in ("model", "messages") if is_count else ("model", "max_tokens", "messages"):
        if name not in params:
            wrong(name, "Field required")
    if not isinstance(params["model"], str) or not params["model"]:
        wrong("model", "Input should be a valid string")
    if not is_count and (type(params["max_tokens"]) is not int or params["max_tokens"] < 1):
        wrong("max_tokens", "Input should be greater than or equal to 1")
    if params.get("stream"):
        wrong("stream", "this server does not stream")
    messages = params["messages"]
    if not isinstance(messages, list) or not messages:
        wrong("messages", "at least one message is required")
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in ("user", "assistant"):
            wrong(f"messages.{i}.role", "Input should be 'user' or 'assistant'")
        _check_content(wrong, f"messages.{i}.content", message.get("content"))
    if messages[0]["role"] != "user":
        wrong("messages", "first message must use the 'user' role")
    if "system" in params:
        _check_content(wrong, "system", params["system"], may_be_empty=True)
    if sum(is_end for _, is_end in segments(params)) > 4:
        wrong("cache_control", "A maximum of 4 blocks with cache_control may be provided")
    form = (params.get("output_config") or {}).get("format")
    if form is not None and (form.get("type") != "json_schema" or not isinstance(form.get("schema"), dict)):
        wrong("output_config.format", "Input should be a JSON schema")
    if form is not None:
        _check_schema(wrong, "output_config.format.schema", form["schema"])
    if not params["model"].startswith("claude-"):
        raise ApiError(404, f"model: {params['model']}")


def _check_content(wrong, where, content, *, may_be_empty=False):
    if isinstance(content, str):
        if not content.strip() and not may_be_empty:
            wrong(where, "text content blocks must be non-empty")
        return
    if not isinstance(content, list) or not (content or may_be_empty):
        wrong(where, "Input should be a valid list")
    for i, block in enumerate(content):
        if not isinstance(block, dict) or block.get("type") != "text" or not isinstance(block.get("text"), str):
            wrong(f"{where}.{i}", "Input should be a text block")
        if not block["text"].strip():
            wrong(f"{where}.{i}.text", "text content blocks must be non-empty")
        if block.get("cache_control") and block["cache_control"].get("type") != "ephemeral":
            wrong(f"{where}.{i}.cache_control.type", "Input should be 'ephemeral'")


def _check_schema(wrong, where, schema):
    """Refuse what the API's structured outputs do not support, as the SDK's `transform_schema` takes it away."""
    for name in ("minimum", "maximum", "minLength", "maxLength", "maxItems", "pattern", "oneOf", "default"):
        if name in schema:
            wrong(where, f"For '{schema.get('type')}' type, property '{name}' is not supported")
    if schema.get("type") == "object" and schema.get("additionalProperties") is not False:
        wrong(where, "For 'object' type, 'additionalProperties' must be explicitly set to false")
    nested = [*schema.get("properties", {}).values(), *schema.get("$defs", {}).values(), *schema.get("anyOf", [])]
    for part in [*nested, *([schema["items"]] if "items" in schema else [])]:
        _check_schema(wrong, where, part)
