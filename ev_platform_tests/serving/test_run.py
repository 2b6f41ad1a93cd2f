import itertools
import json
import socket
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import httpx
import pytest

from ev_platform.errors import UserError
from ev_platform.serving import run
from ev_platform.serving.config import ServingConfig
from ev_platform.serving.endpoint import Endpoint
from ev_platform.serving.gate import MAX_BODY_BYTES
from ev_platform.serving.journal import read_journal
from ev_platform.serving.keys import UNLIMITED, create_key, revoke_key
from ev_platform_tests.ports import free_port
from ev_platform_tests.serving import fakes
from ev_platform_tests.serving.versions import point

SEEN_WITHIN_S = 5


def enter(root: Path, port: int = 0, models=("fake_task",), load=fakes.load, **tls) -> None:
    endpoint = Endpoint("127.0.0.1", port or free_port(), **tls)
    with run.serving(list(models), data_root=root, tasks_dir=root, endpoint=endpoint, load=load):
        pass


def write_certificate(folder: Path) -> tuple[Path, Path]:
    """Write a certificate of 127.0.0.1, signed by itself, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    files = folder / "certificate.pem", folder / "key.pem"
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files


# ---- what is told before anything starts ----


def test_server_without_any_key_refuses_to_start_and_tells_the_command(tmp_path):
    with pytest.raises(UserError, match=r"no live API key .* make one with `ev-platform keys create NAME`"):
        enter(tmp_path)


def test_server_with_only_revoked_keys_refuses_to_start(tmp_path):
    revoke_key(tmp_path, create_key(tmp_path, "lost")[3:11])
    with pytest.raises(UserError, match="no live API key"):
        enter(tmp_path)


def test_server_with_only_a_key_that_may_not_ask_refuses_to_start(tmp_path):
    create_key(tmp_path, "rates only", scopes=("feedback",))
    with pytest.raises(UserError, match="no live API key that may ask"):
        enter(tmp_path)


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


@pytest.mark.parametrize(
    ("models", "told"),
    [
        (["nowhere"], "nowhere"),  # no such task folder
        (["ev_charging@candidate"], "no model 'candidate'"),
        (["ev_charging@3"], "no model 'ev_charging@3'"),
        (["ev_charging@"], "'ev_charging@' names no model"),
        (["ev_charging", "ev_charging"], "ev_charging is named twice"),
    ],
)
def test_model_that_is_not_there_is_told_before_ray_starts(tmp_path, models, told):
    create_key(tmp_path, "tests")
    started = time.monotonic()
    with pytest.raises(UserError, match=told):
        enter(tmp_path, models=models, load=None)
    assert time.monotonic() - started < 5


def test_certificate_without_its_key_or_with_another_one_is_told(tmp_path):
    create_key(tmp_path, "tests")
    certificate, _ = write_certificate(tmp_path)
    (tmp_path / "other").mkdir()
    _, other_key = write_certificate(tmp_path / "other")
    with pytest.raises(UserError, match="both a certificate and its key"):
        enter(tmp_path, tls_certificate=certificate)
    for key in (other_key, tmp_path / "missing.pem"):
        with pytest.raises(UserError, match="are not a certificate and its key"):
            enter(tmp_path, tls_certificate=certificate, tls_key=key)


# ---- one server, over TLS ----


def test_ray_serve_answers_over_tls_swaps_under_load_logs_no_secret_and_leaves_nothing_running(tmp_path):
    import ray

    certificate, tls_key = write_certificate(tmp_path)
    key, admin = create_key(tmp_path, "tests", limits=UNLIMITED), create_key(tmp_path, "admin", scopes=("admin",))
    point(tmp_path, "fake_task", champion="fake_task@1")
    point(tmp_path, "other", candidate="other@7")
    body = {"messages": [{"role": "user", "content": "a private matter of the RCD"}]}
    with (
        run.serving(
            ["fake_task", "other@candidate"],
            data_root=tmp_path,
            tasks_dir=tmp_path,
            endpoint=Endpoint("127.0.0.1", free_port(), certificate, tls_key),
            config=ServingConfig(max_waiting=40),
            load=fakes.load_named,
        ) as url,
        httpx.Client(
            base_url=url,
            verify=ssl.create_default_context(cafile=certificate),
            timeout=30,
            headers={"Authorization": f"Bearer {key}"},
        ) as client,
    ):
        assert url.startswith("https://127.0.0.1:")
        logs = Path(ray._private.worker._global_node.get_logs_dir_path())
        ready = client.get("/readyz", headers={"Authorization": ""})
        assert ready.json()["models"] == {"fake_task": "fake_task@1", "other@candidate": "other@7"}

        answer = client.post("/v1/chat/completions", headers={"X-Request-ID": "from-the-client"}, json=body)
        assert answer.status_code == 200
        assert answer.json()["model"] == "fake_task@1"  # the first, since none was named
        assert answer.json()["sources"][0]["chunk_id"] == "chk_manual"
        assert answer.json()["id"] == "chatcmpl-from-the-client"
        assert answer.headers.get_list("x-request-id") == ["from-the-client"]
        other = client.post("/v1/answers", json={"question": "RCD?", "model": "other@candidate"}).json()
        assert other["model"] == "other@7"
        assert "I am other@7." in other["answer"]
        with client.stream("POST", "/v1/answers", json={"question": "RCD?", "stream": True}) as streamed:
            events = [line[7:] for line in streamed.iter_lines() if line.startswith("event: ")]
        assert (events[0], events[-1], set(events[1:-1])) == ("citations", "done", {"delta"})

        refused = client.post("/v1/chat/completions", headers={"Authorization": ""}, json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        assert refused.headers["x-request-id"]
        large = client.post("/v1/chat/completions", content=iter([b" " * MAX_BODY_BYTES, b" "]))
        assert (large.status_code, large.json()["error"]["code"]) == (413, "too_large")
        failing = {"messages": [{"role": "user", "content": "a private matter, explode"}]}
        assert client.post("/v1/chat/completions", json=failing).status_code == 500
        assert_serve_says_nothing_of_its_own(client, body)
        for name in ("serve_multiplexed_model_id", "x-session-id"):  # Serve would fail at the value
            assert client.get("/healthz", headers={name: b"\xff"}).status_code == 200

        n_asked = ask_under_swaps(client, tmp_path)
        assert_all_logged(tmp_path, key, n_asked)
        figures = client.get("/metrics", headers={"Authorization": f"Bearer {admin}"})
        assert figures.status_code == 200
        assert "private matter" not in figures.text

        revoke_key(tmp_path, key[3:11])
        assert client.get("/v1/models").status_code == 401

        # Last, since it replaces the replicas: what cannot be loaded is told in the loader's own sentence.
        missing = run._ModelServers(fakes.load_missing, tmp_path, tmp_path, ServingConfig(), 1, 1)
        with pytest.raises(UserError, match=r"^There is no model of 'fake_task' yet: train one\.$"):
            run._deploy(["fake_task"], missing, Endpoint("127.0.0.1", free_port()))

        text = "\n".join(file.read_text(errors="replace") for file in logs.rglob("*") if file.is_file())
        assert "private matter" not in text
        assert key[12:] not in text

    assert_servers_log_outlives_it(tmp_path / "serving" / "server.log", key)
    assert not ray.is_initialized()
    assert not logs.exists()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/healthz", verify=False)


def assert_serve_says_nothing_of_its_own(client, body):
    for path in ("/-/routes", "/-/healthz"):
        said = client.get(path)
        assert (said.status_code, said.json()["error"]["code"]) == (404, "not_found")
    # By this header, Serve would end the request after a microsecond, in plain text.
    assert client.post("/v1/chat/completions", headers={"x-request-timeout-seconds": "1e-6"}, json=body).is_success
    for request_id in ("a b", "x" * 65, "\xe9"):
        said = client.get("/v1/models", headers={"x-request-id": request_id.encode("latin-1")})
        assert (said.status_code, said.json()["error"]["param"]) == (400, "x-request-id")
        assert said.headers["x-request-id"] != request_id


def assert_servers_log_outlives_it(file, key):
    text = file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    assert "private matter" not in text
    assert key[12:] not in text
    lines = [json.loads(line) for line in text.splitlines()]
    (request,) = [line for line in lines if line.get("request_id") == "from-the-client"]
    assert (request["event"], request["status"]) == ("request", 200)
    told = {(line.get("logger"), line["event"].partition(":")[0]) for line in lines}
    assert ("ev_platform.serving.batching", "A batch of 1 answers failed with RuntimeError") in told  # by a replica
    swapped = "fake_task@2 answers from now on, in the place of fake_task@1."
    assert ("ev_platform.serving.live", swapped) in told


def ask_under_swaps(client, root):
    """Ask by eight at once, move the alias twice meanwhile, and return how many were asked."""
    numbers, models, is_over = itertools.count(), [], threading.Event()

    def ask_until_over():
        while not is_over.is_set():
            question = f"Number {next(numbers)}?"
            reply = client.post("/v1/answers", json={"question": question, "model": "fake_task"})
            assert reply.status_code == 200, reply.text
            said = reply.json()
            assert f"I am {said['model']}." in said["answer"]
            assert said["answer"].endswith(f"Question: {question}")
            models.append(said["model"])

    with ThreadPoolExecutor(8) as threads:
        asking = [threads.submit(ask_until_over) for _ in range(8)]
        try:
            for version in ("fake_task@1", "fake_task@2", "fake_task@1"):
                point(root, "fake_task", champion=version)
                until = time.monotonic() + 30
                while models[-1:] != [version] and time.monotonic() < until:
                    time.sleep(0.02)
        finally:
            is_over.set()
    for thread in asking:
        thread.result()
    assert set(models) == {"fake_task@1", "fake_task@2"}
    return len(models)


def assert_all_logged(root, key, n_asked):
    rows = read_journal(root, "requests")
    asked = rows.filter(rows["question"].str.starts_with("Number ").fill_null(False))
    assert set(asked["question"]) == {f"Number {number}?" for number in range(n_asked)}
    assert set(asked["status"]) == {200}
    assert set(rows["key_id"]) == {key[3:11]}
    assert "from-the-client" in set(rows["request_id"])


@pytest.mark.slow  # most of it Ray's start
def test_rollback_reaches_every_replica_within_seconds_and_fails_no_request(tmp_path):
    key, replies, stop = create_key(tmp_path, "tests", limits=UNLIMITED), [], threading.Event()
    point(tmp_path, "fake_task", champion="fake_task@2", previous="fake_task@1")

    def ask_without_pause():
        body = {"messages": [{"role": "user", "content": "How often?"}], "model": "champion"}
        with httpx.Client(headers={"Authorization": f"Bearer {key}"}, timeout=30) as client:
            while not stop.is_set():
                reply = client.post(f"{url}/v1/chat/completions", json=body)
                replies.append((time.monotonic(), reply.status_code, reply.text))

    def at(version):
        return [when - rolled_back for when, _, text in list(replies) if f"I am {version}." in text]

    with run.serving(
        ["fake_task"],
        data_root=tmp_path,
        tasks_dir=tmp_path,
        endpoint=Endpoint("127.0.0.1", free_port()),
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
    assert all(
        json.loads(text)["model"] == f"fake_task@{2 if 'I am fake_task@2.' in text else 1}" for _, _, text in replies
    )
    old, new = at("fake_task@2"), at("fake_task@1")
    assert len(old) + len(new) == len(replies)
    print(f"\n{len(replies)} requests, 0 failed; rolled back after {min(new):.2f} s, in both replicas {max(old):.2f} s")
    # Had one of the replicas not swapped, it would have answered its share of what follows.
    assert max(old) < SEEN_WITHIN_S
    assert len([when for when in new if when > SEEN_WITHIN_S]) > 50
