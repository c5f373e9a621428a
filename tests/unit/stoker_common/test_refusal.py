"""Refusals, and their way through a gRPC status and back."""

import math

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # has stubs, lacks py.typed

from stoker_common import refusal as refusals
from stoker_common.refusal import Code, Refusal
from stoker_common.status import DETAILS_KEY, MAX_MESSAGE_BYTES, from_rpc_error, to_rpc_status

pytestmark = pytest.mark.unit

ALL = [
    refusals.invalid("generation.model", "is missing; give a name"),
    refusals.unimplemented("generation.tenant", "is not implemented yet"),
    refusals.not_found("no server has it", field="generation.model", reason="MODEL_NOT_FOUND"),
    refusals.exhausted("full", reason="OVERLOADED", retry_after_s=1.5),
    refusals.exhausted("quota", field="generation.tenant", reason="QUOTA"),
    refusals.unavailable("nobody there", retry_after_s=0.0),
    refusals.unavailable("gone", reason="ENGINE_DEAD"),
    refusals.deadline_exceeded("too late"),
    *[Refusal(code, "text", reason="SOME_REASON") for code in Code],
]


def error(code: grpc.StatusCode, details: str | None, *trailers: tuple[str, str | bytes]) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailers), details)


def arrive(status: status_pb2.Status) -> Refusal:
    """The status as a client gets it."""
    code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
    return from_rpc_error(error(code, status.message, (DETAILS_KEY, status.SerializeToString())))


def test_codes_are_grpcs() -> None:
    assert {code.name: code.value for code in Code} == {
        code.name: code.value[0] for code in grpc.StatusCode if code is not grpc.StatusCode.OK
    }


@pytest.mark.parametrize("sent", ALL, ids=str)
def test_a_refusal_arrives_as_it_was_sent(sent: Refusal) -> None:
    got = arrive(to_rpc_status(sent))
    assert (got.code, got.message, got.reason, got.field, got.retry_after_s) == (
        sent.code,
        sent.message,
        sent.reason,
        sent.field,
        sent.retry_after_s,
    )


def test_a_bad_request_names_the_field_for_other_languages_libraries() -> None:
    status = to_rpc_status(refusals.invalid("generation.model", "is missing"))
    bad = error_details_pb2.BadRequest()
    assert any(detail.Unpack(bad) for detail in status.details)
    assert [violation.field for violation in bad.field_violations] == ["generation.model"]
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.domain, info.reason) == ("stoker", "INVALID_FIELD")


@pytest.mark.parametrize("text", ["x" * 10**6, "é" * 10**6, "🚂" * 10**6, "\n" * 10**6])
def test_a_status_fits_into_the_trailers(text: str) -> None:
    status = to_rpc_status(refusals.invalid(text, text))
    assert len(status.message.encode()) <= MAX_MESSAGE_BYTES
    # Percent-encoded message and base64 details, as they are on the wire; 8 KiB is what clients take.
    assert 3 * MAX_MESSAGE_BYTES + math.ceil(status.ByteSize() * 4 / 3) < 8 << 10


@pytest.mark.parametrize(
    ("retryable", "refusal"),
    [
        (True, refusals.unavailable("gone")),
        (True, refusals.exhausted("full", reason="OVERLOADED", retry_after_s=0)),
        (False, refusals.exhausted("never", reason="OVERLOADED")),
        (False, refusals.invalid("f", "wrong")),
    ],
)
def test_only_what_may_pass_later_is_retryable(retryable: bool, refusal: Refusal) -> None:
    assert refusal.retryable is retryable


@pytest.mark.parametrize(
    ("trailers", "details"),
    [
        ((), "connection lost"),
        (((DETAILS_KEY, b"\xff\xff"),), "connection lost"),
        (((DETAILS_KEY, status_pb2.Status(details=[{"type_url": "x/y", "value": b"1"}]).SerializeToString()),), "odd"),
        (
            (
                (
                    DETAILS_KEY,
                    status_pb2.Status(
                        details=[{"type_url": "x/google.rpc.ErrorInfo", "value": b"\xff"}]
                    ).SerializeToString(),
                ),
            ),
            "odd",
        ),
        ((("other", "text"),), "connection lost"),
    ],
)
def test_an_error_without_our_details_is_what_grpc_says(
    trailers: tuple[tuple[str, str | bytes], ...], details: str
) -> None:
    got = from_rpc_error(error(grpc.StatusCode.UNAVAILABLE, details, *trailers))
    assert (got.code, got.reason, got.message, got.field, got.retry_after_s) == (
        Code.UNAVAILABLE,
        "UNAVAILABLE",
        details,
        "",
        None,
    )


def test_an_error_without_details_has_its_codes_name() -> None:
    assert from_rpc_error(error(grpc.StatusCode.CANCELLED, None)).message == "CANCELLED"
