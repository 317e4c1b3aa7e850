//! One step of AdamW with the arithmetic of `torch.optim.AdamW`.

#[cfg(feature = "flex")]
use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;

use crate::{Clip, profile};

/// The hyperparameters of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the first moment, the mean of the gradients.
    pub beta1: f64,
    /// Decay of the second moment, the mean of the squared gradients.
    pub beta2: f64,
    /// Added to the square root of the second moment, after its bias correction.
    pub eps: f64,
    /// Decoupled weight decay: the parameter shrinks by `lr · weight_decay`.
    pub weight_decay: f64,
    /// Multiplies the gradient first.
    pub grad_scale: f64,
}

/// Returns the new parameter and its moments:
///
/// `g ← grad_scale·g`, `m ← m + (1−β₁)·(g − m)`, `v ← β₂·v + (1−β₂)·g²`,
/// `p ← (1 − lr·λ)·p − lr/(1−β₁ᵗ) · m / (√v/√(1−β₂ᵗ) + eps)`
/// (Loshchilov & Hutter, algorithm 2, in the order of operations of PyTorch).
///
/// `step` t counts from 1. The tensors must be outside autodiff. A buffer without other owners is updated in place, so pass the
/// only handle of each.
///
/// # Shapes
/// * `param`, `grad`, `m`, `v`: equal
pub fn adamw_step<const D: usize>(
    param: Tensor<D>,
    grad: Tensor<D>,
    m: Tensor<D>,
    v: Tensor<D>,
    step: usize,
    options: &AdamW,
) -> (Tensor<D>, Tensor<D>, Tensor<D>) {
    let shape = param.dims();
    assert!(
        grad.dims() == shape && m.dims() == shape && v.dims() == shape,
        "adamw_step: param {shape:?}, grad {:?}, m {:?} and v {:?} differ in shape",
        grad.dims(),
        m.dims(),
        v.dims()
    );
    let flat = |x: Tensor<D>| x.reshape([shape.iter().product::<usize>()]);
    let moved = adamw_steps(vec![[param, grad, m, v].map(flat)], step, options, &Clip::NONE);
    let Ok([moved]) = <[_; 1]>::try_from(moved) else { unreachable!("one for one") };
    moved.map(|x| x.reshape(shape)).into()
}

/// [`adamw_step`] for many parameters, on GPUs several of them in one kernel: `[param, grad, m, v]` of each becomes `[param, m, v]`.
/// The gradients are clipped as they are read: no second copy of them is made.
///
/// # Shapes
/// * `param`, `grad`, `m`, `v` of a parameter: `[n]`; the moments have the same type
pub fn adamw_steps(
    parameters: Vec<[Tensor<1>; 4]>,
    step: usize,
    options: &AdamW,
    clip: &Clip,
) -> Vec<[Tensor<1>; 3]> {
    assert!(step > 0, "adamw_step: steps count from 1");
    for of_one in &parameters {
        let [_, _, m, v] = of_one;
        let counts = of_one.each_ref().map(|x| x.dims()[0]);
        assert!(counts == [counts[0]; 4], "adamw_step: param, grad, m and v: lengths {counts:?}");
        assert!(m.dtype() == v.dtype(), "adamw_step: m {:?}, v {:?}", m.dtype(), v.dtype());
        assert!(
            !of_one.iter().any(Tensor::is_autodiff),
            "adamw_step: the tensors must be outside autodiff (`Tensor::inner`)"
        );
    }
    #[cfg(feature = "cube")]
    if parameters.iter().flatten().all(crate::cube::takes) {
        return kernels(parameters, step, options, clip);
    }
    let options = &options.clipped(clip);
    let one = |of_one: [Tensor<1>; 4]| {
        let _within = watched(std::slice::from_ref(&of_one));
        #[cfg(feature = "flex")]
        if of_one.iter().all(crate::flex::is_plain) {
            let [param, grad, m, v] = of_one.map(crate::flex::take);
            return fast([param, m, v], grad, step, options)
                .map(|tensor| Tensor::from_dispatch(crate::flex::plain(tensor)));
        }
        let [param, grad, m, v] = of_one;
        definition(param, grad, m, v, step, options).into()
    };
    parameters.into_iter().map(one).collect()
}

fn watched(parameters: &[[Tensor<1>; 4]]) -> impl Drop + use<> {
    let within = profile::operation("adamw_step", || 0.0);
    // The gradient is read, the others are read and written.
    profile::moved(|| {
        let bytes = |x: &Tensor<1>| (x.shape().num_elements() * x.dtype().size()) as f64;
        let of_one = |[param, grad, m, v]: &[Tensor<1>; 4]| {
            2.0 * (bytes(param) + bytes(m) + bytes(v)) + bytes(grad)
        };
        parameters.iter().map(of_one).sum()
    });
    within
}

#[cfg(feature = "cube")]
fn kernels(
    parameters: Vec<[Tensor<1>; 4]>,
    step: usize,
    options: &AdamW,
    clip: &Clip,
) -> Vec<[Tensor<1>; 3]> {
    use crate::cube::{run_of_many, update};

    let types = |of_one: &[Tensor<1>; 4]| of_one.each_ref().map(|x| x.dtype());
    let on_device = clip.on_device().cloned();
    let options = if on_device.is_some() { *options } else { options.clipped(clip) };
    let groups = update::groups(parameters, types);
    let moved = groups.into_iter().flat_map(|group| {
        let _within = watched(&group);
        let mut kinds = [const { Vec::new() }; 4];
        for of_one in group {
            kinds.iter_mut().zip(of_one).for_each(|(kind, tensor)| kind.push(tensor.into()));
        }
        let [params, grads, m, v] = kinds;
        let count = params.len();
        let on_device = on_device.clone().map(Into::into);
        let inputs = [params, m, v, grads].into_iter().flatten().chain(on_device).collect();
        let kernel = update::AdamWSteps(options.coefficients(step));
        let mut moved = run_of_many(kernel, inputs).into_iter().map(Into::into);
        let [params, m, v] = [(); 3].map(|()| moved.by_ref().take(count).collect::<Vec<_>>());
        params.into_iter().zip(m).zip(v).map(|((param, m), v)| [param, m, v]).collect::<Vec<_>>()
    });
    moved.collect()
}

/// [`adamw_step`] in plain tensor operations.
pub fn definition<const D: usize>(
    param: Tensor<D>,
    grad: Tensor<D>,
    m: Tensor<D>,
    v: Tensor<D>,
    step: usize,
    options: &AdamW,
) -> (Tensor<D>, Tensor<D>, Tensor<D>) {
    let (beta1, beta2) = (options.beta1, options.beta2);
    let (correction1, correction2) = options.bias_corrections(step);
    let grad = grad * options.grad_scale;
    let m = m.clone() + (grad.clone() - m) * (1.0 - beta1);
    let v = v * beta2 + grad.square() * (1.0 - beta2);
    let denominator = v.clone().sqrt() / correction2.sqrt() + options.eps;
    let param = param * (1.0 - options.lr * options.weight_decay)
        - m.clone() / denominator * (options.lr / correction1);
    (param, m, v)
}

impl AdamW {
    /// With the clip's factor in the gradient's, read if it is on a device.
    fn clipped(&self, clip: &Clip) -> Self {
        Self { grad_scale: self.grad_scale * clip.factor(), ..*self }
    }

    /// `1 − β₁ᵗ` and `1 − β₂ᵗ`.
    fn bias_corrections(&self, step: usize) -> (f64, f64) {
        let t = step as f64;
        (1.0 - self.beta1.powf(t), 1.0 - self.beta2.powf(t))
    }

    fn coefficients(&self, step: usize) -> Coefficients {
        let (correction1, correction2) = self.bias_corrections(step);
        Coefficients {
            shrink: (1.0 - self.lr * self.weight_decay) as f32,
            rate: (self.lr / correction1) as f32,
            inverse: (1.0 / correction2.sqrt()) as f32,
            new1: (1.0 - self.beta1) as f32,
            new2: (1.0 - self.beta2) as f32,
            beta2: self.beta2 as f32,
            eps: self.eps as f32,
            scale: self.grad_scale as f32,
        }
    }
}

/// What a step multiplies and adds, in the type of the fast paths: `g ← scale·g`, `m ← m + new1·(g − m)`,
/// `v ← beta2·v + new2·g²`, `p ← shrink·p − rate·m / (√v·inverse + eps)`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Coefficients {
    pub shrink: f32,
    pub rate: f32,
    pub inverse: f32,
    pub new1: f32,
    pub new2: f32,
    pub beta2: f32,
    pub eps: f32,
    pub scale: f32,
}

/// One pass over all four tensors, in place if a buffer has no other owner.
#[cfg(feature = "flex")]
fn fast(
    mut state: [FlexTensor; 3],
    grad: FlexTensor,
    step: usize,
    options: &AdamW,
) -> [FlexTensor; 3] {
    use crate::flex::{
        blocks::{ELEMENTS, for_each_block},
        elementary::vectorised,
        values,
    };

    let Coefficients { shrink, rate, inverse, new1, new2, beta2, eps, scale } =
        options.coefficients(step);
    let grad = values(&grad);
    let slices = state.each_mut().map(|tensor| (tensor.storage_mut::<f32>(), ELEMENTS));
    for_each_block(slices, |block, [p, m, v]| {
        let g = &grad[block * ELEMENTS..][..p.len()];
        vectorised(
            #[inline(always)]
            || {
                for (((p, m), v), &g) in p.iter_mut().zip(m).zip(v).zip(g) {
                    let g = g * scale;
                    *m += (g - *m) * new1;
                    *v = *v * beta2 + g * g * new2;
                    *p = *p * shrink - rate * *m / (v.sqrt() * inverse + eps);
                }
            },
        );
    });
    state
}
