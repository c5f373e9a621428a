"""What the router remembers between requests. Each part is in a file of its own; none outlives the process."""

from dataclasses import dataclass, field

from router.caches import Caches
from router.calibration import Calibration
from router.ejection import Breakers
from router.first_tokens import FirstTokens
from router.ledger import Ledger
from router.service_times import ServiceTimes
from router.sizing import Sizing
from router.ways import Ways


@dataclass(frozen=True, slots=True)
class Learned:
    """The parts, together, because whoever ends a request tells all of them."""

    ledger: Ledger
    breakers: Breakers
    caches: Caches
    sizing: Sizing
    ways: Ways
    calibration: Calibration
    services: ServiceTimes = field(default_factory=ServiceTimes)
    first_tokens: FirstTokens = field(default_factory=FirstTokens)
