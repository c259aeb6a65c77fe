"""Hypothesis strategies for values, stamps, documents and edits."""

from hypothesis import strategies as st

from reunite.cells.register import INTEGER_MAX, INTEGER_MIN, Register, Value
from reunite.clock import FLOOR, NEVER, stamp
from reunite.document import Document, cell_key

# Any Unicode but lone surrogates, which UTF-8 does not have.
TEXT = st.text(st.characters(exclude_categories=["Cs"]))

VALUES: st.SearchStrategy[Value] = st.one_of(
    st.none(),
    st.integers(INTEGER_MIN, INTEGER_MAX),
    st.integers(-3, 3),
    st.floats(allow_nan=False),
    st.sampled_from([0.0, -0.0, 1.0]),
    TEXT,
    st.binary(),
)

# Few, so that equal times, equal replicas and equal stamps with different values occur.
STAMPS: st.SearchStrategy[bytes] = st.one_of(
    st.just(FLOOR),
    st.builds(stamp, st.integers(1, 6), st.integers(1, 3)),
    st.builds(stamp, st.integers(1, (1 << 64) - 1), st.integers(1, (1 << 64) - 1)),
)
MARKS: st.SearchStrategy[bytes] = st.one_of(st.just(NEVER), STAMPS)

CELLS: st.SearchStrategy[dict[int, Register]] = st.dictionaries(
    st.builds(cell_key, st.one_of(st.integers(1, 5), st.integers(1, (1 << 28) - 1))),
    st.tuples(STAMPS, VALUES),
    max_size=8,
)

DOCUMENTS: st.SearchStrategy[Document] = st.builds(Document, MARKS, MARKS, MARKS, CELLS)
