"""Buf's STANDARD and COMMENTS lint rules, over descriptors: buf itself comes from npm, which CI machines may lack.

Rules are named as in Buf's documentation. PROTOVALIDATE and PACKAGE_NO_IMPORT_CYCLE have nothing to check here: no
protovalidate options, one package. `buf.yaml` says the same to whoever has buf.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

from deploy.protos.descriptors import enums, is_ours, messages

PASCAL = re.compile(r"[A-Z][A-Za-z0-9]*")
LOWER_SNAKE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
UPPER_SNAKE = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*")
VERSIONED = re.compile(r".*\.v[1-9][0-9]*((alpha|beta)[1-9]*[0-9]*)?")

# Field numbers in descriptor.proto: a comment's place is a path of them and of indexes.
MESSAGE, ENUM, SERVICE, NESTED_MESSAGE, NESTED_ENUM, FIELD, ONEOF, MEMBER = 4, 5, 6, 3, 4, 2, 8, 2

Place = tuple[int, ...]


def violations(protos: FileDescriptorSet) -> list[str]:
    """Every breach as `FILE: RULE: what`, sorted; empty when the protos are clean."""
    declared = {file.name: _declares(file) for file in protos.file}
    ours = [file for file in protos.file if is_ours(file)]
    found = [f"{file.name}: {breach}" for file in ours for breach in _File(file).check(declared)]
    return sorted([*found, *_packages(ours), *_shared_messages(ours)])


class _File:
    def __init__(self, file: FileDescriptorProto) -> None:
        self._file = file
        places = file.source_code_info.location
        self._commented = {tuple(place.path) for place in places if place.leading_comments.strip()}

    def check(self, declared: dict[str, set[str]]) -> Iterator[str]:
        yield from self._header()
        used = _uses(self._file)
        for imported in self._file.dependency:
            if not used & declared[imported]:
                yield f"IMPORT_USED: nothing of {imported} is used"
        for index, message in enumerate(self._file.message_type):
            yield from self._message(message, (MESSAGE, index))
        for index, enum in enumerate(self._file.enum_type):
            yield from self._enum(enum, (ENUM, index))
        for index, service in enumerate(self._file.service):
            yield from self._service(service, (SERVICE, index))

    def _header(self) -> Iterator[str]:
        file, path = self._file, PurePosixPath(self._file.name)
        if file.syntax not in ("proto3", "editions"):
            yield 'SYNTAX_SPECIFIED: needs syntax = "proto3"'
        if not LOWER_SNAKE.fullmatch(path.stem):
            yield f"FILE_LOWER_SNAKE_CASE: {path.name}"
        if not file.package:
            yield "PACKAGE_DEFINED: needs a package"
            return
        if str(path.parent) != file.package.replace(".", "/"):
            yield f"PACKAGE_DIRECTORY_MATCH: {file.package} belongs in {file.package.replace('.', '/')}"
        if not all(LOWER_SNAKE.fullmatch(part) for part in file.package.split(".")):
            yield f"PACKAGE_LOWER_SNAKE_CASE: {file.package}"
        if not VERSIONED.fullmatch(file.package):
            yield f"PACKAGE_VERSION_SUFFIX: {file.package} should end like .v1"
        if file.public_dependency:
            yield "IMPORT_NO_PUBLIC: an import is public"
        if file.weak_dependency:
            yield "IMPORT_NO_WEAK: an import is weak"

    def _message(self, message: DescriptorProto, path: Place) -> Iterator[str]:
        if message.options.map_entry:
            return
        yield from self._commented_and_named("MESSAGE", message.name, path, PASCAL)
        for index, field in enumerate(message.field):
            where = f"{message.name}.{field.name}"
            yield from self._commented_and_named("FIELD", where, (*path, FIELD, index), LOWER_SNAKE)
            if field.label == FieldDescriptorProto.LABEL_REQUIRED:
                yield f"FIELD_NOT_REQUIRED: {where}"
        synthetic = {field.oneof_index for field in message.field if field.proto3_optional}
        for index, oneof in enumerate(message.oneof_decl):
            if index not in synthetic:
                where = f"{message.name}.{oneof.name}"
                yield from self._commented_and_named("ONEOF", where, (*path, ONEOF, index), LOWER_SNAKE)
        for index, nested in enumerate(message.nested_type):
            yield from self._message(nested, (*path, NESTED_MESSAGE, index))
        for index, enum in enumerate(message.enum_type):
            yield from self._enum(enum, (*path, NESTED_ENUM, index))

    def _enum(self, enum: EnumDescriptorProto, path: Place) -> Iterator[str]:
        yield from self._commented_and_named("ENUM", enum.name, path, PASCAL)
        if enum.options.allow_alias:
            yield f"ENUM_NO_ALLOW_ALIAS: {enum.name}"
        prefix = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", enum.name).upper() + "_"
        for index, value in enumerate(enum.value):
            where = f"{enum.name}.{value.name}"
            yield from self._commented_and_named("ENUM_VALUE", where, (*path, MEMBER, index), UPPER_SNAKE)
            if not value.name.startswith(prefix):
                yield f"ENUM_VALUE_PREFIX: {where} should start with {prefix}"
            if (index == 0) != (value.number == 0):
                yield f"ENUM_FIRST_VALUE_ZERO: {where} is {value.number}"
            if value.number == 0 and not value.name.endswith("_UNSPECIFIED"):
                yield f"ENUM_ZERO_VALUE_SUFFIX: {where} should end in _UNSPECIFIED"

    def _service(self, service: ServiceDescriptorProto, path: Place) -> Iterator[str]:
        yield from self._commented_and_named("SERVICE", service.name, path, PASCAL)
        if not service.name.endswith("Service"):
            yield f"SERVICE_SUFFIX: {service.name} should end in Service"
        for index, method in enumerate(service.method):
            where = f"{service.name}.{method.name}"
            yield from self._commented_and_named("RPC", where, (*path, MEMBER, index), PASCAL)
            for kind, type_name in (("Request", method.input_type), ("Response", method.output_type)):
                name = type_name.rpartition(".")[2]
                if name not in (f"{method.name}{kind}", f"{service.name}{method.name}{kind}"):
                    yield f"RPC_{kind.upper()}_STANDARD_NAME: {where} has {name}, not {method.name}{kind}"

    def _commented_and_named(self, kind: str, name: str, path: Place, case: re.Pattern[str]) -> Iterator[str]:
        if path not in self._commented:
            yield f"COMMENT_{kind}: {name} has no comment above it"
        if not case.fullmatch(name.rpartition(".")[2]):
            style = {PASCAL: "PASCAL_CASE", LOWER_SNAKE: "LOWER_SNAKE_CASE", UPPER_SNAKE: "UPPER_SNAKE_CASE"}[case]
            yield f"{kind}_{style}: {name}"


def _declares(file: FileDescriptorProto) -> set[str]:
    return {f".{name}" for name, _ in [*messages(file), *enums(file)]}


def _uses(file: FileDescriptorProto) -> set[str]:
    fields = {field.type_name for _, message in messages(file) for field in message.field}
    methods = [method for service in file.service for method in service.method]
    return fields | {method.input_type for method in methods} | {method.output_type for method in methods}


def _packages(files: Sequence[FileDescriptorProto]) -> Iterator[str]:
    by_folder: dict[str, set[str]] = {}
    by_package: dict[str, set[str]] = {}
    options: dict[str, set[bytes]] = {}
    for file in files:
        folder = str(PurePosixPath(file.name).parent)
        by_folder.setdefault(folder, set()).add(file.package)
        by_package.setdefault(file.package, set()).add(folder)
        options.setdefault(file.package, set()).add(file.options.SerializeToString(deterministic=True))
    yield from (f"{folder}/: DIRECTORY_SAME_PACKAGE: {sorted(p)}" for folder, p in by_folder.items() if len(p) > 1)
    yield from (f"{package}: PACKAGE_SAME_DIRECTORY: {sorted(f)}" for package, f in by_package.items() if len(f) > 1)
    # Buf has one rule for each option (PACKAGE_SAME_GO_PACKAGE and so on); one comparison serves them all.
    yield from (
        f"{package}: PACKAGE_SAME_*: its files differ in options" for package, o in options.items() if len(o) > 1
    )


def _shared_messages(files: Sequence[FileDescriptorProto]) -> Iterator[str]:
    methods = [method for file in files for service in file.service for method in service.method]
    uses = Counter(name for method in methods for name in (method.input_type, method.output_type))
    yield from (f"{name[1:]}: RPC_REQUEST_RESPONSE_UNIQUE: used {n} times" for name, n in uses.items() if n > 1)
