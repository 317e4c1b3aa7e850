//! The layout of a shard: columns and metadata.

use super::{ReferenceResponse, ReferenceResponseView, ReferenceRow, ReferenceView, SparseView};
use arrow_array::builder::{
    Float32Builder, ListBuilder, PrimitiveBuilder, UInt32Builder, UInt64Builder,
};
use arrow_array::cast::AsArray;
use arrow_array::types::{ArrowPrimitiveType, Float32Type, UInt32Type, UInt64Type};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_buffer::{ArrowNativeType, OffsetBuffer, ScalarBuffer};
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Key of [`ShardInfo`] in a shard's metadata.
pub(super) const INFO_KEY: &str = "fpo.reference";
/// Key of the largest bound on a dropped value in a shard's metadata.
pub(super) const BOUND_KEY: &str = "fpo.reference.dropped_at_most";

/// Rows per row group, the unit of decoding: about 10 MB with a few thousand features per response.
pub(super) const ROWS_PER_GROUP: usize = 256;

const SIDES: [&str; 2] = ["chosen_", "rejected_"];

/// Metadata of the whole cache, in every shard.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct ShardInfo {
    pub fingerprint: crate::Fingerprint,
    pub pairs: usize,
    pub d_sae: usize,
    pub shards: usize,
    pub stored: super::StoredFeatures,
}

pub(super) fn shard_name(shard: usize, shards: usize) -> String {
    format!("part-{shard:05}-of-{shards:05}.parquet")
}

pub(super) fn schema() -> SchemaRef {
    let side = |side: &&str| {
        let list = |item: Field| DataType::List(Arc::new(item));
        [
            Field::new(format!("{side}log_prob"), DataType::Float32, false),
            Field::new(format!("{side}shared_log_prob"), DataType::Float32, false),
            Field::new(format!("{side}tokens"), DataType::UInt32, false),
            Field::new(format!("{side}feature_index"), list(index_field()), false),
            Field::new(format!("{side}feature_value"), list(value_field()), false),
        ]
    };
    let id = Field::new("id", DataType::UInt64, false);
    Arc::new(Schema::new(
        std::iter::once(id).chain(SIDES.iter().flat_map(side)).collect::<Vec<_>>(),
    ))
}

fn index_field() -> Field {
    Field::new("element", DataType::UInt32, false)
}

fn value_field() -> Field {
    Field::new("element", DataType::Float32, false)
}

/// Converts rows to columns.
pub(super) fn encode(rows: &[ReferenceRow]) -> Result<RecordBatch, ArrowError> {
    let mut ids = UInt64Builder::with_capacity(rows.len());
    rows.iter().for_each(|row| ids.append_value(row.id));
    let mut columns: Vec<ArrayRef> = vec![Arc::new(ids.finish())];
    columns.extend(encode_side(rows.iter().map(|row| &row.chosen)));
    columns.extend(encode_side(rows.iter().map(|row| &row.rejected)));
    RecordBatch::try_new(schema(), columns)
}

fn encode_side<'a>(responses: impl Iterator<Item = &'a ReferenceResponse>) -> [ArrayRef; 5] {
    let (mut log_probs, mut shared) = (Float32Builder::new(), Float32Builder::new());
    let mut tokens = UInt32Builder::new();
    let mut indices = ListBuilder::new(UInt32Builder::new()).with_field(index_field());
    let mut values = ListBuilder::new(Float32Builder::new()).with_field(value_field());
    for response in responses {
        log_probs.append_value(response.log_prob);
        shared.append_value(response.shared_log_prob);
        tokens.append_value(response.tokens);
        append_list(&mut indices, &response.features.indices);
        append_list(&mut values, &response.features.values);
    }
    [
        Arc::new(log_probs.finish()),
        Arc::new(shared.finish()),
        Arc::new(tokens.finish()),
        Arc::new(indices.finish()),
        Arc::new(values.finish()),
    ]
}

fn append_list<T: ArrowPrimitiveType>(
    list: &mut ListBuilder<PrimitiveBuilder<T>>,
    items: &[T::Native],
) {
    list.values().append_slice(items);
    list.append(true);
}

/// Decoded rows.
#[derive(Debug)]
pub(super) struct Columns {
    ids: ScalarBuffer<u64>,
    sides: [Side; 2],
}

#[derive(Debug)]
struct Side {
    log_probs: ScalarBuffer<f32>,
    shared_log_probs: ScalarBuffer<f32>,
    tokens: ScalarBuffer<u32>,
    indices: List<u32>,
    values: List<f32>,
}

#[derive(Debug)]
struct List<T: ArrowNativeType> {
    offsets: OffsetBuffer<i32>,
    items: ScalarBuffer<T>,
}

impl Columns {
    /// Checks that the columns are those of [`schema`] and have no nulls; the error says what is wrong.
    pub fn new(batch: &RecordBatch) -> Result<Self, String> {
        let (expected, found) = (schema(), batch.schema());
        for field in expected.fields() {
            let column = found
                .field_with_name(field.name())
                .map_err(|_| format!("it has no column `{}`", field.name()))?;
            let same = match (column.data_type(), field.data_type()) {
                (DataType::List(found), DataType::List(expected)) => {
                    found.data_type() == expected.data_type()
                }
                (found, expected) => found == expected,
            };
            if !same {
                return Err(format!("its column `{}` has another type", field.name()));
            }
        }
        let column = |name: &str| {
            let column =
                batch.column_by_name(name).ok_or_else(|| format!("it has no column `{name}`"))?;
            let items_null =
                column.as_list_opt::<i32>().is_some_and(|list| list.values().null_count() > 0);
            if column.null_count() > 0 || items_null {
                Err(format!("its column `{name}` contains nulls"))
            } else {
                Ok(column)
            }
        };
        let side = |side: &str| -> Result<Side, String> {
            Ok(Side {
                log_probs: scalars::<Float32Type>(column(&format!("{side}log_prob"))?),
                shared_log_probs: scalars::<Float32Type>(column(&format!(
                    "{side}shared_log_prob"
                ))?),
                tokens: scalars::<UInt32Type>(column(&format!("{side}tokens"))?),
                indices: list::<UInt32Type>(column(&format!("{side}feature_index"))?),
                values: list::<Float32Type>(column(&format!("{side}feature_value"))?),
            })
        };
        Ok(Self {
            ids: scalars::<UInt64Type>(column("id")?),
            sides: [side(SIDES[0])?, side(SIDES[1])?],
        })
    }

    pub fn len(&self) -> usize {
        self.ids.len()
    }

    pub fn get(&self, row: usize) -> ReferenceView<'_> {
        let [chosen, rejected] = self.sides.each_ref().map(|side| ReferenceResponseView {
            log_prob: side.log_probs[row],
            shared_log_prob: side.shared_log_probs[row],
            tokens: side.tokens[row],
            features: SparseView { indices: side.indices.get(row), values: side.values.get(row) },
        });
        ReferenceView { id: self.ids[row], chosen, rejected }
    }
}

impl<T: ArrowNativeType> List<T> {
    fn get(&self, row: usize) -> &[T] {
        &self.items[self.offsets[row] as usize..self.offsets[row + 1] as usize]
    }
}

fn scalars<T: ArrowPrimitiveType>(column: &ArrayRef) -> ScalarBuffer<T::Native> {
    column.as_primitive::<T>().values().clone()
}

fn list<T: ArrowPrimitiveType>(column: &ArrayRef) -> List<T::Native> {
    let lists = column.as_list::<i32>();
    List { offsets: lists.offsets().clone(), items: scalars::<T>(lists.values()) }
}
