"""What an exception says about itself: the refusal in it, and where it came from without what it was about."""

import traceback

from stoker_common.refusal import Refusal


def first_refusal(error: BaseException) -> Refusal | None:
    """The refusal that `error` is, or that is first in the exception group that it is."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, BaseExceptionGroup):
        return next((found for inner in error.exceptions if (found := first_refusal(inner))), None)
    return None


def where(error: BaseException) -> str:
    """The traceback of `error` and of what caused it, by types and lines.

    Without their messages: those of a parser, a tokenizer or a template may quote the prompt.
    """
    lines: list[str] = []
    seen: set[int] = set()
    _describe(error, lines, seen)
    return "\n".join(lines)


def _describe(error: BaseException, lines: list[str], seen: set[int]) -> None:
    if id(error) in seen:
        return
    seen.add(id(error))
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None:
        _describe(before, lines, seen)
        lines.append("then")
    kind = type(error)
    lines.append(f"{kind.__module__}.{kind.__qualname__}")
    lines.extend(line.rstrip() for line in traceback.format_tb(error.__traceback__))
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            lines.append("in it")
            _describe(inner, lines, seen)
