use std::{
    io,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    task::Poll,
    time::Instant,
};

use futures_util::{future::join_all, poll};

use super::*;

const PASSWORD: &str = "correct horse 1";

/// A source, where it does not matter which.
const ANY: Source = Source::operator();

/// Parameters for tests in which cost is irrelevant.
fn cheap() -> PasswordSettings {
    PasswordSettings { memory_kib: 64, passes: 1, threads: 1, ..PasswordSettings::default() }
}

/// A millisecond or so of work.
fn noticeable() -> PasswordSettings {
    PasswordSettings { memory_kib: 1024, ..cheap() }
}

fn passwords(settings: &PasswordSettings) -> Passwords {
    Passwords::new(settings).unwrap()
}

fn new_password() -> NewPassword {
    NewPassword::parse(PASSWORD).unwrap()
}

fn stored(text: &str) -> Option<PasswordHash> {
    Some(PasswordHash::from_stored(text.to_owned()))
}

fn is_overloaded<T>(result: &domain::Result<T>) -> bool {
    matches!(result, Err(domain::Error::Overloaded { what: "password hashing", retry_after }) if *retry_after >= Duration::from_secs(1))
}

#[tokio::test]
async fn a_hash_made_with_the_defaults_verifies_its_password_only() {
    let passwords = passwords(&PasswordSettings::default());
    let hash = passwords.hash(ANY, &new_password()).await.unwrap();
    assert!(hash.expose().starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{}", hash.expose());
    assert_eq!(passwords.verify(ANY, Some(hash.clone()), PASSWORD).await.unwrap(), Verdict::Right);
    assert_eq!(passwords.verify(ANY, Some(hash), "correct horse 2").await.unwrap(), Verdict::Wrong);
    assert_eq!(passwords.verify(ANY, None, PASSWORD).await.unwrap(), Verdict::Wrong);
}

#[tokio::test]
async fn hashes_of_the_same_password_differ() {
    let passwords = passwords(&cheap());
    let (one, other) = (passwords.hash(ANY, &new_password()).await.unwrap(), passwords.hash(ANY, &new_password()).await.unwrap());
    assert!(one != other);
}

#[tokio::test]
async fn a_hash_with_other_parameters_is_right_but_outdated() {
    let today = passwords(&cheap());
    for other in [
        PasswordSettings { memory_kib: 128, ..cheap() },
        PasswordSettings { memory_kib: 32, ..cheap() },
        PasswordSettings { passes: 2, ..cheap() },
        PasswordSettings { lanes: 2, ..cheap() },
    ] {
        let hash = passwords(&other).hash(ANY, &new_password()).await.unwrap();
        assert_eq!(today.verify(ANY, Some(hash.clone()), PASSWORD).await.unwrap(), Verdict::RightButOutdated, "{other:?}");
        assert_eq!(today.verify(ANY, Some(hash), "wrong").await.unwrap(), Verdict::Wrong, "{other:?}");
    }
}

/// From the test suite of the reference implementation (github.com/P-H-C/phc-winner-argon2, src/test.c): password `password`.
#[tokio::test]
async fn argon2_hashes_of_other_implementations_verify() {
    let passwords = passwords(&cheap());
    for hash in [
        "$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4",
        "$argon2id$v=19$m=256,t=2,p=2$c29tZXNhbHQ$bQk8UB/VmZZF4Oo79iDXuL5/0ttZwg2f/5U52iv1cDc",
        "$argon2i$v=19$m=256,t=2,p=1$c29tZXNhbHQ$iekCn0Y3spW+sCcFanM2xBT63UP2sghkUoHLIUpWRS8",
        "$argon2i$m=256,t=2,p=1$c29tZXNhbHQ$/U3YPXYsSb3q9XxHvc0MLxur+GP960kN9j7emXX8zwY",
    ] {
        assert_eq!(passwords.verify(ANY, stored(hash), "password").await.unwrap(), Verdict::RightButOutdated, "{hash}");
        assert_eq!(passwords.verify(ANY, stored(hash), "Password").await.unwrap(), Verdict::Wrong, "{hash}");
    }
}

/// From the documentation of PHP's `crypt` and `password_verify`, and the test suites of Python's bcrypt and rust-bcrypt.
#[tokio::test]
async fn bcrypt_hashes_verify_and_are_outdated() {
    let passwords = passwords(&cheap());
    let hundred_x = "x".repeat(100);
    for (password, hash) in [
        ("password", "$2a$04$UuTkLRZZ6QofpDOlMz32MuuxEHA43WOemOYHPz6.SjsVsyO1tDU96"),
        ("rasmuslerdorf", "$2a$07$usesomesillystringfore2uDLvp1Ii2e./U9C8sBjqp8I90dH6hi"),
        ("correctbatteryhorsestapler", "$2b$04$EGdrhbKUv8Oc9vGiXX0HQOxSg445d458Muh7DAHskb6QbtCvdxcie"),
        ("rasmuslerdorf", "$2y$07$BCryptRequires22Chrcte/VlQH0piJtjXl.0t1XkA8pw9dMXTpOq"),
        (&hundred_x, "$2a$05$......................YgIDy4hFBdVlc/6LHnD9mX488r9cLd2"),
        (&hundred_x[..72], "$2a$05$......................YgIDy4hFBdVlc/6LHnD9mX488r9cLd2"),
    ] {
        assert_eq!(passwords.verify(ANY, stored(hash), password).await.unwrap(), Verdict::RightButOutdated, "{hash}");
        assert_eq!(passwords.verify(ANY, stored(hash), &format!("!{password}")).await.unwrap(), Verdict::Wrong, "{hash}");
    }
}

#[tokio::test]
async fn a_password_beyond_the_limit_is_wrong_even_for_its_own_hash() {
    let passwords = passwords(&cheap());
    let longest = "é".repeat(NewPassword::MAX_BYTES / 2);
    let hash = passwords.recipe.hash(longest.as_bytes(), &mut Memory::new()).unwrap();
    assert_eq!(passwords.verify(ANY, Some(hash.clone()), &longest).await.unwrap(), Verdict::Right);
    assert_eq!(passwords.verify(ANY, Some(hash), &format!("{longest}x")).await.unwrap(), Verdict::Wrong);
    let bcrypt = stored("$2a$05$......................YgIDy4hFBdVlc/6LHnD9mX488r9cLd2");
    assert_eq!(passwords.verify(ANY, bcrypt, &"x".repeat(NewPassword::MAX_BYTES + 1)).await.unwrap(), Verdict::Wrong);
}

#[test]
fn a_damaged_hash_is_wrong_and_logged_without_the_hash() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
    let recipe = passwords(&cheap()).recipe;
    let damaged = [
        "",
        "plaintext-secret",
        "$",
        "$argon2id$",
        "$argon2id$v=19$m=64,t=1,p=1$c29tZXNhbHQ",
        "$argon2id$v=19$m=64,t=1,p=1$c29tZXNhbHQ$",
        "$argon2id$v=19$m=64,t=1,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4$x",
        "$argon2id$v=18$m=64,t=1,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4",
        "$argon2id$v=19$m=1,t=1,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4",
        "$argon2id$v=19$m=4294967295,t=1,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4",
        "$argon2id$v=19$m=64,t=4294967295,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4",
        "$argon2xx$v=19$m=64,t=1,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4",
        "$2x$04$UuTkLRZZ6QofpDOlMz32MuuxEHA43WOemOYHPz6.SjsVsyO1tDU96",
        "$2a$03$UuTkLRZZ6QofpDOlMz32MuuxEHA43WOemOYHPz6.SjsVsyO1tDU96",
        "$2a$31$UuTkLRZZ6QofpDOlMz32MuuxEHA43WOemOYHPz6.SjsVsyO1tDU96",
        "$2a$99$UuTkLRZZ6QofpDOlMz32MuuxEHA43WOemOYHPz6.SjsVsyO1tDU96",
        "$2a$04$UuTkLRZZ6QofpDOlMz32Mu",
        "$2b$04$aaaaaaaaaaaaaaaaaaaaa£aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    ];
    tracing::subscriber::with_default(subscriber, || {
        for hash in damaged {
            let verdict = recipe.verify(stored(hash).as_ref(), b"password", &mut Memory::new()).unwrap();
            assert_eq!(verdict, Verdict::Wrong, "{hash}");
        }
    });
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert_eq!(log.matches("ERROR").count(), damaged.len(), "{log}");
    for secret in ["plaintext", "c29tZXNhbHQ", "nf65EOgL", "UuTkLRZZ", "SjsVsyO1", "aaaaaaaa"] {
        assert!(!log.contains(secret), "{secret} in {log}");
    }
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn settings_out_of_range_are_refused() {
    for settings in [
        PasswordSettings { memory_kib: 7, ..cheap() },
        PasswordSettings { memory_kib: 15, lanes: 2, ..cheap() },
        PasswordSettings { memory_kib: u32::MAX, ..cheap() },
        PasswordSettings { passes: 0, ..cheap() },
        PasswordSettings { passes: u32::MAX, ..cheap() },
        PasswordSettings { lanes: 0, ..cheap() },
        PasswordSettings { lanes: u32::MAX, ..cheap() },
        PasswordSettings { threads: 0, ..cheap() },
        PasswordSettings { queue: 0, ..cheap() },
    ] {
        assert!(matches!(Passwords::new(&settings), Err(domain::Error::Invalid(_))), "{settings:?}");
    }
}

#[test]
fn an_unknown_user_costs_the_same_as_a_wrong_password() {
    let recipe = passwords(&PasswordSettings { memory_kib: 4096, ..cheap() }).recipe;
    let mut memory = Memory::new();
    let hash = recipe.hash(PASSWORD.as_bytes(), &mut memory).unwrap();
    let damaged = PasswordHash::from_stored("$argon2id$v=19$".to_owned());
    let mut verify = |stored: Option<&PasswordHash>| assert_eq!(recipe.verify(stored, b"wrong", &mut memory).unwrap(), Verdict::Wrong);

    // The fastest of many interleaved runs is the least affected by other load on the machine.
    let mut fastest = [Duration::MAX; 4];
    for _ in 0..15 {
        for (case, fastest) in fastest.iter_mut().enumerate() {
            let started = Instant::now();
            match case {
                0 => verify(Some(&hash)),
                1 => verify(None),
                2 => verify(Some(&damaged)),
                // The control: a damaged hash alone is refused without the work.
                _ => assert!(recipe.verify_argon2(damaged.expose(), b"wrong", &mut Memory::new()).is_err()),
            }
            *fastest = started.elapsed().min(*fastest);
        }
    }
    let [known, unknown, damaged, control] = fastest.map(|time| time.as_secs_f64());
    let is_alike = |time: f64| (0.6..1.6).contains(&(time / known));
    assert!(is_alike(unknown) && is_alike(damaged) && !is_alike(control), "{fastest:?}");
}

/// How often another task on a single-threaded runtime is polled during the flood.
async fn turns_during(flood: impl Future<Output = ()>) -> usize {
    let (turns, over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let other = tokio::spawn({
        let (turns, over) = (Arc::clone(&turns), Arc::clone(&over));
        async move {
            while !over.load(Ordering::Relaxed) {
                turns.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        }
    });
    flood.await;
    over.store(true, Ordering::Relaxed);
    other.await.unwrap();
    turns.load(Ordering::Relaxed)
}

#[tokio::test]
async fn a_flood_of_logins_is_rejected_and_delays_no_other_task() {
    let passwords = Arc::new(passwords(&PasswordSettings { queue: 8, ..noticeable() }));
    let hash = passwords.hash(ANY, &new_password()).await.unwrap();

    let turns = turns_during(async {
        let logins = (0..200).map(|_| {
            let (passwords, hash) = (Arc::clone(&passwords), hash.clone());
            tokio::spawn(async move { passwords.verify(ANY, Some(hash), PASSWORD).await })
        });
        let answers: Vec<_> = join_all(logins).await.into_iter().map(Result::unwrap).collect();
        let right = answers.iter().filter(|answer| matches!(answer, Ok(Verdict::Right))).count();
        let overloaded = answers.iter().filter(|answer| is_overloaded(answer)).count();
        assert!(right >= 8, "{right} right");
        assert!(overloaded > 0, "{overloaded} overloaded");
        assert_eq!(right + overloaded, 200);
    });
    let turns = turns.await;

    // The control: the same work without the pool.
    let turns_without_pool = turns_during(async {
        let logins = (0..20).map(|_| {
            let (recipe, hash) = (passwords.recipe.clone(), hash.clone());
            tokio::spawn(async move { recipe.verify(Some(&hash), PASSWORD.as_bytes(), &mut Memory::new()).unwrap() })
        });
        join_all(logins).await;
    });
    let turns_without_pool = turns_without_pool.await;

    assert!(turns > 100, "{turns} turns");
    assert!(turns_without_pool < 10, "{turns_without_pool} turns without the pool");
}

/// Keeps the only thread of a pool busy until the returned sender is used or dropped.
async fn occupy(pool: &Arc<WorkerPool>) -> mpsc::Sender<()> {
    let (begun, has_begun) = tokio::sync::oneshot::channel();
    let (free, is_free) = mpsc::channel();
    let pool = Arc::clone(pool);
    tokio::spawn(async move {
        pool.run(ANY, move |_| {
            begun.send(()).unwrap();
            let _ = is_free.recv();
        })
        .await
        .unwrap();
    });
    has_begun.await.unwrap();
    free
}

fn pool(queue: usize, idle: Duration) -> Arc<WorkerPool> {
    Arc::new(WorkerPool::new(Limits { threads: 1, queue, idle }))
}

#[tokio::test]
async fn queued_work_without_a_caller_is_skipped() {
    let pool = pool(2, Duration::from_secs(10));
    let free = occupy(&pool).await;
    let ran = |flag: &Arc<AtomicBool>| {
        let flag = Arc::clone(flag);
        pool.run(ANY, move |_| flag.store(true, Ordering::SeqCst))
    };

    let (stayed_ran, left_ran) = (Arc::default(), Arc::default());
    let mut stayed = Box::pin(ran(&stayed_ran));
    let mut left = Box::pin(ran(&left_ran));
    assert!(poll!(&mut stayed).is_pending() && poll!(&mut left).is_pending());
    drop(left);
    assert!(matches!(poll!(pin!(pool.run(ANY, |_| ()))), Poll::Ready(third) if is_overloaded(&third)), "the queue holds two");

    drop(free);
    stayed.await.unwrap();
    pool.run(ANY, |_| ()).await.unwrap();
    assert!(stayed_ran.load(Ordering::SeqCst));
    assert!(!left_ran.load(Ordering::SeqCst));
}

#[tokio::test]
async fn a_panic_is_an_error_for_its_caller_only() {
    let pool = pool(2, Duration::from_secs(10));
    let result: domain::Result<()> = pool.run(ANY, |_| panic!("seeded fault")).await;
    assert!(matches!(result, Err(domain::Error::Internal(_))));
    assert_eq!(pool.run(ANY, |_| 1).await.unwrap(), 1);
}

#[tokio::test]
async fn threads_start_with_work_and_end_when_idle() {
    let pool = pool(2, Duration::from_millis(20));
    assert_eq!(pool.threads(), 0);
    for _ in 0..3 {
        let name = pool.run(ANY, |_| thread::current().name().map(str::to_owned)).await.unwrap();
        assert_eq!(name.as_deref(), Some("tenantry-hash-1"));
        eventually(|| pool.threads() == 0).await;
    }
}

async fn eventually(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "the condition is still false");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// The pool must not count on a thread that is about to end and frees its memory: the work would wait forever.
#[tokio::test]
async fn no_work_is_forgotten_when_a_thread_ends() {
    let idle = Duration::from_micros(300);
    let pool = pool(1, idle);
    let (mut pause, mut previous) = (idle, None);
    for _ in 0..500 {
        let started = Instant::now();
        while started.elapsed() < pause {}
        let work = pool.run(ANY, |memory| {
            memory.resize(8192, Block::new());
            thread::current().id()
        });
        let thread = Some(tokio::time::timeout(Duration::from_secs(10), work).await.expect("the work is done").unwrap());
        // The pause converges on the moment at which a thread ends.
        let step = Duration::from_micros(5);
        pause = if thread == previous { pause + step } else { pause.saturating_sub(step) };
        previous = thread;
    }
}

#[tokio::test]
async fn dropping_the_pool_ends_its_threads_at_once() {
    struct Ended(mpsc::Sender<()>);
    impl Drop for Ended {
        fn drop(&mut self) {
            let _ = self.0.send(());
        }
    }
    thread_local!(static END: std::cell::RefCell<Option<Ended>> = const { std::cell::RefCell::new(None) });

    let pool = pool(2, Duration::from_secs(3600));
    let (sender, ended) = mpsc::channel();
    pool.run(ANY, move |_| END.set(Some(Ended(sender)))).await.unwrap();
    eventually(|| pool.idle() == 1).await;
    assert!(ended.try_recv().is_err());
    drop(pool);
    ended.recv_timeout(Duration::from_secs(10)).unwrap();
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn only_the_hashing_threads_are_nice() {
    use rustix::process::getpriority_process;

    let nice = || getpriority_process(None).unwrap();
    let ours = nice();
    let theirs = pool(1, Duration::from_secs(10)).run(ANY, move |_| nice()).await.unwrap();
    assert_eq!(theirs, 19);
    assert_eq!(nice(), ours);
}

#[test]
fn memory_returns_to_its_usual_size_after_an_expensive_hash() {
    let recipe = passwords(&cheap()).recipe;
    let mut memory = Memory::new();
    let expensive = passwords(&noticeable()).recipe.hash(b"x", &mut Memory::new()).unwrap();
    recipe.verify(Some(&expensive), b"x", &mut memory).unwrap();
    assert_eq!(memory.capacity(), recipe.params.block_count());
}

#[tokio::test]
async fn a_password_verifies_however_its_characters_are_encoded() {
    let passwords = passwords(&cheap());
    let (composed, decomposed) = ("p\u{e4}sswort 1", "pa\u{308}sswort\u{a0}1");
    for registered in [composed, decomposed] {
        let hash = passwords.hash(ANY, &NewPassword::parse(registered).unwrap()).await.unwrap();
        for typed in [composed, decomposed] {
            assert_eq!(passwords.verify(ANY, Some(hash.clone()), typed).await.unwrap(), Verdict::Right, "{registered}, {typed}");
        }
        assert_eq!(passwords.verify(ANY, Some(hash), "passwort 1").await.unwrap(), Verdict::Wrong);
    }
}

#[tokio::test]
async fn an_older_hash_verifies_the_password_as_it_was_typed_and_is_outdated() {
    let passwords = passwords(&cheap());
    let decomposed = "pa\u{308}sswort1";
    let (memory, recipe) = (&mut Memory::new(), passwords.recipe.clone());
    let older = recipe.hash(decomposed.as_bytes(), memory).unwrap();
    assert_eq!(passwords.verify(ANY, Some(older.clone()), decomposed).await.unwrap(), Verdict::RightButOutdated);
    assert_eq!(passwords.verify(ANY, Some(older), "p\u{e4}sswort1").await.unwrap(), Verdict::Wrong);
}
