//! The binary layout of the ABI. Any change requires a new ABI number.
#![allow(
    missing_docs,
    unreachable_pub,
    unsafe_code,
    non_local_definitions,
    non_camel_case_types,
    clippy::all,
    clippy::pedantic,
    clippy::undocumented_unsafe_blocks,
    clippy::allow_attributes_without_reason,
    reason = "what the macros of abi_stable 0.11 expand to"
)]

use abi_stable::library::RootModule;
use abi_stable::sabi_types::VersionStrings;
use abi_stable::std_types::{RBox, RResult, RStr, RString, RVec, Tuple2};
use abi_stable::{StableAbi, package_version_strings, sabi_trait};

use super::tensor::FfiTensor;
use crate::error::{Code, Error};

/// A message: a JSON object and named tensors.
#[repr(C)]
#[derive(StableAbi)]
pub struct FfiRecord {
    pub json: RString,
    pub tensors: RVec<Tuple2<RString, FfiTensor>>,
}

/// An [`Error`] that crosses the boundary.
#[repr(C)]
#[derive(StableAbi)]
pub struct FfiError {
    pub code: RString,
    pub message: RString,
    pub hints: RVec<RString>,
    pub causes: RVec<RString>,
}

impl From<Error> for FfiError {
    fn from(error: Error) -> Self {
        let strings = |lines: &[String]| lines.iter().map(|line| RString::from(line.as_str())).collect();
        Self {
            code: error.code().name().into(),
            message: error.message().into(),
            hints: strings(error.hints()),
            causes: strings(error.causes()),
        }
    }
}

impl From<FfiError> for Error {
    fn from(error: FfiError) -> Self {
        let mut back = Error::new(Code::from_name(&error.code), error.message);
        for cause in error.causes {
            back = back.cause(cause);
        }
        for hint in error.hints {
            back = back.hint(hint);
        }
        back
    }
}

/// An object of a plugin: a model, a reward function or a detector. Used by one thread at a time.
#[sabi_trait]
pub trait Component: Send {
    /// Executes an operation. Unknown operations return the error code `unsupported`.
    ///
    /// Must stay the last method: abi_stable refuses a plugin that has fewer methods than the host.
    #[sabi(last_prefix_field)]
    fn call(&mut self, op: RStr<'_>, args: FfiRecord) -> RResult<FfiRecord, FfiError>;
}

/// An owned component.
pub type ComponentBox = Component_TO<'static, RBox<()>>;

/// The functions of the host that a plugin calls. Levels: 1 error, 2 warn, 3 info, 4 debug, 5 trace.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct HostApi {
    pub enabled: extern "C" fn(level: u8) -> bool,
    pub log: extern "C" fn(level: u8, target: RStr<'_>, text: RStr<'_>),
}

/// A model, reward or detector that a plugin provides.
#[repr(C)]
#[derive(StableAbi)]
pub struct FfiEntry {
    pub kind: RString,
    pub name: RString,
    pub schema: RString,
}

/// The functions of a plugin, called in this order.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = PluginModule_Ref)))]
pub struct PluginModule {
    pub init: extern "C" fn(HostApi),
    pub entries: extern "C" fn() -> RResult<RVec<FfiEntry>, FfiError>,
    /// Must stay the last function, like [`Component::call`].
    #[sabi(last_prefix_field)]
    pub make:
        extern "C" fn(kind: RStr<'_>, name: RStr<'_>, json: RStr<'_>) -> RResult<ComponentBox, FfiError>,
}

impl RootModule for PluginModule_Ref {
    abi_stable::declare_root_module_statics! {PluginModule_Ref}
    const BASE_NAME: &'static str = "unirl_plugin";
    const NAME: &'static str = "unirl_plugin";
    const VERSION_STRINGS: VersionStrings = package_version_strings!();
}
