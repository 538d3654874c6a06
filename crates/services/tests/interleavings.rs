//! Uploads, deletes and collections in every order: an explicit-state model checker for the protocol of uploads and garbage collection
//! (`services/src/documents/{uploads,garbage}.rs`).
//!
//! A state is the content of the tables `files`, `uploads` and `documents`, of the store, and of the processes. From the empty state,
//! the checker visits every state that the processes can reach by steps in any order, and verifies it.
//!
//! **Steps.** What no other process can interrupt is one step: a transaction, or the moment at which a call takes effect at the store.
//! A transaction is one step because of its locks. A transaction that refers to a file, or marks it for deletion, locks the row of the
//! file and checks it again; a statement that waited for a lock sees what was committed meanwhile, under READ COMMITTED too. Two
//! uploads that add the same content wait for each other at the unique index. Adding a file and marking its expired upload write the
//! same row of `uploads`. The one remaining gap, between adding a file and locking an existing one, is two steps here. So is a list of
//! the collector and the work on it.
//!
//! A delete is one step, with or without its lock: the statement that deletes checks again what was read before, and a document can
//! only disappear. Others see the document until the commit, and so keep a file too long, never too briefly.
//!
//! **Crashes.** A process may die before any of its steps: the server crashed, the client hung up, a call failed or timed out. Its
//! calls to the store take effect later, at any time, or never. A crash of the server is the death of all processes, one by one.
//!
//! **Bounds.** Only what exists at the same time is bounded: 3 uploads with one document each (two of equal content), 2 collections, any
//! number of deletes, and 3 keys with anything left of them. Every process that ends may begin again. So the states are those of all
//! histories within these bounds, of any length and with any number of repetitions (retries of an upload, rounds of the collector),
//! expiries and crashes. They include all histories of 3 uploads, 2 deletes, 2 collections and a crash. (With a fourth key, in the
//! thorough check, an upload that could not delete its unused key continues beside two others.) Where puts land late or twice, there
//! are 2 keys, and 3 in the thorough check.
//!
//! **Time.** The grace period is 0, and an upload may expire at any moment.
//!
//! **Symmetry.** States that differ only in the names of keys, collections or equal uploads are one state. A key without any row,
//! object or process is removed from the lists and counts as new: keys are never used twice, so a process that has it in a list finds
//! nothing. (The seeded fault that reuses keys does without this.)
//!
//! **The engine** is our own. stateright 0.31 visits the same states in 1.4 times the time on one thread and would replace some 100
//! lines, but its breadth-first search has no symmetry reduction, so the renaming of keys would stay, and it brings some 40 crates.
#![expect(clippy::cast_possible_truncation, reason = "there are few keys, and a hash may lose bits")]
#![expect(clippy::print_stdout, reason = "the tests report figures and traces")]

use std::{
    fmt::{self, Display, Formatter},
    time::{Duration, Instant},
};

/// The maximum number of keys in use at once. An upload holds one at a time; crashes and deletes leave others to the collector.
const KEYS: usize = 4;
/// The content of each upload.
const CONTENT: [u8; 3] = [1, 1, 2];
const UPLOADS: usize = CONTENT.len();
const COLLECTIONS: usize = 2;

/// The guarantees of a store. Where both hold, as for files, a marked row is purged with its object. Otherwise the row is purged, after
/// another delete of the object, only when no put of the key can be in flight: when the store's late-write window has passed since the
/// mark. The length of the window is not modelled; the protocol assumes that it is sufficient.
#[derive(Clone, Copy)]
struct World {
    /// A put takes effect, if ever, before its upload intent expires. The lifetime of an intent is three times the timeout of the store
    /// for this. It requires a store that drops requests which it has not executed for so long, and a process that is not stopped for
    /// so long between recording and sending.
    puts_land_in_time: bool,
    /// An acknowledged put does not take effect again. A client violates this when it retries a put that seemed to fail while the store
    /// continues with the first one.
    puts_land_once: bool,
}

impl World {
    /// Whether a marked row may be purged with its object.
    const fn purges_at_once(self) -> bool {
        self.puts_land_in_time && self.puts_land_once
    }
}

const KIND: World = World { puts_land_in_time: true, puts_land_once: true };

/// A seeded fault, which the checker must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// The collector marks what it listed without checking it again.
    MarksUnchecked,
    /// Equal content gets the same key again.
    ReusesKeys,
    /// The collector deletes the object before the mark is committed.
    DeletesBeforeMarking,
    /// An upload becomes a document although it is marked for deletion.
    IgnoresMark,
    /// An upload refers to a file without locking its row.
    RefersUnlocked,
    /// The object is put before the upload intent is recorded.
    PutsBeforeRecording,
    /// The collector deletes the row before the object.
    PurgesBeforeDeleting,
    /// The row is purged with the object although a put may still be in flight.
    PurgesEarly,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Row {
    #[default]
    None,
    Living,
    Marked,
}

/// Everything that exists under one key.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    /// The content in the row of the file or of the upload; 0 for none.
    content: u8,
    /// The row of `files`.
    file: Row,
    /// The row of `uploads`.
    upload: Row,
    /// The content of the object in the store; 0 for none.
    object: u8,
    /// The content of a put in flight whose process is dead; 0 for none.
    late_put: u8,
    /// Whether a delete is in flight whose process is dead.
    late_delete: bool,
}

/// The next step of an upload.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Next {
    /// Refers to an existing file, or records the upload intent.
    #[default]
    Begin,
    /// The put, in flight.
    Put,
    /// Adds the file.
    Add,
    /// Locks the existing file, after a conflict.
    Lock,
    /// The delete of its own object, in flight.
    Discard,
    /// Deletes the row of the upload.
    Purge,
    /// Adds the document, with [`Fault::RefersUnlocked`].
    Refer,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Upload {
    next: Next,
    /// Its key, unless it has not begun.
    key: u8,
    /// The file that its document refers to, plus 1; 0 for no document. The commit acknowledges the document: only a delete removes
    /// it.
    document: u8,
}

/// The next step of a collection.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// Lists orphaned files, marked files or marked uploads, or marks an expired upload, in any order.
    #[default]
    List,
    /// Marks the listed files that are still orphaned.
    Mark,
    /// The commit of it, with [`Fault::DeletesBeforeMarking`].
    Commit,
    /// Deletes the objects of the listed files.
    DeleteFile,
    /// Deletes the row of a file.
    PurgeFile,
    /// Deletes the objects of the listed uploads.
    DeleteUpload,
    /// Deletes the row of an upload.
    PurgeUpload,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Collection {
    phase: Phase,
    /// The listed keys that remain, one bit each.
    to_do: u8,
    /// The key whose row is purged next.
    key: u8,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct State {
    keys: [Key; KEYS],
    uploads: [Upload; UPLOADS],
    collections: [Collection; COLLECTIONS],
}

/// A step of a process, for the trace.
#[derive(Clone, Copy)]
struct Step {
    who: &'static str,
    number: usize,
    what: &'static str,
    key: usize,
}

impl Display for Step {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Step { who, number, what, key } = self;
        match (*who, *key) {
            ("store", _) => write!(f, "store: {what} (key {key})"),
            (_, KEYS) => write!(f, "{who} {number}: {what}"),
            _ => write!(f, "{who} {number}: {what} (key {key})"),
        }
    }
}

impl Key {
    fn pack(self) -> u64 {
        let Self { content, file, upload, object, late_put, late_delete } = self;
        let rows = u64::from(content) << 9 | u64::from(file as u8) << 7 | u64::from(upload as u8) << 5;
        rows | u64::from(object) << 3 | u64::from(late_put) << 1 | u64::from(late_delete)
    }
}

fn bits(set: u8) -> impl Iterator<Item = usize> {
    (0..KEYS).filter(move |key| set & 1 << key != 0)
}

impl State {
    fn is_referred_to(&self, key: usize) -> bool {
        self.uploads.iter().any(|upload| usize::from(upload.document) == key + 1)
    }

    /// The living file with this content.
    fn find(&self, content: u8) -> Option<usize> {
        self.keys.iter().position(|key| key.file == Row::Living && key.content == content)
    }

    fn list(&self, is_listed: impl Fn(usize, &Key) -> bool) -> u8 {
        (0..KEYS).filter(|key| is_listed(*key, &self.keys[*key])).fold(0, |set, key| set | 1 << key)
    }

    fn is_put_under_way(&self, key: usize) -> bool {
        self.keys[key].late_put != 0 || self.uploads.iter().any(|upload| upload.next == Next::Put && usize::from(upload.key) == key)
    }

    /// A violation that no state may have: a document without its object.
    fn violation(&self) -> Option<&'static str> {
        for (upload, content) in self.uploads.iter().zip(CONTENT) {
            let Some(key) = usize::from(upload.document).checked_sub(1) else { continue };
            let key = &self.keys[key];
            if key.file != Row::Living {
                return Some("a document whose file is not alive");
            }
            if key.object == 0 {
                return Some("a document without its object");
            }
            if key.object != content || key.content != content {
                return Some("a document with the content of another");
            }
        }
        None
    }

    fn sort_processes(&mut self) {
        self.collections.sort_unstable();
        // The first two uploads have equal content.
        if self.uploads[0] > self.uploads[1] {
            self.uploads.swap(0, 1);
        }
    }

    /// Renames the keys, ordered by their state and their holders.
    fn sort_keys(&mut self) {
        let mut order = [0; KEYS];
        for (key, place) in order.iter_mut().enumerate() {
            let mut sign = self.keys[key].pack();
            for upload in &self.uploads {
                let holds = upload.next != Next::Begin && usize::from(upload.key) == key;
                sign = sign << 2 | u64::from(holds) << 1 | u64::from(usize::from(upload.document) == key + 1);
            }
            for collection in &self.collections {
                sign = sign << 2 | u64::from(collection.to_do >> key & 1) << 1 | u64::from(usize::from(collection.key) == key);
            }
            *place = sign << 8 | key as u64;
        }
        if order.is_sorted() {
            return;
        }
        order.sort_unstable();
        let mut renamed = [0; KEYS];
        let keys = self.keys;
        for (new, sign) in order.iter().enumerate() {
            let old = *sign as usize & 0xff;
            renamed[old] = new as u8;
            self.keys[new] = keys[old];
        }
        for upload in &mut self.uploads {
            if upload.next != Next::Begin {
                upload.key = renamed[usize::from(upload.key)];
            }
            if upload.document != 0 {
                upload.document = renamed[usize::from(upload.document) - 1] + 1;
            }
        }
        for collection in &mut self.collections {
            collection.to_do = bits(collection.to_do).fold(0, |set, key| set | 1 << renamed[key]);
            if matches!(collection.phase, Phase::Commit | Phase::PurgeFile | Phase::PurgeUpload) {
                collection.key = renamed[usize::from(collection.key)];
            }
        }
    }

    fn pack(&self) -> u128 {
        let mut packed = 0;
        for key in &self.keys {
            packed = packed << 11 | u128::from(key.pack());
        }
        for Upload { next, key, document } in self.uploads {
            packed = packed << 9 | u128::from(next as u8) << 6 | u128::from(key) << 3 | u128::from(document);
        }
        for Collection { phase, to_do, key } in self.collections {
            packed = packed << 12 | u128::from(phase as u8) << 9 | u128::from(to_do) << 3 | u128::from(key);
        }
        packed
    }
}

#[derive(Clone, Copy)]
struct Model {
    /// The number of keys.
    keys: usize,
    world: World,
    seeded: Option<Fault>,
    /// Whether states that differ only in names are one state. Otherwise names keep their meaning throughout a trace.
    is_symmetric: bool,
    /// Whether objects count that no row or process refers to.
    sees_leftovers: bool,
}

impl Model {
    fn has(&self, fault: Fault) -> bool {
        self.seeded == Some(fault)
    }

    fn purges_at_once(&self) -> bool {
        self.world.purges_at_once() || self.has(Fault::PurgesEarly)
    }

    /// All possible steps of a state, with their results.
    fn steps(&self, state: &State, mut to: impl FnMut(Step, State)) {
        let mut to = |who, number, what, key, state| to(Step { who, number, what, key }, state);
        for number in 0..UPLOADS {
            self.upload(state, number, &mut |what, key, state| to("upload", number, what, key, state));
            // A delete is one step: others read nothing that it changes but the document itself.
            if state.uploads[number].document != 0 {
                let mut next = *state;
                next.uploads[number].document = 0;
                to("delete", number, "the document is deleted", KEYS, next);
            }
        }
        for number in 0..COLLECTIONS {
            self.collect(state, number, &mut |what, key, state| to("collection", number, what, key, state));
        }
        for (number, key) in state.keys.iter().enumerate() {
            let mut next = *state;
            if key.late_put != 0 {
                if self.sees_leftovers {
                    next.keys[number].late_put = 0;
                    to("store", 0, "a late put is lost", number, next);
                }
                // Where leftovers do not count, it may take effect any number of times, which leaves fewer states.
                next.keys[number].object = key.late_put;
                to("store", 0, "a late put takes effect", number, next);
            }
            // A lost delete needs no step: this one may never be taken.
            if key.late_delete {
                let mut next = *state;
                next.keys[number].late_delete = false;
                next.keys[number].object = 0;
                to("store", 0, "a late delete takes effect", number, next);
            }
        }
    }

    fn upload(&self, state: &State, number: usize, to: &mut impl FnMut(&'static str, usize, State)) {
        let Upload { next, key, document } = state.uploads[number];
        let (content, key) = (CONTENT[number], usize::from(key));
        let mut after = *state;
        let me = &mut after.uploads[number];
        if next != Next::Begin {
            *me = Upload { document, ..Upload::default() };
            match next {
                Next::Put => after.keys[key].late_put = content,
                Next::Discard => after.keys[key].late_delete = true,
                _ => {}
            }
            to("dies", key, after);
        }
        let mut after = *state;
        let me = &mut after.uploads[number];
        match next {
            Next::Begin if document != 0 => {}
            Next::Begin => match state.find(content) {
                Some(there) if self.has(Fault::RefersUnlocked) => {
                    *me = Upload { next: Next::Refer, key: there as u8, document };
                    to("finds the content", there, after);
                }
                Some(there) => {
                    if !self.is_locked(state, there) {
                        me.document = there as u8 + 1;
                        to("the content is there: adds the document", there, after);
                    }
                }
                None => {
                    let Some(key) = self.new_key(state, content) else { return };
                    *me = Upload { next: Next::Put, key: key as u8, document };
                    after.keys[key].content = content;
                    if self.has(Fault::PutsBeforeRecording) {
                        to("begins to put the object", key, after);
                    } else if state.keys[key].upload == Row::None {
                        after.keys[key].upload = Row::Living;
                        to("records the upload", key, after);
                    }
                }
            },
            Next::Put => {
                me.next = Next::Add;
                after.keys[key].object = content;
                if self.has(Fault::PutsBeforeRecording) {
                    after.keys[key].upload = Row::Living;
                    // In two steps: first put, then recorded.
                    let mut put = *state;
                    put.keys[key].object = content;
                    if state.keys[key].object == 0 {
                        to("the object is there", key, put);
                        return;
                    }
                    to("records the upload", key, after);
                    return;
                }
                if self.world.puts_land_once || self.sees_leftovers {
                    to("the object is there", key, after);
                }
                if !self.world.puts_land_once {
                    after.keys[key].late_put = content;
                    to("the object is there, and a copy of the put is in flight", key, after);
                }
            }
            Next::Add => match state.find(content) {
                Some(_) => {
                    me.next = Next::Lock;
                    to("finds that it is not the first", key, after);
                }
                // A second row with this key: the transaction fails, and so does the upload.
                None if state.keys[key].file != Row::None => {}
                None if state.keys[key].upload == Row::Living || self.has(Fault::IgnoresMark) => {
                    *me = Upload { document: key as u8 + 1, ..Upload::default() };
                    let key_after = &mut after.keys[key];
                    key_after.file = Row::Living;
                    if key_after.upload == Row::Living {
                        key_after.upload = Row::None;
                    }
                    to("adds file and document", key, after);
                }
                None => {
                    me.next = Next::Discard;
                    to("finds itself expired", key, after);
                }
            },
            Next::Lock => match state.find(content) {
                Some(there) if self.is_locked(state, there) => {}
                Some(there) => {
                    *me = Upload { next: Next::Discard, key: key as u8, document: there as u8 + 1 };
                    if state.keys[key].upload != Row::None {
                        after.keys[key].upload = Row::Marked;
                    }
                    to("refers to the other's file, marks its own key", key, after);
                }
                None => {
                    me.next = Next::Add;
                    to("the other's file is gone: tries again", key, after);
                }
            },
            Next::Discard => {
                if self.purges_at_once() {
                    me.next = Next::Purge;
                } else {
                    // The collector purges the row.
                    *me = Upload { document, ..Upload::default() };
                }
                after.keys[key].object = 0;
                to("the object is deleted", key, after);
            }
            Next::Purge => {
                *me = Upload { document, ..Upload::default() };
                if state.keys[key].upload == Row::Marked {
                    after.keys[key].upload = Row::None;
                }
                to("the row of uploads is deleted", key, after);
            }
            Next::Refer => {
                *me = Upload { document, ..Upload::default() };
                // Without the row, the foreign key refuses the document.
                if state.keys[key].file != Row::None {
                    after.uploads[number].document = key as u8 + 1;
                    to("adds the document", key, after);
                }
            }
        }
    }

    fn collect(&self, state: &State, number: usize, to: &mut impl FnMut(&'static str, usize, State)) {
        let Collection { phase, to_do, key } = state.collections[number];
        let key = usize::from(key);
        let at = |phase, to_do| {
            let mut after = *state;
            after.collections[number] = Collection { phase, to_do, key: 0 };
            after
        };
        if phase != Phase::List {
            let mut after = at(Phase::List, 0);
            if matches!(phase, Phase::DeleteFile | Phase::DeleteUpload) && !self.has(Fault::PurgesBeforeDeleting) {
                // Any of them may be in flight.
                bits(to_do).for_each(|key| after.keys[key].late_delete = true);
            }
            to("dies", KEYS, after);
        }
        match phase {
            Phase::List => {
                for (number, key) in state.keys.iter().enumerate() {
                    // One at a time, any number of times, covers all at once.
                    let may_expire = !self.world.puts_land_in_time || !state.is_put_under_way(number);
                    if key.upload == Row::Living && may_expire {
                        let mut after = *state;
                        after.keys[number].upload = Row::Marked;
                        to("marks the expired upload", number, after);
                    }
                }
                let orphaned = state.list(|number, key| key.file == Row::Living && !state.is_referred_to(number));
                let files = state.list(|_, key| key.file == Row::Marked);
                let uploads = state.list(|_, key| key.upload == Row::Marked);
                for (what, list, phase) in [
                    ("lists orphaned files", orphaned, Phase::Mark),
                    ("lists marked files", files, Phase::DeleteFile),
                    ("lists marked uploads", uploads, Phase::DeleteUpload),
                ] {
                    if list != 0 {
                        to(what, KEYS, at(phase, list));
                    }
                }
            }
            Phase::Mark => {
                for key in bits(to_do) {
                    let mut after = at(Phase::Mark, to_do & !(1 << key));
                    let is_orphaned = state.keys[key].file == Row::Living && !state.is_referred_to(key);
                    if self.is_locked(state, key) {
                    } else if is_orphaned && self.has(Fault::DeletesBeforeMarking) {
                        after.keys[key].object = 0;
                        after.collections[number].phase = Phase::Commit;
                        after.collections[number].key = key as u8;
                        to("deletes the object", key, after);
                    } else if is_orphaned || self.has(Fault::MarksUnchecked) && state.keys[key].file == Row::Living {
                        after.keys[key].file = Row::Marked;
                        to("marks the file", key, after);
                    } else {
                        to("finds the file in use or gone", key, after);
                    }
                }
            }
            Phase::Commit => {
                let mut after = at(Phase::Mark, to_do);
                after.keys[key].file = Row::Marked;
                to("marks the file", key, after);
            }
            Phase::DeleteFile | Phase::DeleteUpload => {
                let is_file = phase == Phase::DeleteFile;
                for key in bits(to_do) {
                    let mut after = at(if is_file { Phase::PurgeFile } else { Phase::PurgeUpload }, to_do & !(1 << key));
                    after.collections[number].key = key as u8;
                    if self.has(Fault::PurgesBeforeDeleting) {
                        purge(&mut after.keys[key], is_file);
                        to("deletes the row", key, after);
                    } else if self.purges_at_once() || !state.is_put_under_way(key) {
                        after.keys[key].object = 0;
                        to("deletes the object", key, after);
                    } else {
                        after.keys[key].object = 0;
                        after.collections[number].phase = phase;
                        after.collections[number].key = 0;
                        to("deletes the object, keeps the row for the late-write window", key, after);
                    }
                }
            }
            Phase::PurgeFile | Phase::PurgeUpload => {
                let is_file = phase == Phase::PurgeFile;
                let mut after = at(if is_file { Phase::DeleteFile } else { Phase::DeleteUpload }, to_do);
                if self.has(Fault::PurgesBeforeDeleting) {
                    after.keys[key].object = 0;
                    to("deletes the object", key, after);
                } else {
                    purge(&mut after.keys[key], is_file);
                    to("deletes the row", key, after);
                }
            }
        }
    }

    /// Whether a transaction of more than one step holds the file's row.
    fn is_locked(&self, state: &State, key: usize) -> bool {
        self.has(Fault::DeletesBeforeMarking)
            && state.collections.iter().any(|collection| collection.phase == Phase::Commit && usize::from(collection.key) == key)
    }

    /// Whether a key exists outside of lists and late deletes.
    fn is_known(&self, state: &State, key: usize) -> bool {
        let Key { file, upload, object, late_put, .. } = state.keys[key];
        file != Row::None
            || upload != Row::None
            || self.sees_leftovers && (object != 0 || late_put != 0)
            || state.uploads.iter().any(|upload| upload.next != Next::Begin && usize::from(upload.key) == key)
            || state.is_referred_to(key)
    }

    /// A key that was never used, or none when the bound is reached.
    fn new_key(&self, state: &State, content: u8) -> Option<usize> {
        match self.seeded {
            Some(Fault::ReusesKeys) => Some(usize::from(content) - 1),
            _ => {
                let mut new = (0..KEYS).filter(|key| !self.is_known(state, *key));
                if new.clone().count() > KEYS - self.keys { new.next() } else { None }
            }
        }
    }

    /// Removes differences without effect.
    fn normalise(&self, state: &mut State) {
        if !self.has(Fault::ReusesKeys) {
            for key in 0..KEYS {
                if !self.is_known(state, key) {
                    state.keys[key] = Key::default();
                    for collection in &mut state.collections {
                        collection.to_do &= !(1 << key);
                        let purges = matches!(collection.phase, Phase::PurgeFile | Phase::PurgeUpload);
                        if purges && usize::from(collection.key) == key {
                            collection.key = 0;
                            collection.phase = if collection.phase == Phase::PurgeFile { Phase::DeleteFile } else { Phase::DeleteUpload };
                        }
                    }
                } else if state.keys[key].object == 0 && !state.is_put_under_way(key) {
                    // There is no object to delete, and will be none.
                    state.keys[key].late_delete = false;
                }
            }
        }
        for collection in &mut state.collections {
            if collection.to_do == 0 && matches!(collection.phase, Phase::Mark | Phase::DeleteFile | Phase::DeleteUpload) {
                collection.phase = Phase::List;
            }
        }
        if self.is_symmetric {
            state.sort_processes();
            if !self.has(Fault::ReusesKeys) {
                state.sort_keys();
                state.sort_processes();
            }
        }
    }

    /// A violation that remains, when nothing is in flight, after a last collection with everything expired.
    fn leftover(&self, state: &State) -> Option<&'static str> {
        let at_rest = state.uploads.iter().all(|upload| upload.next == Next::Begin)
            && state.collections.iter().all(|collection| collection.phase == Phase::List)
            && state.keys.iter().all(|key| key.late_put == 0);
        if !at_rest || !self.sees_leftovers {
            return None;
        }
        let model = Self { is_symmetric: false, ..*self };
        let mut last = Some(*state);
        let mut state = *state;
        // Every step makes progress, so any order will do.
        while let Some(next) = last.take() {
            state = next;
            model.normalise(&mut state);
            model.collect(&state, 0, &mut |what, _, next| {
                if what != "dies" {
                    last = Some(next);
                }
            });
        }
        for (number, key) in state.keys.iter().enumerate() {
            let is_needed = state.is_referred_to(number);
            if !is_needed && (key.file != Row::None || key.upload != Row::None) {
                return Some("an unreferenced row");
            }
            if !is_needed && key.object != 0 {
                return Some("an object without a row");
            }
        }
        state.violation()
    }

    /// Visits all states in breadth-first order until one has a violation.
    fn check(&self) -> Outcome {
        let start = Instant::now();
        let mut states = vec![State::default()];
        let mut parents = vec![0_u32];
        let mut seen = Set::new();
        seen.insert(State::default().pack());
        let (mut at, mut transitions) = (0, 0_u64);
        while let Some(state) = states.get(at).copied() {
            if let Some(violation) = state.violation().or_else(|| self.leftover(&state)) {
                let trace = self.trace(&states, &parents, at);
                return Outcome { violation: Some((violation, trace)), states: states.len(), transitions, time: start.elapsed() };
            }
            self.steps(&state, |_, mut next| {
                self.normalise(&mut next);
                transitions += 1;
                if seen.insert(next.pack()) {
                    states.push(next);
                    parents.push(at as u32);
                }
            });
            at += 1;
        }
        Outcome { violation: None, states: states.len(), transitions, time: start.elapsed() }
    }

    /// The steps to a state.
    fn trace(&self, states: &[State], parents: &[u32], mut at: usize) -> Vec<String> {
        let mut trace = Vec::new();
        while at != 0 {
            let parent = parents[at] as usize;
            let mut taken = None;
            self.steps(&states[parent], |step, mut next| {
                self.normalise(&mut next);
                if next == states[at] {
                    taken.get_or_insert(step);
                }
            });
            trace.push(taken.map_or_else(String::new, |step| step.to_string()));
            at = parent;
        }
        trace.reverse();
        trace
    }
}

fn purge(key: &mut Key, is_file: bool) {
    let row = if is_file { &mut key.file } else { &mut key.upload };
    if *row == Row::Marked {
        *row = Row::None;
    }
}

struct Outcome {
    violation: Option<(&'static str, Vec<String>)>,
    states: usize,
    transitions: u64,
    time: Duration,
}

impl Display for Outcome {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} states, {} transitions, {:.1?}", self.states, self.transitions, self.time)?;
        let Some((violation, trace)) = &self.violation else { return Ok(()) };
        for (number, step) in trace.iter().enumerate() {
            writeln!(f, "{:3}. {step}", number + 1)?;
        }
        writeln!(f, "     → {violation}")
    }
}

/// A set of packed states.
struct Set {
    slots: Vec<u128>,
    count: usize,
}

impl Set {
    fn new() -> Self {
        Self { slots: vec![u128::MAX; 1 << 16], count: 0 }
    }

    fn insert(&mut self, value: u128) -> bool {
        if self.count * 2 >= self.slots.len() {
            let larger = vec![u128::MAX; self.slots.len() * 2];
            for value in std::mem::replace(&mut self.slots, larger) {
                if value != u128::MAX {
                    let at = self.place(value);
                    self.slots[at] = value;
                }
            }
        }
        let at = self.place(value);
        let is_new = self.slots[at] != value;
        if is_new {
            self.slots[at] = value;
            self.count += 1;
        }
        is_new
    }

    /// The slot of a value, or the free slot for it.
    fn place(&self, value: u128) -> usize {
        let folded = (value as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ ((value >> 64) as u64).wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
        let mut at = (folded ^ folded >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15) as usize >> 20;
        loop {
            at &= self.slots.len() - 1;
            if self.slots[at] == value || self.slots[at] == u128::MAX {
                return at;
            }
            at += 1;
        }
    }
}

const MODEL: Model = Model { keys: 3, world: KIND, seeded: None, is_symmetric: true, sees_leftovers: true };

fn holds(model: Model) {
    let outcome = model.check();
    println!("{outcome}");
    assert!(outcome.violation.is_none(), "{outcome}");
}

fn fails(model: Model, expected: &str) {
    let model = Model { keys: KEYS, is_symmetric: false, ..model };
    let outcome = model.check();
    println!("{outcome}");
    assert_eq!(outcome.violation.as_ref().map(|(violation, _)| *violation), Some(expected), "{outcome}");
}

#[test]
fn documents_keep_their_objects_and_nothing_else_remains() {
    holds(MODEL);
}

#[test]
#[ignore = "9.5 million states: .ci/soak runs it, with --release"]
fn thoroughly() {
    holds(Model { keys: KEYS, ..MODEL });
    holds(Model { world: ANY, ..MODEL });
}

const LEFT: &str = "an object without a row";
const LATE: World = World { puts_land_in_time: false, ..KIND };
const TWICE: World = World { puts_land_once: false, ..KIND };
const ANY: World = World { puts_land_in_time: false, puts_land_once: false };

#[test]
fn nothing_remains_when_puts_land_late() {
    holds(Model { keys: 2, world: LATE, ..MODEL });
}

#[test]
fn nothing_remains_when_puts_land_twice() {
    holds(Model { keys: 2, world: TWICE, ..MODEL });
}

#[test]
fn nothing_remains_when_puts_land_late_and_twice() {
    holds(Model { keys: 2, world: ANY, ..MODEL });
}

/// Documents are safe even with this fault.
#[test]
fn purging_within_the_late_write_window_is_found() {
    let early = Model { seeded: Some(Fault::PurgesEarly), ..MODEL };
    fails(Model { world: LATE, ..early }, LEFT);
    fails(Model { world: TWICE, ..early }, LEFT);
    holds(Model { keys: 2, world: ANY, sees_leftovers: false, ..early });
}

fn is_found(fault: Fault, expected: &str) {
    fails(Model { seeded: Some(fault), ..MODEL }, expected);
}

#[test]
fn marking_without_a_check_is_found() {
    is_found(Fault::MarksUnchecked, "a document whose file is not alive");
}

#[test]
fn reusing_a_key_is_found() {
    is_found(Fault::ReusesKeys, "a document without its object");
}

#[test]
fn deleting_before_marking_is_found() {
    is_found(Fault::DeletesBeforeMarking, "a document without its object");
}

#[test]
fn completing_a_marked_upload_is_found() {
    is_found(Fault::IgnoresMark, "a document without its object");
}

#[test]
fn referring_to_a_file_without_a_lock_is_found() {
    is_found(Fault::RefersUnlocked, "a document whose file is not alive");
}

#[test]
fn putting_before_recording_is_found() {
    is_found(Fault::PutsBeforeRecording, LEFT);
}

#[test]
fn purging_before_deleting_is_found() {
    is_found(Fault::PurgesBeforeDeleting, LEFT);
}
