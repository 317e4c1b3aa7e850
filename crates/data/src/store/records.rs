//! Records of an id and `N` tokenised responses, in columns.

use super::{StoreError, ipc};
use crate::Fingerprint;
use crate::tokens::{ResponseView, TokenizedResponse};
use arrow_array::builder::{ListBuilder, UInt32Builder, UInt64Builder};
use arrow_array::cast::AsArray;
use arrow_array::types::{UInt32Type, UInt64Type};
use arrow_array::{ArrayRef, RecordBatch};
use arrow_buffer::{OffsetBuffer, ScalarBuffer};
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Limits on a block of records, which a writer keeps in memory; far below the 2^31 tokens that a block can index.
const BLOCK_RECORDS: usize = 4096;
const BLOCK_TOKENS: usize = 1 << 24;

pub(super) struct Record<const N: usize> {
    pub id: u64,
    pub sides: [TokenizedResponse; N],
}

/// An open store.
#[derive(Debug)]
pub(super) struct Records<const N: usize> {
    path: PathBuf,
    fingerprint: Fingerprint,
    blocks: Vec<Block<N>>,
    /// Index of the first record of each block, followed by the number of records.
    starts: Vec<usize>,
}

/// The columns of one block, borrowed from the mapping through Arrow's reference counts.
#[derive(Debug)]
struct Block<const N: usize> {
    ids: ScalarBuffer<u64>,
    sides: [Side; N],
}

#[derive(Debug)]
struct Side {
    offsets: OffsetBuffer<i32>,
    tokens: ScalarBuffer<u32>,
    prompt_lens: ScalarBuffer<u32>,
}

pub(super) fn write<const N: usize>(
    path: &Path,
    sides: [&str; N],
    fingerprint: &Fingerprint,
    records: impl Iterator<Item = Record<N>>,
) -> Result<usize, StoreError> {
    let mut writer = BlockWriter::new(schema(sides));
    let mut records = records.enumerate();
    let mut written = 0;
    let blocks = std::iter::from_fn(|| {
        for (index, record) in records.by_ref() {
            if let Some(side) = record.sides.iter().find(|side| !side.view().is_sound()) {
                let (prompt_len, len) = (side.prompt_len, side.tokens.len());
                return Some(Err(StoreError::Unsound {
                    path: path.to_owned(),
                    index,
                    id: record.id,
                    prompt_len,
                    len,
                }));
            }
            written += 1;
            writer.push(&record);
            if writer.is_full() {
                break;
            }
        }
        let encode = |source| StoreError::Encode { path: path.to_owned(), source };
        (!writer.is_empty()).then(|| writer.take().map_err(encode))
    });
    ipc::write(path, &schema(sides), fingerprint, blocks)?;
    Ok(written)
}

impl<const N: usize> Records<N> {
    pub fn open(path: &Path, sides: [&str; N]) -> Result<Self, StoreError> {
        let (batches, fingerprint) = ipc::open(path, &schema(sides))?;
        let blocks: Vec<Block<N>> = batches.iter().map(Block::new).collect();
        let ends = blocks.iter().scan(0, |end, block| {
            *end += block.ids.len();
            Some(*end)
        });
        let starts = std::iter::once(0).chain(ends).collect();
        let records = Self { path: path.to_owned(), fingerprint, blocks, starts };
        for (index, (id, sides)) in records.iter().enumerate() {
            if let Some(side) = sides.iter().find(|side| !side.is_sound()) {
                let (prompt_len, len) = (side.prompt_len, side.tokens.len());
                return Err(StoreError::Unsound {
                    path: path.to_owned(),
                    index,
                    id,
                    prompt_len,
                    len,
                });
            }
        }
        Ok(records)
    }

    pub fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    pub fn len(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }

    pub fn get(&self, index: usize) -> Result<(u64, [ResponseView<'_>; N]), StoreError> {
        if index >= self.len() {
            return Err(StoreError::OutOfRange { path: self.path.clone(), index, len: self.len() });
        }
        let block = self.starts.partition_point(|&start| start <= index) - 1;
        Ok(self.blocks[block].get(index - self.starts[block]))
    }

    pub fn iter(&self) -> impl Iterator<Item = (u64, [ResponseView<'_>; N])> {
        self.blocks.iter().flat_map(|block| (0..block.ids.len()).map(|row| block.get(row)))
    }
}

impl<const N: usize> Block<N> {
    /// The batch must have the types of [`schema`] and no nulls; [`ipc::open`] checks both.
    fn new(batch: &RecordBatch) -> Self {
        let sides = std::array::from_fn(|side| {
            let lists = batch.column(1 + 2 * side).as_list::<i32>();
            Side {
                offsets: lists.offsets().clone(),
                tokens: lists.values().as_primitive::<UInt32Type>().values().clone(),
                prompt_lens: batch
                    .column(2 + 2 * side)
                    .as_primitive::<UInt32Type>()
                    .values()
                    .clone(),
            }
        });
        Self { ids: batch.column(0).as_primitive::<UInt64Type>().values().clone(), sides }
    }

    fn get(&self, row: usize) -> (u64, [ResponseView<'_>; N]) {
        let sides = self.sides.each_ref().map(|side| {
            let tokens = &side.tokens[side.offsets[row] as usize..side.offsets[row + 1] as usize];
            ResponseView { tokens, prompt_len: side.prompt_lens[row] as usize }
        });
        (self.ids[row], sides)
    }
}

fn schema<const N: usize>(sides: [&str; N]) -> SchemaRef {
    let id = Field::new("id", DataType::UInt64, false);
    let sides = sides.iter().flat_map(|side| {
        let tokens = DataType::List(Arc::new(token_field()));
        [
            Field::new(format!("{side}tokens"), tokens, false),
            Field::new(format!("{side}prompt_len"), DataType::UInt32, false),
        ]
    });
    Arc::new(Schema::new(std::iter::once(id).chain(sides).collect::<Vec<_>>()))
}

fn token_field() -> Field {
    Field::new("item", DataType::UInt32, false)
}

/// Collects records into a block.
struct BlockWriter<const N: usize> {
    schema: SchemaRef,
    ids: UInt64Builder,
    tokens: [ListBuilder<UInt32Builder>; N],
    prompt_lens: [UInt32Builder; N],
    records: usize,
    token_count: usize,
}

impl<const N: usize> BlockWriter<N> {
    fn new(schema: SchemaRef) -> Self {
        Self {
            schema,
            ids: UInt64Builder::new(),
            tokens: std::array::from_fn(|_| {
                ListBuilder::new(UInt32Builder::new()).with_field(token_field())
            }),
            prompt_lens: std::array::from_fn(|_| UInt32Builder::new()),
            records: 0,
            token_count: 0,
        }
    }

    fn push(&mut self, record: &Record<N>) {
        self.ids.append_value(record.id);
        for (side, response) in record.sides.iter().enumerate() {
            self.tokens[side].values().append_slice(&response.tokens);
            self.tokens[side].append(true);
            // A prompt is shorter than its block, whose limit is far below `u32::MAX`.
            self.prompt_lens[side].append_value(response.prompt_len as u32);
            self.token_count += response.tokens.len();
        }
        self.records += 1;
    }

    fn is_full(&self) -> bool {
        self.records >= BLOCK_RECORDS || self.token_count >= BLOCK_TOKENS
    }

    fn is_empty(&self) -> bool {
        self.records == 0
    }

    fn take(&mut self) -> Result<RecordBatch, ArrowError> {
        (self.records, self.token_count) = (0, 0);
        let mut columns: Vec<ArrayRef> = vec![Arc::new(self.ids.finish())];
        for (tokens, prompt_lens) in self.tokens.iter_mut().zip(&mut self.prompt_lens) {
            columns.push(Arc::new(tokens.finish()));
            columns.push(Arc::new(prompt_lens.finish()));
        }
        RecordBatch::try_new(self.schema.clone(), columns)
    }
}
