from router.retry_budget import RetryBudget, RetryBudgetRules
from tests.fakes.clock import FakeClock


def taken(budget: RetryBudget, asked: int) -> int:
    return sum(budget.take() for _ in range(asked))


def test_a_quiet_router_may_retry_at_a_fixed_rate() -> None:
    budget = RetryBudget(RetryBudgetRules(share=0.2, per_s=10, window_s=10), FakeClock())
    assert taken(budget, 1000) == 100


def test_a_busy_router_may_retry_a_share_of_its_requests_beside() -> None:
    budget = RetryBudget(RetryBudgetRules(share=0.2, per_s=10, window_s=10), FakeClock())
    for _ in range(1000):
        budget.request()
    assert taken(budget, 1000) == 300


def test_what_is_older_than_the_window_counts_no_more() -> None:
    clock = FakeClock()
    budget = RetryBudget(RetryBudgetRules(share=0.5, per_s=1, window_s=10), clock)
    for _ in range(20):
        budget.request()
    assert taken(budget, 100) == 20
    clock.advance(9.0)
    assert taken(budget, 100) == 0
    clock.advance(1.0)
    assert taken(budget, 100) == 10


def test_no_budget_at_all() -> None:
    budget = RetryBudget(RetryBudgetRules(share=0, per_s=0), FakeClock())
    budget.request()
    assert not budget.take()
