//! Elementary functions of float32, written so that the compiler vectorises the loops that call them.
//!
//! Everything here is a fixed sequence of IEEE operations (fused multiply-adds included), so that the results are the same to the
//! bit whatever the width of the processor's vectors. NaN stays NaN.

/// Runs `work`, compiled for the widest vectors of the processor.
///
/// This only affects inlined code: mark the closure and everything that it calls `#[inline(always)]`.
#[inline(always)]
pub(crate) fn vectorised<R>(work: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(work)
}

/// `ln 2` in two parts, the first with trailing zeros, so that its product with a small integer is exact.
const LN_2_HIGH: f32 = 0.693_145_75;
const LN_2_LOW: f32 = 1.428_606_8e-6;
/// 1.5·2²³: added to a number of magnitude below 2²², it pushes the fraction out of the mantissa.
const ROUND: f32 = 12_582_912.0;

/// `eˣ = (1 + p)·2ⁿ` as the pair (p, 2ⁿ), for −87 ≤ x ≤ 88: `n` is the integer nearest to x/ln 2, and p the Taylor series of
/// `expm1` to the seventh power, whose truncation error on |r| ≤ ln 2 / 2 is below 6e-9.
#[inline(always)]
fn split_exp(x: f32) -> (f32, f32) {
    let rounded = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = n.mul_add(-LN_2_LOW, n.mul_add(-LN_2_HIGH, x));
    let mut p: f32 = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5] {
        p = r.mul_add(p, coefficient);
    }
    // The low bits of `rounded` hold n; the exponent of a float starts at bit 23 and is biased by 127.
    let power = f32::from_bits(rounded.to_bits().wrapping_add(127) << 23);
    ((r * r).mul_add(p, r), power)
}

/// `eˣ` to 1.1 units in the last place (measured by the test below) for x ≤ 88; zero below −87, close to the smallest normal
/// number.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    let (p, power) = split_exp(x.clamp(-87.0, 88.0));
    if x < -87.0 { 0.0 } else { power.mul_add(p, power) }
}

/// `tanh x` to 2.4 units in the last place (measured by the test below), as `m/(m+2)` with `m = expm1(2|x|)`, which avoids
/// cancellation near zero.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    // Beyond 9.1 the result rounds to 1. Not `min`, which would drop a NaN.
    let a = x.abs();
    let (p, power) = split_exp(2.0 * if a > 9.1 { 9.1 } else { a });
    let expm1 = power.mul_add(p, power - 1.0);
    (expm1 / (expm1 + 2.0)).copysign(x)
}

/// Lanes of the reductions below. They fix the order of additions, whatever the processor. Loops over whole multiples leave no
/// remainder to scalar code.
pub(crate) const LANES: usize = 16;

/// `Σ f(one element of each slice)` over slices of equal length.
#[inline(always)]
pub(crate) fn sum<const N: usize>(slices: [&[f32]; N], f: impl Fn([f32; N]) -> f32) -> f32 {
    reduce(
        slices,
        0.0,
        f,
        #[inline(always)]
        |a, b| a + b,
    )
}

/// The largest element; −∞ for an empty slice.
#[inline(always)]
pub(crate) fn max(slice: &[f32]) -> f32 {
    reduce(
        [slice],
        f32::NEG_INFINITY,
        #[inline(always)]
        |[x]| x,
        #[inline(always)]
        |a, b| if b > a { b } else { a },
    )
}

#[inline(always)]
fn reduce<const N: usize>(
    slices: [&[f32]; N],
    start: f32,
    f: impl Fn([f32; N]) -> f32,
    combine: impl Fn(f32, f32) -> f32,
) -> f32 {
    let mut lanes = [start; LANES];
    let whole = slices[0].len() / LANES;
    let chunks = slices.map(|slice| &slice.as_chunks::<LANES>().0[..whole]);
    let rests = slices.map(|slice| slice.as_chunks::<LANES>().1);
    for i in 0..whole {
        let chunks = chunks.map(|chunks| &chunks[i]);
        for (lane, accumulator) in lanes.iter_mut().enumerate() {
            *accumulator = combine(*accumulator, f(chunks.map(|chunk| chunk[lane])));
        }
    }
    for (i, accumulator) in lanes.iter_mut().enumerate().take(rests[0].len()) {
        *accumulator = combine(*accumulator, f(rests.map(|rest| rest[i])));
    }
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for lane in 0..width {
            lanes[lane] = combine(lanes[lane], lanes[lane + width]);
        }
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The largest error on a grid in units in the last place, compared with float64.
    fn worst(grid: impl Iterator<Item = f32>, f: fn(f32) -> f32, exact: fn(f64) -> f64) -> f64 {
        grid.map(|x| {
            let exact = exact(f64::from(x));
            let unit = f64::from(f32::EPSILON) * 2f64.powi(exact.abs().log2().floor() as i32);
            (f64::from(f(x)) - exact).abs() / unit
        })
        .fold(0.0, f64::max)
    }

    fn grid(low: f32, high: f32, points: u32) -> impl Iterator<Item = f32> {
        (0..=points).map(move |i| low + (high - low) * (i as f32 / points as f32))
    }

    #[test]
    fn exp_is_as_accurate_as_it_says() {
        let worst = worst(grid(-86.9, 88.0, 4_000_000), exp, f64::exp);
        println!("exp: {worst} units of the last place");
        assert!(worst < 1.1);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1000.0), 0.0);
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn tanh_is_as_accurate_as_it_says() {
        let tiny = (1..120).map(|exponent| 1.3 * 2f32.powi(-exponent));
        let grid = grid(-10.0, 10.0, 4_000_001).chain(grid(-0.01, 0.01, 1_000_001));
        let worst = worst(grid.chain(tiny).filter(|&x| x != 0.0), tanh, f64::tanh);
        println!("tanh: {worst} units of the last place");
        assert!(worst < 2.4);
        assert_eq!(tanh(0.0), 0.0);
        assert_eq!(tanh(f32::INFINITY), 1.0);
        assert_eq!(tanh(f32::NEG_INFINITY), -1.0);
        assert!(tanh(f32::NAN).is_nan());
    }

    #[test]
    fn reductions_cover_every_length() {
        for n in 0..70_usize {
            let numbers: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let squares = (0..n).map(|i| i * i).sum::<usize>() as f32;
            assert_eq!(sum([&numbers, &numbers], |[a, b]| a * b), squares);
            let largest = if n == 0 { f32::NEG_INFINITY } else { n as f32 - 1.0 };
            assert_eq!(max(&numbers), largest);
        }
    }
}
