import httpx
import pytest

from ev_platform.serving.journal import read_journal
from ev_platform.serving.keys import create_key
from ev_platform.serving.live import LiveRelease
from ev_platform.serving.schemas import MAX_CONTENT_CHARS, MAX_CONTEXT_CHARS
from ev_platform.serving.worker import LocalBackend
from ev_platform_tests.serving.fakes import fake_release
from ev_platform_tests.serving.server import Server, error_of, labels_release, span_release
from ev_platform_tests.serving.web import SayingEngine

CONTEXT = "Our rules say this: the RCD of a charging point must be tested every three months."


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("data")) as server:
        yield server


@pytest.mark.parametrize(
    ("route", "body", "param"),
    [
        ("answers", {}, "question"),
        ("answers", {"question": " "}, "question"),
        ("answers", {"question": "x" * (MAX_CONTENT_CHARS + 1)}, "question"),
        ("answers", {"question": "q", "temprature": 0}, "body"),
        ("classify", {"text": "x" * (MAX_CONTENT_CHARS + 1)}, "text"),
        ("extract", {"question": "q"}, "context"),
        ("extract", {"question": "q", "context": "x" * (MAX_CONTEXT_CHARS + 1)}, "context"),
        ("feedback", {"request_id": "no such id!", "rating": "up"}, "request_id"),
        ("feedback", {"request_id": "1", "rating": "good"}, "rating"),
        ("feedback", {"request_id": "1", "rating": "up", "comment": "x" * 2001}, "comment"),
    ],
)
def test_malformed_field_of_each_route_is_named_and_its_text_is_not_repeated(server, route, body, param):
    answer = server.client.post(f"/v1/{route}", json=body)
    assert (answer.status_code, error_of(answer)["param"]) == (422, param)
    for text in ("xxx", "no such id", "temprature", "good"):
        assert text not in answer.text


def test_question_is_answered_with_numbered_citations_usage_and_timings(server):
    answer = server.answer(max_tokens=7)
    assert answer.status_code == 200
    body = answer.json()
    assert set(body) == {"id", "created", "model", "answer", "abstained", "citations", "usage", "timings"}
    assert (body["id"], body["model"]) == (answer.headers["x-request-id"], "fake_task@3")
    assert body["answer"].startswith("temperature=0.0 seed=0 max_new_tokens=7 ")
    assert body["abstained"] is False
    assert [(c["number"], c["chunk_id"]) for c in body["citations"]] == [(1, "chk_manual"), (2, "chk_cable")]
    assert {k: v for k, v in body["citations"][0].items() if k != "number"} == server.ask().json()["sources"][0]
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + 5
    timings = body["timings"]
    assert set(timings) == {"queue_ms", "retrieve_ms", "first_token_ms", "generate_ms", "total_ms"}
    assert timings["total_ms"] >= timings["retrieve_ms"] + timings["generate_ms"] > 0


def test_question_far_from_every_passage_is_not_answered(tmp_path):
    with Server(tmp_path, fake_release(min_score=0.15, no_answer="I do not know.")) as server:
        far, near = server.answer("Who won?").json(), server.answer().json()
        chat = server.ask("Who won?").json()
    assert (far["answer"], far["abstained"], far["usage"]["total_tokens"]) == ("I do not know.", True, 0)
    assert len(far["citations"]) == 2
    assert near["abstained"] is False
    assert (chat["choices"][0]["message"]["content"], chat["choices"][0]["finish_reason"]) == ("I do not know.", "stop")


def test_answer_that_says_it_does_not_know_is_an_abstention(tmp_path):
    with Server(
        tmp_path, fake_release(engine=SayingEngine("None of it says so."), no_answer="None of it says so.")
    ) as server:
        assert server.answer().json()["abstained"] is True
        assert read_journal(tmp_path, "requests")["is_abstention"].to_list() == [True]


@pytest.mark.parametrize(("written", "label"), [("Card", "card"), ("a card", None)])
def test_text_gets_a_label_or_none(tmp_path, written, label):
    with Server(tmp_path, labels_release(engine=SayingEngine(written))) as server:
        answer = server.client.post("/v1/classify", json={"text": "Where is my card?"})
    body = answer.json()
    assert answer.status_code == 200
    assert set(body) == {"id", "created", "model", "label", "text", "usage", "timings"}
    assert (body["label"], body["text"], body["model"]) == (label, written, "fake_labels@3")


@pytest.mark.parametrize(
    ("written", "span", "is_abstention"),
    [
        ("every three months", (63, 81), False),
        ("each quarter", (None, None), False),
        ("It says no.", (None, None), True),
    ],
)
def test_answer_is_found_in_its_passage_where_it_stands_there(tmp_path, written, span, is_abstention):
    with Server(tmp_path, span_release(engine=SayingEngine(written), no_answer="It says no.")) as server:
        answer = server.client.post("/v1/extract", json={"question": "How often?", "context": CONTEXT})
    body = answer.json()
    assert answer.status_code == 200
    assert (body["answer"], body["start"], body["end"]) == (written, *span)
    assert body["abstained"] is is_abstention
    assert body["occurrences"] == CONTEXT.count(written)
    if span != (None, None):
        assert CONTEXT[span[0] : span[1]] == written


def test_several_models_are_asked_by_name_and_each_type_by_its_own_route(tmp_path):
    releases = [
        fake_release(),
        labels_release(engine=SayingEngine("card")),
        span_release(engine=SayingEngine("months")),
    ]
    releases.append(fake_release(model_version="fake_task@4", engine=SayingEngine("four")))
    names = ["fake_task", "fake_labels", "fake_spans@candidate", "fake_task@candidate"]
    backend = LocalBackend({name: LiveRelease(r) for name, r in zip(names, releases, strict=True)})
    bodies = {
        "answers": {"question": "q"},
        "classify": {"text": "q"},
        "extract": {"question": "q", "context": "months"},
    }
    with Server(tmp_path, backend=backend) as server:

        def post(route, **fields):
            return server.client.post(f"/v1/{route}", json=bodies[route] | fields)

        cards = server.client.get("/v1/models").json()["data"]
        assert [card["id"] for card in cards] == names
        assert cards[1] | {"created": 0} == {
            "id": "fake_labels",
            "object": "model",
            "created": 0,
            "owned_by": "ev-platform",
            "version": "fake_labels@3",
            "task": "fake_labels",
            "task_type": "classification",
            "labels": ["card", "refund"],
        }
        assert [post("answers", model=model).json()["model"] for model in (None, "fake_task", "fake_task@3")] == [
            "fake_task@3"
        ] * 3
        for model in ("fake_task@candidate", "fake_task@4"):
            assert post("answers", model=model).json()["answer"] == "four"
        for model in ("champion", "candidate", "fake_task@5"):
            assert post("answers", model=model).status_code == 404
        for model, right in [
            ("fake_labels", "classify"),
            ("fake_spans@candidate", "extract"),
            ("fake_task", "answers"),
        ]:
            for route in bodies:
                answer = post(route, model=model)
                if route == right:
                    assert answer.status_code == 200
                else:
                    error = error_of(answer)
                    assert (answer.status_code, error["code"]) == (400, "wrong_task_type")
                    assert error["message"].endswith(f"/v1/{right}.")
        assert httpx.get(f"{server.url}/readyz").json()["models"]["fake_task@candidate"] == "fake_task@4"


def test_span_model_without_passages_tells_chat_what_is_missing(tmp_path):
    with Server(tmp_path, span_release()) as server:
        answer = server.ask()
    assert (answer.status_code, error_of(answer)["param"]) == (400, "context")


def test_answer_can_be_rated_once_and_again_by_the_key_that_got_it(server):
    request_id = server.answer().headers["x-request-id"]
    body = {"request_id": request_id, "rating": "down", "correction": "Every three months."}
    tracing = {"X-Request-ID": request_id}  # one id for all that belongs together
    first, *others = (server.client.post("/v1/feedback", json=body, headers=tracing) for _ in range(3))
    assert (first.status_code, set(first.json())) == (201, {"id"})
    assert [other.status_code for other in others] == [201, 201]
    other = server.client_of(create_key(server.root, "somebody else"))
    refused = other.post("/v1/feedback", json=body)
    assert (refused.status_code, error_of(refused)["code"]) == (404, "request_not_found")
    unlike = server.client.post("/v1/feedback", json=body | {"question": "Another one?"})
    assert (unlike.status_code, error_of(unlike)["param"]) == (422, "question")
