"""The name under which vLLM knows an adapter: the one that it is served by, and which weights they are.

vLLM keys its prefix cache by name and folder: other weights in the same folder find nothing of what was before.
"""


def vllm_name(served: str, weights: str) -> str:
    """`weights` tells them from others that lie in the same folder another day; no white space."""
    return f"{served} {weights}"


def served_name(name: str | None) -> str:
    """The name that it is served by; empty for none."""
    return (name or "").rpartition(" ")[0] or (name or "")
