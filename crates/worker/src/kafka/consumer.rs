//! The worker on Kafka: consumes events from all topics and handles them in batches, each of one ordering key.
//!
//! An offset is committed once its event and all before it in its partition were handled, so after a crash unhandled events are
//! redelivered. A key's events are handled one after the other, in the order of arrival. That order holds per topic, since
//! another worker may have the partition of another topic. Keys alternate, so that one with thousands of events does not delay
//! the others. An event that can't be handled goes to its dead-letter topic and to the table of dead letters.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    panic::AssertUnwindSafe,
    sync::Arc,
    time::Duration,
};

use domain::{Event, EventKind, Result};
use futures_util::FutureExt;
use parking_lot::Mutex;
use rdkafka::{
    ClientContext, Message, Offset, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance, StreamConsumer},
    error::{KafkaError, KafkaResult},
    message::{BorrowedMessage, Headers},
};
use services::OrderingKey;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{KafkaBus, log, log_error, refused, unavailable};
use crate::{
    KafkaSettings,
    bus::{Bus, Published},
    envelope,
};

/// The maximum number of events of a partition in memory, waiting or in flight. At this number the partition is paused until half
/// of them are handled.
const MAX_BUFFERED: usize = 2_000;
/// How much the library prefetches beyond that for all partitions, in KiB.
const PREFETCH_KIB: &str = "16384";
/// How long a shutdown waits for events in flight, and for the brokers.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);
/// The delay after an error before a retry.
const RETRY_DELAY: Duration = Duration::from_millis(500);

/// A partition of a topic.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Partition {
    topic: Arc<str>,
    number: i32,
}

impl Partition {
    fn list(&self, offset: Offset) -> KafkaResult<TopicPartitionList> {
        let mut list = TopicPartitionList::with_capacity(1);
        list.add_partition_offset(&self.topic, self.number, offset)?;
        Ok(list)
    }
}

/// The progress of a partition that is assigned to this worker.
#[derive(Default)]
struct Progress {
    /// The offsets of events that were received and not handled yet.
    open: BTreeSet<i64>,
    /// The offset after the last received one.
    next: i64,
    is_paused: bool,
    /// The generation in which the partition was assigned to this worker.
    generation: u64,
}

impl Progress {
    /// The offset before which all events were handled.
    fn handled_up_to(&self) -> i64 {
        self.open.first().copied().unwrap_or(self.next)
    }
}

/// A received event with its source.
struct Buffered {
    event: Event,
    partition: Partition,
    offset: i64,
    generation: u64,
}

impl Buffered {
    /// Whether its partition has stayed assigned to this worker since the event was received. If not, the event is redelivered,
    /// here or to another worker.
    fn is_current(&self, partitions: &HashMap<Partition, Progress>) -> bool {
        partitions.get(&self.partition).is_some_and(|progress| progress.generation == self.generation)
    }
}

/// The received events of a key that are not handled yet.
#[derive(Default)]
struct Waiting {
    events: VecDeque<Buffered>,
    is_in_flight: bool,
}

/// Collects the partitions that were revoked from this worker.
#[derive(Clone, Default)]
struct Context {
    revoked: Arc<Mutex<Vec<Partition>>>,
}

impl ClientContext for Context {
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        log(facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        log_error(&error, reason);
    }
}

impl ConsumerContext for Context {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        if let Rebalance::Revoke(partitions) = rebalance {
            // A paused partition would stay paused after a reassignment.
            succeeded(consumer.resume(partitions));
            let gone = partitions.elements().into_iter().map(|it| Partition { topic: it.topic().into(), number: it.partition() });
            self.revoked.lock().extend(gone);
        }
    }
}

/// Consumes and handles the events on the topics.
pub struct KafkaWorker {
    consumer: StreamConsumer<Context>,
    context: Context,
    settings: KafkaSettings,
    kafka: Arc<KafkaBus>,
    handler: Arc<dyn Bus>,
    partitions: HashMap<Partition, Progress>,
    keys: HashMap<OrderingKey, Waiting>,
    /// Keys that are ready for a batch.
    queue: VecDeque<OrderingKey>,
    /// Keys whose retry is deferred, and until when.
    deferred: HashMap<OrderingKey, Instant>,
    batches: JoinSet<(OrderingKey, Published)>,
    /// Invalid messages that are being sent to the dead-letter topics.
    letters: JoinSet<(Partition, i64)>,
    /// How many times partitions were revoked.
    generation: u64,
}

impl KafkaWorker {
    /// Creates a worker, without connecting yet. It handles events with `handler` in this process, and sends invalid messages to
    /// a dead-letter topic.
    ///
    /// # Errors
    /// When librdkafka rejects the settings.
    pub fn new(settings: KafkaSettings, kafka: Arc<KafkaBus>, handler: Arc<dyn Bus>) -> Result<Self> {
        let context = Context::default();
        let consumer = settings
            .client()
            .set("group.id", &settings.group_id)
            .set("auto.offset.reset", &settings.auto_offset_reset)
            // The library commits stored offsets, but stores none by itself: the worker stores an offset once its event is
            // handled.
            .set("enable.auto.commit", "true")
            .set("enable.auto.offset.store", "false")
            .set("auto.commit.interval.ms", "500")
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("session.timeout.ms", settings.session_timeout.as_millis().to_string())
            .set("heartbeat.interval.ms", (settings.session_timeout / 4).as_millis().to_string())
            .set("queued.max.messages.kbytes", PREFETCH_KIB)
            // Find topics soon that are created after the start.
            .set("topic.metadata.refresh.interval.ms", "5000")
            // Brokers send new messages at once. This is the poll interval while there are none.
            .set("fetch.wait.max.ms", "2000")
            .create_with_context(context.clone())
            .map_err(refused)?;
        Ok(Self {
            consumer,
            context,
            settings,
            kafka,
            handler,
            partitions: HashMap::new(),
            keys: HashMap::new(),
            queue: VecDeque::new(),
            deferred: HashMap::new(),
            batches: JoinSet::new(),
            letters: JoinSet::new(),
            generation: 0,
        })
    }

    /// Handles events until `stop` is cancelled, then finishes the events in flight, within a timeout of some seconds.
    ///
    /// # Errors
    /// When the subscription to the topics fails.
    pub async fn run(mut self, stop: CancellationToken) -> Result<()> {
        let topics: Vec<_> = EventKind::ALL.into_iter().map(|kind| self.settings.topic(kind)).collect();
        let topics: Vec<_> = topics.iter().map(String::as_str).collect();
        self.consumer.subscribe(&topics).map_err(unavailable)?;
        while !stop.is_cancelled() {
            self.advance();
            let wake = self.deferred.values().copied().min().unwrap_or_else(|| Instant::now() + Duration::from_secs(60));
            tokio::select! {
                received = self.consumer.recv() => {
                    let received = received.map(|message| Received::of(&message));
                    // Revocations precede this message, which may belong to a partition that was assigned again since.
                    self.drop_revoked();
                    match received {
                        Ok(received) => self.take(received),
                        // Errors queue up like messages, several per second while no broker is reachable. A delay after each
                        // would postpone the recovery by as long again.
                        Err(error) => tracing::debug!(error = &error as &dyn std::error::Error, "cannot receive events"),
                    }
                }
                Some(outcome) = self.batches.join_next() => {
                    self.drop_revoked();
                    self.after(outcome.ok());
                }
                Some(sent) = self.letters.join_next() => {
                    self.drop_revoked();
                    if let Ok((partition, offset)) = sent {
                        self.handled(&partition, [offset]);
                    }
                }
                () = sleep_until(wake) => {}
                () = stop.cancelled() => {}
            }
        }
        let finishing = async {
            while let Some(outcome) = self.batches.join_next().await {
                self.after(outcome.ok());
            }
        };
        let _unfinished_is_redelivered = timeout(SHUTDOWN_TIMEOUT, finishing).await;
        self.batches.shutdown().await;
        self.letters.shutdown().await;
        self.close().await;
        Ok(())
    }

    /// Leaves the group, so that other workers continue at once. The library may take long.
    async fn close(self) {
        let consumer = self.consumer;
        let closing = tokio::task::spawn_blocking(move || {
            // Events whose commit fails here are redelivered.
            let _nothing_to_commit = consumer.commit_consumer_state(CommitMode::Sync);
            consumer.unsubscribe();
            drop(consumer);
        });
        if timeout(SHUTDOWN_TIMEOUT, closing).await.is_err() {
            tracing::warn!("leaving the consumer group timed out; the brokers will detect it");
        }
    }

    fn take(&mut self, Received { partition, offset, key, content }: Received) {
        let generation = self.generation;
        let entry = self.partitions.entry(partition.clone());
        let progress = entry.or_insert_with(|| Progress { generation, ..Progress::default() });
        progress.next = offset + 1;
        progress.open.insert(offset);
        if progress.open.len() >= MAX_BUFFERED {
            progress.is_paused = succeeded(partition.list(Offset::Invalid).and_then(|list| self.consumer.pause(&list)));
        }
        match content {
            Ok(event) => {
                let key = event.tenant_id;
                let waiting = self.keys.entry(key).or_default();
                waiting.events.push_back(Buffered { event, partition, offset, generation: progress.generation });
                if !waiting.is_in_flight && waiting.events.len() == 1 {
                    self.queue.push_back(key);
                }
            }
            Err(InvalidMessage { kind, value, problem }) => {
                tracing::error!(topic = &*partition.topic, partition = partition.number, offset, problem, "invalid message: not an event");
                let kafka = Arc::clone(&self.kafka);
                self.letters.spawn(async move {
                    while let Err(error) = kafka.send_dead_letter(kind, key, &value, &problem).await {
                        tracing::warn!(error = &error as &dyn std::error::Error, "cannot send a dead letter; will retry");
                        sleep(RETRY_DELAY).await;
                    }
                    (partition, offset)
                });
            }
        }
    }

    /// Starts batches for waiting keys.
    fn advance(&mut self) {
        let now = Instant::now();
        self.queue.extend(self.deferred.extract_if(|_, at| *at <= now).map(|(key, _)| key));
        while self.batches.len() < self.handler.keys_at_once()
            && let Some(key) = self.queue.pop_front()
        {
            let Some(waiting) = self.keys.get_mut(&key) else { continue };
            waiting.is_in_flight = true;
            let batch = usize::try_from(self.handler.batch()).unwrap_or(usize::MAX);
            let events: Vec<_> = waiting.events.iter().take(batch).map(|buffered| buffered.event.clone()).collect();
            let handler = Arc::clone(&self.handler);
            self.batches.spawn(async move {
                let handled = AssertUnwindSafe(handler.publish(key, &events)).catch_unwind().await;
                (key, handled.unwrap_or(Published { count: 0, pause: Some(RETRY_DELAY) }))
            });
        }
    }

    /// Processes the outcome of a key's batch.
    fn after(&mut self, outcome: Option<(OrderingKey, Published)>) {
        let Some((key, Published { count, pause })) = outcome else { return };
        let Some(waiting) = self.keys.get_mut(&key) else { return };
        waiting.is_in_flight = false;
        let mut done: HashMap<Partition, Vec<i64>> = HashMap::new();
        for buffered in waiting.events.drain(..count.min(waiting.events.len())).filter(|buffered| buffered.is_current(&self.partitions)) {
            done.entry(buffered.partition).or_default().push(buffered.offset);
        }
        waiting.events.retain(|buffered| buffered.is_current(&self.partitions));
        match (waiting.events.is_empty(), pause) {
            (true, _) => drop(self.keys.remove(&key)),
            (false, Some(pause)) => drop(self.deferred.insert(key, Instant::now() + pause)),
            (false, None) => self.queue.push_back(key),
        }
        for (partition, offsets) in done {
            self.handled(&partition, offsets);
        }
    }

    /// Records handled offsets of a partition for the library to commit, and resumes the partition when there is room.
    fn handled(&mut self, partition: &Partition, offsets: impl IntoIterator<Item = i64>) {
        // The partition may be assigned to another worker by now.
        let Some(progress) = self.partitions.get_mut(partition) else { return };
        for offset in offsets {
            progress.open.remove(&offset);
        }
        let stored = partition.list(Offset::Offset(progress.handled_up_to())).and_then(|list| self.consumer.store_offsets(&list));
        if let Err(error) = stored {
            tracing::debug!(error = &error as &dyn std::error::Error, "cannot store an offset: its partition was revoked");
        }
        if progress.is_paused && progress.open.len() <= MAX_BUFFERED / 2 {
            progress.is_paused = !succeeded(partition.list(Offset::Invalid).and_then(|list| self.consumer.resume(&list)));
        }
    }

    /// Drops the waiting events of revoked partitions, which other workers handle now. Batches in flight are finished.
    fn drop_revoked(&mut self) {
        let revoked: Vec<_> = self.context.revoked.lock().drain(..).collect();
        if revoked.is_empty() {
            return;
        }
        self.generation += 1;
        for partition in &revoked {
            self.partitions.remove(partition);
        }
        // `after` filters the events of keys in flight.
        for waiting in self.keys.values_mut().filter(|waiting| !waiting.is_in_flight) {
            waiting.events.retain(|buffered| buffered.is_current(&self.partitions));
        }
        self.keys.retain(|_, waiting| waiting.is_in_flight || !waiting.events.is_empty());
        self.queue.retain(|key| self.keys.contains_key(key));
        self.deferred.retain(|key, _| self.keys.contains_key(key));
    }
}

/// Whether the library paused or resumed the partition. It fails if the partition was revoked.
fn succeeded(result: KafkaResult<()>) -> bool {
    result.inspect_err(|error| tracing::warn!(error = error as &dyn std::error::Error, "cannot pause or resume a partition")).is_ok()
}

/// A received message.
struct Received {
    partition: Partition,
    offset: i64,
    key: OrderingKey,
    content: Result<Event, InvalidMessage>,
}

/// A message that is not an event, and why.
struct InvalidMessage {
    kind: EventKind,
    value: Vec<u8>,
    problem: String,
}

impl Received {
    fn of(message: &BorrowedMessage<'_>) -> Self {
        let value = message.payload().unwrap_or_default();
        let header = |name: &str| {
            let found = message.headers()?.iter().find(|header| header.key == name)?.value?;
            String::from_utf8(found.to_vec()).ok()
        };
        let content = envelope::decode(value, header(envelope::TRACEPARENT)).map_err(|problem| InvalidMessage {
            // The worker subscribes only to topics of event types.
            kind: EventKind::ALL.into_iter().find(|kind| message.topic().ends_with(kind.as_str())).unwrap_or(EventKind::AuditLog),
            value: value.to_vec(),
            problem,
        });
        Self {
            partition: Partition { topic: message.topic().into(), number: message.partition() },
            offset: message.offset(),
            key: message.key().and_then(|key| str::from_utf8(key).ok()?.parse().ok()),
            content,
        }
    }
}
