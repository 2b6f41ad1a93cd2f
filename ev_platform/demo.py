"""The demo: everything on the embedded example, and one question asked over HTTP."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel

from ev_platform.errors import UserError
from ev_platform.settings import get_settings

TASK = "ev_charging"
QUESTION = "How much power does a 48 A J3400 station give at 277 V?"
TIMEOUT_S = 120
KEY_DAYS = 30


def run_demo(console: Console, port: int) -> None:
    """Materialize the example's graph, serve its model, ask it one question and say where to go next.

    Args:
        console: Where a person reads.
        port: Of the endpoint.
    """
    from ev_platform.evaluation.report import print_table
    from ev_platform.flows.weekly import materialize_graph
    from ev_platform.registry import read_aliases
    from ev_platform.serving.endpoint import Endpoint
    from ev_platform.serving.keys import create_key
    from ev_platform.serving.run import serving
    from ev_platform.storage import Store, now

    settings = get_settings()
    store = Store(settings.data_root)
    endpoint = Endpoint(settings.host, port, settings.tls_certificate, settings.tls_key)
    endpoint.check()  # told now, not after ten minutes of work
    console.rule("1  sources → corpus → dataset → training → evaluation → registry")
    result = materialize_graph(tasks=[TASK])[TASK]
    console.print(f"Computed: {', '.join(result.computed) or 'nothing, no change'}", soft_wrap=True)
    console.rule("2  every system on the hand-written test rows")
    console.print(print_table(store.read("eval_report", TASK)))
    newest = store.read("registered_model", TASK).tail(1).to_dicts()[0]
    console.print(f"{newest['model_version']}: [bold]{newest['verdict']}[/]. {newest['reason']}", soft_wrap=True)
    console.print(f"[bold]{result.outcome}[/]: {escape(result.reason)}", soft_wrap=True, highlight=False)
    aliases = read_aliases(store, TASK)
    alias = "champion" if "champion" in aliases else "candidate"
    if alias == "candidate":
        console.print("[yellow]There is no champion: the demo serves the candidate, to show the endpoint.[/]")
    console.rule("3  served, asked over HTTP")
    key = create_key(settings.data_root, "demo", expires_at=now() + timedelta(days=KEY_DAYS))
    with serving(
        [TASK if alias == "champion" else f"{TASK}@{alias}"],
        data_root=settings.data_root,
        tasks_dir=settings.tasks_root,
        endpoint=endpoint,
        config=settings.serving,
    ) as url:
        print_answer(console, QUESTION, ask_endpoint(url, key, QUESTION))
    console.rule("where to go next")
    # Printed here and nowhere else: only its hash is stored.
    console.print(f"API key (shown once, valid for {KEY_DAYS} days): {key}", soft_wrap=True, highlight=False)
    served = f" {TASK}@{alias}" if alias != "champion" else ""
    console.print(
        f"endpoint  .venv/bin/ev-platform serve{served}, then the chat page at {endpoint.url}, or in another shell\n"
        "          EV_API_KEY=... .venv/bin/ev-platform ask 'What is Plug & Charge?'\n"
        "UI        make dev, then http://127.0.0.1:3000 (assets, plots, checks)\n"
        "query     .venv/bin/ev-platform query 'FROM model_sources', or any DuckDB client on\n"
        f"          {store.catalogue}\n"
        f"report    {store.root / 'reports' / TASK}.html",
        soft_wrap=True,
        highlight=False,
    )


def ask_endpoint(url: str, key: str, question: str, model: str | None = None) -> dict[str, Any]:
    """Post a question to `/v1/chat/completions`, which every task answers at, and return the reply.

    Args:
        url: Of the endpoint.
        key: API key.
        question: The question, or a text to label.
        model: What to ask; the endpoint's first model where None.

    Raises:
        UserError: If the endpoint is not there or refuses.
    """
    import httpx

    try:
        reply = httpx.post(
            f"{url.rstrip('/')}/v1/chat/completions",
            headers={"Authorization": f"Bearer {key}"},
            json={"messages": [{"role": "user", "content": question}], "model": model},
            timeout=TIMEOUT_S,
        )
    except httpx.HTTPError as error:
        raise UserError(f"{url} did not answer ({type(error).__name__}): start it with `ev-platform serve`.") from error
    if reply.status_code != 200:
        try:
            message = reply.json()["error"]["message"]
        except (ValueError, KeyError, TypeError):
            message = reply.text[:200]
        raise UserError(f"{url} answered {reply.status_code}: {message}")
    return reply.json()


def print_answer(console: Console, question: str, reply: dict[str, Any]) -> None:
    """Print a reply with its sources."""
    lines = [f"[bold]{escape(reply['choices'][0]['message']['content'])}[/]", ""]
    for number, source in enumerate(reply["sources"], 1):
        page = f", page {source['page']}" if source["page"] else ""
        lines.append(escape(f"[{number}] {source['heading'] or source['title']}{page}"))
        lines.append(
            f"    {source['url']}  {source['licence']}  fetched {source['fetched_at'][:16].replace('T', ' ')} UTC"
        )
    lines.append(f"\nmodel {reply['model']}, {reply['usage']['completion_tokens']} tokens")
    console.print(Panel("\n".join(lines), title=escape(question), title_align="left"), highlight=False)
