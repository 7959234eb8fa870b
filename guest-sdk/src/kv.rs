//! State that outlives the call: named buckets of keys and values, by `wasi:keyvalue`.
//!
//! Invariant: everything a call reads and writes here is one transaction. It sees its own writes, and
//! others see all of them or none: they become durable at [`commit()`](crate::commit()) and when the
//! tool returns `Ok`. If a key that was read has been changed meanwhile, the commit is a `conflict`,
//! nothing is applied, and the caller starts over.
//!
//! Values are JSON, except for the functions whose names end in `_bytes`. State is kept separately for
//! each agent and component, unless the host's policy shares it.
//!
//! ```
//! use estop_tool::{ToolError, kv};
//!
//! # fn main() -> Result<(), ToolError> {
//! let accounts = kv::open("accounts")?;
//! accounts.set("ada", &40)?;
//! accounts.increment("ada", 2)?;
//! assert_eq!(accounts.get::<u64>("ada")?, Some(42));
//! assert_eq!(accounts.keys().collect::<Result<Vec<_>, _>>()?, ["ada"]);
//! # Ok(())
//! # }
//! ```
//!
//! # Errors
//!
//! Every function here fails with one of these codes:
//! - `no-such-bucket`, `access-denied`: the host has no such bucket for this tool;
//! - `bad-value`: what is stored under the key is not the type that was asked for, or the value cannot
//!   be written as JSON;
//! - `store`: the store says why.

use std::collections::BTreeMap;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::ToolError;
use crate::host::{self, StoreError, SwapError};

/// How often [`Bucket::update`] tries when others change the key meanwhile. Inside estop the first
/// attempt succeeds, because a call has a transaction of its own.
const MAX_UPDATE_ATTEMPTS: usize = 16;

/// Opens the bucket `name`.
///
/// # Errors
///
/// See the [module](self).
pub fn open(name: &str) -> Result<Bucket, ToolError> {
    match host::open(name) {
        Ok(handle) => Ok(Bucket { name: name.to_owned(), handle }),
        Err(error) => Err(failure(name, error)),
    }
}

/// An open bucket.
pub struct Bucket {
    name: String,
    handle: host::Bucket,
}

impl Bucket {
    /// The value of `key`, if there is one.
    ///
    /// # Errors
    ///
    /// See the [module](self); so do all functions here.
    pub fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, ToolError> {
        self.get_bytes(key)?.map(|bytes| self.decode(key, &bytes)).transpose()
    }

    /// The value of `key` as it is stored.
    pub fn get_bytes(&self, key: &str) -> Result<Option<Vec<u8>>, ToolError> {
        self.check(self.handle.get(key))
    }

    /// Stores `value` under `key`, whatever was there.
    pub fn set<T: Serialize + ?Sized>(&self, key: &str, value: &T) -> Result<(), ToolError> {
        self.set_bytes(key, &self.encode(key, value)?)
    }

    /// Stores `value` under `key` as it is.
    pub fn set_bytes(&self, key: &str, value: &[u8]) -> Result<(), ToolError> {
        self.check(self.handle.set(key, value))
    }

    /// Removes `key`. It need not exist.
    pub fn delete(&self, key: &str) -> Result<(), ToolError> {
        self.check(self.handle.delete(key))
    }

    /// Whether `key` has a value.
    pub fn exists(&self, key: &str) -> Result<bool, ToolError> {
        self.check(self.handle.exists(key))
    }

    /// All keys, fetched page by page in the store's order.
    ///
    /// A listing counts as read: a key that someone else adds or removes meanwhile is a conflict.
    pub fn keys(&self) -> Keys<'_> {
        Keys { bucket: self, page: Vec::new().into_iter(), next: Next::First }
    }

    /// Adds `delta` to the number under `key`, 0 where there is none, and gives the sum. The number is
    /// stored as decimal text, so [`get`](Self::get) reads it as well.
    pub fn increment(&self, key: &str, delta: i64) -> Result<i64, ToolError> {
        self.check(self.handle.increment(key, delta))
    }

    /// Looks at `key` in order to change it only if nobody else does meanwhile.
    pub fn compare_and_swap(&self, key: &str) -> Result<CompareAndSwap<'_>, ToolError> {
        let handle = self.check(self.handle.compare_and_swap(key))?;
        Ok(CompareAndSwap { bucket: self, key: key.to_owned(), handle })
    }

    /// Replaces the value of `key` by what `change` makes of it, and gives the new one.
    ///
    /// `change` runs again if someone else changed the key meanwhile. An error of its ends the update
    /// and nothing is stored.
    pub fn update<T, F>(&self, key: &str, mut change: F) -> Result<T, ToolError>
    where
        T: Serialize + DeserializeOwned,
        F: FnMut(Option<T>) -> Result<T, ToolError>,
    {
        let mut attempt = self.compare_and_swap(key)?;
        for _ in 0..MAX_UPDATE_ATTEMPTS {
            let value = change(attempt.current()?)?;
            match attempt.swap(&value)? {
                Swapped::Done => return Ok(value),
                Swapped::Changed(again) => attempt = again,
            }
        }
        let bucket = &self.name;
        let message = format!("`{key}` in the bucket `{bucket}` changed all the time");
        Err(ToolError::failed("conflict", message).retryable())
    }

    /// The values of `keys`, in that order.
    pub fn get_many<T: DeserializeOwned>(&self, keys: &[impl AsRef<str>]) -> Result<Vec<Option<T>>, ToolError> {
        let keys = owned(keys);
        let found: BTreeMap<_, _> = self.check(self.handle.get_many(&keys))?.into_iter().collect();
        let decoded = keys.iter().map(|key| match found.get(key) {
            Some(Some(bytes)) => self.decode(key, bytes).map(Some),
            Some(None) | None => Ok(None),
        });
        decoded.collect()
    }

    /// Stores several values.
    pub fn set_many<'a, T: Serialize + 'a>(
        &self,
        entries: impl IntoIterator<Item = (&'a str, &'a T)>,
    ) -> Result<(), ToolError> {
        let entries: Result<Vec<_>, ToolError> =
            entries.into_iter().map(|(key, value)| Ok((key.to_owned(), self.encode(key, value)?))).collect();
        self.check(self.handle.set_many(&entries?))
    }

    /// Removes several keys. They need not exist.
    pub fn delete_many(&self, keys: &[impl AsRef<str>]) -> Result<(), ToolError> {
        self.check(self.handle.delete_many(&owned(keys)))
    }

    fn check<T>(&self, result: Result<T, StoreError>) -> Result<T, ToolError> {
        result.map_err(|error| failure(&self.name, error))
    }

    fn decode<T: DeserializeOwned>(&self, key: &str, bytes: &[u8]) -> Result<T, ToolError> {
        serde_json::from_slice(bytes).map_err(|why| self.bad_value(key, &why))
    }

    fn encode<T: Serialize + ?Sized>(&self, key: &str, value: &T) -> Result<Vec<u8>, ToolError> {
        serde_json::to_vec(value).map_err(|why| self.bad_value(key, &why))
    }

    fn bad_value(&self, key: &str, why: &serde_json::Error) -> ToolError {
        let bucket = &self.name;
        ToolError::failed("bad-value", format!("`{key}` in the bucket `{bucket}`: {why}"))
    }
}

/// What [`Bucket::keys`] gives. After an error it ends.
pub struct Keys<'a> {
    bucket: &'a Bucket,
    page: std::vec::IntoIter<String>,
    next: Next,
}

enum Next {
    First,
    Page(String),
    End,
}

impl Iterator for Keys<'_> {
    type Item = Result<String, ToolError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(key) = self.page.next() {
                return Some(Ok(key));
            }
            let cursor = match std::mem::replace(&mut self.next, Next::End) {
                Next::First => None,
                Next::Page(cursor) => Some(cursor),
                Next::End => return None,
            };
            match self.bucket.check(self.bucket.handle.keys(cursor.as_deref())) {
                Ok((keys, cursor)) => {
                    self.page = keys.into_iter();
                    self.next = cursor.map_or(Next::End, Next::Page);
                }
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

/// A look at one key, and the right to change it if it is still what was seen.
pub struct CompareAndSwap<'a> {
    bucket: &'a Bucket,
    key: String,
    handle: host::Cas,
}

impl<'a> CompareAndSwap<'a> {
    /// The value that was seen.
    pub fn current<T: DeserializeOwned>(&self) -> Result<Option<T>, ToolError> {
        let bytes = self.bucket.check(self.handle.current())?;
        bytes.map(|bytes| self.bucket.decode(&self.key, &bytes)).transpose()
    }

    /// Stores `value` if nobody changed the key since the look.
    pub fn swap<T: Serialize + ?Sized>(self, value: &T) -> Result<Swapped<'a>, ToolError> {
        let bytes = self.bucket.encode(&self.key, value)?;
        match self.handle.swap(&bytes) {
            Ok(()) => Ok(Swapped::Done),
            Err(SwapError::Changed(handle)) => {
                Ok(Swapped::Changed(Self { bucket: self.bucket, key: self.key, handle }))
            }
            Err(SwapError::Store(error)) => Err(failure(&self.bucket.name, error)),
        }
    }
}

/// What became of a [`CompareAndSwap::swap`].
#[must_use]
pub enum Swapped<'a> {
    /// The value is stored.
    Done,
    /// Someone else changed the key, nothing is stored: a look at what it is now.
    Changed(CompareAndSwap<'a>),
}

fn owned(keys: &[impl AsRef<str>]) -> Vec<String> {
    keys.iter().map(|key| key.as_ref().to_owned()).collect()
}

fn failure(bucket: &str, error: StoreError) -> ToolError {
    match error {
        StoreError::NoSuchStore => ToolError::failed("no-such-bucket", format!("there is no bucket `{bucket}`")),
        StoreError::AccessDenied => ToolError::failed("access-denied", format!("the bucket `{bucket}` is not granted")),
        StoreError::Other(why) => ToolError::failed("store", format!("the bucket `{bucket}`: {why}")),
    }
}
