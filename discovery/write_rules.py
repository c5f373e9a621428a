"""When a record is written again: facts at once, load seldom. Pure."""

from dataclasses import dataclass

from discovery.codec import ServiceRecord, is_load_key


@dataclass(frozen=True, slots=True)
class Written:
    """What the catalog was last given, and when, by the registrar's clock in seconds."""

    record: ServiceRecord
    at_s: float


def write_due_s(written: Written | None, wanted: ServiceRecord, load_every_s: float) -> float | None:
    """When `wanted` is to be written, by the same clock: 0 for at once, None if the catalog has it already."""
    if written is None or _facts(written.record) != _facts(wanted):
        return 0.0
    return None if written.record == wanted else written.at_s + load_every_s


def _facts(record: ServiceRecord) -> tuple[object, ...]:
    meta = {key: value for key, value in record.meta.items() if not is_load_key(key)}
    return record.service_id, record.address, record.port, record.tags, meta
