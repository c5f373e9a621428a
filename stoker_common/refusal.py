"""A refusal: why a call is not served, with a code and a reason that programs can act on."""

from enum import Enum


class Code(Enum):
    """gRPC's status codes but for OK, by name and number, without gRPC."""

    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class Refusal(Exception):
    """A call that is not served, or no longer.

    `message` is for a person: what was wrong, and what would be right. `reason` is for a program: UPPER_SNAKE, as in
    ErrorInfo, by default the code's name. `field` is the path of the field at fault as the client wrote it, empty if
    none is. `retry_after_s` says when coming back makes sense, None if nobody knows.
    """

    def __init__(
        self, code: Code, message: str, *, reason: str = "", field: str = "", retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.reason = reason or code.name
        self.field = field
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"{self.code.name} ({self.reason}): {self.message}"

    @property
    def retryable(self) -> bool:
        """Whether the same call may succeed later or elsewhere."""
        return self.code is Code.UNAVAILABLE or self.retry_after_s is not None


def invalid(field: str, message: str, *, reason: str = "INVALID_FIELD") -> Refusal:
    """No server could serve this: `message` says what is wrong with `field` and what would be right."""
    return Refusal(Code.INVALID_ARGUMENT, _about(field, message), reason=reason, field=field)


def unimplemented(field: str, message: str, *, reason: str = "NOT_IMPLEMENTED") -> Refusal:
    """The API names `field`, and this program does not do it (yet)."""
    return Refusal(Code.UNIMPLEMENTED, _about(field, message), reason=reason, field=field)


def not_found(message: str, *, field: str = "", reason: str = "NOT_FOUND") -> Refusal:
    """What `field` names does not exist, such as a model that no server has."""
    return Refusal(Code.NOT_FOUND, _about(field, message), reason=reason, field=field)


def exhausted(message: str, *, reason: str, retry_after_s: float | None = None, field: str = "") -> Refusal:
    """A limit is reached, the caller's or the server's."""
    return Refusal(
        Code.RESOURCE_EXHAUSTED, _about(field, message), reason=reason, field=field, retry_after_s=retry_after_s
    )


def unavailable(message: str, *, retry_after_s: float | None = None, reason: str = "UNAVAILABLE") -> Refusal:
    """Nobody is there to serve it at the moment."""
    return Refusal(Code.UNAVAILABLE, message, reason=reason, retry_after_s=retry_after_s)


def deadline_exceeded(message: str, *, reason: str = "DEADLINE_EXCEEDED") -> Refusal:
    """The caller's deadline has passed, or would before there is an answer."""
    return Refusal(Code.DEADLINE_EXCEEDED, message, reason=reason)


def _about(field: str, message: str) -> str:
    """The message with the field's name in front: many clients show their users nothing else."""
    return f"{field}: {message}" if field else message
