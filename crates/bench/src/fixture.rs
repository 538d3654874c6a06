//! The users, tenants and documents of the benchmark, created through the API.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::load::{Connection, Request};

/// The number of documents to read.
const DOCUMENTS: usize = 1000;
/// The password of every user.
const PASSWORD: &str = "correct horse battery 1";

/// The data of the scenarios.
pub(crate) struct Fixture {
    /// The user who reads, with one tenant.
    pub(crate) reader: User,
    /// The user who writes, to tenants of their own, so that reads do not slow down as data grows.
    pub(crate) writer: User,
    /// The reader's tenant.
    pub(crate) library: Tenant,
    /// The writer's tenant.
    pub(crate) inbox: Tenant,
    /// The documents of the library.
    pub(crate) documents: Vec<Uuid>,
    /// The length of the response to a GET of a document.
    pub(crate) document_bytes: usize,
}

pub(crate) struct User {
    email: &'static str,
    token: String,
}

pub(crate) struct Tenant {
    pub(crate) id: Uuid,
    pub(crate) database: String,
}

impl Fixture {
    pub(crate) async fn create(server: SocketAddr) -> Result<Self> {
        let mut api = Connection::open(server).await?;
        let reader = User::register(&mut api, "reader@example.com").await?;
        let writer = User::register(&mut api, "writer@example.com").await?;
        let library = Tenant::create(&mut api, &reader).await?;
        let inbox = Tenant::create(&mut api, &writer).await?;
        let mut documents = Vec::new();
        for _ in 0..DOCUMENTS {
            documents.push(reader.upload_document(&mut api, &library, 10_000).await?);
        }
        let (_, body) = api.exchange(&reader.get_document(&library, documents[0])).await?;
        let document_bytes = body.len();
        Ok(Self { reader, writer, library, inbox, documents, document_bytes })
    }
}

impl User {
    pub(crate) async fn register(api: &mut Connection, email: &'static str) -> Result<Self> {
        let registration = json!({ "email": email, "password": PASSWORD, "first_name": "Ada", "last_name": "Lovelace" });
        api.call(&Request::post("/api/auth/register", None, &registration)).await?;
        let mut user = Self { email, token: String::new() };
        user.token = api.call(&user.log_in()).await?["access_token"].as_str().context("a login has no token")?.to_owned();
        Ok(user)
    }

    pub(crate) fn log_in(&self) -> Request {
        self.log_in_with(PASSWORD)
    }

    pub(crate) fn log_in_with(&self, password: &str) -> Request {
        Request::post("/api/auth/login", None, &json!({ "email": self.email, "password": password }))
    }

    pub(crate) fn create_tenant(&self) -> Request {
        Request::post("/api/tenants", Some(&self.token), &json!({ "name": "Bench" }))
    }

    pub(crate) fn get_document(&self, tenant: &Tenant, document: Uuid) -> Request {
        Request::get(&format!("{}/{document}", tenant.documents()), &self.token)
    }

    pub(crate) fn get_download(&self, tenant: &Tenant, document: Uuid) -> Request {
        Request::get(&format!("{}/{document}/download?redirect=false", tenant.documents()), &self.token)
    }

    pub(crate) fn list_documents(&self, tenant: &Tenant) -> Request {
        Request::get(&tenant.documents(), &self.token)
    }

    /// Uploads a document and returns its id.
    pub(crate) async fn upload_document(&self, api: &mut Connection, tenant: &Tenant, size: usize) -> Result<Uuid> {
        id_of(&api.call(&self.upload(tenant, size)).await?)
    }

    pub(crate) fn upload(&self, tenant: &Tenant, size: usize) -> Request {
        Request::upload(&tenant.documents(), &self.token, size)
    }
}

impl Tenant {
    pub(crate) async fn create(api: &mut Connection, admin: &User) -> Result<Self> {
        let tenant = api.call(&admin.create_tenant()).await?;
        let database = tenant["database_name"].as_str().context("a tenant has no database")?.to_owned();
        Ok(Self { id: id_of(&tenant)?, database })
    }

    fn documents(&self) -> String {
        format!("/api/tenants/{}/documents", self.id)
    }
}

fn id_of(created: &Value) -> Result<Uuid> {
    created["id"].as_str().context("a created resource has no id")?.parse().context("an id is no UUID")
}
