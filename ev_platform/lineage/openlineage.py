"""The graph's history as OpenLineage events, for catalogues that already know other pipelines.

One run for each stored version of a table, told by a START and a COMPLETE event, and one event for each SQL model,
which is a view and has no runs. Every id and time comes from the sidecar records, so telling it again tells the same.

What belongs here: turning records and column lineage into events. What does not: when they are sent
(`cli_openlineage`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import NAMESPACE_URL, uuid5

from ev_platform.errors import UserError
from ev_platform.files import write_atomic
from ev_platform.lineage.catalogue import open_catalogue
from ev_platform.lineage.columns import column_lineage, described_columns
from ev_platform.lineage.models import SqlModel, load_models
from ev_platform.lineage.schema import HISTORY, built_in
from ev_platform.storage import Store

if TYPE_CHECKING:
    from openlineage.client.event_v2 import JobEvent, RunEvent

_MADE = """
    SELECT "table", task, version, fingerprint, n_rows, started_at, finished_at, code_version
    FROM materializations WHERE task = coalesce(?, task) ORDER BY finished_at, "table", version"""
_READ = """
    SELECT e.task, e.to_table, e.to_version, e.from_table, e.fingerprint, m.n_rows
    FROM asset_edges AS e
    LEFT JOIN materializations AS m ON m.task = e.task AND m."table" = e.from_table AND m.version = e.from_version
    WHERE e.task = coalesce(?, e.task) ORDER BY ALL"""
_ENDPOINT = "api/v1/lineage"


def lineage_events(
    store: Store, task: str | None = None, namespace: str = "ev-platform"
) -> Iterator[RunEvent | JobEvent]:
    """Yield the events of one task, or of all, oldest first; those of the SQL models come last.

    Args:
        store: Whose records are told.
        task: Only this one.
        namespace: Of jobs and datasets; tells apart the installations that a catalogue collects from.

    Raises:
        UserError: If nothing is stored, or the extra is not installed.
    """
    try:
        from openlineage.client.generated import base
    except ImportError as error:
        raise UserError("OpenLineage is an extra of its own: `pip install ev-platform[openlineage]`.") from error
    with open_catalogue(store) as connection:
        made = connection.execute(_MADE, [task]).fetchall()
        read: dict[tuple[str, ...], list[tuple[str, str, int | None]]] = {}
        for of, table, made_version, *source in connection.execute(_READ, [task]).fetchall():
            read.setdefault((of, table, made_version), []).append(tuple(source))
    if not made:
        raise UserError(f"Nothing is stored{f' for the task {task!r}' if task else ''} in {store.root}: run it first.")
    base.set_producer(f"urn:ev-platform:{version('ev-platform')}")
    build = _Builder(namespace)
    last: dict[str, datetime] = {}
    for table, of, made_version, print_, n_rows, started, finished, code in made:
        last[of] = finished
        yield from build.run(
            of, table, made_version, print_, n_rows, (started, finished), code, read.get((of, table, made_version), [])
        )
    for of, at in sorted(last.items()):
        yield from (build.model(of, model, at) for model in load_models())


def send_events(events: Iterable[Any], url: str, api_key: str = "") -> int:
    """Send events to a catalogue over HTTP through the client, which retries; return their number.

    Args:
        events: From `lineage_events`.
        url: Of the catalogue; without a path, the standard one is added.
        api_key: Sent as a bearer token.

    Raises:
        UserError: If the catalogue cannot be reached or refuses an event; those before it have arrived.
    """
    import requests
    from openlineage.client import OpenLineageClient
    from openlineage.client.transport.http import ApiKeyTokenProvider, HttpConfig, HttpTransport, TokenProvider

    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise UserError(f"{url!r} is no address: give http(s)://host[:port][/path], or a file that ends in .jsonl.")
    config = HttpConfig(
        url=f"{parts.scheme}://{parts.netloc}",
        endpoint=parts.path.strip("/") or _ENDPOINT,
        auth=ApiKeyTokenProvider({"apiKey": api_key}) if api_key else TokenProvider({}),
    )
    client, n = OpenLineageClient(transport=HttpTransport(config)), 0
    try:
        for event in events:
            client.emit(event)
            n += 1
    except requests.RequestException as error:
        raise UserError(
            f"{parts.netloc} took {n} events, then not: {error}. Send them again: that changes nothing."
        ) from error
    finally:
        client.close()
    return n


def write_events(events: Iterable[Any], file: Path) -> int:
    """Write events to a file, one JSON object a line, in place of what it held; return their number."""
    from openlineage.client.serde import Serde

    lines = [Serde.to_json(event) for event in events]
    write_atomic(file, "".join(f"{line}\n" for line in lines).encode())
    return len(lines)


class _Builder:
    def __init__(self, namespace: str):
        self.namespace = namespace

    def run(
        self,
        task: str,
        table: str,
        made_version: str,
        print_: str,
        n_rows: int,
        times: tuple[datetime, datetime],
        code: str,
        sources: list[tuple[str, str, int | None]],
    ) -> Iterator[RunEvent]:
        from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState
        from openlineage.client.facet_v2 import parent_run as parent
        from openlineage.client.generated.input_statistics_input_dataset import InputStatisticsInputDatasetFacet
        from openlineage.client.generated.output_statistics_output_dataset import OutputStatisticsOutputDatasetFacet

        run = Run(
            self._id(task, table, made_version),
            {
                # No record says which run of the scheduler it was: the task's whole graph is the parent.
                "parent": parent.ParentRunFacet(
                    parent.Run(self._id(task)), parent.Job(namespace=self.namespace, name=task)
                )
            },
        )
        inputs = [
            InputDataset(
                self.namespace,
                f"{task}/{source}",
                facets=self._stored(source, of),
                inputFacets={"inputStatistics": InputStatisticsInputDatasetFacet(rowCount=rows)}
                if rows is not None
                else {},
            )
            for source, of, rows in sources
            if source in built_in()  # an input can also be a setting
        ]
        output = OutputDataset(
            self.namespace,
            f"{task}/{table}",
            facets=self._stored(table, print_),
            outputFacets={"outputStatistics": OutputStatisticsOutputDatasetFacet(rowCount=n_rows)},
        )
        job = Job(self.namespace, f"{task}.{table}", self._job_facets("TABLE"))
        for state, at in zip((RunState.START, RunState.COMPLETE), times, strict=True):
            yield RunEvent(eventTime=_iso(at), eventType=state, run=run, job=job, inputs=inputs, outputs=[output])

    def model(self, task: str, model: SqlModel, at: datetime) -> JobEvent:
        from openlineage.client import facet_v2 as facets
        from openlineage.client.event_v2 import InputDataset, Job, JobEvent, OutputDataset

        columns = facets.column_lineage_dataset
        lineage = columns.ColumnLineageDatasetFacet(
            {
                column: columns.Fields(
                    [
                        columns.InputField(self.namespace, f"{task}/{table.removesuffix(HISTORY)}", origin)
                        for table, origin in origins
                    ]
                )
                for column, origins in column_lineage()[model.name].items()
                if origins
            }
        )
        fields = facets.schema_dataset
        schema = fields.SchemaDatasetFacet(
            [fields.SchemaDatasetFacetFields(c.name, c.type, c.description) for c in described_columns(model)]
        )
        said = facets.documentation_dataset.DocumentationDatasetFacet(model.description)
        return JobEvent(
            eventTime=_iso(at),
            job=Job(
                self.namespace,
                f"{task}.{model.name}",
                {**self._job_facets("VIEW"), "sql": facets.sql_job.SQLJobFacet(model.sql, "duckdb")},
            ),
            inputs=[
                InputDataset(self.namespace, f"{task}/{table}")
                for table in sorted({table.removesuffix(HISTORY) for table in model.reads})
            ],
            outputs=[
                OutputDataset(
                    self.namespace,
                    f"{task}/{model.name}",
                    facets={"schema": schema, "columnLineage": lineage, "documentation": said},
                )
            ],
        )

    def _id(self, *parts: str) -> str:
        return str(uuid5(NAMESPACE_URL, "/".join((self.namespace, *parts))))

    def _stored(self, table: str, content: str) -> dict[str, Any]:
        from openlineage.client.facet_v2 import dataset_version_dataset, schema_dataset

        columns = [schema_dataset.SchemaDatasetFacetFields(name, kind) for name, kind in built_in()[table].items()]
        return {
            "schema": schema_dataset.SchemaDatasetFacet(columns),
            "version": dataset_version_dataset.DatasetVersionDatasetFacet(content),
        }

    def _job_facets(self, kind: str) -> dict[str, Any]:
        from openlineage.client.facet_v2 import job_type_job

        return {"jobType": job_type_job.JobTypeJobFacet("BATCH", "EV_PLATFORM", kind)}


def _iso(at: datetime) -> str:
    return at.astimezone(UTC).isoformat()
