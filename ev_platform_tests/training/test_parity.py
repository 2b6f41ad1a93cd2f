import shutil

import pytest

from ev_platform.errors import UserError
from ev_platform.prompting import build_messages
from ev_platform.training.heads import reading_of, with_head
from ev_platform.training.packages import write_ctranslate2
from ev_platform.training.parity import N_FOLLOWING, agreement
from ev_platform_tests.tiny import DESCRIPTION, TRAIN, write_tiny_model

from .tiny_encoder import CITIES, NAMES, NO_ANSWER, encoder_recipe, write_tiny_encoder

PROMPTS = [build_messages(DESCRIPTION, question, []) for question, _, _ in TRAIN]
ANSWERED = [
    [*messages, {"role": "assistant", "content": answer}]
    for messages, (_, answer, _) in zip(PROMPTS, TRAIN, strict=True)
]


@pytest.fixture(scope="module")
def int8(tiny_base, tmp_path_factory):
    out = tmp_path_factory.mktemp("int8")
    write_ctranslate2(tiny_base, out)
    return out


def test_copy_of_a_model_agrees_on_every_token_of_the_references(tiny_base):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    lengths = [len(tokenizer(answer)["input_ids"]) for _, answer, _ in TRAIN]
    assert max(lengths) > 1
    found = agreement(tiny_base, tiny_base, ANSWERED)
    assert (found.n, found.rate, found.token_rate) == (6, 1.0, 1.0)
    assert found.n_tokens == sum(1 + min(n, N_FOLLOWING) for n in lengths)


def test_prompts_without_references_are_compared_at_the_answer_s_start_only(tiny_base, int8):
    found = agreement(tiny_base, int8, PROMPTS)
    assert (found.n, found.n_tokens) == (6, 6)
    assert found.rate == found.token_rate


def test_int8_export_agrees_on_most_tokens_and_another_model_s_on_few(tiny_base, int8, tmp_path):
    close = agreement(tiny_base, int8, ANSWERED)
    # Random weights have more close calls than trained ones.
    assert close.token_rate >= 0.8
    other = write_tiny_model(tmp_path / "other", seed=1)
    far = agreement(other, int8, ANSWERED)
    assert far.token_rate <= 0.2
    assert far.rate <= 0.2


def test_export_with_another_chat_template_agrees_on_nothing(tiny_base, int8, tmp_path):
    out = tmp_path / "export"
    shutil.copytree(int8, out)
    file = out / "chat_template.jinja"
    file.write_text(file.read_text().replace("<|im_end|>\n", "<|im_end|>"))
    found = agreement(tiny_base, out, ANSWERED)
    assert (found.rate, found.token_rate) == (0.0, 0.0)
    assert found.n_tokens == agreement(tiny_base, int8, ANSWERED).n_tokens


def test_no_prompts_are_told(tiny_base):
    with pytest.raises(UserError, match="compared on prompts of the validation or training set, but both are empty"):
        agreement(tiny_base, tiny_base, [])


def write_head(folder, encoder, head, *, seed):
    recipe = encoder_recipe(head=head, seed=seed)
    labels = tuple(CITIES) if head == "classification" else ()
    model, _ = with_head(encoder, recipe, labels, reading_of(recipe, NO_ANSWER))
    model.save_pretrained(folder)
    for file in encoder.glob("*token*"):
        shutil.copy2(file, folder)
    return folder


@pytest.mark.parametrize("head", ["classification", "extractive"])
def test_encoder_heads_are_compared_by_their_labels_and_whole_spans(head, tmp_path):
    encoder = write_tiny_encoder(tmp_path / "encoder")
    one = write_head(tmp_path / "one", encoder, head, seed=1)
    other = write_head(tmp_path / "other", encoder, head, seed=2)
    prompts = [
        build_messages(DESCRIPTION, f"where does {name} live ?", [f"{name} lives in {city} and works every day ."])
        for name, city in zip(NAMES, CITIES, strict=True)
    ]
    assert agreement(one, shutil.copytree(one, tmp_path / "copy"), prompts).rate == 1.0
    assert agreement(one, other, prompts).rate < 1.0
    # A reference at the end is not read as a question.
    asked = [[*messages, {"role": "assistant", "content": "oslo"}] for messages in prompts]
    assert agreement(one, one, asked).n_tokens == len(prompts)
