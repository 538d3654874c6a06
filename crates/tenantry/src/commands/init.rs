//! `tenantry init`

use std::{
    io::{IsTerminal, stdin},
    process::ExitCode,
};

use anyhow::{Context, Result, anyhow, bail};
use database::MainDatabase;
use dialoguer::{Input, Password};
use domain::{Email, NewPassword, PersonName, TenantName, User};
use secrecy::{ExposeSecret, SecretString};
use services::{OperatorServices, Registration, Services};

use crate::{
    assembly::assemble,
    commands::print,
    config::{Config, FirstUser},
};

/// The words that confirm `--drop-all`.
const CONFIRMATION: &str = "DELETE EVERYTHING";

/// Options of `tenantry init`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Create a first user (from ADMIN_EMAIL, ADMIN_PASSWORD, ADMIN_FIRST_NAME and ADMIN_LAST_NAME, or prompts)
    #[arg(long)]
    create_admin: bool,
    /// Create a tenant for that user (from TEST_TENANT_NAME, or a prompt)
    #[arg(long)]
    create_test_tenant: bool,
    /// First drop every tenant database, every object and all tables
    #[arg(long)]
    drop_all: bool,
    /// Never prompt: a missing value is an error
    #[arg(long)]
    non_interactive: bool,
    /// Confirm --drop-all with the words DELETE EVERYTHING instead of a prompt
    #[arg(long, value_name = "WORDS", requires = "drop_all")]
    confirm: Option<String>,
}

/// Creates the main database, and the user and the tenant on demand. Idempotent: keeps what exists.
///
/// # Errors
/// When a value is missing or invalid, or a dependency is unavailable.
pub async fn run(config: &Config, arguments: &Arguments) -> Result<ExitCode> {
    let prompt = Prompt { interactive: !arguments.non_interactive && stdin().is_terminal() };
    let (Services { operator: services, .. }, main) = assemble(config)?;
    if arguments.drop_all {
        confirm(&prompt, arguments)?;
        drop_all(&services, &main).await?;
    }
    let migrated = main.migrate().await.context("migrate the main database")?;
    print(format_args!("Main database: schema version {} ({})", migrated.to, config.databases.main));
    if arguments.create_admin || arguments.create_test_tenant {
        let admin = create_admin(&services, &prompt, &config.first_user).await?;
        if arguments.create_test_tenant {
            create_test_tenant(&services, &prompt, &config.first_user, &admin).await?;
        }
    }
    print("Ready: start the API with `tenantry serve`.");
    Ok(ExitCode::SUCCESS)
}

async fn drop_all(services: &OperatorServices, main: &MainDatabase) -> Result<()> {
    main.migrate().await.context("migrate the main database")?;
    let dropped = services.drop_everything().await.context("drop the tenant databases and objects")?;
    main.erase().await.context("drop the tables of the main database")?;
    print(format_args!("Dropped {dropped} tenants with their databases and objects, and all tables of the main database."));
    Ok(())
}

fn confirm(prompt: &Prompt, arguments: &Arguments) -> Result<()> {
    let typed = match &arguments.confirm {
        Some(words) => words.clone(),
        None => prompt.text(&format!("This deletes the data of all tenants. Type {CONFIRMATION} to continue"), None, "--confirm")?,
    };
    if typed == CONFIRMATION { Ok(()) } else { bail!("nothing was dropped: the confirmation is {CONFIRMATION:?}") }
}

async fn create_admin(services: &OperatorServices, prompt: &Prompt, given: &FirstUser) -> Result<User> {
    let email = prompt.text("E-mail address", given.email.as_ref(), "ADMIN_EMAIL")?;
    let email = Email::parse(&email).map_err(|problem| anyhow!("ADMIN_EMAIL {problem}"))?;
    if let Some(user) = services.find_user_by_email(&email).await? {
        print(format_args!("User {} already exists.", user.email));
        return Ok(user);
    }
    let first_name = prompt.text("First name", given.first_name.as_ref(), "ADMIN_FIRST_NAME")?;
    let last_name = prompt.text("Last name", given.last_name.as_ref(), "ADMIN_LAST_NAME")?;
    let password = prompt.password(given.password.as_ref(), "ADMIN_PASSWORD")?;
    let registration = Registration {
        email,
        password: NewPassword::parse(&password).map_err(|problem| anyhow!("ADMIN_PASSWORD {problem}"))?,
        first_name: PersonName::parse(&first_name).map_err(|problem| anyhow!("ADMIN_FIRST_NAME {problem}"))?,
        last_name: PersonName::parse(&last_name).map_err(|problem| anyhow!("ADMIN_LAST_NAME {problem}"))?,
    };
    let user = services.create_user(registration).await?;
    print(format_args!("Created user {}.", user.email));
    Ok(user)
}

async fn create_test_tenant(services: &OperatorServices, prompt: &Prompt, given: &FirstUser, admin: &User) -> Result<()> {
    let name = prompt.text("Name of the test tenant", given.tenant_name.as_ref(), "TEST_TENANT_NAME")?;
    let name = TenantName::parse(&name).map_err(|problem| anyhow!("TEST_TENANT_NAME {problem}"))?;
    let known = services.list_all_tenants().await?;
    if known.iter().any(|tenant| tenant.name == name.as_str() && tenant.created_by == Some(admin.id)) {
        print(format_args!("Tenant {name} already exists."));
        return Ok(());
    }
    let tenant = services.create_tenant_for(admin.id, &name).await?.of;
    print(format_args!("Created tenant {}: id {}, database {}", tenant.name, tenant.id, tenant.place.database));
    Ok(())
}

/// Prompts for values that are not set.
struct Prompt {
    interactive: bool,
}

impl Prompt {
    fn text(&self, question: &str, given: Option<&String>, name: &str) -> Result<String> {
        match given {
            Some(given) => Ok(given.clone()),
            None if self.interactive => Ok(Input::new().with_prompt(question).interact_text()?),
            None => bail!("{name} is not set, and prompting is not possible"),
        }
    }

    fn password(&self, given: Option<&SecretString>, name: &str) -> Result<String> {
        match given {
            Some(given) => Ok(given.expose_secret().to_owned()),
            None if self.interactive => Ok(Password::new().with_prompt("Password").with_confirmation("Again", "They differ").interact()?),
            None => bail!("{name} is not set, and prompting is not possible"),
        }
    }
}
