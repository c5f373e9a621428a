"""`stoker router`: runs a router in front, as `python -m router` does, with the same flags."""

import os
import sys

import click


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
    add_help_option=False,
)
@click.argument("flags", nargs=-1, type=click.UNPROCESSED)
def router(flags: tuple[str, ...]) -> None:
    """Run a router: `stoker router --processes 4`. Becomes `python -m router`, whose flags and exit status it has."""
    os.execv(sys.executable, [sys.executable, "-m", "router", *flags])
