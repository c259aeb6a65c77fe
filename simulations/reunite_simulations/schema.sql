-- The world's own schema, for those who bring none: what apps have, in small.

CREATE TABLE list (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    color TEXT DEFAULT 'grey'
);

CREATE TABLE todo (
    id INTEGER PRIMARY KEY,
    list_id INTEGER REFERENCES list (id) ON DELETE CASCADE,
    title TEXT NOT NULL,
    done BOOLEAN NOT NULL DEFAULT 0,
    effort REAL,
    note TEXT
);

-- An app that keeps notes in a form of its own. Only clients that began with this file have the
-- triggers, so a note that comes from elsewhere differs from its document there: an image.
CREATE TRIGGER note_added AFTER INSERT ON todo WHEN NEW.note NOT LIKE '%.' BEGIN
    UPDATE todo SET note = NEW.note || '.' WHERE id = NEW.id;
END;
CREATE TRIGGER note_changed AFTER UPDATE OF note ON todo WHEN NEW.note NOT LIKE '%.' BEGIN
    UPDATE todo SET note = NEW.note || '.' WHERE id = NEW.id;
END;

-- A natural key, and a value that only one row may have.
CREATE TABLE person (
    id TEXT PRIMARY KEY,
    email TEXT UNIQUE,
    name TEXT,
    photo BLOB,
    boss TEXT REFERENCES person (id) ON DELETE SET NULL
);

-- A composite key that refers, and no rowid.
CREATE TABLE assigned (
    todo_id INTEGER NOT NULL REFERENCES todo (id) ON DELETE CASCADE,
    person_id TEXT NOT NULL REFERENCES person (id),
    role TEXT,
    hours NUMERIC,
    PRIMARY KEY (todo_id, person_id)
) WITHOUT ROWID;

CREATE TABLE "event log" (
    "At" DATETIME,
    id INTEGER PRIMARY KEY,
    what TEXT COLLATE NOCASE,
    "count" INTEGER DEFAULT 5
);

-- Codes that apps rename: what refers to one goes with it.
CREATE TABLE shelf (
    code TEXT PRIMARY KEY,
    label TEXT NOT NULL UNIQUE
);

-- What only one row may have, in all forms. The relay knows of the pair alone: the two indexes and
-- the CHECK stay in the files that have them, so no two values that an app writes break them.
CREATE TABLE item (
    id INTEGER PRIMARY KEY,
    shelf TEXT REFERENCES shelf (code) ON DELETE SET NULL ON UPDATE CASCADE,
    room TEXT NOT NULL DEFAULT 'hall',
    place INTEGER,
    serial TEXT,
    slug TEXT,
    price NUMERIC DEFAULT 1 CHECK (price >= 0),
    extra,
    stock COUNTER DEFAULT 0,
    UNIQUE (room, place)
);
CREATE UNIQUE INDEX item_serial ON item (serial) WHERE serial <> '' AND stock IS NOT NULL;
CREATE UNIQUE INDEX item_slug ON item (lower(slug));

-- An app that shows no stock below nothing, whatever others have taken: an image of a counter.
CREATE TRIGGER stock_added AFTER INSERT ON item WHEN NEW.stock < 0 BEGIN
    UPDATE item SET stock = 0 WHERE id = NEW.id;
END;
CREATE TRIGGER stock_changed AFTER UPDATE OF stock ON item WHEN NEW.stock < 0 BEGIN
    UPDATE item SET stock = 0 WHERE id = NEW.id;
END;

-- Columns that merge inside their value, of all types, with defaults and without.
CREATE TABLE post (
    id INTEGER PRIMARY KEY,
    list_id INTEGER REFERENCES list (id) ON DELETE SET NULL,
    title TEXT,
    votes COUNTER NOT NULL DEFAULT 0,
    body CRDT_TEXT NOT NULL DEFAULT '',
    tags CRDT_SET_TEXT NOT NULL DEFAULT '[]',
    steps CRDT_LIST_TEXT DEFAULT '[]',
    meta CRDT_JSON_TEXT DEFAULT '{}',
    aside CRDT_TEXT,
    seen COUNTER
);

INSERT INTO list (id, name) VALUES (1, 'home'), (2, 'work');
INSERT INTO todo (id, list_id, title) VALUES (1, 1, 'milk'), (2, 1, 'bread'), (3, 2, 'report');
INSERT INTO person (id, email, name) VALUES ('ann', 'ann@x', 'Ann'), ('bob', 'bob@x', 'Bob');
INSERT INTO shelf VALUES ('a', 'top'), ('b', 'bottom');
INSERT INTO item (id, shelf, room, place) VALUES (1, 'a', 'hall', 1), (2, 'b', 'hall', 2);
INSERT INTO post (id, votes, body, tags, steps, meta) VALUES
    (1, 3, 'one milk, please', '["home","shop"]', '["buy",{"id":1,"done":false}]',
     '{"box":{"k0":0},"items":[1,2],"k1":"x"}'),
    (2, 0, 'the report', '[]', '[]', '{"box":{},"items":[]}');
