"""A stored evaluation with everything around it, for tests of what is told about it."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import polars as pl

from ev_platform.evaluation.calibration import GROUPS
from ev_platform.evaluation.summary import summarise
from ev_platform.records import (
    AbstentionScore,
    AbstentionShare,
    BenchmarkVersion,
    Chunk,
    CleanDocument,
    Coverage,
    DatasetRow,
    GateCheck,
    GeneralAnswer,
    InferenceFigure,
    ModelArtifact,
    PairJudgement,
    Prediction,
    Promotion,
    RegisteredModel,
    RetrievalScore,
    SeedScore,
    TeacherCall,
    TeacherEvaluation,
    to_frame,
)
from ev_platform.storage import Store
from ev_platform.tasks import Task

TASK = "charging"
N_ROWS = 24
HOSTILE = "</dd><script>alert(1)</script>"
# Which rows each system answers rightly; the champion knows rows 20 and 21, which the tuned systems have lost.
KNOWN = {
    "first_sentence": {0, 3},
    "base": {0},
    "base_rag": {0, 1, 2, 3, 4, 5},
    "tuned": {0, 1, 2, 3, 4},
    "tuned_rag": set(range(18)),
    "champion": {*range(12), 20, 21},
    "teacher": set(range(22)),
}
AT = datetime(2026, 11, 21, 16, 30, tzinfo=UTC)


class LazyStore(Store):
    """Builds its catalogue when somebody asks for it, and not with each of twenty tables."""

    is_behind = True

    def rebuild_catalogue(self):
        self.is_behind = True
        return super().catalogue

    @property
    def catalogue(self):
        if self.is_behind:
            self.is_behind = False
            super().rebuild_catalogue()
        return super().catalogue


@dataclass(frozen=True)
class Stored:
    """A store with a task in it."""

    store: Store
    task: Task

    def read(self, table):
        return self.store.read(table, TASK)

    def fingerprint(self, table):
        return self.store.current(table, TASK).fingerprint

    def publish(self, table, rows, *inputs, **options):
        frame = rows if isinstance(rows, pl.DataFrame) else to_frame(table, rows)
        known = {name: self.fingerprint(name) for name in inputs}
        return self.store.publish(table, TASK, frame, inputs=known, **options)


def write_task(folder: Path, kind: str = "open_book_qa", config: str = "") -> Task:
    """Write a task folder that evaluation can read."""
    folder.mkdir(parents=True, exist_ok=True)
    job = {"task_description": "Answer questions about <charging>.", "classes_description": {"card": "", "refund": ""}}
    (folder / "job_description.json").write_text(json.dumps(job))
    (folder / "config.yaml").write_text(f"type: {kind}\n{config}")
    return Task(TASK, folder)


def dataset_row(n, split="test", **changes):
    """Return a row about document `n % 3`; every sixth has no answer."""
    known = dict.fromkeys(DatasetRow.__dataclass_fields__) | {
        "example_id": f"exm_{split}_{n:02d}",
        "split": split,
        "question": f"What is question <{n}> of {split} about?",
        "answer": f"about {n} kilowatt",
        "answers": [f"about {n} kilowatt"],
        "is_answerable": n % 6 != 5,
        "chunk_id": f"chk_{n % 3}",
        "document_id": f"doc_{n % 3}",
        "cluster_id": f"doc_{n % 3}",
        "origin": "human",
        "kind": ("number", "reason")[n % 2],
        "context_chunk_ids": [],
        "messages": [],
        "n_tokens": 50 + n,
    }
    return DatasetRow(**known | changes)


def predictions_of(rows, known=None):
    """Return the answers of each system, which are right for the rows that it knows."""
    made = []
    for n, row in enumerate(rows):
        for system, right in (known or KNOWN).items():
            found = system.endswith("_rag") or system in ("champion", "first_sentence")
            score = float(n in right)
            is_floor = system == "first_sentence"
            made.append(
                Prediction(
                    prediction_id=f"prd_{system}_{n}",
                    system=system,
                    example_id=row.example_id,
                    question=row.question,
                    reference=row.answer,
                    prediction=row.answer if n in right else HOSTILE if system == "tuned_rag" else f"no idea, {system}",
                    context_chunk_ids=[f"chk_{n % 3}" if n % 4 else "chk_gone"] if found else [],
                    gold_chunk_id=row.chunk_id,
                    model_id="srv_old" if system == "champion" else f"srv_{system.partition('_')[0]}",
                    n_prompt_tokens=50,
                    n_completion_tokens=4 + n % 3,
                    latency_ms=0.5 if is_floor else 100.0 + n + (200 if found else 0),
                    exact_match=score,
                    token_f1=score or 0.25 * (n % 2),
                    rouge_l=score or 0.3 * (n % 2),
                    rouge_1=score or 0.3 * (n % 2),
                    rouge_2=score,
                    chrf=100 * score or 20.0,
                    meteor=score,
                    groundedness=0.5 + score / 2 if found else None,
                    is_abstention=False,
                    is_answerable=row.is_answerable,
                )
            )
    return to_frame("predictions", made)


@cache
def answers_and_scores():
    """Return the predictions of the stored evaluation and what they score."""
    predictions = predictions_of([dataset_row(n) for n in range(N_ROWS)])
    return predictions, summarise(predictions, resamples=200, seed=17)


def store_evaluation(root: Path) -> Stored:
    """Store test rows, predictions and scores, and nothing else."""
    stored = Stored(LazyStore(root / "data"), write_task(root / "tasks" / TASK))
    rows = [dataset_row(n) for n in range(N_ROWS)]
    stored.publish("clean_documents", [document(n) for n in range(3)])
    stored.publish("chunks", [chunk(n) for n in range(3)])
    stored.publish("benchmark", rows)
    predictions, scores = answers_and_scores()
    stored.publish("predictions", predictions, "benchmark", "chunks")
    stored.publish("eval_report", scores, "predictions", config={"libraries": {"sacrebleu": "9.9.9"}})
    return stored


def document(n):
    """Return a page; the third one's address is none that may be a link."""
    url = "javascript:alert(2)" if n == 2 else f"https://plugs.example/{n}?a=1&b=2"
    known = dict.fromkeys(CleanDocument.__dataclass_fields__) | {
        "document_id": f"doc_{n}",
        "cluster_id": f"doc_{n}",
        "url": url,
        "fetched_url": url,
        "kind": "web",
        "title": f"Plugs | {n}",
        "publisher": "Plug Press",
        "licence": "CC-BY-4.0",
        "language": "en",
        "language_score": 1.0,
        "robots": "allowed",
        "fetched_at": AT,
        "text": "Plugs.",
        "page_offsets": [],
        "n_chars": 6,
        "n_masked": 0,
        "n_boilerplate_lines": 0,
    }
    return CleanDocument(**known)


def chunk(n):
    """Return the one passage of a page."""
    return Chunk(f"chk_{n}", f"doc_{n}", f"doc_{n}", 0, 0, 6, "Plugs", None, "Plugs.", 2)


def store_surroundings(stored: Stored) -> None:
    """Store every other table that the report tells of, each computed from what is there."""
    trained = [dataset_row(n, "train", document_id=f"doc_t{n}", cluster_id=f"doc_t{n}") for n in range(4)]
    stored.publish("training_set", trained)
    figures = {"train_seconds": 124.4, "energy_kwh": 0.0123, "n_rows": 117, "device": "cpu", "validation_loss": 0.65}
    adapter = ModelArtifact("ad_1", "adapter", "artifacts/adapter/ad_1", "tiny-base", "{}", "{}", "0", 13_000_000, "")
    stored.publish("adapter", [replace_metrics(adapter, figures)])
    seen = stored.fingerprint("benchmark")
    stored.publish(
        "benchmark_versions",
        [
            BenchmarkVersion("charging-bench@1", 1, AT, "v0", "gone", 8, 1, 8, 0, "The first version.", "# old card"),
            BenchmarkVersion("charging-bench@2", 2, AT, "v1", seen, 24, 3, 16, 0, "16 rows were added.", "# card"),
        ],
        "benchmark",
    )
    stored.publish(
        "retrieval_report",
        [
            RetrievalScore(method, "chunk", metric, value, value - 0.1, value + 0.05, 24)
            for method in ("lexical", "embedding", "hybrid")
            for metric, value in (("recall@1", 0.5), ("recall@5", 0.9), ("mrr", 0.7))
        ],
        "benchmark",
        "chunks",
    )
    scored = [
        ("trained", "human", "Which plug is it?", 0.6),
        ("strange", "cooking", "How long do I boil an egg?", 0.1),
        ("strange_held_out", "law", "Can my landlord plug the door?", 0.45),
        ("strange_held_out", "law", "Do I have to declare a gift?", 0.05),
        ("answerable", "benchmark", "Who signed it?", 0.2),
        ("answerable", "benchmark", "Which plug fits?", 0.7),
    ]
    reason = "Below 0.350 lie 0 of 1 questions of the task (2% may) and 1 of 1 outside it."
    scores = [AbstentionScore(*question, question[-1] < 0.35) for question in scored]
    counts = {group: [row.is_refused for row in scores if row.group == group] for group in GROUPS}
    shares = [
        AbstentionShare(group, len(own), sum(own), sum(own) / len(own) if own else None, 0.1, 0.9, 0.35, reason)
        for group, own in counts.items()
    ]
    stored.publish("abstention_calibration", shares, "benchmark")
    stored.publish("abstention_scores", scores, "benchmark")
    stored.publish(
        "general_answers",
        [
            GeneralAnswer(model, f"srv_{model}", f"{kind}_{n}", kind, "Text", "yes", "yes", score, 10)
            for model, right in (("base", 1.0), ("tuned", 0.0))
            for kind, score in (("question", right), ("text", 2.0))
            for n in range(2)
        ],
    )
    stored.publish(
        "inference_benchmark",
        [
            InferenceFigure(model, f"srv_{model}", at_once, 8, 300.0, 500.0, 600.0, 80.0, 25.5, 2_500_000_000, 0.0123)
            for model in ("base", "tuned")
            for at_once in (1, 4)
        ],
        "benchmark",
    )
    seeds = [SeedScore(seed, "tuned_rag", "token_f1", 0.3 + seed / 100, 24) for seed in (1, 2, 3)]
    stored.publish("seed_scores", seeds)
    stored.publish(
        "pair_judgements",
        [
            PairJudgement(f"exm_test_{n:02d}", "tuned_rag", "base_rag", verdict, None, "ok", human, ["cal_1"], 0.001)
            for n, (verdict, human) in enumerate(
                [("better", "better"), ("better", None), ("worse", "better"), ("tie", None), ("inconsistent", None)]
            )
        ],
        "predictions",
    )
    rows = [("covered", 2), ("covered", 1), ("nothing_found", 0), ("held_out", 0)]
    stored.publish(
        "coverage",
        [
            Coverage(f"chk_{n}", None, None, None, 100, 1, count, 0, count, status, None)
            for n, (status, count) in enumerate(rows)
        ],
        "chunks",
    )
    call = TeacherCall("cal_1", "judge", "t", "claude", "p1", "ok", None, 90, 10, 0, 0, False, 0.005, None, AT, 12.0)
    stored.publish("teacher_calls", [call])
    examined = TeacherEvaluation("t", "p1", 24, 24, "token_f1", 0.9, "{}", "{}", "proceed", "Good.", None, False, 0.1)
    stored.publish("teacher_evaluation", [examined])
    store_gate(stored)


def replace_metrics(artifact, figures):
    """Return an artifact with the figures of its making."""
    values = {name: getattr(artifact, name) for name in ModelArtifact.__dataclass_fields__}
    return ModelArtifact(**values | {"metrics": json.dumps(figures)})


def store_gate(stored: Stored) -> None:
    """Register the evaluated model as version 2, and keep it back at the gate."""
    known = dict.fromkeys(RegisteredModel.__dataclass_fields__) | {
        "model_version": "charging@2",
        "number": 2,
        "registered_at": AT,
        "serving_model_id": "srv_tuned",
        "adapter_id": "ad_1",
        "benchmark_fingerprint": stored.fingerprint("benchmark"),
        "chunks_fingerprint": stored.fingerprint("chunks"),
        "weights_sha256": "5af3",
    }
    stored.publish("registered_model", [RegisteredModel(**{k: "" if v is None else v for k, v in known.items()})])
    check = "not_worse_than_champion"
    failed = GateCheck("charging@2", "charging@1", check, False, -0.11, -0.02, "It loses 0.11, and 0.02 may be lost.")
    passed = GateCheck("charging@2", "charging@1", "enough_rows", True, 24, 20, "24 rows of at least 20.")
    stored.publish("promotion_gate", [failed, passed])
    reason = "charging@1 stays: not_worse_than_champion failed."
    kept = Promotion(AT, "kept", "charging@2", "charging@1", "charging@1", reason, [check], "gate")
    stored.publish("promotions", [kept])


def store_labels(root: Path, labels=("card", "refund", "card/lost", "$ex $change"), n_rows=N_ROWS) -> Stored:
    """Store an evaluation of labels: the tuned model takes every fourth row for the next label."""
    stored = Stored(LazyStore(root / "data"), write_task(root / "tasks" / TASK, "classification"))
    rows = [
        dataset_row(n, question=f"Text {n}", answer=labels[n % len(labels)], chunk_id=None, document_id=None)
        for n in range(n_rows)
    ]
    stored.publish("benchmark", rows)
    known = {"majority": {0}, "base": {0, 1}, "tuned": {n for n in range(n_rows) if n % 4 != 3}}
    frame = predictions_of(rows, known).with_columns(context_chunk_ids=pl.lit([], dtype=pl.List(pl.String)))
    after = {label: labels[(n + 1) % len(labels)] for n, label in enumerate(labels)}
    wrong = pl.when(pl.col("system") == "tuned").then(pl.col("reference").replace_strict(after)).otherwise(pl.lit("?"))
    frame = frame.with_columns(
        prediction=pl.when(pl.col("exact_match") == 1).then("reference").otherwise(wrong), gold_chunk_id=None
    ).cast({"gold_chunk_id": pl.String})
    stored.publish("predictions", frame, "benchmark")
    stored.publish("eval_report", summarise(frame, resamples=100, seed=17, is_labels=True), "predictions")
    return stored
