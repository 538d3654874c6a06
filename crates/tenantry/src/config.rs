//! Configuration: environment variables and `.env`, read once at the start into plain structs.
//!
//! The variables stand in one table, [`VARIABLES`], from which parsing, `tenantry check` and `.env.example` draw. The first
//! problem ends the start with one line that names the variable, what is wrong with it and what would be right.

mod databases;
mod documents;
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
    settings::Settings,
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
}

impl Config {
    /// Reads the process's environment and the `.env` of its working directory.
    ///
    /// # Errors
    /// The first variable that is unknown, malformed, unsafe, or needs what this program was built without.
    pub fn from_process() -> Result<Self, ConfigError> {
        let config = Self::load(process_environment(), Path::new("."))?;
        config.kafka.as_ref().map_or(Ok(()), kafka::check_support)?;
        Ok(config)
    }

    /// Reads the given environment and the `.env` of the given working directory, where the former wins. Relative paths are
    /// taken from that directory. Outside production, a missing JWT secret is made and kept in the data directory.
    ///
    /// # Errors
    /// The first variable that is unknown, malformed or unsafe.
    pub fn load(environment: impl IntoIterator<Item = (String, String)>, working_dir: &Path) -> Result<Self, ConfigError> {
        let settings = Settings::gather(environment, working_dir)?;
        let environment = settings.get(&variables::TENANTRY_ENV, Environment::parse)?;
        let data_dir = settings.get(&variables::DATA_DIR, settings.path())?;
        Ok(Self {
            server: Server::read(&settings, environment)?,
            cors: Cors::read(&settings)?,
            databases: Databases::read(&settings, &data_dir)?,
            objects: Objects::read(&settings)?,
            passwords: Passwords::read(&settings)?,
            documents: Documents::read(&settings)?,
            events: Events::read(&settings)?,
            kafka: kafka::read(&settings)?,
            first_user: FirstUser::read(&settings)?,
            log: Log::read(&settings, environment)?,
            tokens: Tokens::read(&settings, environment, &data_dir)?,
            environment,
            data_dir,
        })
    }

    /// Every variable in the table's order, with the value in effect, secrets hidden.
    #[must_use]
    pub fn describe(&self) -> Vec<Setting> {
        let Self { environment, data_dir, server, cors, databases, objects, tokens, passwords, documents, events, kafka, first_user, log } =
            self;
        let [bucket, endpoint, public_endpoint, region, key_id, key_secret, ssl, path_style] = objects.describe();
        let [
            brokers,
            client_id,
            acks,
            compression,
            group_id,
            offset_reset,
            session_timeout,
            protocol,
            mechanism,
            username,
            password,
            ca_location,
            prefix,
            partitions,
            replication,
        ] = kafka::describe(kafka.as_ref());
        let given = |text: &Option<String>| text.clone().unwrap_or_default();
        let rows = [
            (&variables::TENANTRY_ENV, environment.as_str().to_owned()),
            (&variables::DATA_DIR, data_dir.display().to_string()),
            (&variables::HOST, server.host.to_string()),
            (&variables::PORT, server.port.to_string()),
            (&variables::PUBLIC_URL, server.public_url.clone().unwrap_or_default()),
            (&variables::MAX_CONNECTIONS, server.max_connections.to_string()),
            (&variables::SHUTDOWN_GRACE, server.shutdown_grace.as_secs().to_string()),
            (&variables::METRICS_ADDRESS, server.metrics_address.map(|address| address.to_string()).unwrap_or_default()),
            (&variables::CORS_ORIGINS, cors.origins.to_string()),
            (&variables::CORS_ALLOW_CREDENTIALS, cors.allow_credentials.to_string()),
            (&variables::DEMO_ROUTES, server.demo_routes.to_string()),
            (&variables::DATABASE_URL, databases.main.to_string()),
            (&variables::DATABASE_POOL_SIZE, databases.pool_size.to_string()),
            (&variables::TENANT_DATABASE_URLS, values::join(&databases.tenant_servers)),
            (&variables::TENANT_CONNECTION_BUDGET, databases.tenant_connection_budget.to_string()),
            (&variables::TENANT_WARM_POOL, databases.tenant_warm_pool.to_string()),
            (&variables::S3_BUCKET, bucket),
            (&variables::S3_ENDPOINT_URL, endpoint),
            (&variables::S3_PUBLIC_ENDPOINT_URL, public_endpoint),
            (&variables::S3_REGION, region),
            (&variables::S3_ACCESS_KEY_ID, key_id),
            (&variables::S3_SECRET_ACCESS_KEY, key_secret),
            (&variables::S3_USE_SSL, ssl),
            (&variables::S3_PATH_STYLE, path_style),
            (&variables::KAFKA_BOOTSTRAP_SERVERS, brokers),
            (&variables::KAFKA_CLIENT_ID, client_id),
            (&variables::KAFKA_ACKS, acks),
            (&variables::KAFKA_COMPRESSION_TYPE, compression),
            (&variables::KAFKA_CONSUMER_GROUP_ID, group_id),
            (&variables::KAFKA_AUTO_OFFSET_RESET, offset_reset),
            (&variables::KAFKA_SESSION_TIMEOUT, session_timeout),
            (&variables::KAFKA_SECURITY_PROTOCOL, protocol),
            (&variables::KAFKA_SASL_MECHANISM, mechanism),
            (&variables::KAFKA_SASL_USERNAME, username),
            (&variables::KAFKA_SASL_PASSWORD, password),
            (&variables::KAFKA_SSL_CA_LOCATION, ca_location),
            (&variables::KAFKA_TOPIC_PREFIX, prefix),
            (&variables::KAFKA_TOPIC_PARTITIONS, partitions),
            (&variables::KAFKA_REPLICATION_FACTOR, replication),
            (&variables::JWT_SECRET_KEY, "(secret)".to_owned()),
            (&variables::JWT_PREVIOUS_SECRET_KEYS, format!("({} secrets)", tokens.previous_secrets.len())),
            (&variables::JWT_ACCESS_TOKEN_EXPIRES, tokens.access_expires.as_secs().to_string()),
            (&variables::JWT_REFRESH_TOKEN_EXPIRES, tokens.refresh_expires.as_secs().to_string()),
            (&variables::JWT_ISSUER, tokens.issuer.clone()),
            (&variables::JWT_AUDIENCE, tokens.audience.clone()),
            (&variables::PASSWORD_HASH_THREADS, passwords.threads.to_string()),
            (&variables::PASSWORD_HASH_QUEUE, passwords.queue.to_string()),
            (&variables::MAX_UPLOAD_BYTES, documents.max_upload_bytes.to_string()),
            (&variables::DOWNLOAD_URL_EXPIRES, documents.download_url_expires.as_secs().to_string()),
            (&variables::UPLOAD_EXPIRES, documents.upload_expires.as_secs().to_string()),
            (&variables::TRASH_RETENTION, documents.trash_retention.as_secs().to_string()),
            (&variables::DOCUMENT_VERSIONS_KEPT, documents.versions_kept.to_string()),
            (&variables::TENANT_MAX_BYTES, documents.tenant_max_bytes.map(|bytes| bytes.to_string()).unwrap_or_default()),
            (&variables::TENANT_MAX_DOCUMENTS, documents.tenant_max_documents.map(|number| number.to_string()).unwrap_or_default()),
            (&variables::GARBAGE_GRACE, documents.garbage_grace.as_secs().to_string()),
            (&variables::GARBAGE_INTERVAL, documents.garbage_interval.as_secs().to_string()),
            (&variables::EVENT_RETENTION, events.retention.as_secs().to_string()),
            (&variables::ADMIN_EMAIL, given(&first_user.email)),
            (&variables::ADMIN_PASSWORD, first_user.password.as_ref().map(|_| "(secret)".to_owned()).unwrap_or_default()),
            (&variables::ADMIN_FIRST_NAME, given(&first_user.first_name)),
            (&variables::ADMIN_LAST_NAME, given(&first_user.last_name)),
            (&variables::TEST_TENANT_NAME, given(&first_user.tenant_name)),
            (&variables::LOG_LEVEL, log.filter.clone()),
            (&variables::LOG_FORMAT, log.format.as_str().to_owned()),
        ];
        rows.into_iter().map(|(variable, value)| Setting { name: variable.name, value, meaning: variable.meaning }).collect()
    }
}

/// The only place that reads the process's environment. A name that is not UTF-8 is none of ours; what is not UTF-8 in a
/// value is marked by U+FFFD, which [`Settings`] refuses.
fn process_environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())))
}

/// A variable and its value in effect, as people may see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The variable's name.
    pub name: &'static str,
    /// Its value, secrets hidden; empty when there is none.
    pub value: String,
    /// What it means.
    pub meaning: &'static str,
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
