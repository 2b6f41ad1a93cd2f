import json

import pytest

from ev_platform.errors import UserError
from ev_platform.tasks import Task, find_tasks, get_task
from ev_platform.tasks.types import TASK_TYPES, get_task_type


@pytest.fixture
def task(tmp_path):
    return Task("cars", tmp_path)


def refused(task, name, content, ask):
    """Return the message that a file's content is refused with; it is one sentence that begins with the file."""
    file = task.folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as error:
        ask(task)
    said = str(error.value)
    assert said.startswith(str(file))
    assert said.endswith(".") and "\n" not in said and "Traceback" not in said
    return said.removeprefix(str(file))


def config_refused(task, content):
    return refused(task, "config.yaml", content, lambda task: task.config)


def test_config_without_a_file_has_the_defaults_and_with_one_its_values(task):
    assert task.config.corpus.chunk_tokens == Task("other", task.folder).config.corpus.chunk_tokens
    (task.folder / "config.yaml").write_text("corpus: {chunk_tokens: 64}\nbase_model: a/b\n")
    read = Task("cars", task.folder).config
    assert (read.corpus.chunk_tokens, read.base_model) == (64, "a/b")
    assert read.corpus.min_words == task.config.corpus.min_words  # beside it, the default


@pytest.mark.parametrize("content", ["", "# nothing but a remark\n"])
def test_config_that_is_empty_has_the_defaults(task, content):
    (task.folder / "config.yaml").write_text(content)
    assert task.config == Task("other", task.folder / "nowhere").config


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ("recpie: x\n", "recpie: extra inputs are not permitted"),
        ("dataset: {max_exmaples: 3}\n", "dataset.max_exmaples: extra inputs are not permitted"),
        ("corpus: {chunk_tokens: 5}\n", "corpus.chunk_tokens: input should be greater than or equal to 32"),
        ("corpus: {min_relevance: high}\n", "corpus.min_relevance: input should be a valid number"),
        ("dataset: {validation_fraction: 1.5}\n", "dataset.validation_fraction: input should be less than"),
        ("- a list\n", "the top level: input should be a valid dictionary"),
        ("just words\n", "the top level: input should be a valid dictionary"),
        ("recpie: x\ntpye: y\n", "(and 1 more)"),
    ],
)
def test_config_that_does_not_fit_names_the_field(task, content, where):
    assert where in config_refused(task, content)


@pytest.mark.parametrize(
    "content", ["corpus: {chunk_tokens: 64\n", "type: a: b\n", "type:\n\t- tab\n", "x: !!python/none"]
)
def test_config_that_is_no_yaml_is_refused_with_the_line(task, content):
    said = config_refused(task, content)
    assert "is not valid YAML" in said and ("line 1" in said or "line 2" in said)


def test_config_that_is_not_utf8_is_refused_with_the_byte(task):
    assert "is not UTF-8 (byte 6)" in config_refused(task, "type: é".encode("latin-1"))


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ("seeds: [not an address]\n", "seeds.0: input should be a valid url"),
        ("seeds: ['ftp://a.example/']\n", "seeds.0: url scheme should be 'http' or 'https'"),
        ("seed: ['https://a.example/']\n", "seed: extra inputs are not permitted"),
        ("mirrors: [{base_url: 'https://a.example/'}]\n", "mirrors.0.folder: field required"),
    ],
)
def test_sources_that_do_not_fit_name_the_field(task, content, where):
    assert where in refused(task, "sources.yaml", content, lambda task: task.sources)


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ('{"task_description": "Answer questions', "is not valid JSON"),
        ("{}", "task_description: field required"),
        ('{"task_description": "short"}', "task_description: string should have at least 10 characters"),
        ("null", "the top level: input should be a valid dictionary"),
    ],
)
def test_job_description_that_cannot_be_used_says_why(task, content, where):
    assert where in refused(task, "job_description.json", content, lambda task: task.description)


def test_job_description_that_is_missing_says_what_to_write(task):
    with pytest.raises(UserError, match=r"job_description\.json is missing: write .*task_description"):
        _ = task.description


def test_job_description_may_hold_what_other_tools_put_there(task):
    words = {"task_description": "Answer questions about cars.", "classes_description": {"a": "b"}}
    (task.folder / "job_description.json").write_text(json.dumps(words))
    assert task.description == "Answer questions about cars."


def test_find_tasks_gives_the_example_and_every_folder_with_a_job_description(tmp_path):
    for name in ("trains", "boats"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "job_description.json").write_text("{}")
    (tmp_path / "drafts").mkdir()
    assert list(find_tasks(tmp_path)) == ["ev_charging", "boats", "trains"]
    assert list(find_tasks(tmp_path / "missing")) == ["ev_charging"]
    assert get_task("boats", tmp_path).folder == tmp_path / "boats"


def test_get_task_of_an_unknown_name_says_which_there_are(tmp_path):
    with pytest.raises(UserError, match=r"There is no task 'planes': make the folder .*planes .*one of ev_charging\."):
        get_task("planes", tmp_path)


def test_task_type_of_an_unknown_name_says_which_there_are():
    with pytest.raises(UserError, match=r"type 'sorting' is not one of .*open_book_qa"):
        get_task_type("sorting")


@pytest.mark.parametrize("name", TASK_TYPES)
def test_task_type_puts_question_and_passages_into_its_prompt(name):
    messages = get_task_type(name).prompt("Answer briefly.", "How long is a cable?", ["Cables are 5 m.", "Plugs."])
    assert [message["role"] for message in messages] == ["system", "user"]
    assert messages[0]["content"] == "Answer briefly."
    user = messages[1]["content"]
    assert user.index("Cables are 5 m.") < user.index("Plugs.") < user.index("How long is a cable?")


def test_example_task_reads_whole(example_task):
    assert example_task.config.type in TASK_TYPES
    assert "charging" in example_task.description
    assert all((example_task.folder / mirror.folder).is_dir() for mirror in example_task.sources.mirrors)
