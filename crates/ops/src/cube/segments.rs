//! [`segment_sums`](crate::segment_sums) in one kernel, and its gradient in another.

use std::ops::Range;

use burn::{
    backend::fusion::custom::TensorSpec,
    tensor::{Device, Int, Shape, Tensor, TensorData},
};
use burn_cubecl::cubecl::{self, ir::ElemType, prelude::*};

use super::{
    Kernel,
    matrix::{Matrix, address},
    place::{Plan, UNITS, own_row, sum_of_group},
    run,
};
use crate::graph::{Operation, Plain};

#[derive(Clone, Debug)]
pub(crate) struct SegmentSums {
    /// The first value of each segment, the one past its last, and the segment of each value or -1. `[2 · segments + n]`
    places: Tensor<1, Int>,
    segments: usize,
    values: usize,
}

impl SegmentSums {
    pub fn new(segments: &[Range<usize>], values: usize, device: &Device) -> Self {
        let mut places: Vec<i32> = segments.iter().map(|s| s.start as i32).collect();
        places.extend(segments.iter().map(|s| s.end as i32));
        let mut of_values = vec![-1; values];
        for (i, segment) in segments.iter().enumerate() {
            of_values[segment.clone()].fill(i as i32);
        }
        places.extend(of_values);
        let shape = [places.len()];
        let places = Tensor::<1, Int>::from_data(TensorData::new(places, shape), device);
        Self { places: places.without_autodiff(), segments: segments.len(), values }
    }
}

impl Operation<1> for SegmentSums {
    type Saved = ();

    fn forward(&self, [values]: [Plain; 1]) -> (Plain, ()) {
        let [sums] = run(Sum { segments: self.segments }, [values, self.places.clone().into()]);
        (sums, ())
    }

    /// The backward pass needs none of the values.
    fn kept(&self, _: [Plain; 1]) -> [Plain; 1] {
        [self.places.clone().into()]
    }

    fn backward(
        &self,
        [places]: [Plain; 1],
        (): (),
        gradient: Plain,
        _wanted: [bool; 1],
    ) -> [Option<Plain>; 1] {
        let kernel = Repeat { segments: self.segments, values: self.values };
        let [gradients] = run(kernel, [gradient, places]);
        [Some(gradients)]
    }
}

/// Values `[n]` and places → sums `[segments]`.
#[derive(Clone, Debug)]
struct Sum {
    segments: usize,
}

impl Kernel<2, 1> for Sum {
    const NAME: &'static str = "fpo::segment_sums";

    fn outputs(&self, [values, _]: [&TensorSpec; 2]) -> [TensorSpec; 1] {
        [TensorSpec::new(Shape::new([self.segments]), values.dtype)]
    }

    fn launch(&self, [values, places]: [Matrix; 2], [sums]: [Matrix; 1]) {
        let plan = Plan { group: UNITS, cubes: self.segments };
        let types = [values.element(), places.element()];
        // SAFETY: the kernel only accesses values in segments, which are among them, and an output per segment.
        unsafe {
            sum_kernel::launch_unchecked(
                &values.client(),
                plan.cube_count(),
                plan.cube_dim(),
                address([&values, &places]),
                values.argument(),
                places.argument(),
                sums.argument(),
                self.segments,
                types,
            );
        }
    }
}

/// A cube per segment.
#[cube(launch_unchecked, address_type = "dynamic")]
fn sum_kernel<F: Float, I: Numeric>(
    values: &[F],
    places: &[I],
    sums: &mut [F],
    segments: usize,
    #[define(F, I)] _types: [ElemType; 2],
) {
    let mut scratch = Shared::<[f32]>::new_slice(UNITS);
    let segment = own_row();
    let mut sum = 0.0f32;
    if segment < segments {
        let first = usize::cast_from(places[segment]);
        let end = usize::cast_from(places[segments + segment]);
        for i in range_stepped(first + UNIT_POS_X as usize, end, UNITS) {
            sum += f32::cast_from(values[i]);
        }
    }
    let sum = sum_of_group(sum, &mut scratch, UNITS);
    if segment < segments && UNIT_POS_X == 0 {
        sums[segment] = F::cast_from(sum);
    }
}

/// The gradient of each sum `[segments]` and places → that of each value, `[n]`.
#[derive(Clone, Debug)]
struct Repeat {
    segments: usize,
    values: usize,
}

impl Kernel<2, 1> for Repeat {
    const NAME: &'static str = "fpo::segment_sums_backward";

    fn outputs(&self, [gradient, _]: [&TensorSpec; 2]) -> [TensorSpec; 1] {
        [TensorSpec::new(Shape::new([self.values]), gradient.dtype)]
    }

    fn launch(&self, [gradient, places]: [Matrix; 2], [output]: [Matrix; 1]) {
        let plan = Plan { group: UNITS, cubes: self.values.div_ceil(UNITS) };
        let types = [gradient.element(), places.element()];
        // SAFETY: the kernel only accesses gradients of segments that exist, and as many outputs as there are.
        unsafe {
            repeat_kernel::launch_unchecked(
                &gradient.client(),
                plan.cube_count(),
                plan.cube_dim(),
                address([&places, &output]),
                gradient.argument(),
                places.argument(),
                output.argument(),
                self.segments,
                self.values,
                types,
            );
        }
    }
}

/// A unit per value.
#[cube(launch_unchecked, address_type = "dynamic")]
fn repeat_kernel<F: Float, I: Numeric>(
    gradient: &[F],
    places: &[I],
    output: &mut [F],
    segments: usize,
    values: usize,
    #[define(F, I)] _types: [ElemType; 2],
) {
    let i = CUBE_POS * UNITS + UNIT_POS_X as usize;
    if i < values {
        let segment = i32::cast_from(places[2 * segments + i]);
        let mut value = F::new(0.0);
        if segment >= 0 {
            value = gradient[usize::cast_from(segment)];
        }
        output[i] = value;
    }
}
