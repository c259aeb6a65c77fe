"""Text, lists and JSON objects: each cell is a Yjs document with one root. Cell kinds 3, 4 and 5.

Bytes are a Yjs update, v1, that holds the whole document; a delta is one that holds what an edit
did. So any Yjs editor can be bound to a cell. The root is `text` (Y.Text), `list` (Y.Array) or
`json` (Y.Map); objects and arrays inside are Y.Map and Y.Array, so that what is done to different
keys and items merges at any depth. A number that a double does not write the same way (1.0, 2^53)
is a buffer that holds its JSON text.

What Yjs and its binding do wrong when they are fed wrongly is kept away from them here (see
`yjs_update`): unsound bytes, updates whose past is not here, client ids used twice, places that
are no characters'. A document is compacted whenever it is written: blocks that belong together are
one, and what was deleted has no content any more.
Source: Nicolaescu et al., "Near real-time peer-to-peer shared editing" (2016), YATA.
"""

import json
import re
from collections import OrderedDict
from collections.abc import Callable
from functools import wraps
from hashlib import blake2b
from math import log2
from threading import Lock
from typing import Any, Final, Generic, NamedTuple, ParamSpec, TypeVar

from pycrdt import Array, Doc, Map, Text, TransactionEvent, merge_updates

from reunite.cells.json_text import canonical, parsed
from reunite.cells.kinds import Author, Content, Edit
from reunite.cells.register import Value
from reunite.cells.text_edit import Replacement, hunks, text_edit
from reunite.cells.yjs_update import BLOCKS_MAX, Shape, fits, parse, parse_state, ready
from reunite.errors import FormatError

TEXT_KIND: Final = 3
LIST_KIND: Final = 4
JSON_KIND: Final = 5

# An update that says nothing.
EMPTY: Final = b"\0\0"

# Yjs's own bound: what JavaScript counts exactly.
_CLIENT_BITS: Final = 53
_SAFE_INTEGER: Final = (1 << 53) - 1
# Documents that are only read and merged write nothing, so they need no id of their own.
_NOBODY: Final = 1

# The bytes of the numbers that are kept in buffers.
_NUMBER_BYTES: Final = frozenset(b"0123456789+-.eE")

# An edit of `n` blocks takes Yjs up to 5 ns for `n` and each byte of the document: there are
# places to pass, and strings to count through and cut. Up to here it takes about a second at most.
_LIGHT: Final = 200_000_000

# A character of two UTF-16 code units, or bytes that look like one.
_WIDE: Final = re.compile(rb"[\xf0-\xf4][\x80-\xbf]{3}")

# What was used last is kept, by the bytes it was made of: who types edits one document again and
# again. A loaded document takes some times its bytes.
_RECENT_BYTES_MAX: Final = 4 << 20

_T = TypeVar("_T")
_P = ParamSpec("_P")


def _guarded(method: Callable[_P, _T]) -> Callable[_P, _T]:
    """The method, with what Yjs fails at as FormatError. A panic of Rust is no `Exception`, and
    would end whoever merges a peer's bytes. The checks are there so that none happens; should one,
    the document that it left half changed is dropped, as nothing keeps it."""

    @wraps(method)
    def guarded(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return method(*args, **kwargs)
        except (ValueError, RuntimeError) as error:
            raise FormatError(f"Yjs fails at a document: {error}") from error
        except BaseException as error:
            if type(error).__module__ != "pyo3_runtime":
                raise
            raise FormatError(f"Yjs fails at a document: {error}") from error

    return guarded


class _Loaded(NamedTuple):
    """A document in memory. When updates were `merged` into it since it was read it may show
    another order than what all read in its bytes: if a peer's update contradicts itself. So it is
    read again before it shows anything."""

    doc: "Doc[Any]"
    merged: bool


class Yjs:
    """One kind of Yjs cell; see `reunite.cells.kinds.Kind`."""

    def __init__(self, shape: Shape) -> None:
        self.shape: Shape = shape
        self._values = _Recent[Value]()
        self._docs = _Recent[_Loaded]()
        # Who edited last. Documents are loaded in that name, so that it can go on in them.
        self._writer = _NOBODY

    def content(self, value: Value) -> Content | None:
        """The text, the JSON array or the JSON object that a value is; None for another."""
        if self.shape == "text":
            return value if type(value) is str and _is_unicode(value) else None
        found = parsed(value)
        return found if isinstance(found, list if self.shape == "list" else dict) else None

    def shown(self, found: Content) -> Value:
        """The value again; JSON in its one form."""
        return found if isinstance(found, str) else canonical(found)

    def check(self, data: bytes) -> None:
        """Raise FormatError unless these bytes, from a peer, are sound."""
        parse(data, self.shape)

    @_guarded
    def merge(self, a: bytes, b: bytes) -> bytes:
        """The join of a document with another or a delta. Raises FormatError for a delta whose past
        is not in `a`: Yjs would put it off and say nothing."""
        if a == b or b == EMPTY:
            return a
        update = parse(b, self.shape)
        kept = self._taken(a)
        doc = kept.doc
        if not ready(update, parse_state(doc.get_state())):
            raise FormatError("an edit builds on what is not in the document")
        # Asked so, as a document that nothing was added to may be written otherwise.
        if _updates(doc, lambda: doc.apply_update(b)) == EMPTY:
            self._docs.put(a, kept)
            return a
        after = self._readable(doc.get_update())
        self._docs.put(after, _Loaded(doc, True))
        return after

    @_guarded
    def value(self, data: bytes) -> Value:
        """What SQL shows of a document."""
        found = self._values.get(data)
        if found is None:
            doc = self.loaded(data)
            found = self._read(doc)
            self._docs.put(data, _Loaded(doc, False))
            self._values.put(data, found)
        return found

    @_guarded
    def initial(self, found: Content) -> bytes:
        """A document of this content whose bytes are equal wherever it is made: so two who begin
        alike have begun the same, and those who begin otherwise have both beginnings."""
        empty = not found
        if empty:
            return EMPTY
        shown = self.shown(found)
        assert isinstance(shown, str)
        digest = blake2b(f"{self.shape} {shown}".encode(), digest_size=8).digest()
        doc = Doc[Any](client_id=client_id(int.from_bytes(digest, "big")))
        self._write(doc, self._empty(), found)
        return self._readable(doc.get_update())

    def _readable(self, data: bytes) -> bytes:
        """A document that was made here, when it can be read again. Raises FormatError for one that
        is too large; two that are not could make it."""
        if len(data) > 2 * BLOCKS_MAX:  # a block takes two bytes
            parse(data, self.shape)
        return data

    @_guarded
    def edit(self, before: bytes, wanted: Content, author: Author) -> Edit | None:
        """The smallest edit that makes `before` show `wanted`."""
        self._writer = client_id(author.session)
        doc = self.loaded(before, self._writer)
        shown = self._values.get(before)
        old = self.content(self._read(doc) if shown is None else shown)
        if old is None:
            # Nested deeper than JSON may be: by parts that were not when they were written.
            return None
        delta = _updates(doc, lambda: self._write(doc, old, wanted))
        after = self._readable(doc.get_update()) if delta != EMPTY else before
        self._values.put(after, self._read(doc))
        self._docs.put(after, _Loaded(doc, False))
        return Edit(delta, after)

    @_guarded
    def carried(self, seen: Content, wanted: Content, onto: Content) -> Content:
        """A merge of both changes to `seen`, made on a document of its own."""
        if self.shown(seen) == self.shown(onto):
            return wanted
        begun = self.initial(seen)
        docs = [Doc[Any](client_id=side) for side in (2, 3)]
        for doc, new in zip(docs, (onto, wanted), strict=True):
            doc.apply_update(begun)
            self._write(doc, seen, new)
        docs[0].apply_update(docs[1].get_update())
        found = self.content(self._read(docs[0]))
        assert found is not None
        return found

    def is_by(self, data: bytes, replica: int) -> bool:
        """True: ids of Yjs are drawn anew at each opening and belong to nobody."""
        del data, replica
        return True

    def as_one_author(self, data: bytes, author: Author) -> bytes:
        """The document itself, as it names nobody."""
        del author
        return data

    @_guarded
    def fits_onto(self, before: bytes | None, delta: bytes) -> bool:
        """True when all that the delta builds on is there. Raises FormatError for one that an
        honest writer could not have made of this document."""
        update = parse(delta, self.shape)
        if before is None:
            return ready(update, {})
        if self.shape == "text" and not (update.outline.wide or _WIDE.search(before)):
            # All that could be wrong is a character that is divided.
            return ready(update, self.state(before))
        return fits(update, parse(before, self.shape))

    def is_heavy(self, before: bytes | None, delta: bytes) -> bool:
        """True when Yjs might take long, or take much memory, to apply a sound delta, or to load
        what comes of it: its time can grow as the square of what a liar sends."""
        old = len(before or b"")
        size = old + len(delta)
        grown = old > 0 and _magnitude(size) > _magnitude(old)
        # A part takes two bytes, so most edits need not be read for it.
        if (size if grown else len(delta)) * size <= 2 * _LIGHT:
            return False
        parts = parse(delta, self.shape).parts
        if grown:
            parts += parse(before or EMPTY, self.shape).parts
        return parts * size > _LIGHT

    def intent(self, before: bytes, after: bytes) -> object:
        """What an edit did, for people: `{"before": ..., "after": ...}`."""
        old, new = self.content(self.value(before)), self.content(self.value(after))
        return {"before": old, "after": new}

    @_guarded
    def state(self, data: bytes) -> dict[int, int]:
        """The document's state vector: the next clock of each client id."""
        kept = self._taken(data)
        found = parse_state(kept.doc.get_state())
        self._docs.put(data, kept)
        return found

    def loaded(self, data: bytes, writer: int | None = None) -> "Doc[Any]":
        """The document of these bytes, for its caller alone; to be written to under this id.
        Nothing reaches Yjs unparsed."""
        kept = self._docs.take(data)
        if kept is not None and not kept.merged and writer in (None, kept.doc.client_id):
            return kept.doc
        doc = Doc[Any](client_id=self._writer if writer is None else writer)
        if data != EMPTY:
            if kept is None and not ready(parse(data, self.shape), {}):
                raise FormatError("a Yjs document is not whole")
            doc.apply_update(data)
        return doc

    def _taken(self, data: bytes) -> "_Loaded":
        """The document of these bytes, for its caller alone, to merge into."""
        return self._docs.take(data) or _Loaded(self.loaded(data), False)

    def _empty(self) -> Content:
        return {"text": "", "list": [], "json": {}}[self.shape]

    def _read(self, doc: "Doc[Any]") -> Value:
        if self.shape == "text":
            return str(doc.get("text", type=Text))
        root: Array[Any] | Map[Any]
        root = doc.get("list", type=Array) if self.shape == "list" else doc.get("json", type=Map)
        # In one go, as `to_py` looks for each item from the first one on. A buffer is written as
        # an array of its bytes, and a great double as an integer, so what may be those is asked.
        found = json.loads(str(root))
        return canonical(_plain(root.to_py() if _is_unclear(found) else found))

    def _write(self, doc: "Doc[Any]", old: Content, new: Content) -> None:
        with doc.transaction():
            if isinstance(old, str) and isinstance(new, str):
                _write_text(doc.get("text", type=Text), old, new)
            elif isinstance(old, list) and isinstance(new, list):
                _write_list(doc.get("list", type=Array), old, new)
            elif isinstance(old, dict) and isinstance(new, dict):
                _write_map(doc.get("json", type=Map), old, new)
            else:
                raise AssertionError("contents of two kinds")


def client_id(number: int) -> int:
    """A Yjs client id, made of a random or hashed number."""
    return (number & ((1 << _CLIENT_BITS) - 1)) or _NOBODY


class LiveText:
    """A text that an editor has open: a copy of its cell, edited at once and saved later."""

    def __init__(self, data: bytes, session: int) -> None:
        """`session` is nobody else's while this one lives."""
        self._session = session
        # Of each edit that is not saved: what it did, and the text and clocks after it.
        self._edits: list[tuple[bytes, str, dict[int, int]]] = []
        self._load(data)

    def _load(self, data: bytes) -> None:
        self._doc = TEXT.loaded(data, client_id(self._session))
        self._text = self._doc.get("text", type=Text)
        self.value = self._saved_value = str(self._text)
        """The text as it is now."""
        self._saved_clocks = parse_state(self._doc.get_state())

    @_guarded
    def replace(self, start: int, end: int, text: str) -> None:
        """Put `text` in the place of `value[start:end]`; places are code points."""
        edit = Replacement(start, end, text)
        update = _updates(self._doc, lambda: _replace(self._text, self.value, edit))
        self.value = self.value[:start] + text + self.value[end:]
        self._edits.append((update, self.value, parse_state(self._doc.get_state())))

    def unsaved(self) -> tuple[bytes, int]:
        """What was edited since it was last saved, as a delta (EMPTY for nothing), and the number
        of edits, to give to `saved`."""
        updates = [update for update, _, _ in self._edits]
        return (merge_updates(*updates) if updates else EMPTY), len(updates)

    def saved(self, count: int) -> None:
        """So many of the edits are kept elsewhere now."""
        if count:
            _, self._saved_value, self._saved_clocks = self._edits[count - 1]
            del self._edits[:count]

    @_guarded
    def refresh(self, data: bytes, session: int) -> list[Replacement]:
        """Take in the cell as it is elsewhere, under what is not saved yet. Returns what that
        changed of `value`, from its start to its end. `session` is a new one, for when something
        that was saved was refused since: its places in Yjs's history can be another's by now."""
        old, seen, clocks = self.value, self._saved_value, self._saved_clocks
        delta, _ = self.unsaved()
        self._load(data)
        if any(self._saved_clocks.get(client, 0) < clock for client, clock in clocks.items()):
            self._session = session
            self._load(data)
        elif ready(parse(delta, "text"), self._saved_clocks):
            if self._edits:
                self._doc.apply_update(delta)
                self.value = str(self._text)
                # All of them are one now: what was between them had not seen what others did.
                self._edits = [(delta, self.value, parse_state(self._doc.get_state()))]
            return text_edit(old, self.value)
        self._edits.clear()
        wanted = TEXT.carried(seen, old, self.value)
        assert isinstance(wanted, str)
        for edit in reversed(text_edit(self.value, wanted)):
            self.replace(*edit)
        return text_edit(old, self.value)


class _Recent(Generic[_T]):
    """What was used last by the bytes it is of, up to a bound of bytes. Several threads use it."""

    def __init__(self) -> None:
        self._kept: OrderedDict[bytes, _T] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def get(self, data: bytes) -> _T | None:
        with self._lock:
            found = self._kept.get(data)
            if found is not None:
                self._kept.move_to_end(data)
            return found

    def take(self, data: bytes) -> _T | None:
        with self._lock:
            found = self._kept.pop(data, None)
            if found is not None:
                self._bytes -= _size(data)
            return found

    def put(self, data: bytes, value: _T) -> None:
        with self._lock:
            if self._kept.pop(data, None) is None:
                self._bytes += _size(data)
            self._kept[data] = value
            while self._bytes > _RECENT_BYTES_MAX and self._kept:
                oldest, _ = self._kept.popitem(last=False)
                self._bytes -= _size(oldest)


def _size(data: bytes) -> int:
    # A small document takes 2.2 KB when it is loaded.
    return 2_200 + 4 * len(data)


def _updates(doc: "Doc[Any]", change: Callable[[], None]) -> bytes:
    """What a change, one transaction, did to a document. A difference of two states would name all
    that was ever deleted."""
    found = [EMPTY]

    def note(event: TransactionEvent) -> None:
        found.append(event.update)

    subscription = doc.observe(note)
    try:
        with doc.transaction():
            change()
    finally:
        doc.unobserve(subscription)
    return found[-1]


def _write_text(text: Text, old: str, new: str) -> None:
    # From the end, so that places before are still what they were.
    for edit in reversed(text_edit(old, new)):
        _replace(text, old, edit)


def _replace(text: Text, old: str, edit: Replacement) -> None:
    # pycrdt counts bytes of UTF-8.
    at = len(old[: edit.start].encode())
    if edit.end > edit.start:
        del text[at : at + len(old[edit.start : edit.end].encode())]
    if edit.text:
        text.insert(at, edit.text)


def _write_list(array: "Array[Any]", old: list[Any], new: list[Any]) -> None:
    for hunk in reversed(hunks([canonical(item) for item in old], [canonical(i) for i in new])):
        gone, come = old[hunk.start : hunk.end], new[hunk.new_start : hunk.new_end]
        # Items that stand where an object or array stood are that one, changed.
        changed = 0
        while changed < min(len(gone), len(come)) and _is_same_kind(gone[changed], come[changed]):
            changed += 1
        if len(gone) > changed:
            del array[hunk.start + changed : hunk.end]
        for place, item in enumerate(come[changed:], hunk.start + changed):
            array.insert(place, _shared(item))
        for place, at in enumerate(range(hunk.start, hunk.start + changed)):
            if isinstance(array[at], Map | Array):
                _write_inside(array[at], gone[place], come[place])
            else:
                # Another editor's plain value: it has no inside that others could see changed.
                del array[at]
                array.insert(at, _shared(come[place]))


def _write_map(shared: "Map[Any]", old: dict[str, Any], new: dict[str, Any]) -> None:
    for key in sorted(old.keys() - new.keys()):
        del shared[key]
    for key in sorted(new):
        value = new[key]
        inside = shared[key] if key in old and _is_same_kind(old[key], value) else None
        if isinstance(inside, Map | Array):
            _write_inside(inside, old[key], value)
        elif key not in old or canonical(old[key]) != canonical(value):
            shared[key] = _shared(value)


def _write_inside(shared: Any, old: Any, new: Any) -> None:
    if isinstance(new, dict):
        _write_map(shared, old, new)
    else:
        _write_list(shared, old, new)


def _is_same_kind(old: object, new: object) -> bool:
    return isinstance(old, dict | list) and type(old) is type(new)


def _shared(value: Any) -> Any:
    """A JSON value in Yjs's types."""
    if isinstance(value, dict):
        return Map({key: _shared(value[key]) for key in sorted(value)})
    if isinstance(value, list):
        return Array([_shared(item) for item in value])
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    exact = abs(value) <= _SAFE_INTEGER if isinstance(value, int) else not value.is_integer()
    return value if exact else canonical(value).encode()


def _magnitude(size: int) -> int:
    # The square doubles from each to the next.
    return int(2 * log2(max(size, 1)))


def _is_unclear(value: Any) -> bool:
    """Whether Yjs's own JSON may have been written of something else."""
    if isinstance(value, dict):
        return any(map(_is_unclear, value.values()))
    if isinstance(value, list):
        if value and all(type(item) is int and item in _NUMBER_BYTES for item in value):
            return True
        return any(map(_is_unclear, value))
    return isinstance(value, int) and abs(value) > _SAFE_INTEGER


def _plain(value: Any) -> Any:
    """A JSON value of what Yjs returns."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, bytes | bytearray):
        return parsed(value.decode())
    if isinstance(value, float) and value.is_integer() and abs(value) <= _SAFE_INTEGER:
        return int(value)
    return value


def _is_unicode(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


TEXT: Final = Yjs("text")
LIST: Final = Yjs("list")
JSON: Final = Yjs("json")
