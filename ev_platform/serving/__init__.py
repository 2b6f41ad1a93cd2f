"""Serving: the champion behind a key, over HTTP, every answer with its sources.

`api` is the HTTP application (plain FastAPI): `chat`, `tasks` and `feedback` are its routes, `schemas` and `replies`
the bodies, `sse` the streams, `models` the choice of what answers, `described` the OpenAPI document, `faults` what
becomes of errors, `page` and `static` the chat page. Before a route stand `observe`, which logs each request
(`journal` and `segments` in Parquet, `metrics` for Prometheus, `logs` as JSON lines), and `gate` with `keys` and
`limits`.

`exchange` is what the application asks models by: `worker` answers with one release (`preparing` finds passages and
builds the prompt, `batching` completes it beside others), `live` swaps one version for another while it serves. `app`
is the Ray Serve application around both, `run` starts and stops it on this machine, where it listens at an `endpoint`,
`front` is what stands in a cluster's proxies, `vllm` writes a configuration for GPUs. `replay` asks a version over HTTP
before a promotion, `drift` compares what is asked with what was trained on.

What does not belong here: prompts (`prompting`), retrieval (`retrieval`) and generation (`engine`). Serving only
calls them, as evaluation does, so that what is served is what was evaluated.
"""
