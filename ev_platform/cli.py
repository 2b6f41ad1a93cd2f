"""The command line: the same verbs as the stages, plus serving, asking and keys."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from ev_platform.cli_backup import backup_app, prepare
from ev_platform.cli_dataset import dataset_app
from ev_platform.cli_keys import keys_app
from ev_platform.cli_lineage import trace
from ev_platform.cli_models import models_app
from ev_platform.cli_openlineage import openlineage
from ev_platform.cli_report import report
from ev_platform.cli_requests import requests_app
from ev_platform.cli_run import run, schedule
from ev_platform.cli_takedown import takedown
from ev_platform.settings import get_settings
from ev_platform.terminal import console, plain_errors, quiet

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="A domain small-language-model factory: sources in, a traced, evaluated and served model out.\n\n"
    "Example: `ev-platform run --task ev_charging`",
)
task_app = typer.Typer(
    no_args_is_help=True,
    help="Task folders: make one, check one.\n\nExample: `ev-platform task check tasks/heat_pumps`",
)
app.add_typer(task_app, name="task")
app.add_typer(dataset_app, name="dataset")
app.add_typer(keys_app, name="keys")
app.add_typer(models_app, name="models")
app.add_typer(requests_app, name="requests")
app.add_typer(backup_app, name="backup")
app.command()(run)
app.command()(schedule)
app.command()(report)
app.command()(openlineage)
app.command()(trace)
app.command()(takedown)
app.command()(prepare)


@app.command()
@plain_errors
def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            help="What to serve: TASK (its champion), TASK@ALIAS or TASK@NUMBER; ev_charging by default. An alias is "
            "followed. The first answers requests that name no model."
        ),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; EV_HOST by default.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; EV_PORT by default.")] = None,
    replicas: Annotated[int, typer.Option(min=1, help="Processes that hold each model.")] = 1,
) -> None:
    """Serve registered models over HTTP, until stopped; a promotion or a rollback takes effect while it serves.

    It speaks HTTPS where EV_TLS_CERTIFICATE and EV_TLS_KEY name PEM files.

    Example: `ev-platform serve ev_charging squad@candidate --port 8000`
    """
    quiet()
    from ev_platform.serving import run as serving
    from ev_platform.serving.endpoint import Endpoint

    settings = get_settings()
    serving.serve(
        models or ["ev_charging"],
        data_root=settings.data_root,
        tasks_dir=settings.tasks_root,
        endpoint=Endpoint(host or settings.host, port or settings.port, settings.tls_certificate, settings.tls_key),
        config=settings.serving,
        replicas=replicas,
        on_ready=lambda url: console.print(f"Serving {', '.join(models or ['ev_charging'])} at {url} (Ctrl-C stops)"),
    )


@app.command()
@plain_errors
def dev(port: Annotated[int, typer.Option(help="Port of the UI.")] = 3000) -> None:
    """Open the graph in the Dagster UI, with every run that was made here, until stopped.

    Example: `ev-platform dev --port 3000`
    """
    from ev_platform.defs.instance import end_dead_runs_of
    from ev_platform.defs.run import dagster_home

    home = dagster_home(get_settings().data_root)
    end_dead_runs_of(home)  # of an earlier UI that was killed with its runs: nobody else tells that they are over
    environment = os.environ | {"DAGSTER_HOME": str(home)}
    dagster = str(Path(sys.executable).with_name("dagster"))
    os.execve(dagster, [dagster, "dev", "-m", "ev_platform.definitions", "-p", str(port)], environment)  # noqa: S606


@app.command()
@plain_errors
def ask(
    question: Annotated[str, typer.Argument(help="The question.")],
    url: Annotated[str | None, typer.Option(help="Where the endpoint listens; EV_HOST and EV_PORT by default.")] = None,
    key: Annotated[str, typer.Option(envvar="EV_API_KEY", help="API key.")] = "",
    model: Annotated[str | None, typer.Option(help="What to ask; the endpoint's first model by default.")] = None,
) -> None:
    """Ask a running endpoint and print the answer with its sources.

    Example: `EV_API_KEY=ev_... ev-platform ask "How much current can a liquid-cooled CCS cable carry?"`
    """
    from ev_platform.demo import ask_endpoint, print_answer

    settings = get_settings()
    url = url or f"http{'s' if settings.tls_certificate else ''}://{settings.host}:{settings.port}"
    print_answer(console, question, ask_endpoint(url, key, question, model))


@app.command()
@plain_errors
def demo(port: Annotated[int | None, typer.Option(help="Port of the endpoint; EV_PORT by default.")] = None) -> None:
    """Run the whole path on the embedded example: sources, corpus, dataset, training, evaluation, serving, an answer.

    Example: `ev-platform demo`
    """
    quiet()
    from ev_platform.demo import run_demo

    run_demo(console, port or get_settings().port)


@app.command()
@plain_errors
def catalogue() -> None:
    """Rebuild the DuckDB catalogue and print where it is.

    Example: `ev-platform catalogue`
    """
    from ev_platform.storage import Store

    console.print(str(Store(get_settings().data_root).rebuild_catalogue()), soft_wrap=True)


@app.command()
@plain_errors
def query(
    sql: Annotated[str, typer.Argument(help="One SELECT, or FROM and a view's name.")],
    limit: Annotated[int, typer.Option(min=1, help="Most rows to print.")] = 40,
) -> None:
    """Query the catalogue, read-only.

    Example: `ev-platform query "FROM model_sources"`
    """
    from ev_platform.lineage.catalogue import show_query
    from ev_platform.storage import Store

    show_query(Store(get_settings().data_root), sql, max_rows=limit, max_width=console.width)


@task_app.command("new")
@plain_errors
def task_new(
    name: Annotated[str, typer.Argument(help="Letters, digits, _ and -.")],
    description: Annotated[str, typer.Option(help="What the model is for, in a sentence or two.")],
    task_type: Annotated[str, typer.Option("--type", help="Task type.")] = "open_book_qa",
) -> None:
    """Write a task folder below EV_TASKS_DIR to fill in; nothing that exists is overwritten.

    Example: `ev-platform task new heat_pumps --type open_book_qa --description "Answer questions about heat pumps."`
    """
    from ev_platform.tasks.folders import new_task

    folder = new_task(name, task_type, description, get_settings().tasks_root)
    console.print(f"Made {escape(str(folder))}: its README.md says what to fill in.", soft_wrap=True, highlight=False)
    console.print(f"Then: `ev-platform task check {escape(str(folder))}`", soft_wrap=True, highlight=False)


@task_app.command("check")
@plain_errors
def task_check(
    folder: Annotated[Path, typer.Argument(help="The task's folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with every finding and pair.")] = False,
) -> None:
    """Say what is in a task folder, what stops a run, and what is doubtful about its rows; exit code 1 if a run stops.

    Example: `ev-platform task check tasks/heat_pumps`
    """
    from ev_platform.tasks.folders import check_folder
    from ev_platform.tasks.folders.show import print_report

    settings = get_settings()
    folder = folder.resolve()
    report = check_folder(folder, settings.data_root / "inbox" / folder.name)
    if as_json:
        sys.stdout.write(json.dumps(report.as_dict(), ensure_ascii=False, indent=2) + "\n")
    else:
        print_report(console, report)
        if report.is_ok:
            where = "" if folder.parent == settings.tasks_root else f"EV_TASKS_DIR={folder.parent} "
            said = f"Nothing stops a run: `{where}ev-platform run --task {report.task}`"
            console.print(escape(said), soft_wrap=True, highlight=False)
    if not report.is_ok:
        raise typer.Exit(1)


def main() -> None:
    """Entry point for `python -m ev_platform.cli`."""
    app()


if __name__ == "__main__":
    main()
