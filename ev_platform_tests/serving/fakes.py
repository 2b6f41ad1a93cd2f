"""A release without a model, importable by a replica in another process."""

import re
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ev_platform.decoding import Completion, Prompt
from ev_platform.engine_base import Likelihood
from ev_platform.errors import UserError
from ev_platform.registry import Release, SourceChunk, read_aliases
from ev_platform.retrieval import Hit
from ev_platform.serving.config import ServingConfig
from ev_platform.serving.live import LiveRelease
from ev_platform.serving.worker import LocalBackend
from ev_platform.storage import Store
from ev_platform.tasks.types import get_task_type

CHUNKS = [
    SourceChunk(
        "chk_cable",
        "Mode 3 cables are rated for 32 A.",
        "Cable sizing",
        "Cable sizing > Rating",
        "https://example.org/cable-sizing.html",
        None,
        "CC-BY-4.0",
        "Example Press",
        datetime(2026, 11, 2, 8, 30, tzinfo=UTC),
    ),
    SourceChunk(
        "chk_manual",
        "Test the RCD every three months.",
        "Operations manual",
        "Operations manual > RCD",
        "https://example.org/operations-manual.pdf",
        7,
        "CC-BY-SA-4.0",
        "Example Works",
        datetime(2026, 11, 3, 9, 0, tzinfo=UTC),
    ),
]


class FakeEngine:
    """Says how it was asked: the options it got and the prompt's last line."""

    window = 200

    def __init__(self):
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.n_running = 0
        self.most_running = 0
        self._lock = threading.Lock()

    def render(self, messages: list[dict[str, str]]) -> str:
        return "\n".join(f"{message['role']}: {message['content']}" for message in messages)

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def generate(
        self, prompts: Sequence[str], *, max_new_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> list[Completion]:
        with self._lock:
            self.n_running += 1
            self.most_running = max(self.most_running, self.n_running)
        self.may_answer.wait(10)
        with self._lock:
            self.n_running -= 1
        if any("explode" in prompt for prompt in prompts):
            raise RuntimeError(f"the engine failed at {prompts[0]!r}")
        options = f"temperature={temperature!r} seed={seed} max_new_tokens={max_new_tokens}"
        return [
            Completion(f"{options} | {prompt}", self.count_tokens(prompt), 5, 1.0 / len(prompts), "stop")
            for prompt in prompts
        ]


class FakeWriter(FakeEngine):
    """Gives the same answers word by word, and counts the words that it has written."""

    n_workers = 1

    def __init__(self, pause_s: float = 0.0):
        super().__init__()
        self.pause_s = pause_s
        self.n_written = 0

    def write(self, batch: Sequence[Prompt], *, temperature: float = 0.0, seed: int = 0) -> list[Completion]:
        return [self._write(prompt, temperature, seed) for prompt in batch]

    def score(self, texts: Sequence[str]) -> list[Likelihood]:
        return [Likelihood(0.0, self.count_tokens(text)) for text in texts]

    def _write(self, prompt: Prompt, temperature: float, seed: int) -> Completion:
        (whole,) = self.generate(
            [prompt.text], max_new_tokens=prompt.max_new_tokens, temperature=temperature, seed=seed
        )
        completion = whole
        for number, piece in enumerate(re.findall(r"\S+\s*", whole.text)):
            if prompt.is_cancelled is not None and prompt.is_cancelled():
                completion = Completion("", whole.n_prompt_tokens, number, 1.0, "cancelled")
                break
            time.sleep(self.pause_s)
            self.n_written += 1
            if prompt.on_text is not None:
                prompt.on_text(piece)
        if prompt.on_end is not None:
            prompt.on_end(completion)
        return completion


class FakeRetriever:
    """Ranks chunks by the words they share with the question."""

    def search(self, queries: Sequence[str], top_k: int) -> list[list[Hit]]:
        def score(query: str, chunk: SourceChunk) -> float:
            return len(set(query.lower().split()) & set(chunk.text.lower().split())) / 10

        ranked = [sorted(CHUNKS, key=lambda chunk: -score(query, chunk)) for query in queries]
        return [
            [Hit(chunk.chunk_id, score(query, chunk)) for chunk in chunks[:top_k]]
            for query, chunks in zip(queries, ranked, strict=True)
        ]


def fake_release(task_name: str = "fake_task", **changes: Any) -> Release:
    """Return a release of an open-book task that needs no weights."""
    fields: dict[str, Any] = {
        "model_version": f"{task_name}@3",
        "task_type": get_task_type("open_book_qa"),
        "instructions": "Answers questions about charging.",
        "engine": FakeEngine(),
        "retriever": FakeRetriever(),
        "chunks": {chunk.chunk_id: chunk for chunk in CHUNKS},
        "top_k": 2,
        "max_new_tokens": 48,
    }
    fields |= changes
    return Release(**{"has_retrieval": fields["retriever"] is not None} | fields)


def fake_backend(release: Release | None = None, config: ServingConfig | None = None) -> LocalBackend:
    """Return a backend that serves one release under the name of its task."""
    release = release or fake_release()
    return LocalBackend({release.model_version.rpartition("@")[0]: LiveRelease(release, config=config)})


def load(data_root: Path, tasks_dir: Path, task_name: str, name: str) -> Release:
    return fake_release(task_name)


def load_named(data_root: Path, tasks_dir: Path, task_name: str, name: str) -> Release:
    """Load the version that is named, whose instructions, and so whose answers, say which it is."""
    version = read_aliases(Store(data_root), task_name).get(name, name)
    return fake_release(task_name, model_version=version, instructions=f"I am {version}.")


def load_written(data_root: Path, tasks_dir: Path, task_name: str, name: str) -> Release:
    """Load what `load_named` does, with an engine that writes word by word."""
    return _load_writer(data_root, task_name, name, 0.0)


def load_slow(data_root: Path, tasks_dir: Path, task_name: str, name: str) -> Release:
    """Load what `load_named` does, with an engine that takes twenty milliseconds for each word."""
    return _load_writer(data_root, task_name, name, 0.02)


def load_crawling(data_root: Path, tasks_dir: Path, task_name: str, name: str) -> Release:
    """Load what `load_named` does, with an engine that takes almost a second for each word."""
    return _load_writer(data_root, task_name, name, 0.8)


def _load_writer(data_root: Path, task_name: str, name: str, pause_s: float) -> Release:
    version = read_aliases(Store(data_root), task_name).get(name, name)
    return fake_release(task_name, model_version=version, instructions=f"I am {version}.", engine=FakeWriter(pause_s))


def load_missing(data_root: Path, tasks_dir: Path, task_name: str, name: str) -> Release:
    raise UserError(f"There is no model of {task_name!r} yet: train one.")
