"""Anthropic's models, through the `anthropic` SDK: single messages, Message Batches, and counting of tokens.

The SDK repeats what the server answered with an error (408 and gateway errors excepted) and what never left. An attempt
that broke off after its request left may have been counted, so it comes back at once, marked, and `ask` decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NoReturn

import anthropic
import httpx2
from anthropic.types import Message
from anthropic.types.messages import MessageBatch
from pydantic import SecretStr

from ev_platform.errors import UserError
from ev_platform.tasks.config import TeacherConfig
from ev_platform.teachers.calls import Batch, Call, LostBatchError, Reply, Usage
from ev_platform.teachers.connections import MAY_BE_COUNTED, BrokenOffError, PerLoop, break_off, one_line

# What the SDK and the API hold to be ten minutes of writing; longer replies need a stream.
LONGEST_REPLY = 21_333
STATUS_OF_STOP = {
    "end_turn": "ok",
    "stop_sequence": "ok",
    "refusal": "refused",
    "max_tokens": "truncated",
    "model_context_window_exceeded": "truncated",
}
# Fields that are the same in all calls: a 400 that names one of them concerns all.
SHARED_FIELDS = ("model", "max_tokens", "output_config", "system", "anthropic-version", "metadata")
BILLING = ("credit balance", "spend limit", "billing", "organization is on hold", "organization has been disabled")


class AnthropicClient:
    """The models of Anthropic.

    Args:
        config: Timeout and retries. Its address is not heeded: a task's folder must not say where the key is sent.
        api_key: Never shown.
        base_url: Of the API; by default the SDK's own.
    """

    provider = "anthropic"
    has_batches = True

    def __init__(self, config: TeacherConfig, api_key: SecretStr | str, base_url: str | None = None):
        self._key = api_key if isinstance(api_key, SecretStr) else SecretStr(api_key)
        self._config = config
        self._options: dict[str, Any] = {
            "api_key": self._key.get_secret_value(),
            "base_url": base_url,
            "timeout": httpx2.Timeout(config.timeout_s, connect=min(10.0, config.timeout_s)),
            "max_retries": config.max_retries,
        }
        self._async = PerLoop(lambda: anthropic.AsyncAnthropic(**self._options, middleware=[self._watch_async]))
        self._sync = anthropic.Anthropic(**self._options, middleware=[self._watch])

    # ---- single calls ----

    async def send(self, call: Call) -> Reply:
        """Ask one call.

        Raises:
            UserError: For what is wrong with all calls: the key, the model, the account, the address.
        """
        if call.max_tokens > LONGEST_REPLY:
            raise UserError(
                f"A reply of {call.max_tokens} tokens may take longer than ten minutes, which Anthropic serves as a "
                f"stream only: set teacher.max_tokens to at most {LONGEST_REPLY}, or use batches."
            )
        try:
            response = await self._async.get().messages.with_raw_response.create(**_params(call))
            message = await response.parse()
        except BrokenOffError as error:
            return Reply("failed", detail=str(error), n_unsettled=1)
        except ValueError as error:
            return self._unreadable(error)
        except anthropic.APIStatusError as error:
            return self._error_reply(error, call.model)
        except anthropic.APIConnectionError as error:
            self._raise_unreachable(error)
        latency_ms = response.http_response.elapsed.total_seconds() * 1000
        return self._reply(message, response.request_id, latency_ms)

    def count_tokens(self, call: Call) -> int:
        """Return the tokens of a call's prompt; Anthropic counts them for nothing.

        Raises:
            UserError: If they cannot be counted.
        """
        params = _params(call)
        del params["max_tokens"]
        try:
            return self._sync.messages.count_tokens(**params).input_tokens
        except anthropic.APIStatusError as error:
            self._raise_for_all(error, call.model)
            raise UserError(f"The tokens of a prompt could not be counted: {self._words(error)}.") from None
        except anthropic.APIConnectionError as error:
            self._raise_unreachable(error)

    # ---- batches ----

    def create_batch(self, calls: Sequence[Call]) -> Batch:
        """Hand in calls.

        Raises:
            ConnectionError: If it broke off: the batch may have been made.
            UserError: If Anthropic refuses the batch.
        """
        requests: Any = [{"custom_id": call.call_id, "params": _params(call)} for call in calls]
        try:
            return _batch(self._sync.messages.batches.create(requests=requests))
        except BrokenOffError as error:
            raise ConnectionError(str(error)) from None
        except anthropic.APIError as error:
            if isinstance(error, anthropic.APIStatusError) and error.status_code < 500 and error.status_code != 429:
                self._raise_for_all(error, calls[0].model)
                raise UserError(f"Anthropic refused a batch of {len(calls)} calls: {self._words(error)}.") from None
            self._raise_later(error)

    def get_batch(self, batch_id: str) -> Batch:
        """Return how far a batch is.

        Raises:
            ConnectionError: If the provider cannot be asked now.
            LostBatchError: If it does not have the batch, or no longer its results.
            UserError: If it refuses the key.
        """
        try:
            batch = self._sync.messages.batches.retrieve(batch_id)
        except anthropic.APIError as error:
            self._raise_later(error, batch_id)
        if batch.archived_at is not None:
            raise LostBatchError(
                f"Anthropic no longer keeps the results of {batch_id}: set teacher.resend_interrupted to pay for them "
                "again."
            )
        return _batch(batch)

    def list_batches(self, since: str) -> list[Batch]:
        """Return the batches made since an ISO 8601 time, newest first.

        Raises:
            ConnectionError: If the provider cannot be asked now.
            UserError: If it refuses the key.
        """
        start = datetime.fromisoformat(since)
        start = start if start.tzinfo else start.replace(tzinfo=UTC)
        batches = []
        try:
            for batch in self._sync.messages.batches.list(limit=100):  # asks for further pages as it goes
                if batch.created_at < start:
                    break
                batches.append(_batch(batch))
        except anthropic.APIError as error:
            self._raise_later(error)
        return batches

    def batch_results(self, batch_id: str) -> list[tuple[str, Reply]]:
        """Return (call_id, reply) of an ended batch.

        Raises:
            ConnectionError: If they cannot be read now.
            LostBatchError: If the provider does not have the batch.
            UserError: If it refuses the key.
        """
        try:
            results = self._sync.messages.batches.results(batch_id)
            return [(line.custom_id, self._result_reply(line.result)) for line in results]
        except anthropic.APIError as error:
            self._raise_later(error, batch_id)
        except (anthropic.AnthropicError, httpx2.HTTPError, ValueError) as error:  # not ended; cut off; a line cut
            raise ConnectionError(self._one_line(error)) from None

    async def aclose(self) -> None:
        """Close the running loop's connections; the client may be used again."""
        await self._async.aclose()

    # ---- attempts ----

    async def _watch_async(self, request: Any, call_next: Any) -> Any:
        """End a message's attempts where one may have been counted; the SDK calls this around each attempt."""
        try:
            response = await call_next(request)
        except anthropic.APIConnectionError as error:
            self._end_if_counted(error)
            raise
        _end_if_gateway(response)
        return response

    def _watch(self, request: Any, call_next: Any) -> Any:
        """Do so for the making of a batch; whatever else is asked synchronously changes and costs nothing."""
        if request.method.lower() != "post" or not request.url.endswith("/batches"):
            return call_next(request)
        try:
            response = call_next(request)
        except anthropic.APIConnectionError as error:
            self._end_if_counted(error)
            raise
        _end_if_gateway(response)
        return response

    def _end_if_counted(self, error: anthropic.APIConnectionError) -> None:
        words = break_off(error.__cause__ or error, self._config.timeout_s)
        if words is not None:
            # Without a cause, since the SDK repeats whatever was caused by a connection error.
            raise BrokenOffError(words) from None

    # ---- replies ----

    def _reply(self, message: Any, request_id: str | None = None, latency_ms: float | None = None) -> Reply:
        if not isinstance(message, Message) or not hasattr(message, "usage"):
            return self._unreadable(str(message)[:100])
        status, detail = STATUS_OF_STOP.get(message.stop_reason or "", "failed"), None
        if status == "refused":
            said = message.stop_details and (message.stop_details.explanation or message.stop_details.category)
            detail = f"the model declined: {self._one_line(said)}" if said else "the model declined"
        elif status == "truncated":
            is_window = message.stop_reason == "model_context_window_exceeded"
            detail = "the reply filled the model's context window" if is_window else "the reply hit max_tokens"
        elif status == "failed":
            detail = f"the reply stopped for {message.stop_reason}"
        usage = message.usage
        return Reply(
            status=status,
            text="".join(block.text for block in message.content if block.type == "text"),
            detail=detail,
            usage=Usage(
                n_input_tokens=usage.input_tokens,
                n_output_tokens=usage.output_tokens,
                n_cache_write_tokens=usage.cache_creation_input_tokens or 0,
                n_cache_read_tokens=usage.cache_read_input_tokens or 0,
            ),
            model=message.model,
            request_id=request_id,
            latency_ms=latency_ms,
        )

    def _result_reply(self, result: Any) -> Reply:
        if result.type == "succeeded":
            return self._reply(result.message)
        if result.type == "errored":
            error = result.error.error
            words = self._one_line(error.message)
            if _is_filtered(words):
                return Reply("refused", detail=words)
            return Reply("failed", detail=f"Anthropic answered {error.type}: {words}")
        reason = {"expired": "the batch ended before its turn came", "canceled": "the batch was cancelled"}
        return Reply("failed", detail=reason.get(result.type, f"the batch answered {result.type}"))

    def _unreadable(self, what: object) -> Reply:
        return Reply("failed", detail=f"Anthropic's reply cannot be read: {self._one_line(what)}", n_unsettled=1)

    def _error_reply(self, error: anthropic.APIStatusError, model: str) -> Reply:
        self._raise_for_all(error, model)
        status = "refused" if _is_filtered(error.api_message or "") else "failed"
        return Reply(status, detail=self._words(error), request_id=error.request_id)

    # ---- errors ----

    def _one_line(self, text: object) -> str:
        return one_line(text, self._key.get_secret_value())

    def _words(self, error: anthropic.APIStatusError) -> str:
        return f"Anthropic answered {error.status_code}: {self._one_line(error.api_message or error.message)}"

    def _raise_for_all(self, error: anthropic.APIStatusError, model: str) -> None:
        """Raise what is wrong with all calls, and return for what is wrong with one."""
        words, said = self._words(error), (error.api_message or "").lower()
        if error.status_code == 401:
            raise UserError(f"{words}: set ANTHROPIC_API_KEY to a valid key.") from None
        if error.status_code == 403:
            raise UserError(f"{words}: use a key that may use {model}, or another teacher.model.") from None
        if error.status_code == 404:
            raise UserError(f"{words}: correct teacher.model ({model}) in config.yaml.") from None
        if error.status_code == 402 or (error.status_code in (400, 429) and any(part in said for part in BILLING)):
            raise UserError(f"{words}: put the account in order, and run again.") from None
        if error.status_code == 400 and said.startswith(SHARED_FIELDS):
            raise UserError(f"{words}: this concerns every call to {model}; correct teacher in config.yaml.") from None

    def _raise_unreachable(self, error: Exception) -> NoReturn:
        reason = self._one_line(error.__cause__ or error)
        raise UserError(
            f"{self._sync.base_url} cannot be reached ({reason}): check the network and the address."
        ) from None

    def _raise_later(self, error: anthropic.APIError, batch_id: str = "") -> NoReturn:
        if isinstance(error, anthropic.APIStatusError):
            if error.status_code == 404 and batch_id:
                raise LostBatchError(
                    f"{self._words(error)}: {batch_id} was made with another key, or is older than Anthropic keeps it; "
                    "use that key, or set teacher.resend_interrupted."
                ) from None
            self._raise_for_all(error, "this model")
            raise ConnectionError(self._words(error)) from None
        raise ConnectionError(self._one_line(error.__cause__ or error)) from None


def _end_if_gateway(response: Any) -> None:
    if response.status_code in MAY_BE_COUNTED:
        raise BrokenOffError(f"a server before the model answered {response.status_code}")


def _is_filtered(message: str) -> bool:
    return "content filtering" in message.lower()


def _params(call: Call) -> dict[str, Any]:
    """Return the parameters of a message: the schema as `messages.parse` would send it, the system part cached."""
    params: dict[str, Any] = {
        "model": call.model,
        "max_tokens": call.max_tokens,
        "messages": [{"role": "user", "content": call.prompt}],
        "output_config": {"format": {"type": "json_schema", "schema": anthropic.transform_schema(call.schema)}},
    }
    if call.system:
        params["system"] = [{"type": "text", "text": call.system, "cache_control": {"type": "ephemeral"}}]
    return params


def _batch(batch: MessageBatch) -> Batch:
    counts = batch.request_counts
    return Batch(
        batch_id=batch.id,
        created_at=batch.created_at.isoformat(),
        n_calls=counts.processing + counts.succeeded + counts.errored + counts.canceled + counts.expired,
        is_ended=batch.processing_status == "ended",
    )
