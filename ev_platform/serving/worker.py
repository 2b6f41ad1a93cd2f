"""From a question to an answer with its passages: one loaded release, asked by many at once.

What is decided on the way (passages, abstention, template, length) is what evaluation decides by the same code. What
does not belong here: HTTP (`api`), which prompts are completed together (`batching`), and which release is the one to
ask (`live`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from ev_platform.errors import UserError
from ev_platform.evaluation.labels import plain_label
from ev_platform.serving import logs
from ev_platform.serving.batching import Batcher
from ev_platform.serving.config import ServingConfig
from ev_platform.serving.exchange import Ask, Delta, Described, Found, Reply
from ev_platform.serving.preparing import Prepared, prepare
from ev_platform.serving.schemas import ApiError, failure

if TYPE_CHECKING:
    from ev_platform.registry import Release
    from ev_platform.serving.live import LiveRelease

_WARM_UP = "What can you tell me?"
_PASSAGE = "Charging cables are marked with the current that they may carry."
_WARM_UP_TOKENS = 32

_log = logging.getLogger(__name__)


class Worker:
    """Answers with one release: passages are found in a thread of its own, beside the generation of other answers.

    It lives on one event loop. An answer that is cancelled, or a stream that is closed, ends its generation.

    Args:
        release: What answers.
        config: Limits.

    Attributes:
        release: See above.
        loaded_at: Unix seconds.
    """

    def __init__(self, release: Release, config: ServingConfig):
        self.release = release
        self.loaded_at = int(time.time())
        self._config = config
        # What may wait is decided on arrival, so that hardly anything is refused after its passages have been found.
        self._batcher = Batcher(release.engine, max_batch=config.max_batch, max_waiting=config.max_waiting + 1)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="retrieve")
        self._labels = {plain_label(label): label for label in reversed(release.labels)}
        self._n_preparing = 0
        self._n_asked = 0
        self._is_retired = False

    @property
    def waiting(self) -> int:
        """Questions that wait for their turn."""
        return max(0, self._n_preparing - 1) + self._batcher.waiting

    def describe(self, model: str) -> Described:
        """Say what it serves, under the name that it is asked for by."""
        release = self.release
        return Described(
            model=model,
            model_version=release.model_version,
            task=release.model_version.rpartition("@")[0],
            task_type=release.task_type.name,
            labels=release.labels,
            max_new_tokens=release.max_new_tokens,
            window=release.engine.window,
            loaded_at=self.loaded_at,
            waiting=self.waiting,
        )

    async def answer(self, ask: Ask) -> Reply:
        """Answer.

        Raises:
            ApiError: 400 or 404 where the question cannot be answered by this model, 503 where too many wait, 504
                (`timeout`) after `request_timeout_s`, 500 where the engine failed.
        """
        with self._asked(), _told():
            try:
                async with asyncio.timeout(self._config.request_timeout_s):
                    prepared = await self._prepare(ask)
                    if prepared.prompt is None:
                        return self._abstain(prepared)
                    return await self._complete(ask, prepared, prepared.prompt)
            except TimeoutError:
                raise too_late(self._config) from None

    async def stream(self, ask: Ask) -> AsyncGenerator[Found | Delta | Reply]:
        """Answer piece by piece: one `Found`, any number of `Delta`, one `Reply`.

        Raises:
            ApiError: As `answer`.
        """
        with self._asked(), _told():
            # A timeout around the whole would strike whoever reads the pieces, while this waits to be asked for one.
            deadline = asyncio.get_running_loop().time() + self._config.request_timeout_s
            try:
                async with asyncio.timeout_at(deadline):
                    prepared = await self._prepare(ask)
                yield Found(self.release.model_version, prepared.citations, prepared.n_prompt_tokens)
                if prepared.prompt is None:
                    yield Delta(self.release.no_answer)
                    yield self._abstain(prepared)
                    return
                pieces: asyncio.Queue[str | None] = asyncio.Queue()
                completing = asyncio.ensure_future(self._complete(ask, prepared, prepared.prompt, pieces.put_nowait))
                completing.add_done_callback(lambda _: pieces.put_nowait(None))
                try:
                    while True:
                        async with asyncio.timeout_at(deadline):
                            piece = await pieces.get()
                        if piece is None:
                            break
                        yield Delta(piece)
                    yield completing.result()
                finally:
                    completing.cancel()
            except TimeoutError:
                raise too_late(self._config) from None

    async def try_out(self) -> None:
        """Answer once as evaluation asks and once as people will, which also warms up.

        It shows that both ways give the same, not that the weights are those that were evaluated: the registry compares
        those of this process, and nobody those of an engine elsewhere.

        Raises:
            UserError: If the two answers differ.
        """
        release = self.release
        n_answer = min(_WARM_UP_TOKENS, release.max_new_tokens)

        def evaluate() -> tuple[str, int, str]:
            if release.has_retrieval and release.retriever is None:  # questions bring their passages
                messages = release.task_type.prompt(release.instructions, _WARM_UP, [_PASSAGE])
                prompt = release.engine.render(messages)
            else:
                prompt = release.render(_WARM_UP, release.look_up(_WARM_UP).hits)
            (made,) = release.engine.generate([prompt], max_new_tokens=n_answer)
            return prompt, release.engine.count_tokens(prompt), made.text

        prompt, n_tokens, expected = await asyncio.to_thread(evaluate)
        served = await self._batcher.complete(prompt, n_tokens=n_tokens, max_new_tokens=n_answer)
        if served.completion.text != expected:
            raise UserError(
                f"{release.model_version} answers otherwise when it serves than when it is evaluated: choose another "
                "version, and report this as a fault of the engine."
            )

    def retire(self) -> None:
        """Take no more questions; those that were taken are answered."""
        self._is_retired = True
        self._let_go()

    def close(self) -> None:
        """Take no more questions, and drop what waits."""
        self._is_retired = True
        self._batcher.close()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _let_go(self) -> None:
        # Not before the last question has come through: it may still look for its passages.
        if self._is_retired and not self._n_asked:
            self._batcher.retire()
            self._thread.shutdown(wait=False)

    @contextlib.contextmanager
    def _asked(self) -> Iterator[None]:
        self._n_asked += 1
        try:
            yield
        finally:
            self._n_asked -= 1
            self._let_go()

    async def _prepare(self, ask: Ask) -> Prepared:
        """Find the passages, and build the prompt."""
        if self._is_retired:
            raise ApiError(503, "The server is stopping: try again.", "unavailable", retry_after_s=1)
        release = self.release
        if ask.version not in (None, release.model_version):
            raise ApiError(
                404, f"That model is not served here: ask for {release.model_version}.", "model_not_found", "model"
            )
        max_tokens = ask.max_tokens or release.max_new_tokens
        if max_tokens > release.max_new_tokens:
            raise ApiError(
                400,
                f"max_tokens is {max_tokens} but the cap is {release.max_new_tokens}, the length that was evaluated.",
                "invalid_value",
                "max_tokens",
            )
        if self.waiting >= self._config.max_waiting:
            message = f"{self.waiting} questions are waiting already: try again in a second."
            raise ApiError(503, message, "overloaded", retry_after_s=1)
        self._n_preparing += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._thread, prepare, release, ask, max_tokens, time.perf_counter()
            )
        finally:
            self._n_preparing -= 1

    async def _complete(
        self, ask: Ask, prepared: Prepared, prompt: str, on_text: Callable[[str], None] | None = None
    ) -> Reply:
        started = time.perf_counter()
        try:
            generated = await self._batcher.complete(
                prompt,
                n_tokens=prepared.n_prompt_tokens,
                max_new_tokens=prepared.max_tokens,
                temperature=ask.temperature,
                seed=ask.seed or 0,
                stop=ask.stop,
                on_text=on_text,
            )
        except UserError as error:  # such as a question that leaves an encoder no room for its passages
            raise ApiError(400, str(error), "context_length_exceeded") from error
        completion = generated.completion
        return Reply(
            text=completion.text,
            finish_reason=completion.finish_reason,
            model_version=self.release.model_version,
            citations=prepared.citations,
            n_prompt_tokens=completion.n_prompt_tokens,
            n_completion_tokens=completion.n_completion_tokens,
            is_abstention=completion.text == self.release.no_answer,
            similarity=prepared.similarity,
            label=self._labels.get(plain_label(completion.text)),
            queue_ms=prepared.waited_ms + generated.queue_ms,
            retrieve_ms=prepared.retrieve_ms,
            first_token_ms=generated.first_token_ms,
            generate_ms=(time.perf_counter() - started) * 1000 - generated.queue_ms,
            batch_size=generated.batch_size,
        )

    def _abstain(self, prepared: Prepared) -> Reply:
        return Reply(
            text=self.release.no_answer,
            finish_reason="stop",
            model_version=self.release.model_version,
            citations=prepared.citations,
            is_abstention=True,
            similarity=prepared.similarity,
            queue_ms=prepared.waited_ms,
            retrieve_ms=prepared.retrieve_ms,
        )


def too_late(config: ServingConfig) -> ApiError:
    """Return what is told where an answer takes longer than `request_timeout_s`."""
    return ApiError(504, f"No answer within {config.request_timeout_s:g} seconds: try again later.", "timeout")


class LocalBackend:
    """An `exchange.Backend` over releases in this process.

    As an asynchronous context manager it follows the releases' aliases; without, they stay as they are.

    Args:
        served: Name under which it is asked for, to what answers; the first is for requests that name none.
    """

    def __init__(self, served: Mapping[str, LiveRelease]):
        self.models: Sequence[str] = tuple(served)
        self._served = dict(served)
        self._following: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> LocalBackend:
        self._following = [asyncio.create_task(live.follow()) for live in self._served.values()]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._following:
            task.cancel()
        for live in self._served.values():
            live.close()

    async def describe(self, model: str) -> Described:
        """Say what stands behind a name now."""
        return self._served[model].worker.describe(model)

    async def answer(self, model: str, ask: Ask) -> Reply:
        """Answer."""
        return await self._served[model].worker.answer(ask)

    async def stream(self, model: str, ask: Ask) -> AsyncGenerator[Found | Delta | Reply]:
        """Answer piece by piece."""
        async with contextlib.aclosing(self._served[model].worker.stream(ask)) as events:
            async for event in events:
                yield event


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Let refusals through; of anything else, log where and what kind it was, and tell only that it was."""
    try:
        yield
    except ApiError:
        raise
    except Exception as error:
        logs.failure(_log, "An answer", error)
        raise failure() from None
