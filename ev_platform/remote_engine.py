"""An engine in another process: vLLM behind OpenAI's `/v1/completions`, on a machine with GPUs.

Prompts are rendered and turned into tokens here, and tokens come back, so that template, end of the answer, stop texts
and what is shown of it are decided by the same code as for every other engine.

What does not belong here: how that server is set up (`serving.vllm`), and who waits for which batch
(`serving.batching`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ev_platform.decoding import Draft
from ev_platform.engine_base import Likelihood, WriterBase, check_texts, read_window
from ev_platform.errors import UserError

# Requests under way at once. vLLM puts them into batches by itself, whatever their lengths.
N_CONNECTIONS = 64
_CONNECT_S = 5.0
_NEXT_TOKEN_S = 120.0  # the server may be busy with others


class RemoteEngine(WriterBase):
    """Completes prompts on a server.

    Nothing compares the server's weights with those that were evaluated, only their name: that they are those of the
    version, and answer alike there, is up to whoever started it.

    Args:
        folder: Of the version's model; its tokenizer and window are used, its weights are not.
        url: Of the server, without `/v1`.
        model: Name that the server knows the weights by.

    Raises:
        UserError: If the server does not answer, or has no model of that name.
    """

    n_workers = N_CONNECTIONS

    def __init__(self, folder: Path, url: str, model: str):
        import httpx

        super().__init__(folder)
        self.window: int = _window_of(folder)
        self._model = model
        self._client = httpx.Client(
            base_url=url,
            timeout=httpx.Timeout(_NEXT_TOKEN_S, connect=_CONNECT_S),
            limits=httpx.Limits(max_connections=N_CONNECTIONS),
            trust_env=False,  # prompts hold what people asked: they go to that server and through no proxy
        )
        self._check_model(url)

    def _check_model(self, url: str) -> None:
        import httpx

        how = "start vLLM with the file that `ev-platform models vllm` writes for it"
        try:
            answer = self._client.get("/v1/models").raise_for_status()
        except httpx.HTTPError as error:
            raise UserError(f"The engine at {url} does not answer ({type(error).__name__}): {how}.") from error
        names = [model["id"] for model in answer.json()["data"]]
        if self._model not in names:
            raise UserError(f"The engine at {url} has {', '.join(names) or 'no model'}, not {self._model}: {how}.")

    def _write(
        self, encoded: Sequence[list[int]], drafts: Sequence[Draft], max_new_tokens: int, temperature: float, seed: int
    ) -> None:
        body = {
            "prompt": list(encoded),
            "max_tokens": max_new_tokens,
            "temperature": temperature,
            "seed": seed,
            "stop_token_ids": [self.end_id],
            "stream": True,
            "return_token_ids": True,  # vLLM's own; text alone could not be told apart at its token borders
        }
        # Leaving early closes the connection, which ends the generation there.
        for choice in self._choices(body):
            draft = drafts[choice["index"]]
            for token in _tokens(choice):
                draft.add(token)
            if choice["finish_reason"] and draft.completion is None:
                draft.end(choice["finish_reason"])
            if all(draft.completion for draft in drafts):
                return

    def _choices(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        with self._client.stream("POST", "/v1/completions", json={"model": self._model, **body}) as response:
            _check(response.status_code)
            for line in response.iter_lines():
                data = line.removeprefix("data:").strip()
                if data == "[DONE]":
                    return
                if line.startswith("data:"):
                    event = json.loads(data)
                    if "error" in event:
                        raise RuntimeError("The engine's server failed while it wrote.")
                    yield from event["choices"]

    def score(self, texts: Sequence[str]) -> list[Likelihood]:
        """Return how likely each text is as it stands."""
        encoded = [self._encode(text) for text in texts]
        check_texts(encoded, self.window)
        body = {"model": self._model, "prompt": encoded, "max_tokens": 0, "echo": True, "logprobs": 1}
        response = self._client.post("/v1/completions", json=body)
        _check(response.status_code)
        choices = sorted(response.json()["choices"], key=lambda choice: choice["index"])
        # The first token is given, so it has none.
        given = [choice["logprobs"]["token_logprobs"][1:] for choice in choices]
        return [Likelihood(-sum(one) / len(one), len(one)) for one in given]


def _window_of(folder: Path) -> int:
    if (folder / "window.txt").exists():
        return read_window(folder)
    return int(json.loads((folder / "config.json").read_text())["max_position_embeddings"])


def _tokens(choice: dict[str, Any]) -> list[int]:
    tokens = choice.get("token_ids")
    if tokens is None and choice["text"]:
        raise RuntimeError("The engine's server sends no token ids: it must be vLLM, or understand return_token_ids.")
    return tokens or []


def _check(status: int) -> None:
    # Not the server's words: those may quote the prompt.
    if status != 200:
        raise RuntimeError(f"The engine's server answered with status {status}.")
