"""Where a generation that another server began goes on: cuts off what the client already has. Pure."""

from model_server.engine import EngineOutput


class Seam:
    """One output's seam. The client has the first `tokens` ids and the first `text_bytes` bytes of text.

    They are cut apart, because text comes later than its ids where a character is half or a stop string may begin.
    """

    def __init__(self, tokens: int, text_bytes: int) -> None:
        self._tokens = tokens
        self._text_bytes = text_bytes

    def cut(self, output: EngineOutput) -> EngineOutput | None:
        """What of the output is new to the client; None if nothing is."""
        if not self._tokens and not self._text_bytes:
            return output
        token_ids = output.token_ids[self._tokens :]
        self._tokens -= len(output.token_ids) - len(token_ids)
        text = output.text
        if self._text_bytes and text:
            data = text.encode()
            # The client has whole characters, so the cut is between two.
            text = data[self._text_bytes :].decode(errors="ignore")
            self._text_bytes = max(0, self._text_bytes - len(data))
        if not token_ids and not text and not output.finish_reason:
            return None
        # The last ones: an output that is cut has logprobs of all its ids, or of none.
        logprobs = output.logprobs[len(output.logprobs) - len(token_ids) :] if output.logprobs else ()
        return output._replace(token_ids=token_ids, text=text, logprobs=logprobs)
