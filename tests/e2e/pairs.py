"""Every pair of writes that two replicas can make apart, by the type of the column, and what comes
of it. `docs/semantics.md` is the table of these in words.

A writes first, then B, then C (see `tests.e2e.apart`). Where the outcome is one of several, which
one is not promised, but that it is the same everywhere.
"""

from tests.e2e.apart import Case, any_order, cell, row
from tests.e2e.json_pairs import JSON_CASES, LIST_CASES, SET_CASES

COUNTER = "COUNTER NOT NULL DEFAULT 0"
TEXT = "CRDT_TEXT"

INSERT_IF_MISSING = "INSERT OR IGNORE INTO t (id) VALUES (:id)"

FAMILY_OF_THREE = "👨\u200d👩\u200d👧"
FAMILY_OF_FOUR = "👨\u200d👩\u200d👧\u200d👦"
E_ACUTE, E_HAT = "e\u0301", "e\u0302"
SCOTLAND = "🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f"
WALES = "🏴\U000e0067\U000e0062\U000e0077\U000e006c\U000e0073\U000e007f"


PLAIN_CASES: list[Case] = [
    cell("plain: both change it", "TEXT", "'x'", "'earlier'", "'later'", shows="later"),
    cell("plain: set to NULL later", "TEXT", "'x'", "'earlier'", "NULL", shows=None),
    cell("plain: an integer later", "INTEGER", "1", "v + 1", "v + 2", shows=3),
    cell(
        "plain: JSON is one value",
        "JSON",
        "'{}'",
        """'{"a":1}'""",
        """'{"b":1}'""",
        shows='{"b":1}',
    ),
    cell("plain: written back as it was", "TEXT", "'x'", "'changed'", "v", "'x'", shows="changed"),
    row(
        "plain: two columns",
        "TEXT",
        "'x', 'x'",
        "UPDATE t SET v = 'a'",
        "UPDATE t SET note = 'b'",
        rows=[("a", "b")],
    ),
]

COUNTER_CASES: list[Case] = [
    cell("counter: all add", COUNTER, "10", "v + 1", "v + 2", "v - 4", shows=9),
    cell("counter: one sets it, others add", COUNTER, "10", "v + 5", "0", "v + 1", shows=6),
    cell("counter: both set it alike", COUNTER, "10", "7", "7", shows=4),
    cell("counter: first writes", "COUNTER", None, "3", "4", shows=7),
    cell("counter: from a default", "COUNTER DEFAULT 100", None, "v + 3", "v + 4", shows=107),
    cell("counter: NULL, and an increment later", "COUNTER", "10", "NULL", "v + 1", shows=11),
    cell("counter: an increment, and NULL later", "COUNTER", "10", "v + 1", "NULL", shows=None),
    cell(
        "counter: set again by who saw NULL",
        "COUNTER",
        "10",
        "NULL",
        None,
        "v + 1",
        shows=11,
    ),
    row(
        "counter: written anew over NULL by two",
        "COUNTER",
        "10, NULL",
        "UPDATE t SET v = NULL; UPDATE t SET v = 3",
        "UPDATE t SET v = v + 5",
        "UPDATE t SET v = NULL; UPDATE t SET v = 4",
        rows=[(12, None)],
    ),
    cell(
        "counter: the greatest integer",
        COUNTER,
        "9223372036854775806",
        "v + 1",
        "v + 1",
        "v - 5",
        shows=9223372036854775803,
    ),
    cell(
        "counter: more than an integer holds",
        COUNTER,
        "9223372036854775000",
        "v + 500",
        "v + 500",
        shows=9223372036854775807,
    ),
    row(
        "counter: inserted if missing, then added to, by all",
        COUNTER,
        None,
        *(
            f"{INSERT_IF_MISSING}; UPDATE t SET v = v + 1; UPDATE t SET v = v + {n}"
            for n in (1, 20, 300)
        ),
        rows=[(324, None)],
    ),
    row(
        "counter: inserted with a value by all",
        COUNTER,
        None,
        "INSERT INTO t (id, v) VALUES (:id, 5)",
        "INSERT INTO t (id, v) VALUES (:id, 7)",
        "INSERT INTO t (id) VALUES (:id)",
        rows=[(12, None)],
    ),
]

TEXT_CASES: list[Case] = [
    cell(
        "text: typed at different places",
        TEXT,
        "'one two three'",
        "'zero ' || v",
        "v || ' four'",
        "replace(v, 'two', 'two and a half')",
        shows="zero one two and a half three four",
    ),
    cell(
        "text: typed at one place",
        TEXT,
        "'Dear'",
        "v || ' Mira'",
        "v || ' Oda'",
        "v || ' Kim'",
        shows=any_order("Dear", (" Mira", " Oda", " Kim"), ""),
    ),
    cell(
        "text: typed within one word",
        TEXT,
        "'color'",
        "'colour'",
        "'colors'",
        "'Color'",
        shows="Colours",
    ),
    cell(
        "text: one word replaced by all",
        TEXT,
        "'the cat sat'",
        "replace(v, 'cat', 'dog')",
        "replace(v, 'cat', 'hen')",
        "replace(v, 'cat', 'pig')",
        shows=any_order("the ", ("dog", "hen", "pig"), " sat"),
    ),
    cell(
        "text: typed in what another deletes",
        TEXT,
        "'keep this. lose that. end'",
        "replace(v, 'lose that. ', '')",
        "replace(v, 'that', 'not that')",
        shows="keep this. not end",
    ),
    cell(
        "text: both delete it",
        TEXT,
        "'one two three'",
        "replace(v, 'two ', '')",
        "replace(v, 'two three', 'three')",
        shows="one three",
    ),
    cell("text: cleared, and typed in later", TEXT, "'gone'", "''", "v || '!'", shows="!"),
    cell("text: first writes that are equal", TEXT, None, "'hello'", "'hello'", shows="hello"),
    row(
        "text: first writes that are equal, and one deleted",
        TEXT,
        None,
        "INSERT INTO t (id, v) VALUES (:id, 'hello'); UPDATE t SET v = ''",
        "INSERT INTO t (id, v) VALUES (:id, 'hello')",
        rows=[("", None)],
    ),
    cell(
        "text: first writes that differ",
        "CRDT_TEXT DEFAULT ''",
        None,
        "'left '",
        "'right '",
        shows=any_order("", ("left ", "right "), ""),
    ),
    cell(
        "text: from a default",
        "CRDT_TEXT NOT NULL DEFAULT 'Dear all'",
        None,
        "v || ', hi'",
        "'My ' || v",
        shows="My Dear all, hi",
    ),
    cell("text: NULL, and typed in later", TEXT, "'note'", "NULL", "v || 's'", shows="notes"),
    cell("text: typed in, and NULL later", TEXT, "'note'", "v || 's'", "NULL", shows=None),
    cell(
        "text: emoji of several parts",
        TEXT,
        f"'{FAMILY_OF_THREE} and 👍🏻 and 🇩🇪 and {SCOTLAND}'",
        f"replace(v, '{FAMILY_OF_THREE}', '{FAMILY_OF_FOUR}')",
        "replace(replace(v, '👍🏻', '👍🏿'), '🇩🇪', '🇩🇰')",
        f"'😀' || replace(v, '{SCOTLAND}', '{WALES}') || '😀'",
        shows=f"😀{FAMILY_OF_FOUR} and 👍🏿 and 🇩🇰 and {WALES}😀",
    ),
    cell(
        "text: accents that are characters of their own",
        TEXT,
        f"'caf{E_ACUTE} cr{E_ACUTE}me'",
        f"replace(v, 'caf{E_ACUTE}', 'caf{E_HAT}')",
        f"replace(v, 'cr{E_ACUTE}me', 'cr{E_HAT}me')",
        f"v || ' br{E_ACUTE}'",
        shows=f"caf{E_HAT} cr{E_HAT}me br{E_ACUTE}",
    ),
    cell(
        "text: a script without spaces",
        TEXT,
        "'今日は良い天気です'",
        "replace(replace(v, '今', '昨'), 'です', 'でした')",
        "replace(v, '良', 'とても良')",
        shows="昨日はとても良い天気でした",
    ),
    cell(
        "text: lines of another system",
        TEXT,
        "'a' || char(13, 10) || 'b'",
        "v || char(13, 10) || 'c'",
        "'x' || v",
        shows="xa\r\nb\r\nc",
    ),
]

LIFE_CASES: list[Case] = [
    row(
        "row: replaced whole by all",
        COUNTER,
        "10, 'x'",
        "REPLACE INTO t (id, v, note) VALUES (:id, 11, 'x')",
        "REPLACE INTO t (id, v, note) VALUES (:id, 12, 'x')",
        "REPLACE INTO t (id, v, note) VALUES (:id, 10, 'y')",
        rows=[(13, "y")],
    ),
    row(
        "row: changed, and deleted later",
        COUNTER,
        "10, 'x'",
        "UPDATE t SET v = v + 1, note = 'y'",
        "DELETE FROM t",
        rows=[],
    ),
    row(
        "row: deleted, and changed later",
        "TEXT",
        "'v', 'x'",
        "DELETE FROM t",
        "UPDATE t SET note = 'y'",
        rows=[("v", "y")],
    ),
    row(
        "row: counted before and after it is deleted",
        COUNTER,
        "10, 'x'",
        "UPDATE t SET v = v + 1",
        "DELETE FROM t",
        "UPDATE t SET v = v + 5",
        rows=[(16, "x")],
    ),
    row(
        "row: typed in before and after it is deleted",
        TEXT,
        "'m', 'x'",
        "UPDATE t SET v = 'a' || v",
        "DELETE FROM t",
        "UPDATE t SET v = v || 'z'",
        rows=[("amz", "x")],
    ),
    row(
        "row: deleted by all",
        COUNTER,
        "10, 'x'",
        *["DELETE FROM t"] * 3,
        rows=[],
    ),
    row(
        "row: inserted by all",
        "TEXT",
        None,
        "INSERT INTO t (id, v) VALUES (:id, 'earlier')",
        "INSERT INTO t (id, v) VALUES (:id, 'later')",
        "INSERT INTO t (id, note) VALUES (:id, 'note')",
        rows=[("later", "note")],
    ),
    row(
        "row: deleted and inserted again, and deleted later",
        "TEXT",
        "'x', 'x'",
        "DELETE FROM t; INSERT INTO t (id, v) VALUES (:id, 'again')",
        "DELETE FROM t",
        rows=[],
    ),
    row(
        "row: deleted and inserted again, and changed later",
        "TEXT",
        "'x', 'x'",
        "DELETE FROM t; INSERT INTO t (id, v) VALUES (:id, 'again')",
        "UPDATE t SET v = 'later'",
        rows=[("later", None)],
    ),
    row(
        "row: deleted, inserted again, and counted elsewhere",
        COUNTER,
        "10, 'x'",
        "DELETE FROM t",
        "DELETE FROM t; INSERT INTO t (id) VALUES (:id)",
        "UPDATE t SET v = v + 5",
        rows=[(5, None)],
    ),
    row(
        "row: deleted and inserted again by two, and counted elsewhere",
        COUNTER,
        "10, 'x'",
        "DELETE FROM t; INSERT INTO t (id) VALUES (:id)",
        "UPDATE t SET v = v + 5",
        "DELETE FROM t; INSERT INTO t (id) VALUES (:id)",
        rows=[(5, None)],
    ),
    row(
        "row: deleted, inserted again, and typed in elsewhere",
        TEXT,
        "'old words', 'x'",
        "DELETE FROM t; INSERT INTO t (id, v) VALUES (:id, 'new words')",
        "UPDATE t SET v = v || ' more'",
        rows=[("new words more", None)],
    ),
]

CASES: list[Case] = [
    *PLAIN_CASES,
    *COUNTER_CASES,
    *TEXT_CASES,
    *SET_CASES,
    *LIST_CASES,
    *JSON_CASES,
    *LIFE_CASES,
]
