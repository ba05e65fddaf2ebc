//! The database's schema and its versions.
//!
//! The version is SQLite's `user_version`. An older database is copied beside itself, then brought up step by step, each
//! step in one transaction; a newer one is refused: an old binary must not guess at what a new one wrote.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use sqlx::{Connection, Row, SqliteConnection};

use super::StoreError;
use crate::files;

/// Step `n` brings version `n` to `n + 1`; steps are never edited once released.
pub(super) const STEPS: &[&str] = &[include_str!("schema_1.sql"), include_str!("schema_2.sql")];

/// Brings the database at `path`, open as `connection`, to the last version of `steps`.
///
/// # Errors
/// [`StoreError::Newer`], or what SQLite says; a failed step leaves the version before it.
pub(super) async fn migrate(
    connection: &mut SqliteConnection,
    path: &Path,
    steps: &[&str],
) -> Result<(), StoreError> {
    let found = version(connection).await?;
    let known = steps.len();
    if found > known {
        return Err(StoreError::Newer { path: path.to_owned(), found, known });
    }
    if found > 0 && found < known {
        let to = backup_path(path, found);
        // An earlier, interrupted migration may have made it, from the same version.
        if !to.exists() {
            keep_copy(connection, &to).await?;
        }
    }
    for (from, step) in steps.iter().enumerate().skip(found) {
        let mut transaction = connection.begin().await?;
        sqlx::raw_sql(step).execute(&mut *transaction).await?;
        // A pragma takes no parameters; the number is ours.
        sqlx::raw_sql(&format!("PRAGMA user_version = {}", from + 1)).execute(&mut *transaction).await?;
        transaction.commit().await?;
    }
    Ok(())
}

/// Writes the copy to go back to. It has its name once it is whole on the disk: a copy that a full disk or a kill cut short is begun anew.
async fn keep_copy(connection: &mut SqliteConnection, to: &Path) -> Result<(), StoreError> {
    let mut name = to.as_os_str().to_os_string();
    name.push(".unfinished");
    let unfinished = PathBuf::from(name);
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(StoreError::file(&unfinished)(error));
        }
        _ => {}
    }
    back_up(connection, &unfinished).await?;
    let placed = File::open(&unfinished)
        .and_then(|copy| copy.sync_all())
        .and_then(|()| fs::rename(&unfinished, to))
        .and_then(|()| files::sync_dir(files::parent(to)));
    placed.map_err(StoreError::file(to))
}

fn backup_path(path: &Path, version: usize) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".version-{version}"));
    path.with_file_name(name)
}

/// The database's version.
pub(super) async fn version(connection: &mut SqliteConnection) -> Result<usize, StoreError> {
    let row = sqlx::query("PRAGMA user_version").fetch_one(connection).await?;
    let version: i64 = row.try_get(0)?;
    Ok(usize::try_from(version).unwrap_or(usize::MAX))
}

/// Writes the database as it is now into the new file `to`.
pub(super) async fn back_up(connection: &mut SqliteConnection, to: &Path) -> Result<(), StoreError> {
    let to = to.to_string_lossy();
    sqlx::query("VACUUM INTO ?").bind(to.as_ref()).execute(connection).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use sqlx::ConnectOptions;
    use sqlx::sqlite::SqliteConnectOptions;

    use super::*;

    async fn open(path: &Path) -> SqliteConnection {
        SqliteConnectOptions::new().filename(path).create_if_missing(true).connect().await.unwrap()
    }

    #[tokio::test]
    async fn an_older_database_is_backed_up_and_brought_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let mut connection = open(&path).await;
        let first = "CREATE TABLE t (a INTEGER); INSERT INTO t VALUES (7);";
        migrate(&mut connection, &path, &[first]).await.unwrap();
        migrate(&mut connection, &path, &[first, "ALTER TABLE t ADD COLUMN b INTEGER"]).await.unwrap();

        assert_eq!(version(&mut connection).await.unwrap(), 2);
        let mut backup = open(&backup_path(&path, 1)).await;
        assert_eq!(version(&mut backup).await.unwrap(), 1);
        let row = sqlx::query("SELECT * FROM t").fetch_one(&mut backup).await.unwrap();
        assert_eq!((row.len(), row.get::<i64, _>("a")), (1, 7));
    }

    #[tokio::test]
    async fn a_copy_that_was_cut_short_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let mut connection = open(&path).await;
        migrate(&mut connection, &path, &["CREATE TABLE t (a)"]).await.unwrap();
        let copy = backup_path(&path, 1);
        fs::write(dir.path().join("db.version-1.unfinished"), "half").unwrap();
        migrate(&mut connection, &path, &["CREATE TABLE t (a)", "CREATE TABLE b (x)"]).await.unwrap();
        assert_eq!(version(&mut open(&copy).await).await.unwrap(), 1);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "the database and its copy");
    }

    #[tokio::test]
    async fn a_newer_database_is_refused_untouched() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let mut connection = open(&path).await;
        migrate(&mut connection, &path, &["CREATE TABLE a (x)", "CREATE TABLE b (x)"]).await.unwrap();
        let refused = migrate(&mut connection, &path, &["CREATE TABLE a (x)"]).await;
        assert!(matches!(refused, Err(StoreError::Newer { found: 2, known: 1, .. })));
        assert_eq!(version(&mut connection).await.unwrap(), 2);
    }

    #[tokio::test]
    async fn a_step_that_fails_leaves_the_version_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let mut connection = open(&path).await;
        let steps = ["CREATE TABLE a (x)", "CREATE TABLE b (x); CREATE TABLE a (x)"];
        assert!(migrate(&mut connection, &path, &steps).await.is_err());
        assert_eq!(version(&mut connection).await.unwrap(), 1);
        assert!(sqlx::query("SELECT * FROM b").fetch_optional(&mut connection).await.is_err());
    }
}
