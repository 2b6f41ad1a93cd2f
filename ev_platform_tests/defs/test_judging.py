"""The asset `pair_judgements` over stored rows: what it asks, what it says of itself, and when it asks again."""

import json

import dagster as dg
import pytest

from ev_platform.settings import get_settings
from ev_platform_tests.dataset import honest
from ev_platform_tests.evaluation.test_judge import CONFIG, ROWS, prefer_first, tables, write_task
from ev_platform_tests.teachers.anthropic_server import AnthropicServer
from ev_platform_tests.test_graph import Workspace


@pytest.fixture
def workspace(tmp_path):
    """A task with answers of its systems."""
    workspace = Workspace(tmp_path)
    write_task(workspace.task)
    for table, frame in zip(("predictions", "benchmark", "chunks"), tables(), strict=True):
        workspace.store.publish(table, "tiny", frame)
    return workspace


@pytest.fixture
def serve(tmp_path, monkeypatch):
    servers = []
    monkeypatch.setenv("ANTHROPIC_API_KEY", "test-key")

    def serve(answerer):
        servers.append(AnthropicServer(tmp_path / f"server-{len(servers)}.jsonl", answerer=answerer))
        monkeypatch.setenv("ANTHROPIC_BASE_URL", servers[-1].url)
        return servers[-1]

    yield serve
    for server in servers:
        server.close()
    get_settings.cache_clear()


def materialize(workspace):
    """Materialize the asset and its check; return the asset's metadata and the check's evaluation."""
    with workspace.graph() as defs:
        from ev_platform.defs.judging import assets, checks

        sources = [dg.AssetSpec(name) for name in ("predictions", "benchmark", "chunks")]
        resources = {name: defs.resources[name] for name in ("store", "io_manager")}
        result = dg.materialize([*sources, *assets, *checks], resources=resources, partition_key="tiny")
    (made,) = result.asset_materializations_for_node("pair_judgements")
    (check,) = result.get_asset_check_evaluations()
    return {name: value.value for name, value in made.metadata.items()}, check


def test_asset_judges_once_says_what_came_of_it_and_costs_nothing_when_nothing_changed(workspace, serve):
    server = serve(honest.reply)
    told, check = materialize(workspace)
    assert {name: told[name] for name in ("n_judged", "better", "worse", "tie", "inconsistent")} == {
        "n_judged": 6,
        "better": 2,
        "worse": 1,
        "tie": 3,
        "inconsistent": 0,
    }
    assert told["compared"] == "tuned_rag with base_rag" and told["cost_usd"] == pytest.approx(
        server.stats()["cost_usd"]
    )
    assert check.passed and not told["unchanged"]
    told, _ = materialize(workspace)
    assert told["unchanged"] and server.stats()["n_requests"] == 2 * (len(ROWS) - 1)


def test_asset_takes_up_what_people_judged_without_paying_again(workspace, serve):
    server = serve(honest.reply)
    first, _ = materialize(workspace)
    assert "agreement" not in first
    (workspace.task / "judgements.csv").write_text(
        "question,answer_a,answer_b,better\nWhat locks it?,a spring,a motor,b\n", encoding="utf-8"
    )
    told, _ = materialize(workspace)
    assert (told["n_judged_by_people"], told["agreement"], told["unchanged"]) == (1, 1.0, False)
    assert server.stats()["n_requests"] == 2 * (len(ROWS) - 1)
    sheet = (workspace.store.root / "reports" / "tiny_judgements.csv").read_text(encoding="utf-8-sig")
    assert told["sheet_for_people"].endswith("reports/tiny_judgements.csv") and sheet.startswith("question,reference")


def test_check_warns_of_a_judge_that_prefers_a_place(workspace, serve):
    serve(prefer_first)
    _, check = materialize(workspace)
    assert not check.passed and check.severity == dg.AssetCheckSeverity.WARN
    assert check.description == "5 of 5 verdicts change with the order of the answers."


def test_asset_of_an_offline_teacher_is_empty_and_says_why(workspace):
    (workspace.task / "config.yaml").write_text(json.dumps(CONFIG | {"teacher": {"provider": "offline"}}))
    told, check = materialize(workspace)
    assert told["why"].startswith("The offline teacher has no language model")
    assert (told["n_judged"], told["cost_usd"]) == (0, 0) and check.passed
    assert workspace.read("pair_judgements").is_empty()
