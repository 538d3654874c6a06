//! The table of all variables.

use self::Fallback::{Otherwise, Value};

/// An environment variable.
#[derive(Clone, Copy, Debug)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// Its subject, as a heading.
    pub section: &'static str,
    /// What it means, with its unit.
    pub meaning: &'static str,
    /// The default.
    pub default: Fallback,
    /// Whether its value (or a part of it) is secret. A secret can also be read from a file: the variable with `_FILE` added
    /// to its name holds the path.
    pub secret: bool,
}

/// The default of a variable.
#[derive(Clone, Copy, Debug)]
pub enum Fallback {
    /// A fixed value.
    Value(&'static str),
    /// A default that depends on other settings or on the machine.
    Otherwise {
        /// The default, in words.
        words: &'static str,
        /// A valid value.
        example: &'static str,
    },
}

impl Variable {
    /// A valid value; for a signing secret, how to create one, since a published secret is not secret.
    #[must_use]
    pub const fn example(&self) -> &'static str {
        match self.default {
            Value(value) => value,
            Otherwise { example, .. } => example,
        }
    }

    /// The variable that holds the path of a file with the value, for secrets.
    #[must_use]
    pub fn file_name(&self) -> Option<String> {
        self.secret.then(|| format!("{}_FILE", self.name))
    }
}

/// Declares a constant for each variable, and the table of all variables. The doc comment of a variable is its meaning.
macro_rules! variables {
    ($($section:literal { $($(#[doc = $meaning:literal])+ $name:ident: $default:expr $(, $secret:ident)?;)+ })+) => {
        $($(
            $(#[doc = $meaning])+
            pub(super) const $name: Variable = Variable {
                name: stringify!($name),
                section: $section,
                meaning: concat!($($meaning),+).trim_ascii(),
                default: $default,
                secret: variables!(@secret $($secret)?),
            };
        )+)+

        /// Every variable that Tenantry knows, by section.
        pub const VARIABLES: &[Variable] = &[$($($name),+),+];
    };
    (@secret) => { false };
    (@secret secret) => { true };
}

variables! {
    "Process" {
        /// The environment: development, production (which refuses unsafe settings) or testing.
        TENANTRY_ENV: Value("development");
        /// The directory for everything that is kept on the local file system.
        DATA_DIR: Value("./data");
    }
    "HTTP server" {
        /// The IP address or host name to listen on; 0.0.0.0 or :: for all interfaces.
        HOST: Value("127.0.0.1");
        /// The port to listen on; 0 picks a free one.
        PORT: Value("4999");
        /// The URL at which clients reach the API, used in the links that it returns.
        PUBLIC_URL: Otherwise { words: "the address listened on", example: "https://api.example.com" };
        /// Maximum number of open connections; further ones wait to be accepted.
        MAX_CONNECTIONS: Value("1024");
        /// Maximum number of open connections of one client address; TRUSTED_PROXIES have no such limit.
        MAX_CONNECTIONS_PER_ADDRESS: Value("512");
        /// Seconds that requests in flight have to finish after SIGTERM.
        SHUTDOWN_GRACE: Value("30");
        /// The IP address and port for Prometheus metrics at /metrics, which need no authentication.
        METRICS_ADDRESS: Otherwise { words: "no metrics", example: "127.0.0.1:4998" };
        /// The origins whose pages may call the API from a browser, separated by commas; * for all.
        CORS_ORIGINS: Otherwise { words: "any port of localhost in development; else none", example: "https://app.example.com,http://localhost:3000" };
        /// Whether pages of those origins may send cookies and HTTP authentication; not allowed with *.
        CORS_ALLOW_CREDENTIALS: Value("false");
    }
    "Documentation" {
        /// Whether to serve the documentation at /docs and the specification at /openapi.json.
        DOCS_ENABLED: Value("true");
    }
    "Limits" {
        /// Whether requests and failed logins are limited. The RATE_LIMIT_* count in each process; all requests of a limit may come at once.
        RATE_LIMIT_ENABLED: Value("true");
        /// Logins, registrations and refreshes of a client address.
        RATE_LIMIT_AUTH: Value("200/minute");
        /// Reading requests of a user.
        RATE_LIMIT_READ: Value("30000/minute");
        /// Changing requests of a user.
        RATE_LIMIT_WRITE: Value("6000/minute");
        /// Uploads of a user, each request of a resumable one included.
        RATE_LIMIT_UPLOAD: Value("6000/minute");
        /// All requests in a tenant.
        RATE_LIMIT_TENANT: Value("120000/minute");
        /// The proxies whose X-Forwarded-For, -Proto and -Host are believed: addresses and networks, separated by commas.
        TRUSTED_PROXIES: Otherwise { words: "none", example: "127.0.0.1,10.0.0.0/8" };
        /// Who may register an account: open (anyone) or closed (the operator creates accounts).
        REGISTRATION: Value("open");
        /// Maximum number of active tenants that a user has created; 0 lets only the operator create tenants.
        TENANTS_PER_USER: Value("100");
    }
    "Demonstration" {
        /// Whether to serve a demonstration of the event bus at /api/demo/kafka, where every user can send and read messages.
        DEMO_ROUTES: Otherwise { words: "true; false in production", example: "false" };
    }
    "Databases" {
        /// The main database: sqlite:PATH or postgres://user:password@host:port/database.
        DATABASE_URL: Otherwise {
            words: "the SQLite file main.sqlite3 in DATA_DIR",
            example: "postgres://tenantry:password@localhost:5432/tenantry"
        }, secret;
        /// Maximum number of connections to the main database.
        DATABASE_POOL_SIZE: Value("10");
        /// The servers for tenant databases: name=url, separated by commas; for SQLite, sqlite:DIRECTORY. Never rename a server.
        TENANT_DATABASE_URLS: Otherwise {
            words: "one server named main: that of the main database, or the directory tenants in DATA_DIR",
            example: "main=postgres://tenantry:password@db1:5432/postgres,second=postgres://tenantry:password@db2:5432/postgres"
        }, secret;
        /// Maximum number of connections to tenant databases on each server.
        TENANT_CONNECTION_BUDGET: Value("100");
        /// Number of warm databases that each PostgreSQL server keeps for new tenants; 0 creates every database on demand.
        TENANT_WARM_POOL: Value("0");
    }
    "Object storage" {
        /// The S3 bucket for objects. It must exist.
        S3_BUCKET: Otherwise { words: "objects are files in DATA_DIR, and no other S3_* may be set", example: "tenantry" };
        /// The URL of the store; without https:// or http://, S3_USE_SSL decides.
        S3_ENDPOINT_URL: Otherwise { words: "Amazon S3 in S3_REGION", example: "https://s3.example.com" };
        /// The URL at which browsers reach the store, used in signed URLs.
        S3_PUBLIC_ENDPOINT_URL: Otherwise { words: "S3_ENDPOINT_URL", example: "https://files.example.com" };
        /// The region of the store.
        S3_REGION: Value("us-east-1");
        /// The access key id.
        S3_ACCESS_KEY_ID: Otherwise {
            words: "AWS_ACCESS_KEY_ID and the like, a web identity, or the role of the container or machine",
            example: "tenantry"
        };
        /// The secret access key.
        S3_SECRET_ACCESS_KEY: Otherwise { words: "as for S3_ACCESS_KEY_ID", example: "the-secret-of-the-access-key" }, secret;
        /// Whether to use TLS where S3_ENDPOINT_URL has neither https:// nor http://.
        S3_USE_SSL: Value("true");
        /// Whether URLs name the bucket in the path (true) or in the host name (false).
        S3_PATH_STYLE: Otherwise { words: "true with S3_ENDPOINT_URL, false with Amazon S3", example: "true" };
    }
    "Kafka" {
        /// The Kafka brokers as host:port, separated by commas. Events are published there, and `tenantry worker` handles them.
        KAFKA_BOOTSTRAP_SERVERS: Otherwise {
            words: "none: `tenantry serve` handles events itself, and the other KAFKA_* have no effect",
            example: "kafka1:9092,kafka2:9092"
        };
        /// The client id in the brokers' logs and quotas.
        KAFKA_CLIENT_ID: Value("tenantry");
        /// Which brokers must acknowledge an event before it counts as published: all that are in sync.
        KAFKA_ACKS: Value("all");
        /// Compression of events: none, gzip (which every client reads), snappy or lz4.
        KAFKA_COMPRESSION_TYPE: Value("gzip");
        /// The consumer group of the workers.
        KAFKA_CONSUMER_GROUP_ID: Value("tenantry-worker");
        /// Where a new consumer group starts: earliest or latest (which skips what was published before).
        KAFKA_AUTO_OFFSET_RESET: Value("earliest");
        /// Seconds without a heartbeat after which other workers take over a worker's events; the brokers set limits of their own.
        KAFKA_SESSION_TIMEOUT: Value("10");
        /// PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL.
        KAFKA_SECURITY_PROTOCOL: Otherwise { words: "SASL_SSL with KAFKA_SASL_USERNAME, else PLAINTEXT", example: "SASL_SSL" };
        /// PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512.
        KAFKA_SASL_MECHANISM: Value("PLAIN");
        /// The user name for logging in to the brokers.
        KAFKA_SASL_USERNAME: Otherwise { words: "no login", example: "tenantry" };
        /// The password of KAFKA_SASL_USERNAME.
        KAFKA_SASL_PASSWORD: Otherwise { words: "none", example: "the-password-of-kafka-sasl-username" }, secret;
        /// A file with the certificates of the authorities that signed the brokers' certificates.
        KAFKA_SSL_CA_LOCATION: Otherwise { words: "the system's authorities", example: "/etc/ssl/certs/ca-certificates.crt" };
        /// A prefix for the name of every topic, for clusters that are shared with others.
        KAFKA_TOPIC_PREFIX: Otherwise { words: "no prefix", example: "staging." };
        /// Number of partitions of a new topic: the maximum number of workers that can share it.
        KAFKA_TOPIC_PARTITIONS: Value("12");
        /// Number of replicas of a new topic.
        KAFKA_REPLICATION_FACTOR: Otherwise { words: "the brokers' default", example: "3" };
    }
    "Sessions" {
        /// The secret that signs tokens: at least 32 random bytes. Anyone who knows it can impersonate any user.
        JWT_SECRET_KEY: Otherwise {
            words: "created once and kept as jwt_secret in DATA_DIR; required in production",
            example: "the-output-of-openssl-rand-hex-32"
        }, secret;
        /// Previous signing secrets, which still verify tokens, separated by commas.
        JWT_PREVIOUS_SECRET_KEYS: Otherwise { words: "none", example: "the-jwt-secret-key-before-this-one" }, secret;
        /// Lifetime of an access token in seconds.
        JWT_ACCESS_TOKEN_EXPIRES: Value("900");
        /// Lifetime of a refresh token in seconds.
        JWT_REFRESH_TOKEN_EXPIRES: Value("604800");
        /// The issuer of tokens (claim iss).
        JWT_ISSUER: Value("tenantry");
        /// The audience of tokens (claim aud).
        JWT_AUDIENCE: Value("tenantry");
    }
    "Passwords" {
        /// Number of threads that hash passwords.
        PASSWORD_HASH_THREADS: Otherwise { words: "half of the CPU cores", example: "2" };
        /// Maximum number of passwords that wait to be hashed; further requests are asked to try again later.
        PASSWORD_HASH_QUEUE: Value("32");
    }
    "Documents" {
        /// Maximum size of an upload in bytes; the units kB, MB, GB, KiB, MiB and GiB are accepted.
        MAX_UPLOAD_BYTES: Value("104857600");
        /// Lifetime of a signed download URL in seconds, at most 7 days.
        DOWNLOAD_URL_EXPIRES: Value("3600");
        /// Seconds after its last part at which an unfinished multipart upload (direct or tus) expires.
        UPLOAD_EXPIRES: Value("86400");
        /// Seconds during which a deleted document can be restored from the trash; 0 for never.
        TRASH_RETENTION: Value("2592000");
        /// Number of versions kept of each document, including the current one.
        DOCUMENT_VERSIONS_KEPT: Value("100");
        /// Maximum bytes that a tenant may store, with the units of MAX_UPLOAD_BYTES; `tenantry tenants set-quota` overrides it.
        TENANT_MAX_BYTES: Otherwise { words: "no limit", example: "10GB" };
        /// Maximum number of documents of a tenant, including those in the trash.
        TENANT_MAX_DOCUMENTS: Otherwise { words: "no limit", example: "100000" };
        /// Seconds to keep a file that no document refers to.
        GARBAGE_GRACE: Value("86400");
        /// Seconds between two garbage collections by `tenantry serve`; 0 leaves collection to `tenantry gc`.
        GARBAGE_INTERVAL: Value("3600");
    }
    "Events" {
        /// Seconds to keep events after they were published.
        EVENT_RETENTION: Value("86400");
    }
    "First user and tenant, for tenantry init" {
        /// The e-mail address of the user that --create-admin creates.
        ADMIN_EMAIL: Otherwise { words: "prompt for it", example: "ada@example.com" };
        /// The password of that user: 8 to 256 characters, with a letter and a digit.
        ADMIN_PASSWORD: Otherwise { words: "prompt for it", example: "correct-horse-1" }, secret;
        /// The first name of that user.
        ADMIN_FIRST_NAME: Otherwise { words: "prompt for it", example: "Ada" };
        /// The last name of that user.
        ADMIN_LAST_NAME: Otherwise { words: "prompt for it", example: "Lovelace" };
        /// The name of the tenant that --create-test-tenant creates.
        TEST_TENANT_NAME: Otherwise { words: "prompt for it", example: "Acme" };
    }
    "Log" {
        /// What to log: error, warn, info, debug, trace, or a filter such as info,tenantry=debug.
        LOG_LEVEL: Value("info");
        /// The format of the log on standard error: text or json.
        LOG_FORMAT: Value("text");
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    #[test]
    fn the_example_file_matches_the_table() {
        let expected = example_file();
        let actual = include_str!("../../../../.env.example");
        assert!(expected == actual, "write this to .env.example:\n{expected}");
    }

    fn example_file() -> String {
        let mut file = String::from(
            "# The environment variables of Tenantry with their meanings and defaults. Copy this file to .env in the working\n\
             # directory and set what you need; environment variables take precedence over the file. In .env, write a value\n\
             # that contains spaces or $ # ' \" or \\ in single quotes.\n",
        );
        let mut section = "";
        for variable in VARIABLES {
            if variable.section != section {
                section = variable.section;
                write!(file, "\n\n## {section}\n").unwrap();
            }
            write!(file, "\n# {}\n", variable.meaning).unwrap();
            if let Otherwise { words, .. } = variable.default {
                writeln!(file, "# Default: {words}.").unwrap();
            }
            if let Some(name) = variable.file_name() {
                writeln!(file, "# Or set {name} to the path of a file that holds it.").unwrap();
            }
            writeln!(file, "# {}={}", variable.name, variable.example()).unwrap();
        }
        file
    }
}
