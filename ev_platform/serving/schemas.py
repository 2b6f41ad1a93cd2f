"""What the HTTP API takes: the bodies of requests with their limits, and refusals.

What belongs here: fields, their limits, and the refusals that need nothing but the request. What does not: the bodies
of answers (`replies`), and refusals that need the served model (`models`, `worker`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

REQUEST_ID = r"^[A-Za-z0-9_.-]{1,64}$"
MAX_MODEL_CHARS = 200
MAX_CONTENT_CHARS = 8_000
MAX_COMMENT_CHARS = 2_000
# About the 16,384 tokens that an encoder reads at most.
MAX_CONTEXT_CHARS = 48_000
MAX_STOPS, MAX_STOP_CHARS = 4, 100

# OpenAI's options that would change the answer and that this server does not have: the values that ask for nothing.
# Leaving such an option unread would answer another question than the one asked. Unknown fields that cannot change
# the answer (`user`, `metadata`) are ignored, as OpenAI-compatible servers do.
NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "n": (1,),
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


def _has_text(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be blank")
    return text


_SEEN_TEXT: dict[str, Any] = {"pattern": r"\S"}  # the same for readers of the description
Text = Annotated[
    str, Field(max_length=MAX_CONTENT_CHARS, min_length=1, json_schema_extra=_SEEN_TEXT), AfterValidator(_has_text)
]
Context = Annotated[
    str, Field(max_length=MAX_CONTEXT_CHARS, min_length=1, json_schema_extra=_SEEN_TEXT), AfterValidator(_has_text)
]
ModelName = Annotated[
    str | None,
    Field(
        default=None,
        max_length=MAX_MODEL_CHARS,
        description="A name of `/v1/models` or the exact version behind it; where one model is served, its alias too. "
        "Nothing: the first of the list.",
    ),
]
# JSON knows one kind of number: 7.0 is an integer there, as it is in JSON Schema.
_WHOLE = BeforeValidator(lambda value: int(value) if isinstance(value, float) and value.is_integer() else value)
_MaxTokens = Annotated[int, Field(ge=1, le=1_000_000), _WHOLE]
_Seed = Annotated[int, Field(ge=0, lt=2**32), _WHOLE]
_Stop = Annotated[str, StringConstraints(min_length=1, max_length=MAX_STOP_CHARS)]
_Stops = Annotated[list[_Stop], Field(max_length=MAX_STOPS)]


class Sampling(BaseModel):
    """How an answer is written; what is left out is as it was evaluated."""

    model_config = ConfigDict(strict=True)

    model: ModelName
    max_tokens: _MaxTokens | None = Field(default=None, description="Longest answer; the evaluated length and no more.")
    temperature: float | None = Field(default=None, ge=0, le=2, description="0, the default, is greedy and repeats.")
    seed: _Seed | None = Field(
        default=None,
        description="Repeats a sample of a temperature above 0; refused with 400 by an engine that cannot.",
    )
    stop: Annotated[
        _Stops | None,
        BeforeValidator(
            lambda stop: [stop] if isinstance(stop, str) else stop, json_schema_input_type=_Stop | _Stops | None
        ),
    ] = Field(default=None, description=f"Texts that end the answer before they are written, {MAX_STOPS} at most.")
    stream: bool | None = Field(default=None, description="Whether to send the answer piece by piece (SSE).")

    def options(self) -> dict[str, Any]:
        """Return what `exchange.Ask` has of it."""
        return {
            "max_tokens": self.max_tokens,
            "temperature": self.temperature or 0.0,
            "seed": self.seed,
            "stop": tuple(self.stop or ()),
        }


class Message(BaseModel):
    """One turn of a chat."""

    model_config = ConfigDict(strict=True)

    # The other roles are taken only to say why they are refused.
    role: Literal["system", "developer", "user", "assistant", "tool"] = Field(json_schema_extra={"enum": ["user"]})
    content: Text


class StreamOptions(BaseModel):
    """What a streamed answer holds beside the text; fields that this server does not know are ignored."""

    model_config = ConfigDict(strict=True)

    include_usage: bool | None = Field(default=None, description="Whether a last piece holds the tokens' numbers.")


def _tell_unsupported(schema: dict[str, Any]) -> None:
    for name, values in NEUTRAL_VALUES.items():
        schema["properties"][name] = {"enum": [*values, None], "description": "Not supported: leave it out."}


class ChatRequest(Sampling):
    """A question: exactly one message, of the role `user`."""

    model_config = ConfigDict(strict=True, extra="allow", json_schema_extra=_tell_unsupported)

    messages: list[Message] = Field(
        min_length=1,
        json_schema_extra={"maxItems": 1},
        examples=[[{"role": "user", "content": "How often must the RCD of a charging point be tested?"}]],
    )
    max_completion_tokens: _MaxTokens | None = Field(default=None, description="OpenAI's newer name for `max_tokens`.")
    stream_options: StreamOptions | None = Field(default=None, description="Without `stream` it has no effect.")

    def check(self) -> None:
        """Refuse what this server does not do.

        Raises:
            ApiError: If the request asks for something whose absence would change the answer.
        """
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

    def options(self) -> dict[str, Any]:
        """Return what `exchange.Ask` has of it."""
        return super().options() | {"max_tokens": self.max_tokens or self.max_completion_tokens}


class AnswerRequest(Sampling):
    """A question."""

    model_config = ConfigDict(strict=True, extra="forbid")

    question: Text = Field(examples=["How often must the RCD of a charging point be tested?"])


class ClassifyRequest(BaseModel):
    """A text to label."""

    model_config = ConfigDict(strict=True, extra="forbid")

    text: Text = Field(examples=["Where is my card?"])
    model: ModelName


class ExtractRequest(BaseModel):
    """A question, and the passage whose words answer it."""

    model_config = ConfigDict(strict=True, extra="forbid")

    question: Text = Field(examples=["How often must the RCD be tested?"])
    context: Context = Field(examples=["The RCD of a charging point must be tested every three months."])
    model: ModelName


class FeedbackRequest(BaseModel):
    """What somebody says of an answer that they were given."""

    model_config = ConfigDict(strict=True, extra="forbid")

    request_id: str = Field(
        pattern=REQUEST_ID,
        description="`x-request-id` of the answer.",
        examples=["0d2e5c1a-7f3b-4a58-9d39-6f3f0f6e1c55"],
    )
    rating: Literal["up", "down"]
    correction: str | None = Field(default=None, max_length=MAX_CONTENT_CHARS, description="The right answer.")
    comment: str | None = Field(default=None, max_length=MAX_COMMENT_CHARS)
    question: str | None = Field(
        default=None,
        max_length=MAX_CONTENT_CHARS,
        description="As it was asked; needed where the server keeps no text of requests.",
    )
