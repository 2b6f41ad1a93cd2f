"""The check of the score below which a model abstains."""

import dagster as dg
import pytest

from ev_platform.evaluation.calibration import SWITCHED_OFF
from ev_platform.records import AbstentionShare, to_frame
from ev_platform.storage import Store


@pytest.mark.parametrize(
    ("reason", "n_refused", "passed"),
    [
        (SWITCHED_OFF, 0, True),
        ("Scores do not tell the two kinds apart.", 0, False),
        ("Below 0.4 lie 39 of 50.", 39, False),
        ("Below 0.4 lie 40 of 50.", 40, True),
    ],
)
def test_strangers_are_refused_is_told_unless_abstention_is_off(tmp_path, reason, n_refused, passed):
    from ev_platform.defs.abstention import strangers_are_refused
    from ev_platform.defs.resources import Table

    store, share = Store(tmp_path), n_refused / 50
    row = AbstentionShare("strange_held_out", 50, n_refused, share, share, share, 0.4 if n_refused else None, reason)
    record = store.publish("abstention_calibration", "tiny", to_frame("abstention_calibration", [row]))
    result = strangers_are_refused(Table(store, record))
    assert isinstance(result, dg.AssetCheckResult) and result.passed is passed
