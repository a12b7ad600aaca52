//! One GPU with its stream, its memory, our kernels (`clt/kernels/cuda`) and cuBLAS.
//!
//! Everything of a step goes into one stream in order, so that nothing here waits; what leaves the device
//! ([`Buffer::read`]) does. The kernels are compiled to PTX for compute capability 7.5 (`kernels.ptx`, checked against
//! its source by `./x build-cuda`) and assembled by the driver for the card at hand. Products are cuBLAS'.

mod gemm;
mod kernel;

pub(crate) use gemm::{Operand, Product};
pub(crate) use kernel::{Kernel, Kernels};

use crate::device;
use crate::error::{Error, ErrorKind, Result};
use candle_core::cuda_backend::cudarc::driver::{sys, CudaEvent, CudaFunction, CudaSlice, CudaStream, DevicePtr, DeviceRepr, DriverError, LaunchConfig, PinnedHostSlice, ValidAsZeroBits};
use candle_core::{CudaDevice, DType, Device, Storage, Tensor};
use half::bf16;
use std::collections::hash_map::{Entry, HashMap};
use std::sync::{Arc, Mutex};

const PTX: &str = include_str!("../../clt/kernels/cuda/kernels.ptx");

/// How numbers of one kind are stored on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    F32,
    Bf16,
}

impl Stored {
    /// The end of a kernel's name.
    pub fn name(self) -> &'static str {
        match self {
            Stored::F32 => "f32",
            Stored::Bf16 => "bf16",
        }
    }

    pub fn bytes(self) -> usize {
        match self {
            Stored::F32 => 4,
            Stored::Bf16 => 2,
        }
    }
}

/// An address on the device, as kernels take it; 0 for none.
pub(crate) type At = u64;

/// One GPU. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Gpu(Arc<Inner>);

struct Inner {
    device: CudaDevice,
    stream: Arc<CudaStream>,
    functions: Mutex<HashMap<Kernel, CudaFunction>>,
    /// Whether products of f32 may round their factors to TF32.
    tf32: bool,
}

/// What the driver said, with what was asked of it.
pub(crate) fn fault(what: &str, error: DriverError) -> Error {
    let kind = match error.0 {
        sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => ErrorKind::OutOfMemory,
        sys::CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION | sys::CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU | sys::CUresult::CUDA_ERROR_INVALID_PTX => ErrorKind::Unsupported,
        _ => ErrorKind::Tensor,
    };
    let error = Error::new(kind, format!("GPU: {what}: {:?}", error.0)).caused_by(error);
    match kind {
        ErrorKind::OutOfMemory => error.help("use fewer features or tokens in a step, moments in eight bits, or weights in bf16"),
        ErrorKind::Unsupported => error.help("update the driver: CUDA 13.0 needs version 580 or later"),
        _ => error,
    }
}

impl Gpu {
    /// The device behind candle's; its products are as [`device::tf32`] says now.
    ///
    /// # Errors
    /// `Unsupported` for a device that is no GPU, or that [`device::cuda`] did not open.
    pub fn of(device: &Device) -> Result<Self> {
        device::require_own(device)?;
        let Device::Cuda(device) = device else {
            return Err(Error::expected(ErrorKind::Unsupported, "device", "the CPU", "a CUDA device").help("take it from cltlab::device::cuda(0)"));
        };
        let stream = device.cuda_stream();
        Ok(Gpu(Arc::new(Inner { device: device.clone(), stream, functions: Mutex::default(), tf32: device::tf32() })))
    }

    /// Bytes that can be had, and all that there are.
    pub fn memory(&self) -> Result<(u64, u64)> {
        device::memory(self.0.stream.context()).map_err(|error| fault("ask for free memory", error))
    }

    /// Bytes that are taken from the device, those kept for reuse among them, by everyone.
    pub fn taken(&self) -> Result<u64> {
        let (free, total) = self.0.stream.context().mem_get_info().map_err(|error| fault("ask for free memory", error))?;
        Ok((total - free) as u64)
    }

    /// The card's name.
    pub fn name(&self) -> Result<String> {
        self.0.stream.context().name().map_err(|error| fault("ask for the name", error))
    }

    /// `n` zeros.
    pub fn zeros<T: DeviceRepr + ValidAsZeroBits>(&self, n: usize) -> Result<Buffer<T>> {
        // Nothing of length 0 has an address.
        let zeros = || self.0.stream.alloc_zeros(n.max(1));
        let slice = zeros().or_else(|error| {
            // Pieces that are kept for reuse may be too small, and in the way.
            if error.0 != sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
                return Err(error);
            }
            self.0.stream.synchronize()?;
            device::trim(self.0.stream.context());
            zeros()
        });
        let slice = slice.map_err(|error| self.refused(n * std::mem::size_of::<T>(), error))?;
        Ok(Buffer { slice, gpu: self.clone() })
    }

    /// A copy of `values`.
    pub fn copy<T: DeviceRepr + ValidAsZeroBits>(&self, values: &[T]) -> Result<Buffer<T>> {
        let mut buffer = self.zeros(values.len())?;
        buffer.write(values)?;
        Ok(buffer)
    }

    fn refused(&self, bytes: usize, error: DriverError) -> Error {
        let free = self.memory().map_or_else(|_| "?".into(), |(free, _)| device::format_bytes(free));
        fault(&format!("{} asked for, {free} free", device::format_bytes(bytes as u64)), error)
    }

    /// Waits for everything that was asked for.
    pub fn wait(&self) -> Result<()> {
        self.0.stream.synchronize().map_err(|error| fault("wait", error))
    }

    /// Where a tensor of f32 lies on the device, which must be contiguous.
    pub fn place(&self, tensor: &Tensor) -> Result<At> {
        match self.find(tensor)? {
            (at, Stored::F32) => Ok(at),
            (_, Stored::Bf16) => Err(Error::new(ErrorKind::Tensor, "GPU: a tensor: got bf16, expected f32")),
        }
    }

    /// Where a tensor lies on the device, which must be contiguous, and how.
    pub fn find(&self, tensor: &Tensor) -> Result<(At, Stored)> {
        let (storage, layout) = tensor.storage_and_layout();
        match (&*storage, layout.contiguous_offsets(), tensor.dtype()) {
            (Storage::Cuda(values), Some((start, _)), DType::F32) => Ok((values.as_cuda_slice::<f32>()?.device_ptr(&self.0.stream).0 + 4 * start as u64, Stored::F32)),
            (Storage::Cuda(values), Some((start, _)), DType::BF16) => Ok((values.as_cuda_slice::<bf16>()?.device_ptr(&self.0.stream).0 + 2 * start as u64, Stored::Bf16)),
            _ => Err(Error::new(ErrorKind::Tensor, "a contiguous tensor of f32 or bf16 on the GPU was needed")),
        }
    }

    pub(super) fn inner(&self) -> (&CudaDevice, bool) {
        (&self.0.device, self.0.tf32)
    }

    /// Starts `kernel` with `arguments`, each the address of a value as the kernel's parameter has it.
    ///
    /// # Safety
    /// The arguments must be those of the kernel, and every address must lie in a buffer that outlives it.
    pub unsafe fn launch(&self, kernel: Kernel, grid: (usize, usize), block: usize, arguments: &[&dyn Argument]) -> Result<()> {
        if grid.0 == 0 || grid.1 == 0 {
            return Ok(());
        }
        let mut functions = self.0.functions.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let name = kernel.name();
        let function = match functions.entry(kernel) {
            Entry::Occupied(loaded) => loaded.into_mut(),
            Entry::Vacant(place) => {
                let loaded = self.0.device.get_or_load_custom_func(name, "cltlab", PTX).map_err(|error| Error::from(error).context(format_args!("GPU: kernel {name}")))?;
                place.insert(loaded.into_cuda_function())
            }
        };
        let mut builder = self.0.stream.launch_builder(function);
        arguments.iter().for_each(|argument| argument.push(&mut builder));
        let config = LaunchConfig { grid_dim: (grid.0 as u32, grid.1 as u32, 1), block_dim: (block as u32, 1, 1), shared_mem_bytes: 0 };
        builder.launch(config).map(|_| ()).map_err(|error| fault(&format!("kernel {name}"), error))
    }
}

/// A value that a kernel takes.
pub(crate) trait Argument {
    fn push<'a>(&'a self, builder: &mut candle_core::cuda_backend::cudarc::driver::LaunchArgs<'a>);
}

impl<T: DeviceRepr> Argument for T {
    fn push<'a>(&'a self, builder: &mut candle_core::cuda_backend::cudarc::driver::LaunchArgs<'a>) {
        use candle_core::cuda_backend::cudarc::driver::PushKernelArg;
        builder.arg(self);
    }
}

/// `n` values on the device.
pub(crate) struct Buffer<T> {
    slice: CudaSlice<T>,
    gpu: Gpu,
}

impl<T: DeviceRepr + ValidAsZeroBits> Buffer<T> {
    pub fn len(&self) -> usize {
        self.slice.len()
    }

    /// Where it begins.
    pub fn at(&self) -> At {
        self.slice.device_ptr(&self.gpu.0.stream).0
    }

    /// Where its `index`-th value lies.
    pub fn from(&self, index: usize) -> At {
        assert!(index <= self.slice.len(), "within the buffer");
        self.at() + (index * std::mem::size_of::<T>()) as u64
    }

    /// Fills its beginning from the host.
    pub fn write(&mut self, values: &[T]) -> Result<()> {
        self.write_at(0, values)
    }

    /// Fills it from its `index`-th value on; waits where the driver may read `values` after it has returned.
    pub fn write_at(&mut self, index: usize, values: &[T]) -> Result<()> {
        // Up to here it copies them first, on every system.
        const COPIED: usize = 64 << 10;
        let Gpu(inner) = &self.gpu;
        let mut into = self.slice.slice_mut(index..index + values.len());
        inner.stream.memcpy_htod(values, &mut into).map_err(|error| fault("copy to the device", error))?;
        if std::mem::size_of_val(values) > COPIED { self.gpu.wait() } else { Ok(()) }
    }

    /// Everything in it, on the host; waits.
    pub fn read(&self) -> Result<Vec<T>> {
        self.read_first(self.len())
    }

    /// Its first `n` values, on the host; waits.
    pub fn read_first(&self, n: usize) -> Result<Vec<T>> {
        let values = self.gpu.0.stream.clone_dtoh(&self.slice.slice(..n)).map_err(|error| fault("copy from the device", error))?;
        // Not every system copies before it returns.
        self.gpu.wait()?;
        Ok(values)
    }

    /// Copies another of the same length.
    pub fn copy_from(&mut self, other: &Buffer<T>) -> Result<()> {
        self.gpu.0.stream.memcpy_dtod(&other.slice, &mut self.slice).map_err(|error| fault("copy on the device", error))
    }

    /// Sets everything to 0.
    pub fn clear(&mut self) -> Result<()> {
        self.gpu.0.stream.memset_zeros(&mut self.slice).map_err(|error| fault("clear", error))
    }

    /// Sets its first `n` values to 0.
    pub fn clear_first(&mut self, n: usize) -> Result<()> {
        self.gpu.0.stream.memset_zeros(&mut self.slice.slice_mut(..n)).map_err(|error| fault("clear", error))
    }

    /// Makes room for `n` values, of which none is kept, when there is less.
    pub fn fit(&mut self, n: usize) -> Result<()> {
        if self.len() < n {
            // The old one first: both may not fit.
            self.slice = self.gpu.zeros::<T>(0)?.slice;
            self.slice = self.gpu.zeros::<T>(n)?.slice;
        }
        Ok(())
    }
}

/// A number that the device sends while it goes on.
pub(crate) struct Sent {
    gpu: Gpu,
    host: PinnedHostSlice<u32>,
    arrived: Option<CudaEvent>,
}

impl Sent {
    pub fn new(gpu: &Gpu) -> Result<Self> {
        // SAFETY: it is read after it was written only.
        let host = unsafe { gpu.0.stream.context().alloc_pinned_with_flags(1, 0) }.map_err(|error| fault("memory on the host", error))?;
        Ok(Sent { gpu: gpu.clone(), host, arrived: None })
    }

    /// Asks for the number in `from`, as it is when everything that was asked for before is done.
    pub fn send(&mut self, from: &Buffer<u32>) -> Result<()> {
        let stream = &self.gpu.0.stream;
        stream.memcpy_dtoh(&from.slice.slice(..1), &mut self.host).map_err(|error| fault("copy from the device", error))?;
        self.arrived = Some(stream.record_event(None).map_err(|error| fault("event", error))?);
        Ok(())
    }

    /// Waits for it, not for what was asked for after it.
    pub fn wait(&self) -> Result<u32> {
        if let Some(arrived) = &self.arrived {
            arrived.synchronize().map_err(|error| fault("wait", error))?;
        }
        Ok(self.host.as_slice().map_err(|error| fault("wait", error))?[0])
    }
}

/// Numbers that are f32 or bf16.
pub(crate) enum Numbers {
    F32(Buffer<f32>),
    Bf16(Buffer<bf16>),
}

impl Numbers {
    pub fn zeros(gpu: &Gpu, stored: Stored, n: usize) -> Result<Self> {
        Ok(match stored {
            Stored::F32 => Numbers::F32(gpu.zeros(n)?),
            Stored::Bf16 => Numbers::Bf16(gpu.zeros(n)?),
        })
    }

    /// Rounded to nearest where they are bf16.
    pub fn copy(gpu: &Gpu, stored: Stored, values: &[f32]) -> Result<Self> {
        let mut numbers = Numbers::zeros(gpu, stored, values.len())?;
        numbers.write(values)?;
        Ok(numbers)
    }

    pub fn write(&mut self, values: &[f32]) -> Result<()> {
        self.write_at(0, values)
    }

    /// Fills it from its `index`-th number on.
    pub fn write_at(&mut self, index: usize, values: &[f32]) -> Result<()> {
        match self {
            Numbers::F32(buffer) => buffer.write_at(index, values),
            Numbers::Bf16(buffer) => {
                let mut narrow = vec![bf16::ZERO; values.len()];
                half::slice::HalfFloatSliceExt::convert_from_f32_slice(narrow.as_mut_slice(), values);
                buffer.write_at(index, &narrow)
            }
        }
    }

    pub fn read(&self) -> Result<Vec<f32>> {
        match self {
            Numbers::F32(buffer) => buffer.read(),
            Numbers::Bf16(buffer) => Ok(buffer.read()?.into_iter().map(bf16::to_f32).collect()),
        }
    }

    pub fn clear(&mut self) -> Result<()> {
        match self {
            Numbers::F32(buffer) => buffer.clear(),
            Numbers::Bf16(buffer) => buffer.clear(),
        }
    }

    pub fn fit(&mut self, n: usize) -> Result<()> {
        match self {
            Numbers::F32(buffer) => buffer.fit(n),
            Numbers::Bf16(buffer) => buffer.fit(n),
        }
    }

    pub fn at(&self) -> At {
        self.from(0)
    }

    pub fn from(&self, index: usize) -> At {
        match self {
            Numbers::F32(buffer) => buffer.from(index),
            Numbers::Bf16(buffer) => buffer.from(index),
        }
    }

    pub fn stored(&self) -> Stored {
        match self {
            Numbers::F32(_) => Stored::F32,
            Numbers::Bf16(_) => Stored::Bf16,
        }
    }
}
