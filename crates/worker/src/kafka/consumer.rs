//! The worker on Kafka: takes events from all topics, and has them handled key after key in turn.
//!
//! An offset is committed once its event and all before it in its partition were handled: whatever dies, they come again. A key's
//! events are handled one after the other, in the order in which they came (for each topic: another worker may have another's
//! partition); keys take turns, so that one with thousands does not
//! hold up another. What can't be handled goes to its dead-letter topic and to the operator.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use domain::{Event, EventKind, Result};
use futures_util::FutureExt;
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

/// How many events of a partition are in memory, waiting or being handled; then no more are taken until half of them are through.
const MOST_TAKEN: usize = 2_000;
/// How much more the library fetches ahead for all partitions, in KiB.
const FETCHED: &str = "16384";
/// How long the end waits for what is being handled, and for the brokers.
const GRACE: Duration = Duration::from_secs(10);
/// How long to wait after an error of the consumer's.
const PAUSE: Duration = Duration::from_millis(500);

/// A topic's partition.
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

/// How far a partition of ours is handled.
#[derive(Default)]
struct Progress {
    /// Offsets of what was taken and is not handled yet.
    open: BTreeSet<i64>,
    /// The offset after the last one that was taken.
    next: i64,
    is_paused: bool,
    /// Since when it is ours.
    generation: u64,
}

impl Progress {
    /// Everything before this offset was handled.
    fn handled_up_to(&self) -> i64 {
        self.open.first().copied().unwrap_or(self.next)
    }
}

/// An event that was taken, and from where.
struct Taken {
    event: Event,
    partition: Partition,
    offset: i64,
    generation: u64,
}

impl Taken {
    /// Whether its partition has been ours since it was taken: else it comes again, here or to others.
    fn is_ours(&self, partitions: &HashMap<Partition, Progress>) -> bool {
        partitions.get(&self.partition).is_some_and(|progress| progress.generation == self.generation)
    }
}

/// A key's events that were taken.
#[derive(Default)]
struct Waiting {
    events: VecDeque<Taken>,
    is_in_turn: bool,
}

/// Learns which partitions are not ours any more.
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
            // One that is paused would be so when it is ours again.
            is_done(consumer.resume(partitions));
            let gone = partitions.elements().into_iter().map(|it| Partition { topic: it.topic().into(), number: it.partition() });
            self.revoked.lock().unwrap_or_else(PoisonError::into_inner).extend(gone);
        }
    }
}

/// Handles what is on the topics.
pub struct KafkaWorker {
    consumer: StreamConsumer<Context>,
    context: Context,
    settings: KafkaSettings,
    kafka: Arc<KafkaBus>,
    handler: Arc<dyn Bus>,
    partitions: HashMap<Partition, Progress>,
    keys: HashMap<OrderingKey, Waiting>,
    /// Keys that wait for their turn, and those that wait until they are tried again.
    queue: VecDeque<OrderingKey>,
    later: HashMap<OrderingKey, Instant>,
    turns: JoinSet<(OrderingKey, Published)>,
    /// Messages that are no events, on their way to the dead letters.
    letters: JoinSet<(Partition, i64)>,
    /// How often partitions were revoked.
    generation: u64,
}

impl KafkaWorker {
    /// Prepares to have events handled by this bus in the process. What is no event goes to a dead-letter topic. Connects to nothing yet.
    ///
    /// # Errors
    /// When the library refuses the settings.
    pub fn new(settings: KafkaSettings, kafka: Arc<KafkaBus>, handler: Arc<dyn Bus>) -> Result<Self> {
        let context = Context::default();
        let consumer = settings
            .client()
            .set("group.id", &settings.group_id)
            .set("auto.offset.reset", &settings.auto_offset_reset)
            // Commits what was stored, and stores nothing by itself: an offset is stored when its event was handled.
            .set("enable.auto.commit", "true")
            .set("enable.auto.offset.store", "false")
            .set("auto.commit.interval.ms", "500")
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("session.timeout.ms", settings.session_timeout.as_millis().to_string())
            .set("heartbeat.interval.ms", (settings.session_timeout / 4).as_millis().to_string())
            .set("queued.max.messages.kbytes", FETCHED)
            // A topic that is made after the start is found soon.
            .set("topic.metadata.refresh.interval.ms", "5000")
            // What comes is sent at once; this is how often is asked while nothing comes.
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
            later: HashMap::new(),
            turns: JoinSet::new(),
            letters: JoinSet::new(),
            generation: 0,
        })
    }

    /// Handles events until it is to stop; what was begun is finished then, unless that takes longer than some seconds.
    ///
    /// # Errors
    /// When the topics can't be subscribed to.
    pub async fn run(mut self, stop: CancellationToken) -> Result<()> {
        let topics: Vec<_> = EventKind::ALL.into_iter().map(|kind| self.settings.topic(kind)).collect();
        let topics: Vec<_> = topics.iter().map(String::as_str).collect();
        self.consumer.subscribe(&topics).map_err(unavailable)?;
        while !stop.is_cancelled() {
            self.advance();
            let wake = self.later.values().copied().min().unwrap_or_else(|| Instant::now() + Duration::from_secs(60));
            tokio::select! {
                received = self.consumer.recv() => {
                    let received = received.map(|message| Received::of(&message));
                    // What was revoked, was so before this came: it may be of a partition that is ours again.
                    self.forget_revoked();
                    match received {
                        Ok(received) => self.take(received),
                        // Errors queue up, as messages do, several in a second while no broker is there: whoever waited after each
                        // would be deaf for as long again after one is back.
                        Err(error) => tracing::debug!(error = &error as &dyn std::error::Error, "events can't be taken now"),
                    }
                }
                Some(turn) = self.turns.join_next() => {
                    self.forget_revoked();
                    self.after(turn.ok());
                }
                Some(parked) = self.letters.join_next() => {
                    self.forget_revoked();
                    if let Ok((partition, offset)) = parked {
                        self.handled(&partition, [offset]);
                    }
                }
                () = sleep_until(wake) => {}
                () = stop.cancelled() => {}
            }
        }
        let finishing = async {
            while let Some(turn) = self.turns.join_next().await {
                self.after(turn.ok());
            }
        };
        let _unfinished_comes_again = timeout(GRACE, finishing).await;
        self.turns.shutdown().await;
        self.letters.shutdown().await;
        self.close().await;
        Ok(())
    }

    /// Leaves the group, so that others go on at once. The library may take its time with that.
    async fn close(self) {
        let consumer = self.consumer;
        let closing = tokio::task::spawn_blocking(move || {
            // What fails here is handled again.
            let _nothing_to_commit = consumer.commit_consumer_state(CommitMode::Sync);
            consumer.unsubscribe();
            drop(consumer);
        });
        if timeout(GRACE, closing).await.is_err() {
            tracing::warn!("the group was not left in time; the brokers notice by themselves");
        }
    }

    fn take(&mut self, Received { partition, offset, key, content }: Received) {
        let generation = self.generation;
        let ours = self.partitions.entry(partition.clone());
        let progress = ours.or_insert_with(|| Progress { generation, ..Progress::default() });
        progress.next = offset + 1;
        progress.open.insert(offset);
        if progress.open.len() >= MOST_TAKEN {
            progress.is_paused = is_done(partition.list(Offset::Invalid).and_then(|list| self.consumer.pause(&list)));
        }
        match content {
            Ok(event) => {
                let key = event.tenant_id;
                let waiting = self.keys.entry(key).or_default();
                waiting.events.push_back(Taken { event, partition, offset, generation: progress.generation });
                if !waiting.is_in_turn && waiting.events.len() == 1 {
                    self.queue.push_back(key);
                }
            }
            Err(NoEvent { kind, value, problem }) => {
                tracing::error!(topic = &*partition.topic, partition = partition.number, offset, problem, "a message is no event");
                let kafka = Arc::clone(&self.kafka);
                self.letters.spawn(async move {
                    while let Err(error) = kafka.send_dead_letter(kind, key, &value, &problem).await {
                        tracing::warn!(error = &error as &dyn std::error::Error, "a dead letter can't be sent; it is tried again");
                        sleep(PAUSE).await;
                    }
                    (partition, offset)
                });
            }
        }
    }

    /// Gives turns to those that wait for them.
    fn advance(&mut self) {
        let now = Instant::now();
        self.queue.extend(self.later.extract_if(|_, at| *at <= now).map(|(key, _)| key));
        while self.turns.len() < self.handler.keys_at_once()
            && let Some(key) = self.queue.pop_front()
        {
            let Some(waiting) = self.keys.get_mut(&key) else { continue };
            waiting.is_in_turn = true;
            let batch = usize::try_from(self.handler.batch()).unwrap_or(usize::MAX);
            let events: Vec<_> = waiting.events.iter().take(batch).map(|taken| taken.event.clone()).collect();
            let handler = Arc::clone(&self.handler);
            self.turns.spawn(async move {
                let handled = AssertUnwindSafe(handler.publish(key, &events)).catch_unwind().await;
                (key, handled.unwrap_or(Published { count: 0, pause: Some(PAUSE) }))
            });
        }
    }

    /// Goes on after a key's turn.
    fn after(&mut self, turn: Option<(OrderingKey, Published)>) {
        let Some((key, Published { count, pause })) = turn else { return };
        let Some(waiting) = self.keys.get_mut(&key) else { return };
        waiting.is_in_turn = false;
        let mut done: HashMap<Partition, Vec<i64>> = HashMap::new();
        for taken in waiting.events.drain(..count.min(waiting.events.len())).filter(|taken| taken.is_ours(&self.partitions)) {
            done.entry(taken.partition).or_default().push(taken.offset);
        }
        waiting.events.retain(|taken| taken.is_ours(&self.partitions));
        match (waiting.events.is_empty(), pause) {
            (true, _) => drop(self.keys.remove(&key)),
            (false, Some(pause)) => drop(self.later.insert(key, Instant::now() + pause)),
            (false, None) => self.queue.push_back(key),
        }
        for (partition, offsets) in done {
            self.handled(&partition, offsets);
        }
    }

    /// Has the library commit how far a partition is handled, and take more from it when there is room.
    fn handled(&mut self, partition: &Partition, offsets: impl IntoIterator<Item = i64>) {
        // It may be somebody else's now.
        let Some(progress) = self.partitions.get_mut(partition) else { return };
        for offset in offsets {
            progress.open.remove(&offset);
        }
        let stored = partition.list(Offset::Offset(progress.handled_up_to())).and_then(|list| self.consumer.store_offsets(&list));
        if let Err(error) = stored {
            tracing::debug!(error = &error as &dyn std::error::Error, "an offset can't be stored: its partition is somebody else's now");
        }
        if progress.is_paused && progress.open.len() <= MOST_TAKEN / 2 {
            progress.is_paused = !is_done(partition.list(Offset::Invalid).and_then(|list| self.consumer.resume(&list)));
        }
    }

    /// Others handle what is on partitions that they have now; what was begun here is finished.
    fn forget_revoked(&mut self) {
        let revoked: Vec<_> = self.context.revoked.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect();
        if revoked.is_empty() {
            return;
        }
        self.generation += 1;
        for partition in &revoked {
            self.partitions.remove(partition);
        }
        // Those in their turn are looked at after it.
        for waiting in self.keys.values_mut().filter(|waiting| !waiting.is_in_turn) {
            waiting.events.retain(|taken| taken.is_ours(&self.partitions));
        }
        self.keys.retain(|_, waiting| waiting.is_in_turn || !waiting.events.is_empty());
        self.queue.retain(|key| self.keys.contains_key(key));
        self.later.retain(|key, _| self.keys.contains_key(key));
    }
}

/// Whether the library did what it was told. It does not when a partition is somebody else's now.
fn is_done(told: KafkaResult<()>) -> bool {
    told.inspect_err(|error| tracing::warn!(error = error as &dyn std::error::Error, "a partition can't be paused or resumed")).is_ok()
}

/// A message.
struct Received {
    partition: Partition,
    offset: i64,
    key: OrderingKey,
    content: Result<Event, NoEvent>,
}

/// A message that is no event, and why.
struct NoEvent {
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
        let content = envelope::decode(value, header(envelope::TRACEPARENT)).map_err(|problem| NoEvent {
            // Those topics only are subscribed to.
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
