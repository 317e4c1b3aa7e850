//! Shared by the fast paths of the CPU backend Flex: from tensors to slices and back, with or without a graph.

pub(crate) mod blocks;
pub(crate) mod elementary;
pub(crate) mod logits;
pub(crate) mod matrix;

use std::{fmt::Debug, marker::PhantomData};

use burn::{
    backend::{
        Autodiff, AutodiffBackend, BackendTensor, DispatchAutodiffContext, DispatchTensor,
        DispatchTensorKind, Flex,
        autodiff::{
            checkpoint::{base::Checkpointer, strategy::NoCheckpointing},
            grads::Gradients,
            ops::{Backward, Ops, OpsKind},
        },
        flex::FlexTensor,
        tensor::FloatTensor,
    },
    tensor::{DType, Int, Shape, Tensor, TensorData},
};

use crate::{
    graph::Plain,
    profile::{self, Origin},
};

/// A differentiable operation on dense float32 tensors of Flex, with `N` inputs and one output.
pub(crate) trait Operation<const N: usize>: Clone + Debug + Send + 'static {
    /// What the backward pass needs from the forward pass.
    type Saved: Clone + Debug + Send;

    /// The output, and what to save for the backward pass.
    fn forward(&self, inputs: [FlexTensor; N]) -> (FlexTensor, Self::Saved);

    /// The gradients of the `wanted` inputs, given the gradient of the output.
    fn backward(
        &self,
        saved: Self::Saved,
        gradient: FlexTensor,
        wanted: [bool; N],
    ) -> [Option<FlexTensor>; N];
}

/// A float32 tensor on Flex, with its node of the graph if it uses autodiff.
pub(crate) enum Operand {
    Plain(FlexTensor),
    Autodiff(FloatTensor<Autodiff<Flex>>, DispatchAutodiffContext),
}

impl Operand {
    /// Whether a gradient reaches it.
    pub fn is_tracked(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Autodiff(tensor, _) => tensor.is_tracked(),
        }
    }
}

/// `tensor` as an operand of a fast path; `None` if it isn't a float32 tensor on Flex.
pub(crate) fn operand<const D: usize>(tensor: &Tensor<D>) -> Option<Operand> {
    if tensor.dtype() != DType::F32 {
        return None;
    }
    let DispatchTensor { kind, autodiff } = tensor.clone().into_dispatch();
    // Some arms are unreachable if Flex is the only backend compiled in.
    #[allow(unreachable_patterns)]
    match kind {
        DispatchTensorKind::Flex(BackendTensor::Float(tensor)) => Some(Operand::Plain(tensor)),
        DispatchTensorKind::Autodiff(inner) => match *inner {
            DispatchTensorKind::Flex(BackendTensor::Autodiff(tensor)) => {
                Some(Operand::Autodiff(tensor, autodiff))
            }
            _ => None,
        },
        _ => None,
    }
}

/// A float32 tensor on Flex in contiguous memory, outside any graph; `None` for another backend or type.
pub(crate) fn constant<const D: usize>(tensor: &Tensor<D>) -> Option<FlexTensor> {
    if tensor.dtype() != DType::F32 {
        return None;
    }
    match tensor.clone().without_autodiff().into_dispatch().kind {
        DispatchTensorKind::Flex(BackendTensor::Float(tensor)) => Some(tensor.to_contiguous()),
        _ => None,
    }
}

/// Whether a tensor is a float32 tensor on Flex, outside any graph.
pub(crate) fn is_plain<const D: usize>(tensor: &Tensor<D>) -> bool {
    matches!(operand(tensor), Some(Operand::Plain(_)))
}

/// Takes a tensor that [`is_plain`], in contiguous memory. A contiguous buffer isn't copied.
pub(crate) fn take<T: Into<Plain>>(tensor: T) -> FlexTensor {
    match DispatchTensor::from(tensor.into()).kind {
        DispatchTensorKind::Flex(BackendTensor::Float(tensor)) => {
            let whole = tensor.bytes().len() / size_of::<f32>();
            match tensor.layout().contiguous_offsets() {
                Some((0, end)) if end == whole => tensor,
                _ => tensor.to_contiguous(),
            }
        }
        _ => unreachable!("the caller checked `is_plain`"),
    }
}

/// The values of an integer tensor on Flex, checked to be in `0..bound`; `None` on another backend.
///
/// # Panics
/// If a value is out of bounds.
pub(crate) fn indices(
    tensor: &Tensor<1, Int>,
    bound: usize,
    operation: &str,
) -> Option<Vec<usize>> {
    // Irrefutable if Flex is the only backend compiled in.
    #[allow(irrefutable_let_patterns)]
    let DispatchTensorKind::Flex(_) = tensor.clone().into_dispatch().kind else {
        return None;
    };
    let values = tensor.to_data_as::<i64>();
    let values = values.as_slice::<i64>().expect("converted to i64 above");
    let checked = |&value: &i64| match usize::try_from(value) {
        Ok(index) if index < bound => index,
        _ => panic!("{operation}: the index {value} is not in 0..{bound}"),
    };
    Some(values.iter().map(checked).collect())
}

/// Runs `operation`, recorded in the graph if an operand is tracked; `None` if an operand can't take the fast path.
pub(crate) fn apply<const N: usize>(
    operation: impl Operation<N>,
    operands: [Option<Operand>; N],
) -> Option<DispatchTensor> {
    if operands.iter().any(Option::is_none) {
        return None;
    }
    let operands = operands.map(|operand| operand.expect("checked above"));
    let mut context = DispatchAutodiffContext::Disabled;
    for operand in &operands {
        if let Operand::Autodiff(_, other) = operand {
            context = context.merge(*other);
        }
    }
    if context == DispatchAutodiffContext::Disabled {
        let inputs = operands.map(|operand| match operand {
            Operand::Plain(tensor) => tensor.to_contiguous(),
            Operand::Autodiff(..) => unreachable!("its context is enabled"),
        });
        let sizes = profile::is_watched().then(|| inputs.each_ref().map(bytes).to_vec());
        let (output, _) = operation.forward(inputs);
        profile::origin(|| (sizes.unwrap_or_default(), bytes(&output)));
        return Some(plain(output));
    }

    let tensors = operands.map(|operand| match operand {
        Operand::Plain(tensor) => <Autodiff<Flex> as AutodiffBackend>::from_inner(tensor),
        Operand::Autodiff(tensor, _) => tensor,
    });
    let nodes = tensors.each_ref().map(|tensor| tensor.node());
    let inputs = tensors.map(|tensor| tensor.into_primitive().to_contiguous());
    let sizes = profile::is_watched().then(|| inputs.each_ref().map(bytes).to_vec());
    let (output, saved) = operation.forward(inputs);
    let origin = profile::origin(|| (sizes.unwrap_or_default(), bytes(&output)));
    let step = Step { operation: PhantomData };
    // The checkpointing strategy only matters for operations that may be recomputed; these are marked as compute-bound.
    let output = match Backward::<Flex, N>::prepare::<NoCheckpointing>(step, nodes)
        .compute_bound()
        .stateful()
    {
        OpsKind::Tracked(prepared) => prepared.finish((operation, saved, origin), output),
        OpsKind::UnTracked(prepared) => prepared.finish(output),
    };
    Some(DispatchTensor {
        kind: DispatchTensorKind::Autodiff(Box::new(DispatchTensorKind::Flex(
            BackendTensor::Autodiff(output),
        ))),
        autodiff: context,
    })
}

/// An [`Operation`] as a node of the graph.
struct Step<O> {
    operation: PhantomData<O>,
}

impl<O> Debug for Step<O> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(std::any::type_name::<O>())
    }
}

impl<O: Operation<N>, const N: usize> Backward<Flex, N> for Step<O> {
    type State = (O, O::Saved, Origin);

    fn backward(
        self,
        ops: Ops<Self::State, N>,
        gradients: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let gradient = gradients.consume::<Flex>(&ops.node).to_contiguous();
        let wanted = ops.parents.each_ref().map(Option::is_some);
        let (operation, saved, origin) = ops.state;
        let within = origin.backward(&wanted);
        let results = operation.backward(saved, gradient, wanted);
        drop(within);
        for (parent, result) in ops.parents.into_iter().zip(results) {
            if let (Some(parent), Some(result)) = (parent, result) {
                gradients.register::<Flex>(parent.id, result);
            }
        }
    }
}

/// What a float32 tensor takes in memory.
fn bytes(tensor: &FlexTensor) -> f64 {
    (tensor.layout().shape().num_elements() * size_of::<f32>()) as f64
}

/// A Flex tensor outside any graph, for the high-level tensor type.
pub(crate) fn plain(tensor: FlexTensor) -> DispatchTensor {
    DispatchTensor {
        kind: DispatchTensorKind::Flex(BackendTensor::Float(tensor)),
        autodiff: DispatchAutodiffContext::Disabled,
    }
}

/// `values` as a tensor of the given shape.
pub(crate) fn tensor(values: Vec<f32>, shape: impl Into<Shape>) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape.into()))
}

/// The values of a contiguous float32 tensor.
pub(crate) fn values(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice().expect("contiguous float32 by construction")
}

/// Values as tensors with the shapes of `like`.
pub(crate) fn tensors_like<const N: usize>(
    values: [Option<Vec<f32>>; N],
    like: &[FlexTensor; N],
) -> [Option<FlexTensor>; N] {
    let mut like = like.iter();
    values.map(|values| {
        let shape = like.next()?.layout().shape().clone();
        values.map(|values| tensor(values, shape))
    })
}
