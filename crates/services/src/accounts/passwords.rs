//! Password hashing that never delays other work: Argon2id for new hashes, bcrypt for existing ones.

mod fair_queue;
#[cfg(test)]
mod tests;
mod worker_pool;

use std::{str::FromStr, thread, time::Duration};

use argon2::{
    ARGON2ID_IDENT, Algorithm, Argon2, Block, Params, Version,
    password_hash::{
        self,
        phc::{self, Output, ParamsString, Salt},
    },
};
use domain::{NewPassword, PasswordHash, opaque_string, random_bytes};
use secrecy::{ExposeSecret, SecretSlice};

pub(crate) use self::fair_queue::Source;
use self::worker_pool::{Limits, Memory, WorkerPool};

const SALT_BYTES: usize = 16;
const OUTPUT_BYTES: usize = 32;

/// The maximum cost of one Argon2 hash: kibibytes times passes (1 GiB in one pass). The default costs a 27th of it. A stored hash with
/// a higher cost is damaged, or an attempt to keep the threads busy.
const MAX_KIB_PASSES: u64 = 1 << 20;

/// The maximum cost of one bcrypt hash, as the logarithm of its rounds, for the same reason. The usual cost is 12.
const MAX_BCRYPT_COST: u32 = 16;

/// How passwords are hashed. The default follows OWASP's Password Storage Cheat Sheet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PasswordSettings {
    /// The memory of Argon2id in kibibytes, at least 8 per lane. Every thread holds this much while there is work.
    pub memory_kib: u32,
    /// The passes of Argon2id over the memory, at least 1. Memory times passes is at most 1 GiB.
    pub passes: u32,
    /// The lanes of Argon2id, at least 1. They do not add parallelism here.
    pub lanes: u32,
    /// How many passwords are hashed concurrently, at least 1.
    pub threads: usize,
    /// How many passwords may wait to be hashed, at least 1. Further requests fail as overloaded.
    pub queue: usize,
    /// How long a thread waits for work before it ends and frees its memory.
    pub idle: Duration,
}

impl Default for PasswordSettings {
    /// 19 MiB, two passes, one lane; half the machine's cores, 64 waiting, ten seconds.
    fn default() -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Self { memory_kib: 19 * 1024, passes: 2, lanes: 1, threads: (cores / 2).max(1), queue: 64, idle: Duration::from_secs(10) }
    }
}

/// Whether a password matches a hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It does not match, or there is no hash.
    Wrong,
    /// It matches.
    Right,
    /// It matches, and should be hashed again: the algorithm or the parameters of the hash are not the current ones.
    RightButOutdated,
}

/// Hashes and verifies passwords in a bounded pool of low-priority threads, which ends when it is idle.
pub struct Passwords {
    recipe: Recipe,
    workers: WorkerPool,
}

impl Passwords {
    /// Validates the settings. Starts no thread and allocates no memory for hashing yet.
    ///
    /// # Errors
    /// `Invalid` with the setting that is out of range.
    pub fn new(settings: &PasswordSettings) -> domain::Result<Self> {
        let PasswordSettings { memory_kib, passes, lanes, threads, queue, idle } = *settings;
        for (setting, is_zero) in [("passes", passes == 0), ("lanes", lanes == 0), ("threads", threads == 0), ("queue", queue == 0)] {
            if is_zero {
                return Err(domain::Error::invalid(setting, "must be at least 1"));
            }
        }
        let params = Params::new(memory_kib, passes, lanes, Some(OUTPUT_BYTES))
            .map_err(|_| domain::Error::invalid("memory_kib", "must be at least 8 for every lane"))?;
        if !is_affordable(&params) {
            return Err(domain::Error::invalid("memory_kib", "must be at most 1 GiB when multiplied by the passes"));
        }
        Ok(Self { recipe: Recipe { params }, workers: WorkerPool::new(Limits { threads, queue, idle }) })
    }

    /// Hashes a password, in its [composed form](opaque_string), with Argon2id (RFC 9106) and a new salt, as a PHC string.
    ///
    /// # Errors
    /// `Overloaded` when the queue is full.
    pub(crate) async fn hash(&self, source: Source, password: &NewPassword) -> domain::Result<PasswordHash> {
        let recipe = self.recipe.clone();
        let password = secret(opaque_string(password.expose()).as_bytes());
        self.workers.run(source, move |memory| recipe.hash(password.expose_secret(), memory)).await?
    }

    /// Whether the given password matches the stored hash. Without a stored hash (the email address is unknown, or the account may not
    /// log in) it is wrong, after the same work as for a wrong password. So is a password of more than [`NewPassword::MAX_BYTES`]. A
    /// malformed stored hash counts as none and is logged.
    ///
    /// Compares the [composed form](opaque_string) of the given password and, for hashes from before that rule, the password as it is.
    ///
    /// Verifies all variants of Argon2, and bcrypt as `$2a$`, `$2b$` and `$2y$`, which considers only the first 72 bytes of the
    /// password.
    ///
    /// # Errors
    /// `Overloaded` when the queue is full.
    pub(crate) async fn verify(&self, source: Source, stored: Option<PasswordHash>, given: &str) -> domain::Result<Verdict> {
        let too_long = given.len() > NewPassword::MAX_BYTES;
        let given = &given[..given.floor_char_boundary(NewPassword::MAX_BYTES)];
        let composed = opaque_string(given);
        let mut verdict = self.verify_bytes(source, stored.clone(), composed.as_bytes()).await?;
        // Older hashes are of the password as it was typed. Whether there is a second attempt depends on what is typed now alone.
        if verdict == Verdict::Wrong && composed != given {
            verdict = match self.verify_bytes(source, stored, given.as_bytes()).await? {
                Verdict::Wrong => Verdict::Wrong,
                Verdict::Right | Verdict::RightButOutdated => Verdict::RightButOutdated,
            };
        }
        Ok(if too_long { Verdict::Wrong } else { verdict })
    }

    async fn verify_bytes(&self, source: Source, stored: Option<PasswordHash>, given: &[u8]) -> domain::Result<Verdict> {
        let (recipe, given) = (self.recipe.clone(), secret(given));
        self.workers.run(source, move |memory| recipe.verify(stored.as_ref(), given.expose_secret(), memory)).await?
    }
}

fn secret(bytes: &[u8]) -> SecretSlice<u8> {
    bytes.to_vec().into()
}

/// Why a stored hash cannot be used.
type Damage = Box<dyn std::error::Error + Send + Sync>;

/// The parameters of new hashes.
#[derive(Clone)]
struct Recipe {
    params: Params,
}

impl Recipe {
    fn hash(&self, password: &[u8], memory: &mut Memory) -> domain::Result<PasswordHash> {
        let mut hash = self.random_hash().map_err(domain::Error::internal)?;
        hash.hash = Some(self.argon2(&hash, password, memory).map_err(domain::Error::internal)?);
        Ok(PasswordHash::from_stored(hash.to_string()))
    }

    fn verify(&self, stored: Option<&PasswordHash>, given: &[u8], memory: &mut Memory) -> domain::Result<Verdict> {
        let verified = match stored.map(PasswordHash::expose) {
            None => None,
            Some(stored) if is_bcrypt(stored) => Some(verify_bcrypt(stored, given)),
            Some(stored) => Some(self.verify_argon2(stored, given, memory)),
        };
        match verified {
            Some(Ok(verdict)) => return Ok(verdict),
            Some(Err(problem)) => tracing::error!(%problem, "a stored password hash is damaged: its user cannot log in"),
            None => {}
        }
        let decoy = self.random_hash().map_err(domain::Error::internal)?.to_string();
        self.verify_argon2(&decoy, given, memory).map_err(domain::Error::internal)?;
        Ok(Verdict::Wrong)
    }

    fn verify_argon2(&self, stored: &str, given: &[u8], memory: &mut Memory) -> Result<Verdict, Damage> {
        let stored = phc::PasswordHash::new(stored)?;
        let expected = stored.hash.ok_or(phc::Error::MissingField)?;
        // `Output` compares in constant time.
        Ok(match self.argon2(&stored, given, memory)? == expected {
            false => Verdict::Wrong,
            true if self.is_current(&stored)? => Verdict::Right,
            true => Verdict::RightButOutdated,
        })
    }

    /// The output for a password with the algorithm, parameters and salt of the given hash.
    fn argon2(&self, hash: &phc::PasswordHash, password: &[u8], memory: &mut Memory) -> Result<Output, Damage> {
        let algorithm = Algorithm::try_from(hash.algorithm.as_str())?;
        // Strings without a version are older than the second version.
        let version = hash.version.map_or(Ok(Version::V0x10), Version::try_from)?;
        let params = Params::try_from(hash)?;
        let salt = hash.salt.ok_or(phc::Error::MissingField)?;
        if !is_affordable(&params) {
            return Err("its cost is too high".into());
        }

        let mut output = [0; Output::MAX_LENGTH];
        let output = &mut output[..params.output_len().unwrap_or(OUTPUT_BYTES)];
        if memory.len() < params.block_count() {
            memory.resize(params.block_count(), Block::new());
        }
        Argon2::new(algorithm, version, params).hash_password_into_with_memory(password, &salt, output, &mut *memory)?;
        memory.truncate(self.params.block_count());
        memory.shrink_to_fit();
        Ok(Output::new(output)?)
    }

    /// A hash with the current parameters that no password has: the template of new hashes, and what the password of an unknown user
    /// is compared with.
    fn random_hash(&self) -> password_hash::Result<phc::PasswordHash> {
        Ok(phc::PasswordHash {
            algorithm: ARGON2ID_IDENT,
            version: Some(Version::V0x13.into()),
            params: ParamsString::try_from(&self.params)?,
            salt: Some(Salt::new(&random_bytes::<SALT_BYTES>())?),
            hash: Some(Output::new(&random_bytes::<OUTPUT_BYTES>())?),
        })
    }

    fn is_current(&self, hash: &phc::PasswordHash) -> password_hash::Result<bool> {
        let newest = hash.algorithm == ARGON2ID_IDENT && hash.version == Some(Version::V0x13.into());
        Ok(newest && Params::try_from(hash)? == self.params)
    }
}

fn is_affordable(params: &Params) -> bool {
    u64::from(params.m_cost()) * u64::from(params.t_cost()) <= MAX_KIB_PASSES
}

fn is_bcrypt(stored: &str) -> bool {
    ["$2a$", "$2b$", "$2y$"].iter().any(|prefix| stored.starts_with(prefix))
}

fn verify_bcrypt(stored: &str, given: &[u8]) -> Result<Verdict, Damage> {
    if bcrypt::HashParts::from_str(stored)?.get_cost() > MAX_BCRYPT_COST {
        return Err("its cost is too high".into());
    }
    Ok(if bcrypt::verify(given, stored)? { Verdict::RightButOutdated } else { Verdict::Wrong })
}
