"""The rules and the dashboard ask for what the server tells, and nothing else."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import promql_parser
import pytest
import yaml
from prometheus_client.metrics_core import Metric

from ev_platform.serving import metrics

MONITORING = Path(__file__).parents[2] / "deploy" / "monitoring"
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count"), "info": ("_info",)}
# Of Prometheus itself, and what a process tells only on some systems.
GIVEN = {"up", "process_resident_memory_bytes", "process_open_fds", "process_max_fds", "process_cpu_seconds_total"}
ADDED_LABELS = {"le", "job", "instance"}


def exposed():
    """Return the names of all series, each with its labels."""
    series = {}
    for collector in set(metrics.REGISTRY._names_to_collectors.values()):
        labels = set(getattr(collector, "_labelnames", ()))
        for family in collector.collect():
            assert isinstance(family, Metric)
            series |= {family.name + suffix: labels for suffix in SUFFIXES[family.type]}
    return series


def rules():
    (group,) = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    return group["rules"]


def dashboard():
    return json.loads((MONITORING / "grafana" / "dashboards" / "ev-platform.json").read_text())


def queries():
    """Return every expression by where it stands."""
    found = {rule["alert"]: rule["expr"] for rule in rules()}
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            found[f"{panel['title']} {target['refId']}"] = target["expr"].replace("$__rate_interval", "5m")
    for note in dashboard()["annotations"]["list"]:
        found[note["name"]] = note["expr"]
    return found


def selectors(expression):
    """Return the series that an expression reads."""
    found = []

    def visit(node):
        for name in ("lhs", "rhs", "expr", "param", "vector_selector", "vs"):
            child = getattr(node, name, None)
            if child is not None and not isinstance(child, str):
                visit(child)
        for child in getattr(node, "args", ()) or ():
            visit(child)
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)

    visit(promql_parser.parse(expression))
    return found


def test_selectors_of_an_expression_are_all_found():
    text = "quantile(0.9, sum by (le) (rate(a_bucket[5m]))) > (b offset 1h) / c and -max_over_time(d[1h:5m]) or e"
    assert sorted(selector.name for selector in selectors(text)) == ["a_bucket", "b", "c", "d", "e"]


@pytest.mark.parametrize(("where", "expression"), queries().items(), ids=queries().keys())
def test_query_reads_series_and_labels_that_the_server_has(where, expression):
    series = exposed()
    read = selectors(expression)
    assert read
    for selector in read:
        assert selector.name in series or selector.name in GIVEN
        asked = {matcher.name for matcher in selector.matchers.matchers}
        assert asked <= series.get(selector.name, set()) | ADDED_LABELS
    # What is grouped by is a label of something that is read.
    known = set().union(*(series.get(selector.name, set()) for selector in read)) | ADDED_LABELS
    grouped = {name for names in re.findall(r"\bby\s*\(([^)]*)\)", expression) for name in re.split(r"[,\s]+", names)}
    assert grouped <= known


def test_every_figure_of_the_server_is_looked_at_by_a_rule_or_a_panel():
    own = {name.removesuffix("_bucket") for name in exposed() if name.startswith("ev_")}
    own = {name for name in own if not name.endswith(("_sum", "_count"))}
    read = {re.sub("_(bucket|sum|count)$", "", s.name) for text in queries().values() for s in selectors(text)}
    assert own - read == set()


def test_labels_that_legends_and_messages_show_are_there():
    series = exposed()
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            known = set().union(
                *(series.get(s.name, set()) for s in selectors(queries()[f"{panel['title']} {target['refId']}"]))
            )
            shown = set(re.findall(r"\{\{\s*(\w+)\s*\}\}", target.get("legendFormat", "")))
            assert shown <= known
    for rule in rules():
        known = set().union(*(series.get(s.name, set()) for s in selectors(rule["expr"])))
        told = set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())))
        assert told <= known
        assert rule["labels"]["severity"] in ("page", "ticket")


def test_buckets_that_queries_name_are_there():
    bounds = {f"{float(bound):g}" for bound in metrics._COSINE}
    named = {
        matcher.value
        for text in queries().values()
        for selector in selectors(text)
        for matcher in selector.matchers.matchers
        if matcher.name == "le"
    }
    assert named
    assert named <= bounds


def test_dashboard_reads_the_provisioned_source_and_has_no_two_panels_in_one_place():
    source = yaml.safe_load((MONITORING / "grafana/provisioning/datasources/prometheus.yml").read_text())
    (uid,) = [each["uid"] for each in source["datasources"]]
    panels = dashboard()["panels"]
    assert {panel["datasource"]["uid"] for panel in panels if panel["type"] != "row"} == {uid}
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = [
        (x, y)
        for panel in panels
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(taken) == len(set(taken))
    assert max(x for x, _ in taken) < 24


@pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool, of Debian's package prometheus, is not installed"
)
def test_promtool_accepts_the_configuration_and_the_rules_do_as_they_should(tmp_path):
    shutil.copytree(MONITORING, tmp_path / "monitoring")
    (tmp_path / "monitoring" / "ev-platform.key").write_text("ev_00000000_x")
    # The key of Compose's is a secret that lies in its containers only.
    theirs = ["check", "config", "--syntax-only", "prometheus.compose.yml"]
    for command in (["check", "config", "prometheus.yml"], theirs, ["test", "rules", "alerts_test.yml"]):
        done = subprocess.run(
            ["promtool", *command], cwd=tmp_path / "monitoring", capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_shares_count_the_same_routes_above_and_below():
    for rule in rules():
        counted = [s for s in selectors(rule["expr"]) if s.name == "ev_requests_total"]
        routes = {str([m.value for m in s.matchers.matchers if m.name == "route"]) for s in counted}
        assert len(routes) <= 1, rule["alert"]
