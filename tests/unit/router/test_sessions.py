from router.sessions import Sessions

HERE, THERE = ("a-1", "e1"), ("a-2", "e1")


def test_what_a_session_left_is_found_by_server() -> None:
    sessions = Sessions(10)
    sessions.left("s", HERE, 100)
    sessions.left("s", THERE, 50)
    assert sessions.held("s") == {HERE: 100, THERE: 50}
    assert sessions.held("other") == {}


def test_requests_without_a_session_leave_nothing() -> None:
    sessions = Sessions(10)
    sessions.left("", HERE, 100)
    assert len(sessions) == 0
    assert sessions.held("") == {}


def test_a_server_that_had_less_is_believed() -> None:
    sessions = Sessions(10)
    sessions.left("s", HERE, 100)
    sessions.correct("s", HERE, 32)
    sessions.correct("s", THERE, 16)
    assert sessions.held("s") == {HERE: 32}


def test_the_oldest_sessions_and_places_go_first() -> None:
    sessions = Sessions(2, places_per_session=2)
    for name in ("one", "two", "one", "three"):
        sessions.left(name, HERE, 1)
    assert sessions.held("two") == {}
    for server in ("b", "c"):
        sessions.left("one", (server, "e"), 2)
    assert sessions.held("one") == {("b", "e"): 2, ("c", "e"): 2}
