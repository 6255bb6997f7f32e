"""Money is neither made nor lost: the split for any amount, and a deposit for any records settled."""

from hypothesis import given
from hypothesis import strategies as st

from policies.settlement import SHARES, split

amounts = st.integers(min_value=0, max_value=2**128 - 1)


@given(amounts)
def test_I09_parts_add_up_and_only_the_hospital_gains_by_rounding(amount: int) -> None:
    parts = split(amount)
    assert sum(parts) == amount
    assert all(part >= 0 for part in parts)
    assert [part == amount * share // 100 for part, share in zip(parts[1:], SHARES[1:], strict=True)] == [True] * 3
    assert 0 <= parts[0] - amount * SHARES[0] // 100 <= 3


@given(
    st.integers(min_value=1, max_value=2**96 - 1),
    st.integers(min_value=1, max_value=2**32 - 1),
    st.data(),
)
def test_credits_and_rest_are_the_deposit(price: int, cap: int, data: st.DataObject) -> None:
    records = data.draw(st.integers(min_value=1, max_value=cap))
    assert sum(split(price * records)) + (price * cap - price * records) == price * cap
    assert price * cap < 2**128
