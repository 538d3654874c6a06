//! The table of all variables.

use self::Fallback::{Otherwise, Value};

/// An environment variable.
#[derive(Clone, Copy, Debug)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// What it is about, as a heading.
    pub section: &'static str,
    /// What it means, with its unit.
    pub meaning: &'static str,
    /// What holds when it is not set.
    pub default: Fallback,
    /// Whether its value (or a part of it) must not be seen. It can then also be given as a file, by the variable of the
    /// same name with `_FILE` added.
    pub secret: bool,
}

/// What holds when a variable is not set.
#[derive(Clone, Copy, Debug)]
pub enum Fallback {
    /// This value.
    Value(&'static str),
    /// Something that no constant can say.
    Otherwise {
        /// What holds then, in words.
        words: &'static str,
        /// A value that would be right.
        example: &'static str,
    },
}

impl Variable {
    /// A value that would be right (or for a signing secret, how to make one: a secret that stands in a manual is none).
    #[must_use]
    pub const fn example(&self) -> &'static str {
        match self.default {
            Value(value) => value,
            Otherwise { example, .. } => example,
        }
    }

    /// The variable that names a file with the value, for secrets.
    #[must_use]
    pub fn file_name(&self) -> Option<String> {
        self.secret.then(|| format!("{}_FILE", self.name))
    }
}

/// Declares a constant for each variable, and the table of them. What is said about a variable is its doc comment.
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
        /// What the process is used for: development, production (which refuses unsafe settings) or testing.
        TENANTRY_ENV: Value("development");
        /// The directory of all that is kept on the local file system.
        DATA_DIR: Value("./data");
    }
    "HTTP server" {
        /// The IP address to listen on; 0.0.0.0 or :: for all of the machine's.
        HOST: Value("127.0.0.1");
        /// The port to listen on; 0 takes any free one.
        PORT: Value("4999");
        /// The URL at which clients reach the API, for the links that it gives out.
        PUBLIC_URL: Otherwise { words: "the address listened on", example: "https://api.example.com" };
        /// How many connections may be open at once; more wait to be accepted.
        MAX_CONNECTIONS: Value("1024");
        /// How many seconds requests in flight have to finish after SIGTERM.
        SHUTDOWN_GRACE: Value("30");
        /// The IP address and port of a page of metrics for Prometheus, /metrics, to whoever reaches it.
        METRICS_ADDRESS: Otherwise { words: "none", example: "127.0.0.1:4998" };
        /// The origins whose pages may call the API from a browser, separated by commas; * for all.
        CORS_ORIGINS: Otherwise { words: "none", example: "https://app.example.com,http://localhost:3000" };
        /// Whether pages of those origins may send cookies and HTTP authentication; not together with *.
        CORS_ALLOW_CREDENTIALS: Value("false");
    }
    "Demonstration" {
        /// Whether there is a demonstration of the bus at /api/demo/kafka, where everybody with an account can send and see messages.
        DEMO_ROUTES: Otherwise { words: "true, but in production false", example: "false" };
    }
    "Databases" {
        /// The main database: sqlite:PATH or postgres://user:password@host:port/database.
        DATABASE_URL: Otherwise {
            words: "the SQLite file main.sqlite3 in DATA_DIR",
            example: "postgres://tenantry:password@localhost:5432/tenantry"
        }, secret;
        /// How many connections to the main database may be open at once.
        DATABASE_POOL_SIZE: Value("10");
        /// The servers of tenants' databases: name=url, separated by commas; for SQLite, sqlite:DIRECTORY. Keep a server's name.
        TENANT_DATABASE_URLS: Otherwise {
            words: "one server named main: the main database's, or the directory tenants in DATA_DIR",
            example: "main=postgres://tenantry:password@db1:5432/postgres,second=postgres://tenantry:password@db2:5432/postgres"
        }, secret;
        /// How many connections to tenants' databases may be open at once, for each server.
        TENANT_CONNECTION_BUDGET: Value("100");
        /// How many databases each PostgreSQL server keeps ready for tenants to come; 0 makes each when it is wanted.
        TENANT_WARM_POOL: Value("0");
    }
    "Object storage" {
        /// The bucket of an S3 store that objects are kept in. It must exist.
        S3_BUCKET: Otherwise { words: "objects are files in DATA_DIR, and no other S3_* may be set", example: "tenantry" };
        /// The URL of the store; without https:// or http://, S3_USE_SSL says which.
        S3_ENDPOINT_URL: Otherwise { words: "Amazon's for S3_REGION", example: "https://s3.example.com" };
        /// The URL by which browsers reach the store, for the URLs that they are given.
        S3_PUBLIC_ENDPOINT_URL: Otherwise { words: "S3_ENDPOINT_URL", example: "https://files.example.com" };
        /// The store's region.
        S3_REGION: Value("us-east-1");
        /// The id of the access key.
        S3_ACCESS_KEY_ID: Otherwise {
            words: "what the environment has: AWS_ACCESS_KEY_ID and the like, a web identity, the role of the container or machine",
            example: "tenantry"
        };
        /// The access key's secret.
        S3_SECRET_ACCESS_KEY: Otherwise { words: "as for S3_ACCESS_KEY_ID", example: "the-secret-of-the-access-key" }, secret;
        /// Whether the store is spoken to by TLS, where S3_ENDPOINT_URL does not say it.
        S3_USE_SSL: Value("true");
        /// Whether the bucket is named in the path of URLs (true) or in the host (false).
        S3_PATH_STYLE: Otherwise { words: "true with S3_ENDPOINT_URL, false with Amazon S3", example: "true" };
    }
    "Kafka" {
        /// Kafka's brokers, host:port, separated by commas. Events are published there, and `tenantry worker` handles them.
        KAFKA_BOOTSTRAP_SERVERS: Otherwise {
            words: "none: `tenantry serve` handles events itself, and the other KAFKA_* mean nothing",
            example: "kafka1:9092,kafka2:9092"
        };
        /// How this program is called in the brokers' logs and quotas.
        KAFKA_CLIENT_ID: Value("tenantry");
        /// Which brokers have an event before it counts as published: all that are in sync.
        KAFKA_ACKS: Value("all");
        /// How events are compressed: none, gzip, snappy or lz4.
        KAFKA_COMPRESSION_TYPE: Value("lz4");
        /// The group of workers that share the events among them.
        KAFKA_CONSUMER_GROUP_ID: Value("tenantry-worker");
        /// Where a group begins that never read: earliest or latest (which loses what was published before).
        KAFKA_AUTO_OFFSET_RESET: Value("earliest");
        /// How many seconds a worker may be silent until others take over its events; the brokers have bounds of their own.
        KAFKA_SESSION_TIMEOUT: Value("10");
        /// PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL.
        KAFKA_SECURITY_PROTOCOL: Otherwise { words: "SASL_SSL with KAFKA_SASL_USERNAME, else PLAINTEXT", example: "SASL_SSL" };
        /// PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512.
        KAFKA_SASL_MECHANISM: Value("PLAIN");
        /// Who logs in to the brokers.
        KAFKA_SASL_USERNAME: Otherwise { words: "nobody", example: "tenantry" };
        /// The password for that.
        KAFKA_SASL_PASSWORD: Otherwise { words: "none", example: "the-password-of-kafka-sasl-username" }, secret;
        /// A file with the certificates of who signed the brokers'.
        KAFKA_SSL_CA_LOCATION: Otherwise { words: "the system's", example: "/etc/ssl/certs/ca-certificates.crt" };
        /// Before the name of every topic, where others share the cluster.
        KAFKA_TOPIC_PREFIX: Otherwise { words: "nothing", example: "staging." };
        /// How many partitions a topic is made with: the most workers that can share one.
        KAFKA_TOPIC_PARTITIONS: Value("12");
        /// How many brokers keep a topic that is made.
        KAFKA_REPLICATION_FACTOR: Otherwise { words: "what the brokers think best", example: "3" };
    }
    "Sessions" {
        /// The secret that signs tokens: at least 32 random bytes. Whoever knows it can be anybody.
        JWT_SECRET_KEY: Otherwise {
            words: "made once and kept as jwt_secret in DATA_DIR, but in production the start is refused",
            example: "the-output-of-openssl-rand-hex-32"
        }, secret;
        /// Secrets that signed tokens earlier and still verify them, separated by commas.
        JWT_PREVIOUS_SECRET_KEYS: Otherwise { words: "none", example: "the-jwt-secret-key-before-this-one" }, secret;
        /// How many seconds an access token is valid.
        JWT_ACCESS_TOKEN_EXPIRES: Value("900");
        /// How many seconds a refresh token is valid.
        JWT_REFRESH_TOKEN_EXPIRES: Value("604800");
        /// Who issues the tokens (their claim iss).
        JWT_ISSUER: Value("tenantry");
        /// Whom the tokens are meant for (their claim aud).
        JWT_AUDIENCE: Value("tenantry");
    }
    "Passwords" {
        /// How many threads hash passwords.
        PASSWORD_HASH_THREADS: Otherwise { words: "half of the processor's cores", example: "2" };
        /// How many passwords may wait to be hashed; more are told to come back later.
        PASSWORD_HASH_QUEUE: Value("32");
    }
    "Documents" {
        /// The largest upload in bytes; the units kB, MB, GB, KiB, MiB and GiB are understood.
        MAX_UPLOAD_BYTES: Value("104857600");
        /// How many seconds a signed download URL is valid, at most 7 days.
        DOWNLOAD_URL_EXPIRES: Value("3600");
        /// How many seconds an upload in parts (direct or tus) is waited for after its last part.
        UPLOAD_EXPIRES: Value("86400");
        /// How many seconds a deleted document can be brought back from the trash; 0 for not at all.
        TRASH_RETENTION: Value("2592000");
        /// How many versions of a document are kept, the current one included.
        DOCUMENT_VERSIONS_KEPT: Value("100");
        /// How many bytes a tenant may store, with the units of MAX_UPLOAD_BYTES; `tenantry tenants set-quota` sets it for one.
        TENANT_MAX_BYTES: Otherwise { words: "no limit", example: "10GB" };
        /// How many documents a tenant may have, those in the trash included.
        TENANT_MAX_DOCUMENTS: Otherwise { words: "no limit", example: "100000" };
        /// How many seconds a file is kept that no document refers to any more.
        GARBAGE_GRACE: Value("86400");
        /// How many seconds lie between two collections of garbage by `tenantry serve`; 0 leaves it to `tenantry gc`.
        GARBAGE_INTERVAL: Value("3600");
    }
    "Events" {
        /// How many seconds events are kept after they were published.
        EVENT_RETENTION: Value("86400");
    }
    "First user and tenant, for tenantry init" {
        /// The e-mail address of the user that --create-admin makes.
        ADMIN_EMAIL: Otherwise { words: "asked for", example: "ada@example.com" };
        /// That user's password: 8 to 256 characters, with a letter and a digit.
        ADMIN_PASSWORD: Otherwise { words: "asked for", example: "correct-horse-1" }, secret;
        /// That user's first name.
        ADMIN_FIRST_NAME: Otherwise { words: "asked for", example: "Ada" };
        /// That user's last name.
        ADMIN_LAST_NAME: Otherwise { words: "asked for", example: "Lovelace" };
        /// The name of the tenant that --create-test-tenant makes.
        TEST_TENANT_NAME: Otherwise { words: "asked for", example: "Acme" };
    }
    "Log" {
        /// What is logged: error, warn, info, debug, trace, or a filter such as info,tenantry=debug.
        LOG_LEVEL: Value("info");
        /// How it is logged, on standard error: text for people or json for programs.
        LOG_FORMAT: Value("text");
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    #[test]
    fn the_example_file_is_the_table() {
        let expected = example_file();
        let actual = include_str!("../../../../.env.example");
        assert!(expected == actual, "write this to .env.example:\n{expected}");
    }

    fn example_file() -> String {
        let mut file = String::from(
            "# The environment variables of Tenantry, each with its meaning and its default. Copy this file to .env in the working\n\
             # directory and set what should differ; variables of the environment win over those of the file. In .env, a value\n\
             # with spaces or with $ # ' \" or \\ in it is written in single quotes.\n",
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
                writeln!(file, "# Or {name}, the path of a file that holds it.").unwrap();
            }
            writeln!(file, "# {}={}", variable.name, variable.example()).unwrap();
        }
        file
    }
}
