//! Where Kafka's brokers are, and how they are spoken to.

use std::{path::PathBuf, time::Duration};

use secrecy::SecretString;

/// Where the brokers are, how they are spoken to, and what is done there.
#[derive(Clone, Debug)]
pub struct KafkaSettings {
    /// `host:port`, separated by commas; the rest of the cluster is learned from them.
    pub bootstrap_servers: String,
    /// How this program is called in the brokers' logs and quotas.
    pub client_id: String,
    /// `none`, `gzip`, `snappy` or `lz4`.
    pub compression: String,
    /// `PLAINTEXT`, `SSL`, `SASL_PLAINTEXT` or `SASL_SSL`.
    pub security_protocol: String,
    /// Who logs in, where brokers want that.
    pub sasl: Option<KafkaSasl>,
    /// A file with the certificates of who signed the brokers'; the system's unless given.
    pub ca_location: Option<PathBuf>,
    /// Before the name of every topic, where others share the cluster.
    pub topic_prefix: String,
    /// How many partitions a topic is made with.
    pub partitions: u16,
    /// How many brokers keep a topic that is made; what they think best unless given.
    pub replication_factor: Option<u16>,
    /// Which workers share the events among them.
    pub group_id: String,
    /// How long a worker may be silent until others take over its events.
    pub session_timeout: Duration,
    /// Where a group begins that has never read: `earliest` or `latest`.
    pub auto_offset_reset: String,
}

/// A login to the brokers (SASL, RFC 4422).
#[derive(Clone, Debug)]
pub struct KafkaSasl {
    /// `PLAIN`, `SCRAM-SHA-256` or `SCRAM-SHA-512`.
    pub mechanism: String,
    /// Who.
    pub username: String,
    /// With which password.
    pub password: SecretString,
}
