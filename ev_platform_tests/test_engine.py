import time

import pytest

from ev_platform.engine import CTranslate2Engine, TransformersEngine
from ev_platform.errors import UserError
from ev_platform.training.export import export_serving_model
from ev_platform_tests.tiny import tiny_recipe, write_tiny_model

PROMPTS = [f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n" for text in ("Which plug?", "Wie lang?")]


def load(kind, model, folder):
    if kind == "transformers":
        return TransformersEngine(model)
    folder.mkdir()
    assert export_serving_model(model, folder, tiny_recipe(), (), "") == "ctranslate2-int8"
    return CTranslate2Engine(folder)


@pytest.fixture(scope="module", params=["ctranslate2", "transformers"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("engine") / "model")


@pytest.fixture(scope="module")
def engine(kind, model, tmp_path_factory):
    return load(kind, model, tmp_path_factory.mktemp("export") / "out")


def always(token, model, kind, folder):
    """Return an engine of a model that says one token whatever it reads."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network = AutoModelForCausalLM.from_pretrained(model)
    token_id = AutoTokenizer.from_pretrained(model).convert_tokens_to_ids(token)
    with torch.no_grad():
        # Every position holds the same vector, no layer changes it, and one row of the head looks for it.
        network.model.embed_tokens.weight.fill_(1)
        for layer in network.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        network.lm_head.weight.zero_()
        network.lm_head.weight[token_id] = 1
    folder.mkdir()
    network.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return load(kind, folder, folder.with_name("out"))


def texts(engine, **options):
    return [completion.text for completion in engine.generate(PROMPTS, max_new_tokens=12, **options)]


def test_generate_up_to_the_limit_says_length(kind, model, tmp_path):
    (completion,) = always("a", model, kind, tmp_path / "model").generate(PROMPTS[:1], max_new_tokens=5)
    assert (completion.text, completion.n_completion_tokens, completion.finish_reason) == ("aaaaa", 5, "length")


def test_generate_up_to_the_end_token_says_stop(kind, model, tmp_path):
    (completion,) = always("<|im_end|>", model, kind, tmp_path / "model").generate(PROMPTS[:1], max_new_tokens=5)
    assert (completion.text, completion.n_completion_tokens, completion.finish_reason) == ("", 0, "stop")


def test_generate_at_temperature_0_repeats_whatever_the_seed(engine):
    assert texts(engine) == texts(engine, seed=3)


def test_generate_at_a_temperature_follows_the_seed(engine, kind, request):
    if kind == "ctranslate2":
        # Its workers take the seed once, when they start; see `ctranslate2.set_random_seed`.
        request.applymarker(pytest.mark.xfail(reason="CTranslate2 does not seed anew for each call", strict=True))
    first = texts(engine, temperature=1.0, seed=1)
    assert first == texts(engine, temperature=1.0, seed=1)
    assert len({tuple(texts(engine, temperature=1.0, seed=seed)) for seed in range(4)}) > 1
    assert first != texts(engine)


def test_generate_answers_each_prompt_as_it_would_alone(engine):
    alone = [engine.generate([prompt], max_new_tokens=1)[0].text for prompt in PROMPTS]
    assert [completion.text for completion in engine.generate(PROMPTS, max_new_tokens=1)] == alone


def test_generate_counts_the_prompt_without_adding_tokens(engine):
    (completion,) = engine.generate(PROMPTS[:1], max_new_tokens=1)
    assert completion.n_prompt_tokens == engine.count_tokens(PROMPTS[0])
    assert engine.count_tokens("<|im_start|><|im_end|>") == 2
    assert completion.latency_ms > 0


def test_generate_beyond_the_window_is_told(engine):
    prompt = "a " * 3000
    n = engine.count_tokens(prompt)
    with pytest.raises(
        UserError, match=f"A prompt of {n} tokens and 4 for the answer exceed the model's window of 2048"
    ):
        engine.generate([PROMPTS[0], prompt], max_new_tokens=4)


def test_generate_exactly_fills_the_window(engine):
    n = engine.count_tokens(PROMPTS[0])
    with pytest.raises(UserError, match="exceed"):
        engine.generate(PROMPTS[:1], max_new_tokens=2048 - n + 1)
    long = "a" * 3000
    while engine.count_tokens(long) > 2047:
        long = long[:-1]
    assert engine.generate([long], max_new_tokens=1)[0].n_completion_tokens <= 1


def test_render_ends_where_the_answer_begins(engine):
    assert engine.render([{"role": "user", "content": "Which plug?"}]) == PROMPTS[0]


def test_generate_says_when_each_answer_began_and_was_complete(engine):
    started = time.perf_counter()
    completions = engine.generate(PROMPTS, max_new_tokens=12)
    total_ms = (time.perf_counter() - started) * 1000
    assert all(0 < made.first_token_ms < made.latency_ms <= total_ms for made in completions)


def test_score_is_the_mean_of_the_tokens_negative_log_likelihoods(engine, kind, model):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    text = "The Type 2 connector is the usual AC plug for electric cars in Europe."
    ids = AutoTokenizer.from_pretrained(model)(text, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(model)(torch.tensor([ids])).logits[0]
    chances = torch.log_softmax(logits, dim=-1)
    expected = -sum(float(chances[n, token]) for n, token in enumerate(ids[1:])) / (len(ids) - 1)
    long, short = engine.score([text, "The plug"])
    assert (long.n_tokens, short.n_tokens) == (len(ids) - 1, engine.count_tokens("The plug") - 1)
    assert long.nll == pytest.approx(expected, rel=1e-4 if kind == "transformers" else 0.05)
    assert engine.score(["The plug"])[0].nll == pytest.approx(short.nll, rel=0.02)


def test_score_of_a_text_without_a_second_token_is_told(engine):
    with pytest.raises(UserError, match="A text of 1 tokens cannot be scored: it must have at least 2, and at most"):
        engine.score(["a"])
    with pytest.raises(UserError, match="at most the 2048 of the model's window"):
        engine.score(["a long text", "a " * 3000])
