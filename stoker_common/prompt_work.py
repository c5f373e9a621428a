"""What computing a prompt takes, in tokens of a short one: the farther a token is from the prompt's beginning, the more
others it attends to."""


def prompt_work(tokens: float, after: float, attention_tokens: float) -> float:
    """What `tokens` of a prompt take that come after `after` others of it, in tokens at a prompt's beginning.

    `attention_tokens`: behind so many others a token takes twice as much; 0 while that is not known: all take the same.
    """
    return tokens * (1.0 + (after + tokens / 2) / attention_tokens) if attention_tokens else tokens
