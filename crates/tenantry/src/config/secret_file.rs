//! A secret that is generated once and kept in a file, for installations that set none.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

use secrecy::SecretString;

use super::{ConfigError, tokens::parse_secret, variables};

/// The secret in the file, which is created first if it is missing (with mode 0600, in a directory with mode 0700). Processes
/// that start at the same time get the same secret, and a returned secret survives a power failure.
///
/// # Errors
/// When the file cannot be read or created, when other users can read it, or when it contains no valid secret.
pub(super) fn keep(path: &Path) -> Result<SecretString, ConfigError> {
    let failed = |problem: String, remedy: String| Err(ConfigError::new(path.display().to_string(), problem, remedy));
    match read_or_create(path) {
        Err(error) => failed(
            format!("cannot be read or created: {error}"),
            format!("make its directory writable or set {}", variables::JWT_SECRET_KEY.name),
        ),
        Ok((_, mode)) if mode & 0o077 != 0 => failed(
            format!("holds a secret that other users can read (mode {mode:04o})"),
            format!("run \"chmod 600 {}\", or delete it to create a new secret, which ends all sessions", path.display()),
        ),
        Ok((text, _)) => parse_secret(text.trim())
            .or_else(|problem| failed(problem, "delete it to create a new secret, which ends all sessions".to_owned())),
    }
}

fn read_or_create(path: &Path) -> io::Result<(String, u32)> {
    match read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            create(path, &hex::encode(domain::random_bytes::<32>()))?;
            read(path)
        }
        result => result,
    }
}

/// The text and the permission bits, both of the same open file.
fn read(path: &Path) -> io::Result<(String, u32)> {
    let file = File::open(path)?;
    let mode = file.metadata()?.permissions().mode() & 0o7777;
    Ok((io::read_to_string(file)?, mode))
}

/// Creates a file with a text unless the file exists. Writes the text under another name and links it, so that no process
/// reads a part of it and the first of several processes wins.
fn create(path: &Path, text: &str) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let draft = path.with_extension(hex::encode(domain::random_bytes::<8>()));
    let written = write(&draft, text).and_then(|()| match fs::hard_link(&draft, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    });
    fs::remove_file(&draft)?;
    written?;
    File::open(directory)?.sync_all()
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, sync::Barrier, thread};

    use secrecy::ExposeSecret;

    use super::*;

    const STARTERS: usize = 8;

    /// The number of different secrets of processes that start at the same time. (Threads stand for processes, since they
    /// share nothing but the file system.)
    fn different_secrets(path: &Path, keep: impl Fn(&Path) -> String + Sync) -> usize {
        let start = Barrier::new(STARTERS);
        let start_one = || {
            start.wait();
            keep(path)
        };
        let secrets: BTreeSet<String> = thread::scope(|scope| {
            let starters: Vec<_> = (0..STARTERS).map(|_| scope.spawn(start_one)).collect();
            starters.into_iter().map(|starter| starter.join().unwrap()).collect()
        });
        secrets.len()
    }

    #[test]
    fn processes_that_start_at_once_get_one_secret() {
        let place = tempfile::tempdir().unwrap();
        for round in 0..20 {
            let directory = place.path().join(round.to_string());
            let kept = |path: &Path| keep(path).unwrap().expose_secret().to_owned();
            assert_eq!(different_secrets(&directory.join("data/jwt_secret"), kept), 1);
            let files: Vec<_> = fs::read_dir(directory.join("data")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert_eq!(files, ["jwt_secret"]);
        }
    }

    /// The control of the test above, which detects an implementation that checks before it writes.
    #[test]
    fn a_check_before_the_write_is_detected() {
        let place = tempfile::tempdir().unwrap();
        let looked = Barrier::new(STARTERS);
        let careless = |path: &Path| {
            let secret = hex::encode(domain::random_bytes::<32>());
            let is_there = path.exists();
            looked.wait();
            if is_there { fs::read_to_string(path).unwrap() } else { fs::write(path, &secret).map(|()| secret).unwrap() }
        };
        assert_eq!(different_secrets(&place.path().join("jwt_secret"), careless), STARTERS);
    }

    #[test]
    fn only_the_owner_can_read_it() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("data/jwt_secret");
        keep(&path).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));

        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let line = keep(&path).unwrap_err().to_string();
        assert!(line.contains("other users can read (mode 0640)") && line.contains(&format!("chmod 600 {}", path.display())), "{line}");
    }

    #[test]
    fn an_invalid_secret_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("jwt_secret");
        write(&path, "").unwrap();
        let line = keep(&path).unwrap_err().to_string();
        assert!(
            line.ends_with("jwt_secret must be at least 32 bytes long; delete it to create a new secret, which ends all sessions"),
            "{line}"
        );

        let line = keep(&path.join("below a file")).unwrap_err().to_string();
        assert!(line.contains("cannot be read or created: ") && line.ends_with("or set JWT_SECRET_KEY"), "{line}");
    }
}
