//! A buffer for lines of the log: a write per line would cost a small request a third of its time.
//!
//! `tracing-appender` hands every line to a thread. A crash would lose the warning before it, and a document GET takes 4 % more of the
//! processor.

use std::{
    io::{self, Write},
    sync::Arc,
    thread,
    time::Duration,
};

use parking_lot::{Condvar, Mutex};
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// The maximum time that a line is buffered.
const MAX_DELAY: Duration = Duration::from_millis(50);
/// The number of buffered bytes at which they are written at once.
const FLUSH_SIZE: usize = 64 * 1024;

/// A buffered writer of lines. A warning or error is written at once, after the lines before it. A full buffer is written at
/// once, too: a slow reader of the log slows down its writers, and memory stays bounded. Clones share the buffer.
///
/// A process that is killed loses the lines of the last 50 ms; one that exits must call [`flush`](LineBuffer::flush).
#[derive(Clone)]
pub(super) struct LineBuffer(Arc<Shared>);

struct Shared {
    lines: Mutex<Vec<u8>>,
    not_empty: Condvar,
    out: Mutex<Out>,
}

/// Locked before `lines`, so that lines are written in the order in which they were taken.
struct Out {
    writer: Box<dyn Write + Send>,
    /// The empty buffer that `lines` is swapped with.
    spare: Vec<u8>,
}

impl LineBuffer {
    /// Starts the thread that writes the buffered lines.
    pub(super) fn new(writer: impl Write + Send + 'static) -> io::Result<Self> {
        let out = Mutex::new(Out { writer: Box::new(writer), spare: Vec::new() });
        let buffer = Self(Arc::new(Shared { lines: Mutex::default(), not_empty: Condvar::new(), out }));
        let background = buffer.clone();
        thread::Builder::new().name("log".to_owned()).spawn(move || {
            loop {
                background.0.not_empty.wait_while(&mut background.0.lines.lock(), |lines| lines.is_empty());
                thread::sleep(MAX_DELAY);
                background.flush();
            }
        })?;
        Ok(buffer)
    }

    /// Writes the buffered lines.
    pub(super) fn flush(&self) {
        let mut out = self.0.out.lock();
        let Out { writer, spare } = &mut *out;
        std::mem::swap(spare, &mut self.0.lines.lock());
        // A failure to write the log cannot be reported anywhere.
        drop(writer.write_all(spare).and_then(|()| writer.flush()));
        spare.clear();
    }
}

impl<'a> MakeWriter<'a> for LineBuffer {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { buffer: self.clone(), at_once: true }
    }

    fn make_writer_for(&'a self, event: &Metadata<'_>) -> Line {
        // Levels are ordered by verbosity: ERROR < WARN < INFO.
        Line { buffer: self.clone(), at_once: *event.level() <= Level::WARN }
    }
}

/// The writer of one line.
pub(super) struct Line {
    buffer: LineBuffer,
    at_once: bool,
}

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut lines = self.buffer.0.lines.lock();
        let is_first = lines.is_empty();
        lines.extend_from_slice(line);
        let full = lines.len() >= FLUSH_SIZE;
        drop(lines);
        if self.at_once || full {
            self.buffer.flush();
        } else if is_first {
            self.buffer.0.not_empty.notify_one();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::atomic::AtomicUsize, sync::atomic::Ordering, time::Instant};

    use super::*;

    /// The written bytes, and the number of writes.
    #[derive(Clone, Default)]
    struct Output(Arc<Mutex<Vec<u8>>>, Arc<AtomicUsize>);

    impl Write for Output {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1.fetch_add(1, Ordering::SeqCst);
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Output {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().clone()).unwrap()
        }
    }

    fn write(buffer: &LineBuffer, at_once: bool, line: &str) {
        Line { buffer: buffer.clone(), at_once }.write_all(line.as_bytes()).unwrap();
    }

    #[test]
    fn lines_are_written_together_after_a_short_delay() {
        let output = Output::default();
        let buffer = LineBuffer::new(output.clone()).unwrap();
        for _ in 0..100 {
            write(&buffer, false, "line\n");
        }
        let began = Instant::now();
        while output.text().lines().count() < 100 {
            assert!(began.elapsed() < Duration::from_secs(10), "the lines were never written");
            thread::sleep(Duration::from_millis(1));
        }
        let writes = output.1.load(Ordering::SeqCst);
        assert!(writes < 10, "{writes}");
    }

    #[test]
    fn warnings_are_written_at_once_and_in_order() {
        let output = Output::default();
        let buffer = LineBuffer::new(output.clone()).unwrap();
        write(&buffer, false, "first\n");
        write(&buffer, true, "warning\n");
        assert_eq!(output.text(), "first\nwarning\n");
    }

    #[test]
    fn the_buffer_is_bounded_and_loses_nothing() {
        let output = Output::default();
        let buffer = LineBuffer::new(output.clone()).unwrap();
        thread::scope(|scope| {
            for writer in 0..4 {
                let buffer = buffer.clone();
                scope.spawn(move || (0..10_000).for_each(|n| write(&buffer, false, &format!("{writer} {n} and some more\n"))));
            }
        });
        buffer.flush();
        let text = output.text();
        for writer in 0..4 {
            let lines: Vec<_> = text.lines().filter_map(|line| line.strip_prefix(&format!("{writer} "))).collect();
            assert!(lines.iter().enumerate().all(|(n, line)| *line == format!("{n} and some more")), "in order, none lost");
            assert_eq!(lines.len(), 10_000);
        }
        assert!(buffer.0.lines.lock().capacity() < 4 * FLUSH_SIZE);
    }
}
