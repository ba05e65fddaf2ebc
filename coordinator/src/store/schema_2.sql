-- What each site's update was in the model of a round: its share of the average, and its norm. Of rounds of before there is none.
CREATE TABLE contributions (
    study BLOB NOT NULL REFERENCES studies (digest),
    round INTEGER NOT NULL,
    site  TEXT NOT NULL,
    share REAL NOT NULL,
    norm  REAL NOT NULL,
    PRIMARY KEY (study, round, site)
) STRICT;
