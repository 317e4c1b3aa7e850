//! The gated activations of MLPs: GEGLU in Gemma, SwiGLU in Llama and Qwen.

use burn::tensor::{Tensor, activation::sigmoid};

use crate::{graph, profile, rms_norm::at_least_f32};

/// √(2/π)
pub(crate) const SQRT_2_OVER_PI: f64 =
    std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2;
/// The cubic coefficient of the tanh approximation of GELU.
pub(crate) const CUBIC: f64 = 0.044_715;

/// `gelu(gate) · up` with the tanh approximation `gelu(x) = x/2 · (1 + tanh(√(2/π)·(x + 0.044715·x³)))`
/// (PyTorch's `gelu_pytorch_tanh`).
///
/// # Shapes
/// * `gate`, `up`: equal
pub fn geglu<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    gated(Gate::Gelu, gate, up)
}

/// `silu(gate) · up` with `silu(x) = x / (1 + e⁻ˣ)`.
///
/// # Shapes
/// * `gate`, `up`: equal
pub fn swiglu<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    gated(Gate::Silu, gate, up)
}

/// The function of the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Gate {
    Gelu,
    Silu,
}

impl Gate {
    const fn name(self) -> &'static str {
        match self {
            Self::Gelu => "geglu",
            Self::Silu => "swiglu",
        }
    }
}

fn gated<const D: usize>(by: Gate, gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    assert_eq!(gate.dims(), up.dims(), "gated MLP: gate and up differ in shape");
    let _within = profile::operation(by.name(), || 0.0);
    #[cfg(feature = "flex")]
    if let Some(output) = crate::flex::apply(
        fast::Gated(by),
        [crate::flex::operand(&gate), crate::flex::operand(&up)],
    ) {
        return Tensor::from_dispatch(output);
    }
    let inputs = [gate.clone(), up.clone()].map(Tensor::into_dispatch);
    match graph::apply(recomputed::Gated::<D>(by), inputs) {
        Some(output) => Tensor::from_dispatch(output),
        None => by_definition(by, gate, up),
    }
}

/// [`geglu`] in plain tensor operations.
pub fn definition<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    by_definition(Gate::Gelu, gate, up)
}

/// [`swiglu`] in plain tensor operations.
pub fn swiglu_definition<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    by_definition(Gate::Silu, gate, up)
}

fn by_definition<const D: usize>(by: Gate, gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    let dtype = gate.dtype();
    let (gate, up) = (at_least_f32(gate), at_least_f32(up));
    let product = match by {
        Gate::Gelu => {
            let inner = (gate.clone() + gate.clone().powi_scalar(3) * CUBIC) * SQRT_2_OVER_PI;
            gate * 0.5 * (inner.tanh() + 1.0) * up
        }
        Gate::Silu => gate.clone() * sigmoid(gate) * up,
    };
    product.cast(dtype)
}

/// The definition with a backward pass that only saves gate and up; on GPUs, a kernel each.
mod recomputed {
    use burn::tensor::{Tensor, activation::sigmoid};

    use super::{CUBIC, Gate, SQRT_2_OVER_PI, by_definition};
    use crate::{
        graph::{Operation, Plain},
        rms_norm::at_least_f32,
    };

    #[derive(Clone, Debug)]
    pub(super) struct Gated<const D: usize>(pub Gate);

    impl<const D: usize> Operation<2> for Gated<D> {
        type Saved = ();

        fn forward(&self, [gate, up]: [Plain; 2]) -> (Plain, ()) {
            let (gate, up) = (Tensor::<D>::from(gate), Tensor::<D>::from(up));
            #[cfg(feature = "cube")]
            if [&gate, &up].into_iter().all(crate::cube::takes) {
                return (crate::cube::gated::forward(self.0, [gate.into(), up.into()]), ());
            }
            (by_definition(self.0, gate, up).into(), ())
        }

        /// `d up = g·f(x)`, `d gate = g·up·f′(x)`, where f is x times a factor:
        /// * gelu: `(1 + t)/2` with t the tanh, and `f′ = (1 + t)/2 + x/2·(1 − t²)·√(2/π)·(1 + 3·0.044715·x²)`;
        /// * silu: `σ(x)`, and `f′ = σ(x)·(1 + x·(1 − σ(x)))`.
        fn backward(
            &self,
            [gate, up]: [Plain; 2],
            (): (),
            gradient: Plain,
            [gate_wanted, up_wanted]: [bool; 2],
        ) -> [Option<Plain>; 2] {
            let [x, up, g] = [gate, up, gradient].map(Tensor::<D>::from);
            #[cfg(feature = "cube")]
            if [&x, &up, &g].into_iter().all(crate::cube::takes) {
                let inputs = [x.into(), up.into(), g.into()];
                return crate::cube::gated::backward(self.0, inputs).map(Some);
            }
            let dtype = x.dtype();
            let [x, up, g] = [x, up, g].map(at_least_f32);
            let gradients = match self.0 {
                Gate::Gelu => {
                    let square = x.clone().square();
                    let inner = x.clone() * (square.clone() * CUBIC + 1.0) * SQRT_2_OVER_PI;
                    let t = inner.tanh();
                    let half = (t.clone() + 1.0) * 0.5;
                    let d_up = up_wanted.then(|| g.clone() * x.clone() * half.clone());
                    let d_gate = gate_wanted.then(|| {
                        let slope = (square * (3.0 * CUBIC) + 1.0) * (0.5 * SQRT_2_OVER_PI);
                        g * up * (half + x * (-t.square() + 1.0) * slope)
                    });
                    [d_gate, d_up]
                }
                Gate::Silu => {
                    let s = sigmoid(x.clone());
                    let d_up = up_wanted.then(|| g.clone() * x.clone() * s.clone());
                    let d_gate = gate_wanted.then(|| g * up * s.clone() * (x * (-s + 1.0) + 1.0));
                    [d_gate, d_up]
                }
            };
            gradients.map(|gradient| gradient.map(|gradient| gradient.cast(dtype).into()))
        }
    }
}

/// One pass over gate and up, forward and backward; the backward pass recomputes the function.
#[cfg(feature = "flex")]
mod fast {
    use burn::backend::flex::FlexTensor;

    use super::{CUBIC, Gate, SQRT_2_OVER_PI};
    use crate::flex::{
        Operation,
        blocks::{self, Uninit},
        elementary::{exp, tanh, vectorised},
        tensor, tensors_like, values,
    };

    #[derive(Clone, Debug)]
    pub(super) struct Gated(pub Gate);

    impl Operation<2> for Gated {
        type Saved = [FlexTensor; 2];

        fn forward(&self, inputs: [FlexTensor; 2]) -> (FlexTensor, Self::Saved) {
            let output = match self.0 {
                Gate::Gelu => forward(&inputs, gelu),
                Gate::Silu => forward(&inputs, silu),
            };
            (output, inputs)
        }

        fn backward(
            &self,
            saved: Self::Saved,
            gradient: FlexTensor,
            _wanted: [bool; 2],
        ) -> [Option<FlexTensor>; 2] {
            match self.0 {
                Gate::Gelu => backward(saved, &gradient, gelu),
                Gate::Silu => backward(saved, &gradient, silu),
            }
        }
    }

    /// `f` gives the value and the slope of the gate's function.
    fn forward(inputs: &[FlexTensor; 2], f: impl Fn(f32) -> (f32, f32) + Sync) -> FlexTensor {
        let [gate, up] = inputs.each_ref().map(values);
        let work = |first: usize, [output]: [Uninit; 1]| {
            let range = first..first + output.len();
            let inputs = gate[range.clone()].iter().zip(&up[range]);
            vectorised(
                #[inline(always)]
                || {
                    for (output, (&x, &up)) in output.iter_mut().zip(inputs) {
                        output.write(f(x).0 * up);
                    }
                },
            );
        };
        // SAFETY: the loop writes every element of the block.
        let [output] = unsafe { blocks::elementwise(gate.len(), work) };
        tensor(output, inputs[0].layout().shape().clone())
    }

    fn backward(
        [gate, up]: [FlexTensor; 2],
        gradient: &FlexTensor,
        f: impl Fn(f32) -> (f32, f32) + Sync,
    ) -> [Option<FlexTensor>; 2] {
        let (x, u, g) = (values(&gate), values(&up), values(gradient));
        let work = |first: usize, [d_gate, d_up]: [Uninit; 2]| {
            let range = first..first + d_gate.len();
            let (x, u, g) = (&x[range.clone()], &u[range.clone()], &g[range]);
            vectorised(
                #[inline(always)]
                || {
                    let outputs = d_gate.iter_mut().zip(d_up.iter_mut());
                    for (((outputs, &x), &u), &g) in outputs.zip(x).zip(u).zip(g) {
                        let (value, slope) = f(x);
                        outputs.0.write(g * u * slope);
                        outputs.1.write(g * value);
                    }
                },
            );
        };
        // SAFETY: the loop writes every element of both blocks.
        let [d_gate, d_up] = unsafe { blocks::elementwise(x.len(), work) };
        tensors_like([d_gate, d_up].map(Some), &[gate, up])
    }

    const LINEAR: f32 = SQRT_2_OVER_PI as f32;
    const CUBE: f32 = (SQRT_2_OVER_PI * CUBIC) as f32;

    /// The tanh approximation of GELU and its derivative.
    #[inline(always)]
    fn gelu(x: f32) -> (f32, f32) {
        let square = x * x;
        let t = tanh(x * square.mul_add(CUBE, LINEAR));
        let half = 0.5 * (1.0 + t);
        let inner_slope = square.mul_add(3.0 * CUBE, LINEAR);
        let slope = (0.5 * x * inner_slope).mul_add((1.0 - t) * (1.0 + t), half);
        (x * half, slope)
    }

    /// SiLU and its derivative.
    #[inline(always)]
    fn silu(x: f32) -> (f32, f32) {
        // e to the power of −|x| can't overflow, and 1 − σ(x) = σ(−x) needs no subtraction.
        let e = exp(-x.abs());
        let (large, small) = (1.0 / (1.0 + e), e / (1.0 + e));
        let (s, rest) = if x < 0.0 { (small, large) } else { (large, small) };
        (x * s, s * x.mul_add(rest, 1.0))
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::{Gate, by_definition, recomputed::Gated};

    #[test]
    fn recomputing_makes_no_difference() {
        for by in [Gate::Gelu, Gate::Silu] {
            for shape in [[1, 1], [3, 5]] {
                crate::testing::check(Gated::<2>(by), [shape, shape], |[gate, up]| {
                    by_definition(by, gate, up)
                });
            }
        }
    }
}
