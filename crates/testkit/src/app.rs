//! The app under test: the real services on a real socket, in this process.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use domain::{Clock, Email, ManualClock, PasswordHash, Quota, User, UserId};
use http_server::Limits;
use models::users;
use services::{DemoInProcess, Parts, PasswordSettings, Passwords, SecretKey, Services, Settings, Spool, TokenSettings, Tokens, UrlSigner};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{Persona, TestDatabases, TestObjects, invariants};

/// The secret of the app's tokens and signed URLs.
pub const SECRET: &[u8] = b"a secret for tests, 32 bytes or more";

/// What an app can be given that is not the default.
#[derive(Clone)]
pub struct Builder {
    settings: Settings,
    limits: Limits,
    passwords: PasswordSettings,
    api: api::Settings,
    objects_are_files: bool,
    storage_url: Option<String>,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            settings: Settings { garbage_grace: Duration::ZERO, trash_retention: Duration::ZERO, ..Settings::default() },
            limits: Limits::default(),
            // Cheap: what a hash costs is tested elsewhere.
            passwords: PasswordSettings { memory_kib: 64, passes: 1, queue: 256, ..PasswordSettings::default() },
            api: api::Settings::default(),
            objects_are_files: false,
            storage_url: None,
        }
    }
}

impl Builder {
    /// The most bytes of an upload.
    #[must_use]
    pub fn max_upload_bytes(mut self, bytes: u64) -> Self {
        self.settings.max_upload_bytes = bytes;
        self
    }

    /// How long deleted documents can be brought back. Not at all, unless it is said.
    #[must_use]
    pub fn trash_retention(mut self, retention: Duration) -> Self {
        self.settings.trash_retention = retention;
        self
    }

    /// How many versions of a document are kept.
    #[must_use]
    pub fn versions_kept(mut self, versions: u64) -> Self {
        self.settings.versions_kept = versions;
        self
    }

    /// How much a tenant may store.
    #[must_use]
    pub fn quota(mut self, quota: Quota) -> Self {
        self.settings.quota = quota;
        self
    }

    /// The limits of the HTTP server.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Password hashing.
    #[must_use]
    pub fn passwords(mut self, passwords: PasswordSettings) -> Self {
        self.passwords = passwords;
        self
    }

    /// How the API presents itself.
    #[must_use]
    pub fn api(mut self, api: api::Settings) -> Self {
        self.api = api;
        self
    }

    /// Keeps objects as files whatever the test run is for.
    #[must_use]
    pub fn objects_as_files(mut self) -> Self {
        self.objects_are_files = true;
        self
    }

    /// Reaches the bucket by this address: that of a [`FaultyProxy`](crate::FaultyProxy). What is checked when the app is dropped is
    /// read from the bucket itself.
    #[must_use]
    pub fn storage_at(mut self, url: String) -> Self {
        self.storage_url = Some(url);
        self
    }

    /// Starts the app.
    pub async fn start(self) -> TestApp {
        let home = Arc::new(tempfile::tempdir().unwrap());
        let databases = TestDatabases::new(home.path());
        let (main, _) = databases.open();
        main.migrate().await.expect("the main database can be made");
        TestApp::start(self, home, databases, Arc::new(ManualClock::default()), true).await
    }
}

/// A running app.
pub struct TestApp {
    address: SocketAddr,
    services: Services,
    clock: Arc<ManualClock>,
    databases: TestDatabases,
    objects: TestObjects,
    home: Arc<TempDir>,
    builder: Builder,
    stop: CancellationToken,
    owns_databases: bool,
    client: reqwest::Client,
}

impl TestApp {
    /// An app with default settings.
    pub async fn new() -> Self {
        Builder::default().start().await
    }

    /// An app with other settings.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Another instance on the same databases and objects, as behind a load balancer. Keep it shorter than the first.
    pub async fn second_instance(&self) -> Self {
        Self::start(self.builder.clone(), Arc::clone(&self.home), self.databases.clone(), Arc::clone(&self.clock), false).await
    }

    async fn start(builder: Builder, home: Arc<TempDir>, databases: TestDatabases, clock: Arc<ManualClock>, owns: bool) -> Self {
        let (main, tenant_databases) = databases.open();
        let objects = if builder.objects_are_files { TestObjects::files(home.path()) } else { TestObjects::new(home.path()) };
        let secret_key = || SecretKey::new(SECRET).unwrap();
        let tokens = TokenSettings {
            issuer: "tenantry".into(),
            audience: "tenantry".into(),
            access_life: Duration::from_secs(900),
            refresh_life: Duration::from_secs(7 * 24 * 3600),
            signing: secret_key(),
            verifying: Vec::new(),
        };
        let services = Services::new(Parts {
            main,
            tenant_databases,
            storage: builder.storage_url.clone().map_or_else(|| objects.open(), |url| objects.open_at(url)),
            spool: Spool::new(&home.path().join("spool")).unwrap(),
            passwords: Passwords::new(&builder.passwords).unwrap(),
            tokens: Tokens::new(tokens).unwrap(),
            url_signer: UrlSigner::new(SECRET),
            clock: Arc::clone(&clock) as Arc<dyn Clock>,
            settings: builder.settings.clone(),
        });
        let router = api::router(
            services.users.clone(),
            Arc::clone(&clock) as Arc<dyn Clock>,
            api::Settings { demo: Some(Arc::new(DemoInProcess::default())), ..builder.api.clone() },
        );
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(http_server::serve(listener, router, builder.limits.clone(), stop.clone()));
        let follower = services.operator.clone();
        let stopped = stop.clone();
        tokio::spawn(async move { stopped.run_until_cancelled(follower.follow_access_changes()).await });
        let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).no_proxy().build().unwrap();
        Self { address, services, clock, databases, objects, home, builder, stop, owns_databases: owns, client }
    }

    /// Where the app listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The app's services, for what the API does not offer.
    #[must_use]
    pub fn services(&self) -> &Services {
        &self.services
    }

    /// The app's clock, to put forward.
    #[must_use]
    pub fn clock(&self) -> &ManualClock {
        &self.clock
    }

    /// The app's databases, for looking past the API.
    #[must_use]
    pub fn databases(&self) -> &TestDatabases {
        &self.databases
    }

    /// Where the app's objects are.
    #[must_use]
    pub fn objects(&self) -> &TestObjects {
        &self.objects
    }

    /// The folder of all that the app keeps on the local file system.
    #[must_use]
    pub fn home(&self) -> &std::path::Path {
        self.home.path()
    }

    /// Somebody without an account.
    #[must_use]
    pub fn stranger(&self) -> Persona {
        Persona::stranger(format!("http://{}", self.address), self.client.clone())
    }

    /// A new user, logged in: `name@example.com`.
    pub async fn user(&self, name: &str) -> Persona {
        Persona::registered(&self.stranger(), name).await
    }

    /// A user who was there before us, with a password hash as it was stored then: `name@example.com`, not logged in.
    pub async fn db_user(&self, name: &str, password_hash: &str) -> Persona {
        let now = self.clock.now();
        let user = User {
            id: UserId::generate(&*self.clock),
            first_name: name.to_owned(),
            last_name: "Example".to_owned(),
            email: format!("{name}@example.com"),
            is_active: true,
            created_at: now,
            updated_at: now,
            created_by: None,
        };
        let mut tx = self.databases.open().0.begin().await.unwrap();
        users::insert(&mut tx, &user, &PasswordHash::from_stored(password_hash.to_owned())).await.unwrap();
        tx.commit().await.unwrap();
        let mut persona = self.stranger();
        (persona.id, persona.email) = (user.id.to_string(), user.email);
        persona
    }

    /// The password hash that is stored for a user.
    pub async fn db_password_hash(&self, user: &Persona) -> String {
        let mut connection = self.databases.open().0.read().await.unwrap();
        let found = users::find_for_login(&mut connection, &Email::parse(&user.email).unwrap()).await.unwrap();
        found.expect("the user is there").1.expose().to_owned()
    }
}

impl Drop for TestApp {
    fn drop(&mut self) {
        self.stop.cancel();
        if !self.owns_databases {
            return;
        }
        // On a runtime of its own: this one may have a single thread, which is here.
        let (databases, objects) = (self.databases.clone(), self.objects.clone());
        let check = !std::thread::panicking();
        let checked = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let broken = if check { invariants::find_broken(&databases, &objects).await } else { Vec::new() };
                invariants::drop_databases(&databases).await;
                broken
            })
        });
        let broken = checked.join().unwrap();
        assert!(broken.is_empty(), "what must always hold does not:\n{}", broken.join("\n"));
    }
}
