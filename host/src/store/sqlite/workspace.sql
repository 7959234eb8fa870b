-- What was decided about changes of files, until they are carried out. No digest: it was decided that they are not.
CREATE TABLE workspace (
    id     TEXT PRIMARY KEY,
    path   TEXT NOT NULL,
    digest TEXT
) STRICT, WITHOUT ROWID;
