"""A process's settings as command line flags, with a help text made from their descriptions and defaults."""

import argparse
import types
import typing
from collections.abc import Sequence
from enum import Enum
from typing import Any, Literal, NoReturn

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

CONFIG = "config"
_LISTS = (list, tuple, set, frozenset, Sequence)


class FlagsError(Exception):
    """A command line that cannot be parsed."""


class _Parser(argparse.ArgumentParser):
    """argparse, but errors are raised: the caller decides how a process ends."""

    def error(self, message: str) -> NoReturn:
        raise FlagsError(f"{message}; see --help")


def flag(key: str) -> str:
    """The flag of a key: `--listen-port` for `listen_port`."""
    return "--" + key.replace("_", "-")


def is_list(field: FieldInfo) -> bool:
    """Whether the key holds several values."""
    return any(typing.get_origin(kind) in _LISTS or kind in _LISTS for kind in _kinds(field.annotation))


def is_secret(field: FieldInfo) -> bool:
    """Whether the key's value must not be shown."""
    return SecretStr in _kinds(field.annotation)


def add_flags(parser: argparse.ArgumentParser, cls: type[BaseModel], env_prefix: str) -> None:
    """Add a flag for every key of `cls`. Flags that are not given leave nothing in the namespace."""
    for key, field in cls.model_fields.items():
        options: dict[str, Any] = {"dest": key, "default": argparse.SUPPRESS, "help": _help(key, field, env_prefix)}
        if bool in _kinds(field.annotation):
            parser.add_argument(flag(key), action=argparse.BooleanOptionalAction, **options)
        else:
            parser.add_argument(flag(key), metavar=_metavar(field), **options)


def parse(cls: type[BaseModel], section: str, env_prefix: str, argv: Sequence[str]) -> dict[str, Any]:
    """The flags that were given, by key, as text (switches as bool), and `config` if --config was.

    Raises FlagsError; prints and exits for --help.
    """
    summary = (cls.__doc__ or "").strip().split("\n\n")[0]
    parser = _Parser(prog=section.replace("_", "-"), description=summary, allow_abbrev=False)
    parser.add_argument(
        flag(CONFIG), default=argparse.SUPPRESS, metavar="FILE",
        help=f"TOML file to read, section [{section}] (default: ./stoker.toml if there is one; $STOKER_CONFIG)",
    )  # fmt: skip
    add_flags(parser, cls, env_prefix)
    return vars(parser.parse_args(list(argv)))


def _kinds(annotation: Any) -> tuple[Any, ...]:
    """The type, or the types of which the union is made."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(kind for kind in typing.get_args(annotation) if kind is not type(None))
    return (annotation,)


def _metavar(field: FieldInfo) -> str:
    kind = _kinds(field.annotation)[0]
    if typing.get_origin(kind) is Literal:
        return "|".join(str(value) for value in typing.get_args(kind))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "|".join(str(member.value) for member in kind)
    if is_list(field):
        return "A,B,..."
    return getattr(kind, "__name__", "value").upper()


def _help(key: str, field: FieldInfo, env_prefix: str) -> str:
    """What the key means, its default, and its name in the environment."""
    default = field.get_default(call_default_factory=True)
    if default is PydanticUndefined:
        says = "required"
    elif is_secret(field) or default in (None, "", (), [], frozenset()):
        says = "default: none"
    elif isinstance(default, list | tuple | set | frozenset):
        says = f"default: {','.join(str(item) for item in default)}"
    else:
        says = f"default: {default.value if isinstance(default, Enum) else default}"
    text = f"{field.description or ''} ({says}; ${env_prefix}{key.upper()})".strip()
    # argparse formats help with %.
    return text.replace("%", "%%")
