"""Environment and secrets, read once from `EV_*` variables or a `.env` file.

What belongs to a task (sources, recipe, teacher) lives in the task's folder, never here.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, Json, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from ev_platform.cluster import Spread, here, on_ray
from ev_platform.errors import UserError
from ev_platform.serving.config import ServingConfig

# Where pydantic's own words would not help: what a setting must be.
_EXPECTED = {
    "store_url": "an address such as s3://bucket/prefix, without a user or password: fsspec takes them from variables "
    "of its own, such as AWS_ACCESS_KEY_ID",
    "engine_url": "an address such as http://127.0.0.1:8001",
    "dagster_url": "an address such as http://127.0.0.1:3000",
    "cors_origins": 'a JSON list such as ["https://example.org"]',
}


def _without_slash(value: Any) -> Any:
    return value.rstrip("/") if isinstance(value, str) else value


_Address = Annotated[str | None, BeforeValidator(_without_slash)]


class Settings(BaseSettings):
    """Where things lie on this machine, and the secrets.

    Attributes:
        data_dir: Root of everything the platform writes.
        store_url: Object store that several machines share, such as `s3://bucket/prefix`; `data_dir` is then this
            machine's cache of it. None by default: `data_dir` is all there is.
        postgres_url: Database that keeps Dagster's state, such as `postgresql://user:password@host/dagster`, where
            several machines run the graph; by default SQLite below Dagster's home.
        tasks_dir: Folder of task folders; each becomes a partition beside the embedded example.
        user_agent: Sent with every request of the crawler.
        workers: Processes that read pages and PDFs; by default one for each processor.
        engine: `local`, or `ray`: documents are read and embedded, and models trained, on the cluster that RAY_ADDRESS
            names, or on a Ray of this machine's own.
        train_workers: Workers that share the batches of a training run; 1 trains in this process, unless `engine` is
            `ray`.
        wandb_api_key: Weights & Biases key; without one, runs are tracked offline below `data_dir`.
        anthropic_api_key: Key of the `anthropic` teacher.
        anthropic_base_url: Of its API; the provider's own where None.
        openai_api_key: Key of the `openai_compatible` teacher; not needed for a server that asks for none.
        openai_base_url: The one address, beside OpenAI's own, that gets that key.
        hf_token: Of the Hugging Face Hub; for base models that ask for one, and to publish.
        hf_endpoint: Of a hub of one's own; the public one where None.
        host: Address that the HTTP endpoint listens on.
        port: Port of the HTTP endpoint.
        tls_certificate: PEM file; with `tls_key`, the endpoint speaks HTTPS.
        tls_key: PEM file, without a password.
        cors_origins: Web origins, as a JSON list, whose pages may call the endpoint.
        request_text: `keep` or `hash`: what the request log holds of questions and answers.
        request_retention_days: Age at which logged requests are deleted.
        request_timeout_s: Longest time for one answer.
        max_waiting: Questions that may wait for one replica of a model.
        max_batch: Prompts that are completed together at most.
        engine_url: Of a server of vLLM that writes the answers (`ev-platform models vllm`); none by default.
        dagster_url: Where Dagster's UI is reached, as `http://127.0.0.1:3000`; runs are started there while
            it answers. A user and password in it are sent, and left out of links and errors.
        failure_webhook: Address that is told, as JSON, of every run that failed.
        browser_path: Chromium or Chrome for sources with `fetcher: browser`; by default playwright's own, else the
            system's.
    """

    model_config = SettingsConfigDict(
        env_prefix="EV_",
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        hide_input_in_errors=True,  # it may be a secret
    )

    data_dir: Path = Path("ev_data")
    # An address with a password in it would be written into the data folder: fsspec takes it from the environment.
    store_url: str | None = Field(default=None, pattern=r"^[a-z0-9+]+://[^\s@]+$")
    postgres_url: SecretStr | None = None
    tasks_dir: Path = Path("tasks")
    user_agent: str = "ev-platform/0.1 (research crawler; set EV_USER_AGENT to name yourself)"
    workers: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1)
    engine: Literal["local", "ray"] = "local"
    train_workers: int = Field(default=1, ge=1)
    wandb_api_key: SecretStr | None = Field(default=None, validation_alias="WANDB_API_KEY")
    anthropic_api_key: SecretStr | None = Field(default=None, validation_alias="ANTHROPIC_API_KEY")
    anthropic_base_url: str | None = Field(default=None, validation_alias="ANTHROPIC_BASE_URL")
    openai_api_key: SecretStr | None = Field(default=None, validation_alias="OPENAI_API_KEY")
    openai_base_url: str | None = Field(default=None, validation_alias="OPENAI_BASE_URL")
    hf_token: SecretStr | None = Field(default=None, validation_alias="HF_TOKEN")
    hf_endpoint: str | None = Field(default=None, validation_alias="HF_ENDPOINT")
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65535)
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    cors_origins: Json[tuple[str, ...]] = Field(default=(), validate_default=False)
    request_text: Literal["keep", "hash"] = "keep"
    request_retention_days: int = Field(default=90, ge=1)
    request_timeout_s: float = Field(default=120.0, gt=0)
    max_waiting: int = Field(default=64, ge=1)
    max_batch: int = Field(default=16, ge=1, le=256)
    engine_url: _Address = Field(default=None, pattern=r"^https?://[^/]+$")
    dagster_url: _Address = Field(default=None, pattern=r"^https?://[^/?#\s]+(/[^?#]*)?$")
    failure_webhook: SecretStr | None = None
    browser_path: Path | None = None

    @property
    def serving(self) -> ServingConfig:
        """What of it the server's processes need."""
        return ServingConfig(
            cors_origins=self.cors_origins,
            request_text=self.request_text,
            retention_days=self.request_retention_days,
            request_timeout_s=self.request_timeout_s,
            max_waiting=self.max_waiting,
            max_batch=self.max_batch,
            engine_url=self.engine_url,
        )

    @property
    def spread(self) -> Spread:
        """What spreads work on the rows of a table."""
        return on_ray if self.engine == "ray" else here

    @property
    def data_root(self) -> Path:
        """Absolute form of `data_dir`."""
        return self.data_dir.expanduser().resolve()

    @property
    def tasks_root(self) -> Path:
        """Absolute form of `tasks_dir`."""
        return self.tasks_dir.expanduser().resolve()


@cache
def get_settings() -> Settings:
    """Return the settings of this process.

    Raises:
        UserError: With a sentence for each variable that is not what it must be; never with its value.
    """
    try:
        return Settings()
    except ValidationError as error:
        raise UserError(" ".join(dict.fromkeys(_said(each["loc"], each["msg"]) for each in error.errors()))) from None


def _said(place: tuple[int | str, ...], words: str) -> str:
    name = str(place[0])
    variable = f"EV_{name}".upper() if name in Settings.model_fields else name
    must_be = f"must be {_EXPECTED[name]}" if name in _EXPECTED else words.removeprefix("Input ")
    return f"{variable} (environment or .env) {must_be}."
