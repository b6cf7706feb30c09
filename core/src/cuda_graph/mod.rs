//! Work that is done many times on the same tensors, as the steps of decoding are. On a GPU, launching hundreds of small
//! kernels takes longer than they do; a CUDA graph launches them as one.
#![allow(unsafe_code, reason = "CUDA graphs are behind a C++ library, opened where there is a GPU")]

use std::ffi::{c_char, c_int, c_void};
use std::fs::File;
use std::io::Write as _;
use std::os::fd::IntoRawFd as _;
use std::path::PathBuf;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use rustix::fs::{MemfdFlags, memfd_create};
use tch::{Cuda, Device};

use crate::autograd;
use crate::error::Result;

/// Compiled from `graph.cpp`, or why it was not.
#[cfg(cuda_graphs)]
const LIBRARY: Result<&[u8], &str> = Ok(include_bytes!(concat!(env!("OUT_DIR"), "/graph.so")));
#[cfg(not(cuda_graphs))]
const LIBRARY: Result<&[u8], &str> = Err(env!("UNIRL_NO_CUDA_GRAPHS"));

/// Work that is done many times on the same tensors. On a GPU it is recorded once, as a CUDA graph, and launched as one.
///
/// What is launched again is what was recorded: the same kernels, on the same addresses, with the same numbers from the
/// host. So the work
///
/// - does nothing but operations of the one device, the same ones each time, whatever the values;
/// - reads and writes tensors that were made before, and that live as long as this: results go in place into one of them
///   (`copy_`, `index_copy_`), and a tensor that the work makes is gone when it ends;
/// - reads no value on the host (no `double_value`, `int64_value`, `nonzero`, mask as an index, or print) and copies
///   nothing from the host: what changes from time to time, a position too, lies in a tensor on the device that is written
///   before [`run`](Self::run) or by the work;
/// - draws no random numbers: they are drawn before, into a tensor;
/// - counts nothing on the host, since from the third time on it is not called: counters are kept outside;
/// - is done without gradient (`tch::no_grad`).
///
/// Work that breaks these rules ends in an error where CUDA notices, and else in the values of the first recording.
#[derive(Debug)]
pub struct GraphedCallable {
    state: State,
}

#[derive(Debug)]
enum State {
    /// There is nothing to record it with.
    Eager,
    /// Not done yet on this GPU: libraries have still to make themselves ready, which cannot be recorded.
    WarmUp(&'static Shim, c_int),
    Ready(&'static Shim, c_int),
    Captured(Graph),
}

impl GraphedCallable {
    /// Nothing is done yet.
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

    /// Does `work`, which must be the same each time. On the CPU it is called. On a GPU the first time it is called, the
    /// second time it is recorded and what was recorded is launched, and from then on that is launched again without a
    /// call. A time that fails does not count.
    ///
    /// Where there are no CUDA graphs ([`support`]), or while other work is being recorded, it is called.
    pub fn run(&mut self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let (shim, index, record) = match &self.state {
            State::Captured(graph) => return graph.replay(),
            State::Eager => return work(),
            State::WarmUp(shim, index) => (*shim, *index, false),
            State::Ready(shim, index) => (*shim, *index, true),
        };
        let Some(_turn) = Turn::take() else { return work() };
        let graph = shim.begin(index, record)?;
        work()?;
        graph.end()?;
        self.state = if record {
            graph.replay()?;
            State::Captured(graph)
        } else {
            State::Ready(shim, index)
        };
        Ok(())
    }
}

/// Whether repeated work can be recorded: `Err` says why it was not compiled in or, once a GPU is in use, cannot be opened.
pub fn support() -> Result<(), String> {
    match Cuda::is_available() {
        true => shim().map(drop),
        false => LIBRARY.map(drop).map_err(str::to_owned),
    }
}

/// libtorch records one piece of work at a time.
struct Turn;

static TAKEN: AtomicBool = AtomicBool::new(false);

impl Turn {
    fn take() -> Option<Self> {
        (!TAKEN.swap(true, Ordering::Acquire)).then_some(Self)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        TAKEN.store(false, Ordering::Release);
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

/// The opened library; why there is none is logged once.
fn shim() -> Result<&'static Shim, String> {
    static SHIM: OnceLock<Result<Shim, String>> = OnceLock::new();
    let opened = SHIM.get_or_init(|| {
        let opened = LIBRARY.map_err(str::to_owned).and_then(Shim::open);
        if let Err(why) = &opened {
            tracing::warn!("without CUDA graphs, each kernel is launched by itself: {why}");
        }
        opened
    });
    opened.as_ref().map_err(Clone::clone)
}

impl Shim {
    /// Opens the library from memory, as folders for temporary files may refuse to hold programs.
    fn open(bytes: &[u8]) -> Result<Self, String> {
        let file = memfd_create("unirl-cuda-graphs", MemfdFlags::CLOEXEC);
        let mut file = File::from(file.map_err(|error| format!("no file in memory: {error}"))?);
        file.write_all(bytes).map_err(|error| format!("no file in memory: {error}"))?;
        // It stays open: the linker knows libraries by their path, and another file must not come by this one.
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.into_raw_fd()));
        let said = |error: libloading::Error| {
            std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string)
        };
        // SAFETY: the library is our own, and its constructors are those of the C++ library and of libtorch's headers.
        let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }.map_err(said)?;
        // SAFETY: the signatures are those in `graph.cpp`, from which this library was compiled for this very build.
        let shim = unsafe {
            Self {
                begin: *library.get::<Begin>("unirl_graph_begin").map_err(said)?,
                end: *library.get::<Call>("unirl_graph_end").map_err(said)?,
                replay: *library.get::<Call>("unirl_graph_replay").map_err(said)?,
                drop: *library.get::<Call>("unirl_graph_drop").map_err(said)?,
            }
        };
        std::mem::forget(library); // the functions are called until the process ends
        Ok(shim)
    }

    /// From here on, this thread's operations on the GPU are recorded, or done apart from what was before; until the end.
    fn begin(&'static self, index: c_int, record: bool) -> Result<Graph> {
        let mut work = ptr::null_mut();
        // SAFETY: `work` outlives the call, which either fills it or answers an error text for us to free.
        unsafe { autograd::take_error((self.begin)(index, c_int::from(record), &raw mut work)) }?;
        Ok(Graph { shim: self, work })
    }
}

/// Work begun; from its end on, what was recorded. Dropped before, by an error or a panic, the recording is given up.
#[derive(Debug)]
struct Graph {
    shim: &'static Shim,
    work: *mut c_void,
}

// SAFETY: only what was recorded leaves the `run` that it began in, and the other side launches and frees it on any thread.
unsafe impl Send for Graph {}

impl Graph {
    fn end(&self) -> Result<()> {
        // SAFETY: begun on this thread, in the same `run`, and not dropped yet.
        unsafe { autograd::take_error((self.shim.end)(self.work)) }.map_err(|error| {
            error.context("repeated work cannot be recorded").hint(
                "an error of the model: such work may do nothing but operations on the device, see `unirl::cuda_graph`",
            )
        })
    }

    fn replay(&self) -> Result<()> {
        // SAFETY: not dropped yet; the other side refuses work whose recording has not come to its end.
        unsafe { autograd::take_error((self.shim.replay)(self.work)) }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: made by `begin`, and dropped once.
        if let Err(error) = unsafe { autograd::take_error((self.shim.drop)(self.work)) } {
            tracing::warn!("repeated work that was given up: {error}");
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

    use super::*;
    use crate::error::Error;
    use crate::plugin::{has_cuda_driver, load_cuda};

    #[test]
    fn on_the_cpu_work_is_called_each_time_and_its_error_comes_back() {
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
    fn where_the_library_cannot_be_opened_work_is_called_each_time() {
        if Cuda::is_available() {
            println!("skipped: here it can be opened");
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
        /// What was asked of a stand-in for the library, and done.
        static LOG: RefCell<Vec<&'static str>> = const { RefCell::new(Vec::new()) };
    }

    fn log(word: &'static str) {
        LOG.with_borrow_mut(|log| log.push(word));
    }

    fn logged() -> String {
        LOG.take().join(" ")
    }

    unsafe extern "C" fn begin(index: c_int, record: c_int, work: *mut *mut c_void) -> *mut c_char {
        assert_eq!(index, 3);
        log(if record == 0 { "aside" } else { "record" });
        // SAFETY: points to the variable of `Shim::begin`; what is written is never followed.
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
        // SAFETY: copies a text that ends with a zero.
        unsafe { strdup(c"capture invalid\nand more".as_ptr()) }
    }

    unsafe extern "C" fn replay(_: *mut c_void) -> *mut c_char {
        log("launch");
        ptr::null_mut()
    }

    unsafe extern "C" fn forget(_: *mut c_void) -> *mut c_char {
        log("drop");
        ptr::null_mut()
    }

    static STAND_IN: Shim = Shim { begin, end, replay, drop: forget };
    static FAILS: Shim = Shim { begin, end: fails, replay, drop: forget };

    /// In one test, as there is one turn in the process.
    #[test]
    fn work_is_called_then_recorded_then_launched_and_given_up_when_it_fails() {
        let work = || {
            log("work");
            Ok(())
        };
        let mut graphed = GraphedCallable { state: State::WarmUp(&STAND_IN, 3) };
        graphed.run(work).unwrap();
        assert_eq!(logged(), "aside work end drop");

        graphed.run(|| Err(Error::failure("out of memory"))).unwrap_err();
        assert_eq!(logged(), "record drop", "given up");
        catch_unwind(AssertUnwindSafe(|| graphed.run(|| panic!("a wrong shape")))).unwrap_err();
        assert_eq!(logged(), "record drop", "given up, too");

        graphed.run(work).unwrap();
        assert_eq!(logged(), "record work end launch");
        graphed.run(work).unwrap();
        graphed.run(work).unwrap();
        assert_eq!(logged(), "launch launch");
        drop(graphed);
        assert_eq!(logged(), "drop");

        let mut inner = GraphedCallable { state: State::Ready(&STAND_IN, 3) };
        let mut outer = GraphedCallable { state: State::Ready(&STAND_IN, 3) };
        outer.run(|| inner.run(work)).unwrap();
        assert_eq!(logged(), "record work end launch", "the outer one records the inner one's work");

        let mut graphed = GraphedCallable { state: State::Ready(&FAILS, 3) };
        let error = graphed.run(work).unwrap_err();
        assert_eq!(logged(), "record work fails drop");
        assert_eq!(error.message(), "repeated work cannot be recorded");
        assert_eq!(error.causes(), ["libtorch: capture invalid"]);
    }

    #[test]
    fn on_a_gpu_work_is_called_twice_and_done_each_time() {
        if !has_cuda_driver() || load_cuda().is_err() || !Cuda::is_available() {
            println!("skipped: there is no GPU that libtorch can use");
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
        let panics = catch_unwind(AssertUnwindSafe(|| reads.run(|| panic!("on the way"))));
        assert!(panics.is_err());
        let random = Tensor::rand([8], (Kind::Float, device)).sum(Kind::Float);
        assert!(random.double_value(&[]) > 0.0, "nothing is left of recordings that failed");
        graphed.run(|| panic!("it is launched")).unwrap();
        assert!(sums.to_device(Device::Cpu).equal(&(&once * 6.0)));
    }

    /// The libraries that this process has mapped.
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
    fn with_headers_beside_libtorch_cuda_graphs_are_compiled_in() {
        let libtorch = libtorch();
        let headers = libtorch.join("../../nvidia/cu13/include");
        let there =
            ["cuda_runtime_api.h", "crt/host_config.h"].iter().all(|name| headers.join(name).is_file());
        if there && libtorch.join("libtorch_cuda.so").is_file() {
            assert_eq!(LIBRARY.map(|bytes| bytes.starts_with(b"\x7fELF")), Ok(true));
        } else {
            println!("skipped: there are no such headers");
        }
    }

    /// Symbols of one sort in the dynamic table of a library; weak ones, which may stay open, are not wanted.
    fn symbols(library: &Path, sort: &str) -> HashSet<String> {
        let output = match Command::new("nm").args(["-D", sort]).arg(library).output() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                panic!("`nm` is not found: this test needs binutils, which come with a C++ compiler")
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
    fn what_the_library_wants_is_in_libtorch_and_the_runtimes() {
        let Ok(bytes) = LIBRARY else {
            println!("skipped: CUDA graphs are not compiled in");
            return;
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("graph.so");
        fs::write(&path, bytes).unwrap();
        let wanted = symbols(&path, "--undefined-only");
        assert!(
            wanted.contains("cudaStreamBeginCapture") || wanted.iter().any(|name| name.contains("CUDAGraph"))
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
        let offered: HashSet<String> =
            libraries.iter().flat_map(|library| symbols(library, "--defined-only")).collect();
        let open: Vec<&String> = wanted.difference(&offered).collect();
        assert!(open.is_empty(), "in none of {libraries:?}: {open:?}");
    }
}
