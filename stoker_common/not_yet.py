"""What the API names and the program does not do yet. Whoever builds one of these deletes its line."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from stoker.v1 import generation_pb2
from stoker.v1.generation_pb2 import Generation
from stoker_common.refusal import unimplemented


@dataclass(frozen=True, slots=True)
class NotYet:
    """A field that is refused where `asked` finds it asked for. `instead` says what works today."""

    field: str
    asked: Callable[[Generation], bool]
    instead: str


def _images(generation: Generation) -> Iterator[generation_pb2.Image]:
    for message in generation.chat.messages:
        for part in message.content:
            if part.HasField("image"):
                yield part.image


NOT_YET = (
    NotYet("generation.tenant", lambda g: g.HasField("tenant"), "leave it out"),
    NotYet("generation.chat.messages.content.image", lambda g: any(_images(g)), "send text parts only"),
)


def check_implemented(generation: Generation) -> None:
    """Refuse what is asked for and not built, with UNIMPLEMENTED naming the field."""
    for entry in NOT_YET:
        if entry.asked(generation):
            raise unimplemented(entry.field, f"is not implemented yet; {entry.instead}", reason="NOT_YET")
