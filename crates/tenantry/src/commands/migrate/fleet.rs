//! The plan and the outcome of a migration of the fleet.

use domain::{Error, Tenant};
use serde_json::{Value, json};
use services::{FleetMigration, MigrationPlan};

use crate::commands::{print, print_json, tenants::tenant_reference_json};

/// Prints what a migration would do.
pub(super) fn show_plan(plan: &MigrationPlan, FleetMigration { wanted_version, total, outdated, .. }: &FleetMigration, json: bool) {
    let names: Vec<_> = outdated.iter().map(|tenant| tenant.place.database.as_str()).collect();
    let reaches: Vec<_> = plan.waves.iter().map(|wave| wave.reach(outdated.len())).collect();
    if json {
        return print_json(&json!({ "schema_version": wanted_version, "tenants": total, "outdated": names, "waves_reach": reaches }));
    }
    print(format_args!("{} of {total} tenant databases need a migration to schema version {wanted_version}", names.len()));
    if let [_, _, ..] = reaches[..] {
        let reaches: Vec<_> = reaches.iter().map(ToString::to_string).collect();
        print(format_args!("in waves up to {} tenants", reaches.join(", then ")));
    }
    names.iter().for_each(print);
}

/// Prints the outcome of a migration.
pub(super) fn print_fleet(fleet: &FleetMigration) {
    let FleetMigration { wanted_version, up_to_date, migrated, failed, postponed, gone, .. } = fleet;
    let (failures, postponements) = (failed.len(), postponed.len());
    print(format_args!(
        "Schema version {wanted_version}: {migrated} migrated, {up_to_date} were up to date, {failures} failed, {postponements} postponed"
    ));
    for (tenant, error) in failed {
        let (database, error) = (&tenant.place.database, error.with_causes());
        print(format_args!("  {database} (quarantined until a migration succeeds or `tenantry migrate release`): {error}"));
    }
    for (tenant, error) in postponed {
        print(format_args!("  {} (postponed, still in service): {}", tenant.place.database, error.with_causes()));
    }
    if *gone > 0 {
        print(format_args!("{gone} were deleted in the meantime"));
    }
    match (fleet.left(), fleet.halted) {
        (0, _) => {}
        (left, true) => print(format_args!("Stopped after {failures} failures; {left} tenants were not migrated")),
        (left, false) => print(format_args!("{left} tenants beyond the last wave were not migrated")),
    }
}

/// The outcome of a migration in JSON.
pub(super) fn fleet_json(fleet: &FleetMigration) -> Value {
    json!({
        "schema_version": fleet.wanted_version,
        "tenants": fleet.total,
        "up_to_date": fleet.up_to_date,
        "migrated": fleet.migrated,
        "failed": problems_json(&fleet.failed),
        "postponed": problems_json(&fleet.postponed),
        "deleted": fleet.gone,
        "left": fleet.left(),
        "halted": fleet.halted,
    })
}

fn problems_json(problems: &[(Tenant, Error)]) -> Vec<Value> {
    let problem = |(tenant, error): &(Tenant, Error)| {
        let mut json = tenant_reference_json(tenant);
        json["error"] = error.with_causes().into();
        json
    };
    problems.iter().map(problem).collect()
}
