"""The `stoker` command."""

from stoker_client.cli.app import app


def main() -> None:
    """Run the command line; exits with 0 (done), 1 (failed) or 2 (wrong usage)."""
    app(prog_name="stoker")


if __name__ == "__main__":
    main()
