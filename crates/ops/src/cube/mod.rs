//! Kernels for the GPU backends, written in CubeCL: CUDA and WGPU run the same source. There is one where fusion needs several
//! passes over a large tensor; what is element-wise stays with fusion, and products stay with Burn.
//!
//! A [`Kernel`] says what it makes of its inputs and how it is launched; [`run`] puts it into Burn's queue of operations, where
//! fusion takes it for one that can't be fused.

pub(crate) mod attention;
pub(crate) mod divergence;
pub(crate) mod head;
mod matrix;
mod place;
pub(crate) mod pooled;
pub(crate) mod products;
pub(crate) mod rms_norm;
mod softcap;

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

/// Work of the device on tensors outside any graph.
pub(crate) trait Kernel<const N: usize, const M: usize>:
    Clone + std::fmt::Debug + Send + Sync + 'static
{
    /// Under which fusion knows it.
    const NAME: &'static str;

    /// Shapes and types of the outputs.
    fn outputs(&self, inputs: [&TensorSpec; N]) -> [TensorSpec; M];

    /// Queues what writes every element of the outputs.
    fn launch(&self, inputs: [Matrix; N], outputs: [Matrix; M]);
}

/// Whether the kernels take such a tensor: one on a GPU, and of a type that float32 holds exactly.
pub(crate) fn takes<const D: usize>(x: &Tensor<D>) -> bool {
    let of_type = matches!(x.dtype(), DType::F32 | DType::F16 | DType::BF16);
    of_type
        && match x.clone().into_dispatch().kind {
            DispatchTensorKind::Autodiff(inner) => matches!(*inner, DispatchTensorKind::Cube(_)),
            kind => matches!(kind, DispatchTensorKind::Cube(_)),
        }
}

/// [`takes`], and the tensor is outside any graph.
pub(crate) fn takes_outside_graph<const D: usize>(x: &Tensor<D>) -> bool {
    takes(x) && x.clone().into_dispatch().autodiff == DispatchAutodiffContext::Disabled
}

/// Queues a kernel.
///
/// # Panics
/// If an input is on another backend: a bug, because [`takes`] is asked first.
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

/// A kernel that waits for its turn.
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
        // A tensor of integers has the same handle.
        let inputs = self
            .inputs
            .each_ref()
            .map(|input| Matrix::new(handles.get_float_tensor::<CubeBackend>(input)));
        let like = inputs[0].tensor();
        let outputs = self.outputs.each_ref().map(|output| Matrix::empty(output, like));
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
