import io
import json

import pytest
from rich.console import Console

from ev_platform.errors import UserError
from ev_platform.tasks.folders import check_folder
from ev_platform.tasks.folders.show import print_report

TRAIN = "question,answer\nHow loud is the pump?,40 dB\n"
TEST = "question,answer\nWho may open the lid?,an electrician\n"


@pytest.fixture
def folder(tmp_path):
    """Return a folder that nothing is wrong with."""
    folder = tmp_path / "pumps"
    folder.mkdir()
    (folder / "job_description.json").write_text('{"task_description": "Answer questions about heat pumps."}')
    (folder / "sources.yaml").write_text("seeds: ['https://pumps.example/']\n")
    (folder / "train.csv").write_text(TRAIN)
    (folder / "test.csv").write_text(TEST)
    return folder


@pytest.fixture
def found(folder):
    """Return a function that gives (kind, stops, message) of what is found once files have been written."""

    def found(files):
        for name, content in files.items():
            if content is None:
                (folder / name).unlink()
            else:
                (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
        report = check_folder(folder)
        for finding in report.findings:
            assert finding.message.endswith(".") and "\n" not in finding.message
        return [(f.kind, f.stops, f.message.removeprefix(f"{folder}/")) for f in report.findings]

    return found


def table(*rows, header="question,answer"):
    return "\n".join([header, *rows]) + "\n"


def test_check_of_a_sound_folder_finds_nothing(folder):
    report = check_folder(folder)
    assert report.findings == [] and report.is_ok
    assert [(s.file, s.n_rows, s.n_wrong) for s in report.files] == [("train.csv", 1, 0), ("test.csv", 1, 0)]


def test_check_tells_what_is_read_from_outside_the_folder(found, folder):
    secret, rows = folder.parent / "secret.md", folder.parent / "rows.csv"
    secret.write_text("mine")
    rows.write_text(TRAIN)
    (folder / "link.md").symlink_to(secret)
    (folder / "own.md").write_text("The pump hums.")
    sources = "texts: ['own.md', 'link.md', '../*.md']\n"
    said = "outside the task's folder: see that this is meant."
    assert found({"sources.yaml": sources, "config.yaml": "files: {train: ../rows.csv}\n"}) == [
        ("outside", False, f"config.yaml: files.train reads {rows}, {said}"),
        ("outside", False, f"sources.yaml: texts reads {secret}, {said}"),
        ("outside", False, f"sources.yaml: texts reads {secret}, {said}"),
    ]


def test_check_of_no_folder_says_how_to_make_one(tmp_path):
    with pytest.raises(UserError, match=r"nowhere is not a folder: name a task folder, or make one with `ev-platform"):
        check_folder(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("files", "kind", "said"),
    [
        ({"job_description.json": None}, "job_description", "job_description.json is missing: write {"),
        ({"job_description.json": "{}"}, "job_description", "job_description.json: task_description: field required."),
        (
            {"job_description.json": {"task_description": "Label the text.", "classes_description": ["a"]}},
            "job_description",
            "job_description.json: classes_description: input should be a valid dictionary.",
        ),
        ({"config.yaml": "recpie: x"}, "config", "config.yaml: recpie: extra inputs are not permitted."),
        ({"config.yaml": "recipe: huge"}, "recipe", "config.yaml: there is no recipe 'huge'; choose one of"),
        ({"sources.yaml": "seed: x"}, "sources", "sources.yaml: seed: extra inputs are not permitted."),
        ({"sources.yaml": None}, "nothing_to_collect", "sources.yaml is missing: write an address below seeds"),
        ({"sources.yaml": "licence: x"}, "nothing_to_collect", "sources.yaml names nothing to collect: write an"),
        ({"sources.yaml": "texts: ['*.txt']"}, "sources", "sources.yaml: no file matches the text glob '*.txt': put"),
        (
            {"config.yaml": "files: {rows: ../all.json}"},
            "files",
            "config.yaml: files.rows is '../all.json', but there is no file",
        ),
        ({"sources.yaml": "pdfs: ['*.pdf']"}, "sources", "sources.yaml: no file matches the PDF glob '*.pdf': put"),
        ({"sources.yaml": "pdfs: ['']"}, "sources", "sources.yaml: no file matches the PDF glob '': put"),
        ({"sources.yaml": "pdfs: ['a**b']"}, "sources", "sources.yaml: no file matches the PDF glob 'a**b': put"),
        ({"sources.yaml": "pdfs: ['/no-such/*.pdf']"}, "sources", "sources.yaml: no file matches the PDF glob '/no-"),
        (
            {"sources.yaml": "{seeds: ['https://a.example/'], mirrors: [{base_url: 'https://a.example/', folder: x}]}"},
            "sources",
            "sources.yaml: the folder 'x' of the mirror of https://a.example/ does not exist.",
        ),
        ({"train.csv": None}, "rows", "train.csv is missing: write a table with the columns question and answer."),
        ({"test.csv": "question,answer\n"}, "rows", "test.csv has no rows: write at least one question and answer."),
        ({"test.csv": "question,reply\nWhy?,So.\n"}, "rows", "test.csv row 1 (the header) lacks the column 'answer'"),
        (
            {"config.yaml": "type: sorting"},
            "type",
            "config.yaml: type 'sorting' is not one of open_book_qa, closed_book_qa, classification, extractive_qa.",
        ),
    ],
)
def test_check_finds_what_stops_a_run(found, files, kind, said):
    ((found_kind, stops, message),) = found(files)
    assert (found_kind, stops) == (kind, True)
    assert message.startswith(said)


def test_check_names_every_wrong_row_with_its_column(folder, found):
    said = found({"train.csv": table("Why?,", "How loud is the pump?,40 dB", "When?", "  ,x")})
    assert said == [
        ("wrong_row", True, "train.csv row 2: answer is empty."),
        ("wrong_row", True, "train.csv row 4 has 1 fields, the header has 2."),
        ("wrong_row", True, "train.csv row 5: question is empty."),
    ]
    first = check_folder(folder).findings[0]
    assert (first.file, first.row, first.column) == ("train.csv", "row 2", "answer")
    summary = check_folder(folder).files[0]
    assert (summary.file, summary.n_rows, summary.n_wrong) == ("train.csv", 1, 3)


def test_check_of_pdfs_and_drop_folder_takes_them_for_sources(folder, tmp_path):
    (folder / "sources.yaml").write_text("pdfs: ['*.pdf']")
    (folder / "a.pdf").write_bytes(b"%PDF")
    assert check_folder(folder).is_ok
    (folder / "sources.yaml").write_text("")
    assert not check_folder(folder, tmp_path / "inbox").is_ok
    (tmp_path / "inbox" / "deep").mkdir(parents=True)
    (tmp_path / "inbox" / "deep" / "B.PDF").write_bytes(b"%PDF")
    assert check_folder(folder, tmp_path / "inbox").is_ok


@pytest.mark.parametrize(
    ("files", "kind", "said"),
    [
        ({"train.json": "[]"}, "second_file", "Beside train.csv, train.json is not read."),
        ({"unstructured.csv": "text\nHi.\n"}, "wrong_text", "unstructured.csv row 1 (the header) does not name one"),
        ({"unstructured.csv": "context,n\n,1\n"}, "wrong_text", "unstructured.csv row 2: context is empty."),
        (
            {"train.csv": table("How loud is it?,40 dB", "how LOUD is it,40 dB.")},
            "repeated",
            "train.csv row 3 repeats train.csv row 2: 'how LOUD is it'.",
        ),
        (
            {"train.csv": table("How loud is it?,40 dB", "How loud is it?,50 dB")},
            "contradiction",
            "train.csv row 3 contradicts train.csv row 2: 'How loud is it?' is '40 dB' there and '50 dB' here.",
        ),
        (
            {"train.csv": table("Who may open the lid?,anyone")},
            "contradiction",
            "test.csv row 2 contradicts train.csv row 2: 'Who may open the lid?' is 'anyone' there and 'an elec",
        ),
        (
            {"train.csv": table("How loud?,40 dB,A.", "How loud?,50 dB,B.", header="question,answer,context")},
            "repeated_over_other_context",
            "train.csv row 3 asks what train.csv row 2 asks of another passage: 'How loud?'.",
        ),
        (
            {"train.csv": table(f"How?,{'so ' * 61}")},
            "long_answer",
            "train.csv row 2: the answer has 61 words; models stop after 40 tokens: raise evaluation.max_new_tokens in "
            "config.yaml.",
        ),
        (
            {"train.csv": table("Who may open the lid?,an electrician")},
            "leakage",
            "1 of 1 test questions stand in train too (1 word for word, 0 but for case and punctuation), 0 more share "
            "over 60% of their word 3-grams with a training question: a run leaves up to 1 row of train out, those "
            "that ask the same.",
        ),
        (
            {
                "train.csv": table("How loud?,40 dB,A passage.", header="question,answer,context"),
                "test.csv": table("Who pays?,you,a PASSAGE", header="question,answer,context"),
            },
            "shared_passage",
            "1 of 1 test rows are asked of a passage that a training row is asked of too.",
        ),
    ],
)
def test_check_finds_what_is_doubtful_without_stopping_a_run(folder, found, files, kind, said):
    messages = {found_kind: (stops, message) for found_kind, stops, message in found(files)}
    assert messages.keys() <= {kind, "leakage"}
    stops, message = messages[kind]
    assert not stops and message.startswith(said)
    assert check_folder(folder).is_ok


def test_check_lists_leaking_pairs_by_how_near_they_are(folder):
    train = ["How many bolts hold the lid of the pump?", "who may open the LID", "Who may open the lid?", "What is it?"]
    (folder / "train.csv").write_text(table(*(f"{question},a{n}" for n, question in enumerate(train))))
    test = ["Who may open the lid?", "So how many bolts hold the lid of the pump?", "What is a pump?"]
    (folder / "test.csv").write_text(table(*(f"{question},b{n}" for n, question in enumerate(test))))
    assert [(leak.kind, leak.test, leak.train, leak.overlap) for leak in check_folder(folder).leaks] == [
        ("exact", "test.csv row 2", "train.csv row 4", 1.0),
        ("normalised", "test.csv row 2", "train.csv row 3", 1.0),
        ("near", "test.csv row 3", "train.csv row 2", 1.0),
    ]
    (finding,) = [f for f in check_folder(folder).findings if f.kind == "leakage"]
    assert "1 of 3 test questions" in finding.message and " 1 more share" in finding.message
    assert "a run leaves up to 3 rows of train out, those that ask the same." in finding.message


def test_check_of_questions_without_words_does_not_take_them_for_equal(folder):
    (folder / "train.csv").write_text(table("???,a"))
    (folder / "test.csv").write_text(table("!!!,b"))
    assert [leak.kind for leak in check_folder(folder).leaks if leak.kind == "normalised"] == []


def test_check_measures_lengths_in_words(folder):
    rows = [f"{'w ' * n},a,c d" for n in range(1, 101)]
    (folder / "train.csv").write_text(table(*rows, header="question,answer,context"))
    (summary, other) = check_folder(folder).files
    measured = summary.words["question"]
    assert (measured.p50, measured.p95, measured.max) == (50, 95, 100)
    assert summary.words["context"].max == 2 and "context" not in other.words


@pytest.fixture
def classes(folder):
    """Make the folder one of classification, with rows of given labels."""

    def classes(train, test, described):
        description = {"task_description": "Label the text.", "classes_description": dict.fromkeys(described, "x")}
        (folder / "job_description.json").write_text(json.dumps(description))
        for split, labels in (("train", train), ("test", test)):
            (folder / f"{split}.csv").write_text(table(*(f"{split} {n},{x}" for n, x in enumerate(labels))))
        return check_folder(folder)

    return classes


def test_check_of_labels_says_which_are_unknown_and_which_have_no_rows(classes):
    report = classes("aac", "ab", "abd")
    assert [(x.label, x.n_train, x.n_test, x.is_described) for x in report.labels] == [
        ("a", 2, 1, True),
        ("b", 0, 1, True),
        ("c", 1, 0, False),
        ("d", 0, 0, True),
    ]
    (unknown,) = [f for f in report.findings if f.kind == "unknown_label"]
    assert unknown.message.startswith("train.csv row 4: 'c' is not a class; the nearest is '")
    assert (unknown.file, unknown.row, unknown.column, unknown.stops) == ("train.csv", "row 4", "answer", False)
    assert [f.message for f in report.findings if f.kind == "label_without_rows"] == [
        "The class 'b' has no row in train.",
        "The label 'c' has no row in test.",
        "The class 'd' has no row in train.",
        "The class 'd' has no row in test.",
    ]


def test_check_of_labels_says_what_is_out_of_balance(classes):
    (finding,) = [f for f in classes("a" * 10 + "b", "ab", "ab").findings if f.kind == "imbalance"]
    assert finding.message == "'a' has 10 rows in train, 'b' has 1 row."
    assert not [f for f in classes("a" * 9 + "b", "ab", "ab").findings if f.kind == "imbalance"]


def test_check_of_a_folder_with_described_classes_asks_for_its_type_in_config(classes, folder):
    report = classes("ab", "ab", "ab")
    assert (report.type, report.is_trainable) == ("classification", True)
    (finding,) = [f for f in report.findings if f.stops]
    assert finding.message == (
        "This is a folder of the type classification, but config.yaml does not say so: "
        "write type: classification there."
    )
    (folder / "config.yaml").write_text("type: classification")
    assert classes("ab", "ab", "ab").is_ok


def test_check_of_classification_needs_no_sources(classes, folder):
    (folder / "config.yaml").write_text("type: classification")
    (folder / "sources.yaml").unlink()
    assert classes("ab", "ab", "ab").findings == []


def test_check_of_labels_without_descriptions_finds_a_test_label_that_nothing_teaches(classes, folder):
    (folder / "config.yaml").write_text("type: classification")
    (finding,) = [f for f in classes("aab", "abc", "").findings if f.kind == "unknown_label"]
    assert finding.message.startswith("test.csv row 4: 'c' is not a class; the nearest is '")


def test_check_of_rows_with_passages_or_of_texts_needs_no_sources(folder):
    (folder / "sources.yaml").unlink()
    assert not check_folder(folder).is_ok
    (folder / "unstructured.csv").write_text("context\nHi.\n")
    assert check_folder(folder).is_ok
    (folder / "unstructured.csv").unlink()
    (folder / "train.csv").write_text(table("How loud?,40 dB,It has 40 dB.", header="question,answer,context"))
    assert not check_folder(folder).is_ok
    (folder / "test.csv").write_text(table("How long?,2 m,It has 2 m.", header="question,answer,context"))
    assert check_folder(folder).is_ok


def test_check_finds_answers_that_are_no_span(folder):
    (folder / "config.yaml").write_text("type: extractive_qa")
    rows = ["How loud?,40 dB,It has 40 dB.", "How long?,3 m,It has 2 m.", "How old?,The passages do not say.,It is."]
    (folder / "train.csv").write_text(table(*rows, header="question,answer,context"))
    (finding,) = check_folder(folder).findings
    assert (finding.kind, finding.row, finding.stops) == ("not_a_span", "row 3", False)
    assert finding.message == "train.csv row 3: '3 m' does not stand in the passage."


def test_check_of_one_file_for_both_splits_says_what_is_in_each(folder):
    for split in ("train", "test"):
        (folder / f"{split}.csv").unlink()
    (folder / "config.yaml").write_text("files: {rows: all.csv, test_fraction: 0.25}")
    (folder / "all.csv").write_text(table(*(f"How loud is pump {n}?,{n} dB" for n in range(20)), "Why?,"))
    report = check_folder(folder)
    assert [(s.file, s.n_rows, s.n_wrong) for s in report.files] == [
        ("all.csv (train)", 15, 1),
        ("all.csv (test)", 5, 0),
    ]


def test_check_goes_by_the_type_that_config_names(classes, folder):
    (folder / "config.yaml").write_text("type: open_book_qa")
    report = classes("ab", "ab", "ab")
    assert (report.type, report.is_trainable, report.is_ok) == ("open_book_qa", True, True)


def test_check_takes_few_answers_for_labels_without_a_description(folder):
    (folder / "train.csv").write_text(table(*(f"text {n},{n % 2}" for n in range(9))))
    (folder / "test.csv").write_text(table("text,0"))
    assert [(x.label, x.n_train, x.is_described) for x in check_folder(folder).labels] == [
        ("0", 5, None),
        ("1", 4, None),
    ]
    (folder / "test.csv").write_text(table("text,2"))
    assert check_folder(folder).labels == []


def test_check_of_squad_counts_unanswerable_questions_and_names_the_type(folder):
    qas = [
        {"question": "Which city?", "answers": [{"text": "Paris", "answer_start": 0}]},
        {"question": "Which river?", "answers": [], "is_impossible": True},
    ]
    data = {"data": [{"paragraphs": [{"context": "Paris is a capital.", "qas": qas}]}]}
    (folder / "test.csv").unlink()
    (folder / "test.json").write_text(json.dumps(data))
    report = check_folder(folder)
    assert (report.files[1].n_rows, report.files[1].n_unanswerable) == (2, 1)
    assert report.files[1].words["answer"].max == 1
    assert (report.type, report.is_ok) == ("extractive_qa", False)


def test_report_is_printed_with_its_pairs_and_at_most_twelve_sentences_of_a_kind(folder):
    (folder / "train.csv").write_text(table(*(f"Why [red]{n}?," for n in range(20)), "Who may open the lid?,me"))
    output = io.StringIO()
    print_report(Console(file=output, width=160), check_folder(folder))
    text = output.getvalue()
    assert "train.csv row 13: answer is empty." in text and "train.csv row 14" not in text
    assert "- and 8 more of wrong_row (--json prints all)." in text
    assert "test.csv row 2: Who may open the lid?" in text and "train.csv row 22: Who may open the lid?" in text
    assert text.index("Stops a run:") < text.index("Worth a look:")


def test_report_for_machines_is_json_with_everything(folder):
    (folder / "train.csv").write_text(table(*(f"Why {n}?," for n in range(20)), "Who may open the lid?,me"))
    data = json.loads(json.dumps(check_folder(folder).as_dict()))
    assert data["ok"] is False and data["task"] == "pumps" and data["is_trainable"] is True
    assert sum(f["kind"] == "wrong_row" for f in data["findings"]) == 20
    assert data["leaks"][0]["train_question"] == "Who may open the lid?"
    assert data["files"][1]["words"]["question"] == {"p50": 5, "p95": 5, "max": 5}
