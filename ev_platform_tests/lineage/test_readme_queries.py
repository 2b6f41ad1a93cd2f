"""What README says of the views: its queries as they stand there, and its diagram."""

import re
from pathlib import Path

import duckdb
import pytest

from ev_platform.lineage.models import load_models
from ev_platform.lineage.schema import HISTORY
from ev_platform.storage import Store

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
_, _, SECTION = README.partition("\n## Lineage and SQL\n")
QUERIES = "".join(re.findall(r"```sql\n(.*?)```", SECTION, re.DOTALL))


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("readme")).rebuild_catalogue()


def test_queries_run_as_they_are_printed(catalogue):
    statements = duckdb.extract_statements(QUERIES)
    assert len(statements) == 8
    with duckdb.connect(str(catalogue), read_only=True) as connection:
        for statement in statements:
            assert connection.execute(statement).description


def test_diagram_shows_what_each_model_reads():
    (drawn,) = re.findall(r"```mermaid\ngraph LR\n(.*?)```", SECTION, re.DOTALL)
    edges = {}
    for line in drawn.strip().splitlines():
        sources, target = line.split("-->")
        edges[target.strip()] = {source.strip() for source in sources.split("&")}
    assert edges == {model.name: {table.removesuffix(HISTORY) for table in model.reads} for model in load_models()}


def test_every_view_is_named():
    assert [model.name for model in load_models() if f"`{model.name}`" not in SECTION] == []
