//! A secret that is made once and kept in a file of its own, for everybody who starts without one.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

use secrecy::SecretString;

use super::{ConfigError, tokens::parse_secret, variables};

/// The secret in the file, which is made first when it isn't there (with mode 0600, in a directory that is made with 0700).
/// Whoever starts at the same time gets the same secret, and it survives a power failure once it was returned.
///
/// # Errors
/// When the file can't be read or made, when others than its owner can read it, or when no secret is in it.
pub(super) fn keep(path: &Path) -> Result<SecretString, ConfigError> {
    let failed = |problem: String, remedy: String| Err(ConfigError::new(path.display().to_string(), problem, remedy));
    match read_or_make(path) {
        Err(error) => {
            failed(format!("can't be kept: {error}"), format!("make its directory writable or set {}", variables::JWT_SECRET_KEY.name))
        }
        Ok((_, mode)) if mode & 0o077 != 0 => failed(
            format!("holds a secret that others can read (mode {mode:04o})"),
            format!("if nobody did, \"chmod 600 {}\", else delete it: a new one is made, which ends all sessions", path.display()),
        ),
        Ok((text, _)) => {
            parse_secret(text.trim()).or_else(|problem| failed(problem, "delete it: a new one is made, which ends all sessions".to_owned()))
        }
    }
}

fn read_or_make(path: &Path) -> io::Result<(String, u32)> {
    match read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make(path, &hex::encode(domain::random_bytes::<32>()))?;
            read(path)
        }
        result => result,
    }
}

/// The file's text and its permission bits, both of the same file.
fn read(path: &Path) -> io::Result<(String, u32)> {
    let file = File::open(path)?;
    let mode = file.metadata()?.permissions().mode() & 0o7777;
    Ok((io::read_to_string(file)?, mode))
}

/// Puts a text under a name unless something is there already. It is written under another name first and then linked, so
/// that nobody ever sees a part of it and the first of several wins.
fn make(path: &Path, text: &str) -> io::Result<()> {
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

    /// How many different secrets processes have that start at the same time. (Threads stand for processes: all they share
    /// is the file system.)
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
    fn who_starts_at_once_agrees_on_one_secret() {
        let place = tempfile::tempdir().unwrap();
        for round in 0..20 {
            let directory = place.path().join(round.to_string());
            let kept = |path: &Path| keep(path).unwrap().expose_secret().to_owned();
            assert_eq!(different_secrets(&directory.join("data/jwt_secret"), kept), 1);
            let left: Vec<_> = fs::read_dir(directory.join("data")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert_eq!(left, ["jwt_secret"]);
        }
    }

    /// The control of the test above: one who looks first and writes then is caught by it.
    #[test]
    fn who_looks_before_writing_does_not_agree() {
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
    fn nobody_else_can_read_it() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("data/jwt_secret");
        keep(&path).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));

        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let line = keep(&path).unwrap_err().to_string();
        assert!(line.contains("others can read (mode 0640)") && line.contains(&format!("chmod 600 {}", path.display())), "{line}");
    }

    #[test]
    fn what_is_no_secret_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("jwt_secret");
        write(&path, "").unwrap();
        let line = keep(&path).unwrap_err().to_string();
        assert!(
            line.ends_with("jwt_secret must be at least 32 bytes long; delete it: a new one is made, which ends all sessions"),
            "{line}"
        );

        let line = keep(&path.join("below a file")).unwrap_err().to_string();
        assert!(line.contains("can't be kept: ") && line.ends_with("or set JWT_SECRET_KEY"), "{line}");
    }
}
