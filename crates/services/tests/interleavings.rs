//! Uploads, deletes and collections in every order: an explicit-state model checker for the protocol of
//! `services/src/{documents,garbage}.rs`.
//!
//! A state is what the tables `files`, `uploads` and `documents`, the store, and the processes hold. From the empty state, every
//! state is visited that the processes can bring about by taking steps in any order, and looked at.
//!
//! **The steps.** What others can't come between is one step: a transaction, or the moment a call takes effect at the store. A
//! transaction is one step because of its locks. Whoever refers to a file, or condemns it, locks the file's row and looks again; a
//! statement that waited for a lock sees what was committed meanwhile, under READ COMMITTED too. Two uploads that add the same
//! content wait for each other at the unique index. `files::add` and `condemn_expired` write the same row of `uploads`. The one
//! gap that this leaves, between `files::add` and `lock_by_content`, is two steps here. So is a list of the collector's and what
//! comes of it.
//!
//! A delete is one step, with its lock or without: what it looked at before is looked at again by the statement that deletes,
//! and a document can only go. Others see it until the commit, and then keep a file too long, never too short.
//!
//! **Death.** A process may die before any of its steps: the server crashed, the client hung up, a call failed or timed out. What it
//! had asked the store for takes effect later, at any time, or never. A crash is the death of all, one after the other.
//!
//! **The bounds.** Nothing is counted but what is there at once: 3 uploads with the document of each (two of equal content), 2
//! collections, any number of deletes, and 3 keys of which anything is left. Whatever ends may begin again. So the states are those of
//! every history, however long and with however many repetitions (`ATTEMPTS`, the collector's loop), expiries and deaths, in which
//! never more than that is there. Among them are all of 3 uploads, 2 deletes, 2 collections and a crash. (A fourth key, in the
//! thorough check, lets an upload that could not delete its spent key go on beside two others.) Where puts land late or twice, it is 2
//! keys, and 3 in the thorough check.
//!
//! **Time.** The grace is 0, and an upload may expire at any moment.
//!
//! **Names.** States that differ in the names of keys, collections or equal uploads are one. A key of which no row, object or process
//! is left is struck from the lists and taken for new: no key is used twice, so whoever has it listed finds nothing. (The planted
//! mistake that uses keys twice does without this.)
#![expect(clippy::cast_possible_truncation, reason = "keys are few, and a hash may lose bits")]
#![expect(clippy::print_stdout, reason = "the numbers and the traces are what the tests have to say")]

use std::{
    fmt::{self, Display, Formatter},
    time::{Duration, Instant},
};

/// The most keys that can be known at once. An upload holds one at a time; what died or was deleted leaves others to the collector.
const KEYS: usize = 4;
/// The content of each upload.
const CONTENT: [u8; 3] = [1, 1, 2];
const UPLOADS: usize = CONTENT.len();
const COLLECTIONS: usize = 2;

/// What a store is like. Where both hold, as for files, a condemned row goes with its object. Where one doesn't, the row goes, and the
/// object once more before it, only when no put of the key can be under way: when the store's `settling_time` has passed since the
/// condemnation. How long that is, is not modelled; what the protocol takes for granted is that it is long enough.
#[derive(Clone, Copy)]
struct World {
    /// What an upload sent to the store takes effect, if ever, before its note expires. `UPLOAD_LIFE` is three times
    /// `TRANSFER_TIMEOUT` for that. It takes a store that drops what it has not done for so long, and a process that is not stopped
    /// for so long between noting and sending.
    puts_land_in_time: bool,
    /// A put that was acknowledged does not take effect once more. A client that repeats a put which seemed to fail, while the store
    /// goes on with the first, breaks this.
    puts_land_once: bool,
}

impl World {
    /// Whether what is condemned may be forgotten with its object.
    const fn settles_at_once(self) -> bool {
        self.puts_land_in_time && self.puts_land_once
    }
}

const KIND: World = World { puts_land_in_time: true, puts_land_once: true };

/// A mistake, planted to see whether it would be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bug {
    /// The collector condemns what it listed without looking again.
    CondemnsUnseen,
    /// The same content gets the same key again.
    ReusesKeys,
    /// The collector deletes the object before the condemnation is committed.
    DeletesBeforeCondemning,
    /// An upload becomes a document though it was condemned.
    IgnoresCondemnation,
    /// An upload refers to a file without locking its row.
    RefersUnlocked,
    /// The object is put before the upload is noted.
    PutsBeforeNoting,
    /// The collector deletes the row before the object.
    ForgetsBeforeDeleting,
    /// The row goes with the object though a put may still be under way.
    ForgetsUnsettled,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Row {
    #[default]
    None,
    Living,
    Condemned,
}

/// Everything there is under one key.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    /// The content that the file's row or the upload's intends; 0 for none.
    content: u8,
    /// The row of `files`.
    file: Row,
    /// The row of `uploads`.
    upload: Row,
    /// The content of the object in the store; 0 for none.
    object: u8,
    /// The content of a put under way whose process is dead; 0 for none.
    late_put: u8,
    /// Whether a delete is under way whose process is dead.
    late_delete: bool,
}

/// What an upload does next.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Next {
    /// `refer_or_note_upload`.
    #[default]
    Begin,
    /// `put`, under way.
    Put,
    /// `files::add`.
    Add,
    /// `lock_by_content`, after a conflict.
    Lock,
    /// `delete` of `delete_condemned_upload`, under way.
    Discard,
    /// The transaction of `delete_condemned_upload`.
    Forget,
    /// `insert_document`, with [`Bug::RefersUnlocked`].
    Refer,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Upload {
    next: Next,
    /// Its key, unless it is to begin.
    key: u8,
    /// The file that its document refers to, plus 1; 0 for no document. Its transaction is its acknowledgement: only a delete takes
    /// back what was committed.
    document: u8,
}

/// What a collection does next.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// `files::list_orphaned`, `files::list_condemned`, `uploads::condemn_expired` or `uploads::list_condemned`. Their order is
    /// left open.
    #[default]
    List,
    /// `condemn_if_orphaned` of what is to do.
    Condemn,
    /// The commit of it, with [`Bug::DeletesBeforeCondemning`].
    Commit,
    /// `delete` of what is to do, in `delete_condemned`.
    DeleteFile,
    /// The transaction of `delete_condemned`.
    ForgetFile,
    /// `delete` of what is to do, in `delete_condemned_upload`.
    DeleteUpload,
    /// The transaction of `delete_condemned_upload`.
    ForgetUpload,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Collection {
    phase: Phase,
    /// What it listed and has not come to yet, one bit a key.
    to_do: u8,
    /// The key whose row is to go.
    key: u8,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct State {
    keys: [Key; KEYS],
    uploads: [Upload; UPLOADS],
    collections: [Collection; COLLECTIONS],
}

/// Who does what, for the trace.
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

    /// What is wrong with a state at any time: a document without its object.
    fn fault(&self) -> Option<&'static str> {
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

    /// Renames the keys: in the order of what they are and who holds them.
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
            if matches!(collection.phase, Phase::Commit | Phase::ForgetFile | Phase::ForgetUpload) {
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
    /// How many keys there may be.
    keys: usize,
    world: World,
    bug: Option<Bug>,
    /// Whether what differs in names only is one state. Without, a name means the same all through a trace.
    is_symmetric: bool,
    /// Whether an object counts of which no row or process knows.
    sees_leftovers: bool,
}

impl Model {
    fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    fn settles_at_once(&self) -> bool {
        self.world.settles_at_once() || self.has(Bug::ForgetsUnsettled)
    }

    /// Every step that can be taken in a state, and where it leads.
    fn steps(&self, state: &State, mut to: impl FnMut(Step, State)) {
        let mut to = |who, number, what, key, state| to(Step { who, number, what, key }, state);
        for number in 0..UPLOADS {
            self.upload(state, number, &mut |what, key, state| to("upload", number, what, key, state));
            // `delete_document`: one step. It changes nothing that others look at but the document itself.
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
                // Where leftovers don't count, as often as it likes: that is less to tell apart.
                next.keys[number].object = key.late_put;
                to("store", 0, "a late put takes effect", number, next);
            }
            // One that is lost needs no step: it need not be taken.
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
                Some(there) if self.has(Bug::RefersUnlocked) => {
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
                    if self.has(Bug::PutsBeforeNoting) {
                        to("begins to put the object", key, after);
                    } else if state.keys[key].upload == Row::None {
                        after.keys[key].upload = Row::Living;
                        to("notes the upload", key, after);
                    }
                }
            },
            Next::Put => {
                me.next = Next::Add;
                after.keys[key].object = content;
                if self.has(Bug::PutsBeforeNoting) {
                    after.keys[key].upload = Row::Living;
                    // In two steps: put, then noted.
                    let mut put = *state;
                    put.keys[key].object = content;
                    if state.keys[key].object == 0 {
                        to("the object is there", key, put);
                        return;
                    }
                    to("notes the upload", key, after);
                    return;
                }
                if self.world.puts_land_once || self.sees_leftovers {
                    to("the object is there", key, after);
                }
                if !self.world.puts_land_once {
                    after.keys[key].late_put = content;
                    to("the object is there, and a copy of the put is under way", key, after);
                }
            }
            Next::Add => match state.find(content) {
                Some(_) => {
                    me.next = Next::Lock;
                    to("finds that it is not the first", key, after);
                }
                // A second row with this key: the transaction fails, and with it the upload.
                None if state.keys[key].file != Row::None => {}
                None if state.keys[key].upload == Row::Living || self.has(Bug::IgnoresCondemnation) => {
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
                        after.keys[key].upload = Row::Condemned;
                    }
                    to("refers to the other's file, gives up its key", key, after);
                }
                None => {
                    me.next = Next::Add;
                    to("the other's file is gone: again", key, after);
                }
            },
            Next::Discard => {
                if self.settles_at_once() {
                    me.next = Next::Forget;
                } else {
                    // The row is left to the collector.
                    *me = Upload { document, ..Upload::default() };
                }
                after.keys[key].object = 0;
                to("the object is deleted", key, after);
            }
            Next::Forget => {
                *me = Upload { document, ..Upload::default() };
                if state.keys[key].upload == Row::Condemned {
                    after.keys[key].upload = Row::None;
                }
                to("the row of uploads is deleted", key, after);
            }
            Next::Refer => {
                *me = Upload { document, ..Upload::default() };
                // Without the row, the foreign key forbids it.
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
            if matches!(phase, Phase::DeleteFile | Phase::DeleteUpload) && !self.has(Bug::ForgetsBeforeDeleting) {
                // Which of them was under way is left open: all may have been.
                bits(to_do).for_each(|key| after.keys[key].late_delete = true);
            }
            to("dies", KEYS, after);
        }
        match phase {
            Phase::List => {
                for (number, key) in state.keys.iter().enumerate() {
                    // One at a time, any number of times, is as good as all at once.
                    let may_expire = !self.world.puts_land_in_time || !state.is_put_under_way(number);
                    if key.upload == Row::Living && may_expire {
                        let mut after = *state;
                        after.keys[number].upload = Row::Condemned;
                        to("condemns the expired upload", number, after);
                    }
                }
                let orphaned = state.list(|number, key| key.file == Row::Living && !state.is_referred_to(number));
                let files = state.list(|_, key| key.file == Row::Condemned);
                let uploads = state.list(|_, key| key.upload == Row::Condemned);
                for (what, list, phase) in [
                    ("lists orphaned files", orphaned, Phase::Condemn),
                    ("lists condemned files", files, Phase::DeleteFile),
                    ("lists condemned uploads", uploads, Phase::DeleteUpload),
                ] {
                    if list != 0 {
                        to(what, KEYS, at(phase, list));
                    }
                }
            }
            Phase::Condemn => {
                for key in bits(to_do) {
                    let mut after = at(Phase::Condemn, to_do & !(1 << key));
                    let is_orphaned = state.keys[key].file == Row::Living && !state.is_referred_to(key);
                    if self.is_locked(state, key) {
                    } else if is_orphaned && self.has(Bug::DeletesBeforeCondemning) {
                        after.keys[key].object = 0;
                        after.collections[number].phase = Phase::Commit;
                        after.collections[number].key = key as u8;
                        to("deletes the object", key, after);
                    } else if is_orphaned || self.has(Bug::CondemnsUnseen) && state.keys[key].file == Row::Living {
                        after.keys[key].file = Row::Condemned;
                        to("condemns the file", key, after);
                    } else {
                        to("finds the file in use or gone", key, after);
                    }
                }
            }
            Phase::Commit => {
                let mut after = at(Phase::Condemn, to_do);
                after.keys[key].file = Row::Condemned;
                to("condemns the file", key, after);
            }
            Phase::DeleteFile | Phase::DeleteUpload => {
                let is_file = phase == Phase::DeleteFile;
                for key in bits(to_do) {
                    let mut after = at(if is_file { Phase::ForgetFile } else { Phase::ForgetUpload }, to_do & !(1 << key));
                    after.collections[number].key = key as u8;
                    if self.has(Bug::ForgetsBeforeDeleting) {
                        forget(&mut after.keys[key], is_file);
                        to("deletes the row", key, after);
                    } else if self.settles_at_once() || !state.is_put_under_way(key) {
                        after.keys[key].object = 0;
                        to("deletes the object", key, after);
                    } else {
                        after.keys[key].object = 0;
                        after.collections[number].phase = phase;
                        after.collections[number].key = 0;
                        to("deletes the object, keeps the row until the key is settled", key, after);
                    }
                }
            }
            Phase::ForgetFile | Phase::ForgetUpload => {
                let is_file = phase == Phase::ForgetFile;
                let mut after = at(if is_file { Phase::DeleteFile } else { Phase::DeleteUpload }, to_do);
                if self.has(Bug::ForgetsBeforeDeleting) {
                    after.keys[key].object = 0;
                    to("deletes the object", key, after);
                } else {
                    forget(&mut after.keys[key], is_file);
                    to("deletes the row", key, after);
                }
            }
        }
    }

    /// Whether a transaction of more than one step holds the file's row.
    fn is_locked(&self, state: &State, key: usize) -> bool {
        self.has(Bug::DeletesBeforeCondemning)
            && state.collections.iter().any(|collection| collection.phase == Phase::Commit && usize::from(collection.key) == key)
    }

    /// Whether anything but lists and late deletes is left of a key.
    fn is_known(&self, state: &State, key: usize) -> bool {
        let Key { file, upload, object, late_put, .. } = state.keys[key];
        file != Row::None
            || upload != Row::None
            || self.sees_leftovers && (object != 0 || late_put != 0)
            || state.uploads.iter().any(|upload| upload.next != Next::Begin && usize::from(upload.key) == key)
            || state.is_referred_to(key)
    }

    /// A key that was never used; or none, when so many are in use that the bounds are reached.
    fn new_key(&self, state: &State, content: u8) -> Option<usize> {
        match self.bug {
            Some(Bug::ReusesKeys) => Some(usize::from(content) - 1),
            _ => {
                let mut new = (0..KEYS).filter(|key| !self.is_known(state, *key));
                if new.clone().count() > KEYS - self.keys { new.next() } else { None }
            }
        }
    }

    /// The state without what makes no difference.
    fn normalise(&self, state: &mut State) {
        if !self.has(Bug::ReusesKeys) {
            for key in 0..KEYS {
                if !self.is_known(state, key) {
                    state.keys[key] = Key::default();
                    for collection in &mut state.collections {
                        collection.to_do &= !(1 << key);
                        let to_forget = matches!(collection.phase, Phase::ForgetFile | Phase::ForgetUpload);
                        if to_forget && usize::from(collection.key) == key {
                            collection.key = 0;
                            collection.phase = if collection.phase == Phase::ForgetFile { Phase::DeleteFile } else { Phase::DeleteUpload };
                        }
                    }
                } else if state.keys[key].object == 0 && !state.is_put_under_way(key) {
                    // There will never be an object.
                    state.keys[key].late_delete = false;
                }
            }
        }
        for collection in &mut state.collections {
            if collection.to_do == 0 && matches!(collection.phase, Phase::Condemn | Phase::DeleteFile | Phase::DeleteUpload) {
                collection.phase = Phase::List;
            }
        }
        if self.is_symmetric {
            state.sort_processes();
            if !self.has(Bug::ReusesKeys) {
                state.sort_keys();
                state.sort_processes();
            }
        }
    }

    /// What is left, when nothing is under way, after a last collection with everything expired.
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
        // Every step leads on, so any will do, until there is none.
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
                return Some("a row that nobody needs");
            }
            if !is_needed && key.object != 0 {
                return Some("an object of which no row knows");
            }
        }
        state.fault()
    }

    /// Visits all states, nearest first, until one has a fault.
    fn check(&self) -> Outcome {
        let start = Instant::now();
        let mut states = vec![State::default()];
        let mut parents = vec![0_u32];
        let mut seen = Set::new();
        seen.insert(State::default().pack());
        let (mut at, mut transitions) = (0, 0_u64);
        while let Some(state) = states.get(at).copied() {
            if let Some(fault) = state.fault().or_else(|| self.leftover(&state)) {
                let trace = self.trace(&states, &parents, at);
                return Outcome { fault: Some((fault, trace)), states: states.len(), transitions, time: start.elapsed() };
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
        Outcome { fault: None, states: states.len(), transitions, time: start.elapsed() }
    }

    /// The steps that led to a state.
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

fn forget(key: &mut Key, is_file: bool) {
    let row = if is_file { &mut key.file } else { &mut key.upload };
    if *row == Row::Condemned {
        *row = Row::None;
    }
}

struct Outcome {
    fault: Option<(&'static str, Vec<String>)>,
    states: usize,
    transitions: u64,
    time: Duration,
}

impl Display for Outcome {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} states, {} transitions, {:.1?}", self.states, self.transitions, self.time)?;
        let Some((fault, trace)) = &self.fault else { return Ok(()) };
        for (number, step) in trace.iter().enumerate() {
            writeln!(f, "{:3}. {step}", number + 1)?;
        }
        writeln!(f, "     → {fault}")
    }
}

/// A set of packed states, which are never 0 but for the first.
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

    /// Where the value is, or belongs.
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

const MODEL: Model = Model { keys: 3, world: KIND, bug: None, is_symmetric: true, sees_leftovers: true };

fn holds(model: Model) {
    let outcome = model.check();
    println!("{outcome}");
    assert!(outcome.fault.is_none(), "{outcome}");
}

fn fails(model: Model, expected: &str) {
    let model = Model { keys: KEYS, is_symmetric: false, ..model };
    let outcome = model.check();
    println!("{outcome}");
    assert_eq!(outcome.fault.as_ref().map(|(fault, _)| *fault), Some(expected), "{outcome}");
}

#[test]
fn a_document_keeps_its_object_and_nothing_else_is_left() {
    holds(MODEL);
}

#[test]
#[ignore = "takes minutes and gigabytes"]
fn thoroughly() {
    holds(Model { keys: KEYS, ..MODEL });
    holds(Model { world: ANY, ..MODEL });
}

const LEFT: &str = "an object of which no row knows";
const LATE: World = World { puts_land_in_time: false, ..KIND };
const TWICE: World = World { puts_land_once: false, ..KIND };
const ANY: World = World { puts_land_in_time: false, puts_land_once: false };

#[test]
fn nothing_is_left_however_late_puts_land() {
    holds(Model { keys: 2, world: LATE, ..MODEL });
}

#[test]
fn nothing_is_left_however_often_puts_land() {
    holds(Model { keys: 2, world: TWICE, ..MODEL });
}

#[test]
fn nothing_is_left_however_late_and_often_puts_land() {
    holds(Model { keys: 2, world: ANY, ..MODEL });
}

/// Its documents are safe all the same.
#[test]
fn forgetting_before_the_store_has_settled_is_found() {
    let forgets = Model { bug: Some(Bug::ForgetsUnsettled), ..MODEL };
    fails(Model { world: LATE, ..forgets }, LEFT);
    fails(Model { world: TWICE, ..forgets }, LEFT);
    holds(Model { keys: 2, world: ANY, sees_leftovers: false, ..forgets });
}

fn is_found(bug: Bug, expected: &str) {
    fails(Model { bug: Some(bug), ..MODEL }, expected);
}

#[test]
fn condemning_without_looking_again_is_found() {
    is_found(Bug::CondemnsUnseen, "a document whose file is not alive");
}

#[test]
fn using_a_key_again_is_found() {
    is_found(Bug::ReusesKeys, "a document without its object");
}

#[test]
fn deleting_before_condemning_is_found() {
    is_found(Bug::DeletesBeforeCondemning, "a document without its object");
}

#[test]
fn completing_a_condemned_upload_is_found() {
    is_found(Bug::IgnoresCondemnation, "a document without its object");
}

#[test]
fn referring_to_a_file_without_its_lock_is_found() {
    is_found(Bug::RefersUnlocked, "a document whose file is not alive");
}

#[test]
fn putting_before_noting_is_found() {
    is_found(Bug::PutsBeforeNoting, LEFT);
}

#[test]
fn forgetting_before_deleting_is_found() {
    is_found(Bug::ForgetsBeforeDeleting, LEFT);
}
