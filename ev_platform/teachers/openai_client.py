"""Models behind any server that speaks OpenAI's chat completions (vLLM, llama.cpp, Ollama, OpenAI), through its SDK.

Attempts that broke off are treated as in `anthropic_client`. Batches do not belong here: few servers have them.
"""

from __future__ import annotations

import json
import math
import ssl
from typing import Any, NoReturn

import anyio
import httpx2
import openai
from openai.types.chat import ChatCompletion
from pydantic import SecretStr, ValidationError

from ev_platform.errors import UserError
from ev_platform.tasks.config import TeacherConfig
from ev_platform.teachers.calls import Call, Reply, Usage
from ev_platform.teachers.connections import (
    MAY_BE_COUNTED,
    NEVER_SENT,
    BrokenOffError,
    PerLoop,
    WithoutBatches,
    break_off,
    one_line,
)

STATUS_OF_FINISH = {"stop": "ok", "length": "truncated", "content_filter": "refused"}
# Parameters that are the same in all calls: a 400 that names one of them concerns all.
SHARED_PARAMETERS = ("model", "max_tokens", "max_completion_tokens", "response_format")
BYTES_PER_TOKEN = 4
OPENAI = "https://api.openai.com/v1"


class _Connections(openai.DefaultAsyncHttpxClient):
    """Ends a call's attempts where one may have been counted; the SDK sends each attempt through here."""

    async def send(self, request: Any, **options: Any) -> Any:
        try:
            response = await super().send(request, **options)
        except NEVER_SENT:
            raise
        except (httpx2.TransportError, ssl.SSLError, anyio.EndOfStream) as error:
            raise BrokenOffError(break_off(error, self.timeout.read or math.inf)) from None
        if response.status_code in MAY_BE_COUNTED:
            raise BrokenOffError(f"a server before the model answered {response.status_code}")
        return response


class OpenAIClient(WithoutBatches):
    """The models of one OpenAI-compatible server.

    Args:
        config: Timeout, retries, and the address where `base_url` is not given.
        api_key: Never shown; any word for servers that ask for none.
        base_url: Of the API, such as `http://localhost:8000/v1`; by default the configuration's, else the SDK's own.
    """

    provider = "openai_compatible"

    def __init__(self, config: TeacherConfig, api_key: SecretStr | str, base_url: str | None = None):
        self._key = api_key if isinstance(api_key, SecretStr) else SecretStr(api_key)
        self._config = config
        self._address = base_url or (str(config.base_url) if config.base_url else None)
        # At OpenAI itself a model's name says which model it is.
        address = (self._address or OPENAI).rstrip("/")
        self.source = "" if address == OPENAI else f"{self.provider} {address}"
        self._async = PerLoop(self._make)

    def _make(self) -> openai.AsyncOpenAI:
        timeout = httpx2.Timeout(self._config.timeout_s, connect=min(10.0, self._config.timeout_s))
        return openai.AsyncOpenAI(
            api_key=self._key.get_secret_value(),
            base_url=self._address,
            timeout=timeout,
            max_retries=self._config.max_retries,
            http_client=_Connections(timeout=timeout),
        )

    async def send(self, call: Call) -> Reply:
        """Ask one call.

        Raises:
            UserError: For what is wrong with all calls: the key, the model, the account, the address.
        """
        client = self._async.get()
        # OpenAI's own models know the one name, many compatible servers only the other.
        is_openai = str(client.base_url.host).endswith("openai.com")
        limit: dict[str, Any] = {"max_completion_tokens" if is_openai else "max_tokens": call.max_tokens}
        messages: Any = [{"role": "system", "content": call.system}] if call.system else []
        messages.append({"role": "user", "content": call.prompt})
        try:
            # `parse` turns the schema into the strict form; the raw response keeps the text for `ask` to validate.
            response = await client.chat.completions.with_raw_response.parse(
                model=call.model, messages=messages, response_format=call.schema, **limit
            )
        except BrokenOffError as error:
            return Reply("failed", detail=str(error), n_unsettled=1)
        except openai.APIStatusError as error:
            return self._error_reply(error, call.model)
        except openai.APIConnectionError as error:
            self._raise_unreachable(error, str(client.base_url))
        return self._reply(response.text, response.request_id, response.elapsed.total_seconds() * 1000)

    def count_tokens(self, call: Call) -> int:
        """Return an estimate of the tokens of a call's prompt and schema: their bytes in UTF-8, divided by four."""
        text = call.system + call.prompt + json.dumps(call.schema.model_json_schema())
        return math.ceil(len(text.encode()) / BYTES_PER_TOKEN)

    async def aclose(self) -> None:
        """Close the running loop's connections; the client may be used again."""
        await self._async.aclose()

    # ---- replies ----

    def _reply(self, body: str, request_id: str | None, latency_ms: float) -> Reply:
        try:
            completion = ChatCompletion.model_validate_json(body)
            choice = completion.choices[0]
        except (ValidationError, IndexError):
            detail = f"the server's reply cannot be read: {self._one_line(body[:200])}"
            return Reply("failed", detail=detail, request_id=request_id, n_unsettled=1)
        status, detail = STATUS_OF_FINISH.get(choice.finish_reason, "failed"), None
        if choice.message.refusal:
            status, detail = "refused", f"the model declined: {self._one_line(choice.message.refusal)}"
        elif status == "refused":
            detail = "a content filter cut the reply"
        elif status == "truncated":
            detail = "the reply hit max_tokens"
        elif status == "failed":
            detail = f"the reply stopped for {choice.finish_reason}"
        return Reply(
            status=status,
            text=choice.message.content or "",
            detail=detail,
            usage=_usage(completion),
            model=completion.model,
            request_id=request_id or completion.id,
            latency_ms=latency_ms,
        )

    # ---- errors ----

    def _one_line(self, text: object) -> str:
        return one_line(text, self._key.get_secret_value())

    def _error_reply(self, error: openai.APIStatusError, model: str) -> Reply:
        said = error.body.get("message") if isinstance(error.body, dict) else None
        words = f"the server answered {error.status_code}: {self._one_line(said or error.message)}"
        if error.status_code == 401:
            raise UserError(f"{words}: set a valid API key for {self._address or 'OpenAI'}.") from None
        if error.status_code == 403:
            raise UserError(f"{words}: use a key that may use {model}, or another teacher.model.") from None
        if error.status_code == 404:
            raise UserError(f"{words}: correct teacher.model ({model}) or teacher.base_url in config.yaml.") from None
        if error.status_code == 402 or error.code in ("insufficient_quota", "billing_hard_limit_reached"):
            raise UserError(f"{words}: put the account in order, and run again.") from None
        if error.status_code in (400, 422) and error.param in SHARED_PARAMETERS:
            raise UserError(f"{words}: this concerns every call to {model}; correct teacher in config.yaml.") from None
        status = "refused" if error.code in ("content_filter", "content_policy_violation") else "failed"
        return Reply(status, detail=words, request_id=error.request_id)

    def _raise_unreachable(self, error: Exception, address: str) -> NoReturn:
        reason = self._one_line(error.__cause__ or error)
        raise UserError(
            f"{address} cannot be reached ({reason}): start the server, or correct teacher.base_url."
        ) from None


def _usage(completion: ChatCompletion) -> Usage:
    usage = completion.usage
    if usage is None:
        return Usage()
    details = usage.prompt_tokens_details
    n_read = (details.cached_tokens if details else 0) or 0
    n_write = (details.cache_write_tokens if details else 0) or 0
    return Usage(
        n_input_tokens=max(0, usage.prompt_tokens - n_read - n_write),
        n_output_tokens=usage.completion_tokens,
        n_cache_write_tokens=n_write,
        n_cache_read_tokens=n_read,
    )
