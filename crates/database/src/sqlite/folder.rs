//! A folder with an SQLite file for every tenant.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use domain::{TenantPlace, failpoint};

use super::{
    error::from_rusqlite,
    file::SqliteFile,
    migrate::migrate,
    open::{Access, open_file},
    threads::SqliteThreads,
};
use crate::{
    error::{Error, Result},
    schema::Schema,
};

/// The extension of a file under construction. The next attempt overwrites what a crash left under such a name.
const UNFINISHED: &str = "new";

/// A folder with a file for every tenant.
#[derive(Debug)]
pub(crate) struct SqliteFolder {
    path: PathBuf,
    pub(crate) threads: SqliteThreads,
    /// A file with the current schema and no identity, as bytes. Created once per process: copying it is faster than running the
    /// migrations.
    template: OnceLock<Vec<u8>>,
}

impl SqliteFolder {
    pub(crate) fn new(path: PathBuf, threads: SqliteThreads) -> Arc<Self> {
        Arc::new(Self { path, threads, template: OnceLock::new() })
    }

    /// The path of a tenant's file.
    pub(crate) fn path_of(&self, location: &TenantPlace) -> PathBuf {
        self.path.join(format!("{}.sqlite3", location.database))
    }

    /// A handle on a tenant's file.
    pub(crate) fn file(&self, location: &TenantPlace) -> Arc<SqliteFile> {
        SqliteFile::new(self.path_of(location), Some(location.tenant_id), self.threads.clone())
    }

    /// Creates a tenant's file with schema and identity, unless it exists. Returns whether it is new.
    pub(crate) async fn create(self: &Arc<Self>, location: &TenantPlace) -> Result<bool> {
        let (folder, location) = (Arc::clone(self), location.clone());
        self.threads.run(move || folder.create_file(&location)).await
    }

    /// Deletes a tenant's file. A missing one is no error.
    pub(crate) async fn drop_database(self: &Arc<Self>, location: &TenantPlace) -> Result<()> {
        let (folder, path) = (self.path.clone(), self.path_of(location));
        let delete = move || match fs::File::open(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            // A creation whose caller has gone may still run on its thread.
            lock => lock.and_then(|lock| {
                lock.lock()?;
                delete_files(&path.with_extension(UNFINISHED)).and_then(|()| delete_files(&path))
            }),
        };
        self.threads.run(move || delete().map_err(Error::unavailable)).await
    }

    /// Whether any file of a tenant exists, an unfinished one included.
    pub(crate) async fn exists(&self, location: &TenantPlace) -> Result<bool> {
        let path = self.path_of(location);
        let exists = move || any_exists(&path.with_extension(UNFINISHED)).and_then(|remnant| Ok(remnant || any_exists(&path)?));
        self.threads.run(move || exists().map_err(Error::unavailable)).await
    }

    /// Whether the folder exists or can be created.
    pub(crate) async fn ping(&self) -> Result<()> {
        let path = self.path.clone();
        self.threads.run(move || create_private_folder(&path).map_err(Error::unavailable)).await
    }

    /// Completes the file under another name and then renames it, so that it is either complete or missing.
    fn create_file(&self, location: &TenantPlace) -> Result<bool> {
        let path = self.path_of(location);
        create_private_folder(&self.path).map_err(Error::unavailable)?;
        // One at a time over all processes: of two that create the same file, the slower one must not replace the other's file,
        // which is already in use, by an empty one.
        let lock = fs::File::open(&self.path).map_err(Error::unavailable)?;
        lock.lock().map_err(Error::unavailable)?;
        let is_new = !path.exists();
        if is_new {
            let unfinished = path.with_extension(UNFINISHED);
            write_unfinished(&unfinished, self.template()?, Schema::NewTenant(location.tenant_id))?;
            failpoint!("tenant.file_written");
            let file = fs::File::open(&unfinished).map_err(Error::unavailable)?;
            file.sync_all().and_then(|()| fs::rename(&unfinished, &path)).map_err(Error::unavailable)?;
            failpoint!("tenant.file_renamed");
        }
        lock.sync_all().map_err(Error::unavailable)?;
        Ok(is_new)
    }

    fn template(&self) -> Result<&[u8]> {
        if let Some(template) = self.template.get() {
            return Ok(template);
        }
        let path = self.path.join("template").with_extension(UNFINISHED);
        write_unfinished(&path, &[], Schema::TenantTemplate)?;
        let template = fs::read(&path).map_err(Error::unavailable)?;
        fs::remove_file(&path).map_err(Error::unavailable)?;
        Ok(self.template.get_or_init(|| template))
    }
}

/// The files of a database. The log first: a database without its log is complete, a log without its database is useless.
fn parts(path: &Path) -> [PathBuf; 3] {
    ["-wal", "-shm", ""].map(|suffix| {
        let mut file = path.as_os_str().to_owned();
        file.push(suffix);
        file.into()
    })
}

fn delete_files(path: &Path) -> io::Result<()> {
    for file in parts(path) {
        match fs::remove_file(file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn any_exists(path: &Path) -> io::Result<bool> {
    for file in parts(path) {
        if file.try_exists()? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Creates a folder that only its owner may open, unless it exists.
fn create_private_folder(folder: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Writes a file that only its owner may read. SQLite gives its log the same permissions.
fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?.write_all(content)
}

/// Writes a database that has no readers yet; nothing of it is durable.
fn write_unfinished(path: &Path, content: &[u8], schema: Schema) -> Result<()> {
    // Otherwise the log of an interrupted attempt would be applied to the new file.
    delete_files(path).and_then(|()| write_private(path, content)).map_err(Error::unavailable)?;
    let connection = open_file(path, Access::Write, None)?;
    connection.execute_batch("PRAGMA synchronous = OFF").map_err(from_rusqlite)?;
    migrate(&connection, schema)?;
    // Closing moves everything from the log into the file.
    connection.close().map_err(|(_, error)| from_rusqlite(error))
}
