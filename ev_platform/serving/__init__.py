"""Serving: the champion behind a key, over HTTP, every answer with its sources.

`api` is the HTTP application (plain FastAPI), `schemas` its bodies, `gate` what a request must pass before it reaches
a route, `keys` the API keys, `worker` the path from a question to an answer, `live` the swap of one version for another
while it serves, `replay` a round trip of questions before a promotion, `app` the Ray Serve deployment around the
application and `run` starts and stops that on this machine.

What does not belong here: prompts (`prompting`), retrieval (`retrieval`) and generation (`engine`). Serving only calls
them, as evaluation does, so that what is served is what was evaluated.
"""
