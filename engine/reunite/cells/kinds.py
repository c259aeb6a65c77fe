"""What every kind of cell that merges inside its value has to do. Knows none of them.

A state is bytes; a delta is bytes of the same form that hold just what an edit did. *Content* is
what a value means to a kind: a number, a text, a list. A value that a kind cannot hold (NULL, or
text that is no JSON in a JSON column) has no content: it is written as a register beside the cell,
and of a column's cells the one that was edited last shows (see `reunite.columns`).
"""

from typing import NamedTuple, Protocol, TypeAlias

from reunite.cells.register import Value

# int, str, frozenset, list or dict; which, is each kind's own.
Content: TypeAlias = object


class Author(NamedTuple):
    """Who edits: the replica, and this opening of its file. Yjs takes a number for each opening,
    since what was done under one can be lost and done otherwise."""

    replica: int
    session: int


class Edit(NamedTuple):
    """What an edit did, and the state after it."""

    delta: bytes
    after: bytes


class Kind(Protocol):
    """A kind of cell. Every function that reads bytes raises FormatError for unsound ones, but only
    `check` looks at everything: it stands where bytes of a peer come in."""

    def content(self, value: Value) -> Content | None:
        """What a value means; None when the kind cannot hold it."""
        ...

    def shown(self, found: Content) -> Value:
        """The one value that SQL shows of a content."""
        ...

    def check(self, data: bytes) -> None:
        """Raise FormatError unless these bytes, from a peer, are sound."""
        ...

    def merge(self, a: bytes, b: bytes) -> bytes:
        """The join of a state with another or with a delta; `a` itself when `b` adds nothing."""
        ...

    def value(self, data: bytes) -> Value:
        """What SQL shows of a state."""
        ...

    def initial(self, found: Content) -> bytes:
        """A state of this content with equal bytes wherever it is made."""
        ...

    def edit(self, before: bytes, wanted: Content, author: Author) -> Edit | None:
        """The smallest edit that makes `before` show `wanted`; None when the kind cannot."""
        ...

    def carried(self, seen: Content, wanted: Content, onto: Content) -> Content:
        """What comes of making to `onto` the change that makes `wanted` of `seen`."""
        ...

    def is_by(self, data: bytes, replica: int) -> bool:
        """True when these bytes add nothing in another replica's name."""
        ...

    def as_one_author(self, data: bytes, author: Author) -> bytes:
        """A state that shows the same, all of it by one replica."""
        ...

    def fits_onto(self, before: bytes | None, delta: bytes) -> bool:
        """True when a delta from a peer builds on nothing that the state lacks."""
        ...

    def intent(self, before: bytes, after: bytes) -> object:
        """What an edit did, as JSON for people to read."""
        ...


class Naming(Kind, Protocol):
    """A kind whose states name the replicas that made them, so that one's part can be told."""

    EMPTY: bytes

    def again(self, before: bytes, delta: bytes, made_on: bytes, author: Author) -> Edit | None:
        """What a delta did to the state that it was `made_on`, done to another; None when the kind
        cannot."""
        ...

    def part_of(self, data: bytes, replica: int) -> bytes:
        """What one replica did, of a state."""
        ...
