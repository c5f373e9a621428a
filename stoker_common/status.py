"""Refusals as gRPC statuses and back: the one place where `google.rpc.Status` is written and read."""

from typing import Any, NoReturn

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # has stubs, lacks py.typed

from stoker_common.refusal import Code, Refusal

DOMAIN = "stoker"
# The name that gRPC's libraries in all languages agree on (grpc_status.rpc_status in Python's).
DETAILS_KEY = "grpc-status-details-bin"
# A status travels in the trailers, of which clients take 8 KiB. The message is in them three times at most: once
# percent-encoded (three bytes for one) and twice in base64 (four for three), so 1 KiB of it leaves room for the rest.
MAX_MESSAGE_BYTES = 1024
MAX_FIELD_BYTES = 256


def to_rpc_status(refusal: Refusal) -> status_pb2.Status:
    """The refusal as `google.rpc.Status` with ErrorInfo and, where they apply, BadRequest and RetryInfo."""
    message, field = _cut(refusal.message, MAX_MESSAGE_BYTES), _cut(refusal.field, MAX_FIELD_BYTES)
    status = status_pb2.Status(code=refusal.code.value, message=message)
    info = error_details_pb2.ErrorInfo(reason=refusal.reason, domain=DOMAIN)
    if field:
        info.metadata["field"] = field
    status.details.add().Pack(info)
    if field and refusal.code is Code.INVALID_ARGUMENT:
        violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=message)
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    if refusal.retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(max(0, round(refusal.retry_after_s * 1000)))
        status.details.add().Pack(retry)
    return status


async def abort(context: grpc.aio.ServicerContext[Any, Any], refusal: Refusal) -> NoReturn:
    """End the call with the refusal. Raises what gRPC wants raised (`grpc.aio.AbortError`): let it pass."""
    status = to_rpc_status(refusal)
    details = ((DETAILS_KEY, status.SerializeToString()),)
    await context.abort(grpc.StatusCode[refusal.code.name], status.message, details)


def from_rpc_error(error: grpc.aio.AioRpcError) -> Refusal:
    """What a server refused with, or what gRPC itself says of a call that failed (reason: the code's name)."""
    refusal = Refusal(_code(error.code()), error.details() or error.code().name)
    for detail in _details(error):
        _take(refusal, detail)
    return refusal


def from_rpc_status(data: bytes) -> Refusal:
    """What a serialised `google.rpc.Status` says, sent elsewhere than in trailers."""
    packed = status_pb2.Status.FromString(data)
    refusal = Refusal(Code(packed.code), packed.message)
    for detail in packed.details:
        _take(refusal, detail)
    return refusal


def _code(code: grpc.StatusCode) -> Code:
    """Our name of gRPC's code. A code that no gRPC defines is UNKNOWN."""
    return Code.__members__.get(code.name, Code.UNKNOWN)


def _details(error: grpc.aio.AioRpcError) -> list[Any]:
    """The details that came along, packed; none where they are absent or not what they should be."""
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            try:
                return list(status_pb2.Status.FromString(value).details)
            except DecodeError:
                return []
    return []


def _take(refusal: Refusal, detail: Any) -> None:
    """Read one packed detail into the refusal. Types that we do not send are passed over."""
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    try:
        if detail.Unpack(info):
            refusal.reason = info.reason or refusal.reason
            refusal.field = info.metadata.get("field", "")
        elif detail.Unpack(retry):
            refusal.retry_after_s = retry.retry_delay.ToMilliseconds() / 1000
    except DecodeError:
        return


def _cut(text: str, most_bytes: int) -> str:
    """The text, cut to so many bytes of UTF-8."""
    data = text.encode("utf-8", "replace")
    return text if len(data) <= most_bytes else data[: most_bytes - 3].decode("utf-8", "ignore") + "..."
