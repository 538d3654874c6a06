//! The app under test: the real services behind a real socket, in this process.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use domain::{Clock, Email, ManualClock, PasswordHash, Quota, User, UserId};
use http_server::Limits;
use models::users;
use services::{DemoInProcess, Parts, PasswordSettings, Passwords, SecretKey, Services, Settings, Spool, TokenSettings, Tokens, UrlSigner};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{Persona, TestDatabases, TestObjects, invariants};

/// The secret that signs the app's tokens and URLs.
pub const SECRET: &[u8] = b"a secret for tests, 32 bytes or more";

/// A builder for apps with settings other than the defaults.
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
            settings: Settings {
                garbage_grace: Duration::ZERO,
                trash_retention: Duration::ZERO,
                tenants_per_user: 100_000,
                ..Settings::default()
            },
            limits: Limits::default(),
            // Cheap hashes; other tests cover their cost.
            passwords: PasswordSettings { memory_kib: 64, passes: 1, queue: 256, ..PasswordSettings::default() },
            api: api::Settings::default(),
            objects_are_files: false,
            storage_url: None,
        }
    }
}

impl Builder {
    /// Sets the maximum size of an upload in bytes.
    #[must_use]
    pub fn max_upload_bytes(mut self, bytes: u64) -> Self {
        self.settings.max_upload_bytes = bytes;
        self
    }

    /// Sets how long deleted documents can be restored. The default is not at all.
    #[must_use]
    pub fn trash_retention(mut self, retention: Duration) -> Self {
        self.settings.trash_retention = retention;
        self
    }

    /// Sets how many versions of a document are kept.
    #[must_use]
    pub fn versions_kept(mut self, versions: u64) -> Self {
        self.settings.versions_kept = versions;
        self
    }

    /// Sets the storage quota of tenants.
    #[must_use]
    pub fn quota(mut self, quota: Quota) -> Self {
        self.settings.quota = quota;
        self
    }

    /// Changes settings of the services.
    #[must_use]
    pub fn settings(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(&mut self.settings);
        self
    }

    /// Sets the limits of the HTTP server.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Sets the parameters of password hashing.
    #[must_use]
    pub fn passwords(mut self, passwords: PasswordSettings) -> Self {
        self.passwords = passwords;
        self
    }

    /// Sets the settings of the API.
    #[must_use]
    pub fn api(mut self, api: api::Settings) -> Self {
        self.api = api;
        self
    }

    /// Lets pages of these origins call the API.
    #[must_use]
    pub fn cors(mut self, origins: api::Origins) -> Self {
        self.api.cors.origins = origins;
        self
    }

    /// Stores objects as files, whatever store the test run uses.
    #[must_use]
    pub fn objects_as_files(mut self) -> Self {
        self.objects_are_files = true;
        self
    }

    /// Connects to the bucket through this address, that of a [`FaultyProxy`](crate::FaultyProxy). The checks when the app is
    /// dropped read the bucket directly.
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
        main.migrate().await.expect("create the main database");
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

    /// Starts another instance on the same databases and objects, as behind a load balancer. Drop it before the first.
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
        let router = api::app(
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

    /// The app's services, for operations that the API does not offer.
    #[must_use]
    pub fn services(&self) -> &Services {
        &self.services
    }

    /// The app's clock, which tests can advance.
    #[must_use]
    pub fn clock(&self) -> &ManualClock {
        &self.clock
    }

    /// The app's databases, for tests that bypass the API.
    #[must_use]
    pub fn databases(&self) -> &TestDatabases {
        &self.databases
    }

    /// The app's objects.
    #[must_use]
    pub fn objects(&self) -> &TestObjects {
        &self.objects
    }

    /// The folder of all the app's local files.
    #[must_use]
    pub fn home(&self) -> &std::path::Path {
        self.home.path()
    }

    /// A client without an account.
    #[must_use]
    pub fn stranger(&self) -> Persona {
        Persona::stranger(format!("http://{}", self.address), self.client.clone())
    }

    /// A new user, logged in: `name@example.com`.
    pub async fn user(&self, name: &str) -> Persona {
        Persona::registered(&self.stranger(), name).await
    }

    /// A user from before this product, with a password hash in the format of that time: `name@example.com`, not logged in.
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

    /// The stored password hash of a user.
    pub async fn db_password_hash(&self, user: &Persona) -> String {
        let mut connection = self.databases.open().0.read().await.unwrap();
        let found = users::find_for_login(&mut connection, &Email::parse(&user.email).unwrap()).await.unwrap();
        found.expect("the user exists").1.expose().to_owned()
    }
}

impl Drop for TestApp {
    fn drop(&mut self) {
        self.stop.cancel();
        if !self.owns_databases {
            return;
        }
        // The checks need a runtime of their own: the current one may have only this thread, which waits here.
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
        assert!(broken.is_empty(), "invariants are violated:\n{}", broken.join("\n"));
    }
}
