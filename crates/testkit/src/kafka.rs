//! The Kafka cluster of a test run.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    message::Headers,
};
use uuid::Uuid;

/// The timeout for requests that normally take milliseconds.
const WAIT_TIMEOUT: Duration = Duration::from_secs(30);

/// The topics of one test, on the brokers of the test run.
#[derive(Clone, Debug)]
pub struct TestKafka {
    servers: String,
    prefix: String,
}

/// A message, as a consumer receives it.
#[derive(Clone, Debug)]
pub struct Delivered {
    /// Its key.
    pub key: String,
    /// Its value.
    pub value: String,
    /// Its headers.
    pub headers: BTreeMap<String, String>,
    /// Its partition and offset.
    pub place: (i32, i64),
}

impl TestKafka {
    /// The brokers of `TEST_KAFKA_BOOTSTRAP_SERVERS`; absent if it is not set.
    #[must_use]
    pub fn find() -> Option<Self> {
        Self::at("TEST_KAFKA_BOOTSTRAP_SERVERS")
    }

    /// The broker that tests may stop.
    #[must_use]
    pub fn second() -> Option<Self> {
        Self::at("TEST_SECOND_KAFKA_BOOTSTRAP_SERVERS")
    }

    #[expect(clippy::disallowed_methods, reason = "the environment selects the brokers of a test run")]
    fn at(variable: &str) -> Option<Self> {
        let servers = std::env::var(variable).ok().filter(|servers| !servers.is_empty())?;
        Some(Self { servers, prefix: format!("test-{}.", Uuid::new_v4().simple()) })
    }

    /// The bootstrap servers, `host:port`.
    #[must_use]
    pub fn servers(&self) -> &str {
        &self.servers
    }

    /// The prefix of the test's topics, which also names the consumer group of its workers.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The environment of a child process. The brokers detect a dead worker after two seconds.
    #[must_use]
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("KAFKA_BOOTSTRAP_SERVERS", self.servers.clone()),
            ("KAFKA_TOPIC_PREFIX", self.prefix.clone()),
            ("KAFKA_CONSUMER_GROUP_ID", self.prefix.clone()),
            ("KAFKA_TOPIC_PARTITIONS", "3".to_owned()),
            ("KAFKA_SESSION_TIMEOUT", "2".to_owned()),
        ]
    }

    /// All messages on a topic of the test, partition by partition. Blocks.
    #[must_use]
    pub fn read(&self, topic: &str) -> Vec<Delivered> {
        let (topic, consumer) = (format!("{}{topic}", self.prefix), self.consumer());
        let mut ends = self.ends(&consumer, &topic);
        let mut assigned = TopicPartitionList::new();
        for partition in ends.keys() {
            assigned.add_partition_offset(&topic, *partition, Offset::Beginning).unwrap();
        }
        consumer.assign(&assigned).unwrap();
        ends.retain(|_, end| *end > 0);
        let (mut messages, began) = (Vec::new(), Instant::now());
        while !ends.is_empty() {
            assert!(began.elapsed() < WAIT_TIMEOUT, "timeout reading {topic}: {ends:?}");
            let Some(message) = consumer.poll(Duration::from_millis(100)) else { continue };
            let message = message.unwrap();
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
            messages.push(Delivered {
                key: message.key().map(text).unwrap_or_default(),
                value: message.payload().map(text).unwrap_or_default(),
                headers: headers.map(|header| (header.key.to_owned(), header.value.map(text).unwrap_or_default())).collect(),
                place: (message.partition(), message.offset()),
            });
            ends.retain(|partition, end| *partition != message.partition() || message.offset() + 1 < *end);
        }
        messages.sort_by_key(|message| message.place);
        messages
    }

    /// How many messages of these topics the test's workers have not handled yet, according to the committed offsets. Blocks.
    #[must_use]
    pub fn lag(&self, topics: &[&str]) -> i64 {
        let consumer = self.consumer();
        let mut lag = 0;
        for topic in topics.iter().map(|topic| format!("{}{topic}", self.prefix)) {
            let ends = self.ends(&consumer, &topic);
            let mut asked = TopicPartitionList::new();
            for partition in ends.keys() {
                asked.add_partition(&topic, *partition);
            }
            for committed in consumer.committed_offsets(asked, WAIT_TIMEOUT).unwrap().elements() {
                lag += ends[&committed.partition()] - committed.offset().to_raw().filter(|offset| *offset > 0).unwrap_or(0);
            }
        }
        lag
    }

    /// The end offsets of a topic's partitions; empty if the topic does not exist.
    fn ends(&self, consumer: &BaseConsumer, topic: &str) -> HashMap<i32, i64> {
        let metadata = consumer.fetch_metadata(Some(topic), WAIT_TIMEOUT).unwrap();
        let partitions: HashSet<_> =
            metadata.topics().iter().flat_map(|topic| topic.partitions()).map(|partition| partition.id()).collect();
        partitions.into_iter().map(|partition| (partition, consumer.fetch_watermarks(topic, partition, WAIT_TIMEOUT).unwrap().1)).collect()
    }

    fn consumer(&self) -> BaseConsumer {
        ClientConfig::new()
            .set("bootstrap.servers", &self.servers)
            .set("group.id", &self.prefix)
            .set("enable.auto.commit", "false")
            .create()
            .unwrap()
    }
}
