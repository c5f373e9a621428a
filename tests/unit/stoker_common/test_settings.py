"""Which source wins, and what an error tells whoever made it."""

from enum import Enum
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field, SecretStr

from stoker_common.settings import Settings, SettingsError, load

pytestmark = pytest.mark.unit


class Level(Enum):
    INFO = "INFO"
    DEBUG = "DEBUG"


class RouterSettings(Settings):
    """A router of one zone.

    What follows the first paragraph is not for --help.
    """

    listen_port: int = Field(7000, ge=0, le=65535, description="Port to listen on, 0 for any free one")
    zones: tuple[str, ...] = Field((), description="Zones to route to, nearest first")
    reflection: bool = Field(False, description="Whether 100 % of the API is told to whoever asks")
    policy: Literal["cost", "random"] = Field("cost", description="How endpoints are chosen")
    level: Level = Field(Level.INFO, description="What is logged")
    token: SecretStr | None = Field(None, max_length=8, description="Key for Consul")
    drain_s: float | None = Field(None, gt=0, description="Time that draining may take, in seconds")


class NamedSettings(Settings):
    """Settings with a key that must be given."""

    name: str = Field(description="What the server is called")


@pytest.fixture(autouse=True)
def no_file_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def fails(**sources: object) -> str:
    with pytest.raises(SettingsError) as caught:
        load(RouterSettings, "router", **{"environ": {}, **sources})  # type: ignore[arg-type]
    return str(caught.value)


def test_each_source_beats_the_next(tmp_path: Path) -> None:
    file = write(tmp_path / "f.toml", "[router]\nlisten_port = 1\ndrain_s = 1.0\nzones = ['f']\npolicy = 'random'\n")
    environ = {"STOKER_ROUTER_LISTEN_PORT": "2", "STOKER_ROUTER_DRAIN_S": "2", "STOKER_ROUTER_ZONES": "e"}
    argv = ["--listen-port", "3", "--drain-s=3"]
    settings = load(RouterSettings, "router", argv, {"listen_port": 4}, environ, file)
    assert (settings.listen_port, settings.drain_s, settings.zones) == (4, 3.0, ("e",))
    assert (settings.policy, settings.level) == ("random", Level.INFO)


@pytest.mark.parametrize(
    ("argv", "environ", "used"),
    [
        (["--config", "flag.toml"], {"STOKER_CONFIG": "env.toml"}, 1),
        ([], {"STOKER_CONFIG": "env.toml"}, 2),
        ([], {}, 3),
    ],
)
def test_the_file_is_the_flags_then_the_environments_then_the_folders(
    tmp_path: Path, argv: list[str], environ: dict[str, str], used: int
) -> None:
    for name, port in (("flag.toml", 1), ("env.toml", 2), ("stoker.toml", 3)):
        write(tmp_path / name, f"[router]\nlisten_port = {port}\n")
    assert load(RouterSettings, "router", argv, environ=environ).listen_port == used


def test_values_are_read_from_text() -> None:
    argv = ["--zones", "a, b", "--reflection", "--level", "DEBUG", "--token", "s3cret", "--policy=random"]
    settings = load(RouterSettings, "router", argv, environ={})
    assert settings.zones == ("a", "b")
    assert (settings.reflection, settings.level, settings.policy) == (True, Level.DEBUG, "random")
    assert settings.token == SecretStr("s3cret")
    assert not load(RouterSettings, "router", ["--no-reflection"], environ={"STOKER_ROUTER_REFLECTION": "1"}).reflection


def test_without_argv_no_flags_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["router", "--listen-port", "1"])
    assert load(RouterSettings, "router", environ={}).listen_port == 7000


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load(RouterSettings, "router", environ={}).listen_port = 1


def test_names_that_others_put_into_the_environment_are_left_alone() -> None:
    assert load(RouterSettings, "router", environ={"STOKER_ROUTER_SERVICE_HOST": "10.0.0.1"}).listen_port == 7000


@pytest.mark.parametrize(
    ("sources", "says"),
    [
        (
            {"argv": ["--listen-port", "65536"]},
            ["listen_port = '65536'", "--listen-port", "65535", "Port to listen on"],
        ),
        ({"argv": ["--listen-port", "x"]}, ["listen_port = 'x'", "valid integer"]),
        ({"argv": ["--lisen-port", "1"]}, ["--lisen-port", "--help"]),
        ({"argv": ["--listen", "1"]}, ["--listen"]),
        ({"argv": ["--listen-port"]}, ["--listen-port", "expected one argument"]),
        ({"environ": {"STOKER_ROUTER_DRAIN_S": "-1"}}, ["drain_s", "$STOKER_ROUTER_DRAIN_S", "greater than 0"]),
        ({"environ": {"STOKER_ROUTER_POLICY": "best"}}, ["'best'", "'cost' or 'random'"]),
        ({"environ": {"STOKER_CONFIG": "nowhere.toml"}}, ["$STOKER_CONFIG", "nowhere.toml", "existing"]),
        ({"argv": ["--config", "nowhere.toml"]}, ["--config", "nowhere.toml"]),
        ({"overrides": {"listen_prt": 1}}, ["listen_prt", "did you mean listen_port?"]),
    ],
)
def test_an_error_names_the_key_its_source_and_what_would_be_right(sources: dict[str, object], says: list[str]) -> None:
    error = fails(**sources)
    assert [text for text in says if text not in error] == [], error


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[router]\nlisen_port = 1\n", ["f.toml [router]", "lisen_port", "did you mean listen_port?"]),
        ("[router]\nqqq = 1\n", ["qqq", "the keys are listen_port, zones"]),
        ("[router]\nlisten_port = 'x'\n", ["f.toml [router]", "listen_port = 'x'"]),
        ("[router]\nzones = 'x'\nreflection = 'perhaps'\n", ["zones", "reflection"]),
        ("listen_port = 1\n", ["listen_port is in no section", "[router]"]),
        ("[ruter]\nlisten_port = 1\n", ["[ruter]", "did you mean [router]?"]),
        ("[router\n", ["f.toml cannot be read as TOML"]),
    ],
)
def test_an_error_in_the_file_names_the_file(tmp_path: Path, content: str, says: list[str]) -> None:
    error = fails(file=write(tmp_path / "f.toml", content))
    assert [text for text in says if text not in error] == [], error


def test_another_process_section_is_its_own_business(tmp_path: Path) -> None:
    file = write(tmp_path / "f.toml", "[model_server]\nwhatever = 1\n")
    assert load(RouterSettings, "router", environ={}, file=file).listen_port == 7000


def test_all_errors_come_at_once_and_secrets_in_none() -> None:
    error = fails(argv=["--listen-port=x", "--token", "much too secret"])
    assert "listen_port" in error
    assert "token" in error
    assert "much too" not in error


def test_a_key_that_must_be_given_says_how() -> None:
    with pytest.raises(SettingsError, match=r"name is missing: give --name, \$STOKER_MODEL_SERVER_NAME or name in"):
        load(NamedSettings, "model_server", environ={})


def test_help_tells_every_key_its_default_and_its_name_in_the_environment(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load(RouterSettings, "router", ["--help"], environ={})
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in (
        "A router of one zone.",
        "--config FILE",
        "--listen-port INT Port to listen on, 0 for any free one (default: 7000; $STOKER_ROUTER_LISTEN_PORT)",
        "--zones A,B,...",
        "--reflection, --no-reflection Whether 100 % of",
        "--policy cost|random",
        "--level INFO|DEBUG",
        "(default: INFO;",
        "--token",
        "(default: none; $STOKER_ROUTER_TOKEN)",
    ):
        assert part in text
    assert "What follows" not in text
