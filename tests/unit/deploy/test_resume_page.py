"""Which requests go on elsewhere: the page, the code, and that no field of the API is forgotten in either."""

import pytest

from deploy.docs.resume import KINDS, PAGE, Kind, page
from stoker.v1.generation_pb2 import Generation, Sampling
from stoker_common.resuming import PREFILL, fitting, is_stateful

# What names a request or a place, and has no part in its tokens.
_NO_KIND = {"model", "sampling", "on_server_failure", "resume", "request_id"}


def test_the_page_says_what_the_code_does() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `make docs`"


def test_every_field_of_a_request_is_in_the_table_once() -> None:
    named = [field for kind in KINDS for field in kind.fields]
    there = {field.name for message in (Generation, Sampling) for field in message.DESCRIPTOR.fields} - _NO_KIND
    assert sorted(named) == sorted(there)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_what_depends_on_more_than_the_tokens_before_is_never_prefilled(kind: Kind) -> None:
    generation = kind.example()
    assert is_stateful(generation) == (PREFILL not in fitting(generation))


def test_a_penalty_of_one_is_none() -> None:
    assert not is_stateful(Generation(sampling=Sampling(repetition_penalty=1.0)))
    assert is_stateful(Generation(sampling=Sampling(repetition_penalty=1.1)))
