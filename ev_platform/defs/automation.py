"""What Dagster materializes by itself once what it is made from has changed: the catalogue's views, and nothing else.

Everything that costs time or money is started by a person, by Prefect's schedule, or by a sensor (`sensors`) that a
person has switched on. What does not belong here: schedules. Prefect has the only one.
"""

from collections.abc import Iterable
from typing import Any

import dagster as dg

# Once a run that made some of its tables has come to its end: during it, half of them are of the run before.
AFTER_RUNS = (
    dg.AutomationCondition.any_deps_updated().since_last_handled()
    & ~dg.AutomationCondition.any_deps_in_progress()
    & ~dg.AutomationCondition.in_progress()
)

views_after_runs = dg.AutomationConditionSensorDefinition(
    "views_after_runs",
    target=dg.AssetSelection.groups("lineage"),
    default_status=dg.DefaultSensorStatus.RUNNING,
    minimum_interval_seconds=30,
    description="Shows the catalogue's views anew, and checks them, after each run that changed a table. Takes "
    "seconds; on unless switched off.",
)


def after_runs(assets: Iterable[Any]) -> list[Any]:
    """Return assets that are materialized again after each run that changed what they are made from."""
    return [
        asset.map_asset_specs(lambda spec: spec.replace_attributes(automation_condition=AFTER_RUNS)) for asset in assets
    ]
