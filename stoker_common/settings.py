"""Settings of a process: flags before environment before file before defaults; wrong ones say where they are from."""

import difflib
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from stoker_common import flags

ENV_PREFIX = "STOKER_"
CONFIG_ENV = "STOKER_CONFIG"
DEFAULT_FILE = Path("stoker.toml")


class SettingsError(Exception):
    """Settings that cannot be used: names each key, where it came from and what would be right."""


class Settings(BaseModel):
    """Base of every process's settings: fields with a description, a default and pydantic's limits; never changed."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


S = TypeVar("S", bound=Settings)


@dataclass(frozen=True, slots=True)
class _Given:
    """A value and where it came from, as users would look for it."""

    value: Any
    source: str


def load(
    cls: type[S],
    section: str,
    argv: Sequence[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] = os.environ,
    file: Path | None = None,
) -> S:
    """The settings `cls`, from the first of these that has a key:

    1. `overrides`: what the program itself has decided,
    2. `argv`: flags, `--listen-port 7000` for the key `listen_port` (None: no flags are read),
    3. `environ`: `STOKER_<SECTION>_<KEY>`, such as `STOKER_ROUTER_LISTEN_PORT`,
    4. the TOML file's `[section]`: the file that --config names, else $STOKER_CONFIG, else `file`, else ./stoker.toml
       if there is one,
    5. the defaults in `cls`.

    Lists are written `a,b,c` in flags and in the environment. Raises SettingsError for unknown keys in flags and file,
    and for values that do not fit. Exits, as argparse does, for --help.
    """
    given: dict[str, _Given] = {}
    chosen = _flags(cls, section, argv)
    config = chosen.pop(flags.CONFIG, None)
    given |= _from_file(cls, section, _file(config, environ, file))
    given |= _from_environment(cls, section, environ)
    given |= {key: _Given(_split(cls, key, value), flags.flag(key)) for key, value in chosen.items()}
    given |= {key: _Given(value, "the program") for key, value in (overrides or {}).items()}
    try:
        return cls(**{key: item.value for key, item in given.items()})
    except ValidationError as error:
        lines = [_explain(cls, section, given, detail) for detail in error.errors()]
        raise SettingsError("\n".join([f"the settings of {section} cannot be used:", *lines])) from None


def _flags(cls: type[Settings], section: str, argv: Sequence[str] | None) -> dict[str, Any]:
    if argv is None:
        return {}
    try:
        return flags.parse(cls, section, env_name(section, ""), argv)
    except flags.FlagsError as error:
        raise SettingsError(f"the flags of {section} cannot be used: {error}") from None


def env_name(section: str, key: str) -> str:
    """The environment's name of a key."""
    return f"{ENV_PREFIX}{section}_{key}".upper().replace("-", "_")


def _file(config: str | None, environ: Mapping[str, str], file: Path | None) -> Path | None:
    """The file to read, None if there is none. A file that somebody named must exist."""
    for name, source in ((config, flags.flag(flags.CONFIG)), (environ.get(CONFIG_ENV), f"${CONFIG_ENV}")):
        if name:
            if not Path(name).is_file():
                raise SettingsError(f"{source} names {name}, which is no file; name an existing TOML file")
            return Path(name)
    if file is not None:
        return file
    return DEFAULT_FILE if DEFAULT_FILE.is_file() else None


def _from_file(cls: type[Settings], section: str, file: Path | None) -> dict[str, _Given]:
    if file is None:
        return {}
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{file} cannot be read as TOML: {error}") from error
    stray = [key for key, value in content.items() if not isinstance(value, dict)]
    if stray:
        raise SettingsError(f"{file}: {stray[0]} is in no section; put it under [{section}] or another process's name")
    if section not in content and (near := difflib.get_close_matches(section, content, n=1)):
        raise SettingsError(f"{file}: there is no section [{near[0]}]; did you mean [{section}]?")
    where = f"{file} [{section}]"
    table = content.get(section, {})
    for key in table:
        if key not in cls.model_fields:
            raise SettingsError(f"{where}: there is no key {key}; {_which(cls, key)}")
    return {key: _Given(value, where) for key, value in table.items()}


def _from_environment(cls: type[Settings], section: str, environ: Mapping[str, str]) -> dict[str, _Given]:
    """What the environment says of our keys.

    Names with our prefix that are no keys are left alone: Kubernetes puts names such as STOKER_ROUTER_SERVICE_HOST
    there for a service that is called stoker-router.
    """
    names = {key: env_name(section, key) for key in cls.model_fields}
    return {key: _Given(_split(cls, key, environ[name]), f"${name}") for key, name in names.items() if name in environ}


def _split(cls: type[Settings], key: str, value: Any) -> Any:
    """A list written as `a,b,c`, as a list; all else as it is."""
    if isinstance(value, str) and flags.is_list(cls.model_fields[key]):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


def _explain(cls: type[Settings], section: str, given: Mapping[str, _Given], detail: ErrorDetails) -> str:
    """One error as a line: the key, its value and source, what is wrong, what the key means."""
    key = str(detail["loc"][0]) if detail["loc"] else ""
    what = detail["msg"].removeprefix("Value error, ")
    if not key:
        return f"  {what}"
    field = cls.model_fields.get(key)
    if field is None:
        return f"  {key}: there is no such key; {_which(cls, key)}"
    if detail["type"] == "missing":
        ways = f"{flags.flag(key)}, ${env_name(section, key)} or {key} in [{section}]"
        return f"  {key} is missing: give {ways}. It is: {_means(field)}"
    item = given.get(key)
    value = "" if flags.is_secret(field) else f" = {_short(detail['input'])}"
    source = item.source if item else "its default"
    return f"  {key}{value} (from {source}): {what[:1].lower()}{what[1:]}. It is: {_means(field)}"


def _which(cls: type[Settings], key: str) -> str:
    """What the user may have meant by a key that does not exist."""
    near = difflib.get_close_matches(key, cls.model_fields, n=1)
    return f"did you mean {near[0]}?" if near else f"the keys are {', '.join(cls.model_fields)}"


def _means(field: FieldInfo) -> str:
    return field.description or "not described"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
