//! Many tenants: the cost of creating their databases, keeping them, and switching between them.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use clap::value_parser;
use serde_json::json;
use uuid::Uuid;

use crate::{
    environment::{Environment, Sessions},
    fixture::{Tenant, User},
    histogram::Histogram,
    load::{Connection, Load, Outcome, Request},
    process::{Server, Tenantry},
    progress,
    report::{Report, median, millis},
};

/// Concurrent connections.
const CLIENTS: usize = 32;
/// The number of tenants in constant use.
const HOT: usize = 10;
/// Numbers of connections that use hot tenants, with the names of their figures: with the product, and with bare connections.
const HOT_CLIENTS: [(usize, [&str; 2]); 2] = [
    (8, ["p99 of hot tenants beside cold ones / alone, 8 clients", "bare connections: the same, 8 clients"]),
    (CLIENTS, ["p99 of hot tenants beside cold ones / alone, 32 clients", "bare connections: the same, 32 clients"]),
];
/// Rounds of a comparison, whose median is reported.
const ROUNDS: usize = 3;
/// Bytes of each tenant's document.
const SMALL: usize = 1_000;

/// The size of the fleet.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Number of tenants
    #[arg(long, default_value_t = 500, value_parser = value_parser!(u16).range(20..=20_000))]
    tenants: u16,
    /// Number of tenants in use; the others are idle [default: all]
    #[arg(long, value_parser = value_parser!(u16).range(20..=20_000))]
    active: Option<u16>,
    /// Number of tenants to create for measuring creation, in each way
    #[arg(long, default_value_t = 100, value_parser = value_parser!(u16).range(1..=1_000))]
    creations: u16,
    /// Connections to tenant databases where there are too few
    #[arg(long, default_value_t = 40, value_parser = value_parser!(u16).range(1..=10_000))]
    budget: u16,
}

/// A tenant in use, and its document.
type Active = (Tenant, Uuid);

/// Requests for the documents of active tenants.
struct Loads {
    one: Arc<[Request]>,
    in_turn: Arc<[Request]>,
    uniform: Arc<[Request]>,
    zipf: Arc<[Request]>,
    hot: Arc<[Request]>,
    cold: Arc<[Request]>,
}

impl Loads {
    fn new(user: &User, tenants: &[Active]) -> Self {
        let requests = |order: &[usize]| order.iter().map(|n| user.get_document(&tenants[*n].0, tenants[*n].1)).collect();
        let all: Vec<usize> = (0..tenants.len()).collect();
        Self {
            one: requests(&[0]),
            in_turn: requests(&all),
            uniform: requests(&uniform(tenants.len())),
            zipf: requests(&zipf(tenants.len())),
            hot: requests(&all[..HOT]),
            cold: requests(&all[HOT..]),
        }
    }
}

/// Measures a fleet in an empty environment.
pub(crate) async fn measure(options: &Options, environment: &Environment, tenantry: &Tenantry, seconds: Duration) -> Result<Report> {
    let Options { tenants, budget, .. } = options;
    let active = options.active.unwrap_or(*tenants).min(*tenants);
    let engine = environment.engine();
    let heading = format!("{engine}, {tenants} tenants, {active} of them in use, a budget of {budget} where connections are too few");
    let run = json!({ "engine": engine, "tenants": tenants, "active": active, "budget": budget });
    let mut bench = Bench { options, environment, tenantry, seconds, active, report: Report::new(heading, run)? };

    let user = bench.measure_creation().await?;
    let tenants = bench.create_tenants(&user).await?;
    let loads = Loads::new(&user, &tenants);
    let server = bench.start_with_enough_connections()?;
    bench.measure_first_requests(&server, &user, &tenants).await?;
    let uniform_rate = bench.measure_spread_load(&server, &loads).await?;
    server.stop()?;
    if let Some(sessions) = environment.sessions() {
        bench.measure_bare_connections(&sessions, &tenants, uniform_rate).await?;
        bench.measure_few_connections(&sessions, &loads).await?;
    }
    Ok(bench.report)
}

/// A run, and its report so far.
struct Bench<'a> {
    options: &'a Options,
    environment: &'a Environment,
    tenantry: &'a Tenantry,
    seconds: Duration,
    active: u16,
    report: Report,
}

impl Bench<'_> {
    /// Measures the creation of tenants, by copying a template and from the warm pool. Returns their admin.
    async fn measure_creation(&mut self) -> Result<User> {
        progress("creations");
        let count = self.options.creations;
        let server = self.tenantry.start_with(&[("TENANT_WARM_POOL", "0")])?;
        let mut api = Connection::open(server.address).await?;
        let user = User::register(&mut api, "fleet@example.com").await?;
        // The first creation creates the template.
        Tenant::create(&mut api, &user).await?;
        let copied = creations(&mut api, &user, count).await?;
        self.report.add("creation, p50 ms", millis(copied.percentile(50)));
        self.report.add("creation, p99 ms", millis(copied.percentile(99)));
        server.stop()?;
        if let Some(warm_pool) = self.environment.warm_pool() {
            let server = self.tenantry.start_with(&[("TENANT_WARM_POOL", &(count + 1).to_string())])?;
            warm_pool.wait_for(i64::from(count) + 1).await?;
            let mut api = Connection::open(server.address).await?;
            // As above.
            Tenant::create(&mut api, &user).await?;
            let claimed = creations(&mut api, &user, count).await?;
            self.report.add("creation from the warm pool, p50 ms", millis(claimed.percentile(50)));
            self.report.add("creation from the warm pool, p99 ms", millis(claimed.percentile(99)));
            self.report.add("p99 from the warm pool / by copying", ratio(claimed.percentile(99), copied.percentile(99)));
            server.stop()?;
        }
        Ok(user)
    }

    fn start_with_enough_connections(&self) -> Result<Server> {
        let enough = (u32::from(self.options.tenants) + 50).to_string();
        self.tenantry.start_with(&[("TENANT_CONNECTION_BUDGET", &enough)])
    }

    /// Creates all tenants, and a document in each active one.
    async fn create_tenants(&self, user: &User) -> Result<Vec<Active>> {
        progress("tenants");
        let server = self.start_with_enough_connections()?;
        let mut api = Connection::open(server.address).await?;
        let mut active = Vec::new();
        for n in 0..self.options.tenants {
            let tenant = Tenant::create(&mut api, user).await?;
            if n < self.active {
                let document = user.upload_document(&mut api, &tenant, SMALL).await?;
                active.push((tenant, document));
            }
        }
        server.stop()?;
        Ok(active)
    }

    /// Measures the first request to each tenant of a server that has just started, and the memory of open databases.
    async fn measure_first_requests(&mut self, server: &Server, user: &User, tenants: &[Active]) -> Result<()> {
        progress("cold tenants");
        let mut api = Connection::open(server.address).await?;
        let before = server.memory()?;
        self.report.add("resident memory with all tenants idle, MiB", before);
        let mut cold = Histogram::default();
        for (tenant, document) in tenants {
            let request = user.get_document(tenant, *document);
            let began = Instant::now();
            let (status, _) = api.exchange(&request).await?;
            ensure!(status == 200, "the response to a GET of a document has status {status}");
            cold.record(began.elapsed());
        }
        self.report.add("first request to a tenant, p50 ms", millis(cold.percentile(50)));
        self.report.add("first request to a tenant, p99 ms", millis(cold.percentile(99)));
        let per_tenant = (server.memory()? - before) * 1024.0 / f64::from(self.active);
        self.report.add("memory per tenant that is open and idle, KiB", per_tenant);
        if let Some(sessions) = self.environment.sessions() {
            self.report.add("PostgreSQL's memory per connection, MiB (private)", sessions.private_memory().await?);
        }
        Ok(())
    }

    async fn run(&self, server: &Server, requests: &Arc<[Request]>, connections: usize) -> Result<Outcome> {
        self.run_for(server, requests, connections, self.seconds).await
    }

    async fn run_for(&self, server: &Server, requests: &Arc<[Request]>, connections: usize, duration: Duration) -> Result<Outcome> {
        Load { address: server.address, requests: Arc::clone(requests), connections, duration, expected_status: 200 }.run().await
    }

    /// Compares load on many tenants with load on one. Returns the rate of the uniform load.
    async fn measure_spread_load(&mut self, server: &Server, loads: &Loads) -> Result<f64> {
        progress("enough connections");
        self.run(server, &loads.in_turn, CLIENTS).await?;
        // Close to each other in time and repeated, since the speed of a machine varies.
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            let one = self.run(server, &loads.one, CLIENTS).await?;
            let uniform = self.run(server, &loads.uniform, CLIENTS).await?;
            rounds.push((uniform, self.run(server, &loads.zipf, CLIENTS).await?, one));
        }
        let median_of = |figure: &dyn Fn(&Outcome, &Outcome, &Outcome) -> f64| median(rounds.iter().map(|(u, z, one)| figure(u, z, one)));
        let p50 = |outcome: &Outcome| outcome.latencies.percentile(50);
        self.report.add("uniform / one tenant", median_of(&|uniform, _, one| rate(uniform) / rate(one)));
        self.report.add("uniform / one tenant, p50", median_of(&|uniform, _, one| ratio(p50(uniform), p50(one))));
        self.report.add("Zipf / one tenant", median_of(&|_, zipf, one| rate(zipf) / rate(one)));
        self.report.add("Zipf / one tenant, p50", median_of(&|_, zipf, one| ratio(p50(zipf), p50(one))));
        self.report.add("failed", rounds.iter().map(|(uniform, zipf, _)| uniform.failed + zipf.failed).sum::<u64>() as f64);
        self.report.add("resident memory, MiB", server.memory()?);
        Ok(median_of(&|uniform, _, _| rate(uniform)))
    }

    /// Measures the same loads over bare connections, without the product.
    async fn measure_bare_connections(&mut self, sessions: &Sessions<'_>, tenants: &[Active], uniform_rate: f64) -> Result<()> {
        progress("bare connections");
        let seconds = self.seconds;
        let databases: Vec<_> = tenants.iter().map(|(tenant, document)| (tenant.database.as_str(), *document)).collect();
        let finders = sessions.finders(&databases).await?;
        let found = async |order: &[usize]| anyhow::Ok(finders.find(order, CLIENTS, seconds).await?.total() as f64 / seconds.as_secs_f64());
        let (alone, many) = (found(&[0]).await?, found(&uniform(tenants.len())).await?);
        self.report.add("bare connections: uniform / one tenant", many / alone);
        self.report.add("uniform / bare connections, uniform", uniform_rate / many);
        let hot: Vec<usize> = (0..HOT).collect();
        let (cold, other_cold) = databases[HOT..].split_at((databases.len() - HOT) / 2);
        for (clients, [_, name]) in HOT_CLIENTS {
            let mut ratios = Vec::new();
            for _ in 0..ROUNDS {
                let alone = finders.find(&hot, clients, seconds).await?;
                let (beside, (), ()) = tokio::try_join!(
                    finders.find(&hot, clients, seconds),
                    sessions.open_and_find(cold, seconds),
                    sessions.open_and_find(other_cold, seconds)
                )?;
                ratios.push(ratio(beside.percentile(99), alone.percentile(99)));
            }
            self.report.add(name, median(ratios.into_iter()));
        }
        Ok(())
    }

    /// Measures loads on more tenants than there are connections.
    async fn measure_few_connections(&mut self, sessions: &Sessions<'_>, loads: &Loads) -> Result<()> {
        progress("few connections");
        let server = self.tenantry.start_with(&[("TENANT_CONNECTION_BUDGET", &self.options.budget.to_string())])?;
        let hits = self.run(&server, &loads.one, CLIENTS).await?;
        let before = sessions.opened().await?;
        let sweep = self.run(&server, &loads.in_turn, CLIENTS).await?;
        let opened = sessions.opened().await? - before;
        self.report.add("one after the other: share that opens a connection", opened / sweep.latencies.total() as f64);
        let opening = sweep.elapsed.as_secs_f64() / opened;
        self.report.add("an opening with its request, ms", opening * 1e3);
        self.measure_openings(&server, sessions, loads, rate(&hits), opening).await?;
        for (clients, [name, _]) in HOT_CLIENTS {
            let mut ratios = Vec::new();
            for _ in 0..ROUNDS {
                let alone = self.run(&server, &loads.hot, clients).await?;
                let (beside, _) = tokio::try_join!(self.run(&server, &loads.hot, clients), self.run(&server, &loads.cold, 2))?;
                ratios.push(ratio(beside.latencies.percentile(99), alone.latencies.percentile(99)));
            }
            self.report.add(name, median(ratios.into_iter()));
        }
        server.stop()
    }

    /// Measures how many requests open a connection, and compares the time with what hits and openings cost by themselves.
    async fn measure_openings(
        &mut self,
        server: &Server,
        sessions: &Sessions<'_>,
        loads: &Loads,
        hits_per_second: f64,
        seconds_per_opening: f64,
    ) -> Result<()> {
        for (share, cost, p99, load) in [
            ("uniform: share that opens", "uniform: what hits and openings cost / time taken", "uniform: p99 ms", &loads.uniform),
            ("Zipf: share that opens", "Zipf: what hits and openings cost / time taken", "Zipf: p99 ms", &loads.zipf),
        ] {
            let before = sessions.opened().await?;
            let (outcome, most) = sessions.watch(self.run_for(server, load, CLIENTS, 2 * self.seconds)).await?;
            let opened = sessions.opened().await? - before;
            let answered = outcome.latencies.total() as f64;
            let expected = (answered - opened).max(0.0) / hits_per_second + opened * seconds_per_opening;
            self.report.add(share, opened / answered);
            self.report.add(cost, expected / outcome.elapsed.as_secs_f64());
            self.report.add(p99, millis(outcome.latencies.percentile(99)));
            self.report.add("failed", outcome.failed as f64);
            self.report.add("most connections at once / budget", most / f64::from(self.options.budget));
        }
        Ok(())
    }
}

async fn creations(api: &mut Connection, user: &User, count: u16) -> Result<Histogram> {
    let mut latencies = Histogram::default();
    for _ in 0..count {
        let began = Instant::now();
        Tenant::create(api, user).await?;
        latencies.record(began.elapsed());
    }
    Ok(latencies)
}

/// Every tenant equally often, in random order.
fn uniform(tenants: usize) -> Vec<usize> {
    let mut random = Random(7);
    (0..10_000).map(|_| random.below(tenants)).collect()
}

/// The n-th tenant 1/n times as often as the first (Zipf's law with exponent 1).
fn zipf(tenants: usize) -> Vec<usize> {
    let mut sums = Vec::new();
    let mut sum = 0.0;
    for n in 1..=tenants {
        sum += 1.0 / n as f64;
        sums.push(sum);
    }
    let mut random = Random(11);
    let mut draw = || random.below(1 << 30) as f64 / f64::from(1 << 30) * sum;
    (0..10_000)
        .map(|_| {
            let drawn = draw();
            sums.partition_point(|below| *below < drawn)
        })
        .collect()
}

/// SplitMix64, a reproducible sequence of random numbers.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % limit as u64).unwrap_or_default()
    }
}

fn rate(outcome: &Outcome) -> f64 {
    outcome.latencies.total() as f64 / outcome.elapsed.as_secs_f64()
}

fn ratio(one: Duration, other: Duration) -> f64 {
    one.as_secs_f64() / other.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_have_their_distribution() {
        let count = |order: &[usize], tenant| order.iter().filter(|n| **n == tenant).count();
        let (uniform, zipf) = (uniform(100), zipf(100));
        assert!((50..200).contains(&count(&uniform, 0)) && (50..200).contains(&count(&uniform, 99)));
        let (first, tenth) = (count(&zipf, 0), count(&zipf, 9));
        assert!((first / 15..first / 7).contains(&tenth), "{first} and {tenth}");
        assert!(uniform.iter().chain(&zipf).all(|n| *n < 100));
    }
}
