//! Kernels for the GPU backends in CubeCL; CUDA and WGPU run the same source. There is a kernel wherever fusion would need several
//! passes over a large tensor. Element-wise operations are left to fusion, and matrix products to Burn.
//!
//! A [`Kernel`] describes its outputs and how it is launched. [`run`] puts it into Burn's queue of operations, where fusion treats
//! it as an operation that can't be fused.

pub(crate) mod attention;
pub(crate) mod divergence;
pub(crate) mod gated;
pub(crate) mod head;
mod matrix;
mod place;
pub(crate) mod pooled;
pub(crate) mod products;
pub(crate) mod rms_norm;
pub(crate) mod rotary;
pub(crate) mod rows;
pub(crate) mod segments;
pub(crate) mod select;
mod softcap;
pub(crate) mod table;
pub(crate) mod update;

use burn::{
    backend::{
        BackendTensor, DispatchAutodiffContext, DispatchTensor, DispatchTensorKind, ExecutionError,
        fusion::{
            FusionTensor,
            custom::{
                CustomOpIr, HandleContainer, Operation, OperationIr, StreamId, TensorIr, TensorSpec,
            },
        },
    },
    tensor::{DType, Tensor},
};
use burn_cubecl::{
    CubeBackend,
    fusion::{CubeFusionHandle, FusionCubeRuntime},
};

use self::matrix::Matrix;
use crate::graph::Plain;

/// A kernel with `N` inputs and `M` outputs, on tensors outside any graph.
pub(crate) trait Kernel<const N: usize, const M: usize>:
    Clone + std::fmt::Debug + Send + Sync + 'static
{
    /// The name under which fusion registers it.
    const NAME: &'static str;

    /// Whether the outputs are the first inputs, written over. An input with another owner is copied first.
    const IN_PLACE: bool = false;

    /// Shapes and types of the outputs.
    fn outputs(&self, inputs: [&TensorSpec; N]) -> [TensorSpec; M];

    /// Launches the kernel, which writes every element of the outputs.
    fn launch(&self, inputs: [Matrix; N], outputs: [Matrix; M]);
}

/// A kernel with any number of inputs and outputs; otherwise as [`Kernel`].
pub(crate) trait KernelOfMany: Clone + std::fmt::Debug + Send + Sync + 'static {
    const NAME: &'static str;
    const IN_PLACE: bool = false;

    fn outputs(&self, inputs: &[TensorSpec]) -> Vec<TensorSpec>;

    fn launch(&self, inputs: Vec<Matrix>, outputs: Vec<Matrix>);
}

/// A [`Kernel`] as one of many.
#[derive(Clone, Debug)]
struct Fixed<K, const N: usize, const M: usize>(K);

impl<K: Kernel<N, M>, const N: usize, const M: usize> KernelOfMany for Fixed<K, N, M> {
    const NAME: &'static str = K::NAME;
    const IN_PLACE: bool = K::IN_PLACE;

    fn outputs(&self, inputs: &[TensorSpec]) -> Vec<TensorSpec> {
        self.0.outputs(std::array::from_fn(|i| &inputs[i])).into()
    }

    fn launch(&self, inputs: Vec<Matrix>, outputs: Vec<Matrix>) {
        self.0.launch(array(inputs), array(outputs));
    }
}

/// As many items as an array has.
pub(crate) fn array<T, const N: usize>(items: Vec<T>) -> [T; N] {
    let Ok(items) = items.try_into() else { unreachable!("as many as the kernel has") };
    items
}

/// Whether the kernels accept a tensor: on a GPU, and of a type that float32 represents exactly.
pub(crate) fn takes<const D: usize>(x: &Tensor<D>) -> bool {
    let of_type = matches!(x.dtype(), DType::F32 | DType::F16 | DType::BF16);
    of_type
        && match x.clone().into_dispatch().kind {
            DispatchTensorKind::Autodiff(inner) => matches!(*inner, DispatchTensorKind::Cube(_)),
            kind => matches!(kind, DispatchTensorKind::Cube(_)),
        }
}

/// [`takes`], for tensors outside any graph only.
pub(crate) fn takes_outside_graph<const D: usize>(x: &Tensor<D>) -> bool {
    takes(x) && x.clone().into_dispatch().autodiff == DispatchAutodiffContext::Disabled
}

/// Queues a kernel and returns its outputs.
///
/// # Panics
/// If an input is on another backend, which is a bug: callers check [`takes`] first.
pub(crate) fn run<K: Kernel<N, M>, const N: usize, const M: usize>(
    kernel: K,
    inputs: [Plain; N],
) -> [Plain; M] {
    array(run_of_many(Fixed::<K, N, M>(kernel), inputs.into()))
}

/// The same for any number of inputs, at least one, and outputs.
pub(crate) fn run_of_many<K: KernelOfMany>(kernel: K, inputs: Vec<Plain>) -> Vec<Plain> {
    let inputs: Vec<_> = inputs.into_iter().map(fused).collect();
    let client = inputs[0].client.clone();
    let specs: Vec<_> = inputs.iter().map(|x| TensorSpec::new(x.shape.clone(), x.dtype)).collect();
    let outputs = kernel.outputs(&specs).into_iter();
    let outputs = outputs
        .map(|spec| TensorIr::uninit(client.create_empty_handle(), spec.shape, spec.dtype))
        .collect::<Vec<_>>();
    let inputs: Vec<_> = inputs.into_iter().map(FusionTensor::into_ir).collect();
    let description = CustomOpIr::new(K::NAME, &inputs, &outputs);
    let queued = Queued { kernel, inputs, outputs };
    let outputs = client.register(StreamId::current(), OperationIr::Custom(description), queued);
    outputs.into_iter().map(plain).collect()
}

/// A kernel in the queue.
#[derive(Debug)]
struct Queued<K> {
    kernel: K,
    inputs: Vec<TensorIr>,
    outputs: Vec<TensorIr>,
}

impl<K: KernelOfMany> Operation<FusionCubeRuntime> for Queued<K> {
    fn execute(
        &self,
        handles: &mut HandleContainer<CubeFusionHandle>,
    ) -> Result<(), ExecutionError> {
        // Integer tensors have the same kind of handle.
        let inputs = self.inputs.iter();
        let mut inputs: Vec<_> = inputs
            .map(|input| Matrix::new(handles.get_float_tensor::<CubeBackend>(input)))
            .collect();
        let outputs: Vec<_> = if K::IN_PLACE {
            for input in &mut inputs[..self.outputs.len()] {
                input.make_owned();
            }
            inputs[..self.outputs.len()].to_vec()
        } else {
            let like = inputs[0].tensor();
            self.outputs.iter().map(|output| Matrix::empty(output, like)).collect()
        };
        if !outputs.iter().all(Matrix::is_empty) {
            self.kernel.launch(inputs, outputs.clone());
        }
        for (output, rows) in self.outputs.iter().zip(outputs) {
            handles.register_float_tensor::<CubeBackend>(&output.id, rows.into_tensor());
        }
        Ok(())
    }
}

fn plain(tensor: FusionTensor<FusionCubeRuntime>) -> Plain {
    Plain::from(DispatchTensor {
        kind: DispatchTensorKind::Cube(BackendTensor::Float(tensor)),
        autodiff: DispatchAutodiffContext::Disabled,
    })
}

fn fused(plain: Plain) -> FusionTensor<FusionCubeRuntime> {
    match DispatchTensor::from(plain).kind {
        DispatchTensorKind::Cube(BackendTensor::Float(tensor) | BackendTensor::Int(tensor)) => {
            tensor
        }
        _ => unreachable!("a kernel's inputs are on the GPU and outside the graph"),
    }
}
