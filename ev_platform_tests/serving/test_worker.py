import asyncio
import dataclasses
import logging
import pickle
import threading

import pytest

from ev_platform.decoding import Completion
from ev_platform.errors import UserError
from ev_platform.evaluation.systems import open_systems
from ev_platform.records import to_frame
from ev_platform.retrieval import embed
from ev_platform.serving.config import ServingConfig
from ev_platform.serving.exchange import Ask, Delta, Found, Reply
from ev_platform.serving.schemas import ApiError
from ev_platform.serving.worker import Worker
from ev_platform.tasks.config import TaskConfig
from ev_platform.tasks.types import get_task_type
from ev_platform_tests.serving.fakes import FakeEngine, FakeRetriever, FakeWriter, fake_release

QUESTION = "How often must one test the RCD?"
NEAR, FAR = "Test the RCD every three months.", "Who won the cup?"


class SaysLabel(FakeEngine):
    """Answers with the last word of the prompt, as a model writes a label: capitalized, with a full stop."""

    def generate(self, prompts, **options):
        return [Completion(prompt.split()[-1].capitalize() + ".", 3, 2, 1.0, "stop") for prompt in prompts]


def ask(question=QUESTION, **fields):
    return Ask("req-1", question, **fields)


def answer(release, asked, **config):
    async def run():
        worker = Worker(release, ServingConfig(**config))
        try:
            return await worker.answer(asked)
        finally:
            worker.close()

    return asyncio.run(run())


def stream(release, asked, **config):
    async def run():
        worker = Worker(release, ServingConfig(**config))
        try:
            return [event async for event in worker.stream(asked)]
        finally:
            worker.close()

    return asyncio.run(run())


def refusal(release, asked, **config):
    """Return what both ways of asking refuse with."""
    refusals = []
    for way in (answer, stream):
        with pytest.raises(ApiError) as refused:
            way(release, asked, **config)
        refusals.append(refused.value)
    assert refusals[0].args == refusals[1].args
    return refusals[0]


# ---- what is asked is what was evaluated ----


def evaluated(release, rows):
    """Return what evaluation gets from a release, as it asks the champion."""
    (champion,) = open_systems(
        rows, to_frame("chunks", []), {}, release.task_type, release.instructions, TaskConfig(), champion=release
    )
    return champion.answer(rows)


def test_served_answers_are_those_that_evaluation_gives():
    release = fake_release(min_score=0.15)
    rows = [{"question": question, "context": None} for question in (QUESTION, NEAR, FAR)]
    for row, expected in zip(rows, evaluated(release, rows), strict=True):
        reply = answer(release, ask(row["question"]))
        assert (reply.text, reply.is_abstention) == (expected.text, expected.is_refusal)
        assert [citation.chunk.chunk_id for citation in reply.citations] == [
            passage.chunk_id for passage in expected.passages
        ]
    assert reply.is_abstention  # the last one


def test_question_with_its_own_passage_is_asked_as_evaluation_asks_it():
    release = fake_release(task_type=get_task_type("extractive_qa"), retriever=None, chunks={}, has_retrieval=True)
    row = {"question": QUESTION, "context": "RCDs are tested twice a year."}
    (expected,) = evaluated(release, [row])
    reply = answer(release, ask(context=row["context"]))
    assert reply.text == expected.text
    assert "RCDs are tested twice a year." in reply.text
    assert reply.citations == ()


def test_passage_of_a_question_takes_the_place_of_what_would_be_found_and_is_never_too_far():
    release = fake_release(task_type=get_task_type("extractive_qa"), min_score=0.9)
    reply = answer(release, ask(FAR, context="The home team won the cup."))
    assert not reply.is_abstention
    assert "The home team won the cup.\n\nQuestion: Who won the cup?" in reply.text
    assert "RCD" not in reply.text


def test_passage_that_has_no_place_in_the_prompt_is_refused():
    refused = refusal(fake_release(retriever=None, chunks={}), ask(context="Some text."))
    assert (refused.status, refused.code, refused.param) == (400, "unsupported", "context")


def test_question_without_a_passage_is_refused_where_there_is_nothing_to_search():
    refused = refusal(fake_release(retriever=None, chunks={}, has_retrieval=True), ask())
    assert (refused.status, refused.code, refused.param) == (400, "missing", "context")


class CountingRetriever(FakeRetriever):
    n_searches = 0

    def search(self, queries, top_k, **options):
        self.n_searches += 1
        return super().search(queries, top_k)


def test_nothing_is_searched_for_a_question_that_brings_its_passage_or_is_refused():
    retriever, question = CountingRetriever(), "How often is the RCD tested?"
    release = fake_release(
        task_type=get_task_type("extractive_qa"), retriever=retriever, trained_vectors=embed([question])
    )
    reply = answer(release, ask(question, context="RCDs are tested twice a year."))
    assert reply.similarity == pytest.approx(1.0, abs=1e-4)  # which drift is told by
    refusal(dataclasses.replace(release, has_retrieval=False), ask(question, context="Some text."))
    assert retriever.n_searches == 0
    assert answer(release, ask(question)).citations
    assert retriever.n_searches == 1


# ---- trying out ----


class OtherwiseInQueue(FakeWriter):
    """Answers a prompt with a passage otherwise when it writes than when it is evaluated."""

    def _write(self, prompt, temperature, seed):
        mark = "" if "user: Question: " in prompt.text else " indeed"
        return super()._write(dataclasses.replace(prompt, text=prompt.text + mark), temperature, seed)


def test_model_that_brings_its_passage_is_tried_out_with_one():
    release = fake_release(
        task_type=get_task_type("extractive_qa"), retriever=None, chunks={}, has_retrieval=True, engine=FakeWriter()
    )

    async def try_out(release):
        worker = Worker(release, ServingConfig())
        try:
            await worker.try_out()
        finally:
            worker.close()

    asyncio.run(try_out(release))
    with pytest.raises(UserError, match="answers otherwise when it serves"):
        asyncio.run(try_out(dataclasses.replace(release, engine=OtherwiseInQueue())))


# ---- abstention and labels ----


def test_question_far_from_every_passage_gets_the_tasks_sentence_and_nothing_is_generated():
    release = fake_release(min_score=0.5, no_answer="I do not know.")
    reply = answer(release, ask(FAR))
    assert (reply.text, reply.is_abstention, reply.finish_reason) == ("I do not know.", True, "stop")
    assert (reply.n_prompt_tokens, reply.n_completion_tokens, reply.batch_size) == (0, 0, 0)
    assert len(reply.citations) == 2  # what there was, so that a reader can judge
    found, delta, last = stream(release, ask(FAR))
    assert isinstance(found, Found)
    assert delta == Delta("I do not know.")
    assert last.is_abstention
    assert release.engine.most_running == 0
    assert not answer(release, ask(NEAR)).is_abstention


def test_label_is_read_from_the_answer_as_evaluation_compares_it():
    task_type = get_task_type("classification")
    release = fake_release(
        task_type=task_type, retriever=None, chunks={}, engine=SaysLabel(), labels=("card", "Top-up")
    )
    reply = answer(release, ask("Where is my card"))
    assert (reply.text, reply.label) == ("Card.", "card")
    assert answer(release, ask("I made a top-up")).label == "Top-up"
    assert answer(release, ask("What is the weather")).label is None
    assert answer(fake_release(engine=SaysLabel()), ask("card")).label is None  # no classification


# ---- refusals ----


def test_longest_answer_is_the_evaluated_one():
    refused = refusal(fake_release(), ask(max_tokens=49))
    assert (refused.status, refused.param) == (400, "max_tokens")
    assert str(refused) == "max_tokens is 49 but the cap is 48, the length that was evaluated."
    assert "max_new_tokens=7 " in answer(fake_release(), ask(max_tokens=7)).text


def test_prompt_beyond_the_window_is_refused_with_the_figures():
    refused = refusal(fake_release(), ask("word " * 200))
    assert (refused.status, refused.code) == (400, "context_length_exceeded")
    assert "answer up to 48, which exceeds the model's window of 200" in str(refused)


def test_other_version_is_refused():
    refused = refusal(fake_release(), ask(version="fake_task@2"))
    assert (refused.status, refused.code) == (404, "model_not_found")
    assert answer(fake_release(), ask(version="fake_task@3")).model_version == "fake_task@3"


def test_answer_that_takes_too_long_is_given_up():
    engine = FakeEngine()
    engine.may_answer.clear()
    try:
        refused = refusal(fake_release(engine=engine), ask(), request_timeout_s=0.2)
    finally:
        engine.may_answer.set()
    assert (refused.status, refused.code) == (504, "timeout")


def test_fault_is_logged_by_place_and_kind_without_a_word_of_the_question(caplog):
    refused = refusal(fake_release(), ask("explode, said the private person"))
    assert (refused.status, refused.code) == (500, "internal_error")
    assert "failed with RuntimeError" in caplog.text
    assert "in generate" in caplog.text
    assert "private person" not in caplog.text


def test_refusal_crosses_processes():
    refused = refusal(fake_release(), ask(max_tokens=49))
    again = pickle.loads(pickle.dumps(refused))
    assert (again.status, str(again), again.code, again.param) == (400, str(refused), "invalid_value", "max_tokens")


# ---- many at once ----


def test_passages_are_found_while_other_answers_are_generated():
    engine = FakeEngine()
    engine.may_answer.clear()

    async def run():
        worker = Worker(fake_release(engine=engine), ServingConfig())
        first = asyncio.create_task(worker.answer(ask()))
        while not engine.n_running:
            await asyncio.sleep(0.01)
        events = worker.stream(ask("another question"))
        found = await asyncio.wait_for(anext(events), 5)
        assert not first.done()
        engine.may_answer.set()
        rest = [event async for event in events]
        worker.close()
        return found, rest, await first

    found, rest, first = asyncio.run(run())
    assert (found.model_version, len(found.citations)) == ("fake_task@3", 2)
    assert isinstance(rest[-1], Reply)
    assert "".join(event.text for event in rest[:-1]).strip() == rest[-1].text
    assert first.queue_ms >= 0


def test_questions_beyond_what_may_wait_are_refused_and_told_when_to_come_back():
    class SlowRetriever(FakeRetriever):
        may_find = threading.Event()

        def search(self, queries, top_k, **options):
            self.may_find.wait(10)
            return super().search(queries, top_k)

    async def run():
        retriever = SlowRetriever()
        worker = Worker(fake_release(retriever=retriever), ServingConfig(max_waiting=3))
        asked = [asyncio.create_task(worker.answer(ask(f"question {number}"))) for number in range(9)]
        await asyncio.sleep(0.1)
        assert worker.waiting == worker.describe("x").waiting == 3
        retriever.may_find.set()
        replies = await asyncio.gather(*asked, return_exceptions=True)
        worker.close()
        return replies

    replies = asyncio.run(run())
    assert all(isinstance(reply, Reply) for reply in replies[:4])  # one in its turn, three that wait
    assert {(error.status, error.code, error.retry_after_s) for error in replies[4:]} == {(503, "overloaded", 1)}


def test_retired_worker_answers_what_it_has_taken_though_its_passages_are_not_yet_found():
    class SlowRetriever(FakeRetriever):
        may_find = threading.Event()

        def search(self, queries, top_k, **options):
            self.may_find.wait(10)
            return super().search(queries, top_k)

    async def run():
        retriever = SlowRetriever()
        worker = Worker(fake_release(retriever=retriever), ServingConfig())
        asked = [asyncio.create_task(worker.answer(ask(f"question {number}"))) for number in range(3)]
        await asyncio.sleep(0.05)
        worker.retire()
        retriever.may_find.set()
        return await asyncio.gather(*asked)

    assert [reply.model_version for reply in asyncio.run(run())] == ["fake_task@3"] * 3


# ---- streams ----


def test_pieces_of_a_stream_are_the_answer_and_come_while_it_is_written():
    writer = FakeWriter(0.002)

    async def run():
        worker = Worker(fake_release(engine=writer), ServingConfig())
        events, written = [], []
        async for event in worker.stream(ask()):
            events.append(event)
            written.append(writer.n_written)
        worker.close()
        return events, written

    events, written = asyncio.run(run())
    found, *pieces, reply = events
    assert (found.model_version, [c.chunk.chunk_id for c in found.citations]) == (
        "fake_task@3",
        ["chk_manual", "chk_cable"],
    )
    assert "".join(piece.text for piece in pieces) == reply.text == answer(fake_release(), ask()).text
    assert len(pieces) > 10
    assert written[1] < writer.n_written / 2  # the first piece came before the last was written
    assert reply.citations == found.citations


@pytest.mark.parametrize("is_streamed", [True, False])
def test_asker_who_goes_away_ends_the_generation(is_streamed):
    writer, before = FakeWriter(0.01), set(threading.enumerate())

    def threads():
        return [thread for thread in set(threading.enumerate()) - before if thread.name.startswith(("answer", "retr"))]

    async def run():
        worker = Worker(fake_release(engine=writer), ServingConfig())
        assert threads()
        if is_streamed:
            events = worker.stream(ask())
            await anext(events)
            await anext(events)
            await events.aclose()
        else:
            asked = asyncio.create_task(worker.answer(ask()))
            while not writer.n_written:
                await asyncio.sleep(0.005)
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
        await asyncio.sleep(0.05)
        n_written = writer.n_written
        await asyncio.sleep(0.2)
        assert writer.n_written == n_written
        worker.retire()  # with nobody left to answer, it lets go of its threads
        while threads():
            await asyncio.sleep(0.01)
        return n_written

    assert asyncio.run(asyncio.wait_for(run(), 10)) < 20


def test_nothing_is_said_in_the_log_of_an_answer(caplog):
    caplog.set_level(logging.DEBUG)
    answer(fake_release(), ask("a private matter"))
    assert "private matter" not in caplog.text
