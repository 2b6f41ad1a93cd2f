"""What `ev-platform schedule` asks of Prefect; against a real server in `test_server`."""

from uuid import uuid4

from prefect.runner import Runner  # noqa: TID253 - Prefect's side of it
from prefect.settings import PREFECT_API_URL, temporary_settings  # noqa: TID253

from ev_platform.flows import weekly


def test_schedule_that_is_stopped_does_not_ask_prefect_to_pause_it(monkeypatch):
    served = []

    async def start(self, **options):
        served.append(self)

    monkeypatch.setattr(Runner, "start", start)
    monkeypatch.setattr(Runner, "add_flow", lambda *_, **__: uuid4())
    for name in ("check_request", "_end_dead"):
        monkeypatch.setattr(weekly, name, lambda *_: None)
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        weekly.serve_weekly(["tiny"], "0 4 * * 1", "UTC")
    (runner,) = served
    assert not runner.pause_on_shutdown  # else the server deletes the runs that come due until it is started again
