import time

import pytest

from ev_platform.decoding import Prompt
from ev_platform.engine import CTranslate2Engine, TransformersEngine
from ev_platform.engine_base import batches_of
from ev_platform.errors import UserError
from ev_platform.training.base import BUNDLED, write_base_model
from ev_platform.training.export import export_serving_model
from ev_platform_tests.tiny import PAGES, TRAIN, tiny_recipe, write_tiny_model

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


def test_generate_at_a_temperature_follows_the_seed(engine, kind):
    if kind == "ctranslate2":
        pytest.skip("each of its workers takes the seed once, when it starts: see `ctranslate2.set_random_seed`")
    first = texts(engine, temperature=1.0, seed=1)
    assert first == texts(engine, temperature=1.0, seed=1)
    assert len({tuple(texts(engine, temperature=1.0, seed=seed)) for seed in range(4)}) > 1
    assert first != texts(engine)


def longer(n):
    return PROMPTS[0].replace("plug", f"plug {'with a cable ' * (n % 8)}{n // 8}")


def test_generate_answers_each_prompt_as_it_would_alone(engine):
    prompts = [longer(n) for n in range(16)]
    alone = [engine.generate([prompt], max_new_tokens=16)[0].text for prompt in prompts]
    assert [completion.text for completion in engine.generate(prompts, max_new_tokens=16)] == alone
    assert len(set(alone)) > 8


def test_generate_never_mixes_lengths(engine, monkeypatch):
    written, write = [], engine._write

    def note(encoded, *rest):
        written.append([len(ids) for ids in encoded])
        write(encoded, *rest)

    monkeypatch.setattr(engine, "_write", note)
    engine.generate([longer(n) for n in (0, 1, 8, 2, 0, 9)], max_new_tokens=2)
    assert all(len(set(lengths)) == 1 for lengths in written) and sum(map(len, written)) == 6
    assert len(written) < 6


@pytest.mark.slow
def test_generate_of_the_bundled_model_answers_each_prompt_as_it_would_alone(tmp_path):
    # The tiny model answers alike even in batches of mixed lengths, where this one does not.
    write_base_model(BUNDLED, tmp_path)
    engine = load("ctranslate2", tmp_path, tmp_path / "out")
    passage = PAGES["connectors.html"][2].split()
    chats = [
        [
            {"role": "system", "content": "Answer the question from the passages, in a sentence."},
            {"role": "user", "content": f"{' '.join(passage[: 20 + n % 8 * 9])}\n\nQuestion: {TRAIN[n % 6][0]}"},
        ]
        for n in range(24)
    ]
    prompts = [engine.render(chat) for chat in chats]
    alone = [engine.generate([prompt], max_new_tokens=24)[0].text for prompt in prompts]
    assert [completion.text for completion in engine.generate(prompts, max_new_tokens=24)] == alone


def test_batches_are_of_equal_length_and_no_worker_has_more_than_its_share():
    lengths = [5, 9, 5, 7, 5, 5]
    assert batches_of(lengths, 1) == [[1], [3], [0, 2, 4, 5]]
    assert batches_of(lengths, 2) == [[1], [3], [0, 2, 4], [5]]
    assert [len(batch) for batch in batches_of([8] * 50, 1)] == [16, 16, 16, 2]
    assert batches_of([], 2) == []


def test_write_of_unequal_lengths_is_refused(engine):
    with pytest.raises(ValueError, match="equally many tokens"):
        engine.write([Prompt("a", 1), Prompt("a longer one", 1)])


def test_write_follows_each_answer_of_a_batch_by_itself(engine):
    whole = engine.generate(PROMPTS[:1], max_new_tokens=20)[0]
    pieces, ended = [], []

    def stop_after_three():
        return len(pieces) >= 3

    done = engine.write(
        [
            Prompt(PROMPTS[0], 20, on_text=pieces.append, on_end=lambda _: ended.append("cancelled")),
            Prompt(PROMPTS[0], 5, on_end=lambda _: ended.append("short")),
            Prompt(PROMPTS[0], 20, stop=(whole.text[5:8],), on_end=lambda _: ended.append("stopped")),
            Prompt(PROMPTS[0], 20, is_cancelled=stop_after_three),
        ]
    )
    assert done[0].text == "".join(pieces) == whole.text
    assert done[1].n_completion_tokens == 5 and whole.text.startswith(done[1].text)
    assert done[2].text == whole.text[: whole.text.index(whole.text[5:8])].strip()
    assert done[2].finish_reason == "stop"
    assert done[3].finish_reason == "cancelled" and done[3].n_completion_tokens < whole.n_completion_tokens
    assert ended[-1] == "cancelled" and len(ended) == 3


def test_write_passes_on_what_a_caller_of_it_raised(engine):
    def fail(_):
        raise RuntimeError("of the caller")

    with pytest.raises(RuntimeError, match="of the caller"):
        engine.write([Prompt(PROMPTS[0], 8, on_text=fail)])
    assert engine.generate(PROMPTS[:1], max_new_tokens=4)[0].n_completion_tokens


def test_system_message_is_read_once_and_changes_no_answer(model, tmp_path):
    engine, other = (load("ctranslate2", model, tmp_path / name) for name in ("one", "other"))
    system = {"role": "system", "content": "Answer in a word, and only from the passages that you are given. " * 4}
    questions = [f"Which plug {'of all ' * (n % 4)}is number {n}?" for n in range(12)]
    prompts = [engine.render([system, {"role": "user", "content": question}]) for question in questions]
    (prefix,) = engine._prefixes.values()  # type: ignore[union-attr]
    assert len(prefix) > 40 and not other._prefixes  # type: ignore[union-attr]
    answers = [[made.text for made in one.generate(prompts, max_new_tokens=16)] for one in (engine, other)]
    assert answers[0] == answers[1] and len(set(answers[0])) > 6


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
