"""A process that asks a local Anthropic server and can be killed at a stated moment.

`main` runs in a process of its own; `arm` says when it dies.
"""

import os
import signal
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel

from ev_platform.tasks.config import TeacherConfig
from ev_platform.teachers.anthropic_client import AnthropicClient
from ev_platform.teachers.ask import Budget, Ledger, Pauses, ask
from ev_platform.teachers.calls import Call
from ev_platform.teachers.prices import price_of

MODEL = "claude-haiku-4-5"
PAUSES = Pauses(first_s=0.05, longest_s=0.2, appear_s=1.0)


class Pair(BaseModel):
    """What is asked for."""

    question: str
    answer: str


def make_calls(n, topic="cables", n_words=600):
    for i in range(n):
        passage = (
            f"Charging station {i} about {topic} delivers {i + 3} kilowatts to an electric car. " + "word " * n_words
        )
        yield Call("generate", MODEL, "v1", "Write a question and its answer.", passage, Pair, 300)


def make_config(**changes):
    fields = {"provider": "anthropic", "model": MODEL, "use_batches": False, "timeout_s": 10.0}
    return TeacherConfig(**{**fields, **changes})


def connect(url, config):
    """Return a client that speaks through the real SDK."""
    return AnthropicClient(config, "test-key", base_url=url)


def start(calls, client, ledger, config, budget):
    """Ask."""
    return ask(
        calls, client, ledger, config, teacher=f"anthropic:{MODEL}", price=price_of(config), spent=budget, pauses=PAUSES
    )


def die():
    os.kill(os.getpid(), signal.SIGKILL)


class DyingLedger(Ledger):
    """Dies in the middle of the transaction that stores a batch's results."""

    is_dying = False

    def store(self, settled, *, batch=None):
        self.is_dying = batch is not None
        super().store(settled, batch=batch)

    @contextmanager
    def _writing(self):
        with super()._writing() as db:
            yield db
            if self.is_dying:
                die()


def arm(point):
    """Let this process die at a stated point of a batch's life."""
    make, look = AnthropicClient.create_batch, AnthropicClient.get_batch
    results, n_looks = AnthropicClient.batch_results, Counter()

    def create_batch(self, calls):
        if point == "before create":
            die()
        made = make(self, calls)
        if point == "after create":
            die()
        return made

    def get_batch(self, batch_id):
        n_looks[batch_id] += 1
        if point == "while polling" and n_looks[batch_id] == 2:
            die()
        return look(self, batch_id)

    def batch_results(self, batch_id):
        got = results(self, batch_id)
        if point == "before storing":
            die()
        return got

    AnthropicClient.create_batch, AnthropicClient.get_batch = create_batch, get_batch
    AnthropicClient.batch_results = batch_results


def main(url, ledger, n, config, topic="cables", point=None):
    if point:
        arm(point)
    book = (DyingLedger if point == "while storing" else Ledger)(Path(ledger))
    settings = make_config(**config)
    for _ in start(make_calls(n, topic), connect(url, settings), book, settings, Budget(100)):
        pass
