//! The log: for people or for programs, on standard error.

mod buffer;

use std::io::{self, IsTerminal};

use tracing_subscriber::{
    EnvFilter,
    filter::ParseError,
    fmt::{MakeWriter, SubscriberBuilder},
    util::{SubscriberInitExt, TryInitError},
};

use self::buffer::LineBuffer;
use crate::config::{Log, LogFormat};

/// The log cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The filter is malformed.
    #[error("the log filter is malformed")]
    Filter(#[from] ParseError),
    /// The thread that writes the log cannot be started.
    #[error("cannot start the log thread")]
    Thread(#[from] io::Error),
    /// The log of the process was set up before.
    #[error("the log was set up twice")]
    Twice(#[from] TryInitError),
}

/// Writes the buffered lines of the log when it is dropped, at the end of the process.
pub struct Flush(Option<LineBuffer>);

impl Drop for Flush {
    fn drop(&mut self) {
        if let Some(lines) = &self.0 {
            lines.flush();
        }
    }
}

/// Sets up the log of the process on standard error. On a terminal, lines are written at once, and coloured unless `NO_COLOR`
/// is set; elsewhere, lines are buffered for at most 50 ms, except warnings and errors.
///
/// # Errors
/// When the log of the process was set up before.
pub fn init(log: &Log) -> Result<Flush, LoggingError> {
    if io::stderr().is_terminal() {
        subscriber(log, io::stderr, true)?.try_init()?;
        return Ok(Flush(None));
    }
    let lines = LineBuffer::new(io::stderr())?;
    subscriber(log, lines.clone(), false)?.try_init()?;
    Ok(Flush(Some(lines)))
}

fn subscriber<W>(log: &Log, writer: W, may_colour: bool) -> Result<Box<dyn tracing::Subscriber + Send + Sync>, ParseError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = EnvFilter::builder().parse(&log.filter)?;
    let builder = SubscriberBuilder::default().with_env_filter(filter).with_writer(writer);
    // By default, the builder respects NO_COLOR.
    let builder = if may_colour { builder } else { builder.with_ansi(false) };
    Ok(match log.format {
        LogFormat::Text => Box::new(builder.finish()),
        LogFormat::Json => Box::new(builder.json().flatten_event(true).with_current_span(false).finish()),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use serde_json::{Value, json};

    use super::*;

    #[derive(Clone, Default)]
    struct Output(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Output {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(filter: &str, format: LogFormat) -> String {
        let output = Output::default();
        let writer = output.clone();
        let log = Log { filter: filter.to_owned(), format };
        tracing::subscriber::with_default(subscriber(&log, move || writer.clone(), false).unwrap(), || {
            let _request = tracing::info_span!("request", id = 7).entered();
            tracing::info!(documents = 2, "listed");
            tracing::debug!("in detail");
        });
        let bytes = output.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_text_line_has_level_span_and_fields() {
        let text = logged("info", LogFormat::Text);
        assert!(text.ends_with(" INFO request{id=7}: tenantry::logging::tests: listed documents=2\n"), "{text}");
        assert!(!text.contains('\u{1b}'), "no colours without a terminal: {text}");
    }

    #[test]
    fn a_json_line_has_level_span_and_fields() {
        let text = logged("info", LogFormat::Json);
        let line: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&line["level"], &line["message"], &line["documents"]), (&json!("INFO"), &json!("listed"), &json!(2)));
        assert_eq!(line["spans"], json!([{"name": "request", "id": 7}]));
        assert!(line["timestamp"].as_str().unwrap().ends_with('Z'), "{line}");
    }

    #[test]
    fn the_filter_selects_lines() {
        assert_eq!(logged("error", LogFormat::Text), "");
        assert_eq!(logged("debug", LogFormat::Text).lines().count(), 2);
        assert_eq!(logged("info,tenantry::logging=debug", LogFormat::Text).lines().count(), 2);
    }
}
