//! Lines of the log that are written together: a write for each would cost a small request a third of its time.

use std::{
    io::{self, Write},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// How long a line waits for others at most.
const DELAY: Duration = Duration::from_millis(50);
/// After how many bytes lines wait no longer.
const ENOUGH: usize = 64 * 1024;

/// A writer of lines. What is a warning or worse is written at once, and all lines before it; so is everything when the buffer
/// is full, so that what reads the log can hold up what writes it, and memory stays bounded. Clones share the buffer.
///
/// A process that is killed loses the lines of the last 50 ms; one that ends must [`flush`](LineBuffer::flush).
#[derive(Clone)]
pub(super) struct LineBuffer(Arc<Shared>);

struct Shared {
    lines: Mutex<Vec<u8>>,
    begun: Condvar,
    out: Mutex<Out>,
}

/// Locked before `lines`, so that what was taken first is written first.
struct Out {
    writer: Box<dyn Write + Send>,
    /// An empty buffer, to be filled next.
    spare: Vec<u8>,
}

impl LineBuffer {
    /// Starts the thread that writes what has waited long enough.
    pub(super) fn new(writer: impl Write + Send + 'static) -> io::Result<Self> {
        let out = Mutex::new(Out { writer: Box::new(writer), spare: Vec::new() });
        let buffer = Self(Arc::new(Shared { lines: Mutex::default(), begun: Condvar::new(), out }));
        let background = buffer.clone();
        thread::Builder::new().name("log".to_owned()).spawn(move || {
            loop {
                let lines = background.lines();
                drop(background.0.begun.wait_while(lines, |lines| lines.is_empty()));
                thread::sleep(DELAY);
                background.flush();
            }
        })?;
        Ok(buffer)
    }

    /// Writes what was gathered.
    pub(super) fn flush(&self) {
        let mut out = lock(&self.0.out);
        let Out { writer, spare } = &mut *out;
        std::mem::swap(spare, &mut self.lines());
        // There is nobody to tell when the log can't be written.
        drop(writer.write_all(spare).and_then(|()| writer.flush()));
        spare.clear();
    }

    fn lines(&self) -> MutexGuard<'_, Vec<u8>> {
        lock(&self.0.lines)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a> MakeWriter<'a> for LineBuffer {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { buffer: self.clone(), at_once: true }
    }

    fn make_writer_for(&'a self, event: &Metadata<'_>) -> Line {
        // Levels are ordered by how much they let through.
        Line { buffer: self.clone(), at_once: *event.level() <= Level::WARN }
    }
}

/// Where one line goes.
pub(super) struct Line {
    buffer: LineBuffer,
    at_once: bool,
}

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut lines = self.buffer.lines();
        let is_first = lines.is_empty();
        lines.extend_from_slice(line);
        let full = lines.len() >= ENOUGH;
        drop(lines);
        if self.at_once || full {
            self.buffer.flush();
        } else if is_first {
            self.buffer.0.begun.notify_one();
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

    /// What was written, and how often.
    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>, Arc<AtomicUsize>);

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1.fetch_add(1, Ordering::SeqCst);
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Page {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    fn write(buffer: &LineBuffer, at_once: bool, line: &str) {
        Line { buffer: buffer.clone(), at_once }.write_all(line.as_bytes()).unwrap();
    }

    #[test]
    fn lines_wait_for_others_but_not_for_long() {
        let page = Page::default();
        let buffer = LineBuffer::new(page.clone()).unwrap();
        for _ in 0..100 {
            write(&buffer, false, "line\n");
        }
        let began = Instant::now();
        while page.text().lines().count() < 100 {
            assert!(began.elapsed() < Duration::from_secs(10), "the lines were never written");
            thread::sleep(Duration::from_millis(1));
        }
        let writes = page.1.load(Ordering::SeqCst);
        assert!(writes < 10, "{writes}");
    }

    #[test]
    fn warnings_do_not_wait_and_overtake_nothing() {
        let page = Page::default();
        let buffer = LineBuffer::new(page.clone()).unwrap();
        write(&buffer, false, "first\n");
        write(&buffer, true, "warning\n");
        assert_eq!(page.text(), "first\nwarning\n");
    }

    #[test]
    fn what_is_gathered_is_bounded_and_whole() {
        let page = Page::default();
        let buffer = LineBuffer::new(page.clone()).unwrap();
        thread::scope(|scope| {
            for writer in 0..4 {
                let buffer = buffer.clone();
                scope.spawn(move || (0..10_000).for_each(|n| write(&buffer, false, &format!("{writer} {n} and some more\n"))));
            }
        });
        buffer.flush();
        let text = page.text();
        for writer in 0..4 {
            let mine: Vec<_> = text.lines().filter_map(|line| line.strip_prefix(&format!("{writer} "))).collect();
            assert!(mine.iter().enumerate().all(|(n, line)| *line == format!("{n} and some more")), "in order, none lost");
            assert_eq!(mine.len(), 10_000);
        }
        assert!(buffer.0.lines.lock().unwrap().capacity() < 4 * ENOUGH);
    }
}
