"""Sets of list elements in little room: a number whose bits stand for elements.

A world reads its append-only lists thousands of times, and most elements are in most reads.
"""

from collections.abc import Iterable, Iterator, Set
from typing import NamedTuple


class Index(NamedTuple):
    """Which bit stands for which element, and the elements in order of their bits."""

    place: dict[str, int]
    names: list[str]


class Elements(Set[str]):
    """A set of elements as the bits of one number."""

    __slots__ = ("_bits", "_index")

    def __init__(self, bits: int, index: Index) -> None:
        """`index` is shared by all sets of a history."""
        self._bits = bits
        self._index = index

    @classmethod
    def of(cls, elements: Iterable[str], index: Index) -> "Elements":
        """The set of these; what is new gets a place of its own."""
        place, names = index
        known = set(elements)
        for element in sorted(known - place.keys()):
            place[element] = len(names)
            names.append(element)
        buffer = bytearray(len(names) // 8 + 1)
        for element in known:
            at = place[element]
            buffer[at >> 3] |= 1 << (at & 7)
        return cls(int.from_bytes(buffer, "little"), index)

    def __contains__(self, element: object) -> bool:
        at = self._index.place.get(str(element))
        return at is not None and bool(self._bits >> at & 1)

    def __iter__(self) -> Iterator[str]:
        bits = bin(self._bits)[:1:-1]
        return (self._index.names[at] for at, bit in enumerate(bits) if bit == "1")

    def __len__(self) -> int:
        return self._bits.bit_count()

    @classmethod
    def _from_iterable(cls, it: Iterable[str]) -> Set[str]:  # type: ignore[override]
        return frozenset(it)
