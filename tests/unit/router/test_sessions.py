from router.sessions import Sessions

HERE, THERE = ("a-1", "e1"), ("a-2", "e1")


def test_what_a_session_left_is_found_by_server() -> None:
    sessions = Sessions(10)
    sessions.left(1, HERE, 100)
    sessions.left(1, THERE, 50)
    assert sessions.held(1) == {HERE: 100, THERE: 50}
    assert sessions.held(2) == {}


def test_requests_without_a_session_leave_nothing() -> None:
    sessions = Sessions(10)
    sessions.left(0, HERE, 100)
    assert len(sessions) == 0
    assert sessions.held(0) == {}


def test_a_server_that_had_less_is_believed() -> None:
    sessions = Sessions(10)
    sessions.left(1, HERE, 100)
    sessions.correct(1, HERE, 32)
    sessions.correct(1, THERE, 16)
    assert sessions.held(1) == {HERE: 32}


def test_the_oldest_sessions_and_places_go_first() -> None:
    sessions = Sessions(2, places_per_session=2)
    for session in (1, 2, 1, 3):
        sessions.left(session, HERE, 1)
    assert sessions.held(2) == {}
    for server in ("b", "c"):
        sessions.left(1, (server, "e"), 2)
    assert sessions.held(1) == {("b", "e"): 2, ("c", "e"): 2}
