//! `tenantry tenants`

mod moves;

use std::{
    io::{IsTerminal, stdin},
    process::ExitCode,
};

use anyhow::{Context, Result, anyhow, bail};
use comfy_table::CellAlignment;
use dialoguer::Input;
use domain::{
    Email, Error, Limit, Member, Move, MoveState, Noun, Provisioning, Quota, QuotaLimits, StorageUse, Tenant, TenantName, Timestamp,
    Tombstone, User,
};
use serde_json::{Value, json};
use services::{Deletion, OperatorServices, TenantReport, TenantSummary};

use crate::{
    assembly::assemble,
    commands::{complain, say, say_json, table},
    config::{Config, parse_bytes},
};

/// What can be done with tenants.
#[derive(clap::Subcommand)]
pub enum Command {
    /// List all tenants
    List {
        /// Answer in JSON
        #[arg(long)]
        json: bool,
    },
    /// Show a tenant with its members and what it stores
    Show {
        /// Which one
        #[command(flatten)]
        which: Which,
        /// Answer in JSON
        #[arg(long)]
        json: bool,
    },
    /// Make a tenant with a database of its own
    Create {
        /// What its people call it
        name: String,
        /// The e-mail address of the user who becomes its admin
        #[arg(long, value_name = "EMAIL")]
        admin: String,
        /// Answer in JSON
        #[arg(long)]
        json: bool,
    },
    /// Let a tenant's members work in it no longer; nothing is dropped
    Deactivate(Which),
    /// Let a tenant's members work in it again
    Activate(Which),
    /// Move a tenant's database to another server
    ///
    /// Works between SQLite and PostgreSQL, too. Members go on reading; what they write waits for a few seconds while the last
    /// changes are copied and both databases are compared. The former database is kept, closed for writing, until you drop
    /// it with --drop-former or return to it with --back. Interrupted at any moment, the tenant stays where it was.
    ///
    /// Every running `tenantry serve` must know the new server: restart them first when you have added it to
    /// TENANT_DATABASE_URLS.
    Move(moves::Arguments),
    /// Set how much a tenant may store
    ///
    /// What is stored already stays, even if it is more. What is not given stays as it is.
    SetQuota(SetQuota),
    /// Delete a tenant for good: its database, its documents, its memberships
    Delete(Delete),
}

/// Which tenant is meant.
#[derive(clap::Args)]
pub struct Which {
    /// The tenant's id, its database's name, or its name when no other tenant has it
    pub(super) tenant: String,
}

/// Options of `tenantry tenants set-quota`.
#[derive(clap::Args)]
pub struct SetQuota {
    #[command(flatten)]
    which: Which,
    /// The most bytes, like 10GB or 500MiB; `unlimited`; or `default` for what TENANT_MAX_BYTES says
    #[arg(long, value_parser = parse_limit_of_bytes, required_unless_present = "documents")]
    bytes: Option<Limit>,
    /// The most documents, those in the trash included; `unlimited`; or `default` for what TENANT_MAX_DOCUMENTS says
    #[arg(long, value_parser = parse_limit)]
    documents: Option<Limit>,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

fn parse_limit_of_bytes(text: &str) -> Result<Limit, String> {
    limit_word(text).map_or_else(|| parse_bytes(text).map(Limit::AtMost), Ok)
}

fn parse_limit(text: &str) -> Result<Limit, String> {
    let number = || text.parse().map(Limit::AtMost).map_err(|_| "must be a whole number, `unlimited` or `default`".to_owned());
    limit_word(text).map_or_else(number, Ok)
}

fn limit_word(text: &str) -> Option<Limit> {
    match text {
        "unlimited" => Some(Limit::Unlimited),
        "default" => Some(Limit::Usual),
        _ => None,
    }
}

/// Options of `tenantry tenants delete`.
#[derive(clap::Args)]
pub struct Delete {
    #[command(flatten)]
    which: Which,
    /// For good, with everything in it
    #[arg(long)]
    hard: bool,
    /// The tenant's name, which confirms it, instead of typing it
    #[arg(long, value_name = "NAME")]
    confirm: Option<String>,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

/// Looks at tenants or changes one.
///
/// # Errors
/// When there is no such tenant, or what it needs is down.
pub async fn run(config: &Config, command: &Command) -> Result<ExitCode> {
    if let Command::Delete(Delete { hard: false, .. }) = command {
        complain("tenantry: deleting drops everything and needs --hard; to only keep people out, use `tenantry tenants deactivate`");
        return Ok(ExitCode::from(2));
    }
    let services = assemble(config)?.0.operator;
    match command {
        Command::List { json } => list(&services, *json).await,
        Command::Show { which, json } => show(&services, &find(&services, which).await?, *json).await,
        Command::Create { name, admin, json } => create(&services, name, admin, *json).await,
        Command::Deactivate(which) => set_active(&services, &find(&services, which).await?, false).await,
        Command::Activate(which) => set_active(&services, &find(&services, which).await?, true).await,
        Command::Move(arguments) => Box::pin(moves::run(&services, arguments)).await,
        Command::SetQuota(arguments) => set_quota(&services, arguments).await,
        Command::Delete(arguments) => delete(&services, arguments).await,
    }
}

/// The one tenant that is meant.
pub(super) async fn find(services: &OperatorServices, which: &Which) -> Result<Tenant> {
    if let Some(tenant) = find_living(services, which).await? {
        return Ok(tenant);
    }
    Err(find_tombstone(services, which).await?.map_or_else(|| unknown(which), |tombstone| anyhow!(epitaph(&tombstone))))
}

fn unknown(Which { tenant }: &Which) -> anyhow::Error {
    anyhow!("no tenant has the id, database or name {tenant:?}")
}

async fn find_living(services: &OperatorServices, Which { tenant }: &Which) -> Result<Option<Tenant>> {
    let mut found = services.find_tenants(tenant).await.context("look for the tenant")?;
    if found.len() > 1 {
        let ids: Vec<_> = found.iter().map(|tenant| tenant.id.to_string()).collect();
        bail!("{} tenants are called {tenant:?}; say which one by its id: {}", ids.len(), ids.join(", "));
    }
    Ok(found.pop())
}

async fn find_tombstone(services: &OperatorServices, which: &Which) -> Result<Option<Tombstone>> {
    match which.tenant.parse() {
        Ok(id) => services.find_tombstone(id).await.context("look for the tenant"),
        Err(_) => Ok(None),
    }
}

fn epitaph(tombstone: &Tombstone) -> String {
    format!("tenant {} ({}) was deleted at {}", tombstone.name, tombstone.place.tenant_id, tombstone.deleted_at)
}

async fn list(services: &OperatorServices, in_json: bool) -> Result<ExitCode> {
    let tenants = services.summarize_tenants().await.context("list the tenants")?;
    if in_json {
        let tenants: Vec<_> = tenants.iter().map(summary_in_json).collect();
        say_json(&json!({ "tenants": tenants }));
    } else if tenants.is_empty() {
        say("There are no tenants yet.");
    } else {
        let mut table = table(&["name", "id", "server", "database", "state", "schema", "active", "members", "created"]);
        for column in [5, 7] {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table.add_rows(tenants.iter().map(row));
        say(table);
    }
    Ok(ExitCode::SUCCESS)
}

fn row(TenantSummary { tenant, member_count }: &TenantSummary) -> [String; 9] {
    [
        tenant.name.clone(),
        tenant.id.to_string(),
        tenant.place.server.clone(),
        tenant.place.database.to_string(),
        tenant.provisioning.as_str().to_owned(),
        tenant.schema_version.to_string(),
        yes_or_no(tenant.is_active).to_owned(),
        member_count.to_string(),
        Timestamp::from_seconds(tenant.created_at.seconds()).to_string(),
    ]
}

fn yes_or_no(is_so: bool) -> &'static str {
    if is_so { "yes" } else { "no" }
}

fn summary_in_json(summary: &TenantSummary) -> Value {
    let mut json = in_json(&summary.tenant);
    json["member_count"] = summary.member_count.into();
    json
}

fn in_json(tenant: &Tenant) -> Value {
    json!({
        "id": tenant.id.to_string(),
        "name": tenant.name,
        "server": tenant.place.server,
        "database": tenant.place.database.as_str(),
        "state": tenant.provisioning.as_str(),
        "schema_version": tenant.schema_version,
        "quarantined_at": tenant.quarantined_at.map(|at| at.to_string()),
        "writes_paused_at": tenant.writes_paused_at.map(|at| at.to_string()),
        "max_bytes": limit_in_json(tenant.limits.bytes),
        "max_documents": limit_in_json(tenant.limits.documents),
        "is_active": tenant.is_active,
        "created_at": tenant.created_at.to_string(),
        "updated_at": tenant.updated_at.to_string(),
        "created_by": tenant.created_by.map(|id| id.to_string()),
    })
}

async fn show(services: &OperatorServices, tenant: &Tenant, as_json: bool) -> Result<ExitCode> {
    let report = services.report_tenant(tenant).await.context("look at the tenant")?;
    if as_json {
        say_json(&report_in_json(tenant, &report));
    } else {
        say_tenant(tenant);
        if let Some(the_move) = &report.on_the_move {
            say(format_args!("  {:<15} {}", "move", told(the_move)));
        }
        say_members(&report.members);
        match &report.contents {
            Ok(used) => say_use(used, tenant.limits.or(services.settings().quota)),
            Err(error) => say(format_args!("Contents: its database is DOWN: {}", error.with_causes())),
        }
    }
    Ok(if report.contents.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn set_quota(services: &OperatorServices, arguments: &SetQuota) -> Result<ExitCode> {
    let tenant = find(services, &arguments.which).await?;
    let limits = QuotaLimits {
        bytes: arguments.bytes.unwrap_or(tenant.limits.bytes),
        documents: arguments.documents.unwrap_or(tenant.limits.documents),
    };
    let tenant = services.set_limits(tenant.id, limits).await.context("set the quota")?;
    if arguments.json {
        say_json(&in_json(&tenant));
    } else {
        let (bytes, documents) = (limit_in_words(limits.bytes), limit_in_words(limits.documents));
        say(format_args!("Tenant {} may store: bytes {bytes}, documents {documents}", tenant.name));
    }
    Ok(ExitCode::SUCCESS)
}

fn say_use(used: &StorageUse, quota: Quota) {
    let of = |quota: Option<u64>| quota.map_or_else(String::new, |most| format!(" of {most}"));
    let kept = used.documents - used.trashed_documents;
    say(format_args!("Contents: {kept} documents and {} in the trash{}", used.trashed_documents, of(quota.documents)));
    say(format_args!("Storage:  {} files, {} bytes{}", used.files, used.bytes, of(quota.bytes)));
    if used.reserved_documents > 0 || used.reserved_bytes > 0 {
        say(format_args!("Reserved: {} documents, {} bytes for uploads under way", used.reserved_documents, used.reserved_bytes));
    }
}

/// A tenant's limit as the operator set it.
fn limit_in_words(limit: Limit) -> String {
    match limit {
        Limit::Usual => "as usual".to_owned(),
        Limit::Unlimited => "unlimited".to_owned(),
        Limit::AtMost(most) => most.to_string(),
    }
}

fn say_tenant(tenant: &Tenant) {
    say(format_args!("Tenant {}", tenant.name));
    say(format_args!("  id              {}", tenant.id));
    say(format_args!("  server          {}", tenant.place.server));
    say(format_args!("  database        {}", tenant.place.database));
    say(format_args!("  state           {}", tenant.provisioning.as_str()));
    say(format_args!("  schema version  {}", tenant.schema_version));
    if let Some(at) = tenant.quarantined_at {
        say(format_args!("  closed since    {at}, because its migration failed: see `tenantry migrate status`"));
    }
    say(format_args!("  active          {}", yes_or_no(tenant.is_active)));
    say(format_args!("  most bytes      {}", limit_in_words(tenant.limits.bytes)));
    say(format_args!("  most documents  {}", limit_in_words(tenant.limits.documents)));
    say(format_args!("  created         {}", tenant.created_at));
    say(format_args!("  updated         {}", tenant.updated_at));
    say(format_args!("  created by      {}", tenant.created_by.map_or_else(|| "nobody".to_owned(), |id| id.to_string())));
}

fn told(Move { from_server, to_server, state, began_at, .. }: &Move) -> String {
    match state {
        MoveState::Kept => {
            format!("its former database is kept on server {from_server}: drop it with `tenantry tenants move --drop-former`")
        }
        MoveState::Abandoned => format!("given up; what was made of it on server {to_server} is being dropped"),
        _ => format!("from server {from_server} to server {to_server} since {began_at}: {}", state.as_str()),
    }
}

fn say_members(members: &[Member<User>]) {
    if members.is_empty() {
        say("It has no members.");
        return;
    }
    let mut table = table(&["member", "name", "id", "role", "may log in", "joined"]);
    for Member { membership, of: user } in members {
        table.add_row([
            user.email.clone(),
            format!("{} {}", user.first_name, user.last_name),
            user.id.to_string(),
            membership.role.as_str().to_owned(),
            yes_or_no(user.is_active).to_owned(),
            Timestamp::from_seconds(membership.joined_at.seconds()).to_string(),
        ]);
    }
    say(table);
}

fn report_in_json(tenant: &Tenant, report: &TenantReport) -> Value {
    let members = report.members.iter().map(|Member { membership, of: user }| {
        json!({
            "user_id": user.id.to_string(),
            "email": user.email,
            "first_name": user.first_name,
            "last_name": user.last_name,
            "is_active": user.is_active,
            "role": membership.role.as_str(),
            "joined_at": membership.joined_at.to_string(),
        })
    });
    let contents = report.contents.as_ref().ok().map(use_in_json);
    let mut json = in_json(tenant);
    json["members"] = members.collect();
    json["contents"] = contents.into();
    json["move"] = report.on_the_move.as_ref().map(move_in_json).into();
    json["problem"] = report.contents.as_ref().err().map(domain::Error::with_causes).into();
    json
}

fn use_in_json(used: &StorageUse) -> Value {
    json!({
        "documents": used.documents - used.trashed_documents,
        "trashed_documents": used.trashed_documents,
        "files": used.files,
        "bytes": used.bytes,
        "reserved_documents": used.reserved_documents,
        "reserved_bytes": used.reserved_bytes,
    })
}

fn limit_in_json(limit: Limit) -> Value {
    match limit {
        Limit::Usual => Value::Null,
        Limit::Unlimited => "unlimited".into(),
        Limit::AtMost(most) => most.into(),
    }
}

fn move_in_json(Move { from_server, to_server, state, began_at, .. }: &Move) -> Value {
    json!({ "from": from_server, "to": to_server, "state": state.as_str(), "began_at": began_at.to_string() })
}

async fn create(services: &OperatorServices, name: &str, admin: &str, as_json: bool) -> Result<ExitCode> {
    let name = TenantName::parse(name).map_err(|problem| anyhow!("the name {problem}"))?;
    let admin = Email::parse(admin).map_err(|problem| anyhow!("the address {problem}"))?;
    let tenant = match services.create_tenant_for_address(&admin, &name).await {
        Err(Error::NotFound(Noun::User)) => bail!("nobody who may log in has the address {admin}"),
        made => made.context("make the tenant")?.of,
    };
    if as_json {
        say_json(&in_json(&tenant));
    } else {
        say(format_args!("Tenant {} made for {admin}: id {}, database {}", tenant.name, tenant.id, tenant.place.database));
    }
    Ok(ExitCode::SUCCESS)
}

async fn set_active(services: &OperatorServices, tenant: &Tenant, is_active: bool) -> Result<ExitCode> {
    let changed = match services.set_tenant_active(tenant.id, is_active).await {
        Err(Error::NotFound(_)) => bail!("tenant {} ({}) is being deleted", tenant.name, tenant.id),
        changed => changed.context("change the tenant")?,
    };
    let state = match (changed, is_active) {
        (true, true) => "is active again",
        (true, false) => "is inactive now; nothing was dropped",
        (false, true) => "is active already",
        (false, false) => "is inactive already",
    };
    say(format_args!("Tenant {} ({}) {state}.", tenant.name, tenant.id));
    Ok(ExitCode::SUCCESS)
}

async fn delete(services: &OperatorServices, arguments: &Delete) -> Result<ExitCode> {
    let (deletion, told) = match find_living(services, &arguments.which).await? {
        Some(tenant) => {
            // What was confirmed once needs no second word, unless that is another one.
            if arguments.confirm.is_some() || tenant.provisioning != Provisioning::Deleting {
                confirm(&tenant, arguments.confirm.as_deref(), "deletes all data of", "nothing was deleted")?;
            }
            (delete_living(services, &tenant).await?, format!("Tenant {} ({}) is deleted:", tenant.name, tenant.id))
        }
        None => {
            let tombstone = find_tombstone(services, &arguments.which).await?.ok_or_else(|| unknown(&arguments.which))?;
            let told = format!("Nothing to do: {}:", epitaph(&tombstone));
            (services.check_deletion(tombstone).await.context("look for what is left")?, told)
        }
    };
    if arguments.json {
        say_json(&deletion_in_json(&deletion));
    } else {
        say(told);
        say_deletion(&deletion);
    }
    Ok(if deletion.is_complete() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn delete_living(services: &OperatorServices, tenant: &Tenant) -> Result<Deletion> {
    if let Err(error) = services.delete_tenant(tenant).await {
        let (name, id, problem) = (&tenant.name, tenant.id, error.with_causes());
        match services.find_tenants(&id.to_string()).await?.first() {
            Some(now) if now.provisioning != Provisioning::Deleting => bail!("tenant {name} ({id}) was not deleted: {problem}"),
            _ => bail!("tenant {name} ({id}) is half deleted, and the same command goes on where it stopped: {problem}"),
        }
    }
    let tombstone = services.find_tombstone(tenant.id).await?.context("the tenant left no tombstone")?;
    services.check_deletion(tombstone).await.context("look for what is left")
}

/// Has the operator give the tenant's name before something that can't be undone.
fn confirm(tenant: &Tenant, given: Option<&str>, what: &str, otherwise: &str) -> Result<()> {
    let typed = match given {
        Some(name) => name.to_owned(),
        None if stdin().is_terminal() => {
            let prompt = format!("This {what} {} ({}). Type the tenant's name to go on", tenant.name, tenant.id);
            Input::new().with_prompt(prompt).allow_empty(true).interact_text()?
        }
        None => bail!("--confirm is not set, and there is nobody to ask"),
    };
    if typed == tenant.name { Ok(()) } else { bail!("{otherwise}: the tenant's name is {:?}", tenant.name) }
}

fn say_deletion(deletion: &Deletion) {
    let (place, left) = (&deletion.tombstone.place, "LEFT");
    let database = if deletion.database_is_there { left } else { "gone" };
    say(format_args!("  database {} on server {}: {database}", place.database, place.server));
    match deletion.objects {
        0 => say("  objects: gone"),
        objects => say(format_args!("  objects: {objects} {left}; `tenantry gc` removes them")),
    }
    say(format_args!("  row and memberships: {}", if deletion.row_is_there { left } else { "gone" }));
}

fn deletion_in_json(deletion: &Deletion) -> Value {
    let Tombstone { name, place, created_at, deleted_at, deleted_by } = &deletion.tombstone;
    json!({
        "id": place.tenant_id.to_string(),
        "name": name,
        "server": place.server,
        "database": place.database.as_str(),
        "created_at": created_at.to_string(),
        "deleted_at": deleted_at.to_string(),
        "deleted_by": deleted_by.map(|id| id.to_string()),
        "left": { "database": deletion.database_is_there, "objects": deletion.objects, "row": deletion.row_is_there },
        "is_complete": deletion.is_complete(),
    })
}
