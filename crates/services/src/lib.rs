//! Tenantry's use cases, split by who may call them. Each method is one use case with its rules, permissions and transactions.
//! This is the only crate that begins and commits transactions.
//!
//! Three facades ("doors") lead to one private core. [`UserServices`] is all that the API gets; every call on behalf of a caller
//! passes authentication and authorization. [`OperatorServices`] serves the command line and maintenance, which may do anything
//! to any tenant. [`EventServices`] serves the worker. No facade leads to another, so a handler's forbidden call does not
//! compile:
//!
//! ```compile_fail,E0599
//! async fn handler(services: services::UserServices, tenant: domain::Tenant) {
//!     services.delete_tenant(&tenant).await.unwrap(); // only the operator deletes a tenant
//! }
//! ```
//!
//! ```compile_fail,E0599
//! async fn handler(services: services::UserServices, tenant_id: domain::TenantId) {
//!     services.set_limits(tenant_id, domain::QuotaLimits::default()).await.unwrap(); // only the operator sets quotas
//! }
//! ```
//!
//! ```compile_fail,E0599
//! async fn handler(services: services::UserServices, key: &str) {
//!     services.storage().get(key, None).await.unwrap(); // an object is opened with a signed claim, never by its key
//! }
//! ```
//!
//! A handler's permitted calls compile:
//!
//! ```
//! async fn handler(services: services::UserServices, claim: services::SignedDownload, signature: &str) {
//!     services.open_download(&claim, signature).await.unwrap();
//! }
//!
//! async fn command(services: services::OperatorServices, tenant: domain::Tenant) {
//!     services.delete_tenant(&tenant).await.unwrap();
//!     services.set_limits(tenant.id, domain::QuotaLimits::default()).await.unwrap();
//! }
//! ```
//!
//! Within the crate, a module's imports show which modules it calls: methods belong to the facades, everything else is a function
//! over the core. `docs/ARCHITECTURE.md` defines which module may call which, and a test enforces it.

mod access;
mod access_cache;
mod accounts;
mod core;
mod documents;
mod events;
mod health;
mod idempotency;
mod leases;
mod storage;
mod tenants;

pub use self::core::{EventServices, OperatorServices, Parts, RegistrationPolicy, Services, Settings, UserServices};
pub use access::Caller;
pub use accounts::login_throttle::LoginClient;
pub use accounts::passwords::{PasswordSettings, Passwords};
pub use accounts::sessions::{Login, TokenPair};
pub use accounts::tokens::{Claims, SecretKey, TokenSettings, Tokens};
pub use accounts::users::Registration;
pub use documents::content::Uploaded;
pub use documents::direct_uploads::{DeclarationOutcome, DeclaredUpload, PartAt, PartUpload, PartUrl};
pub use documents::documents::{Download, DownloadAt, OpenDownload, Precondition};
pub use documents::garbage::Collected;
pub use documents::tus::{Append, Checksum};
pub use documents::uploads::Upload;
pub use documents::verification::{Finding, ObjectProblem, Verification};
pub use events::demo::{DEMO_KEPT, DEMO_PREFIX, DEMO_TOPICS, DemoBus, DemoInProcess, DemoMessage, DemoReceived};
pub use events::events::{OrderingKey, traced};
pub use events::outbox::{Backlog, OUTBOX_LEASE, OutboxStatus, Unnotified, Unpublished};
pub use health::{DependencyStatus, ServerConnections, UnknownServer};
pub use idempotency::{IdempotentOutcome, IdempotentRequest};
pub use models::{Connections, DirtyFlag, TableSum};
pub use storage::content_disposition::content_disposition;
pub use storage::signed_urls::{SignedDownload, SignedPart, UrlSigner};
pub use storage::spool::{Spool, SpooledContent};
pub use storage::{
    ContentHeaders, DirectUploads, DownloadUrl, LocalStorage, Object, ObjectEntry, ObjectStorage, S3Credentials, S3Settings, S3Storage,
    UnfinishedUpload,
};
pub use tenants::deletion::Deletion;
pub use tenants::fleet::{TenantReport, TenantSummary};
pub use tenants::members::NewMember;
pub use tenants::migrations::{FleetMigration, MigrationPlan, MigrationStatus, MigrationStep};
pub use tenants::moves::{MoveError, MoveStep, Moved};
pub use tenants::tenants::TenantDetails;

pub(crate) use self::core::Core;
