"""Shares of a pool: never more than there is, and room for whoever has little."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker_common.http2.pool import Pool

pytestmark = pytest.mark.unit


def test_a_share_grows_to_its_own_limit() -> None:
    share = Pool(1000).share(100)
    assert share.fits(100) and not share.fits(101)
    share.add(100)
    assert share.fits() and not share.fits(1)
    share.add(-40)
    assert share.fits(40)
    share.add(60)
    assert not share.fits()
    assert share.why("requests") == "120 bytes of requests of this connection wait"


@pytest.mark.parametrize("hogs", [1, 2, 9])
def test_those_who_take_all_they_get_leave_as_much_to_the_next(hogs: int) -> None:
    pool = Pool(1000)
    shares = [pool.share(1000) for _ in range(hogs)]
    for _ in range(1000):
        for share in shares:
            if share.fits(1):
                share.add(1)
    assert {share.held_bytes for share in shares} <= {1000 // (hogs + 1), 1000 // (hogs + 1) - 1}
    assert pool.free_bytes >= 1000 // (hogs + 1)
    assert not shares[0].fits(2) and pool.share(1000).fits(pool.free_bytes // 2)
    shares[0].add(pool.free_bytes)
    assert shares[0].why("answers").startswith("1000 bytes of answers of all connections wait, ")


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(-50, 300))))
def test_what_fits_is_never_more_than_there_is(steps: list[tuple[int, int]]) -> None:
    pool = Pool(1000)
    shares = [pool.share(400) for _ in range(5)]
    for at, size in steps:
        share = shares[at]
        if size > 0 and share.fits(size):
            share.add(size)
        elif size < 0:
            share.add(-min(-size, share.held_bytes))
        assert pool.free_bytes == 1000 - sum(each.held_bytes for each in shares) >= 0
        assert all(each.held_bytes <= 400 for each in shares)
    for share in shares:
        share.release()
    assert pool.free_bytes == 1000
