//! Records of an id and `N` tokenised responses, in columns.

use super::{StoreError, ipc};
use crate::Fingerprint;
use crate::tokens::{ExampleView, ResponseView, TokenizedResponse};
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
    /// Positions of the first side that are context.
    pub context: Vec<u32>,
}

/// A borrowed [`Record`].
pub(super) struct RecordView<'a, const N: usize> {
    pub id: u64,
    pub sides: [ResponseView<'a>; N],
    pub context: &'a [u32],
}

/// The columns of a store beside the id.
#[derive(Debug, Clone, Copy)]
pub(super) struct Columns<const N: usize> {
    /// Prefixes of the columns of each response.
    pub sides: [&'static str; N],
    /// Whether there is a column of context.
    pub context: bool,
}

impl<const N: usize> RecordView<'_, N> {
    fn is_sound(&self) -> bool {
        let example = |response| ExampleView { id: self.id, response, context: self.context };
        self.sides.iter().all(ResponseView::is_sound)
            && self.sides.first().is_none_or(|&first| example(first).is_sound())
    }

    fn unsound(&self, path: &Path, index: usize) -> StoreError {
        let (path, id) = (path.to_owned(), self.id);
        match self.sides.iter().find(|side| !side.is_sound()) {
            Some(side) => {
                let (prompt_len, len) = (side.prompt_len, side.tokens.len());
                StoreError::Unsound { path, index, id, prompt_len, len }
            }
            None => StoreError::Context { path, index, id },
        }
    }
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
    context: Option<Lists>,
}

#[derive(Debug)]
struct Side {
    tokens: Lists,
    prompt_lens: ScalarBuffer<u32>,
}

#[derive(Debug)]
struct Lists {
    offsets: OffsetBuffer<i32>,
    values: ScalarBuffer<u32>,
}

impl Lists {
    fn new(column: &ArrayRef) -> Self {
        let lists = column.as_list::<i32>();
        let values = lists.values().as_primitive::<UInt32Type>().values().clone();
        Self { offsets: lists.offsets().clone(), values }
    }

    fn get(&self, row: usize) -> &[u32] {
        &self.values[self.offsets[row] as usize..self.offsets[row + 1] as usize]
    }
}

pub(super) fn write<const N: usize>(
    path: &Path,
    columns: Columns<N>,
    fingerprint: &Fingerprint,
    records: impl Iterator<Item = Record<N>>,
) -> Result<usize, StoreError> {
    let mut writer = BlockWriter::new(columns);
    let mut records = records.enumerate();
    let mut written = 0;
    let blocks = std::iter::from_fn(|| {
        for (index, record) in records.by_ref() {
            let view = record.view();
            if !view.is_sound() || !(columns.context || view.context.is_empty()) {
                return Some(Err(view.unsound(path, index)));
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
    ipc::write(path, &columns.schema(), fingerprint, blocks)?;
    Ok(written)
}

impl<const N: usize> Record<N> {
    fn view(&self) -> RecordView<'_, N> {
        let sides = self.sides.each_ref().map(TokenizedResponse::view);
        RecordView { id: self.id, sides, context: &self.context }
    }
}

impl<const N: usize> Records<N> {
    pub fn open(path: &Path, columns: Columns<N>) -> Result<Self, StoreError> {
        let (batches, fingerprint) = ipc::open(path, &columns.schema())?;
        let block = |batch| Block::new(batch, columns.context);
        let blocks: Vec<Block<N>> = batches.iter().map(block).collect();
        let ends = blocks.iter().scan(0, |end, block| {
            *end += block.ids.len();
            Some(*end)
        });
        let starts = std::iter::once(0).chain(ends).collect();
        let records = Self { path: path.to_owned(), fingerprint, blocks, starts };
        for (index, record) in records.iter().enumerate() {
            if !record.is_sound() {
                return Err(record.unsound(path, index));
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

    pub fn get(&self, index: usize) -> Result<RecordView<'_, N>, StoreError> {
        if index >= self.len() {
            return Err(StoreError::OutOfRange { path: self.path.clone(), index, len: self.len() });
        }
        let block = self.starts.partition_point(|&start| start <= index) - 1;
        Ok(self.blocks[block].get(index - self.starts[block]))
    }

    pub fn iter(&self) -> impl Iterator<Item = RecordView<'_, N>> {
        self.blocks.iter().flat_map(|block| (0..block.ids.len()).map(|row| block.get(row)))
    }
}

impl<const N: usize> Block<N> {
    /// The batch must have the types of [`Columns::schema`] and no nulls; [`ipc::open`] checks both.
    fn new(batch: &RecordBatch, context: bool) -> Self {
        let sides = std::array::from_fn(|side| {
            let prompt_lens = batch.column(2 + 2 * side).as_primitive::<UInt32Type>();
            Side {
                tokens: Lists::new(batch.column(1 + 2 * side)),
                prompt_lens: prompt_lens.values().clone(),
            }
        });
        let context = context.then(|| Lists::new(batch.column(1 + 2 * N)));
        Self { ids: batch.column(0).as_primitive::<UInt64Type>().values().clone(), sides, context }
    }

    fn get(&self, row: usize) -> RecordView<'_, N> {
        let sides = self.sides.each_ref().map(|side| ResponseView {
            tokens: side.tokens.get(row),
            prompt_len: side.prompt_lens[row] as usize,
        });
        let context = self.context.as_ref().map_or(&[][..], |context| context.get(row));
        RecordView { id: self.ids[row], sides, context }
    }
}

impl<const N: usize> Columns<N> {
    fn schema(&self) -> SchemaRef {
        let list = |name: String| Field::new(name, DataType::List(Arc::new(token_field())), false);
        let sides = self.sides.iter().flat_map(|side| {
            let prompt_len = Field::new(format!("{side}prompt_len"), DataType::UInt32, false);
            [list(format!("{side}tokens")), prompt_len]
        });
        let id = std::iter::once(Field::new("id", DataType::UInt64, false));
        let context = self.context.then(|| list("context".to_owned()));
        Arc::new(Schema::new(id.chain(sides).chain(context).collect::<Vec<_>>()))
    }
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
    context: Option<ListBuilder<UInt32Builder>>,
    records: usize,
    token_count: usize,
}

impl<const N: usize> BlockWriter<N> {
    fn new(columns: Columns<N>) -> Self {
        let lists = || ListBuilder::new(UInt32Builder::new()).with_field(token_field());
        Self {
            schema: columns.schema(),
            ids: UInt64Builder::new(),
            tokens: std::array::from_fn(|_| lists()),
            context: columns.context.then(lists),
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
        if let Some(context) = &mut self.context {
            context.values().append_slice(&record.context);
            context.append(true);
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
        columns.extend(self.context.as_mut().map(|context| Arc::new(context.finish()) as ArrayRef));
        RecordBatch::try_new(self.schema.clone(), columns)
    }
}
