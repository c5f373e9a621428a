"""What a router bids for a server: come if no more waits there than I believe, else say so, and I pick anew. Pure.

Several routers that see the same reports pick the same server at the same moment, and none can know of the others. The
server can: what comes there has an order (docs/adr/0160).
"""

from router.ledger import Account, Typical
from router.policy import Chosen
from router.request import Request
from stoker.v1 import worker_link_pb2
from stoker_common.prompt_work import prompt_work

# So often a request may be outbid; then it takes what there is. As many routers as this may have picked one server.
MOST_LOST = 8
# Asking another server takes a round trip and a pick: a wait that is longer by no more than that is not worth it.
ASKED_AGAIN_MS = 5.0


def bid(request: Request, chosen: Chosen, account: Account, typical: Typical, lost: int) -> worker_link_pb2.Bid:
    """For the request on the chosen server, before it is booked there; `lost`: how often it was outbid before.

    What may wait there is what was reported, what we have sent since, and so much more that the next best server would
    have been as good.
    """
    rate = account.load.prefill_tokens_per_second or typical.prefill_tokens_per_second
    attention = account.load.attention_tokens or typical.attention_tokens
    made = worker_link_pb2.Bid(prompt_tokens=round(prompt_work(request.prompt_tokens, 0, attention)))
    if rate and chosen.next_ms is not None and lost < MOST_LOST:
        ahead_ms = max(ASKED_AGAIN_MS, chosen.next_ms - chosen.candidate.cost.total_ms)
        known = account.load.waiting_prompt_tokens + account.new_whole_tokens
        made.most_waiting_prompt_tokens = round(known + ahead_ms * rate / 1e3)
    return made
