import json
import re
import subprocess
import sys

import polars as pl
import pytest
import typer
from typer.testing import CliRunner

from ev_platform.cli import app
from ev_platform.records import Example, schema_of, to_frame
from ev_platform.serving.keys import list_keys
from ev_platform.storage import Store


def commands(group, path=()):
    for name, command in group.commands.items():
        yield (*path, name)
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))


COMMANDS = list(commands(typer.main.get_command(app)))


@pytest.fixture
def data(own_folders):
    return own_folders / "data"


def call(*arguments):
    return CliRunner().invoke(app, arguments)


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_of_every_command_shows_how_it_is_called(path):
    result = call(*path, "--help")
    assert result.exit_code == 0
    text = " ".join(re.sub(r"[│\n]", " ", result.output).split())
    example = text.split("Example: ")[1]
    assert re.match(rf"(\S+=\S+ )?ev-platform {' '.join(path)}", example), example


def test_keys_create_prints_only_the_key(data):
    result = call("keys", "create", "laptop")
    assert result.exit_code == 0
    assert re.fullmatch(r"ev_[0-9a-zA-Z]+_\S+\n", result.output)
    (info,) = list_keys(data)
    assert (info.name, info.key_id) == ("laptop", result.output.split("_")[1])


def test_keys_list_shows_who_and_no_secret(data):
    key = call("keys", "create", "laptop").output.strip()
    listed = call("keys", "list").output
    _, key_id, secret = key.split("_", maxsplit=2)
    assert "laptop" in listed
    assert key_id in listed
    assert secret not in listed


def test_keys_revoke_ends_the_key(data):
    key_id = call("keys", "create", "laptop").output.split("_")[1]
    assert call("keys", "revoke", key_id).output == "Revoked laptop.\n"
    assert list_keys(data)[0].revoked_at is not None


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("keys", "revoke", "nope"), "nope"),
        (("serve", "ev_charging"), "run `ev-platform run --task ev_charging` first."),
        (("ask", "Why?", "--url", "http://127.0.0.1:9"), "start it with `ev-platform serve`."),
    ],
)
def test_bad_input_prints_one_sentence_and_exits_with_1(data, arguments, told):
    result = call(*arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert told in result.stderr


def test_catalogue_prints_where_it_is(data):
    result = call("catalogue")
    assert result.output.strip() == str(data / "ev.duckdb")
    assert (data / "ev.duckdb").exists()


def test_models_list_without_models_has_no_rows(data):
    result = call("models", "list")
    assert result.exit_code == 0
    assert "@" not in result.output


def examples_of(*rows):
    fields = dict.fromkeys(Example.__dataclass_fields__) | {"is_answerable": True, "split": "train", "kind": "number"}
    made = [fields | {"answers": [row["answer"]], "origin": "generated"} | row for row in rows]
    return to_frame("examples", [Example(**row) for row in made])


@pytest.fixture
def stored(data):
    """The example's dataset, as far as these commands read it: two generated rows, one rejected, one paid call."""
    store = Store(data)
    rows = [
        {"example_id": f"exm_{n}", "question": f"How many amperes has cable {n}?", "answer": f"{n} A"} for n in (1, 2)
    ]
    frame = examples_of(*rows)
    rejected = {"example_id": "exm_3", "question": "q", "answer": "a", "reject_reason": "not_grounded"}
    tables = {
        "examples": frame,
        "qa_candidates": frame,
        "rejected_examples": pl.DataFrame([rejected], schema=schema_of("rejected_examples")),
        "teacher_calls": pl.DataFrame(
            [{"purpose": "generate", "model": "claude-x", "status": "ok", "cost_usd": 0.0325}],
            schema=schema_of("teacher_calls"),
        ),
        "training_set": pl.DataFrame(
            [row | {"messages": [{"role": "user", "content": row["question"]}]} for row in rows],
            schema=schema_of("training_set"),
        ),
    }
    for table, own in tables.items():
        store.publish(table, "ev_charging", own)
    return store


def test_dataset_show_counts_rows_reasons_and_cost(stored):
    shown = call("dataset", "show", "--task", "ev_charging").output
    assert re.search(r"train\s*│ generated\s*│ number\s*│ 2", shown)
    assert re.search(r"not_grounded\s*│ 1", shown)
    assert re.search(r"generate\s*│ claude-x\s*│ ok\s*│ 1\s*│ 0\.0325", shown)
    assert "Paid to teachers: 0.0325 USD" in shown


def test_dataset_export_writes_the_folder_and_says_how_many(stored, tmp_path):
    result = call("dataset", "export", "--format", "chat", "--out", str(tmp_path / "out"))
    assert result.output == f"Wrote {tmp_path / 'out'}: 2 train rows.\n"
    assert len((tmp_path / "out" / "train.jsonl").read_text().splitlines()) == 2
    again = call("dataset", "export", "--format", "chat", "--out", str(tmp_path / "out"))
    assert again.exit_code == 1
    assert "replace it with --force" in again.stderr
    assert call("dataset", "export", "--format", "chat", "--out", str(tmp_path / "out"), "--force").exit_code == 0


def test_dataset_review_goes_out_and_comes_back_once(stored, tmp_path):
    file = tmp_path / "review.csv"
    assert "Wrote 2 rows" in call("dataset", "review-export", "--n", "10", "--out", str(file)).output
    filled = file.read_text("utf-8-sig").replace("number,generated,,,,,", "number,generated,accept,,,Ada,")
    file.write_text(filled)
    first = call("dataset", "review-import", str(file))
    assert first.exit_code == 0, first.output
    assert f"Read 2 reviews from {file}; there are 2 now." in first.output
    assert stored.read("reviews", "ev_charging")["decision"].to_list() == ["accept", "accept"]
    assert call("dataset", "review-import", str(file)).output == f"Nothing new in {file}: 2 reviews.\n"
    assert len(stored.history("reviews", "ev_charging")) == 1
    file.write_text(filled.replace("accept,,,Ada", "reject,,,Grace"))
    second = call("dataset", "review-import", str(file))
    assert "there are 4 now" in second.output
    assert re.search(r"Ada\s*│ Grace\s*│ 2\s*│ 0\.00\s*│ 0\.00", second.output)
    assert "not made any more" not in second.output
    reviews = stored.read("reviews", "ev_charging")
    stored.publish("reviews", "ev_charging", reviews.with_columns(pl.lit("exm_of_yesterday").alias("example_id")))
    assert "not made any more, since their passage, text or teacher changed: 1" in call("dataset", "show").output


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("show",), "has no dataset yet: run `ev-platform run --task ev_charging --stage dataset` first."),
        (("show", "--task", "nope"), "There is no task 'nope'"),
        (("export", "--out", "x"), "has no dataset yet"),
        (("review-export", "--out", "x.csv"), "There are no training examples to review"),
        (("review-import", "no.csv"), "no.csv is missing: make it with"),
    ],
)
def test_dataset_command_that_cannot_be_prints_one_sentence(data, arguments, told):
    result = call("dataset", *arguments)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert told in result.stderr


def test_dataset_estimate_of_the_offline_teacher_is_nothing(data):
    assert call("dataset", "estimate").output == "The teacher of ev_charging is offline: it costs nothing.\n"


def test_dataset_estimate_counts_the_calls_to_come_and_pays_nothing(own_folders):
    folder = own_folders / "tasks" / "moods"
    folder.mkdir(parents=True)
    classes = {"good": "A happy text.", "bad": "An unhappy text."}
    description = {"task_description": "Name the mood of a text.", "classes_description": classes}
    (folder / "job_description.json").write_text(json.dumps(description))
    (folder / "config.yaml").write_text(
        "type: classification\nteacher: {provider: openai_compatible, base_url: 'http://127.0.0.1:9', model: m,\n"
        "  max_cost_usd: 1.5, price: {input: 1.0, output: 10.0}}\n"
    )
    (folder / "train.csv").write_text("text,label\nWhat a lovely day this is,good\nThe rain has spoilt it all,bad\n")
    (folder / "test.csv").write_text("text,label\nI could sing all morning,good\n")
    texts = [f"The number {n} tram came and I was on it" for n in range(5)]
    (folder / "unstructured.csv").write_text("\n".join(["context", *texts]))
    result = call("dataset", "estimate", "--task", "moods")
    assert result.exit_code == 0, result.output
    assert "5 calls to write or label: 0 are stored, 5 will be asked one by one" in result.output
    n_in, n_out = map(int, re.search(r"Tokens: (\d+) in, (\d+) out", result.output).groups())
    assert n_in > 5 * len(texts[0].split())
    assert f"Expected: {(n_in * 1 + n_out * 10) / 1e6:.4f} USD" in result.output
    assert "The cap of 1.5 USD pays for 5 of them" in result.output


def test_dataset_estimate_before_there_are_passages_says_what_to_run(own_folders):
    folder = own_folders / "tasks" / "asked"
    folder.mkdir(parents=True)
    (folder / "job_description.json").write_text(json.dumps({"task_description": "Answer questions about trams."}))
    (folder / "config.yaml").write_text(
        "teacher: {provider: openai_compatible, base_url: 'http://127.0.0.1:9', model: m, price: {input: 1, output: 1}}"
    )
    (folder / "sources.yaml").write_text("texts: ['*.md']\n")
    (folder / "train.csv").write_text("question,answer\nWhat colour is a tram?,yellow\n")
    (folder / "test.csv").write_text("question,answer\nHow many trams are there?,nine\n")
    result = call("dataset", "estimate", "--task", "asked")
    assert result.exit_code == 1
    assert "run `ev-platform run --task asked --stage collect --stage corpus` first" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    "command",
    [("export", "out"), ("export", "out", "--format", "ollama"), ("publish", "me/trams", "--dry-run"), ("card",)],
)
def test_models_without_a_model_say_what_to_run(own_folders, monkeypatch, command):
    monkeypatch.chdir(own_folders)
    result = call("models", *command)
    assert result.exit_code == 1
    said = " ".join(result.stderr.split())
    assert "ev-platform run --task ev_charging" in said or "run the task first" in said
    assert not (own_folders / "out").exists()


def test_models_export_into_a_folder_that_holds_something_is_refused(own_folders):
    (own_folders / "out").mkdir()
    (own_folders / "out" / "mine.txt").write_text("mine")
    result = call("models", "export", str(own_folders / "out"))
    assert result.exit_code == 1
    assert "is there already" in " ".join(result.stderr.split())
    assert [file.name for file in (own_folders / "out").iterdir()] == ["mine.txt"]


HELD = """
import threading, time, duckdb
from ev_platform.errors import UserError
from ev_platform.terminal import plain_errors

def wait(error):
    time.sleep(100)

@plain_errors
def command():
    try:
        try:
            with duckdb.connect() as connection:
                connection.execute("SELECT nothing")
        except duckdb.Error as cause:
            raise UserError("There is no column nothing.") from cause
    except UserError as error:  # as Prefect does, in a thread that ends with the process
        threading.Thread(target=wait, args=(error,), daemon=True).start()
        raise

command()
"""


def test_error_that_another_thread_still_holds_is_all_that_is_printed():
    done = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, check=False)
    assert done.stderr.startswith("Error: There is no column nothing.\n")
    assert "leaked" not in done.stderr
