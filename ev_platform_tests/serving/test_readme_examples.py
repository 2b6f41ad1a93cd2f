"""What README says to type, typed as it stands there, against the real application over releases without weights."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ev_platform.serving.api import create_api
from ev_platform.serving.config import ServingConfig
from ev_platform.serving.journal import read_journal
from ev_platform.serving.live import LiveRelease
from ev_platform.serving.replay import served
from ev_platform.serving.worker import LocalBackend
from ev_platform.tasks.types import get_task_type
from ev_platform_tests.serving import fakes
from ev_platform_tests.serving.web import SayingEngine

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SECTION = README[README.index("\n## Serving\n") :].split("\n## ")[1]
# Where README's commands find the server; the port of a test is another one.
PRINTED_URL = "http://127.0.0.1:8000"
ANSWER = "Charging starts once the car is plugged in."


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", SECTION, flags=re.DOTALL | re.MULTILINE)


def curls():
    """Return the calls of curl, one by one."""
    lines = "".join(blocks("sh")).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("curl ")]


def saying(name, task_type, text, **changes):
    changes |= {"task_type": get_task_type(task_type), "engine": SayingEngine(text)}
    return fakes.fake_release(name, **changes)


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    """Serve what README serves, run its lines that set the variables, and give what runs further ones."""
    root = tmp_path_factory.mktemp("readme")
    # An answer that is no success makes curl fail here, without a word in README.
    (root / ".curlrc").write_text("fail-with-body\n")
    # README's own programs lie in .venv/bin of the checkout; here they are whichever run this test.
    programs = root / ".venv" / "bin"
    programs.parent.mkdir()
    programs.symlink_to(Path(sys.executable).parent)
    environment = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "HOME": str(root),
        "CURL_HOME": str(root),
        "EV_DATA_DIR": str(root / "data"),
        "no_proxy": "127.0.0.1",
    }
    (exports,) = [block for block in blocks("sh") if block.startswith("export EV_URL=")]
    assert exports.startswith(f"export EV_URL={PRINTED_URL}\n")
    releases = {
        "ev_charging": saying("ev_charging", "open_book_qa", ANSWER),
        "banking": saying("banking", "classification", "card arrival", labels=("card arrival",), retriever=None),
        "squad@candidate": saying("squad", "extractive_qa", "every three months", retriever=None, has_retrieval=True),
    }
    (serve,) = [line for block in blocks("sh") for line in block.splitlines() if " serve " in f"{line} "]
    assert serve.partition("#")[0].split()[2:] == list(releases)
    backend = LocalBackend({name: LiveRelease(release) for name, release in releases.items()})

    def run(script, program=("bash", "-euo", "pipefail", "-c")):
        done = subprocess.run([*program, script], env=environment, cwd=root, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    with served(create_api(backend, root / "data", ServingConfig()), backend) as url:
        lines = exports.replace(PRINTED_URL, url) + 'echo "$EV_URL $EV_API_KEY"'
        environment["EV_URL"], environment["EV_API_KEY"] = run(lines).split()
        run.data_root = root / "data"
        yield run


def test_every_curl_example_succeeds(shell):
    said = [(line, shell(line)) for line in curls()]
    assert len(said) == 6
    answers = {re.search(r"/v1/\w+", line)[0]: json.loads(text) for line, text in said if '"stream"' not in line}
    assert answers["/v1/answers"]["citations"][0]["url"].startswith("https://example.org/")
    assert answers["/v1/answers"]["answer"] == ANSWER
    assert answers["/v1/answers"]["id"] == "my-first-question"
    assert answers["/v1/classify"]["label"] == "card arrival"
    assert answers["/v1/extract"]["answer"] == "every three months"
    assert answers["/v1/extract"]["start"] is not None
    assert [model["id"] for model in answers["/v1/models"]["data"]] == ["ev_charging", "banking", "squad@candidate"]

    (streamed,) = [text for line, text in said if '"stream"' in line]
    names = re.findall(r"^event: (\w+)", streamed, flags=re.MULTILINE)
    assert (names[0], set(names[1:-1]), names[-1]) == ("citations", {"delta"}, "done")

    (kept,) = read_journal(shell.data_root, "feedback").to_dicts()
    assert (kept["request_id"], kept["feedback_id"]) == ("my-first-question", answers["/v1/feedback"]["id"])


def test_openai_example_prints_answers_and_sources(shell):
    (example,) = blocks("python")
    first, sources, streamed = shell(example, program=(sys.executable, "-c")).splitlines()
    assert first == f"ev_charging@3 {ANSWER}"
    assert "https://example.org/operations-manual.pdf" in sources
    assert streamed == ANSWER


def test_options_and_settings_that_are_named_exist():
    import typer

    from ev_platform.cli import app
    from ev_platform.settings import Settings

    names = {f"EV_{name.upper()}" for name in Settings.model_fields}
    assert set(re.findall(r"\bEV_[A-Z_]+", SECTION)) - {"EV_URL", "EV_API_KEY"} <= names

    def options(command):
        found = {option for parameter in command.params for option in parameter.opts}
        return found.union(*(options(child) for child in getattr(command, "commands", {}).values()))

    # curl's and Ray's programs have none that are spelled in full here.
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", SECTION)) <= options(typer.main.get_command(app))


def test_views_that_are_named_exist(tmp_path):
    import duckdb

    from ev_platform.storage import Store

    named = set(re.findall(r"\bFROM (\w+)", SECTION)) | {"request_citations", "serving_days"}
    with duckdb.connect(str(Store(tmp_path).rebuild_catalogue()), read_only=True) as catalogue:
        views = {name for (name,) in catalogue.execute("SELECT view_name FROM duckdb_views()").fetchall()}
    assert {"requests", "feedback_sources"} <= named <= views
