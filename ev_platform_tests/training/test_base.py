import json

import pytest

from ev_platform.errors import UserError
from ev_platform.prompting import build_messages
from ev_platform.training.base import (
    BUNDLED_ENCODER,
    architecture_of,
    base_model_identity,
    chat_template,
    is_encoder,
    load_tokenizer,
    sha256_weights,
    write_base_model,
)
from ev_platform.training.tokens import chats_counter, text_counter
from ev_platform_tests.tiny import write_tiny_model

LONG = "A station delivers 11 kW at home. " * 40


@pytest.fixture(scope="module")
def bundled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundled")
    write_base_model(BUNDLED_ENCODER, folder)
    return folder


def test_bundled_encoder_is_a_model_directory_that_cuts_no_text(bundled):
    from tokenizers import Tokenizer

    assert architecture_of(bundled) == "BertModel"
    assert is_encoder(bundled)
    assert sha256_weights(bundled)[1] > 90_000_000
    n_tokens = len(load_tokenizer(bundled)(LONG)["input_ids"])
    assert n_tokens == 40 * 8 + 2
    # The packaged file itself says: cut after 128 tokens, and pad to them.
    raw = Tokenizer.from_file(str(bundled / "tokenizer.json"))
    assert len(raw.encode(LONG).ids) == n_tokens
    assert len(raw.encode("plug").ids) == 3


def test_bundled_encoder_is_identified_by_its_bytes(bundled):
    identity = base_model_identity(BUNDLED_ENCODER)
    assert identity["name"] == BUNDLED_ENCODER
    assert identity == base_model_identity(BUNDLED_ENCODER)
    assert len(identity["sha256"]) == 64


def test_unknown_base_model_is_told_of_both_bundled_ones():
    with pytest.raises(UserError, match=r"bundled:smollm2-135m-instruct, bundled:all-minilm-l6-v2, a folder"):
        base_model_identity("bundled:minilm")


def test_causal_model_without_chat_template_is_told_and_an_encoder_needs_none(tmp_path, tiny_encoder):
    model = write_tiny_model(tmp_path / "model")
    assert load_tokenizer(model).chat_template
    (model / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="The tokenizer of model has no chat template: choose an instruction-tuned"):
        load_tokenizer(model)
    assert load_tokenizer(tiny_encoder).chat_template is None


def test_chat_template_is_the_one_that_the_tokenizer_has(tmp_path):
    write_tiny_model(tmp_path)
    wanted = load_tokenizer(tmp_path).chat_template
    assert chat_template(tmp_path) == wanted
    file = tmp_path / "chat_template.jinja"
    file.unlink()
    config = tmp_path / "tokenizer_config.json"  # where older releases of transformers write it
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": wanted}))
    assert chat_template(tmp_path) == wanted


def test_export_of_a_causal_model_counts_as_causal(tmp_path):
    # CTranslate2's config.json names no architecture.
    (tmp_path / "config.json").write_text(json.dumps({"bos_token": "<s>"}))
    assert not is_encoder(tmp_path)


def test_encoder_counts_what_it_reads(tiny_encoder):
    from ev_platform.encoder import count_tokens

    chats = [
        (build_messages("Find the city. " * 9, "where does anna live?", ["anna lives in rome", "bob works"]), "rome"),
        (build_messages("Name the city.", "anna lives in bern", []), "bern"),
        (build_messages("Name the city.", "xyz", []), "not in bern"),
    ]
    counts = chats_counter(tiny_encoder)(chats)
    tokenizer = load_tokenizer(tiny_encoder)
    assert [whole for whole, _ in counts] == [count_tokens(tokenizer, messages[-1]["content"]) for messages, _ in chats]
    # The instructions are not read, the marks around the texts are.
    assert counts[1] == (6, 1)
    assert counts[2] == (5, 3)
    assert text_counter(tiny_encoder)(["anna lives in rome", ""]) == [4, 0]
