//! One round: every scenario and every floor once, close to each other in time, so that other load on the machine affects both
//! alike.

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use serde::Serialize;

use crate::{
    LARGE,
    environment::Environment,
    fixture::Fixture,
    floors::{self, DatabaseFloor},
    load::{Load, Outcome, Request},
    process::Server,
    report::millis,
};

/// Bytes of a small upload.
const SMALL: usize = 10_000;
/// The number of connections that log in with wrong passwords during a flood.
const FLOOD_CLIENTS: usize = 16;
/// The number of connections that create tenants. Each tenant is a database, and a PostgreSQL server creates one at a time.
const CREATION_CLIENTS: usize = 4;

/// What each round measures.
pub(crate) struct Bench<'a> {
    pub(crate) server: &'a Server,
    pub(crate) bare_http: &'a Server,
    pub(crate) database_floor: &'a DatabaseFloor,
    pub(crate) environment: &'a Environment,
    pub(crate) fixture: &'a Fixture,
    pub(crate) connections: usize,
    pub(crate) duration: Duration,
}

/// The figures of one round.
#[derive(Serialize)]
pub(crate) struct Round {
    pub(crate) bare_http: Measurement,
    pub(crate) document_get: Measurement,
    pub(crate) document_get_in_login_flood: Measurement,
    pub(crate) document_list: Measurement,
    pub(crate) small_upload: Measurement,
    pub(crate) large_upload: Measurement,
    pub(crate) four_large_uploads: Measurement,
    pub(crate) login: Measurement,
    pub(crate) tenant_creation: Measurement,
    /// Documents found per second without the product.
    pub(crate) database_per_second: f64,
    /// MD5 and SHA-256 in one thread.
    pub(crate) hashing_bytes_per_second: f64,
    /// Writing with a sync at the end.
    pub(crate) writing_bytes_per_second: f64,
    /// Syncing 4 KiB.
    pub(crate) sync_ms: f64,
    pub(crate) argon2id_ms: f64,
    /// The server's resident memory after the round.
    pub(crate) memory_mib: f64,
}

/// The figures of a server under load.
#[derive(Serialize)]
pub(crate) struct Measurement {
    pub(crate) per_second: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    /// CPU time of the server per request.
    pub(crate) cpu_ms: f64,
    /// Peak resident memory of the server during the load.
    pub(crate) peak_memory_mib: f64,
    /// Requests with an error response, which the other figures leave out.
    pub(crate) failed: u64,
}

impl Bench<'_> {
    pub(crate) async fn round(&self) -> Result<Round> {
        let Self { fixture, connections, environment, .. } = self;
        let Fixture { reader, writer, library, inbox, .. } = fixture;
        let bare_http = self.measure(self.bare_http, &self.load(self.bare_http, self.document_gets(), *connections, 200)).await?;
        let gets = self.load(self.server, self.document_gets(), *connections, 200);
        let document_get = self.measure(self.server, &gets).await?;
        let flood = self.load(self.server, [reader.log_in_with("wrong horse battery 1")].into(), FLOOD_CLIENTS, 401);
        let document_get_in_login_flood = measure(self.server, async {
            let (gets, flood) = tokio::try_join!(gets.run(), flood.run())?;
            Ok(Outcome { failed: gets.failed + flood.failed, ..gets })
        })
        .await?;
        let scenario = |request: Request, connections, status| self.load(self.server, [request].into(), connections, status);
        Ok(Round {
            bare_http,
            document_get,
            database_per_second: self.database_floor.found_per_second(*connections, self.duration)?,
            document_get_in_login_flood,
            document_list: self.measure(self.server, &scenario(reader.list_documents(library), *connections, 200)).await?,
            small_upload: self.measure(self.server, &scenario(writer.upload(inbox, SMALL), *connections, 201)).await?,
            hashing_bytes_per_second: floors::hash(),
            writing_bytes_per_second: floors::write(environment.directory())?,
            large_upload: self.measure(self.server, &scenario(writer.upload(inbox, LARGE), 1, 201)).await?,
            four_large_uploads: self.measure(self.server, &scenario(writer.upload(inbox, LARGE), 4, 201)).await?,
            sync_ms: millis(floors::sync_a_page(environment.directory())?),
            argon2id_ms: millis(floors::argon2id()?),
            login: self.measure(self.server, &scenario(reader.log_in(), *connections, 200)).await?,
            tenant_creation: self.measure(self.server, &scenario(writer.create_tenant(), CREATION_CLIENTS, 201)).await?,
            memory_mib: self.server.memory()?,
        })
    }

    /// Reads every document, so that the first round finds the caches in the same state as later ones.
    pub(crate) async fn warm_up(&self) -> Result<()> {
        self.load(self.server, self.document_gets(), self.connections, 200).run().await.map(drop)
    }

    fn document_gets(&self) -> Arc<[Request]> {
        let Fixture { reader, library, documents, .. } = self.fixture;
        documents.iter().map(|document| reader.get_document(library, *document)).collect()
    }

    fn load(&self, server: &Server, requests: Arc<[Request]>, connections: usize, expected_status: u16) -> Load {
        Load { address: server.address, requests, connections, duration: self.duration, expected_status }
    }

    async fn measure(&self, server: &Server, load: &Load) -> Result<Measurement> {
        measure(server, load.run()).await
    }
}

async fn measure(server: &Server, load: impl Future<Output = Result<Outcome>>) -> Result<Measurement> {
    server.reset_peak_memory()?;
    let cpu_before = server.cpu_time()?;
    let Outcome { latencies, failed, elapsed } = load.await?;
    let cpu_time = server.cpu_time()? - cpu_before;
    let answered = latencies.total() as f64;
    Ok(Measurement {
        per_second: answered / elapsed.as_secs_f64(),
        p50_ms: millis(latencies.percentile(50)),
        p99_ms: millis(latencies.percentile(99)),
        cpu_ms: millis(cpu_time) / answered,
        peak_memory_mib: server.peak_memory()?,
        failed,
    })
}
