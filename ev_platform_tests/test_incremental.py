"""What a weekly run does when nothing changed.

Counted where the work would be done: at the site, at the teacher, at the embedder and at the steps of the optimizer.
"""

import time
from contextlib import closing

import pytest
from torch.optim.optimizer import register_optimizer_step_post_hook  # noqa: TID253 - every step of a training counts

from ev_platform import retrieval
from ev_platform.collect import site
from ev_platform.settings import get_settings
from ev_platform_tests.dataset import honest
from ev_platform_tests.dataset.test_paid_generation import read_tiny_facts
from ev_platform_tests.teachers.anthropic_server import AnthropicServer
from ev_platform_tests.test_graph import ASSETS, Workspace
from ev_platform_tests.tiny import PAGES, write_tiny_model, write_tiny_task

TEACHER = "teacher: {provider: anthropic, model: claude-sonnet-4-5, max_tokens: 600}\n"


class Counts:
    """Work done since `start`."""

    def __init__(self, patch, server):
        self.server, embed = server, retrieval.embed

        def counting_embed(texts):
            self.embedded += texts
            return embed(texts)

        patch.setattr(retrieval, "embed", counting_embed)
        patch.setattr(site._QuietHandler, "log_request", lambda _, code, size="-": self.codes.append(int(code)))
        self.hook = register_optimizer_step_post_hook(self._step)
        self.start()

    def start(self):
        self.codes, self.embedded, self.n_steps, self.asked = [], [], 0, []
        self.n_calls_before = self.server.stats()["n_requests"]

    def _step(self, *_):
        self.n_steps += 1

    @property
    def n_calls(self):
        return self.server.stats()["n_requests"] - self.n_calls_before

    @property
    def n_bodies(self):
        return self.codes.count(200)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_run_in_which_nothing_changed_fetches_asks_embeds_and_trains_nothing(tmp_path, monkeypatch):
    workspace = Workspace(tmp_path)
    write_tiny_task(workspace.task, write_tiny_model(tmp_path / "model"))
    with (workspace.task / "config.yaml").open("a") as file:
        file.write(TEACHER)
    server = AnthropicServer(tmp_path / "server.jsonl", answerer=lambda request: honest.reply(request, read_tiny_facts))
    monkeypatch.setenv("ANTHROPIC_API_KEY", "test-key")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
    get_settings.cache_clear()
    with closing(server), workspace.graph() as defs:
        from ev_platform.defs.run import materialize

        counts = Counts(monkeypatch, server)

        def run():
            counts.start()
            started = time.monotonic()
            result = materialize(defs, workspace.store.root, "tiny")
            told = f"{counts.n_bodies} bodies of {len(counts.codes)} requests, {counts.n_calls} calls of the teacher, "
            told += f"{len(counts.embedded)} texts embedded, {counts.n_steps} steps, {len(result.computed)} tables"
            print(f"\n{time.monotonic() - started:.1f} s: {told}")
            return result

        # The first run does all of it, so that the counts below can be trusted.
        assert set(run().computed) == ASSETS
        assert counts.n_bodies >= len(PAGES) and counts.n_calls > 0 and counts.embedded and counts.n_steps == 3

        # Nothing changed.
        assert run().computed == ()
        assert counts.n_bodies == 0 and len(counts.codes) > len(PAGES)
        assert (counts.n_calls, counts.embedded, counts.n_steps) == (0, [], 0)
        counts.hook.remove()
