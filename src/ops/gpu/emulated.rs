//! The kernels on the CPU, for the tests: compiled with the machine's C++ compiler on top of `emulation.h` and called in
//! the place of a GPU's, on tensors of the CPU.

use super::matmul::Product;
use super::{Arg, Launch, Pointer, View};
use crate::ops::matmul::{Form, matmul_in_task};
use crate::ops::storage::{Mat, MatMut};
use candle_core::{CpuStorage, DType, Result, Storage, bail};
use half::bf16;
use std::cell::Cell;
use std::ffi::c_void;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, OnceLock};

thread_local! {
    static ON: Cell<bool> = const { Cell::new(false) };
}

pub(super) fn is_on() -> bool {
    ON.get()
}

/// Runs `f` as if the tensors of this thread lived on a GPU.
pub(crate) fn emulate<R>(f: impl FnOnce() -> R) -> R {
    struct Off;
    impl Drop for Off {
        fn drop(&mut self) {
            ON.set(false);
        }
    }
    ON.set(true);
    let _off = Off;
    f()
}

/// Bytes at an address that suits every type.
pub(crate) struct Bytes {
    words: Vec<u128>,
}

impl Bytes {
    pub fn as_ptr(&self) -> *const u8 {
        self.words.as_ptr().cast()
    }

    pub fn fill(&mut self, words: &[u32]) {
        bytemuck::cast_slice_mut(&mut self.words)[..words.len()].copy_from_slice(words);
    }

    pub fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.words)
    }
}

pub(super) fn upload(bytes: &[u8]) -> Bytes {
    let mut words = vec![0u128; bytes.len().div_ceil(16) + 1];
    bytemuck::cast_slice_mut(&mut words)[..bytes.len()].copy_from_slice(bytes);
    Bytes { words }
}

pub(super) fn storage(storage: &Storage) -> Result<(Pointer, usize)> {
    match storage {
        Storage::Cpu(CpuStorage::F32(values)) => Ok((Pointer(values.as_ptr() as u64), values.len())),
        Storage::Cpu(CpuStorage::BF16(values)) => Ok((Pointer(values.as_ptr() as u64), values.len())),
        _ => bail!("expected a tensor of f32 or bf16"),
    }
}

type Kernel = unsafe extern "C" fn(*const u32, u32, u32, *mut *mut c_void);

/// The compiled kernels. Only one runs at a time: the threads of a block share static memory.
static LIBRARY: OnceLock<Mutex<libloading::Library>> = OnceLock::new();

fn build() -> libloading::Library {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops/gpu/kernels.cu");
    let folder = tempfile::tempdir().expect("a folder for the kernels");
    let library = folder.path().join("kernels.so");
    // The one that `build.rs` found.
    let compiler = env!("EMULATION_CXX");
    let status = Command::new(compiler)
        .args(["-O1", "-std=c++17", "-DCANDLEWICK_EMULATION", "-x", "c++", "-fPIC", "-shared", "-Wall", "-Werror"])
        .args(["-Wno-unknown-pragmas", "-o"])
        .args([&library, &source])
        .status();
    match status {
        Ok(status) => assert!(status.success(), "{compiler} could not compile {}", source.display()),
        Err(error) => panic!("{compiler}: {error}"),
    }
    // SAFETY: nothing runs when it is loaded.
    unsafe { libloading::Library::new(&library) }.expect("the compiled kernels")
}

pub(super) fn launch(kernel: &str, launch: Launch, args: &[Arg<'_>]) -> Result<()> {
    let library = LIBRARY.get_or_init(|| Mutex::new(build())).lock().expect("no kernel has panicked");
    let mut params: Vec<*mut c_void> = args.iter().map(|arg| arg.0.cast_mut()).collect();
    // SAFETY: the name is that of a kernel, and the callers hand it the arguments that it declares.
    unsafe {
        let Ok(call) = library.get::<Kernel>(format!("emulated_{kernel}").as_bytes()) else {
            bail!("there is no kernel {kernel}");
        };
        call(launch.blocks.as_ptr(), launch.threads, launch.shared, params.as_mut_ptr());
    }
    Ok(())
}

/// The product on f32 copies of the operands.
pub(super) fn product(product: Product<'_>) -> Result<()> {
    let Product { m, n, k, form, dst, a, b, accumulate } = product;
    let (a_shape, b_shape) = match form {
        Form::Nt => ((m, k), (n, k)),
        Form::Nn => ((m, k), (k, n)),
        Form::Tn => ((k, m), (k, n)),
    };
    // SAFETY: the caller has checked the sizes against the memory behind the pointers.
    let (a, b, mut sum) = unsafe { (read(a, a_shape), read(b, b_shape), read(dst, (m, n))) };
    let (a, b) = (Mat::new(&a, a_shape.0, a_shape.1), Mat::new(&b, b_shape.0, b_shape.1));
    matmul_in_task(&mut MatMut::new(&mut sum, m, n), a, b, form, accumulate)?;
    for (i, value) in sum.into_iter().enumerate() {
        let index = i / n * dst.1.matrix.stride as usize + i % n;
        // SAFETY: as above.
        unsafe {
            match dst.1.dtype {
                DType::BF16 => *(dst.0.0 as *mut bf16).add(index) = bf16::from_f32(value),
                _ => *(dst.0.0 as *mut f32).add(index) = value,
            }
        }
    }
    Ok(())
}

/// A matrix of this shape from an address on.
///
/// # Safety
/// There is one.
unsafe fn read((at, view): (Pointer, View<'_>), (rows, cols): (usize, usize)) -> Vec<f32> {
    let index = |i: usize| i / cols * view.matrix.stride as usize + i % cols;
    let values = 0..rows * cols;
    match view.dtype {
        // SAFETY: the caller's promise.
        DType::BF16 => values.map(|i| unsafe { *(at.0 as *const bf16).add(index(i)) }.to_f32()).collect(),
        // SAFETY: as above.
        _ => values.map(|i| unsafe { *(at.0 as *const f32).add(index(i)) }).collect(),
    }
}
