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
    load, cost = account.load, chosen.candidate.cost
    rate = load.prefill_tokens_per_second or typical.prefill_tokens_per_second
    attention = load.attention_tokens or typical.attention_tokens
    whole = prompt_work(request.prompt_tokens, 0, attention)
    computed = prompt_work(request.prompt_tokens - cost.cached_tokens, cost.cached_tokens, attention)
    made = worker_link_pb2.Bid(prompt_tokens=round(whole), cached_prompt_tokens=round(whole) - round(computed))
    if rate and chosen.next_ms is not None and lost < MOST_LOST:
        more = max(ASKED_AGAIN_MS, chosen.next_ms - cost.total_ms) * rate / 1e3
        if load.waiting_cached_prompt_tokens is None:
            made.most_waiting_prompt_tokens = round(load.waiting_prompt_tokens + account.new_whole_tokens + more)
        else:
            known = load.waiting_prompt_tokens - load.waiting_cached_prompt_tokens + account.new_prompt_tokens
            made.most_computed_prompt_tokens = max(0, round(known + more))
    return made
