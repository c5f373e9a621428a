"""The command `stoker`: its subcommands, each imported when it is called, so that all of them start fast."""

from importlib import import_module

import click

# Name: its module (which has a command of that name) and one line for --help, which would otherwise import them all.
COMMANDS = {
    "up": ("stoker_client.cli.up", "Start a mesh on this machine and keep it running."),
    "down": ("stoker_client.cli.down", "End the mesh that runs on this machine."),
    "router": ("stoker_client.cli.router", "Run a router in front; flags as for `python -m router`."),
    "generate": ("stoker_client.cli.generate", "Ask a model; the answer comes as it is generated."),
    "status": ("stoker_client.cli.status", "Show zones, servers, models, load and breakers."),
    "explain": ("stoker_client.cli.explain", "Show what a request would cost on each server, term by term."),
    "drain": ("stoker_client.cli.drain", "Make a server leave; its streams go on elsewhere."),
    "models": ("stoker_client.cli.models", "List the models and where they are; load, wake, sleep and unload them."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of the table above."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, None if there is none."""
        if cmd_name not in COMMANDS:
            return None
        command = getattr(import_module(COMMANDS[cmd_name][0]), cmd_name)
        assert isinstance(command, click.Command), f"{cmd_name} is a click command"
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands in --help, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="stoker", prog_name="stoker")
def app() -> None:
    """Stoker: a gRPC mesh for LLM inference.

    `stoker up` starts one here, `stoker generate "The capital of France is"` asks it. Settings come from flags, the
    environment (STOKER_CLIENT_..., STOKER_MESH_...) and ./stoker.toml ([client], [mesh]), in that order.
    """
