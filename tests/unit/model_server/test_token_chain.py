from model_server.token_chain import chain, root

ROOT = root("", "")


def test_only_whole_blocks_have_a_key_and_each_stands_for_all_before_it() -> None:
    assert chain(ROOT, range(3), 4) == []
    assert len(chain(ROOT, range(11), 4)) == 2
    one, other = chain(ROOT, [1, 2, 3, 4, 5, 6, 7, 8], 4), chain(ROOT, [1, 2, 3, 9, 5, 6, 7, 8], 4)
    assert not set(one) & set(other)
    assert chain(ROOT, range(11), 4) == chain(ROOT, range(8), 4)


def test_adapters_and_salts_share_nothing() -> None:
    roots = [root("", ""), root("a", ""), root("", "a")]
    assert len({key for each in roots for key in chain(each, range(4), 4)}) == 3
