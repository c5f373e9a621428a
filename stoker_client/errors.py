"""What the SDK raises: one exception, typed by its fields."""

from stoker_common.refusal import Code, Refusal


class StokerError(Exception):
    """A call that failed, or was refused before it was sent.

    `code` is the gRPC status by name; `reason` an UPPER_SNAKE word for programs (`MODEL_NOT_FOUND`); `field` the
    request's field that is at fault, empty if none is; `retry_after_s` when to come back, None if the peer did not say.
    """

    def __init__(
        self,
        code: Code,
        message: str,
        *,
        reason: str = "",
        field: str = "",
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.reason = reason or code.name
        self.field = field
        self.retry_after_s = retry_after_s

    @classmethod
    def of(cls, refusal: Refusal) -> "StokerError":
        """The error that a refusal is to a caller."""
        return cls(
            refusal.code,
            refusal.message,
            reason=refusal.reason,
            field=refusal.field,
            retry_after_s=refusal.retry_after_s,
        )
