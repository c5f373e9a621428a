"""Guards the wire format: what the last release sent and wrote, this tree must still read.

`protos/baseline.binpb` is the last release's descriptor set; `breaking.py --release` writes it, at a release and at no
other time. Before the first release there is nothing to break. Checked are binary form and JSON: numbers, types and
names of fields, numbers and names of enum values, and what services and methods are called and exchange.
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
    ServiceDescriptorProto,
)

from deploy.protos.descriptors import PROTOS, compile_protos, enums, is_ours, messages

BASELINE = PROTOS / "baseline.binpb"
T = TypeVar("T")


def breaks(old: FileDescriptorSet, new: FileDescriptorSet) -> list[str]:
    """What a client or server built from `old` could no longer exchange with one built from `new`, sorted."""
    found: list[str] = []
    for message, before, after in _pairs("message", _messages(old), _messages(new), found):
        found += _fields(message, before, after)
    for enum, values, values_now in _pairs("enum", _enums(old), _enums(new), found):
        found += _values(enum, values, values_now)
    for service, rpcs, rpcs_now in _pairs("service", _services(old), _services(new), found):
        now = {method.name: method for method in rpcs_now.method}
        for name, was, method in _pairs(f"{service}.", {method.name: method for method in rpcs.method}, now, found):
            if _exchange(was) != _exchange(method):
                found.append(f"{service}.{name}: was {_exchange(was)}, is {_exchange(method)}")
    return sorted(found)


def _pairs(kind: str, old: Mapping[str, T], new: Mapping[str, T], found: list[str]) -> Iterator[tuple[str, T, T]]:
    for name, was in old.items():
        if name in new:
            yield name, was, new[name]
        else:
            found.append(f"{kind} {name} is gone" if not kind.endswith(".") else f"{kind}{name} is gone")


def _messages(protos: FileDescriptorSet) -> dict[str, DescriptorProto]:
    return dict(pair for file in protos.file if is_ours(file) for pair in messages(file))


def _enums(protos: FileDescriptorSet) -> dict[str, EnumDescriptorProto]:
    return dict(pair for file in protos.file if is_ours(file) for pair in enums(file))


def _services(protos: FileDescriptorSet) -> dict[str, ServiceDescriptorProto]:
    return {f"{file.package}.{service.name}": service for file in protos.file for service in file.service}


def _fields(message: str, old: DescriptorProto, new: DescriptorProto) -> Iterator[str]:
    now = {field.number: field for field in new.field}
    for field in old.field:
        where = f"{message}.{field.name} = {field.number}"
        kept = now.get(field.number)
        if kept is None:
            number_kept = any(r.start <= field.number < r.end for r in new.reserved_range)
            if not (number_kept and field.name in new.reserved_name):
                yield f"{where}: is gone; reserve both its number and its name"
        elif kept.name != field.name:
            yield f"{where}: the number is now {kept.name}'s"
        elif _shape(field, old) != _shape(kept, new):
            yield f"{where}: was {_shape(field, old)}, is {_shape(kept, new)}"


def _values(enum: str, old: EnumDescriptorProto, new: EnumDescriptorProto) -> Iterator[str]:
    now = {value.number: value.name for value in new.value}
    for value in old.value:
        where = f"{enum}.{value.name} = {value.number}"
        if value.number not in now:
            number_kept = any(
                r.start <= value.number <= r.end for r in new.reserved_range
            )  # inclusive, unlike messages'
            if not (number_kept and value.name in new.reserved_name):
                yield f"{where}: is gone; reserve both its number and its name"
        elif now[value.number] != value.name:
            yield f"{where}: the number is now {now[value.number]}'s"


def _shape(field: FieldDescriptorProto, message: DescriptorProto) -> str:
    kind = field.type_name or FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"repeated {kind}"
    if field.proto3_optional:
        return f"optional {kind}"
    return f"{kind} in oneof {message.oneof_decl[field.oneof_index].name}" if field.HasField("oneof_index") else kind


def _exchange(method: MethodDescriptorProto) -> str:
    streams = ("stream " * method.client_streaming, "stream " * method.server_streaming)
    return f"({streams[0]}{method.input_type}) returns ({streams[1]}{method.output_type})"


def main(arguments: list[str]) -> int:
    now = compile_protos()
    if arguments == ["--release"]:
        for file in now.file:
            file.ClearField("source_code_info")  # comments may change freely
        BASELINE.write_bytes(now.SerializeToString(deterministic=True))
        print(f"protos: wrote {BASELINE.relative_to(Path.cwd())}; commit it with the release")
        return 0
    if not BASELINE.exists():
        print("protos: no release yet, so no wire format to keep")
        return 0
    found = breaks(FileDescriptorSet.FromString(BASELINE.read_bytes()), now)
    for breach in found:
        print(breach, file=sys.stderr)
    if found:
        print("protos: the above breaks the last release's wire format; add fields instead", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
