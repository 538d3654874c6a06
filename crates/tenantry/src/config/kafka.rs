//! The Kafka cluster for events.

use std::net::SocketAddr;

use services::DEMO_PREFIX;
use worker::{KafkaSasl, KafkaSettings};

use super::{ConfigError, Settings, Variable, values, variables};

/// Kafka's limit for the name of a topic, less our longest name with `.dlq`.
const MAX_PREFIX_LENGTH: usize = 249 - 64;

/// Reads the settings of the brokers. None: the process that publishes events handles them, too.
pub(super) fn read(settings: &mut Settings) -> Result<Option<KafkaSettings>, ConfigError> {
    settings.get(&variables::KAFKA_ACKS, |text| match text {
        "all" | "-1" => Ok("all".to_owned()),
        _ => Err("must be all: with less, the loss of one broker can lose events".to_owned()),
    })?;
    let sasl = sasl(settings)?;
    let kafka = KafkaSettings {
        bootstrap_servers: settings.get_or(&variables::KAFKA_BOOTSTRAP_SERVERS, servers, String::new)?,
        client_id: settings.get(&variables::KAFKA_CLIENT_ID, values::text)?,
        compression: settings.get(&variables::KAFKA_COMPRESSION_TYPE, one_of(&["none", "gzip", "snappy", "lz4"]))?,
        security_protocol: settings
            .get_or(&variables::KAFKA_SECURITY_PROTOCOL, protocol, || if sasl.is_some() { "SASL_SSL" } else { "PLAINTEXT" }.to_owned())?,
        sasl,
        ca_location: settings.find(&variables::KAFKA_SSL_CA_LOCATION, settings.path())?,
        topic_prefix: settings.get_or(&variables::KAFKA_TOPIC_PREFIX, prefix, String::new)?,
        partitions: settings.get(&variables::KAFKA_TOPIC_PARTITIONS, values::number(1..=1_000))?,
        replication_factor: settings.find(&variables::KAFKA_REPLICATION_FACTOR, values::number(1..=100))?,
        group_id: settings.get(&variables::KAFKA_CONSUMER_GROUP_ID, values::text)?,
        session_timeout: settings.get(&variables::KAFKA_SESSION_TIMEOUT, values::seconds(300))?,
        auto_offset_reset: settings.get(&variables::KAFKA_AUTO_OFFSET_RESET, one_of(&["earliest", "latest"]))?,
    };
    if kafka.bootstrap_servers.is_empty() {
        settings.discard(variables::KAFKA_BOOTSTRAP_SERVERS.section);
        return Ok(None);
    }
    if kafka.sasl.is_some() != kafka.security_protocol.starts_with("SASL") {
        return Err(ConfigError::of(
            &variables::KAFKA_SECURITY_PROTOCOL,
            match &kafka.sasl {
                Some(_) => "must be SASL_SSL or SASL_PLAINTEXT while KAFKA_SASL_USERNAME is set",
                None => "needs KAFKA_SASL_USERNAME and KAFKA_SASL_PASSWORD",
            },
        ));
    }
    Ok(Some(kafka))
}

/// Refuses settings that need TLS or SCRAM, if this program was built without them.
pub(super) fn check_support(kafka: &KafkaSettings) -> Result<(), ConfigError> {
    let has_openssl = cfg!(any(feature = "kafka-tls", not(feature = "kafka")));
    needs_openssl(kafka).filter(|_| !has_openssl).map_or(Ok(()), Err)
}

/// The error for a setting that needs OpenSSL in librdkafka.
fn needs_openssl(kafka: &KafkaSettings) -> Option<ConfigError> {
    let mechanism = kafka.sasl.as_ref().map(|sasl| &sasl.mechanism).filter(|name| name.starts_with("SCRAM"));
    let protocol = Some(&kafka.security_protocol).filter(|name| name.ends_with("SSL"));
    let (variable, value) = protocol
        .map(|value| (&variables::KAFKA_SECURITY_PROTOCOL, value))
        .or(mechanism.map(|value| (&variables::KAFKA_SASL_MECHANISM, value)))?;
    let problem = format!("is {value}, but this program was built without TLS and SCRAM for Kafka");
    Some(ConfigError::new(variable.name, problem, "build it with `--features kafka-tls`"))
}

fn sasl(settings: &mut Settings) -> Result<Option<KafkaSasl>, ConfigError> {
    let mechanism = settings.get(&variables::KAFKA_SASL_MECHANISM, one_of(&["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]))?;
    let username = settings.find(&variables::KAFKA_SASL_USERNAME, values::text)?;
    let password = settings.find(&variables::KAFKA_SASL_PASSWORD, values::secret)?;
    if username.is_none() {
        settings.record(&variables::KAFKA_SASL_MECHANISM, &None::<String>);
    }
    let missing = |variable: &Variable, other| Err(ConfigError::of(variable, format!("is not set, but {other} is")));
    match (username, password) {
        (Some(username), Some(password)) => Ok(Some(KafkaSasl { mechanism, username, password })),
        (None, None) => Ok(None),
        (Some(_), None) => missing(&variables::KAFKA_SASL_PASSWORD, "KAFKA_SASL_USERNAME"),
        (None, Some(_)) => missing(&variables::KAFKA_SASL_USERNAME, "KAFKA_SASL_PASSWORD"),
    }
}

/// Parses a comma-separated list of `host:port`.
fn servers(text: &str) -> Result<String, String> {
    let is_server = |server: &str| {
        server.parse::<SocketAddr>().is_ok()
            || server.rsplit_once(':').is_some_and(|(host, port)| {
                !host.is_empty()
                    && port.parse::<u16>().is_ok()
                    && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
            })
    };
    let servers: Vec<_> = values::list(text).collect();
    if servers.is_empty() || !servers.iter().all(|server| is_server(server)) {
        return Err("must be host:port, several separated by commas".to_owned());
    }
    Ok(servers.join(","))
}

/// Parses a security protocol in any case: Kafka's own programs use upper case, others lower case.
fn protocol(text: &str) -> Result<String, String> {
    one_of(&["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"])(&text.to_ascii_uppercase())
}

fn prefix(text: &str) -> Result<String, String> {
    let is_legal = text.len() <= MAX_PREFIX_LENGTH && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if text.starts_with(DEMO_PREFIX) {
        return Err(format!("must not begin with {DEMO_PREFIX}: the demonstrations of other installations would show your events"));
    }
    if is_legal { Ok(text.to_owned()) } else { Err(format!("must be at most {MAX_PREFIX_LENGTH} letters, digits, dots, _ and -")) }
}

fn one_of(choices: &'static [&'static str]) -> impl Fn(&str) -> Result<String, String> {
    |text| if choices.contains(&text) { Ok(text.to_owned()) } else { Err(format!("must be one of {}", choices.join(", "))) }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Workplace, problem};
    use super::{check_support, needs_openssl};

    const SERVERS: (&str, &str) = ("KAFKA_BOOTSTRAP_SERVERS", "kafka1:9092, [::1]:9092");
    const USERNAME: (&str, &str) = ("KAFKA_SASL_USERNAME", "tenantry");
    const PASSWORD: (&str, &str) = ("KAFKA_SASL_PASSWORD", "hush");

    #[test]
    fn kafka_is_used_when_servers_are_set() {
        assert!(Workplace::new().load(&[("KAFKA_CLIENT_ID", "x")]).unwrap().kafka.is_none());
        let kafka = Workplace::new().load(&[SERVERS]).unwrap().kafka.unwrap();
        assert_eq!(
            (kafka.bootstrap_servers.as_str(), kafka.compression.as_str(), kafka.sasl.is_none()),
            ("kafka1:9092,[::1]:9092", "gzip", true)
        );
        for text in ["", "kafka1", "kafka1:x", ":9092", "http://kafka1:9092", "a b:1"] {
            assert!(problem(&[("KAFKA_BOOTSTRAP_SERVERS", text)]).starts_with("KAFKA_BOOTSTRAP_SERVERS must be host:port"), "{text}");
        }
    }

    #[test]
    fn publishing_waits_for_all_replicas_in_sync() {
        Workplace::new().load(&[SERVERS, ("KAFKA_ACKS", "-1")]).unwrap();
        assert!(problem(&[("KAFKA_ACKS", "1")]).starts_with("KAFKA_ACKS must be all"));
    }

    #[test]
    fn a_login_to_the_brokers_is_complete_and_hides_its_secret() {
        let protocol = |name| ("KAFKA_SECURITY_PROTOCOL", name);
        let config = Workplace::new().load(&[SERVERS, USERNAME, PASSWORD]).unwrap();
        let shown = format!("{config:?} {:?}", config.describe());
        assert!(shown.contains("SASL_SSL") && shown.contains("PLAIN") && !shown.contains("hush"), "{shown}");
        assert!(problem(&[USERNAME]).starts_with("KAFKA_SASL_PASSWORD is not set, but KAFKA_SASL_USERNAME is"));
        assert!(problem(&[PASSWORD]).starts_with("KAFKA_SASL_USERNAME is not set, but KAFKA_SASL_PASSWORD is"));
        assert!(
            problem(&[SERVERS, USERNAME, PASSWORD, protocol("ssl")])
                .starts_with("KAFKA_SECURITY_PROTOCOL must be SASL_SSL or SASL_PLAINTEXT")
        );
        assert!(problem(&[SERVERS, protocol("sasl_ssl")]).starts_with("KAFKA_SECURITY_PROTOCOL needs KAFKA_SASL_USERNAME"));
        assert!(problem(&[("KAFKA_TOPIC_PREFIX", "a/b")]).starts_with("KAFKA_TOPIC_PREFIX must be"));
        assert!(problem(&[("KAFKA_TOPIC_PREFIX", "demo.")]).starts_with("KAFKA_TOPIC_PREFIX must not begin with demo."));
    }

    #[test]
    fn tls_and_scram_need_openssl() {
        let scram = ("KAFKA_SASL_MECHANISM", "SCRAM-SHA-256");
        let protocol = |name| ("KAFKA_SECURITY_PROTOCOL", name);
        let kafka = |variables: &[_]| Workplace::new().load(&[&[SERVERS], variables].concat()).unwrap().kafka.unwrap();
        let problem_of = |variables: &[_]| needs_openssl(&kafka(variables)).map(|error| error.to_string());
        let line = |variable: &str| {
            Some(format!("{variable}, but this program was built without TLS and SCRAM for Kafka; build it with `--features kafka-tls`"))
        };
        assert_eq!(problem_of(&[protocol("ssl")]), line("KAFKA_SECURITY_PROTOCOL is SSL"));
        assert_eq!(problem_of(&[USERNAME, PASSWORD]), line("KAFKA_SECURITY_PROTOCOL is SASL_SSL"));
        let plaintext = protocol("SASL_PLAINTEXT");
        assert_eq!(problem_of(&[USERNAME, PASSWORD, plaintext, scram]), line("KAFKA_SASL_MECHANISM is SCRAM-SHA-256"));
        for plain in [&[scram][..], &[USERNAME, PASSWORD, plaintext]] {
            assert_eq!(problem_of(plain), None, "{plain:?}");
        }
        let has_openssl = cfg!(feature = "kafka-tls") || !cfg!(feature = "kafka");
        assert_eq!(check_support(&kafka(&[USERNAME, PASSWORD])).is_ok(), has_openssl);
    }
}
