//! Many tenants: what their databases cost to make, to keep and to change between.

use std::{fmt, sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use clap::value_parser;
use comfy_table::{Table, presets};
use serde::Serialize;
use uuid::Uuid;

use crate::{
    fixture::{Tenant, User},
    histogram::Histogram,
    load::{Connection, Load, Outcome, Request},
    place::Place,
    process::{Server, Tenantry},
    progress,
    report::median,
};

/// Connections that ask at the same time.
const CLIENTS: usize = 32;
/// Tenants in constant use, and connections that use them.
const HOT: usize = 10;
const HOT_CLIENTS: [(usize, [&str; 2]); 2] = [
    (8, ["p99 of hot tenants beside cold ones / alone, 8 clients", "bare connections: the same, 8 clients"]),
    (CLIENTS, ["p99 of hot tenants beside cold ones / alone, 32 clients", "bare connections: the same, 32 clients"]),
];
/// How often what is compared is measured, for the median.
const ROUNDS: usize = 3;
/// Bytes of each tenant's document.
const SMALL: usize = 1_000;

/// How many of what.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Tenants
    #[arg(long, default_value_t = 500, value_parser = value_parser!(u16).range(20..=20_000))]
    tenants: u16,
    /// Tenants that are worked in; all, unless it is said. The others only are there
    #[arg(long, value_parser = value_parser!(u16).range(20..=20_000))]
    active: Option<u16>,
    /// Tenants that are made to see how long that takes, in each way
    #[arg(long, default_value_t = 100, value_parser = value_parser!(u16).range(1..=1_000))]
    creations: u16,
    /// Connections to tenants' databases where they don't suffice
    #[arg(long, default_value_t = 40, value_parser = value_parser!(u16).range(1..=10_000))]
    budget: u16,
}

/// The figures of a fleet.
#[derive(Serialize)]
pub(crate) struct Fleet {
    engine: &'static str,
    tenants: u16,
    active: u16,
    budget: u16,
    findings: Vec<(&'static str, f64)>,
}

/// Measures a fleet in an empty place.
pub(crate) async fn measure(options: &Options, place: &Place, tenantry: &Tenantry, seconds: Duration) -> Result<Fleet> {
    let mut findings = Vec::new();
    let mut note = |what, value| findings.push((what, value));

    progress("creations");
    let active = options.active.unwrap_or(options.tenants).min(options.tenants);
    let server = tenantry.start_with(&[("TENANT_WARM_POOL", "0")])?;
    let mut api = Connection::open(server.address).await?;
    let user = User::register(&mut api, "fleet@example.com").await?;
    // The first makes what all are copied from.
    Tenant::create(&mut api, &user).await?;
    let copied = creations(&mut api, &user, options.creations).await?;
    note("creation, p50 ms", millis(copied.percentile(50)));
    note("creation, p99 ms", millis(copied.percentile(99)));
    server.stop()?;
    if let Some(spares) = place.spares() {
        let pool = (options.creations + 1).to_string();
        let server = tenantry.start_with(&[("TENANT_WARM_POOL", &pool)])?;
        spares.wait_for(i64::from(options.creations) + 1).await?;
        let mut api = Connection::open(server.address).await?;
        // As above.
        Tenant::create(&mut api, &user).await?;
        let claimed = creations(&mut api, &user, options.creations).await?;
        note("creation from the warm pool, p50 ms", millis(claimed.percentile(50)));
        note("creation from the warm pool, p99 ms", millis(claimed.percentile(99)));
        note("p99 from the warm pool / by copying", ratio(claimed.percentile(99), copied.percentile(99)));
        server.stop()?;
    }

    progress("tenants");
    let enough = (u32::from(options.tenants) + 50).to_string();
    let server = tenantry.start_with(&[("TENANT_CONNECTION_BUDGET", &enough)])?;
    let mut api = Connection::open(server.address).await?;
    let mut gets = Vec::new();
    for n in 0..options.tenants {
        let tenant = Tenant::create(&mut api, &user).await?;
        if n < active {
            let document: Uuid = user.uploaded(&mut api, &tenant, SMALL).await?;
            gets.push((tenant, document));
        }
    }
    server.stop()?;

    progress("cold tenants");
    let server = tenantry.start_with(&[("TENANT_CONNECTION_BUDGET", &enough)])?;
    let mut api = Connection::open(server.address).await?;
    let before = server.memory()?;
    note("resident memory with all tenants idle, MiB", before);
    let mut cold = Histogram::default();
    for (tenant, document) in &gets {
        let request = user.get_document(tenant, *document);
        let began = std::time::Instant::now();
        let (status, _) = api.exchange(&request).await?;
        ensure!(status == 200, "a document is answered with {status}");
        cold.record(began.elapsed());
    }
    note("first request to a tenant, p50 ms", millis(cold.percentile(50)));
    note("first request to a tenant, p99 ms", millis(cold.percentile(99)));
    note("memory per tenant that is open and idle, KiB", (server.memory()? - before) * 1024.0 / f64::from(active));
    if let Some(sessions) = place.sessions() {
        note("PostgreSQL's memory per connection, MiB (private)", sessions.private_memory().await?);
    }
    let requests = |order: &[usize]| -> Arc<[Request]> { order.iter().map(|n| user.get_document(&gets[*n].0, gets[*n].1)).collect() };
    let in_turn: Vec<usize> = (0..gets.len()).collect();
    let (one, uniform, zipf) = (requests(&[0]), requests(&uniform(gets.len())), requests(&zipf(gets.len())));

    progress("enough connections");
    let run = |server: &Server, requests: &Arc<[Request]>, clients, duration| {
        let load = Load { address: server.address, requests: Arc::clone(requests), connections: clients, duration, expected_status: 200 };
        async move { load.run().await }
    };
    run(&server, &requests(&in_turn), CLIENTS, seconds).await?;
    // Close to each other in time, several times: the machine is not the same from one moment to the next.
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let single = run(&server, &one, CLIENTS, seconds).await?;
        rounds.push((run(&server, &uniform, CLIENTS, seconds).await?, run(&server, &zipf, CLIENTS, seconds).await?, single));
    }
    let median_of = |figure: &dyn Fn(&Outcome, &Outcome, &Outcome) -> f64| median(rounds.iter().map(|(u, z, one)| figure(u, z, one)));
    let p50 = |outcome: &Outcome| outcome.latencies.percentile(50);
    note("uniform / one tenant", median_of(&|uniform, _, one| rate(uniform) / rate(one)));
    note("uniform / one tenant, p50", median_of(&|uniform, _, one| ratio(p50(uniform), p50(one))));
    note("Zipf / one tenant", median_of(&|_, zipf, one| rate(zipf) / rate(one)));
    note("Zipf / one tenant, p50", median_of(&|_, zipf, one| ratio(p50(zipf), p50(one))));
    note("failed", rounds.iter().map(|(uniform, zipf, _)| uniform.failed + zipf.failed).sum::<u64>() as f64);
    let rate_of_uniform = median_of(&|uniform, _, _| rate(uniform));
    note("resident memory, MiB", server.memory()?);
    server.stop()?;
    if let Some(sessions) = place.sessions() {
        progress("bare connections");
        let databases: Vec<_> = gets.iter().map(|(tenant, document)| (tenant.database.as_str(), *document)).collect();
        let finders = sessions.finders(&databases).await?;
        let found = async |order: &[usize]| anyhow::Ok(finders.find(order, CLIENTS, seconds).await?.total() as f64 / seconds.as_secs_f64());
        let (alone, many) = (found(&[0]).await?, found(&self::uniform(gets.len())).await?);
        note("bare connections: uniform / one tenant", many / alone);
        note("uniform / bare connections, uniform", rate_of_uniform / many);
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
            note(name, median(ratios.into_iter()));
        }
    }

    if let Some(sessions) = place.sessions() {
        progress("few connections");
        let server = tenantry.start_with(&[("TENANT_CONNECTION_BUDGET", &options.budget.to_string())])?;
        let hits = run(&server, &one, CLIENTS, seconds).await?;
        let before = sessions.opened().await?;
        let sweep = run(&server, &requests(&in_turn), CLIENTS, seconds).await?;
        let opened = sessions.opened().await? - before;
        note("one after the other: share that opens a connection", opened / sweep.latencies.total() as f64);
        let opening = sweep.elapsed.as_secs_f64() / opened;
        note("an opening with its request, ms", opening * 1e3);
        for (share, cost, p99, load) in [
            ("uniform: share that opens", "uniform: what hits and openings cost / time taken", "uniform: p99 ms", &uniform),
            ("Zipf: share that opens", "Zipf: what hits and openings cost / time taken", "Zipf: p99 ms", &zipf),
        ] {
            let before = sessions.opened().await?;
            let (outcome, most) = sessions.watch(run(&server, load, CLIENTS, 2 * seconds)).await?;
            let opened = sessions.opened().await? - before;
            let answered = outcome.latencies.total() as f64;
            let expected = (answered - opened).max(0.0) / rate(&hits) + opened * opening;
            note(share, opened / answered);
            note(cost, expected / outcome.elapsed.as_secs_f64());
            note(p99, millis(outcome.latencies.percentile(99)));
            note("failed", outcome.failed as f64);
            note("most connections at once / budget", most / f64::from(options.budget));
        }
        let hot = requests(&(0..HOT).collect::<Vec<_>>());
        let cold = requests(&(HOT..gets.len()).collect::<Vec<_>>());
        for (clients, [name, _]) in HOT_CLIENTS {
            let mut ratios = Vec::new();
            for _ in 0..ROUNDS {
                let alone = run(&server, &hot, clients, seconds).await?;
                let (beside, _) = tokio::try_join!(run(&server, &hot, clients, seconds), run(&server, &cold, 2, seconds))?;
                ratios.push(ratio(beside.latencies.percentile(99), alone.latencies.percentile(99)));
            }
            note(name, median(ratios.into_iter()));
        }
        server.stop()?;
    }
    Ok(Fleet { engine: place.engine(), tenants: options.tenants, active, budget: options.budget, findings })
}

async fn creations(api: &mut Connection, user: &User, count: u16) -> Result<Histogram> {
    let mut latencies = Histogram::default();
    for _ in 0..count {
        let began = std::time::Instant::now();
        Tenant::create(api, user).await?;
        latencies.record(began.elapsed());
    }
    Ok(latencies)
}

/// Every tenant equally often, in an order without a pattern.
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

/// SplitMix64: the same numbers each time.
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

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

impl Fleet {
    pub(crate) fn to_json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self)
    }
}

impl fmt::Display for Fleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_style(presets::UTF8_HORIZONTAL_ONLY).set_header(["", "found"]);
        for (what, value) in &self.findings {
            table.add_row([(*what).to_owned(), format!("{value:.3}")]);
        }
        let Self { engine, tenants, active, budget, .. } = self;
        write!(f, "{engine}, {tenants} tenants, {active} of them in use, budget of {budget} where connections don't suffice\n{table}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_what_they_are_called() {
        let count = |order: &[usize], tenant| order.iter().filter(|n| **n == tenant).count();
        let (uniform, zipf) = (uniform(100), zipf(100));
        assert!((50..200).contains(&count(&uniform, 0)) && (50..200).contains(&count(&uniform, 99)));
        let (first, tenth) = (count(&zipf, 0), count(&zipf, 9));
        assert!((first / 15..first / 7).contains(&tenth), "{first} and {tenth}");
        assert!(uniform.iter().chain(&zipf).all(|n| *n < 100));
    }
}
