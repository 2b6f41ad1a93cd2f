"""Bodies of the HTTP API: OpenAI's chat completions form, with the sources of each answer.

What belongs here: fields, their limits, and the refusals that need nothing but the request. What does not: refusals
that need the served model (`api`).
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

REQUEST_ID = r"^[A-Za-z0-9_.-]{1,64}$"
MAX_CONTENT_CHARS = 8_000
MAX_COMMENT_CHARS = 2_000

# OpenAI's options that would change the answer and that this server does not have: the values that ask for nothing.
# Leaving such an option unread would answer another question than the one asked. Unknown fields that cannot change
# the answer (`user`, `metadata`) are ignored, as OpenAI-compatible servers do.
NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "stop": ([],),
    "tools": ([],),
    "tool_choice": ("none",),
    "functions": ([],),
    "function_call": ("none",),
    "response_format": ({"type": "text"},),
    "top_p": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "modalities": (["text"],),
}


class ApiError(Exception):
    """A refusal, told to the client in OpenAI's error form.

    Attributes:
        status: HTTP status.
        message: One sentence: what is wrong and what to do.
        code: Machine-readable reason.
        param: The field it is about.
        retry_after_s: Whole seconds after which it is worth asking again; None where it is not known.
    """

    def __init__(
        self, status: int, message: str, code: str, param: str | None = None, retry_after_s: int | None = None
    ):
        # All of them, so that it can be pickled: a replica raises it in another process.
        super().__init__(status, message, code, param, retry_after_s)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return self.message


def failure() -> ApiError:
    """Return what is told of a fault in the server: what happened is in its log, and no business of the client."""
    return ApiError(500, "The server failed to answer; the fault is not yours.", "internal_error")


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: Literal[
        "invalid_request_error", "authentication_error", "permission_error", "rate_limit_error", "server_error"
    ]
    code: str | None
    param: str | None


class ErrorResponse(BaseModel):
    """Body of every answer that is not a success."""

    error: ErrorDetail


class Health(BaseModel):
    """Body of `/healthz`."""

    status: Literal["ok"]
    model: str


class ModelCard(BaseModel):
    """One entry of the model list."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="When this server loaded it, Unix seconds.")
    owned_by: Literal["ev-platform"] = "ev-platform"


class ModelList(BaseModel):
    """Body of `/v1/models`."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Message(BaseModel):
    """One turn of a chat."""

    model_config = ConfigDict(strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str = Field(max_length=MAX_CONTENT_CHARS)

    @field_validator("content")
    @classmethod
    def _has_text(cls, content: str) -> str:
        if not content.strip():
            raise ValueError("must not be blank")
        return content


class ChatRequest(BaseModel):
    """A question: exactly one message, of the role `user`."""

    model_config = ConfigDict(strict=True, extra="allow")

    messages: list[Message] = Field(min_length=1)
    model: str | None = Field(default=None, description="The served version, or the task's name.")
    max_tokens: int | None = Field(
        default=None, ge=1, description="Longest answer; by default the cap, never above it."
    )
    max_completion_tokens: int | None = Field(default=None, ge=1, description="OpenAI's newer name for `max_tokens`.")
    temperature: float | None = Field(default=None, ge=0, le=2, description="0, the default, is greedy.")
    seed: int | None = Field(default=None, ge=0, lt=2**32, description="For a temperature above 0; 0 by default.")
    stream: bool | None = Field(default=None, description="Only false.")

    def check(self) -> None:
        """Refuse what this server does not do.

        Raises:
            ApiError: If the request asks for something whose absence would change the answer.
        """
        if self.stream:
            raise ApiError(
                400, "Streaming is not supported: send stream=false or leave it out.", "unsupported", "stream"
            )
        for name, value in (self.model_extra or {}).items():
            if name in NEUTRAL_VALUES and value is not None and value not in NEUTRAL_VALUES[name]:
                raise ApiError(
                    400, f"{name} is not supported and would change the answer: leave it out.", "unsupported", name
                )
        if any(message.role in ("system", "developer") for message in self.messages):
            raise ApiError(
                400,
                "The system message is part of the served model, which was evaluated with it: leave yours out.",
                "unsupported",
                "messages",
            )
        if [message.role for message in self.messages] != ["user"]:
            raise ApiError(
                400,
                "The model was evaluated on single questions and remembers no earlier turns: "
                "send exactly one message, with the role user.",
                "unsupported",
                "messages",
            )
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise ApiError(
                400, "max_tokens and max_completion_tokens differ: send one of them.", "invalid_value", "max_tokens"
            )


class FeedbackRequest(BaseModel):
    """What somebody says of an answer that they were given."""

    model_config = ConfigDict(strict=True, extra="forbid")

    request_id: str = Field(pattern=REQUEST_ID, description="`x-request-id` of the answer.")
    rating: Literal["up", "down"]
    correction: str | None = Field(default=None, max_length=MAX_CONTENT_CHARS, description="The right answer.")
    comment: str | None = Field(default=None, max_length=MAX_COMMENT_CHARS)
    question: str | None = Field(
        default=None,
        max_length=MAX_CONTENT_CHARS,
        description="As it was asked; needed where the server keeps no text of requests.",
    )


class FeedbackResponse(BaseModel):
    """Where the feedback is kept."""

    id: str


class Source(BaseModel):
    """One passage that the model was given, and where it comes from."""

    chunk_id: str
    title: str | None
    heading: str = Field(description="Headings that the passage stands under, outermost first.")
    url: str
    page: int | None = Field(description="1-based, for PDF files.")
    licence: str
    publisher: str
    fetched_at: datetime
    score: float = Field(description="Cosine of question and passage, -1 to 1.")
    text: str = Field(description="The passage.")


class AnswerMessage(BaseModel):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str


class Choice(BaseModel):
    """The one choice."""

    index: int = 0
    message: AnswerMessage
    finish_reason: str = Field(description="`stop`, or `length` where the answer was cut at max_tokens.")


class Usage(BaseModel):
    """Tokens of the prompt, passages included, and of the answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatResponse(BaseModel):
    """An answer; `sources` is this server's addition to OpenAI's form."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int = Field(description="Unix seconds.")
    model: str
    choices: list[Choice]
    usage: Usage
    sources: list[Source]
