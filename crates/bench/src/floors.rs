//! Floors: what the machine can do without the product.

use std::{
    fs::File,
    hint::black_box,
    io::Write,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use argon2::{Algorithm, Argon2, Params, Version};
use md5::{Digest, Md5};
use models::documents;
use rusqlite::OpenFlags;
use services::PasswordSettings;
use sha2::Sha256;
use uuid::Uuid;

use crate::LARGE;

/// The size of a read or write, as in the product.
const PIECE: usize = 256 * 1024;

/// Finds documents with the product's own statement, without the product.
pub(crate) enum DatabaseFloor {
    Sqlite { file: PathBuf, documents: Vec<Uuid> },
    Postgres { url: String, document: Uuid },
}

impl DatabaseFloor {
    /// Documents found per second: in SQLite by one thread per core, in PostgreSQL by pgbench over this number of connections.
    pub(crate) fn found_per_second(&self, connections: usize, duration: Duration) -> Result<f64> {
        match self {
            Self::Sqlite { file, documents } => {
                let threads = thread::available_parallelism()?.get();
                let found = thread::scope(|scope| {
                    let finders: Vec<_> = (0..threads).map(|_| scope.spawn(|| find_in_sqlite(file, documents, duration))).collect();
                    let join = |finder: thread::ScopedJoinHandle<'_, _>| finder.join().map_err(|_| anyhow!("a thread panicked"))?;
                    finders.into_iter().map(join).sum::<Result<u64>>()
                })?;
                Ok(found as f64 / duration.as_secs_f64())
            }
            Self::Postgres { url, document } => pgbench(url, *document, connections, duration),
        }
    }
}

fn find_in_sqlite(file: &Path, ids: &[Uuid], duration: Duration) -> Result<u64> {
    let connection = rusqlite::Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    let mut statement = connection.prepare(documents::FIND)?;
    let columns = statement.column_count();
    let began = Instant::now();
    let mut found = 0;
    for id in ids.iter().cycle().take_while(|_| began.elapsed() < duration) {
        let mut rows = statement.query([id.as_bytes()])?;
        let row = rows.next()?.context("a document is missing")?;
        for column in 0..columns {
            black_box(row.get_ref(column)?);
        }
        found += 1;
    }
    Ok(found)
}

fn pgbench(url: &str, document: Uuid, connections: usize, duration: Duration) -> Result<f64> {
    let mut script = tempfile::NamedTempFile::new()?;
    writeln!(script, "{};", documents::FIND.replace("$1", ":id"))?;
    let output = Command::new("pgbench")
        .args(["--no-vacuum", "--protocol=prepared", "--jobs=2", &format!("--client={connections}")])
        .args([&format!("--time={}", duration.as_secs().max(1)), &format!("--define=id={document}")])
        .arg(format!("--file={}", script.path().display()))
        .arg(url)
        .output()
        .context("run pgbench")?;
    ensure!(output.status.success(), "pgbench: {}", String::from_utf8_lossy(&output.stderr));
    let report = String::from_utf8(output.stdout)?;
    let rate = report.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
    rate.context("pgbench reports no rate")
}

/// MD5 and SHA-256 of a large upload in one thread, in bytes per second.
pub(crate) fn hash() -> f64 {
    let piece = vec![7; PIECE];
    bytes_per_second(|| {
        let (mut md5, mut sha256) = (Md5::new(), Sha256::new());
        for size in pieces() {
            md5.update(&piece[..size]);
            sha256.update(&piece[..size]);
        }
        black_box((md5.finalize(), sha256.finalize()));
        Ok(())
    })
    .unwrap_or_default()
}

/// Writing a large upload to a file in this directory with a sync at the end, in bytes per second.
pub(crate) fn write(directory: &Path) -> Result<f64> {
    let piece = vec![7; PIECE];
    bytes_per_second(|| {
        let mut file = tempfile::tempfile_in(directory)?;
        pieces().try_for_each(|size| file.write_all(&piece[..size]))?;
        Ok(file.sync_all()?)
    })
}

fn pieces() -> impl Iterator<Item = usize> {
    (0..LARGE).step_by(PIECE).map(|start| PIECE.min(LARGE - start))
}

fn bytes_per_second(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let began = Instant::now();
    work()?;
    Ok(LARGE as f64 / began.elapsed().as_secs_f64())
}

/// The time to sync 4 KiB of a file (fdatasync): the median of a hundred.
pub(crate) fn sync_a_page(directory: &Path) -> Result<Duration> {
    let file: File = tempfile::tempfile_in(directory)?;
    file.write_all_at(&[0; 4096], 0)?;
    file.sync_all()?;
    median_of(100, |n| {
        file.write_all_at(&[n; 4096], 0)?;
        Ok(file.sync_data()?)
    })
}

/// The time of one Argon2id hash with the product's parameters: the median of nine.
pub(crate) fn argon2id() -> Result<Duration> {
    let PasswordSettings { memory_kib, passes, .. } = PasswordSettings::default();
    let params = Params::new(memory_kib, passes, 1, Some(32)).map_err(|error| anyhow!("{error}"))?;
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    median_of(9, |n| {
        let mut output = [0; 32];
        argon2.hash_password_into(b"correct horse battery 1", &[n; 16], &mut output).map_err(|error| anyhow!("{error}"))?;
        black_box(output);
        Ok(())
    })
}

fn median_of(times: u8, mut work: impl FnMut(u8) -> Result<()>) -> Result<Duration> {
    let mut durations = Vec::new();
    for n in 0..times {
        let began = Instant::now();
        work(n)?;
        durations.push(began.elapsed());
    }
    durations.sort_unstable();
    Ok(durations[durations.len() / 2])
}
