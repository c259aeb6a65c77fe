"""The kinds of cells: what the CRDT state of one column is, and how two states of it merge.

A cell's key in a document is `column_id << 3 | kind`, so that a register and a later counter
of one column coexist. Kinds 1-4 are reserved for counter, set and Yjs cells.
"""
