-- Facts about the home: `home` (its id), `log-key` (the public key that signs), `checkpoint` (the newest one's line).
CREATE TABLE meta (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- The log. `line` is what is exported and hashed, without its newline.
CREATE TABLE log (
    seq  INTEGER PRIMARY KEY,
    line TEXT NOT NULL
) STRICT;

-- It only grows, at its end. Whoever prunes takes the second one away for that, inside one transaction. The third one is
-- met by every line: FAIL, as ABORT would have each keep a copy of the page that it changes.
CREATE TRIGGER log_no_change BEFORE UPDATE ON log BEGIN
    SELECT RAISE(ABORT, 'the log is never changed');
END;
CREATE TRIGGER log_no_removal BEFORE DELETE ON log BEGIN
    SELECT RAISE(ABORT, 'nothing is removed from the log');
END;
CREATE TRIGGER log_at_the_end BEFORE INSERT ON log
WHEN NEW.seq <> ifnull((SELECT max(seq) FROM log), 0) + 1 BEGIN
    SELECT RAISE(FAIL, 'the log grows at its end');
END;

-- What one agent keeps with one component. `bytes` is what counts against its quota.
CREATE TABLE space (
    id        INTEGER PRIMARY KEY,
    agent     TEXT NOT NULL,
    component TEXT NOT NULL,
    bytes     INTEGER NOT NULL,
    UNIQUE (agent, component)
) STRICT;

-- A bucket with at least one key. `version` is the line of the log whose commit last added or removed a key.
CREATE TABLE bucket (
    id      INTEGER PRIMARY KEY,
    space   INTEGER NOT NULL,
    name    TEXT NOT NULL,
    version INTEGER NOT NULL,
    UNIQUE (space, name)
) STRICT;

-- `version` is the line of the log whose commit last set the key.
CREATE TABLE kv (
    bucket  INTEGER NOT NULL,
    key     TEXT NOT NULL,
    version INTEGER NOT NULL,
    value   BLOB NOT NULL,
    PRIMARY KEY (bucket, key)
) STRICT, WITHOUT ROWID;

-- Host processes that have opened the home and not closed it. Nothing of theirs is in the log before `first_seq`.
CREATE TABLE host (
    id        TEXT PRIMARY KEY,
    pid       INTEGER NOT NULL,
    first_seq INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
