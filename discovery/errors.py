"""What discovery raises: one base, with typed fields."""


class DiscoveryError(Exception):
    """Base of this package's errors. `retryable`: whether the same call may succeed later; `reason`: UPPER_SNAKE."""

    retryable = False
    reason = "DISCOVERY"


class EncodeError(DiscoveryError):
    """A record that does not fit the catalog's limits; `field` is the endpoint's field that does not."""

    reason = "ENCODE"

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class DecodeError(DiscoveryError):
    """A catalog record that cannot be believed; `key` is the part of it that cannot."""

    reason = "DECODE"

    def __init__(self, key: str, message: str) -> None:
        super().__init__(f"{key}: {message}")
        self.key = key


class CatalogError(DiscoveryError):
    """A call to the catalog that failed. `status` is the HTTP status, 0 if there was no answer."""

    def __init__(self, reason: str, message: str, *, status: int = 0, retryable: bool = True) -> None:
        super().__init__(message)
        self.reason = reason
        self.status = status
        self.retryable = retryable
