"""The flags of commands that are about the local mesh: one for each key of section [mesh]."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import click

from stoker_client.mesh.config import MeshSettings
from stoker_common.flags import flag
from stoker_common.settings import env_name

Command = TypeVar("Command", bound=Callable[..., Any])

SECTION = "mesh"


def mesh_flags(*keys: str) -> Callable[[Command], Command]:
    """A flag for each of these keys (default: all), handed to the command as text or None; settings validate them."""

    def decorate(command: Command) -> Command:
        for key in reversed(keys or tuple(MeshSettings.model_fields)):
            field = MeshSettings.model_fields[key]
            says = f"default: {field.default}; " if field.default not in ("", None, ()) else ""
            command = click.option(
                flag(key),
                metavar=_metavar(field.annotation),
                help=f"{field.description} ({says}${env_name(SECTION, key)}).",
            )(command)
        return command

    return decorate


def _metavar(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "|".join(str(value) for value in get_args(annotation))
    if get_origin(annotation) is tuple:
        return "A,B,..."
    return {int: "N", float: "SECONDS", Path: "FOLDER"}.get(annotation, "TEXT")
