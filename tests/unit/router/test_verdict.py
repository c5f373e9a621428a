import pytest

from router.verdict import Prospect, may_wait


@pytest.mark.parametrize(
    ("prospect", "reason"),
    [
        (Prospect(0, 0, None, None, None), ""),
        (Prospect(0, 9, 1.0, 1.0, None), ""),
        (Prospect(0, 10, 1.0, 1.0, None), "QUEUE_FULL"),
        (Prospect(0, 10, None, None, 1e9), "QUEUE_FULL"),
        (Prospect(3, 3, None, 5.0, 0.1), ""),
        (Prospect(3, 3, 1.0, 1.0, 6.0), ""),
        (Prospect(3, 3, 1.0, 1.0, 5.2), "WAIT_EXCEEDS_DEADLINE"),
        (Prospect(0, 3, 1.0, 1.0, 2.5), ""),
        (Prospect(3, 3, 1.0, None, 5.0), ""),
        (Prospect(3, 3, 1.0, None, 4.2), "WAIT_EXCEEDS_DEADLINE"),
    ],
    ids=[
        "nothing known",
        "no deadline",
        "full",
        "full, though nothing is known",
        "how fast the queue moves is not known",
        "in time",
        "by a hair",
        "ahead of the others",
        "service time not known, in time",
        "service time not known, late",
    ],
)
def test_who_may_wait(prospect: Prospect, reason: str) -> None:
    refusal = may_wait(prospect, 10, "m")
    assert (refusal.reason if refusal else "") == reason
    if refusal:
        assert refusal.code.name == "RESOURCE_EXHAUSTED"
        assert refusal.retry_after_s is not None
        assert 0.1 <= refusal.retry_after_s <= 30.0


def test_told_to_come_back_when_it_would_be_in_time() -> None:
    refusal = may_wait(Prospect(ahead=19, queued=19, turn_s=0.5, service_s=1.0, remaining_s=4.0), 100, "m")
    assert refusal is not None
    assert refusal.retry_after_s == pytest.approx((20 * 0.5 + 1.0) * 1.2 - 4.0)
