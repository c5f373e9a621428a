import pytest

from deploy.docs.configuration import PAGE, SECTIONS, page
from stoker_common.settings import Settings


def test_the_page_says_what_the_programs_take() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `make docs`"


@pytest.mark.parametrize(("name", "cls"), [(name, cls) for name, _, cls in SECTIONS])
def test_every_key_says_what_it_means(name: str, cls: type[Settings]) -> None:
    assert [key for key, field in cls.model_fields.items() if not field.description] == []
