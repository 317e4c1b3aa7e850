//! cuBLASLt on CubeCL's stream and buffers, so that products take their turn among its kernels without waiting for the host.
//!
//! Everything here but [`launch`] runs on the thread of CubeCL that owns the device, where the CUDA context is current.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    ffi::c_void,
    mem,
    ptr::{from_mut, from_ref},
    sync::Mutex,
};

use burn::{backend::fusion::custom::StreamId, tensor::DType};
use burn_cubecl::{
    cubecl::{
        cuda::CudaRuntime,
        device::DeviceId,
        device_handle::DeviceHandle,
        server::{BufferBinding, ServerStorage},
    },
    tensor::CubeTensor,
};
use cubecl_runtime::runtime::Runtime;
use cudarc::{
    cublaslt::{
        result::{
            create_handle, create_matmul_desc, create_matmul_pref, create_matrix_layout,
            destroy_matmul_pref, matmul, set_matmul_desc_attribute, set_matmul_pref_attribute,
        },
        sys::{
            self, cublasComputeType_t, cublasLtMatmulDescAttributes_t as DescriptionKey,
            cublasLtMatmulPreferenceAttributes_t as PreferenceKey, cudaDataType,
        },
    },
    driver::result::malloc_sync,
};

use super::{
    ProductError, ProductStrategy,
    operand::{Layout, Layouts},
    refused, stream,
};

/// CubeCL's side of a CUDA device.
type Server = <CudaRuntime as Runtime>::Server;

/// Bytes that cuBLASLt may use beside the matrices: NVIDIA's recommendation for Hopper.
const WORKSPACE: usize = 32 << 20;

/// Products that have been computed before, and are therefore queued without waiting for their success.
static KNOWN: Mutex<Option<HashSet<(DeviceId, Key)>>> = Mutex::new(None);

/// The first failure of a queued product, which has nobody to be returned to.
static FAILED: Mutex<Option<String>> = Mutex::new(None);

thread_local! {
    static LIBRARY: RefCell<Option<Library>> = const { RefCell::new(None) };
}

/// What a plan depends on, beside the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    layouts: Layouts,
    proposal: u8,
}

/// Queues a product. The first of its kind waits for the library to be opened and to say how it will compute it.
pub(super) fn launch(
    layouts: Layouts,
    proposal: u8,
    [lhs, rhs, output]: [&CubeTensor; 3],
) -> Result<(), ProductError> {
    let strategy = ProductStrategy::CublasLt { proposal };
    let service = lhs.client.service_id();
    if lhs.client.name() != "cuda" {
        return Err(refused(strategy, format!("the device is one of {}", lhs.client.name())));
    }
    if let Some(error) = failed().as_deref() {
        return Err(ProductError::Device(format!("an earlier product of cuBLASLt: {error}")));
    }
    if layouts.m == 0 || layouts.n == 0 || layouts.k == 0 {
        return Err(refused(strategy, "the product is empty"));
    }
    let key = Key { layouts, proposal };
    let device = DeviceHandle::<Server>::new(service.device);
    let bindings = [lhs, rhs, output].map(|x| x.handle.clone().binding());
    let stream = StreamId::current();
    if known(|known| known.contains(&(service.device, key))) {
        device.submit(move |server| {
            if let Err(error) = enqueue(server, key, bindings, stream) {
                failed().get_or_insert(error);
            }
        });
        return Ok(());
    }
    device
        .submit_blocking(move |server| enqueue(server, key, bindings, stream))
        .map_err(|error| refused(strategy, format!("{error:?}")))?
        .map_err(|reason| refused(strategy, reason))?;
    known(|known| known.insert((service.device, key)));
    Ok(())
}

fn known<R>(with: impl FnOnce(&mut HashSet<(DeviceId, Key)>) -> R) -> R {
    let mut known = KNOWN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    with(known.get_or_insert_default())
}

fn failed() -> std::sync::MutexGuard<'static, Option<String>> {
    FAILED.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Puts the product into CubeCL's stream, behind what writes its inputs.
fn enqueue(
    server: &mut Server,
    key: Key,
    bindings: [BufferBinding; 3],
    stream: StreamId,
) -> Result<(), String> {
    let mut pointers = [0; 3];
    for (pointer, binding) in pointers.iter_mut().zip(&bindings) {
        let buffer = server
            .get_resource(binding.clone(), stream)
            .map_err(|error| format!("a matrix can't be reached: {error}"))?;
        *pointer = buffer.resource().ptr;
    }
    LIBRARY.with_borrow_mut(|library| {
        let library = match library {
            Some(library) => library,
            None => library.insert(Library::open()?),
        };
        library.multiply(server, stream, key, pointers)
    })?;
    // Matrices of another stream stay allocated until this one has passed.
    for binding in bindings.into_iter().filter(|binding| binding.stream != stream) {
        server.get_resource(binding, stream).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// cuBLASLt, opened, with what it keeps for one device.
struct Library {
    handle: sys::cublasLtHandle_t,
    streams: HashMap<StreamId, Stream>,
    /// By how many bytes each of the three matrices is aligned, too.
    plans: HashMap<(Key, [u32; 3]), Plan>,
}

#[derive(Clone, Copy)]
struct Stream {
    raw: sys::cudaStream_t,
    workspace: u64,
}

impl Library {
    fn open() -> Result<Self, String> {
        // SAFETY: only tries to open each candidate.
        if !unsafe { sys::is_culib_present() } {
            return Err("libcublasLt is not installed".to_owned());
        }
        let handle = create_handle().map_err(|error| format!("cublasLtCreate: {error}"))?;
        Ok(Self { handle, streams: HashMap::new(), plans: HashMap::new() })
    }

    fn multiply(
        &mut self,
        server: &Server,
        id: StreamId,
        key: Key,
        [lhs, rhs, output]: [u64; 3],
    ) -> Result<(), String> {
        let stream = match self.streams.get(&id) {
            Some(stream) => *stream,
            None => {
                let raw = stream::raw(server, id).ok_or("CubeCL's stream was not found")?;
                // SAFETY: the context is current.
                let workspace = unsafe { malloc_sync(WORKSPACE) }
                    .map_err(|error| format!("no memory for the workspace: {error}"))?;
                let stream = Stream { raw: raw as sys::cudaStream_t, workspace };
                self.streams.insert(id, stream);
                stream
            }
        };
        let alignments = [lhs, rhs, output].map(|pointer| 1 << pointer.trailing_zeros().min(8));
        let plan = match self.plans.get(&(key, alignments)) {
            Some(plan) => *plan,
            None => {
                let plan = Plan::new(self.handle, key, alignments)?;
                self.plans.insert((key, alignments), plan);
                plan
            }
        };
        let (alpha, beta) = (1.0f32, 0.0f32);
        // SAFETY: the pointers are of live buffers of the shapes in the plan, whose writers are ahead in the stream.
        unsafe {
            matmul(
                self.handle,
                plan.description,
                from_ref(&alpha).cast(),
                from_ref(&beta).cast(),
                rhs as *const c_void,
                plan.rhs,
                lhs as *const c_void,
                plan.lhs,
                output as *const c_void,
                plan.output,
                output as *mut c_void,
                plan.output,
                &plan.algorithm,
                stream.workspace as *mut c_void,
                WORKSPACE,
                stream.raw,
            )
        }
        .map_err(|error| format!("cublasLtMatmul: {error}"))
    }
}

/// How the library computes products of one kind. Lives as long as the process.
///
/// The library counts down columns: to it each matrix of rows is its transpose, and the product is `outputᵀ = rhsᵀ·lhsᵀ`.
#[derive(Clone, Copy)]
struct Plan {
    description: sys::cublasLtMatmulDesc_t,
    lhs: sys::cublasLtMatrixLayout_t,
    rhs: sys::cublasLtMatrixLayout_t,
    output: sys::cublasLtMatrixLayout_t,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

impl Plan {
    fn new(
        handle: sys::cublasLtHandle_t,
        Key { layouts, proposal }: Key,
        alignments: [u32; 3],
    ) -> Result<Self, String> {
        let Layouts { m, n, k, lhs, rhs, output, factors, result } = layouts;
        let compute = match factors {
            DType::F32 => cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32,
            _ => cublasComputeType_t::CUBLAS_COMPUTE_32F,
        };
        let named = |error| format!("cuBLASLt's description of the product: {error}");
        let description = create_matmul_desc(compute, cudaDataType::CUDA_R_32F).map_err(named)?;
        for (name, layout) in [
            (DescriptionKey::CUBLASLT_MATMUL_DESC_TRANSA, rhs),
            (DescriptionKey::CUBLASLT_MATMUL_DESC_TRANSB, lhs),
        ] {
            let operation = i32::from(layout.transposed);
            // SAFETY: the attribute is an int32.
            unsafe {
                set_matmul_desc_attribute(
                    description,
                    name,
                    from_ref(&operation).cast(),
                    size_of::<i32>(),
                )
            }
            .map_err(named)?;
        }
        let stored = |dtype, layout: Layout, [rows, columns]: [usize; 2]| {
            let [across, down] = if layout.transposed { [rows, columns] } else { [columns, rows] };
            create_matrix_layout(data_type(dtype), across as u64, down as u64, layout.stride as i64)
                .map_err(named)
        };
        let lhs = stored(factors, lhs, [m, k])?;
        let rhs = stored(factors, rhs, [k, n])?;
        let output = stored(result, output, [m, n])?;
        let found = proposals(handle, description, [rhs, lhs, output], alignments)?;
        let algorithm = found.get(usize::from(proposal)).ok_or_else(|| {
            format!("cuBLASLt has {} ways to compute it, wanted was number {proposal}", found.len())
        })?;
        Ok(Self { description, lhs, rhs, output, algorithm: algorithm.algo })
    }
}

/// The library's proposals for a product, the one that it expects to be fastest first.
fn proposals(
    handle: sys::cublasLtHandle_t,
    description: sys::cublasLtMatmulDesc_t,
    [a, b, c]: [sys::cublasLtMatrixLayout_t; 3],
    [lhs, rhs, output]: [u32; 3],
) -> Result<Vec<sys::cublasLtMatmulHeuristicResult_t>, String> {
    const MOST: usize = super::PROPOSALS as usize;
    let named = |error| format!("cuBLASLt's choice of an algorithm: {error}");
    let preference = create_matmul_pref().map_err(named)?;
    let set = |name, bytes: *const c_void, size| {
        // SAFETY: the bytes are of the attribute's type.
        unsafe { set_matmul_pref_attribute(preference, name, bytes, size) }.map_err(named)
    };
    set(
        PreferenceKey::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
        from_ref(&WORKSPACE).cast(),
        size_of::<usize>(),
    )?;
    for (name, bytes) in [
        (PreferenceKey::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, rhs),
        (PreferenceKey::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, lhs),
        (PreferenceKey::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, output),
        (PreferenceKey::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, output),
    ] {
        set(name, from_ref(&bytes).cast(), size_of::<u32>())?;
    }
    // SAFETY: zeros are a result of no algorithm, in the state of success.
    let mut found: [sys::cublasLtMatmulHeuristicResult_t; MOST] = unsafe { mem::zeroed() };
    let mut count = 0;
    // SAFETY: `found` has room for as many as are asked for, and everything else was made above.
    unsafe {
        sys::cublasLtMatmulAlgoGetHeuristic(
            handle,
            description,
            a,
            b,
            c,
            c,
            preference,
            MOST as i32,
            from_mut(&mut found).cast(),
            &mut count,
        )
        .result()
        .map_err(named)?;
        destroy_matmul_pref(preference).map_err(named)?;
    }
    let usable = found.into_iter().take(count as usize).filter(|one| one.state.result().is_ok());
    Ok(usable.collect())
}

fn data_type(dtype: DType) -> cudaDataType {
    match dtype {
        DType::BF16 => cudaDataType::CUDA_R_16BF,
        DType::F16 => cudaDataType::CUDA_R_16F,
        _ => cudaDataType::CUDA_R_32F,
    }
}
