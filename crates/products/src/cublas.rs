//! cuBLASLt on CubeCL's own stream and buffers: products are ordered with CubeCL's kernels without a host synchronisation.
//!
//! Everything but [`launch`] runs on CubeCL's device thread, where the CUDA context is current.

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
            set_matrix_layout_attribute,
        },
        sys::{
            self, cublasComputeType_t, cublasLtMatmulDescAttributes_t as DescriptionKey,
            cublasLtMatmulPreferenceAttributes_t as PreferenceKey,
            cublasLtMatrixLayoutAttribute_t as LayoutKey, cudaDataType,
        },
    },
    driver::result::malloc_sync,
};

use crate::{
    ProductError, ProductStrategy, Write,
    operand::{Layout, Layouts},
    refused, stream,
};

/// CubeCL's server of a CUDA device.
type Server = <CudaRuntime as Runtime>::Server;

/// Bytes; NVIDIA's recommendation for Hopper.
const WORKSPACE: usize = 32 << 20;

/// Products that already have a plan; they are queued without waiting for the device thread.
static KNOWN: Mutex<Option<HashSet<(DeviceId, Key)>>> = Mutex::new(None);

/// The first error of a product that was queued without waiting; the next product returns it.
static FAILED: Mutex<Option<String>> = Mutex::new(None);

thread_local! {
    static LIBRARY: RefCell<Option<Library>> = const { RefCell::new(None) };
}

/// What a plan depends on, besides device and alignments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    layouts: Layouts,
    algorithm: Algorithm,
}

/// Which of the library's algorithms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Algorithm {
    /// Its rank in the library's heuristic.
    pub proposal: u8,
    /// Whether float32 operands may be rounded to TF32.
    pub tf32: bool,
}

/// Queues a product. The first one of each key waits until the library is loaded and has chosen an algorithm.
pub(super) fn launch(
    layouts: Layouts,
    algorithm: Algorithm,
    write: Write,
    [lhs, rhs, output]: [&CubeTensor; 3],
) -> Result<(), ProductError> {
    let Algorithm { proposal, tf32 } = algorithm;
    let strategy = ProductStrategy::CublasLt { proposal, tf32 };
    let service = lhs.client.service_id();
    if lhs.client.name() != "cuda" {
        return Err(refused(strategy, format!("the device runs {}, not CUDA", lhs.client.name())));
    }
    if let Some(error) = failed().as_deref() {
        return Err(ProductError::Device(format!("an earlier product of cuBLASLt: {error}")));
    }
    let Layouts { batch, m, n, k, .. } = layouts;
    if [batch, m, n, k].contains(&0) {
        return Err(refused(strategy, "the product is empty"));
    }
    let key = Key { layouts, algorithm };
    let device = DeviceHandle::<Server>::new(service.device);
    let bindings = [lhs, rhs, output].map(|x| x.handle.clone().binding());
    let stream = StreamId::current();
    if known(|known| known.contains(&(service.device, key))) {
        device.submit(move |server| {
            if let Err(error) = enqueue(server, key, write, bindings, stream) {
                failed().get_or_insert(error);
            }
        });
        return Ok(());
    }
    device
        .submit_blocking(move |server| enqueue(server, key, write, bindings, stream))
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

/// Enqueues the product on CubeCL's stream, after the kernels that write its inputs.
fn enqueue(
    server: &mut Server,
    key: Key,
    write: Write,
    bindings: [BufferBinding; 3],
    stream: StreamId,
) -> Result<(), String> {
    let mut pointers = [0; 3];
    for (pointer, binding) in pointers.iter_mut().zip(&bindings) {
        let buffer = server
            .get_resource(binding.clone(), stream)
            .map_err(|error| format!("an operand has no buffer: {error}"))?;
        *pointer = buffer.resource().ptr;
    }
    LIBRARY.with_borrow_mut(|library| {
        let library = match library {
            Some(library) => library,
            None => library.insert(Library::open()?),
        };
        library.multiply(server, stream, key, write, pointers)
    })?;
    // Resolving a buffer of another stream once more keeps it allocated until the product is done.
    for binding in bindings.into_iter().filter(|binding| binding.stream != stream) {
        server.get_resource(binding, stream).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// A handle of cuBLASLt with workspaces and plans, for one device.
struct Library {
    handle: sys::cublasLtHandle_t,
    streams: HashMap<StreamId, Stream>,
    /// By key and the alignments of the three buffers, in bytes.
    plans: HashMap<(Key, [u32; 3]), Plan>,
}

#[derive(Clone, Copy)]
struct Stream {
    raw: sys::cudaStream_t,
    workspace: u64,
}

impl Library {
    fn open() -> Result<Self, String> {
        // SAFETY: only tries to load each candidate.
        if !unsafe { sys::is_culib_present() } {
            return Err("libcublasLt was not found".to_owned());
        }
        let handle = create_handle().map_err(|error| format!("cublasLtCreate: {error}"))?;
        Ok(Self { handle, streams: HashMap::new(), plans: HashMap::new() })
    }

    fn multiply(
        &mut self,
        server: &Server,
        id: StreamId,
        key: Key,
        write: Write,
        [lhs, rhs, output]: [u64; 3],
    ) -> Result<(), String> {
        let stream = match self.streams.get(&id) {
            Some(stream) => *stream,
            None => {
                let raw = stream::raw(server, id).ok_or("CubeCL's CUDA stream was not found")?;
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
        let alpha = 1.0f32;
        let beta = match write {
            Write::Over => 0.0f32,
            Write::Add => 1.0,
        };
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

/// Descriptors and algorithm of a product; kept for the life of the process.
///
/// The library is column-major: it sees each row-major matrix as its transpose, and computes `outputᵀ = rhsᵀ·lhsᵀ`.
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
        Key { layouts, algorithm: Algorithm { proposal, tf32 } }: Key,
        alignments: [u32; 3],
    ) -> Result<Self, String> {
        let Layouts { batch, m, n, k, lhs, rhs, output, factors, result } = layouts;
        let compute = match factors {
            DType::F32 if tf32 => cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32,
            _ => cublasComputeType_t::CUBLAS_COMPUTE_32F,
        };
        let named = |error| format!("cuBLASLt's descriptors: {error}");
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
            let stored = create_matrix_layout(
                data_type(dtype),
                across as u64,
                down as u64,
                layout.stride as i64,
            )
            .map_err(named)?;
            let (count, distance) = (batch as i32, layout.batch_stride as i64);
            // SAFETY: the first attribute is an int32, the second an int64.
            unsafe {
                set_matrix_layout_attribute(
                    stored,
                    LayoutKey::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT,
                    from_ref(&count).cast(),
                    size_of::<i32>(),
                )
                .map_err(named)?;
                set_matrix_layout_attribute(
                    stored,
                    LayoutKey::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                    from_ref(&distance).cast(),
                    size_of::<i64>(),
                )
                .map_err(named)?;
            }
            Ok::<_, String>(stored)
        };
        let lhs = stored(factors, lhs, [m, k])?;
        let rhs = stored(factors, rhs, [k, n])?;
        let output = stored(result, output, [m, n])?;
        let found = proposals(handle, description, [rhs, lhs, output], alignments)?;
        let algorithm = found.get(usize::from(proposal)).ok_or_else(|| {
            format!("cuBLASLt proposes {} algorithms, number {proposal} was requested", found.len())
        })?;
        Ok(Self { description, lhs, rhs, output, algorithm: algorithm.algo })
    }
}

/// The algorithms of the library's heuristic, the expected fastest first.
fn proposals(
    handle: sys::cublasLtHandle_t,
    description: sys::cublasLtMatmulDesc_t,
    [a, b, c]: [sys::cublasLtMatrixLayout_t; 3],
    [lhs, rhs, output]: [u32; 3],
) -> Result<Vec<sys::cublasLtMatmulHeuristicResult_t>, String> {
    const MOST: usize = crate::PROPOSALS as usize;
    let named = |error| format!("cuBLASLt's heuristic: {error}");
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
    // SAFETY: all zeros is a valid result, with the status of success.
    let mut found: [sys::cublasLtMatmulHeuristicResult_t; MOST] = unsafe { mem::zeroed() };
    let mut count = 0;
    // SAFETY: `found` has room for `MOST` results; the descriptors were created above.
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
