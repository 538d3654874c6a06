//! The comparison of what a tenant's database says with what the storage holds.

use std::collections::{HashMap, HashSet};

use domain::{Error, File, Noun, Result, Tenant, object_prefix};
use futures_util::TryStreamExt;
use models::{TenantDatabase, files, multipart_uploads, uploads};
use sha2::{Digest, Sha256};

use crate::{Core, OperatorServices, tenants::fleet::open_for_operator};

/// What was compared, and what is wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verification {
    /// Files of the database.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Objects of the storage.
    pub objects: u64,
    /// What is wrong, in the order of the keys.
    pub findings: Vec<Finding>,
}

/// An object that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Its key.
    pub key: String,
    /// What is wrong with it.
    pub problem: ObjectProblem,
}

/// What can be wrong with an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectProblem {
    /// A file's object is not there.
    Missing,
    /// Nothing in the database knows of it.
    Unknown,
    /// It has another size than its file.
    WrongSize {
        /// Bytes that it should have.
        expected: u64,
        /// Bytes that it has.
        found: u64,
    },
    /// Its content is not what its file's SHA-256 says.
    WrongHash,
}

impl OperatorServices {
    /// Compares a tenant's files with its objects; `deep` reads every object and computes its hash. What comes and goes meanwhile
    /// is no finding. Holds the names of one 256th of the tenant's files in memory.
    ///
    /// # Errors
    /// When the database or the storage is down.
    pub async fn verify_tenant(&self, tenant: &Tenant, deep: bool, progress: &(dyn Fn(&Verification) + Sync)) -> Result<Verification> {
        let database = open_for_operator(&self.core, tenant)?;
        let mut verification = Verification::default();
        let root = object_prefix(tenant.id);
        for n in 0..=255_u8 {
            verify_prefix(&self.core, &database, &format!("{root}/files/{n:02x}"), deep, &mut verification).await?;
            progress(&verification);
        }
        verify_prefix(&self.core, &database, &format!("{root}/uploads"), deep, &mut verification).await?;
        Ok(verification)
    }
}

async fn verify_prefix(core: &Core, database: &TenantDatabase, prefix: &str, deep: bool, verification: &mut Verification) -> Result<()> {
    // The objects first: whatever is stored has been noted before.
    let mut objects: HashMap<String, u64> =
        core.parts.storage.list(prefix).map_ok(|object| (object.key, object.size)).try_collect().await?;
    verification.objects += objects.len() as u64;
    let mut connection = database.read().await?;
    let start = format!("{prefix}/");
    let known = files::list_by_prefix(&mut connection, &start).await?;
    let mut noted: HashSet<String> = uploads::list_by_prefix(&mut connection, &start).await?.into_iter().collect();
    noted.extend(multipart_uploads::list_keys(&mut connection, &start).await?);
    drop(connection);
    let mut findings = Vec::new();
    for (file, is_living) in known {
        let found = objects.remove(&file.object_key);
        if !is_living {
            continue;
        }
        verification.files += 1;
        verification.bytes += file.size;
        if let Some(problem) = verify_file(core, database, &file, found, deep).await? {
            findings.push(Finding { key: file.object_key, problem });
        }
    }
    objects.retain(|key, _| !noted.contains(key));
    for (key, _) in objects {
        // Its row may have gone since the objects were listed, and the object with it.
        match core.parts.storage.head(&key).await {
            Ok(_) => findings.push(Finding { key, problem: ObjectProblem::Unknown }),
            Err(Error::NotFound(Noun::Object)) => verification.objects -= 1,
            Err(error) => return Err(error),
        }
    }
    findings.sort_by(|a, b| a.key.cmp(&b.key));
    verification.findings.append(&mut findings);
    Ok(())
}

async fn verify_file(core: &Core, database: &TenantDatabase, file: &File, found: Option<u64>, deep: bool) -> Result<Option<ObjectProblem>> {
    let size = match found {
        Some(size) => Some(size),
        // It may have been stored since the objects were listed.
        None => match core.parts.storage.head(&file.object_key).await {
            Ok(size) => Some(size),
            Err(Error::NotFound(Noun::Object)) => None,
            Err(error) => return Err(error),
        },
    };
    let problem = match size {
        None => Some(ObjectProblem::Missing),
        Some(found) if found != file.size => Some(ObjectProblem::WrongSize { expected: file.size, found }),
        Some(_) if deep => match hash_object(core, &file.object_key).await {
            Ok(hash) => (hash != file.hash.sha256).then_some(ObjectProblem::WrongHash),
            Err(Error::NotFound(Noun::Object)) => Some(ObjectProblem::Missing),
            Err(error) => return Err(error),
        },
        Some(_) => None,
    };
    // A file that was condemned meanwhile has lost its object by right.
    let lives = problem.is_none() || files::find(&mut database.read().await?, file.id).await?.is_some();
    Ok(problem.filter(|_| lives))
}

async fn hash_object(core: &Core, key: &str) -> Result<[u8; 32]> {
    let object = core.parts.storage.get(key, None).await?;
    let hasher = object
        .bytes
        .try_fold(Sha256::new(), async |hasher, bytes| crate::storage::blocking(move || Ok(hasher.chain_update(&bytes))).await)
        .await?;
    Ok(hasher.finalize().into())
}
