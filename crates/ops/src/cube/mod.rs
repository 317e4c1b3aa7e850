//! Kernels for the GPU backends in CubeCL; CUDA and WGPU run the same source. There is a kernel wherever fusion would need several
//! passes over a large tensor. Element-wise operations are left to fusion, and matrix products to Burn.
//!
//! A [`Kernel`] describes its outputs and how it is launched. [`run`] puts it into Burn's queue of operations, where fusion treats
//! it as an operation that can't be fused.

pub(crate) mod attention;
pub(crate) mod divergence;
pub(crate) mod head;
mod matrix;
mod place;
pub(crate) mod pooled;
pub(crate) mod products;
pub(crate) mod rms_norm;
mod softcap;
pub(crate) mod update;

use burn::{
    backend::{
        BackendTensor, DispatchAutodiffContext, DispatchTensor, DispatchTensorKind, ExecutionError,
        fusion::{
            FusionTensor,
            custom::{
                CustomOpIr, HandleContainer, Operation, OperationIr, OperationOutput, StreamId,
                TensorIr, TensorSpec,
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
    let inputs = inputs.map(fused);
    let client = inputs[0].client.clone();
    let specs = inputs.each_ref().map(|x| TensorSpec::new(x.shape.clone(), x.dtype));
    let outputs = kernel
        .outputs(specs.each_ref())
        .map(|spec| TensorIr::uninit(client.create_empty_handle(), spec.shape, spec.dtype));
    let inputs = inputs.map(FusionTensor::into_ir);
    let description = CustomOpIr::new(K::NAME, &inputs, &outputs);
    let queued = Queued { kernel, inputs, outputs };
    client
        .register(StreamId::current(), OperationIr::Custom(description), queued)
        .outputs::<M>()
        .map(plain)
}

/// A kernel in the queue.
#[derive(Debug)]
struct Queued<K, const N: usize, const M: usize> {
    kernel: K,
    inputs: [TensorIr; N],
    outputs: [TensorIr; M],
}

impl<K: Kernel<N, M>, const N: usize, const M: usize> Operation<FusionCubeRuntime>
    for Queued<K, N, M>
{
    fn execute(
        &self,
        handles: &mut HandleContainer<CubeFusionHandle>,
    ) -> Result<(), ExecutionError> {
        // Integer tensors have the same kind of handle.
        let inputs = self
            .inputs
            .each_ref()
            .map(|input| Matrix::new(handles.get_float_tensor::<CubeBackend>(input)));
        let (inputs, outputs): (_, [Matrix; M]) = if K::IN_PLACE {
            let mut place = 0..;
            let inputs = inputs.map(|input| match place.next() < Some(M) {
                true => input.owned(),
                false => input,
            });
            let outputs = std::array::from_fn(|i| inputs[i].clone());
            (inputs, outputs)
        } else {
            let like = inputs[0].tensor();
            let outputs = self.outputs.each_ref().map(|output| Matrix::empty(output, like));
            (inputs, outputs)
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
