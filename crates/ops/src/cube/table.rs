//! Adds rows to those of a table that indices name, in place.

use burn::{
    backend::fusion::custom::TensorSpec,
    tensor::{Int, Tensor},
};
use burn_cubecl::cubecl::{self, ir::ElemType, prelude::*};

use super::{
    Kernel,
    matrix::{Matrix, address},
    place::{Plan, UNITS, own_row, sum_of_group},
    run,
};

/// [`add_rows`](crate::add_rows).
pub(crate) fn add_rows(
    table: Tensor<2>,
    first: usize,
    indices: Tensor<1, Int>,
    rows: Tensor<2>,
) -> Tensor<2> {
    let [table] = run(AddRows { first }, [table.into(), indices.into(), rows.into()]);
    table.into()
}

#[derive(Clone, Debug)]
struct AddRows {
    /// The index of the table's first row.
    first: usize,
}

impl Kernel<3, 1> for AddRows {
    const NAME: &'static str = "fpo::add_rows";
    const IN_PLACE: bool = true;

    fn outputs(&self, [table, ..]: [&TensorSpec; 3]) -> [TensorSpec; 1] {
        [table.clone()]
    }

    fn launch(&self, [_, indices, rows]: [Matrix; 3], [table]: [Matrix; 1]) {
        let (count, width) = (rows.count(), rows.width());
        let plan = Plan { group: UNITS, cubes: count };
        let (table_rows, strides) = (table.count(), [table.stride, rows.stride]);
        let types = [table.element(), indices.element(), rows.element()];
        // SAFETY: the kernel only accesses `count` indices, as many rows of `width` elements, and rows of the table below its
        // number of rows, which have as many elements.
        unsafe {
            add_rows_kernel::launch_unchecked(
                &table.client(),
                plan.cube_count(),
                plan.cube_dim(),
                address([&table, &rows]),
                table.argument(),
                indices.argument(),
                rows.argument(),
                count,
                width,
                table_rows,
                self.first,
                strides[0],
                strides[1],
                types,
            );
        }
    }
}

/// A cube per index. That of an index's first appearance adds all of its rows, in their order; the others do nothing.
#[cube(launch_unchecked, address_type = "dynamic")]
fn add_rows_kernel<T: Float, I: Numeric, F: Float>(
    table: &mut [T],
    indices: &[I],
    rows: &[F],
    count: usize,
    width: usize,
    table_rows: usize,
    first: usize,
    table_stride: usize,
    rows_stride: usize,
    #[define(T, I, F)] _types: [ElemType; 3],
) {
    let mut scratch = Shared::<[f32]>::new_slice(UNITS);
    let mut alike = Shared::<[f32]>::new_slice(UNITS);
    let unit = UNIT_POS_X as usize;
    let own = own_row();
    let mut index = 0usize;
    // Whether this cube adds: not if the index names no row of this table or has appeared before.
    let mut adds = false;
    if own < count {
        index = usize::cast_from(indices[own]);
        adds = index >= first && index < first + table_rows;
    }
    for piece in 0..count.div_ceil(UNITS) {
        let other = piece * UNITS + unit;
        let mut same = 0.0f32;
        let mut earlier = 0.0f32;
        if own < count && other < count && usize::cast_from(indices[other]) == index {
            same = 1.0f32;
            if other < own {
                earlier = 1.0f32;
            }
        }
        alike[unit] = same;
        if sum_of_group(earlier, &mut scratch, UNITS) > 0.0f32 {
            adds = false;
        }
        let found = sum_of_group(same, &mut scratch, UNITS);
        if adds && found > 0.0f32 {
            for k in 0..UNITS {
                if alike[k] > 0.0f32 {
                    let from = (piece * UNITS + k) * rows_stride;
                    let to = (index - first) * table_stride;
                    for i in range_stepped(unit, width, UNITS) {
                        let sum = f32::cast_from(table[to + i]) + f32::cast_from(rows[from + i]);
                        table[to + i] = T::cast_from(sum);
                    }
                }
            }
        }
        // The next piece must not be written before all have read this one.
        sync_cube();
    }
}
