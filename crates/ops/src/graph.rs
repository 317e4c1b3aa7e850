//! Operations with a hand-written backward pass in tensor operations, for every backend without a fast path, and their
//! integration into the autodiff graph. They save their inputs and little else, where autodiff would save every intermediate
//! result.

use std::{
    fmt::{self, Debug},
    marker::PhantomData,
    sync::Arc,
};

use burn::{
    backend::{
        Autodiff, AutodiffBackend, Backend, BackendTensor, DispatchAutodiffContext, DispatchTensor,
        DispatchTensorKind, TensorMetadata,
        autodiff::{
            checkpoint::{base::Checkpointer, strategy::NoCheckpointing},
            grads::Gradients,
            ops::{Backward, Ops, OpsKind},
        },
    },
    tensor::{Int, Tensor},
};

use crate::profile::{self, Origin};

/// A tensor of any rank, outside any graph.
#[derive(Clone, Debug)]
pub(crate) struct Plain(DispatchTensor);

impl<const D: usize> From<Tensor<D>> for Plain {
    fn from(tensor: Tensor<D>) -> Self {
        Self(tensor.into_dispatch())
    }
}

impl<const D: usize> From<Tensor<D, Int>> for Plain {
    fn from(tensor: Tensor<D, Int>) -> Self {
        Self(tensor.into_dispatch())
    }
}

impl<const D: usize> From<Plain> for Tensor<D> {
    fn from(plain: Plain) -> Self {
        Tensor::from_dispatch(plain.0)
    }
}

impl From<DispatchTensor> for Plain {
    fn from(tensor: DispatchTensor) -> Self {
        Self(tensor)
    }
}

impl From<Plain> for DispatchTensor {
    fn from(plain: Plain) -> Self {
        plain.0
    }
}

/// Computes for the backward pass what the forward pass didn't keep.
#[derive(Clone)]
pub(crate) struct Again(Arc<dyn Fn() -> Plain + Send + Sync>);

impl Again {
    pub(crate) fn new(compute: impl Fn() -> Plain + Send + Sync + 'static) -> Self {
        Self(Arc::new(compute))
    }

    pub(crate) fn compute(&self) -> Plain {
        (self.0)()
    }
}

impl Debug for Again {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Again")
    }
}

/// A differentiable operation with `N` inputs and one output.
pub(crate) trait Operation<const N: usize>: Clone + Debug + Send + 'static {
    /// What the backward pass needs in addition to the inputs.
    type Saved: Clone + Debug + Send;

    /// The output, and what to save for the backward pass.
    fn forward(&self, inputs: [Plain; N]) -> (Plain, Self::Saved);

    /// Bytes that are read of each input, given what it takes in memory, and the output. Only a profile asks.
    fn read(&self, inputs: [f64; N], _output: f64) -> [f64; N] {
        inputs
    }

    /// The inputs as the backward pass gets them. An operation that computes one again may let go of it here.
    fn kept(&self, inputs: [Plain; N]) -> [Plain; N] {
        inputs
    }

    /// The gradients of the `wanted` inputs, given that of the output.
    fn backward(
        &self,
        inputs: [Plain; N],
        saved: Self::Saved,
        gradient: Plain,
        wanted: [bool; N],
    ) -> [Option<Plain>; N];
}

/// A backend that this crate knows by name.
trait Known: Backend {
    fn wrap(tensor: BackendTensor<Self>) -> DispatchTensorKind;
    fn unwrap(kind: DispatchTensorKind) -> Option<BackendTensor<Self>>;
}

macro_rules! known {
    ($backend:ident, $feature:literal) => {
        #[cfg(feature = $feature)]
        impl Known for burn::backend::$backend {
            fn wrap(tensor: BackendTensor<Self>) -> DispatchTensorKind {
                DispatchTensorKind::$backend(tensor)
            }

            // Unreachable if this is the only backend compiled in.
            #[allow(unreachable_patterns)]
            fn unwrap(kind: DispatchTensorKind) -> Option<BackendTensor<Self>> {
                match kind {
                    DispatchTensorKind::$backend(tensor) => Some(tensor),
                    _ => None,
                }
            }
        }
    };
}
known!(Flex, "flex");
known!(Cube, "cube");

/// Runs `operation`, recorded in the graph if an input is tracked; `None` on an unknown backend.
pub(crate) fn apply<const N: usize>(
    operation: impl Operation<N>,
    inputs: [DispatchTensor; N],
) -> Option<DispatchTensor> {
    let kind = match &inputs.first()?.kind {
        DispatchTensorKind::Autodiff(inner) => inner,
        kind => kind,
    };
    #[allow(unreachable_patterns)]
    match kind {
        #[cfg(feature = "flex")]
        DispatchTensorKind::Flex(_) => apply_on::<burn::backend::Flex, N>(operation, inputs),
        #[cfg(feature = "cube")]
        DispatchTensorKind::Cube(_) => apply_on::<burn::backend::Cube, N>(operation, inputs),
        _ => None,
    }
}

fn apply_on<B: Known, const N: usize>(
    operation: impl Operation<N>,
    inputs: [DispatchTensor; N],
) -> Option<DispatchTensor> {
    let mut context = DispatchAutodiffContext::Disabled;
    for input in &inputs {
        context = context.merge(input.autodiff);
    }
    // Only computed where the thread is watched.
    let sizes = profile::is_watched().then(|| inputs.each_ref().map(bytes));
    let origin = |output: &Plain| {
        profile::origin(|| {
            let output = bytes(&output.0);
            (sizes.map_or(Vec::new(), |sizes| operation.read(sizes, output).to_vec()), output)
        })
    };
    if context == DispatchAutodiffContext::Disabled {
        let (output, _) = operation.forward(inputs.map(Plain));
        origin(&output);
        return Some(output.0);
    }
    let mut tensors = Vec::with_capacity(N);
    for input in inputs {
        tensors.push(match input.kind {
            DispatchTensorKind::Autodiff(inner) => match B::unwrap(*inner)? {
                BackendTensor::Autodiff(tensor) => tensor,
                _ => return None,
            },
            kind => match B::unwrap(kind)? {
                BackendTensor::Float(tensor) => {
                    <Autodiff<B> as AutodiffBackend>::from_inner(tensor)
                }
                _ => return None,
            },
        });
    }
    let Ok(tensors) = <[_; N]>::try_from(tensors) else { unreachable!("one tensor per input") };
    let nodes = tensors.each_ref().map(|tensor| tensor.node());
    let inputs = tensors.map(|tensor| plain::<B>(tensor.into_primitive()));
    let (output, saved) = operation.forward(inputs.clone());
    let origin = origin(&output);
    let output = primitive::<B>(output);
    let step = Step { operation: PhantomData };
    // The checkpointing strategy only matters for operations that may be recomputed; these are marked as compute-bound.
    let output = match Backward::<B, N>::prepare::<NoCheckpointing>(step, nodes)
        .compute_bound()
        .stateful()
    {
        OpsKind::Tracked(prepared) => {
            let kept = operation.kept(inputs);
            prepared.finish((operation, kept, saved, origin), output)
        }
        OpsKind::UnTracked(prepared) => prepared.finish(output),
    };
    let kind = B::wrap(BackendTensor::Autodiff(output));
    Some(DispatchTensor { kind: DispatchTensorKind::Autodiff(Box::new(kind)), autodiff: context })
}

/// What a tensor takes in memory.
fn bytes(tensor: &DispatchTensor) -> f64 {
    (tensor.shape().num_elements() * tensor.dtype().size()) as f64
}

fn plain<B: Known>(tensor: B::FloatTensorPrimitive) -> Plain {
    Plain(DispatchTensor {
        kind: B::wrap(BackendTensor::Float(tensor)),
        autodiff: DispatchAutodiffContext::Disabled,
    })
}

fn primitive<B: Known>(plain: Plain) -> B::FloatTensorPrimitive {
    match B::unwrap(plain.0.kind) {
        Some(BackendTensor::Float(tensor)) => tensor,
        _ => unreachable!("an operation's results are on its backend and outside the graph"),
    }
}

/// An [`Operation`] as a node of the graph.
struct Step<O> {
    operation: PhantomData<O>,
}

impl<O> Debug for Step<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::any::type_name::<O>())
    }
}

impl<B: Known, O: Operation<N>, const N: usize> Backward<B, N> for Step<O> {
    type State = (O, [Plain; N], O::Saved, Origin);

    fn backward(
        self,
        ops: Ops<Self::State, N>,
        gradients: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let gradient = plain::<B>(gradients.consume::<B>(&ops.node));
        let wanted = ops.parents.each_ref().map(Option::is_some);
        let (operation, inputs, saved, origin) = ops.state;
        let within = origin.backward(&wanted);
        let results = operation.backward(inputs, saved, gradient, wanted);
        drop(within);
        for (parent, result) in ops.parents.into_iter().zip(results) {
            if let (Some(parent), Some(result)) = (parent, result) {
                gradients.register::<B>(parent.id, primitive::<B>(result));
            }
        }
    }
}
