import asyncio
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from ev_platform.decoding import Completion, Draft
from ev_platform.engine import CTranslate2Engine, TransformersEngine
from ev_platform.errors import UserError
from ev_platform.serving.batching import Batcher
from ev_platform.serving.schemas import ApiError
from ev_platform.training.export import export_serving_model
from ev_platform_tests.tiny import tiny_recipe, write_tiny_model

pytestmark = pytest.mark.anyio

WORDS = ("Which plug?", "Wie lang?", "How much power?", "Where is it?", "Who pays?", "Why so slow, and since when?")
PROMPTS = [f"<|im_start|>user\n{words}<|im_end|>\n<|im_start|>assistant\n" for words in WORDS]


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture(scope="module", params=["ctranslate2", "transformers"])
def engine(request, tmp_path_factory):
    model = write_tiny_model(tmp_path_factory.mktemp("batching") / "model")
    if request.param == "transformers":
        return TransformersEngine(model)
    out = tmp_path_factory.mktemp("export")
    assert export_serving_model(model, out, tiny_recipe(), (), "") == "ctranslate2-int8"
    return CTranslate2Engine(out)


class Letters:
    """A tokenizer of which each token is a letter."""

    def decode(self, ids, **_):
        return "".join(map(chr, ids))


class Scribe:
    """Writes its prompt, letter by letter: as many letters as `steps` has been released for, then all at once."""

    window = 1000

    def __init__(self, n_workers=1):
        self.n_workers = n_workers
        self.batches = []
        self.steps = threading.Semaphore(0)
        self.is_free = False

    def go_on(self):
        self.is_free = True
        self.steps.release(2)  # whoever waits for its next letter

    def render(self, messages):
        return messages[-1]["content"]

    def count_tokens(self, text):
        return len(text)

    def generate(self, prompts, *, max_new_tokens, temperature=0.0, seed=0):
        raise NotImplementedError

    def score(self, texts):
        raise NotImplementedError

    def write(self, batch, *, temperature=0.0, seed=0):
        self.batches.append([prompt.text for prompt in batch])
        drafts = [Draft(prompt, len(prompt.text), Letters(), 0, 0.0) for prompt in batch]
        for step in range(self.window):
            if not self.is_free:
                self.steps.acquire(timeout=20)
            for prompt, draft in zip(batch, drafts, strict=True):
                if prompt.text[step : step + 1] == "!":
                    raise RuntimeError(f"the engine failed at {prompt.text!r}")
                draft.add(ord(prompt.text[step]) if step < len(prompt.text) else 0)
            if all(draft.completion for draft in drafts):
                break
        return [draft.completion for draft in drafts]


class Chooser:
    """Answers whole, and refuses questions with a `?`."""

    window = 1000

    def __init__(self, n_turns=100):
        self.calls = []
        self.turns = threading.Semaphore(n_turns)

    def render(self, messages):
        return messages[-1]["content"]

    def count_tokens(self, text):
        return len(text)

    def generate(self, prompts, *, max_new_tokens, temperature=0.0, seed=0):
        self.calls.append(list(prompts))
        self.turns.acquire(timeout=10)
        if any("?" in prompt for prompt in prompts):
            raise UserError("A question is too long.")
        return [Completion(prompt.upper(), len(prompt), 1, 1.0, "stop") for prompt in prompts]


def ask(batcher, prompt, **options):
    return asyncio.ensure_future(batcher.complete(prompt, **{"n_tokens": len(prompt), "max_new_tokens": 50} | options))


async def until(is_so):
    async with asyncio.timeout(10):
        while not is_so():
            await asyncio.sleep(0.001)


async def test_every_answer_is_the_one_it_has_alone(engine):
    alone = [engine.generate([prompt], max_new_tokens=20)[0].text for prompt in PROMPTS]
    batcher = Batcher(engine)
    lengths = {prompt: engine.count_tokens(prompt) for prompt in PROMPTS}
    asked = [ask(batcher, prompt, n_tokens=lengths[prompt], max_new_tokens=20) for prompt in PROMPTS * 3]
    answers = await asyncio.gather(*asked)
    batcher.close()
    assert [answer.completion.text for answer in answers] == alone * 3
    assert max(answer.batch_size for answer in answers) > 1


async def test_pieces_are_the_answer(engine):
    whole = engine.generate(PROMPTS[:1], max_new_tokens=20)[0].text
    pieces = []
    batcher = Batcher(engine)
    generated = await ask(batcher, PROMPTS[0], max_new_tokens=20, on_text=pieces.append)
    batcher.close()
    assert "".join(pieces) == generated.completion.text == whole and len(pieces) > 3
    assert 0 < generated.first_token_ms < generated.completion.latency_ms


async def test_equals_join_the_oldest_and_others_wait():
    scribe = Scribe()
    batcher = Batcher(scribe)
    asked = [ask(batcher, "first")]
    await until(lambda: scribe.batches)
    asked += [ask(batcher, prompt) for prompt in ("aaa", "bbbb", "ccc", "dddd", "eee")]
    await until(lambda: batcher.waiting == 5)
    scribe.go_on()
    answers = await asyncio.gather(*asked)
    batcher.close()
    assert scribe.batches == [["first"], ["aaa", "ccc", "eee"], ["bbbb", "dddd"]]
    assert [answer.batch_size for answer in answers] == [1, 3, 2, 3, 2, 3]
    assert answers[2].queue_ms > answers[0].queue_ms


async def test_temperatures_and_seeds_keep_apart_and_lengths_and_stops_do_not():
    scribe = Scribe()
    batcher = Batcher(scribe)
    asked = [ask(batcher, "first")]
    await until(lambda: scribe.batches)
    asked += [
        ask(batcher, "abc", max_new_tokens=2),
        ask(batcher, "def", temperature=1.0),
        ask(batcher, "ghi", stop=("i",), seed=5),
        ask(batcher, "jkl", temperature=1.0, seed=1),
    ]
    await until(lambda: batcher.waiting == 4)
    scribe.go_on()
    answers = [answer.completion for answer in await asyncio.gather(*asked)]
    batcher.close()
    assert scribe.batches[1:] == [["abc", "ghi"], ["def"], ["jkl"]]
    assert [(a.text, a.finish_reason) for a in answers[1:4]] == [("ab", "length"), ("def", "stop"), ("gh", "stop")]


async def test_a_worker_takes_no_more_than_its_share_and_max_batch():
    scribe = Scribe(n_workers=2)
    batcher = Batcher(scribe, max_batch=3)
    asked = [ask(batcher, "xx"), ask(batcher, "yy")]
    await until(lambda: len(scribe.batches) == 2)
    asked += [ask(batcher, f"{n:02}") for n in range(9)]
    await until(lambda: batcher.waiting == 9)
    scribe.go_on()
    sizes = [answer.batch_size for answer in await asyncio.gather(*asked)]
    batcher.close()
    assert sizes[:2] == [1, 1] and max(sizes) == 3
    few = Scribe(n_workers=2)
    batcher = Batcher(few)
    pair = [ask(batcher, "aa"), ask(batcher, "bb")]
    await until(lambda: len(few.batches) == 2)  # side by side, not together
    few.go_on()
    await asyncio.gather(*pair)
    batcher.close()


async def test_those_who_were_answered_together_are_waited_for_and_who_was_alone_waits_for_nobody():
    scribe = Scribe()
    batcher = Batcher(scribe)
    first = ask(batcher, "a")
    await until(lambda: scribe.batches)
    together = [ask(batcher, prompt) for prompt in ("bb", "cc")]
    await until(lambda: batcher.waiting == 2)
    scribe.steps.release(2)
    await first
    await asyncio.sleep(1)  # of which a tenth is enough for what follows
    scribe.go_on()
    await asyncio.gather(*together)
    again = [ask(batcher, "dd")]
    await asyncio.sleep(0.04)
    again.append(ask(batcher, "ee"))
    assert [answer.batch_size for answer in await asyncio.gather(*again)] == [2, 2]
    batcher.close()
    batcher = Batcher(scribe)
    await ask(batcher, "alone")
    assert (await ask(batcher, "alone")).queue_ms < 100
    batcher.close()


async def test_the_short_answer_does_not_wait_for_the_long_one():
    scribe = Scribe()
    batcher = Batcher(scribe)
    asked = [ask(batcher, "first")]
    await until(lambda: scribe.batches)
    asked += [ask(batcher, "abcdef"), ask(batcher, "uvwxyz", max_new_tokens=1)]
    await until(lambda: batcher.waiting == 2)
    for _ in range(len("first") + 2):
        scribe.steps.release()
    assert (await asked[2]).completion.text == "u"
    assert not asked[1].done()
    scribe.go_on()
    assert (await asked[1]).completion.text == "abcdef"
    batcher.close()


async def test_more_than_may_wait_are_refused():
    scribe = Scribe()
    batcher = Batcher(scribe, max_waiting=2)
    asked = [ask(batcher, "a")]
    await until(lambda: scribe.batches)
    asked += [ask(batcher, "b"), ask(batcher, "c")]
    await until(lambda: batcher.waiting == 2)
    with pytest.raises(ApiError, match="2 questions are waiting already") as refused:
        await ask(batcher, "d")
    assert (refused.value.status, refused.value.code) == (503, "overloaded")
    scribe.go_on()
    await asyncio.gather(*asked)
    batcher.close()


async def test_cancelled_before_its_turn_it_is_never_asked():
    scribe = Scribe()
    batcher = Batcher(scribe)
    first, second, third = ask(batcher, "a"), ask(batcher, "bb"), ask(batcher, "ccc")
    await until(lambda: scribe.batches and batcher.waiting == 2)
    second.cancel()
    await until(lambda: batcher.waiting == 1)
    scribe.go_on()
    await asyncio.gather(first, third)
    batcher.close()
    assert scribe.batches == [["a"], ["ccc"]]


async def test_cancelled_during_its_turn_it_ends_at_the_next_token_and_the_others_go_on():
    scribe = Scribe()
    batcher = Batcher(scribe)
    first = ask(batcher, "x")
    await until(lambda: scribe.batches)
    pieces = []
    long = ask(batcher, "ab" * 200, max_new_tokens=900, on_text=pieces.append)
    other = ask(batcher, "cd" * 200, max_new_tokens=5)
    await until(lambda: batcher.waiting == 2)
    for _ in range(2 + 3):
        scribe.steps.release()
    await until(lambda: len(pieces) == 3)
    long.cancel()
    with pytest.raises(asyncio.CancelledError):
        await long
    scribe.go_on()
    assert (await other).completion.text == "cdcdc"
    await first
    assert len(pieces) == 3
    # The worker is free again long before 400 letters.
    assert (await ask(batcher, "end")).completion.text == "end"
    batcher.close()


async def test_a_failed_batch_fails_its_own_requests_only_and_keeps_no_secrets(caplog):
    scribe = Scribe()
    batcher = Batcher(scribe)
    first = ask(batcher, "a")
    await until(lambda: scribe.batches)
    bad, mate, other = ask(batcher, "secret!"), ask(batcher, "1234567"), ask(batcher, "ok")
    await until(lambda: batcher.waiting == 3)
    scribe.go_on()
    outcomes = await asyncio.gather(first, bad, mate, other, return_exceptions=True)
    assert [isinstance(outcome, ApiError) for outcome in outcomes] == [False, True, True, False]
    assert outcomes[1].status == 500
    assert "A batch of 2 answers failed with RuntimeError" in caplog.text and "secret" not in caplog.text
    assert (await ask(batcher, "still")).completion.text == "still"
    batcher.close()


async def test_a_refused_prompt_does_not_take_its_batch_along():
    chooser = Chooser()
    batcher = Batcher(chooser)
    outcomes = await asyncio.gather(
        *(ask(batcher, prompt) for prompt in ("abc", "xy?", "def", "uvw")), return_exceptions=True
    )
    batcher.close()
    assert isinstance(outcomes[1], UserError) and str(outcomes[1]) == "A question is too long."
    assert [outcomes[n].completion.text for n in (0, 2, 3)] == ["ABC", "DEF", "UVW"]
    assert [outcomes[n].batch_size for n in (0, 2, 3)] == [1, 1, 1]  # in the end, each was asked alone


async def test_after_a_refused_batch_nobody_is_asked_for_who_has_left():
    chooser = Chooser(n_turns=0)
    batcher = Batcher(chooser)
    first = ask(batcher, "begin")
    await until(lambda: chooser.calls)
    refused, left, stays = ask(batcher, "xy?"), ask(batcher, "abc"), ask(batcher, "def")
    await until(lambda: batcher.waiting == 3)
    chooser.turns.release()
    await until(lambda: len(chooser.calls) == 2)
    left.cancel()
    await until(left.done)
    chooser.turns.release(10)
    await first
    outcomes = await asyncio.gather(refused, left, stays, return_exceptions=True)
    batcher.close()
    assert isinstance(outcomes[0], UserError) and outcomes[2].completion.text == "DEF"
    assert chooser.calls == [["begin"], ["xy?", "abc", "def"], ["xy?"], ["def"]]


async def test_what_answers_whole_is_told_whole_and_cut_at_a_stop():
    batcher = Batcher(Chooser())
    pieces = []
    generated = await ask(batcher, "abcd", stop=("C",), on_text=pieces.append)
    batcher.close()
    assert (generated.completion.text, generated.first_token_ms, pieces) == ("AB", None, ["AB"])


async def test_retired_it_finishes_what_it_has_and_takes_no_more():
    scribe = Scribe()
    batcher = Batcher(scribe)
    asked = [ask(batcher, "a"), ask(batcher, "bb")]
    await until(lambda: scribe.batches and batcher.waiting == 1)
    batcher.retire()
    with pytest.raises(ApiError, match="takes no more questions"):
        await ask(batcher, "c")
    scribe.go_on()
    assert [answer.completion.text for answer in await asyncio.gather(*asked)] == ["a", "bb"]


async def test_closed_it_drops_what_waits_and_ends_what_runs():
    scribe = Scribe()
    batcher = Batcher(scribe)
    asked = [ask(batcher, "ab" * 100), ask(batcher, "b")]
    await until(lambda: scribe.batches and batcher.waiting == 1)
    batcher.close()
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(outcome, ApiError) and outcome.status == 503 for outcome in outcomes)
    scribe.steps.release()  # one more token, at which it ends
    await until(lambda: not any(thread.name.startswith("answer-") for thread in threading.enumerate()))
    assert scribe.batches == [["ab" * 100]]


@pytest.mark.parametrize("end", ["retire", "close"])
async def test_the_engine_is_let_go_of_at_once_even_after_a_failure(end):
    scribe = Scribe()
    gone = weakref.ref(scribe)
    scribe.go_on()
    batcher = Batcher(scribe)
    outcomes = await asyncio.gather(ask(batcher, "ok"), ask(batcher, "no!"), return_exceptions=True)
    assert isinstance(outcomes[1], ApiError)
    gc.disable()  # as the hot swap cannot wait for it
    try:
        getattr(batcher, end)()
        del batcher, scribe, outcomes
        await until(lambda: gone() is None)
    finally:
        gc.enable()


async def test_a_closed_event_loop_does_not_end_the_thread():
    scribe = Scribe()
    batcher = Batcher(scribe)

    def one_loop():
        async def start():
            ask(batcher, "abc", on_text=lambda _: None)
            await until(lambda: scribe.batches)

        asyncio.run(start())

    with ThreadPoolExecutor(1) as thread:
        thread.submit(one_loop).result()
    scribe.go_on()
    assert (await ask(batcher, "next")).completion.text == "next"
    batcher.close()
