//! Configuration: environment variables and `.env`, read once at the start into plain structs.
//!
//! The variables stand in one table, [`VARIABLES`], from which parsing, `tenantry check` and `.env.example` draw. The first
//! problem ends the start with one line that names the variable, what is wrong with it and what would be right.

mod databases;
mod documents;
mod effective;
mod events;
mod first_user;
mod kafka;
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
    log::{Log, LogFormat},
    objects::Objects,
    passwords::Passwords,
    server::{Cors, Origins, Server},
    settings::{Setting, Settings},
    tokens::Tokens,
    values::bytes as parse_bytes,
    variables::{Fallback, VARIABLES, Variable},
};

/// Everything that an operator can set. Its `Debug` form shows no secret.
#[derive(Clone, Debug)]
pub struct Config {
    /// What the process is used for.
    pub environment: Environment,
    /// The directory of all that is kept on the local file system.
    pub data_dir: PathBuf,
    /// How the API is reached.
    pub server: Server,
    /// Which other web sites may call the API from a browser.
    pub cors: Cors,
    /// Where the databases are.
    pub databases: Databases,
    /// Where objects are.
    pub objects: Objects,
    /// How sessions are signed and how long they last.
    pub tokens: Tokens,
    /// How much work goes into hashing passwords at once.
    pub passwords: Passwords,
    /// The limits of uploads and downloads.
    pub documents: Documents,
    /// What happens with events.
    pub events: Events,
    /// Where events go when that is not this process.
    pub kafka: Option<KafkaSettings>,
    /// What `tenantry init` makes.
    pub first_user: FirstUser,
    /// What is logged, and how.
    pub log: Log,
    description: Vec<Setting>,
}

impl Config {
    /// Reads the process's environment and the `.env` of its working directory.
    ///
    /// # Errors
    /// The first variable that is unknown, malformed or unsafe.
    pub fn from_process() -> Result<Self, ConfigError> {
        Self::load(process_environment(), Path::new("."))
    }

    /// Reads the given environment and the `.env` of the given working directory, where the former wins. Relative paths are
    /// taken from that directory. Outside production, a missing JWT secret is made and kept in the data directory.
    ///
    /// # Errors
    /// The first variable that is unknown, malformed or unsafe.
    pub fn load(environment: impl IntoIterator<Item = (String, String)>, working_dir: &Path) -> Result<Self, ConfigError> {
        let mut settings = Settings::gather(environment, working_dir)?;
        let environment = settings.get(&variables::TENANTRY_ENV, Environment::parse)?;
        let data_dir = settings.get(&variables::DATA_DIR, settings.path())?;
        Ok(Self {
            server: Server::read(&mut settings, environment)?,
            cors: Cors::read(&mut settings)?,
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

/// The only place that reads the process's environment. A name that is not UTF-8 is none of ours; what is not UTF-8 in a
/// value is marked by U+FFFD, which [`Settings`] refuses.
fn process_environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())))
}

/// Why the configuration was refused: one line for the operator, which shows no secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{variable} {problem}; {remedy}")]
pub struct ConfigError {
    /// The variable (or file) at fault.
    pub variable: String,
    /// What is wrong with it, in words that follow its name.
    pub problem: String,
    /// What would be right.
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

/// What a process is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Environment {
    /// By a developer: everything works unset.
    Development,
    /// By customers: unsafe settings are refused.
    Production,
    /// By automatic tests; otherwise like development.
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
