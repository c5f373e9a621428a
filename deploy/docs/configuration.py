"""Writes docs/configuration.md from the settings classes, so that it says what the programs take. `make docs`."""

import sys
from pathlib import Path

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from model_server.config import CommandSettings
from router.config import RouterSettings
from stoker_client.config import ClientSettings
from stoker_client.mesh.config import MeshSettings
from stoker_common.flags import flag
from stoker_common.settings import Settings, env_name

PAGE = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"

HEAD = """\
# Configuration

<!-- Written by `make docs` from the settings classes; a test fails where it is not what they say. -->

Every program takes its settings from the first of these that has a key:

1. **flags**: `--listen-port 7000`;
2. **environment**: `STOKER_<SECTION>_<KEY>`, such as `STOKER_ROUTER_LISTEN_PORT=7000`;
3. **file**: TOML, the section of the program, such as `listen_port = 7000` under `[router]`. The file is the one that
   `--config` names, else `$STOKER_CONFIG`, else `./stoker.toml` if there is one;
4. the **defaults** below.

Lists are written `a,b,c` in flags and environment. All settings are checked at start: a program that cannot use one
exits with 2 and says which key, where the value came from and what would be right. Unknown keys in the file and unknown
flags are mistakes, too. `--help` of each program says the same as this page.

Beside these: `CONSUL_HTTP_TOKEN` (Consul's ACL token, never logged), `CONSUL_BIN` (the Consul program for `make` and
`stoker up`), `STOKER_MODEL` (the model for `make demo` and `stoker up`: a Hugging Face folder or hub id) and
`OTEL_EXPORTER_OTLP_ENDPOINT` (where traces go if no `otlp_endpoint` is set).

A file for a production zone:

```toml
[router]
zone = "eu-west"
listen_host = "0.0.0.0"
consul_address = "127.0.0.1:8500"

[model_server]
zone = "eu-west"
listen_host = "0.0.0.0"
listen_port = 7101
advertise_address = "gpu-7.eu-west.internal"
model = "/models/llama-3.1-8b-instruct"
consul_address = "127.0.0.1:8500"
metrics_port = 9101
```
"""

SECTIONS: tuple[tuple[str, str, type[Settings]], ...] = (
    ("router", "`python -m router`: one router process.", RouterSettings),
    ("model_server", "`python -m model_server`: one model server process.", CommandSettings),
    ("client", "`stoker generate`, `status`, `explain`, `models`.", ClientSettings),
    ("mesh", "`stoker up`: a mesh on one machine.", MeshSettings),
)


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(_section(*section) for section in SECTIONS)])


def _section(name: str, what: str, cls: type[Settings]) -> str:
    rows = [f"| `{key}` | {_default(field)} | {_text(field)} |" for key, field in cls.model_fields.items()]
    example = next(iter(cls.model_fields))
    ways = f"Flag `{flag(example)}`, environment `{env_name(name, example)}`, and so on for each key."
    return "\n".join(
        [f"## [{name}]", "", f"{what} {ways}", "", "| key | default | meaning |", "| --- | --- | --- |", *rows, ""]
    )


def _default(field: FieldInfo) -> str:
    value = field.default
    if value is PydanticUndefined:
        return "required"
    if value is None or value in ("", ()):
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"`{value}`"


def _text(field: FieldInfo) -> str:
    return (field.description or "").rstrip(".").replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"wrote {PAGE}\n")
