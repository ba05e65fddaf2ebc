-- Times are milliseconds since 1970 (UTC). Digests and keys are blobs of their bytes.

CREATE TABLE sites (
    site        TEXT PRIMARY KEY,
    role        TEXT NOT NULL CHECK (role IN ('trainer', 'evaluator')),
    status      TEXT NOT NULL CHECK (status IN ('active', 'revoked')),
    signing_key BLOB NOT NULL CHECK (length(signing_key) = 32),
    enrolled_at INTEGER NOT NULL
) STRICT;

CREATE TABLE certificates (
    serial     BLOB PRIMARY KEY CHECK (length(serial) = 16),
    site       TEXT NOT NULL REFERENCES sites (site),
    not_after  INTEGER NOT NULL,
    revoked_at INTEGER
) STRICT;

CREATE TABLE invites (
    token_hash BLOB PRIMARY KEY CHECK (length(token_hash) = 32),
    site       TEXT NOT NULL,
    role       TEXT NOT NULL CHECK (role IN ('trainer', 'evaluator')),
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    used_at    INTEGER
) STRICT;

CREATE TABLE studies (
    digest   BLOB PRIMARY KEY CHECK (length(digest) = 32),
    name     TEXT NOT NULL,
    document BLOB NOT NULL,
    added_at INTEGER NOT NULL
) STRICT;

CREATE TABLE approvals (
    study BLOB NOT NULL REFERENCES studies (digest),
    site  TEXT NOT NULL REFERENCES sites (site),
    at    INTEGER NOT NULL,
    PRIMARY KEY (study, site)
) STRICT;

-- What each site says it has, in the exact bytes that it signed.
CREATE TABLE manifests (
    study     BLOB NOT NULL REFERENCES studies (digest),
    site      TEXT NOT NULL REFERENCES sites (site),
    document  BLOB NOT NULL,
    signature BLOB NOT NULL,
    at        INTEGER NOT NULL,
    PRIMARY KEY (study, site)
) STRICT;

-- The journal: events since the snapshot of the same study.
CREATE TABLE events (
    study BLOB NOT NULL REFERENCES studies (digest),
    seq   INTEGER NOT NULL,
    at    INTEGER NOT NULL,
    event TEXT NOT NULL,
    PRIMARY KEY (study, seq)
) STRICT;

CREATE TABLE snapshots (
    study BLOB PRIMARY KEY REFERENCES studies (digest),
    seq   INTEGER NOT NULL,
    state TEXT NOT NULL
) STRICT;

CREATE TABLE rounds (
    study     BLOB NOT NULL REFERENCES studies (digest),
    round     INTEGER NOT NULL,
    opened_at INTEGER NOT NULL,
    closed_at INTEGER,
    outcome   TEXT,
    model     BLOB CHECK (model IS NULL OR length(model) = 32),
    sites     TEXT NOT NULL DEFAULT '[]',
    PRIMARY KEY (study, round)
) STRICT;

CREATE TABLE losses (
    study BLOB NOT NULL REFERENCES studies (digest),
    round INTEGER NOT NULL,
    site  TEXT NOT NULL REFERENCES sites (site),
    step  INTEGER NOT NULL,
    steps INTEGER NOT NULL,
    loss  REAL NOT NULL,
    PRIMARY KEY (study, round, site, step)
) STRICT;

CREATE TABLE receipts (
    attempt BLOB PRIMARY KEY CHECK (length(attempt) = 16),
    study   BLOB NOT NULL REFERENCES studies (digest),
    site    TEXT NOT NULL REFERENCES sites (site),
    round   INTEGER NOT NULL,
    hash    BLOB NOT NULL CHECK (length(hash) = 32),
    bytes   INTEGER NOT NULL,
    at      INTEGER NOT NULL
) STRICT;

-- Evaluators' reports, in the exact bytes that they signed.
CREATE TABLE evaluations (
    study     BLOB NOT NULL REFERENCES studies (digest),
    model     BLOB NOT NULL CHECK (length(model) = 32),
    site      TEXT NOT NULL REFERENCES sites (site),
    document  BLOB NOT NULL,
    signature BLOB NOT NULL,
    at        INTEGER NOT NULL,
    PRIMARY KEY (study, model, site)
) STRICT;

CREATE TABLE traffic (
    site     TEXT PRIMARY KEY REFERENCES sites (site),
    received INTEGER NOT NULL,
    sent     INTEGER NOT NULL
) STRICT;
