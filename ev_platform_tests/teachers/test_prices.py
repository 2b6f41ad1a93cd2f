import json
import math
import unicodedata

import pytest

from ev_platform.errors import UserError
from ev_platform.tasks.config import Price
from ev_platform.teachers.calls import Usage
from ev_platform.teachers.prices import cost_of, most_cost_of, most_input_tokens, price_of, price_table
from ev_platform_tests.teachers.fake_client import make_call, make_config


def test_price_table_every_entry_is_consistent_and_dated():
    table = price_table()
    assert table.date.year >= 2026 and "public list" in table.source
    assert len(table.models["anthropic"]) > 10
    for model, price in table.models["anthropic"].items():
        assert 0 < price.input < price.output, model
        assert price.cache_write == pytest.approx(1.25 * price.input), model
        assert price.cache_read is not None and price.cache_read <= 0.1 * price.input, model
        assert price.batch == 0.5, model


def test_price_of_known_dated_own_and_unknown_models():
    known = price_of(make_config(price=None, model="claude-haiku-4-5"))
    assert (known.input, known.output) == (1, 5)
    assert price_of(make_config(price=None, model="claude-haiku-4-5-20251001")) == known
    own = Price(input=7, output=8)
    assert price_of(make_config(price=own, model="claude-haiku-4-5")) == own
    assert price_of(make_config(price=None, provider="recorded", model=None)) == Price(input=0, output=0)
    with pytest.raises(UserError, match=r"anthropic's model 'claude-x' is not known: write teacher\.price"):
        price_of(make_config(price=None, model="claude-x"))
    with pytest.raises(UserError, match="openai_compatible's model"):
        price_of(make_config(price=None, provider="openai_compatible", model="claude-haiku-4-5"))


def test_cost_of_counts_each_kind_of_token_at_its_price():
    usage = Usage(1_000_000, 100_000, 200_000, 400_000)
    price = Price(input=1, output=5, cache_write=1.25, cache_read=0.1, batch=0.5)
    assert cost_of(price, usage) == pytest.approx(1 + 0.5 + 0.25 + 0.04)
    assert cost_of(price, usage, is_batch=True) == pytest.approx(1.79 / 2)
    assert cost_of(Price(input=1, output=5), usage) == pytest.approx(1 + 0.5 + 0.2 + 0.4)


@pytest.mark.parametrize("text", ["plain words", "Ladesäule für 11 kW", "充電ステーション", "🔌" * 50, "ﷺ" * 50, ""])
def test_most_input_tokens_is_above_what_a_tokenizer_of_bytes_can_make(text):
    call = make_call(1, prompt=text)
    schema = json.dumps(call.schema.model_json_schema())
    for form in (text, unicodedata.normalize("NFKC", text)):
        assert most_input_tokens(call) >= len((call.system + form + schema).encode()) + 500


def test_most_cost_of_takes_the_dearest_reading_of_the_prompt_and_the_longest_reply():
    call = make_call(1, max_tokens=1000)
    plain, kept = Price(input=1, output=5, batch=0.5), Price(input=1, output=5, cache_write=2)
    n = most_input_tokens(call)
    assert most_cost_of(plain, call) == pytest.approx((n + 5000) / 1e6)
    assert most_cost_of(plain, call, is_batch=True) == pytest.approx((n + 5000) / 2e6)
    assert most_cost_of(kept, call) == pytest.approx((2 * n + 5000) / 1e6)
    assert most_cost_of(plain.model_copy(update={"max_prompt_tokens": n - 1}), call) == math.inf
