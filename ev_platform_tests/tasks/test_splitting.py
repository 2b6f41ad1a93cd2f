from itertools import pairwise

import pytest

from ev_platform.tasks.splitting import spread_evenly


@pytest.mark.parametrize(("n_rows", "n"), [(0, 3), (2, 3), (3, 3), (7, 3), (1000, 7)])
def test_spread_evenly_gives_n_rows_in_order_with_equal_gaps(n_rows, n):
    taken = spread_evenly(range(n_rows), n)
    assert len(taken) == min(n_rows, n)
    gaps = [b - a for a, b in pairwise(taken)]
    assert all(gap > 0 for gap in gaps)
    assert not gaps or max(gaps) - min(gaps) <= 1
