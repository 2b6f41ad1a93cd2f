"""A small store in which one page's sentences stand in every place that keeps words, and a search that finds them."""

import gzip
import html
import json
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import polars as pl

from ev_platform import records
from ev_platform.identity import short_id
from ev_platform.prompting import passage_text
from ev_platform.records import schema_of, to_frame
from ev_platform.registry.aliases import write_aliases
from ev_platform.serving.journal import Journal
from ev_platform.storage import Store
from ev_platform.teachers.calls import Reply, Usage
from ev_platform.teachers.ledger import Ledger, Settled, ledger_path
from ev_platform_tests.serving.rows import judged, served
from ev_platform_tests.teachers.fake_client import make_call

TASK = "tiny"
URL, KEPT_URL, COPY_URL = (f"https://a.example/{name}" for name in ("planted", "kept", "copy"))
SENTENCES = [
    "The violet marmalade inverter hums “softly” whenever three herons cross the frozen car park.",
    "Nobody at Quillfeather Works ever measured the seventh busbar with a borrowed thermometer.",
]
PLANTED = "\n\n".join(SENTENCES)
KEPT = "A resistor of 220 ohm between the proximity contact and earth marks a charging cable for 32 amperes."
DOC, KEPT_DOC, COPY_DOC = (f"doc_{digit * 20}" for digit in "abc")
CHUNK, KEPT_CHUNK = f"chk_{'a' * 20}", f"chk_{'b' * 20}"
EXAMPLE, KEPT_EXAMPLE = f"exm_{'a' * 20}", f"exm_{'b' * 20}"
AT = datetime(2026, 11, 20, tzinfo=UTC)


def row(table, **fields):
    """Return a row of a table, empty but for some fields."""
    empty = {
        name: [] if isinstance(kind, pl.List) else AT if isinstance(kind, pl.Datetime) else None
        for name, kind in schema_of(table).items()
    }
    return records.TABLES[table](**empty | fields)


def publish(store, table, *rows, **options):
    return store.publish(table, TASK, to_frame(table, [row(table, **each) for each in rows]), **options)


def plant(root: Path, *, copy: bool = False) -> Store:
    """Fill a store; with `copy` the same text was also fetched under another address."""
    store = Store(root)
    store.rebuild_catalogue = lambda: store.catalogue  # built once, below
    page = html.escape(PLANTED)
    (_, path), (_, kept_path) = (store.put_blob(f"<p>{text}</p>".encode()) for text in (page, KEPT))
    bodies = [{"url": URL, "final_url": URL, "path": path}, {"url": KEPT_URL, "final_url": KEPT_URL, "path": kept_path}]
    documents = [
        {"document_id": DOC, "url": URL, "text": PLANTED},
        {"document_id": KEPT_DOC, "url": KEPT_URL, "text": KEPT},
    ]
    documents = [each | {"fetched_url": each["url"], "cluster_id": each["document_id"]} for each in documents]
    without_cluster = [{n: v for n, v in each.items() if n != "cluster_id"} for each in documents]
    copies = []
    if copy:
        bodies.append({"url": COPY_URL, "final_url": COPY_URL, "path": path})
        copies = [
            {"document_id": COPY_DOC, "url": COPY_URL, "fetched_url": COPY_URL, "text": PLANTED, "duplicate_of": DOC}
        ]
        copies = [each | {"drop_reason": "exact_duplicate"} for each in copies]
    chunks = [
        {"chunk_id": CHUNK, "document_id": DOC, "text": PLANTED, "heading_path": "Marmalade"},
        {"chunk_id": KEPT_CHUNK, "document_id": KEPT_DOC, "text": KEPT, "heading_path": "Cables"},
    ]
    vectors = [short_id("psg", passage_text(each["heading_path"], each["text"])) for each in chunks]
    call = make_call(1)
    ledger = Ledger(ledger_path(root))
    ledger.claim([call], "anthropic:x")
    reply = Reply("ok", text=json.dumps({"evidence": PLANTED}), usage=Usage(1, 1, 0, 0))
    ledger.store([Settled(call.call_id, "ok", None, reply, 0.1)])
    ledger.close()
    asked = {"question": f"Is it true? {SENTENCES[0]}", "answer": "yes"}
    examples = [
        dict(example_id=EXAMPLE, chunk_id=CHUNK, document_id=DOC, call_id=call.call_id, evidence=PLANTED, **asked),
        {
            "example_id": KEPT_EXAMPLE,
            "chunk_id": KEPT_CHUNK,
            "document_id": KEPT_DOC,
            "question": "Which cable?",
            "answer": "32 A",
        },
    ]
    ids = ("example_id", "chunk_id", "document_id", "question", "answer")
    dataset = [{name: each[name] for name in ids} for each in examples]
    messages = [{"role": "user", "content": f"{PLANTED} Which page?"}]
    beside = dataset[1] | {
        "example_id": f"exm_{'c' * 20}",
        "context_chunk_ids": [KEPT_CHUNK, CHUNK],
        "messages": messages,
    }
    config = {"rows": [{"answer": PLANTED}]}
    for _ in range(2):  # two versions of everything
        publish(store, "raw_pages", *bodies)
        publish(
            store, "documents", *without_cluster, *({n: v for n, v in c.items() if n != "duplicate_of"} for c in copies)
        )
        publish(store, "clean_documents", *documents)
        publish(store, "dropped_documents", *copies)
        passages = publish(store, "chunks", *chunks)
        publish(store, "chunk_vectors", *({"passage_id": it, "embedder": "e", "vector": [0.5]} for it in vectors))
        publish(store, "qa_candidates", *examples, config=config)
        publish(store, "examples", *examples)
        trained = publish(store, "training_set", *dataset, beside)
    newest = publish(store, "training_set", dataset[1])
    publish(store, "generation_log", {"source_id": CHUNK, "call_id": call.call_id}, {"source_id": KEPT_CHUNK})
    publish(store, "coverage", {"source_id": CHUNK, "document_id": DOC, "heading_path": SENTENCES[1]})
    publish(store, "teacher_calls", {"call_id": call.call_id, "detail": SENTENCES[0]})
    publish(store, "benchmark_versions", {"benchmark": "tiny-bench@1", "card": f"# Card\n\n> {SENTENCES[1]}"})
    publish(
        store,
        "predictions",
        {"example_id": EXAMPLE, "question": asked["question"], "prediction": "yes", "reference": "yes"},
        {"example_id": KEPT_EXAMPLE, "question": "Which cable?", "prediction": KEPT, "context_chunk_ids": [KEPT_CHUNK]},
    )
    model = {"chunks_version": passages.version, "adapter_id": "a1", "serving_model_id": "m1", "registered_at": AT}
    publish(
        store,
        "registered_model",
        model | {"model_version": "tiny@1", "training_set_version": trained.version},
        model
        | {
            "model_version": "tiny@2",
            "training_set_version": newest.version,
            "adapter_id": "a2",
        },
    )
    write_aliases(store, TASK, {"champion": "tiny@1"})
    requests, feedback = Journal(root, "requests"), Journal(root, "feedback")
    requests.add(served("req_1", chunk_ids=[CHUNK], answer=SENTENCES[1]))
    requests.add(served("req_2", chunk_ids=[KEPT_CHUNK]))
    feedback.add(judged("fb_1", request_id="req_1", comment=f"wrong: {SENTENCES[0]}", chunk_ids=[]))
    requests.close()
    feedback.close()
    for name, text in (
        (f"reports/{TASK}.html", f"<p>{page}</p>"),
        (f"reports/{TASK}_judgements.csv", f'question,better\n"{SENTENCES[1]}",A\nkept,B\n'),
        ("serving/server.log", f"one line\nfailed on {json.dumps(SENTENCES[0])}\nlast line\n"),
        ("wandb/wandb/run-1/files/output.log", PLANTED),
        ("checkpoints/run_1/state.json", "{}"),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    (root / "wandb" / "wandb" / "run-1" / "old.log.gz").write_bytes(gzip.compress(PLANTED.encode()))
    _run_in_dagster(root)
    del store.rebuild_catalogue
    store.rebuild_catalogue()
    return store


def _run_in_dagster(root):
    from ev_platform.defs.run import dagster_home
    from ev_platform.defs.stage import describe

    for name, text in (("planted", PLANTED), ("kept", KEPT)):
        frame = to_frame("chunks", [row("chunks", chunk_id=CHUNK if name == "planted" else KEPT_CHUNK, text=text)])

        metadata = describe("chunks", frame) | {"text": text}
        asset = shown_asset(f"{name}_chunks", metadata)
        with dg.DagsterInstance.from_config(str(dagster_home(root))) as instance:
            assert dg.materialize([asset], instance=instance).success


def shown_asset(name, metadata):
    @dg.asset(name=name)
    def asset():
        return dg.MaterializeResult(metadata=metadata)

    return asset


def texts(file: Path):
    """Yield all that can be read in a file, by other means than the product's."""
    data = file.read_bytes()
    yield data.decode("utf-8", "ignore")
    if data[:4] == b"PAR1":
        yield from (json.dumps(c.to_list(), default=str, ensure_ascii=False) for c in pl.read_parquet(file))
    elif data[:15] == b"SQLite format 3":
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as database:
            for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                yield from (repr(each) for each in database.execute(f'SELECT * FROM "{table}"'))
    elif data[:2] == b"\x1f\x8b":
        yield gzip.decompress(data).decode()


def files_with_planted(root: Path) -> set[str]:
    """Return the files that hold the better part of a planted sentence, escaped or not."""
    parts = [part for sentence in SENTENCES for part in (sentence[:45], sentence[-45:])]
    forms = {form for part in parts for form in (part, html.escape(part), json.dumps(part)[1:-1])}
    forms |= {json.dumps(form)[1:-1] for form in forms}
    return {
        str(file.relative_to(root))
        for file in root.rglob("*")
        if file.is_file() and any(form in text for text in texts(file) for form in forms)
    }
