"""Every export format, read back by what will read it, and the card against the tables."""

import csv
import json
import re
from datetime import UTC, datetime

import polars as pl
import pytest
import yaml

from ev_platform.dataset.card import COLUMNS
from ev_platform.dataset.export import FORMATS, RECORD, export_dataset, find_spans
from ev_platform.errors import UserError
from ev_platform.records import (
    Chunk,
    CleanDocument,
    DatasetRow,
    DroppedDocument,
    Example,
    ModelArtifact,
    RejectedExample,
    Review,
    TeacherCall,
    TeacherEvaluation,
    to_frame,
)
from ev_platform.storage import Store
from ev_platform.tasks import Task
from ev_platform_tests.tiny import write_tiny_tokenizer

HOUR = datetime(2026, 11, 21, 6, 35, 12, tzinfo=UTC)
PASSAGE = "A station at home gives 11 kW. An electrician tests it, and the operator writes 11 into the log."
# Llama 2's template, as far as one turn needs it, and the one of Mistral's first model, which refuses system messages.
LLAMA = (
    "{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ '<s>[INST] <<SYS>>\\n' + m['content'] + '\\n<</SYS>>\\n\\n' }}"
    "{% elif m['role'] == 'user' %}{{ m['content'] + ' [/INST]' }}{% else %}{{ ' ' + m['content'] + ' </s>' }}"
    "{% endif %}{% endfor %}"
)
MISTRAL = (
    "{{ '<s>' }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system message here') }}"
    "{% elif m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% else %}{{ m['content'] + '</s>' }}"
    "{% endif %}{% endfor %}"
)


def blank(record, /, **values):
    fields = record.__dataclass_fields__
    return record(**(dict.fromkeys(fields) | values))


def row_of(number, split, *, answer="11 kW", document="d1", **changes):
    question = f"Question {split} {number}?"
    values = {
        "example_id": f"exm_{split}_{number}",
        "split": split,
        "question": question,
        "answer": answer,
        "answers": [answer],
        "is_answerable": True,
        "chunk_id": document and f"chk_{document}",
        "document_id": document,
        "cluster_id": document and f"clu_{document}",
        "origin": "generated" if split != "test" else "human",
        "kind": "number",
        "context_chunk_ids": [f"chk_{document}"] if document else [],
        "instruction": "Answer from the passages.",
        "input": f"{PASSAGE}\n\nQuestion: {question}",
        "output": answer,
        "n_tokens": 40,
        "n_answer_tokens": 4,
    } | changes
    values["messages"] = [
        {"role": "system", "content": values["instruction"]},
        {"role": "user", "content": values["input"]},
        {"role": "assistant", "content": values["output"]},
    ]
    return blank(DatasetRow, **values)


def page(name, licence="CC-BY-4.0", publisher="Ann | Co", title="Charging <at> home"):
    values = {"document_id": name, "url": f"https://a.example/{name}", "fetched_at": HOUR, "language": "en"}
    return blank(CleanDocument, **values, licence=licence, publisher=publisher, title=title)


def example(row, **changes):
    shared = {name: getattr(row, name) for name in Example.__dataclass_fields__ if hasattr(row, name)}
    shared |= {"split": "test" if row.split == "test" else "train"}
    return blank(Example, **(shared | changes))


def publish(store, task, **tables):
    for table, rows in tables.items():
        store.publish(table, task.name, to_frame(table, rows))


def make_task(folder, config="type: open_book_qa"):
    folder.mkdir(parents=True)
    (folder / "job_description.json").write_text('{"task_description": "Answer questions about charging: at home."}')
    (folder / "config.yaml").write_text(config)
    return Task(folder.name, folder)


class Tables(Store):
    """A store without a catalogue: nothing here reads it, and building it for every table takes seconds."""

    def rebuild_catalogue(self):
        return self.catalogue


@pytest.fixture
def store(tmp_path):
    return Tables(tmp_path / "data")


@pytest.fixture
def task(tmp_path):
    return make_task(tmp_path / "charging")


@pytest.fixture
def filled(store, task):
    """A dataset of two training, one validation and one test row over three pages, with all that happened to it."""
    train = [row_of(1, "train"), row_of(2, "train", answer="an electrician", document="d2")]
    validation, test = row_of(1, "validation", document="d2"), row_of(1, "test", document="d3")
    asked = {"teacher": "anthropic:claude", "prompt_version": "pv1", "cost_usd": 0.0125, "call_id": "call_1"}
    rejected = {"question": "q", "answer": "a", "origin": "generated", "kind": "number"}
    dropped = {"url": "u", "fetched_url": "u", "kind": "web", "publisher": "p", "licence": "l", "fetched_at": HOUR}
    publish(
        store,
        task,
        chunks=[
            Chunk(f"chk_d{n}", f"d{n}", f"clu_d{n}", 0, 0, 99, "Home", 4 if n == 2 else None, PASSAGE, 30)
            for n in (1, 2, 3)
        ],
        clean_documents=[page("d1"), page("d2", licence="unknown", publisher="Bob"), page("d3"), page("unused")],
        examples=[*(example(row, **asked) for row in train), example(validation, **asked), example(test)],
        training_set=train,
        validation_set=[validation],
        benchmark=[test],
        rejected_examples=[
            blank(RejectedExample, example_id=f"r{n}", reject_reason="not_grounded", **rejected) for n in range(3)
        ],
        dropped_documents=[
            blank(DroppedDocument, document_id=f"x{n}", text="t", drop_reason="off_topic", **dropped) for n in range(2)
        ],
        teacher_calls=[
            blank(
                TeacherCall,
                call_id=f"call_{n}",
                purpose="generate",
                teacher="anthropic:claude",
                model="claude-x",
                prompt_version="pv1",
                status="ok",
                n_input_tokens=100,
                n_output_tokens=20,
                n_cache_write_tokens=5,
                n_cache_read_tokens=50,
                is_batch=False,
                cost_usd=0.02,
                asked_at=HOUR,
            )
            for n in (1, 2)
        ],
    )
    return store


def lines(file):
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def test_instruction_holds_what_is_trained_on(filled, task, tmp_path):
    done = export_dataset(filled, task, "instruction", tmp_path / "out")
    assert done.n_rows == {"train": 2, "validation": 1, "test": 1}
    assert lines(tmp_path / "out" / "train.jsonl")[1] == {
        "instruction": "Answer from the passages.",
        "input": f"{PASSAGE}\n\nQuestion: Question train 2?",
        "output": "an electrician",
    }


def test_chat_holds_system_user_and_assistant(filled, task, tmp_path):
    export_dataset(filled, task, "chat", tmp_path / "out")
    (row,) = lines(tmp_path / "out" / "test.jsonl")
    assert [turn["role"] for turn in row["messages"]] == ["system", "user", "assistant"]
    assert row["messages"][-1]["content"] == "11 kW"


def write_tokenizer(folder, template):
    from transformers import AutoTokenizer

    folder.mkdir(parents=True)
    write_tiny_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    for file in folder.iterdir():
        file.unlink()
    tokenizer.save_pretrained(folder)
    return folder


def test_inst_is_rendered_by_the_named_tokenizer_s_own_template(filled, task, tmp_path):
    folder = write_tokenizer(tmp_path / "llama", LLAMA)
    export_dataset(filled, task, "inst", tmp_path / "out", tokenizer=str(folder))
    assert lines(tmp_path / "out" / "train.jsonl")[0]["text"] == (
        "<s>[INST] <<SYS>>\nAnswer from the passages.\n<</SYS>>\n\n"
        f"{PASSAGE}\n\nQuestion: Question train 1? [/INST] 11 kW </s>"
    )


def test_inst_of_a_template_that_refuses_system_messages_opens_the_user_s_with_it(filled, task, tmp_path):
    folder = write_tokenizer(tmp_path / "mistral", MISTRAL)
    export_dataset(filled, task, "inst", tmp_path / "out", tokenizer=str(folder))
    assert lines(tmp_path / "out" / "test.jsonl")[0]["text"] == (
        f"<s>[INST] Answer from the passages.\n\n{PASSAGE}\n\nQuestion: Question test 1? [/INST]11 kW</s>"
    )


def test_inst_without_a_name_takes_the_task_s_base_model(filled, task, tmp_path):
    folder = write_tokenizer(filled.root / "artifacts" / "base_model" / "b1", LLAMA)
    path = str(folder.relative_to(filled.root))
    values = {
        "artifact_id": "b1",
        "kind": "base_model",
        "base_model": "b",
        "recipe": "{}",
        "inputs": "{}",
        "sha256": "0",
    }
    artifact = blank(ModelArtifact, path=path, n_bytes=1, metrics="{}", **values)
    publish(filled, task, base_model=[artifact])
    export_dataset(filled, task, "inst", tmp_path / "out")
    assert lines(tmp_path / "out" / "train.jsonl")[0]["text"].startswith("<s>[INST] <<SYS>>\n")


@pytest.mark.parametrize(
    ("template", "told"),
    [("missing", "could not be loaded"), (None, "has no chat template"), ("base", "is not stored")],
)
def test_inst_without_a_usable_tokenizer_is_told(filled, task, tmp_path, template, told):
    folder = tmp_path / "tokenizer"
    if template is None:
        write_tokenizer(folder, None)
    with pytest.raises(UserError, match=told):
        export_dataset(filled, task, "inst", tmp_path / "out", tokenizer=None if template == "base" else str(folder))
    assert not (tmp_path / "out").exists()


def test_squad_answers_stand_where_it_says_and_the_rest_is_counted(store, task, tmp_path):
    own = "It lasted from 1990 to 1994."
    rows = [
        row_of(1, "train"),
        row_of(2, "train", answer="AN ELECTRICIAN", answers=["AN ELECTRICIAN", "electrician", "nobody"]),
        row_of(3, "train", answer="eleven kilowatts"),
        row_of(4, "train", answer="The passages do not say.", answers=[], is_answerable=False),
        row_of(5, "train", answer="1994", document=None, context=own, answer_start=23),
        row_of(6, "train", document=None),
        row_of(7, "train", answer="1"),
    ]
    chunk = Chunk("chk_d1", "d1", "clu_d1", 0, 0, 99, "Home", None, PASSAGE, 30)
    publish(store, task, chunks=[chunk], clean_documents=[page("d1")], training_set=rows)
    done = export_dataset(store, task, "squad", tmp_path / "out")
    assert done.left_out == {"answer_is_no_span": 2, "no_passage": 1}
    assert done.n_rows == {"train": 4}
    written = json.loads((tmp_path / "out" / "train.json").read_text())
    assert written["version"] == "v2.0"
    home, given = written["data"]
    assert (home["title"], given["title"]) == ("Charging <at> home", "charging")
    found = {}
    for article in written["data"]:
        for paragraph in article["paragraphs"]:
            for qa in paragraph["qas"]:
                for a in qa["answers"]:
                    assert paragraph["context"].startswith(a["text"], a["answer_start"])
                found[qa["id"][-1]] = (qa["is_impossible"], [a["text"] for a in qa["answers"]])
    assert found == {
        "1": (False, ["11 kW"]),
        "2": (False, ["An electrician", "electrician"]),
        "4": (True, []),
        "5": (False, ["1994"]),
    }


@pytest.mark.parametrize(
    ("answer", "start", "expected"),
    [
        ("11", None, [("11", 24)]),
        ("11", 80, [("11", 80)]),  # the row's own place, not the first one
        ("11", 3, [("11", 24)]),  # a place where it does not stand
        ("1", None, []),  # part of a word is no span
        ("station at", None, [("station at", 2)]),
        ("", None, []),
    ],
)
def test_find_spans_takes_the_row_s_place_or_whole_words(answer, start, expected):
    row = {"answer": answer, "answers": [answer], "answer_start": start}
    assert [(span["text"], span["answer_start"]) for span in find_spans(row, PASSAGE)] == expected


def test_csv_of_a_classification_task_is_text_and_label_as_they_are(store, tmp_path):
    task = make_task(tmp_path / "labels", "type: classification")
    rows = [row_of(1, "train", answer="card, lost", question='=1+1, "quoted"\nline', document=None)]
    publish(store, task, training_set=rows)
    export_dataset(store, task, "csv", tmp_path / "out")
    with (tmp_path / "out" / "train.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["text", "label"], ['=1+1, "quoted"\nline', "card, lost"]]


def test_csv_of_questions_is_refused(filled, task, tmp_path):
    with pytest.raises(UserError, match="has none: choose instruction or hf"):
        export_dataset(filled, task, "csv", tmp_path / "out")


@pytest.fixture
def folder(filled, task, tmp_path):
    publish(
        filled,
        task,
        teacher_evaluation=[
            TeacherEvaluation(
                "anthropic:claude",
                "pv0",
                4,
                4,
                "token_f1",
                0.7,
                "{}",
                "{}",
                "proceed",
                "It is 0.700.",
                None,
                False,
                0.1,
            )
        ],
        qa_candidates=[example(row_of(1, "train"))],
        reviews=[Review("exm_train_1", "accept", "q", "a", "Ada", None, HOUR)],
    )
    export_dataset(filled, task, "hf", tmp_path / "hub")
    return tmp_path / "hub"


def test_hf_folder_loads_by_load_dataset_with_its_splits_and_sources(folder, tmp_path):
    import datasets

    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 2, "validation": 1, "test": 1}
    assert loaded["train"].column_names == list(COLUMNS)
    row = loaded["train"][1]
    assert row["messages"][2] == {"role": "assistant", "content": "an electrician"}
    assert (row["url"], row["licence"], row["page"], row["publisher"]) == ("https://a.example/d2", "unknown", 4, "Bob")
    assert (row["teacher"], row["prompt_version"], row["passage"]) == ("anthropic:claude", "pv1", PASSAGE)
    assert row["fetched_at"] == datetime(2026, 11, 21, 6, tzinfo=UTC)


def test_hf_card_has_front_matter_that_the_hub_reads(folder):
    _, front, _ = (folder / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front) == {
        "pretty_name": "charging",
        "language": ["en"],
        "license": ["cc-by-4.0", "other"],
        "size_categories": ["n<1K"],
        "tags": ["synthetic"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": s, "path": f"data/{s}.parquet"} for s in ("train", "validation", "test")],
            }
        ],
    }


def test_hf_card_says_what_the_tables_say(folder):
    card = (folder / "README.md").read_text()
    for said in (
        "Answer questions about charging: at home.",
        "| train | generated | 2 |",
        "| test | human | 1 |",
        "| CC-BY-4.0 | 2 | Ann \\| Co |",
        'Pages under "unknown" say nothing of their terms',
        "| https://a.example/d2 | Charging &lt;at&gt; home | unknown | Bob | 2026-11-21 06:00 | 2 |",
        "| documents | off_topic | 2 |",
        "| examples | not_grounded | 3 |",
        "| anthropic:claude | pv1 | 3 | 0.0375 |",
        "| generate | claude-x | pv1 | 2 | 310 | 40 | 0.0400 |",
        "In all 0.0400 USD.",
        "was examined on 4 test rows; the verdict was\nproceed: It is 0.700.",
        "| number | generated | 1 | 1.00 | 0.00 | 0.00 |",
        "0 of 3 training and validation rows meet one of the 1 test rows.",
    ):
        assert said in card
    assert "a.example/unused" not in card


def test_hf_card_describes_exactly_the_columns_of_the_files(folder):
    table = (folder / "README.md").read_text().split("## Columns")[1]
    described = re.findall(r"^\| (\w+) \| .* \| .+ \|$", table, re.MULTILINE)[1:]
    assert described == pl.read_parquet_schema(folder / "data" / "train.parquet").names()


def test_hf_card_of_a_leaking_dataset_says_so(store, task, tmp_path):
    leak = {
        "question": "Which resistor marks a charging cable for 32 A of current?",
        "document": None,
        "context": "Own.",
    }
    publish(store, task, training_set=[row_of(1, "train", **leak)], benchmark=[row_of(1, "test", **leak)])
    export_dataset(store, task, "hf", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "1 of 1 training and validation rows meet one of the 1 test rows (" in card
    assert "2 rows rest on no collected page" in card
    assert "No page was collected" in card


# ---- the folder ----


def test_export_of_the_same_tables_gives_the_same_bytes(filled, task, tmp_path):
    for name in ("a", "b"):
        export_dataset(filled, task, "hf", tmp_path / name)
    files = [
        {f.relative_to(r): f.read_bytes() for f in r.rglob("*") if f.is_file()}
        for r in (tmp_path / "a", tmp_path / "b")
    ]
    assert files[0] == files[1]
    assert len(files[0]) == 5


def test_export_never_overwrites_unless_forced(filled, task, tmp_path):
    out = tmp_path / "out"
    export_dataset(filled, task, "chat", out)
    before = (out / "train.jsonl").read_bytes()
    with pytest.raises(UserError, match="exists: name another folder, or replace it with --force"):
        export_dataset(filled, task, "instruction", out)
    assert (out / "train.jsonl").read_bytes() == before
    export_dataset(filled, task, "instruction", out, force=True)
    assert set(lines(out / "train.jsonl")[0]) == {"instruction", "input", "output"}
    assert json.loads((out / RECORD).read_text())["format"] == "instruction"


@pytest.mark.parametrize("record", [None, '{"keep": 1}', "[]", "no JSON"])
def test_export_forced_upon_a_folder_that_is_no_export_removes_nothing(filled, task, tmp_path, record):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    if record is not None:
        (tmp_path / "home" / RECORD).write_text(record)
    with pytest.raises(UserError, match="since no export wrote"):
        export_dataset(filled, task, "chat", tmp_path / "home", force=True)
    assert (tmp_path / "home" / "thesis.txt").read_text() == "years of work"


def test_export_forced_upon_an_export_that_somebody_added_to_removes_nothing(filled, task, tmp_path):
    out = tmp_path / "out"
    export_dataset(filled, task, "hf", out)
    (out / ".git").mkdir()
    (out / ".git" / "HEAD").write_text("ref: refs/heads/main")
    with pytest.raises(UserError, match=r"since no export wrote \.git/HEAD: name another folder"):
        export_dataset(filled, task, "hf", out, force=True)
    assert (out / ".git" / "HEAD").exists() and (out / "README.md").exists()


def test_export_that_fails_leaves_nothing_and_the_earlier_one(filled, task, tmp_path):
    out = tmp_path / "exports" / "out"
    export_dataset(filled, task, "chat", out)
    with pytest.raises(UserError):
        export_dataset(filled, task, "inst", out, tokenizer="/no/such/folder", force=True)
    assert [file.name for file in out.parent.iterdir()] == ["out"]
    assert (out / "train.jsonl").exists()


def test_export_record_names_the_versions_it_was_made_from(filled, task, tmp_path):
    export_dataset(filled, task, "chat", tmp_path / "out")
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    current = filled.current("training_set", task.name)
    assert record["tables"]["training_set"] == {"version": current.version, "fingerprint": current.fingerprint}
    assert record["n_rows"] == {"train": 2, "validation": 1, "test": 1}


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("alpaca", {}, "choose one of instruction, chat, inst, squad, csv, hf"),
        ("chat", {"tokenizer": "x"}, "but the format is chat"),
        ("chat", {}, "has no dataset yet"),
    ],
)
def test_export_that_cannot_be_is_told(store: Store, task, tmp_path, name, options, told):
    with pytest.raises(UserError, match=told):
        export_dataset(store, task, name, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_squad_of_rows_without_any_span_is_told(store, task, tmp_path):
    publish(store, task, training_set=[row_of(1, "train", document=None)])
    with pytest.raises(UserError, match=r"No row of charging fits the format squad: \{'no_passage': 1\}"):
        export_dataset(store, task, "squad", tmp_path / "out")


def test_formats_are_the_ones_the_documentation_names():
    assert all(f"`{name}`" in (export_dataset.__doc__ or "") for name in FORMATS)
