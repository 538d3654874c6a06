//! The filter and format of the log.

use tracing_subscriber::filter::{EnvFilter, LevelFilter};

use super::{ConfigError, Environment, Settings, variables};

/// The filter and format of the log.
#[derive(Clone, Debug)]
pub struct Log {
    /// A valid filter of `tracing_subscriber`.
    pub filter: String,
    /// The format of the lines.
    pub format: LogFormat,
}

/// The format of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object per line.
    Json,
}

impl Log {
    pub(super) fn read(settings: &mut Settings, environment: Environment) -> Result<Self, ConfigError> {
        Ok(Self {
            filter: settings.get(&variables::LOG_LEVEL, |text| parse_filter(text, environment))?,
            format: settings.get(&variables::LOG_FORMAT, LogFormat::parse)?,
        })
    }
}

fn parse_filter(text: &str, environment: Environment) -> Result<String, String> {
    // The parser would take a word that is not a level for the name of a module, and log everything of that module.
    let is_directive = |part: &str| part.contains('=') || (!part.is_empty() && part.parse::<LevelFilter>().is_ok());
    let problem = || "must be error, warn, info, debug, trace or a filter like info,tenantry=debug".to_owned();
    if !text.split(',').all(|part| is_directive(part.trim())) {
        return Err(problem());
    }
    let filter = EnvFilter::builder().parse(text).map_err(|_| problem())?;
    let debugs = filter.max_level_hint().is_none_or(|level| level > LevelFilter::INFO);
    if debugs && environment == Environment::Production {
        return Err("must be error, warn or info in production: debug output may contain confidential data".to_owned());
    }
    Ok(text.to_owned())
}

impl LogFormat {
    /// The format's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        [Self::Text, Self::Json].into_iter().find(|format| format.as_str() == text).ok_or_else(|| "must be text or json".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{PRODUCTION, Workplace, problem};

    #[test]
    fn levels_and_filters_are_parsed() {
        for text in ["error", "WARN", "info,tenantry=debug", "info,api[request]=trace"] {
            assert_eq!(Workplace::new().load(&[("LOG_LEVEL", text)]).unwrap().log.filter, text);
        }
        for text in ["", "inof", "loud", "tenantry=loud", "info,,", "4999"] {
            assert!(problem(&[("LOG_LEVEL", text)]).starts_with("LOG_LEVEL must be error, warn, info, debug, trace or a filter"), "{text}");
        }
        assert_eq!(problem(&[("LOG_FORMAT", "xml")]), "LOG_FORMAT must be text or json, not \"xml\"; for example LOG_FORMAT=text");
    }

    #[test]
    fn production_refuses_debug_output() {
        for text in ["debug", "trace", "info,tenantry=debug", "info,api[request]=trace"] {
            let line = problem(&[PRODUCTION, &[("LOG_LEVEL", text)]].concat());
            assert!(line.starts_with("LOG_LEVEL must be error, warn or info in production"), "{line}");
        }
        Workplace::new().load(&[PRODUCTION, &[("LOG_LEVEL", "info,hyper=warn")]].concat()).unwrap();
    }
}
