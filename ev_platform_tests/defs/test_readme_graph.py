"""What README says of jobs, sensors and pools is what the graph has."""

import re
from pathlib import Path

import dagster as dg
import pytest

from ev_platform.definitions import defs
from ev_platform.defs.jobs import jobs
from ev_platform.defs.stage import POOLS

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module")
def section():
    _, _, rest = README.read_text(encoding="utf-8").partition("## In the Dagster UI\n")
    return re.split(r"\n#{1,3} ", rest)[0]


def rows(section, head):
    """Return the cells of the table under a head, by the name in the first of them."""
    _, _, rest = section.partition(f"| {head} |")
    lines = rest.split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {name.strip("`"): others for name, *others in cells}


def test_readme_names_every_job_and_what_it_spends(section):
    told = {job.name: [job.description.split(" What did not change")[0], job.tags["ev/spends"]] for job in jobs}
    assert rows(section, "job") == told


def test_readme_names_every_sensor(section):
    told = {sensor.name: [sensor.description] for sensor in defs.get_repository_def().sensor_defs}
    assert rows(section, "sensor") == told


def test_readme_names_every_pool_and_its_assets(section):
    graph, pools = defs.resolve_asset_graph(), {name: [] for name in POOLS}
    for key in sorted(graph.get_all_asset_keys(), key=dg.AssetKey.to_user_string):
        for pool in graph.get(key).pools or ():
            pools[pool].append(f"`{key.to_user_string()}`")
    assert rows(section, "pool") == {name: [POOLS[name], ", ".join(assets)] for name, assets in pools.items()}
