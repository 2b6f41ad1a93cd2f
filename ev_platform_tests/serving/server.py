"""The application on a port of this machine, with clients that hold keys."""

import contextlib

import httpx

from ev_platform.serving.api import create_api
from ev_platform.serving.config import ServingConfig
from ev_platform.serving.keys import UNLIMITED, create_key
from ev_platform.serving.replay import served
from ev_platform.tasks.types import get_task_type
from ev_platform_tests.serving.fakes import fake_backend, fake_release

QUESTION = "How often must one test the RCD?"


class Server:
    """Answers with a backend, or with one release under the name of its task."""

    def __init__(self, root, release=None, backend=None, config=None):
        self.root = root
        config = config or ServingConfig()
        self._open = contextlib.ExitStack()
        self.release = release or fake_release()
        local = None if backend else fake_backend(self.release, config)
        self.backend = backend or local
        self.url = self._open.enter_context(served(create_api(self.backend, root, config), local))
        self.key = create_key(root, "tests", limits=UNLIMITED)
        self.client = self.client_of(self.key)

    def client_of(self, key):
        headers = {"Authorization": f"Bearer {key}"}
        return self._open.enter_context(httpx.Client(base_url=self.url, headers=headers, timeout=20))

    def ask(self, content=QUESTION, **fields):
        body = {"messages": [{"role": "user", "content": content}], **fields}
        return self.client.post("/v1/chat/completions", json=body)

    def answer(self, question=QUESTION, **fields):
        return self.client.post("/v1/answers", json={"question": question, **fields})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._open.close()


def error_of(answer):
    """Return the error, after checking that it has OpenAI's form."""
    assert set(answer.json()) == {"error"}
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "code", "param"}
    return error


def labels_release(task_name="fake_labels", **changes):
    labels = get_task_type("classification")
    return fake_release(
        task_name,
        task_type=labels,
        instructions=labels.instructions("Route the text.", {"card": ""}),
        retriever=None,
        chunks={},
        labels=("card", "refund"),
        **changes,
    )


def span_release(task_name="fake_spans", **changes):
    return fake_release(
        task_name, task_type=get_task_type("extractive_qa"), retriever=None, chunks={}, has_retrieval=True, **changes
    )
