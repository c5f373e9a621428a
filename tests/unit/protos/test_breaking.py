"""The wire-format guard: what may change after a release, and what may not."""

from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from deploy.protos.breaking import breaks
from deploy.protos.descriptors import compile_protos

RELEASED = """
enum Mode { MODE_UNSPECIFIED = 0; MODE_FAST = 1; }
message AskRequest {
  string text = 1;
  optional int32 limit = 2;
  oneof how { Mode mode = 3; bytes raw = 4; }
  map<string, int64> costs = 5;
  message Part { string name = 1; }
  repeated Part parts = 6;
}
message AskResponse { string text = 1; }
service AskService { rpc Ask(AskRequest) returns (stream AskResponse); }
"""


def compiled(folder: Path, text: str) -> FileDescriptorSet:
    (folder / "ask.proto").write_text(f'syntax = "proto3";\npackage ask.v1;\n{text}')
    return compile_protos(folder)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("string text = 1;\n  optional", "string text = 1; // what is asked\n  optional", id="comment"),
        pytest.param("string text = 1;\n  optional", "string text = 1; string more = 7;\n  optional", id="new field"),
        pytest.param("MODE_FAST = 1;", "MODE_FAST = 1; MODE_SLOW = 2;", id="new enum value"),
        pytest.param(
            "service AskService {", "service AskService { rpc Again(AskRequest) returns (AskResponse);", id="rpc"
        ),
        pytest.param(
            "optional int32 limit = 2;", 'reserved 2; reserved "limit";', id="a field removed, number and name reserved"
        ),
        pytest.param("MODE_FAST = 1;", 'reserved 1; reserved "MODE_FAST";', id="an enum value removed and reserved"),
    ],
)
def test_what_does_not_break(tmp_path: Path, old: str, new: str) -> None:
    assert old in RELEASED
    assert breaks(compiled(tmp_path, RELEASED), compiled(tmp_path, RELEASED.replace(old, new))) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("optional int32 limit = 2;", "", "ask.v1.AskRequest.limit = 2: is gone; reserve both its number and its name"),
        ("optional int32 limit = 2;", "reserved 2;", "limit = 2: is gone; reserve both"),
        ("optional int32 limit = 2;", "optional int32 limit = 9;", "limit = 2: is gone"),
        ("optional int32 limit = 2;", "optional int32 max = 2;", "limit = 2: the number is now max's"),
        ("optional int32 limit = 2;", "optional int64 limit = 2;", "was optional int32, is optional int64"),
        ("optional int32 limit = 2;", "int32 limit = 2;", "was optional int32, is int32"),
        ("optional int32 limit = 2;", "repeated int32 limit = 2;", "was optional int32, is repeated int32"),
        (
            "oneof how { Mode mode = 3; bytes raw = 4; }",
            "Mode mode = 3; bytes raw = 4;",
            "was bytes in oneof how, is bytes",
        ),
        ("map<string, int64>", "map<string, string>", "ask.v1.AskRequest.CostsEntry.value = 2: was int64, is string"),
        ("MODE_FAST = 1;", "", "ask.v1.Mode.MODE_FAST = 1: is gone"),
        ("MODE_FAST = 1;", "MODE_QUICK = 1;", "ask.v1.Mode.MODE_FAST = 1: the number is now MODE_QUICK's"),
        ("message Part { string name = 1; }", "message Part { }", "ask.v1.AskRequest.Part.name = 1: is gone"),
        ("rpc Ask(AskRequest) returns (stream AskResponse);", "", "ask.v1.AskService.Ask is gone"),
        ("(stream AskResponse)", "(AskResponse)", "ask.v1.AskService.Ask: was"),
        ("service AskService", "service OtherService", "service ask.v1.AskService is gone"),
    ],
)
def test_what_breaks(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in RELEASED
    found = breaks(compiled(tmp_path, RELEASED), compiled(tmp_path, RELEASED.replace(old, new)))
    assert any(said in breach for breach in found), found
