"""What an operator may set about serving, as one frozen value that travels to the gateway and the replicas.

It comes from the environment (`settings`); what belongs to a model comes with the model.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class ServingConfig(BaseModel):
    """Limits and records of a server.

    Attributes:
        cors_origins: Web origins whose pages may call the API, such as `https://example.org`; none by default.
        request_text: Whether the request log holds questions and answers, or keyed hashes of them.
        retention_days: Age at which logged requests are deleted.
        request_timeout_s: Longest time for one answer.
        max_waiting: Questions that may wait for one replica; beyond, it answers 503.
        max_batch: Prompts that are completed together at most.
        engine_url: Of vLLM's server, without `/v1`, which then writes the answers of every model that writes text; here
            where None.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cors_origins: tuple[str, ...] = ()
    request_text: Literal["keep", "hash"] = "keep"
    retention_days: Annotated[int, Field(ge=1)] = 90
    request_timeout_s: Annotated[float, Field(gt=0)] = 120.0
    max_waiting: Annotated[int, Field(ge=1)] = 64
    max_batch: Annotated[int, Field(ge=1, le=256)] = 16
    engine_url: str | None = None
