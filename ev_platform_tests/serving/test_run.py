import socket
import threading
import time
from pathlib import Path

import httpx
import pytest

from ev_platform.errors import UserError
from ev_platform.serving import run
from ev_platform.serving.keys import create_key, revoke_key
from ev_platform_tests.serving import fakes
from ev_platform_tests.serving.versions import point

SEEN_WITHIN_S = 5


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def enter(root: Path, port: int) -> None:
    with run.serving("fake_task", data_root=root, tasks_dir=root, host="127.0.0.1", port=port, load=fakes.load):
        pass


def test_server_without_any_key_refuses_to_start_and_tells_the_command(tmp_path):
    with pytest.raises(UserError, match=r"no live API key in .* make one with `ev-platform keys create NAME`"):
        enter(tmp_path, free_port())


def test_server_with_only_revoked_keys_refuses_to_start(tmp_path):
    revoke_key(tmp_path, create_key(tmp_path, "lost")[3:11])
    with pytest.raises(UserError, match="no live API key"):
        enter(tmp_path, free_port())


def test_port_that_is_taken_is_named(tmp_path):
    create_key(tmp_path, "tests")
    with socket.socket() as other:
        # Ray's proxies share ports in this way, so two servers on one would take turns.
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"Cannot listen on 127.0.0.1 port {port} .*in use.*EV_PORT"):
            enter(tmp_path, port)


def test_ray_serve_answers_over_http_logs_no_secret_and_leaves_nothing_running(tmp_path):
    import ray

    key, port = create_key(tmp_path, "tests"), free_port()
    headers = {"Authorization": f"Bearer {key}", "X-Request-ID": "from-the-client"}
    body = {"messages": [{"role": "user", "content": "a private matter of the RCD"}]}
    with run.serving(
        "fake_task", data_root=tmp_path, tasks_dir=tmp_path, host="127.0.0.1", port=port, load=fakes.load
    ) as url:
        logs = Path(ray._private.worker._global_node.get_logs_dir_path())
        assert httpx.get(f"{url}/healthz").json() == {"status": "ok", "model": "fake_task@3"}

        answer = httpx.post(f"{url}/v1/chat/completions", headers=headers, json=body)
        assert answer.status_code == 200
        assert answer.json()["sources"][0]["chunk_id"] == "chk_manual"
        assert answer.json()["id"] == "chatcmpl-from-the-client"
        assert answer.headers.get_list("x-request-id") == ["from-the-client"]

        refused = httpx.post(f"{url}/v1/chat/completions", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        assert refused.headers["x-request-id"]
        large = httpx.post(f"{url}/v1/chat/completions", headers=headers, content=iter([b" " * 40_000] * 2))
        assert (large.status_code, large.json()["error"]["code"]) == (413, "too_large")

        body["messages"][0]["content"] += ", explode"
        assert httpx.post(f"{url}/v1/chat/completions", headers=headers, json=body).status_code == 500

        revoke_key(tmp_path, key[3:11])
        assert httpx.get(f"{url}/v1/models", headers=headers).status_code == 401

        # Last, since it replaces the replica: what cannot be loaded is told in the loader's own sentence.
        with pytest.raises(UserError, match=r"^There is no model of 'fake_task' yet: train one\.$"):
            run._deploy(fakes.load_missing, (tmp_path, tmp_path, "fake_task", None), 1, 1)

        text = "\n".join(file.read_text(errors="replace") for file in logs.rglob("*") if file.is_file())
        assert "An answer failed with RuntimeError" in text
        assert "POST /v1/chat/completions 200" in text
        assert "private matter" not in text
        assert key[12:] not in text

    assert not ray.is_initialized()
    assert not logs.exists()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/healthz")


@pytest.mark.slow  # most of it Ray's start; test_live has the same through uvicorn
def test_rollback_reaches_every_replica_within_seconds_and_fails_no_request(tmp_path):
    key, replies, stop = create_key(tmp_path, "tests"), [], threading.Event()
    point(tmp_path, "fake_task", champion="fake_task@2", previous="fake_task@1")

    def ask_without_pause():
        body = {"messages": [{"role": "user", "content": "How often?"}], "model": "champion"}
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=30) as client:
            while not stop.is_set():
                reply = client.post("/v1/chat/completions", json=body)
                replies.append((time.monotonic(), reply.status_code, reply.text))

    def at(version):
        return [when - rolled_back for when, _, text in list(replies) if f"I am {version}." in text]

    with run.serving(
        "fake_task",
        data_root=tmp_path,
        tasks_dir=tmp_path,
        host="127.0.0.1",
        port=free_port(),
        replicas=2,
        load=fakes.load_named,
    ) as url:
        threads = [threading.Thread(target=ask_without_pause) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            while len(replies) < 20:
                time.sleep(0.01)
            rolled_back = time.monotonic()
            point(tmp_path, "fake_task", champion="fake_task@1")
            time.sleep(SEEN_WITHIN_S + 1.5)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert {status for _, status, _ in replies} == {200}
    assert all(f'"model":"fake_task@{2 if "I am fake_task@2." in text else 1}"' in text for _, _, text in replies)
    old, new = at("fake_task@2"), at("fake_task@1")
    assert len(old) + len(new) == len(replies)
    print(f"\n{len(replies)} requests, 0 failed; rolled back after {min(new):.2f} s, in both replicas {max(old):.2f} s")
    # Had one of the replicas not swapped, it would have answered its share of what follows.
    assert max(old) < SEEN_WITHIN_S
    assert len([when for when in new if when > SEEN_WITHIN_S]) > 50
