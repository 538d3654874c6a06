//! `tenantry init`

use std::{
    io::{IsTerminal, stdin},
    process::ExitCode,
};

use anyhow::{Context, Result, anyhow, bail};
use dialoguer::{Input, Password};
use domain::{Email, NewPassword, PersonName, TenantName, User};
use secrecy::{ExposeSecret, SecretString};
use services::{OperatorServices, Registration, Services};

use crate::{
    assembly::assemble,
    commands::say,
    config::{Config, FirstUser},
};

/// What has to be typed before everything is dropped.
const CONFIRMATION: &str = "DELETE EVERYTHING";

/// Options of `tenantry init`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Make a first user (asked for, or from ADMIN_EMAIL, ADMIN_PASSWORD, ADMIN_FIRST_NAME, ADMIN_LAST_NAME)
    #[arg(long)]
    create_admin: bool,
    /// Make a tenant for that user (asked for, or from TEST_TENANT_NAME)
    #[arg(long)]
    create_test_tenant: bool,
    /// Drop every tenant's database, every object and all tables first
    #[arg(long)]
    drop_all: bool,
    /// Ask nothing: what is not set is an error
    #[arg(long)]
    non_interactive: bool,
    /// The words that confirm --drop-all, instead of typing them
    #[arg(long, value_name = "WORDS", requires = "drop_all")]
    confirm: Option<String>,
}

/// Makes the main database and what else is asked for. What is there already stays, so it can be repeated.
///
/// # Errors
/// When a value is missing or not valid, or a dependency is down.
pub async fn run(config: &Config, arguments: &Arguments) -> Result<ExitCode> {
    let ask = Ask { interactive: !arguments.non_interactive && stdin().is_terminal() };
    let (Services { operator: services, .. }, main) = assemble(config)?;
    if arguments.drop_all {
        confirm(&ask, arguments)?;
        main.migrate().await.context("open the main database")?;
        let dropped = services.drop_everything().await.context("drop the tenants' databases and objects")?;
        main.erase().await.context("drop the main database's tables")?;
        say(format_args!("Dropped {dropped} tenants with their databases and objects, and all tables of the main database."));
    }
    let migrated = main.migrate().await.context("bring the main database up to date")?;
    say(format_args!("Main database: schema version {} ({})", migrated.to, config.databases.main));
    let admin =
        if arguments.create_admin || arguments.create_test_tenant { Some(admin(&services, &ask, &config.first_user).await?) } else { None };
    if let Some(admin) = admin.filter(|_| arguments.create_test_tenant) {
        test_tenant(&services, &ask, &config.first_user, &admin).await?;
    }
    say("Ready: start the API with `tenantry serve`.");
    Ok(ExitCode::SUCCESS)
}

fn confirm(ask: &Ask, arguments: &Arguments) -> Result<()> {
    let typed = match &arguments.confirm {
        Some(words) => words.clone(),
        None => ask.text(&format!("This deletes every tenant's data. Type {CONFIRMATION} to go on"), None, "--confirm")?,
    };
    if typed == CONFIRMATION { Ok(()) } else { bail!("nothing was dropped: the words are {CONFIRMATION:?}") }
}

async fn admin(services: &OperatorServices, ask: &Ask, given: &FirstUser) -> Result<User> {
    let email = ask.text("E-mail address", given.email.as_ref(), "ADMIN_EMAIL")?;
    let email = Email::parse(&email).map_err(|problem| anyhow!("ADMIN_EMAIL {problem}"))?;
    if let Some(user) = services.find_user_by_email(&email).await? {
        say(format_args!("User {} is there already.", user.email));
        return Ok(user);
    }
    let first_name = ask.text("First name", given.first_name.as_ref(), "ADMIN_FIRST_NAME")?;
    let last_name = ask.text("Last name", given.last_name.as_ref(), "ADMIN_LAST_NAME")?;
    let password = ask.password(given.password.as_ref(), "ADMIN_PASSWORD")?;
    let registration = Registration {
        email,
        password: NewPassword::parse(&password).map_err(|problem| anyhow!("ADMIN_PASSWORD {problem}"))?,
        first_name: PersonName::parse(&first_name).map_err(|problem| anyhow!("ADMIN_FIRST_NAME {problem}"))?,
        last_name: PersonName::parse(&last_name).map_err(|problem| anyhow!("ADMIN_LAST_NAME {problem}"))?,
    };
    let user = services.create_user(registration).await?;
    say(format_args!("User {} made.", user.email));
    Ok(user)
}

async fn test_tenant(services: &OperatorServices, ask: &Ask, given: &FirstUser, admin: &User) -> Result<()> {
    let name = ask.text("Name of the test tenant", given.tenant_name.as_ref(), "TEST_TENANT_NAME")?;
    let name = TenantName::parse(&name).map_err(|problem| anyhow!("TEST_TENANT_NAME {problem}"))?;
    let known = services.list_all_tenants().await?;
    if known.iter().any(|tenant| tenant.name == name.as_str() && tenant.created_by == Some(admin.id)) {
        say(format_args!("Tenant {name} is there already."));
        return Ok(());
    }
    let tenant = services.create_tenant_for(admin.id, &name).await?.of;
    say(format_args!("Tenant {} made: id {}, database {}", tenant.name, tenant.id, tenant.place.database));
    Ok(())
}

/// Where values come from that were not given.
struct Ask {
    interactive: bool,
}

impl Ask {
    fn text(&self, prompt: &str, given: Option<&String>, name: &str) -> Result<String> {
        match given {
            Some(given) => Ok(given.clone()),
            None if self.interactive => Ok(Input::new().with_prompt(prompt).interact_text()?),
            None => bail!("{name} is not set, and there is nobody to ask"),
        }
    }

    fn password(&self, given: Option<&SecretString>, name: &str) -> Result<String> {
        match given {
            Some(given) => Ok(given.expose_secret().to_owned()),
            None if self.interactive => Ok(Password::new().with_prompt("Password").with_confirmation("Again", "They differ").interact()?),
            None => bail!("{name} is not set, and there is nobody to ask"),
        }
    }
}
