"""Flags, environment and file into settings, for every subcommand."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import click

from stoker_common import settings
from stoker_common.flags import flag
from stoker_common.settings import Settings, SettingsError

S = TypeVar("S", bound=Settings)


def load(cls: type[S], section: str, flags: Mapping[str, object]) -> S:
    """The settings, `flags` (None or empty: not given) before the environment before the file.

    Raises click.UsageError, which ends the command with 2.
    """
    argv: list[str] = []
    for key, value in flags.items():
        if isinstance(value, str | int | float) or hasattr(value, "__fspath__"):
            argv += [flag(key), str(value)]
        elif isinstance(value, Sequence) and value:
            argv += [flag(key), ",".join(str(item) for item in value)]
    try:
        return settings.load(cls, section, argv)
    except SettingsError as error:
        raise click.UsageError(str(error)) from error
