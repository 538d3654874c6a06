//! Failpoints: places where a test can have the process die, to see what a crash there leaves behind.

/// Marks a place where the process dies when `FAILPOINT=name` (or `FAILPOINT=name:3`, at the third time) is in its
/// environment. Without the cargo feature `failpoints`, which only builds for tests have, this is nothing at all.
#[cfg(feature = "failpoints")]
#[macro_export]
macro_rules! failpoint {
    ($name:literal) => {
        $crate::failpoint_reached($name)
    };
}

/// Nothing: this is not a build for tests.
#[cfg(not(feature = "failpoints"))]
#[macro_export]
macro_rules! failpoint {
    ($name:literal) => {};
}

/// Dies if this is the place and the time. An abort runs no destructor and flushes nothing, like a SIGKILL.
#[cfg(feature = "failpoints")]
#[doc(hidden)]
pub fn failpoint_reached(name: &str) {
    use std::sync::{
        LazyLock,
        atomic::{AtomicU32, Ordering},
    };
    #[expect(clippy::disallowed_methods, reason = "not configuration: builds for users have no failpoints")]
    static ARMED: LazyLock<Option<(String, AtomicU32)>> = LazyLock::new(|| {
        let armed = std::env::var("FAILPOINT").ok()?;
        let (name, times) = armed.split_once(':').unwrap_or((&armed, "1"));
        Some((name.to_owned(), AtomicU32::new(times.parse().ok()?)))
    });
    if let Some((armed, left)) = &*ARMED
        && armed == name
        && left.fetch_sub(1, Ordering::Relaxed) == 1
    {
        std::process::abort();
    }
}
