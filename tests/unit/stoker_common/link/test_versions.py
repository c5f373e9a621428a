"""Two ranges of versions: the highest in both is spoken, or none."""

import pytest

from stoker_common.link.versions import Versions


@pytest.mark.parametrize(
    ("attached_to", "attaching", "spoken"),
    [
        (Versions(1, 1), Versions(1, 1), 1),
        (Versions(1, 3), Versions(1, 1), 1),
        (Versions(1, 1), Versions(1, 3), 1),
        (Versions(2, 4), Versions(1, 3), 3),
        (Versions(2, 4), Versions(1, 1), None),
        (Versions(1, 1), Versions(2, 3), None),
    ],
    ids=str,
)
def test_the_highest_of_both_or_none(attached_to: Versions, attaching: Versions, spoken: int | None) -> None:
    answer = attached_to.answer(attaching.highest)
    assert (answer if answer is not None and attaching.accept(answer) else None) == spoken


def test_a_welcome_in_what_was_not_offered_is_not_accepted() -> None:
    assert not Versions(1, 2).accept(3)
    assert not Versions(1, 2).accept(0)


def test_a_range_reads_as_one() -> None:
    assert (str(Versions(1, 1)), str(Versions(1, 2))) == ("1", "1 to 2")
