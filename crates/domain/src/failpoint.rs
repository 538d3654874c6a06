//! Failpoints: places where a test makes the process abort, to check what a crash there leaves behind.

/// Aborts the process here if its environment has `FAILPOINT=name`, or at the third pass with `FAILPOINT=name:3`. Without the
/// cargo feature `failpoints`, which only test builds enable, this expands to nothing.
#[cfg(feature = "failpoints")]
#[macro_export]
macro_rules! failpoint {
    ($name:literal) => {
        $crate::failpoint_reached($name)
    };
}

/// Expands to nothing outside test builds.
#[cfg(not(feature = "failpoints"))]
#[macro_export]
macro_rules! failpoint {
    ($name:literal) => {};
}

/// Aborts if this failpoint is armed and due. An abort runs no destructor and flushes nothing, like a SIGKILL.
#[cfg(feature = "failpoints")]
#[doc(hidden)]
pub fn failpoint_reached(name: &str) {
    use std::sync::{
        LazyLock,
        atomic::{AtomicU32, Ordering},
    };
    #[expect(clippy::disallowed_methods, reason = "not configuration: release builds have no failpoints")]
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
