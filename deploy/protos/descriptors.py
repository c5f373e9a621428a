"""Compiles a folder of protos to descriptors, with their comments; used by the lint test and the wire-format guard."""

import tempfile
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)
from grpc_tools import protoc

PROTOS = Path(__file__).parents[2] / "protos"


def compile_protos(folder: Path = PROTOS) -> FileDescriptorSet:
    """Returns the descriptors of every .proto below `folder` and of what they import, comments included.

    Raises:
      ValueError: protoc refused them; it has said why on stderr.
    """
    sources = sorted(str(path) for path in folder.rglob("*.proto"))
    well_known = files("grpc_tools") / "_proto"
    with tempfile.NamedTemporaryFile() as out:
        options = [f"-I{folder}", f"-I{well_known}", "--include_imports", "--include_source_info"]
        if protoc.main(["protoc", *options, f"--descriptor_set_out={out.name}", *sources]) != 0:
            raise ValueError(f"protoc refused {folder}")
        return FileDescriptorSet.FromString(Path(out.name).read_bytes())


def is_ours(file: FileDescriptorProto) -> bool:
    """False for what comes with protoc, as google/protobuf/duration.proto."""
    return not file.name.startswith("google/")


def messages(file: FileDescriptorProto) -> Iterator[tuple[str, DescriptorProto]]:
    """Every message of a file, nested ones and maps' entries included, with its full name (`stoker.v1.Chunk`)."""
    todo = [(file.package, message) for message in file.message_type]
    while todo:
        scope, message = todo.pop()
        name = f"{scope}.{message.name}"
        yield name, message
        todo += [(name, nested) for nested in message.nested_type]


def enums(file: FileDescriptorProto) -> Iterator[tuple[str, EnumDescriptorProto]]:
    """Every enum of a file, nested ones included, with its full name."""
    for enum in file.enum_type:
        yield f"{file.package}.{enum.name}", enum
    for name, message in messages(file):
        for enum in message.enum_type:
            yield f"{name}.{enum.name}", enum
