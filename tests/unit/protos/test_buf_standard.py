"""Stoker's protos keep Buf's STANDARD and COMMENTS rules, and each rule is one that would have fired."""

from pathlib import Path

import pytest

from deploy.protos.descriptors import compile_protos
from deploy.protos.lint import violations

CLEAN = """// A file.
syntax = "proto3";

package ask.v1;

import "google/protobuf/duration.proto";

// Asks.
service AskService {
  // Asks once.
  rpc Ask(AskRequest) returns (AskResponse);
}

// What is asked.
message AskRequest {
  // The question.
  string text = 1;
  // How long the answer may take.
  google.protobuf.Duration timeout = 2;
  // At most so many words.
  optional int32 max_words = 3;
  // By whom.
  oneof asker {
    // A person's name.
    string person = 4;
    // A robot's number.
    int32 robot = 5;
  }
  // Notes by topic.
  map<string, string> notes = 6;
}

// What is answered.
message AskResponse {
  // How sure it is.
  Certainty certainty = 1;
}

// How sure an answer is.
enum Certainty {
  // Not said.
  CERTAINTY_UNSPECIFIED = 0;
  // Quite sure.
  CERTAINTY_HIGH = 1;
}
"""


def lint(folder: Path, text: str, path: str = "ask/v1/ask.proto") -> list[str]:
    file = folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return [violation.split(": ", 1)[1] for violation in violations(compile_protos(folder))]


def test_stokers_protos_are_clean() -> None:
    assert violations(compile_protos()) == []


def test_the_clean_example_is_clean(tmp_path: Path) -> None:
    assert lint(tmp_path, CLEAN) == []


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ("package ask.v1;\n", "", "PACKAGE_DEFINED"),
        ("package ask.v1;", "package ask;", "PACKAGE_VERSION_SUFFIX"),
        ("package ask.v1;", "package asked.v1;", "PACKAGE_DIRECTORY_MATCH"),
        ("package ask.v1;", "package Ask.v1;", "PACKAGE_LOWER_SNAKE_CASE"),
        ('import "google', 'import public "google', "IMPORT_NO_PUBLIC"),
        ("google.protobuf.Duration timeout", "int32 timeout", "IMPORT_USED"),
        ("// Asks.\n", "", "COMMENT_SERVICE"),
        ("  // Asks once.\n", "", "COMMENT_RPC"),
        ("// What is asked.\n", "", "COMMENT_MESSAGE"),
        ("  // The question.\n", "", "COMMENT_FIELD"),
        ("    // A robot's number.\n", "", "COMMENT_FIELD"),
        ("  // By whom.\n", "", "COMMENT_ONEOF"),
        ("// How sure an answer is.\n", "", "COMMENT_ENUM"),
        ("  // Quite sure.\n", "", "COMMENT_ENUM_VALUE"),
        ("service AskService", "service Asks", "SERVICE_SUFFIX"),
        ("service AskService", "service askService", "SERVICE_PASCAL_CASE"),
        ("rpc Ask(", "rpc ask(", "RPC_PASCAL_CASE"),
        ("rpc Ask(", "rpc Inquire(", "RPC_REQUEST_STANDARD_NAME"),
        ("rpc Ask(", "rpc Inquire(", "RPC_RESPONSE_STANDARD_NAME"),
        ("returns (AskResponse)", "returns (AskRequest)", "RPC_REQUEST_RESPONSE_UNIQUE"),
        ("AskRequest", "Ask_Request", "MESSAGE_PASCAL_CASE"),
        ("max_words", "maxWords", "FIELD_LOWER_SNAKE_CASE"),
        ("oneof asker", "oneof Asker", "ONEOF_LOWER_SNAKE_CASE"),
        ("Certainty certainty", "certainty certainty", "ENUM_PASCAL_CASE"),
        ("CERTAINTY_HIGH", "CERTAINTY_high", "ENUM_VALUE_UPPER_SNAKE_CASE"),
        ("CERTAINTY_HIGH", "HIGH", "ENUM_VALUE_PREFIX"),
        ("CERTAINTY_UNSPECIFIED", "CERTAINTY_NONE", "ENUM_ZERO_VALUE_SUFFIX"),
        (
            "  // Quite",
            "  option allow_alias = true;\n  // Likewise.\n  CERTAINTY_OK = 1;\n  // Quite",
            "ENUM_NO_ALLOW_ALIAS",
        ),
    ],
)
def test_each_rule_fires(tmp_path: Path, old: str, new: str, rule: str) -> None:
    assert old in CLEAN
    text = CLEAN.replace(old, new).replace(
        "enum Certainty", "enum certainty" if "certainty c" in new else "enum Certainty"
    )
    found = lint(tmp_path, text)
    assert any(violation.startswith(f"{rule}:") for violation in found), found


def test_rules_of_files_fire(tmp_path: Path) -> None:
    old = "package ask.v1;\nenum E { E_A = 1; }\nmessage M { required int32 a = 1; }\n"
    found = lint(tmp_path, old, "ask/v1/Old-asks.proto")
    for rule in ("SYNTAX_SPECIFIED", "FILE_LOWER_SNAKE_CASE", "ENUM_FIRST_VALUE_ZERO", "FIELD_NOT_REQUIRED"):
        assert any(violation.startswith(f"{rule}:") for violation in found), rule


def test_rules_between_files_fire(tmp_path: Path) -> None:
    lint(tmp_path, CLEAN)
    lint(tmp_path, 'syntax = "proto3";\npackage ask.v2;\n', "ask/v1/stray.proto")
    found = lint(tmp_path, 'syntax = "proto3";\npackage ask.v2;\noption java_package = "a";\n', "ask/v2/ask.proto")
    assert "DIRECTORY_SAME_PACKAGE: ['ask.v1', 'ask.v2']" in found
    assert "PACKAGE_SAME_DIRECTORY: ['ask/v1', 'ask/v2']" in found
    assert "PACKAGE_SAME_*: its files differ in options" in found
