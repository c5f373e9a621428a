"""`python -m router`: settings, signals, and one process that serves, or a parent of several (`processes`)."""

import os
import sys

from router.config import RouterSettings
from stoker_common import event_loop, logs
from stoker_common.settings import SettingsError, load


def main() -> int:
    """The process's exit status."""
    try:
        settings = load(RouterSettings, "router", sys.argv[1:])
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    logs.configure(settings.log_level, "router", sys.stdout)
    count = settings.processes or os.cpu_count() or 1
    try:
        # Either import is for one of the two alone: a parent has no business with grpc.
        if count == 1:
            from router.single import serve_alone

            event_loop.run(serve_alone(settings))
            return 0
        from router.parent import serve_by_processes

        return event_loop.run(serve_by_processes(settings, count, sys.argv[1:]))
    except OSError as error:
        sys.stderr.write(f"router: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
