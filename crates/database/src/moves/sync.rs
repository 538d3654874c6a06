//! Bringing a table of the target to the state of the source's.

use std::{cmp::Ordering, mem};

use super::{
    rows::{Summation, TableSum, compare},
    side::{Reader, Side},
    table::{BATCH, Part, Table},
};
use crate::{error::Result, value::Value};

/// New rows are held back until all changed ones are written, as long as there are no more than this: a unique value may move from
/// a changed row to a new one.
const MAX_HELD_BACK: usize = 10_000;

/// Deletes rows of the target that the source no longer has. Returns their number.
pub(super) async fn delete_gone(source: &mut Side, target: &mut Side, table: &Table) -> Result<u64> {
    let (mut kept, mut found) = (Reader::new(table, Part::Key), Reader::new(table, Part::Key));
    let (mut gone, mut count) = (Vec::new(), 0);
    while let Some(key) = found.next(target).await? {
        while kept.peek(source).await?.is_some_and(|other| compare(other, &key) == Ordering::Less) {
            kept.next(source).await?;
        }
        if kept.peek(source).await? != Some(&key) {
            gone.push(key);
            count += 1;
        }
        if gone.len() == BATCH {
            target.write(&table.delete(), mem::take(&mut gone)).await?;
        }
    }
    target.write(&table.delete(), gone).await?;
    Ok(count)
}

/// Copies rows that the target lacks or has in another state, and sums up the source.
pub(super) async fn copy_changed(
    source: &mut Side,
    target: &mut Side,
    table: &Table,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<(u64, TableSum)> {
    let (mut rows, mut found) = (Reader::new(table, Part::All), Reader::new(table, Part::All));
    let (mut writer, mut sum) = (Writer::default(), Summation::default());
    while let Some(row) = rows.next(source).await? {
        sum.add(&row);
        let key = &row[..table.key.len()];
        while found.peek(target).await?.is_some_and(|other| compare(other, key) == Ordering::Less) {
            found.next(target).await?;
        }
        let mut limit = MAX_HELD_BACK;
        match found.peek(target).await? {
            Some(other) if *other == row => continue,
            Some(other) if compare(other, key) == Ordering::Equal => writer.changed.push(row),
            Some(_) => writer.new.push(row),
            None => {
                // After the target's last row no further row can be a changed one.
                limit = BATCH;
                writer.new.push(row);
            }
        }
        writer.count += 1;
        if writer.write_full(target, table, limit).await? {
            progress(writer.count);
        }
    }
    let count = writer.count;
    writer.write_rest(target, table).await?;
    progress(count);
    Ok((count, sum.finish(table)))
}

/// Rows that are to be written.
#[derive(Default)]
struct Writer {
    changed: Vec<Vec<Value>>,
    new: Vec<Vec<Value>>,
    count: u64,
}

impl Writer {
    /// Writes what is enough for a batch. New rows are written at `limit`, after the changed ones. Returns whether they were.
    async fn write_full(&mut self, target: &mut Side, table: &Table, limit: usize) -> Result<bool> {
        let writes_new = self.new.len() >= limit;
        if self.changed.len() >= BATCH || writes_new {
            target.write(&table.upsert(), mem::take(&mut self.changed)).await?;
        }
        if writes_new {
            target.write(&table.upsert(), mem::take(&mut self.new)).await?;
        }
        Ok(writes_new)
    }

    async fn write_rest(self, target: &mut Side, table: &Table) -> Result<()> {
        target.write(&table.upsert(), self.changed).await?;
        target.write(&table.upsert(), self.new).await
    }
}
