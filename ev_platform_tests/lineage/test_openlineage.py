"""What a lineage catalogue is told, as it arrives at a real HTTP server and in a file."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from typer.testing import CliRunner

from ev_platform import settings
from ev_platform.cli import app
from ev_platform.errors import UserError
from ev_platform.lineage.models import load_models
from ev_platform.lineage.openlineage import lineage_events, send_events, write_events
from ev_platform.records import to_frame
from ev_platform.storage import Store
from ev_platform_tests.evaluation.stored import chunk, document

pytest.importorskip("openlineage.client", reason="the extra `openlineage` is not installed")
MODELS = len(load_models())


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Two versions of the documents, and passages made from the second."""
    store = Store(tmp_path_factory.mktemp("stored") / "data")
    store.publish("clean_documents", "charging", to_frame("clean_documents", [document(0)]))
    both = store.publish("clean_documents", "charging", to_frame("clean_documents", [document(0), document(1)]))
    inputs = {"clean_documents": both.fingerprint, "base_model": "0" * 64, "a setting": "1" * 64}
    store.publish("chunks", "charging", to_frame("chunks", [chunk(0)]), inputs=inputs)
    return store


@pytest.fixture
def catalogue():
    """A server that keeps what it is sent, and refuses it while `status` says so."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            server.got.append((self.path, self.headers.get("Authorization"), json.loads(body)))
            self.send_response(server.status)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.got, server.status, server.url = [], 201, f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def told(store, tmp_path, *options):
    write_events(lineage_events(store, *options), tmp_path / "events.jsonl")
    return [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]


def test_each_version_is_a_run_that_starts_and_completes(stored, tmp_path):
    events = told(stored, tmp_path)
    runs = [event for event in events if "run" in event]
    assert [(event["job"]["name"], event["eventType"]) for event in runs] == [
        ("charging.clean_documents", "START"),
        ("charging.clean_documents", "COMPLETE"),
        ("charging.clean_documents", "START"),
        ("charging.clean_documents", "COMPLETE"),
        ("charging.chunks", "START"),
        ("charging.chunks", "COMPLETE"),
    ]
    assert len({event["run"]["runId"] for event in runs}) == 3
    assert {event["run"]["facets"]["parent"]["job"]["name"] for event in runs} == {"charging"}
    assert len(events) == len(runs) + MODELS


def test_run_names_its_rows_schema_and_the_version_it_read(stored, tmp_path):
    (made,) = [
        e for e in told(stored, tmp_path) if e["job"]["name"] == "charging.chunks" and e["eventType"] == "COMPLETE"
    ]
    (output,) = made["outputs"]
    record, source = stored.current("chunks", "charging"), stored.current("clean_documents", "charging")
    assert output["name"] == "charging/chunks"
    assert output["facets"]["version"]["datasetVersion"] == record.fingerprint
    assert output["outputFacets"]["outputStatistics"]["rowCount"] == 1
    types = {field["name"]: field["type"] for field in output["facets"]["schema"]["fields"]}
    assert (types["chunk_id"], types["n_tokens"]) == ("VARCHAR", "BIGINT")
    assert [dataset["name"] for dataset in made["inputs"]] == ["charging/base_model", "charging/clean_documents"]
    read = made["inputs"][1]
    assert read["facets"]["version"]["datasetVersion"] == source.fingerprint
    assert read["inputFacets"]["inputStatistics"]["rowCount"] == 2
    assert "inputStatistics" not in made["inputs"][0]["inputFacets"]  # a version that is not stored


def test_models_tell_their_columns_origins(stored, tmp_path):
    (view,) = [event for event in told(stored, tmp_path) if event["job"]["name"] == "charging.chunk_sources"]
    (output,) = view["outputs"]
    origins = output["facets"]["columnLineage"]["fields"]
    assert origins["url"]["inputFields"] == [
        {"namespace": "ev-platform", "name": "charging/document_sources", "field": "url", "transformations": []}
    ]
    assert {"charging/chunks", "charging/document_sources"} == {dataset["name"] for dataset in view["inputs"]}
    assert view["job"]["facets"]["sql"]["query"].startswith("-- From which address")
    assert "run" not in view


def test_telling_it_again_tells_the_same(stored, tmp_path):
    assert told(stored, tmp_path) == told(stored, tmp_path)


def test_another_namespace_gives_other_runs(stored, tmp_path):
    ids = [{e["run"]["runId"] for e in told(stored, tmp_path, None, name) if "run" in e} for name in ("here", "there")]
    assert ids[0].isdisjoint(ids[1])


def test_events_arrive_with_the_key(stored, catalogue):
    n = send_events(lineage_events(stored, "charging"), catalogue.url, "secret")
    assert n == len(catalogue.got) == 6 + MODELS
    assert {(path, key) for path, key, _ in catalogue.got} == {("/api/v1/lineage", "Bearer secret")}


def test_path_of_the_address_is_used(stored, catalogue):
    send_events(list(lineage_events(stored))[:1], f"{catalogue.url}/openapi/lineage/")
    assert [(path, key) for path, key, _ in catalogue.got] == [("/openapi/lineage", None)]


def test_catalogue_that_refuses_is_said(stored, catalogue):
    catalogue.status = 403
    with pytest.raises(UserError, match=r"127\.0\.0\.1:\d+ took 0 events, then not: 403"):
        send_events(lineage_events(stored), catalogue.url)


@pytest.mark.parametrize("address", ["localhost", "ftp://host/x", "http://", "events.json"])
def test_address_that_is_none_is_refused(stored, address):
    with pytest.raises(UserError, match=r"is no address: give http"):
        send_events(lineage_events(stored), address)


def test_task_without_anything_is_refused(stored, tmp_path):
    with pytest.raises(UserError, match="Nothing is stored for the task 'trains'"):
        told(stored, tmp_path, "trains")


def test_command_writes_a_file(own_folders, stored, monkeypatch):
    monkeypatch.setenv("EV_DATA_DIR", str(stored.root))
    settings.get_settings.cache_clear()
    file = own_folders / "events.jsonl"
    for _ in range(2):
        result = CliRunner().invoke(app, ["openlineage", "charging", "--to", str(file)])
        assert result.exit_code == 0, result.output
        assert f"{6 + MODELS} events to" in result.output
        assert len(file.read_text().splitlines()) == 6 + MODELS
