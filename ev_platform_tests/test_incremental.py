"""What a weekly run does when nothing changed, when one page did, and when hardly any training row did.

Counted where the work would be done: at the site, at the teacher, at the embedder and at the steps of the optimizer.
"""

import time
from contextlib import closing

import polars as pl
import pytest
from torch.optim.optimizer import register_optimizer_step_post_hook  # noqa: TID253 - every step of a training counts

from ev_platform import retrieval
from ev_platform.collect import site
from ev_platform.settings import get_settings
from ev_platform_tests.dataset import honest
from ev_platform_tests.dataset.test_paid_generation import HOOK, read_tiny_facts
from ev_platform_tests.teachers.anthropic_server import AnthropicServer
from ev_platform_tests.test_graph import ASSETS, URL, Workspace, change_page, set_config
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
def test_work_is_done_once(tmp_path, monkeypatch):
    workspace = Workspace(tmp_path)
    write_tiny_task(workspace.task, write_tiny_model(tmp_path / "model"))
    with (workspace.task / "config.yaml").open("a") as file:
        file.write(TEACHER)
    # Of two pages, one that changed may take the other's place in the validation set: all rows would be others.
    set_config(workspace, "validation_fraction: 0.4", "validation_fraction: 0")
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

        def fingerprints():
            return {table: record.fingerprint for table, record in workspace.current().items() if record}

        def chunks_of(name):
            rows = workspace.read("chunks").join(workspace.read("clean_documents"), on="document_id")
            return set(rows.filter(pl.col("url") == URL[name])["chunk_id"])

        # The first run does all of it, so that the counts below can be trusted.
        assert set(run().computed) == ASSETS
        assert counts.n_bodies >= len(PAGES) and counts.n_calls > 0 and counts.embedded and counts.n_steps == 3

        # Nothing changed.
        assert run().computed == ()
        assert counts.n_bodies == 0 and len(counts.codes) > len(PAGES)
        assert (counts.n_calls, counts.embedded, counts.n_steps) == (0, [], 0)

        # One page changed, and all rows or passages would have to change for another model or version.
        with (workspace.task / "config.yaml").open("a") as file:
            file.write("training: {min_changed_share: 1.0}\n")
        before, adapter = fingerprints(), workspace.current()["adapter"]
        pages, others = workspace.read("documents"), chunks_of("connectors.html")
        versions = workspace.read("chunk_vectors")["passage_id"].to_list()
        change_page(workspace, "index.html", PAGES["index.html"][2] + HOOK)
        result = run()
        assert counts.n_bodies == 1
        old = dict(pages.select("url", "content_sha256").iter_rows())
        new = dict(workspace.read("documents").select("url", "content_sha256").iter_rows())
        assert {url for url in new if new[url] != old[url]} == {URL["index.html"]}
        assert chunks_of("connectors.html") == others
        added = [it for it in workspace.read("chunk_vectors")["passage_id"].to_list() if it not in versions]
        assert 0 < len(added) <= len(chunks_of("index.html"))
        candidates = workspace.read("qa_candidates").filter(pl.col("teacher").is_not_null())
        assert counts.n_calls > 0 and candidates.height
        assert fingerprints()["training_set"] != before["training_set"]
        # The model is kept, and the run says why; the version that answers names the rows it was trained on.
        assert counts.n_steps == 0
        assert "less than training.min_changed_share (1)" in result.kept
        assert "tiny@1 is kept: " in result.kept
        assert workspace.current()["adapter"] == adapter
        assert workspace.read("registered_model").height == 1
        version = workspace.read("registered_model").tail(1).to_dicts()[0]
        assert version["training_set_fingerprint"] == before["training_set"]
        # What it answers from can be reopened, and was not the page of today.
        served = workspace.store.read("chunks", "tiny", version["chunks_version"])["text"].to_list()
        assert not [text for text in served if HOOK.strip() in text]

        # And again nothing changed.
        assert run().computed == ()
        assert (counts.n_bodies, counts.n_calls, counts.embedded, counts.n_steps) == (0, 0, [], 0)

        # The same rows with the default threshold: enough of them changed.
        set_config(workspace, "training: {min_changed_share: 1.0}\n", "")
        result = run()
        assert (counts.n_bodies, counts.n_steps, result.kept) == (0, 3, "")  # a judge is asked about its answers
        assert workspace.read("registered_model")["model_version"].to_list() == ["tiny@1", "tiny@2"]
        counts.hook.remove()
