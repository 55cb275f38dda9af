//! Transactions: what can be done to a table while reading, and what more while writing.

use std::cell::RefCell;

use prost::Message;
use redb::{ReadableDatabase, ReadableTable, TableHandle as _};

use super::journal::Row;
use super::schema::Table;
use crate::error::{Doing, Error, Result};

/// Sees the keys and records of one namespace, and says whether to go on.
pub type Visit<'a> = dyn FnMut(&str, &[u8]) -> Result<bool> + 'a;
/// Sees the namespaces, keys and records of a table.
pub type VisitAll<'a> = dyn FnMut(&str, &str, &[u8]) -> Result<()> + 'a;

/// Reading, in either kind of transaction.
pub trait Tx {
    /// The record at a key.
    ///
    /// # Errors
    /// When the database cannot be read.
    fn get(&self, table: Table, namespace: &str, key: &str) -> Result<Option<Vec<u8>>>;

    /// The records of a namespace whose keys start with `prefix`, in key order. `visit` returns false to stop; it must
    /// not use the transaction, whose table is open while it runs.
    ///
    /// # Errors
    /// When the database cannot be read, and whatever `visit` fails with.
    fn scan(&self, table: Table, namespace: &str, prefix: &str, visit: &mut Visit<'_>) -> Result<()>;

    /// Every record of every namespace, in key order; `visit` as in [`Tx::scan`].
    ///
    /// # Errors
    /// As [`Tx::scan`].
    fn scan_all(&self, table: Table, visit: &mut VisitAll<'_>) -> Result<()>;

    /// The message at a key.
    ///
    /// # Errors
    /// When the database cannot be read or the record is damaged.
    fn message<M: Message + Default>(&self, table: Table, namespace: &str, key: &str) -> Result<Option<M>>
    where
        Self: Sized,
    {
        self.get(table, namespace, key)?.map(|bytes| decode(&bytes, key)).transpose()
    }

    /// All messages of a namespace that can be read, in key order. The others are told of in the log.
    ///
    /// # Errors
    /// When the database cannot be read.
    fn readable_messages<M: Message + Default>(&self, table: Table, namespace: &str) -> Result<Vec<M>>
    where
        Self: Sized,
    {
        let mut all = Vec::new();
        self.scan(table, namespace, "", &mut |key, bytes| {
            match decode(bytes, key) {
                Ok(message) => all.push(message),
                Err(error) => tracing::error!(table = table.name(), namespace, %error, "a record is left out"),
            }
            Ok(true)
        })?;
        Ok(all)
    }

    /// Whether the namespace has any record whose key starts with `prefix`.
    ///
    /// # Errors
    /// When the database cannot be read.
    fn any(&self, table: Table, namespace: &str, prefix: &str) -> Result<bool> {
        let mut found = false;
        self.scan(table, namespace, prefix, &mut |_, _| {
            found = true;
            Ok(false)
        })?;
        Ok(found)
    }
}

/// Reads the record at a key.
///
/// # Errors
/// `DataLoss` where it is none.
pub fn decode<M: Message + Default>(bytes: &[u8], key: &str) -> Result<M> {
    M::decode(bytes).map_err(|error| Error::new(crate::error::Kind::DataLoss, format!("record {key:?}: {error}")))
}

/// A consistent view; writers do not disturb it.
pub struct ReadTx(redb::ReadTransaction);

/// The one writer. Dropped without a commit it leaves nothing.
pub struct WriteTx(redb::WriteTransaction, RefCell<Vec<Row>>);

impl ReadTx {
    pub(super) fn begin(db: &redb::Database) -> Result<Self> {
        db.begin_read().map(Self).map_err(super::failed).doing(|| "metadata: begin reading")
    }
}

impl WriteTx {
    pub(super) fn begin(db: &redb::Database, durability: redb::Durability) -> Result<Self> {
        let begin = || -> Result<Self> {
            let mut tx = db.begin_write().map_err(super::failed)?;
            tx.set_durability(durability).map_err(super::failed)?;
            Ok(Self(tx, RefCell::default()))
        };
        begin().doing(|| "metadata: begin writing")
    }

    /// Makes it last, and gives what was changed.
    pub(super) fn commit(self) -> Result<Vec<Row>> {
        self.0.commit().map_err(super::failed).doing(|| "metadata: commit")?;
        Ok(self.1.into_inner())
    }

    fn note(&self, table: Table, namespace: &str, key: &str, value: Option<&[u8]>) {
        self.1.borrow_mut().push(Row::new(table, namespace, key, value));
    }

    pub(super) fn create(&self, table: Table) -> Result<()> {
        self.0.open_table(table).map(drop).map_err(super::failed)
    }

    /// Writes a record, replacing what was there.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn put(&self, table: Table, namespace: &str, key: &str, value: &[u8]) -> Result<()> {
        self.0.open_table(table).map_err(super::failed)?.insert((namespace, key), value).map_err(super::failed)?;
        self.note(table, namespace, key, Some(value));
        Ok(())
    }

    /// Writes a message, replacing what was there.
    ///
    /// # Errors
    /// As [`WriteTx::put`].
    pub fn put_message(&self, table: Table, namespace: &str, key: &str, message: &impl Message) -> Result<()> {
        self.put(table, namespace, key, &message.encode_to_vec())
    }

    /// Removes a record and says whether there was one.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn delete(&self, table: Table, namespace: &str, key: &str) -> Result<bool> {
        let mut opened = self.0.open_table(table).map_err(super::failed)?;
        let was = opened.remove((namespace, key)).map_err(super::failed)?.is_some();
        if was {
            self.note(table, namespace, key, None);
        }
        Ok(was)
    }

    /// Removes every record of a namespace whose key starts with `prefix`, and says how many there were.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn delete_prefix(&self, table: Table, namespace: &str, prefix: &str) -> Result<usize> {
        let mut keys = Vec::new();
        self.scan(table, namespace, prefix, &mut |key, _| {
            keys.push(key.to_owned());
            Ok(true)
        })?;
        let mut opened = self.0.open_table(table).map_err(super::failed)?;
        for key in &keys {
            opened.remove((namespace, key.as_str())).map_err(super::failed)?;
            self.note(table, namespace, key, None);
        }
        Ok(keys.len())
    }

    /// The next number of a sequence of the whole daemon, starting at 1; never handed out twice once committed.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn next(&self, sequence: &str) -> Result<u64> {
        let key = super::schema::join(&["sequence", sequence]);
        let last = self.get(super::schema::FACTS, "", &key)?;
        let last = last.and_then(|bytes| bytes.try_into().ok().map(u64::from_le_bytes)).unwrap_or(0);
        let next = last + 1;
        self.put(super::schema::FACTS, "", &key, &next.to_le_bytes())?;
        Ok(next)
    }
}

fn get_in(
    table: &impl ReadableTable<(&'static str, &'static str), &'static [u8]>,
    namespace: &str,
    key: &str,
) -> Result<Option<Vec<u8>>> {
    Ok(table.get((namespace, key)).map_err(super::failed)?.map(|value| value.value().to_vec()))
}

fn scan_in(
    table: &impl ReadableTable<(&'static str, &'static str), &'static [u8]>,
    namespace: &str,
    prefix: &str,
    visit: &mut Visit<'_>,
) -> Result<()> {
    for row in table.range((namespace, prefix)..).map_err(super::failed)? {
        let (at, value) = row.map_err(super::failed)?;
        let (of, key) = at.value();
        if of != namespace || !key.starts_with(prefix) || !visit(key, value.value())? {
            break;
        }
    }
    Ok(())
}

fn scan_all_in(
    table: &impl ReadableTable<(&'static str, &'static str), &'static [u8]>,
    visit: &mut VisitAll<'_>,
) -> Result<()> {
    for row in table.iter().map_err(super::failed)? {
        let (at, value) = row.map_err(super::failed)?;
        let (namespace, key) = at.value();
        visit(namespace, key, value.value())?;
    }
    Ok(())
}

macro_rules! reading {
    ($kind:ty) => {
        impl Tx for $kind {
            fn get(&self, table: Table, namespace: &str, key: &str) -> Result<Option<Vec<u8>>> {
                get_in(&self.0.open_table(table).map_err(super::failed)?, namespace, key)
            }

            fn scan(&self, table: Table, namespace: &str, prefix: &str, visit: &mut Visit<'_>) -> Result<()> {
                scan_in(&self.0.open_table(table).map_err(super::failed)?, namespace, prefix, visit)
            }

            fn scan_all(&self, table: Table, visit: &mut VisitAll<'_>) -> Result<()> {
                scan_all_in(&self.0.open_table(table).map_err(super::failed)?, visit)
            }
        }
    };
}

reading!(ReadTx);
reading!(WriteTx);
