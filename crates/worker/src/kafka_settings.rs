//! The settings of the connection to Kafka.

use std::{path::PathBuf, time::Duration};

use secrecy::SecretString;

/// The brokers, how to connect to them, and how to use topics and groups.
#[derive(Clone, Debug)]
pub struct KafkaSettings {
    /// `host:port`, separated by commas. The client discovers the rest of the cluster from them.
    pub bootstrap_servers: String,
    /// The name of this program in the brokers' logs and quotas.
    pub client_id: String,
    /// `none`, `gzip`, `snappy` or `lz4`.
    pub compression: String,
    /// `PLAINTEXT`, `SSL`, `SASL_PLAINTEXT` or `SASL_SSL`.
    pub security_protocol: String,
    /// The credentials, if the brokers require a login.
    pub sasl: Option<KafkaSasl>,
    /// A file with the CA certificates that signed the brokers' certificates. Defaults to the system's.
    pub ca_location: Option<PathBuf>,
    /// The prefix of every topic name, for shared clusters.
    pub topic_prefix: String,
    /// The number of partitions of a new topic.
    pub partitions: u16,
    /// The number of replicas of a new topic. Defaults to the brokers' own default.
    pub replication_factor: Option<u16>,
    /// The consumer group, whose workers share the events.
    pub group_id: String,
    /// How long a worker may be silent before the group reassigns its partitions.
    pub session_timeout: Duration,
    /// Where a group without committed offsets begins: `earliest` or `latest`.
    pub auto_offset_reset: String,
}

/// The credentials for the brokers (SASL, RFC 4422).
#[derive(Clone, Debug)]
pub struct KafkaSasl {
    /// `PLAIN`, `SCRAM-SHA-256` or `SCRAM-SHA-512`.
    pub mechanism: String,
    /// The user name.
    pub username: String,
    /// The password.
    pub password: SecretString,
}
