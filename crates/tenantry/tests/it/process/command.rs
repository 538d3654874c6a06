//! Commands that run to their end.

use std::{
    fs::File,
    io::Read,
    path::Path,
    process::{Command, Output, Stdio},
};

use rustix::{
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};
use serde_json::Value;

/// The exit code and the output of a command.
#[derive(Debug)]
pub(crate) struct CommandOutput {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl CommandOutput {
    pub(crate) fn of(command: &mut Command) -> Self {
        let Output { status, stdout, stderr } = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { code: status.code(), out: text(stdout), err: text(stderr) }
    }

    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self
    }

    /// The output of a command with `--json`.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|_| panic!("{self:#?}"))
    }

    /// The only line on standard error of a command that failed with this exit code.
    #[track_caller]
    pub(crate) fn error_line(&self, code: i32) -> &str {
        assert_eq!((self.code, self.err.lines().count()), (Some(code), 1), "{self:#?}");
        self.err.trim_end()
    }
}

/// Runs a command whose standard error is a terminal of 100 columns. Returns its output, and what the terminal received.
pub(crate) fn on_terminal(command: &mut Command) -> (CommandOutput, String) {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&ours).unwrap();
    unlockpt(&ours).unwrap();
    let size = Winsize { ws_row: 24, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&ours, size).unwrap();
    let path = ptsname(&ours, Vec::new()).unwrap();
    let theirs = File::options().read(true).write(true).open(Path::new(path.to_str().unwrap())).unwrap();
    let mut ours = File::from(ours);
    let seen = std::thread::spawn(move || {
        let mut seen = Vec::new();
        // Ends with an error when the other side is closed.
        drop(ours.read_to_end(&mut seen));
        String::from_utf8_lossy(&seen).into_owned()
    });
    let child = command.env("TERM", "xterm").stderr(theirs).stdout(Stdio::piped()).spawn().unwrap();
    let Output { status, stdout, .. } = child.wait_with_output().unwrap();
    // Closes the command's copy of the other side.
    command.stderr(Stdio::null());
    let output = CommandOutput { code: status.code(), out: String::from_utf8(stdout).unwrap(), err: String::new() };
    (output, seen.join().unwrap())
}
