//! How rows are assigned to units, and reductions over the units of a row.
//!
//! A cube has [`UNITS`] units; a group of them, a power of two, shares a row. Reductions go through shared memory in a fixed order,
//! so that devices don't need subgroup operations and results don't depend on the size of a device's subgroups.

use burn_cubecl::cubecl::{self, prelude::*};

/// Units per cube; every WebGPU device allows this many.
pub(super) const UNITS: usize = 256;

/// Below every score, and small enough in magnitude that differences don't overflow; WGSL has no infinity.
pub(super) const LOWEST: f32 = -1e38;

/// Cubes along a dimension of the grid, of which WebGPU allows 65,535.
const LONGEST: usize = 1 << 15;

/// How rows are assigned to cubes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    /// Units that share a row.
    pub group: usize,
    pub cubes: usize,
}

impl Plan {
    /// A warp per short row, a cube per long row.
    pub fn of_rows(rows: usize, width: usize) -> Self {
        let group = if width <= 1024 { 32 } else { UNITS };
        Self { group, cubes: rows.div_ceil(UNITS / group) }
    }

    pub fn cube_dim(&self) -> CubeDim {
        CubeDim::new_2d(self.group as u32, (UNITS / self.group) as u32)
    }

    /// A grid of at least this many cubes; empty if there are no rows.
    pub fn cube_count(&self) -> CubeCount {
        let across = self.cubes.min(LONGEST);
        let down = self.cubes.div_ceil(across.max(1));
        CubeCount::Static(across as u32, down as u32, 1)
    }
}

/// The row of this unit; may be past the last row.
#[cube]
pub(super) fn own_row() -> usize {
    CUBE_POS * CUBE_DIM_Y as usize + UNIT_POS_Y as usize
}

/// The sum over the units of a row, returned to all of them. Every unit of the cube must call it.
#[cube]
pub(super) fn sum_of_group(
    value: f32,
    scratch: &mut Shared<[f32]>,
    #[comptime] group: usize,
) -> f32 {
    merge_group(value, scratch, group, Merge::Sum)
}

/// The maximum over the units of a row, returned to all of them. Every unit of the cube must call it.
#[cube]
pub(super) fn largest_of_group(
    value: f32,
    scratch: &mut Shared<[f32]>,
    #[comptime] group: usize,
) -> f32 {
    merge_group(value, scratch, group, Merge::Largest)
}

/// How two values are combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Merge {
    Sum,
    Largest,
}

#[cube]
fn merge_group(
    value: f32,
    scratch: &mut Shared<[f32]>,
    #[comptime] group: usize,
    #[comptime] merge: Merge,
) -> f32 {
    let unit = UNIT_POS_X as usize;
    let first = UNIT_POS_Y as usize * group;
    scratch[first + unit] = value;
    sync_cube();
    #[unroll]
    for step in 0..comptime!(group.ilog2() as usize) {
        let half = comptime!(group >> (step + 1));
        if unit < half {
            let own = scratch[first + unit];
            let other = scratch[first + unit + half];
            let merged = if comptime!(merge == Merge::Sum) { own + other } else { max(own, other) };
            scratch[first + unit] = merged;
        }
        sync_cube();
    }
    let merged = scratch[first];
    // No unit may write again before all have read.
    sync_cube();
    merged
}
