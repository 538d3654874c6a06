//! Configuration: environment variables and `.env`, read once at startup into plain structs.
//!
//! Parsing, `tenantry check` and `.env.example` use one table of variables, [`VARIABLES`]. The first invalid variable stops
//! the program with one line that names the variable, the problem and a remedy.

mod databases;
mod documents;
mod effective;
mod events;
mod first_user;
mod kafka;
mod limits;
mod log;
mod objects;
mod passwords;
mod secret_file;
mod server;
mod settings;
mod tokens;
mod values;
mod variables;

use std::path::{Path, PathBuf};

use worker::KafkaSettings;

pub use self::{
    databases::{Databases, TenantServer},
    documents::Documents,
    events::Events,
    first_user::FirstUser,
    limits::Limits,
    log::{Log, LogFormat},
    objects::Objects,
    passwords::Passwords,
    server::Server,
    settings::{Setting, Settings},
    tokens::Tokens,
    values::bytes as parse_bytes,
    variables::{Fallback, VARIABLES, Variable},
};

/// All settings of an operator. The `Debug` form shows no secret.
#[derive(Clone, Debug)]
pub struct Config {
    /// The environment of the process.
    pub environment: Environment,
    /// The directory for everything that is kept on the local file system.
    pub data_dir: PathBuf,
    /// The address of the API, and its limits.
    pub server: Server,
    /// Which other web sites may call the API from a browser.
    pub cors: api::Cors,
    /// Limits of clients and users.
    pub limits: Limits,
    /// The locations of the databases.
    pub databases: Databases,
    /// The object storage.
    pub objects: Objects,
    /// The signing keys and lifetimes of tokens.
    pub tokens: Tokens,
    /// The limits of password hashing.
    pub passwords: Passwords,
    /// The limits of uploads and downloads.
    pub documents: Documents,
    /// The retention of events.
    pub events: Events,
    /// The Kafka cluster for events, unless this process handles them itself.
    pub kafka: Option<KafkaSettings>,
    /// What `tenantry init` creates.
    pub first_user: FirstUser,
    /// The filter and format of the log.
    pub log: Log,
    description: Vec<Setting>,
}

impl Config {
    /// Reads the environment of the process and the `.env` of its working directory.
    ///
    /// # Errors
    /// The first variable that is unknown, malformed or unsafe, or that needs a feature which this program was built without.
    pub fn from_process() -> Result<Self, ConfigError> {
        let config = Self::load(process_environment(), Path::new("."))?;
        config.kafka.as_ref().map_or(Ok(()), kafka::check_support)?;
        Ok(config)
    }

    /// Reads the given environment and the `.env` of the given working directory; the environment takes precedence. Relative
    /// paths start at that directory. Outside production, creates a missing JWT secret and keeps it in the data directory.
    ///
    /// # Errors
    /// The first variable that is unknown, malformed or unsafe.
    pub fn load(environment: impl IntoIterator<Item = (String, String)>, working_dir: &Path) -> Result<Self, ConfigError> {
        let mut settings = Settings::gather(environment, working_dir)?;
        let environment = settings.get(&variables::TENANTRY_ENV, Environment::parse)?;
        let data_dir = settings.get(&variables::DATA_DIR, settings.path())?;
        Ok(Self {
            server: Server::read(&mut settings, environment)?,
            cors: server::read_cors(&mut settings, environment)?,
            limits: Limits::read(&mut settings)?,
            databases: Databases::read(&mut settings, &data_dir)?,
            objects: Objects::read(&mut settings)?,
            passwords: Passwords::read(&mut settings)?,
            documents: Documents::read(&mut settings)?,
            events: Events::read(&mut settings)?,
            kafka: kafka::read(&mut settings)?,
            first_user: FirstUser::read(&mut settings)?,
            log: Log::read(&mut settings, environment)?,
            tokens: Tokens::read(&mut settings, environment, &data_dir)?,
            environment,
            data_dir,
            description: settings.into_description(),
        })
    }

    /// Every variable in the table's order, with its effective value, secrets hidden.
    #[must_use]
    pub fn describe(&self) -> &[Setting] {
        &self.description
    }
}

/// The only place that reads the environment of the process. Skips names that are not UTF-8, and replaces what is not UTF-8
/// in a value by U+FFFD, which [`Settings`] refuses.
fn process_environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())))
}

/// An invalid configuration: one line for the operator, which shows no secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{variable} {problem}; {remedy}")]
pub struct ConfigError {
    /// The invalid variable or file.
    pub variable: String,
    /// The problem, in words that follow the name.
    pub problem: String,
    /// How to fix it.
    pub remedy: String,
}

impl ConfigError {
    fn new(variable: impl Into<String>, problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { variable: variable.into(), problem: problem.into(), remedy: remedy.into() }
    }

    fn of(variable: &Variable, problem: impl Into<String>) -> Self {
        Self::new(variable.name, problem, format!("for example {}={}", variable.name, variable.example()))
    }
}

/// The environment of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Environment {
    /// On a developer's machine: needs no settings.
    Development,
    /// For customers: refuses unsafe settings.
    Production,
    /// In automatic tests; otherwise like development.
    Testing,
}

impl Environment {
    /// The environment's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Development => "development",
            Self::Production => "production",
            Self::Testing => "testing",
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        [Self::Development, Self::Production, Self::Testing]
            .into_iter()
            .find(|environment| environment.as_str() == text)
            .ok_or_else(|| "must be development, production or testing".to_owned())
    }
}

#[cfg(test)]
mod tests;
