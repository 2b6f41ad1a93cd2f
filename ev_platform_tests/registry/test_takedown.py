"""What was taken down taints versions: the registry promotes none of them."""

from datetime import UTC, datetime

import pytest

from ev_platform.errors import UserError
from ev_platform.records import Takedown, to_frame
from ev_platform.registry.promotion import promote, rollback
from ev_platform.registry.takedown import tainted_versions
from ev_platform_tests.registry.registered import PlainStore, add_version, conclude, gate
from ev_platform_tests.registry.test_gate import evidence, failed, judged

URL = "https://a.example/page"


@pytest.fixture
def store(tmp_path):
    return PlainStore(tmp_path / "data")


def take_down(store, trained=(), holding=(), state="done"):
    row = Takedown("tkd_1", URL, [URL], "asked to", "Ada", datetime.now(UTC), state, True, "{}", [*trained], [*holding])
    store.publish("takedowns", "tiny", to_frame("takedowns", [row]))


def test_version_trained_on_what_was_taken_down_is_not_promoted_even_against_the_gate(store):
    add_version(store, "m1")
    take_down(store, trained=["tiny@1"])
    with pytest.raises(UserError, match=rf"tiny@1 must not answer any more: .* on {URL}, .*ev-platform run"):
        promote(store, "tiny", "tiny@1", reason="I want it", by="Ada", override=True)


def test_version_with_passages_of_what_was_taken_down_is_not_rolled_back_to(store):
    for model in ("m1", "m2"):
        version = add_version(store, model)
        conclude(store, gate(version, champion=None if model == "m1" else "tiny@1"))
    take_down(store, holding=["tiny@1"], state="removing")
    with pytest.raises(UserError, match="tiny@1 must not answer any more: it answers from passages of"):
        rollback(store, "tiny", reason="worse", by="Ada")


def test_later_version_with_the_same_adapter_is_tainted_too_and_one_with_another_is_not(store):
    add_version(store, "m1")
    take_down(store, trained=["tiny@1"])
    add_version(store, "m1", chunks=("c2", "c2"))
    add_version(store, "m2")
    assert set(tainted_versions(store, "tiny")) == {"tiny@1", "tiny@2"}


def test_address_that_is_allowed_again_taints_nothing(store):
    add_version(store, "m1")
    take_down(store, trained=["tiny@1"], state="undone")
    assert tainted_versions(store, "tiny") == {}


def test_gate_fails_a_tainted_version_with_the_reason():
    rows = judged(evidence(taint=f"it was trained on {URL}, which was taken down on 2026-11-22"))
    assert failed(rows) == ["untainted"]
    assert rows["untainted"]["reason"].startswith(f"It must not answer: it was trained on {URL}")
