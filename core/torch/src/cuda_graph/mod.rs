//! CUDA graphs for work that is repeated on the same tensors, such as decoding steps. Launching hundreds of small kernels takes
//! longer than running them; a CUDA graph launches them at once.
#![allow(unsafe_code, reason = "calls a C++ library that is opened on machines with a GPU")]

use std::ffi::{c_char, c_int, c_void};
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{FromRawFd as _, IntoRawFd as _};
use std::path::PathBuf;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use tch::{Cuda, Device};
use unirl_base::error::Result;

use crate::autograd;

/// The library compiled from `graph.cpp`, or the reason why it was not compiled.
#[cfg(cuda_graphs)]
const LIBRARY: Result<&[u8], &str> = Ok(include_bytes!(concat!(env!("OUT_DIR"), "/graph.so")));
#[cfg(not(cuda_graphs))]
const LIBRARY: Result<&[u8], &str> = Err(env!("UNIRL_NO_CUDA_GRAPHS"));

/// A function that is captured as a CUDA graph on a GPU, like torch's `make_graphed_callables`.
///
/// A replay launches the captured kernels with the same addresses and the same host values. Therefore the function must
///
/// - run only operations on the device, the same ones in every call, whatever the values;
/// - read and write tensors that exist before the first call and live as long as the graph. Write results in place (`copy_`,
///   `index_copy_`): tensors that the function creates are freed when it returns;
/// - not read values on the host (`double_value`, `int64_value`, `nonzero`, indexing by a mask, printing) and not copy from the
///   host. Keep values that change, such as a position, in a tensor on the device that is written before [`run`](Self::run) or by
///   the function;
/// - not draw random numbers: draw them before the call, into a tensor;
/// - not change host state: from the third call on it is not called;
/// - run without gradient (`tch::no_grad`).
///
/// A violation is an error if CUDA detects it; otherwise replays repeat the values of the capture.
#[derive(Debug)]
pub struct GraphedCallable {
    state: State,
}

#[derive(Debug)]
enum State {
    /// CUDA graphs are not available.
    Eager,
    /// Before the first call, in which libraries initialize themselves, which cannot be captured.
    WarmUp(&'static Shim, c_int),
    Ready(&'static Shim, c_int),
    Captured(Graph),
}

impl GraphedCallable {
    /// Creates a callable that has not been captured yet.
    pub fn new(device: Device) -> Self {
        let state = match device {
            Device::Cuda(index) => match shim() {
                Ok(shim) => State::WarmUp(shim, index as c_int),
                Err(_) => State::Eager,
            },
            _ => State::Eager,
        };
        Self { state }
    }

    /// Runs `work`, which must be the same function in every call. On a GPU the first call runs it, the second captures and
    /// replays it, and later calls only replay the graph. A call that fails does not count.
    ///
    /// On the CPU, without CUDA graphs ([`support`]) and during another capture every call runs `work`.
    pub fn run(&mut self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let (shim, index, capture) = match &self.state {
            State::Captured(graph) => return graph.replay(),
            State::Eager => return work(),
            State::WarmUp(shim, index) => (*shim, *index, false),
            State::Ready(shim, index) => (*shim, *index, true),
        };
        let Some(_lock) = CaptureLock::try_acquire() else { return work() };
        let graph = shim.begin(index, capture)?;
        work()?;
        graph.end()?;
        self.state = if capture {
            graph.replay()?;
            State::Captured(graph)
        } else {
            State::Ready(shim, index)
        };
        Ok(())
    }
}

/// Whether CUDA graphs are supported. The error says why they were not compiled in or, if a GPU is available, why the library
/// cannot be opened.
pub fn support() -> Result<(), String> {
    match Cuda::is_available() {
        true => shim().map(drop),
        false => LIBRARY.map(drop).map_err(str::to_owned),
    }
}

/// Held during a capture: libtorch supports one at a time.
struct CaptureLock;

static CAPTURING: AtomicBool = AtomicBool::new(false);

impl CaptureLock {
    fn try_acquire() -> Option<Self> {
        (!CAPTURING.swap(true, Ordering::Acquire)).then_some(Self)
    }
}

impl Drop for CaptureLock {
    fn drop(&mut self) {
        CAPTURING.store(false, Ordering::Release);
    }
}

type Begin = unsafe extern "C" fn(c_int, c_int, *mut *mut c_void) -> *mut c_char;
type Call = unsafe extern "C" fn(*mut c_void) -> *mut c_char;

/// The functions of `graph.cpp`.
#[derive(Debug)]
struct Shim {
    begin: Begin,
    end: Call,
    replay: Call,
    drop: Call,
}

/// Opens the library; a failure is logged once.
fn shim() -> Result<&'static Shim, String> {
    static SHIM: OnceLock<Result<Shim, String>> = OnceLock::new();
    let opened = SHIM.get_or_init(|| {
        let opened = LIBRARY.map_err(str::to_owned).and_then(Shim::open);
        if let Err(why) = &opened {
            tracing::warn!("CUDA graphs are not available, decoding is slower: {why}");
        }
        opened
    });
    opened.as_ref().map_err(Clone::clone)
}

impl Shim {
    /// Opens the library from memory, because directories for temporary files may be mounted `noexec`.
    fn open(bytes: &[u8]) -> Result<Self, String> {
        // SAFETY: the name is a C string, and the result is checked.
        let descriptor = unsafe { libc::memfd_create(c"unirl-cuda-graphs".as_ptr(), libc::MFD_CLOEXEC) };
        if descriptor < 0 {
            return Err(format!("cannot create a file in memory: {}", std::io::Error::last_os_error()));
        }
        // SAFETY: the descriptor is new and belongs to nobody else.
        let mut file = unsafe { File::from_raw_fd(descriptor) };
        file.write_all(bytes).map_err(|error| format!("cannot write a file in memory: {error}"))?;
        // The descriptor stays open: the linker identifies libraries by path, which must not be reused.
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.into_raw_fd()));
        let message = |error: libloading::Error| {
            std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string)
        };
        // SAFETY: the library is ours, and its constructors are those of the C++ standard library and libtorch's headers.
        let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }.map_err(message)?;
        // SAFETY: the signatures are those in `graph.cpp`, from which this library was compiled in the same build.
        let shim = unsafe {
            Self {
                begin: *library.get::<Begin>("unirl_graph_begin").map_err(message)?,
                end: *library.get::<Call>("unirl_graph_end").map_err(message)?,
                replay: *library.get::<Call>("unirl_graph_replay").map_err(message)?,
                drop: *library.get::<Call>("unirl_graph_drop").map_err(message)?,
            }
        };
        std::mem::forget(library); // the functions are called until the process ends
        Ok(shim)
    }

    /// Until `end`, captures the GPU operations of this thread, or runs them on a separate stream.
    fn begin(&'static self, index: c_int, capture: bool) -> Result<Graph> {
        let mut work = ptr::null_mut();
        // SAFETY: `work` outlives the call, which either sets it or returns an error text for us to free.
        unsafe { autograd::take_error((self.begin)(index, c_int::from(capture), &raw mut work)) }?;
        Ok(Graph { shim: self, work })
    }
}

/// A capture or, after its end, a graph. Dropping it before the end, on an error or a panic, aborts the capture.
#[derive(Debug)]
struct Graph {
    shim: &'static Shim,
    work: *mut c_void,
}

// SAFETY: only a captured graph leaves the `run` in which it began, and it may be replayed and freed on any thread.
unsafe impl Send for Graph {}

impl Graph {
    fn end(&self) -> Result<()> {
        // SAFETY: begun on this thread, in the same `run`, and not dropped yet.
        unsafe { autograd::take_error((self.shim.end)(self.work)) }.map_err(|error| {
            error.context("failed to capture a CUDA graph").hint(
                "the model must run only device operations in a graphed callable: see `unirl_torch::cuda_graph`",
            )
        })
    }

    fn replay(&self) -> Result<()> {
        // SAFETY: not dropped yet; a graph whose capture has not ended returns an error.
        unsafe { autograd::take_error((self.shim.replay)(self.work)) }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: created by `begin`, and dropped once.
        if let Err(error) = unsafe { autograd::take_error((self.shim.drop)(self.work)) } {
            tracing::warn!("aborted the capture of a CUDA graph: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::HashSet;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::path::Path;
    use std::process::Command;
    use std::{fs, io};

    use tch::{Kind, Tensor};
    use unirl_base::error::Error;

    use super::*;
    use crate::libtorch::{has_cuda_driver, load_cuda};

    #[test]
    fn on_the_cpu_every_run_calls_work_and_returns_its_error() {
        let mut value = Tensor::zeros([1], (Kind::Float, Device::Cpu));
        let mut graphed = GraphedCallable::new(Device::Cpu);
        for _ in 0..4 {
            graphed
                .run(|| {
                    let _ = value.g_add_scalar_(1.0);
                    Ok(())
                })
                .unwrap();
        }
        let error = graphed.run(|| Err(Error::failure("no more"))).unwrap_err();
        assert_eq!((value.double_value(&[0]), error.message()), (4.0, "no more"));
    }

    #[test]
    fn without_the_library_every_run_calls_work() {
        if Cuda::is_available() {
            println!("skipped: the library can be opened");
            return;
        }
        let mut calls = 0;
        let mut graphed = GraphedCallable::new(Device::Cuda(0));
        for _ in 0..4 {
            graphed
                .run(|| {
                    calls += 1;
                    Ok(())
                })
                .unwrap();
        }
        assert_eq!(calls, 4);
        let why = shim().unwrap_err();
        let expected = if LIBRARY.is_ok() { "undefined symbol" } else { LIBRARY.unwrap_err() };
        assert!(why.contains(expected), "{why}");
    }

    thread_local! {
        /// The calls of the fake library and of the work.
        static LOG: RefCell<Vec<&'static str>> = const { RefCell::new(Vec::new()) };
    }

    fn log(word: &'static str) {
        LOG.with_borrow_mut(|log| log.push(word));
    }

    fn logged() -> String {
        LOG.take().join(" ")
    }

    unsafe extern "C" fn begin(index: c_int, capture: c_int, work: *mut *mut c_void) -> *mut c_char {
        assert_eq!(index, 3);
        log(if capture == 0 { "warm-up" } else { "capture" });
        // SAFETY: points to the variable of `Shim::begin`; the written pointer is never dereferenced.
        unsafe { *work = ptr::dangling_mut() };
        ptr::null_mut()
    }

    unsafe extern "C" fn end(_: *mut c_void) -> *mut c_char {
        log("end");
        ptr::null_mut()
    }

    unsafe extern "C" fn fails(_: *mut c_void) -> *mut c_char {
        unsafe extern "C" {
            fn strdup(text: *const c_char) -> *mut c_char;
        }
        log("fails");
        // SAFETY: copies a zero-terminated text.
        unsafe { strdup(c"capture invalid\nand more".as_ptr()) }
    }

    unsafe extern "C" fn replay(_: *mut c_void) -> *mut c_char {
        log("replay");
        ptr::null_mut()
    }

    unsafe extern "C" fn release(_: *mut c_void) -> *mut c_char {
        log("drop");
        ptr::null_mut()
    }

    static FAKE: Shim = Shim { begin, end, replay, drop: release };
    static FAILS: Shim = Shim { begin, end: fails, replay, drop: release };

    /// One test, because the process has one capture lock.
    #[test]
    fn work_is_called_then_captured_then_replayed_and_aborted_on_failure() {
        let work = || {
            log("work");
            Ok(())
        };
        let mut graphed = GraphedCallable { state: State::WarmUp(&FAKE, 3) };
        graphed.run(work).unwrap();
        assert_eq!(logged(), "warm-up work end drop");

        graphed.run(|| Err(Error::failure("out of memory"))).unwrap_err();
        assert_eq!(logged(), "capture drop", "aborted by an error");
        catch_unwind(AssertUnwindSafe(|| graphed.run(|| panic!("a wrong shape")))).unwrap_err();
        assert_eq!(logged(), "capture drop", "aborted by a panic");

        graphed.run(work).unwrap();
        assert_eq!(logged(), "capture work end replay");
        graphed.run(work).unwrap();
        graphed.run(work).unwrap();
        assert_eq!(logged(), "replay replay");
        drop(graphed);
        assert_eq!(logged(), "drop");

        let mut inner = GraphedCallable { state: State::Ready(&FAKE, 3) };
        let mut outer = GraphedCallable { state: State::Ready(&FAKE, 3) };
        outer.run(|| inner.run(work)).unwrap();
        assert_eq!(logged(), "capture work end replay", "the outer capture includes the inner work");

        let mut graphed = GraphedCallable { state: State::Ready(&FAILS, 3) };
        let error = graphed.run(work).unwrap_err();
        assert_eq!(logged(), "capture work fails drop");
        assert_eq!(error.message(), "failed to capture a CUDA graph");
        assert_eq!(error.causes(), ["libtorch: capture invalid"]);
    }

    #[test]
    fn on_a_gpu_work_is_called_twice_and_then_replayed() {
        if !has_cuda_driver() || load_cuda().is_err() || !Cuda::is_available() {
            println!("skipped: libtorch finds no GPU");
            return;
        }
        support().unwrap();
        let device = Device::Cuda(0);
        let rows = Tensor::arange(6, (Kind::Float, device)).view([2, 3]);
        let mut sums = Tensor::zeros([2, 2], (Kind::Float, device));
        let mut graphed = GraphedCallable::new(device);
        let mut calls = 0;
        for _ in 0..5 {
            graphed
                .run(|| {
                    calls += 1;
                    let _ = sums.g_add_(&rows.matmul(&rows.tr()));
                    Ok(())
                })
                .unwrap();
        }
        // The products of the rows (0, 1, 2) and (3, 4, 5), five times.
        let once = Tensor::from_slice(&[5f32, 14.0, 14.0, 50.0]).view([2, 2]);
        assert_eq!(calls, 2);
        assert!(sums.to_device(Device::Cpu).equal(&(&once * 5.0)));

        let mut reads = GraphedCallable::new(device);
        let read = || Ok(f64::try_from(&sums.sum(Kind::Float)).map(|_| ())?);
        reads.run(read).unwrap();
        reads.run(read).unwrap_err();
        let panics = catch_unwind(AssertUnwindSafe(|| reads.run(|| panic!("during the capture"))));
        assert!(panics.is_err());
        let random = Tensor::rand([8], (Kind::Float, device)).sum(Kind::Float);
        assert!(random.double_value(&[]) > 0.0, "failed captures leave the generator usable");
        graphed.run(|| panic!("the graph is replayed instead")).unwrap();
        assert!(sums.to_device(Device::Cpu).equal(&(&once * 6.0)));
    }

    /// Returns the libraries of the process.
    fn mapped() -> Vec<PathBuf> {
        let _ = Tensor::from_slice(&[0f32]); // keeps libtorch linked
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let mut paths: Vec<PathBuf> =
            maps.lines().filter_map(|line| Some(line[line.find('/')?..].into())).collect();
        paths.dedup();
        paths
    }

    fn libtorch() -> PathBuf {
        let path = mapped().into_iter().find(|path| path.ends_with("libtorch_cpu.so")).unwrap();
        path.parent().unwrap().to_owned()
    }

    #[test]
    fn cuda_graphs_are_compiled_in_if_headers_exist() {
        let libtorch = libtorch();
        let headers = libtorch.join("../../nvidia/cu13/include");
        let there =
            ["cuda_runtime_api.h", "crt/host_config.h"].iter().all(|name| headers.join(name).is_file());
        if there && libtorch.join("libtorch_cuda.so").is_file() {
            assert_eq!(LIBRARY.map(|bytes| bytes.starts_with(b"\x7fELF")), Ok(true));
        } else {
            println!("skipped: no CUDA headers");
        }
    }

    /// Returns the symbols of one kind in the dynamic table of a library, without weak ones, which may stay undefined.
    fn symbols(library: &Path, sort: &str) -> HashSet<String> {
        let output = match Command::new("nm").args(["-D", sort]).arg(library).output() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                panic!("`nm` not found: this test needs binutils, which come with a C++ compiler")
            }
            output => output.unwrap(),
        };
        assert!(
            output.status.success(),
            "{}: {}",
            library.display(),
            String::from_utf8_lossy(&output.stderr)
        );
        let text = String::from_utf8(output.stdout).unwrap();
        let of = |line: &str| {
            let mut fields = line.split_whitespace().rev();
            let (name, letter) = (fields.next()?, fields.next()?);
            let name = name.split_once('@').map_or(name, |(name, _)| name);
            (letter != "w" && letter != "v").then(|| name.to_owned())
        };
        text.lines().filter_map(of).collect()
    }

    #[test]
    fn undefined_symbols_of_the_library_are_in_libtorch_and_the_runtimes() {
        let Ok(bytes) = LIBRARY else {
            println!("skipped: CUDA graphs are not compiled in");
            return;
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("graph.so");
        fs::write(&path, bytes).unwrap();
        let undefined = symbols(&path, "--undefined-only");
        assert!(
            undefined.contains("cudaStreamBeginCapture")
                || undefined.iter().any(|name| name.contains("CUDAGraph"))
        );

        let runtimes = [
            "libtorch_cpu.so",
            "libc10.so",
            "libcudart.so.13",
            "libc.so.",
            "libstdc++.so.",
            "libgcc_s.so.",
            "ld-linux",
        ];
        let named = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            runtimes.iter().any(|runtime| name.starts_with(runtime))
        };
        let mut libraries: Vec<PathBuf> = mapped().into_iter().filter(named).collect();
        libraries.extend(["libtorch_cuda.so", "libc10_cuda.so"].map(|name| libtorch().join(name)));
        let defined: HashSet<String> =
            libraries.iter().flat_map(|library| symbols(library, "--defined-only")).collect();
        let missing: Vec<&String> = undefined.difference(&defined).collect();
        assert!(missing.is_empty(), "in none of {libraries:?}: {missing:?}");
    }
}
