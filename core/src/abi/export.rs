//! The macros of plugin authors, `register_model!`, `register_reward!`, `register_detector!` and `export_plugin!`, and what they
//! expand to.
#![allow(unsafe_code, reason = "the header of abi_stable's root module")]

use abi_stable::library::{__call_root_module_loader, CheckTypeLayout, LibHeader, RootModuleResult};
use abi_stable::prefix_type::PrefixTypeTrait;
use abi_stable::std_types::{RResult, RStr, RVec};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::Value;
use unirl_base::panic::install_hook;
use unirl_base::schema;

use super::component::{ComponentBox, FfiEntry, FfiError, HostApi, PluginModule, PluginModule_Ref};
use super::panic::catch_unwind_to_ffi_error;
use super::{adapt, log, stamp, wire};
use crate::detector::Detector;
use crate::error::{Code, Error, Result};
use crate::model::{ModelSource, UnifiedModel};
use crate::reward::RewardFunction;

/// Registers a model: its name, the type of its configuration, and its constructor.
///
/// The constructor is `fn(Config, &ModelSource) -> Result<Box<dyn UnifiedModel>>`. The configuration type implements
/// `Deserialize`, `JsonSchema` and `Default`. Write `#[serde(default)]`, and document every key: doc comments become
/// descriptions. Unknown keys are refused before the constructor is called.
///
/// Use the macro once per model, in any module of the plugin's crate.
#[macro_export]
macro_rules! register_model {
    ($name:expr, $config:ty, $new:expr $(,)?) => {
        $crate::__private::inventory::submit! {
            $crate::__private::ModelEntry {
                name: $name,
                schema: $crate::__private::schema::<$config>,
                new: |config, source| {
                    let new: fn(
                        $config,
                        &$crate::model::ModelSource,
                    ) -> $crate::Result<::std::boxed::Box<dyn $crate::model::UnifiedModel>> = $new;
                    new($crate::__private::config::<$config>("model.options", config)?, source)
                },
            }
        }
    };
}

/// Registers a reward function: its name, the type of its configuration, and its constructor.
///
/// The constructor is `fn(Config) -> Result<Box<dyn RewardFunction>>`; the rest is as in
/// [`register_model!`](crate::register_model).
#[macro_export]
macro_rules! register_reward {
    ($name:expr, $config:ty, $new:expr $(,)?) => {
        $crate::__private::inventory::submit! {
            $crate::__private::RewardEntry {
                name: $name,
                schema: $crate::__private::schema::<$config>,
                new: |config| {
                    let new: fn($config) -> $crate::Result<::std::boxed::Box<dyn $crate::reward::RewardFunction>> =
                        $new;
                    new($crate::__private::config::<$config>("options", config)?)
                },
            }
        }
    };
}

/// Registers a detector: its name, the type of its configuration, and its constructor.
///
/// The constructor is `fn(Config) -> Result<Box<dyn Detector>>`; the rest is as in
/// [`register_model!`](crate::register_model).
#[macro_export]
macro_rules! register_detector {
    ($name:expr, $config:ty, $new:expr $(,)?) => {
        $crate::__private::inventory::submit! {
            $crate::__private::DetectorEntry {
                name: $name,
                schema: $crate::__private::schema::<$config>,
                new: |config| {
                    let new: fn(
                        $config,
                    ) -> $crate::Result<::std::boxed::Box<dyn $crate::detector::Detector>> = $new;
                    new($crate::__private::config::<$config>("options", config)?)
                },
            }
        }
    };
}

/// Makes the crate a plugin. Use it once in the `lib.rs` of a `cdylib`.
///
/// Name the crate `unirl-plugin-NAME`, so that its file `libunirl_plugin_NAME.so` is found as `NAME`. A plugin is loaded once
/// and stays loaded until the process ends. A panic in it becomes an error of the host, and its `tracing` events go to the log
/// of the host. Take randomness only from the `seed` arguments.
/// The documentation of [the crate](crate) shows a complete plugin.
#[macro_export]
macro_rules! export_plugin {
    () => {
        /// Build information, which the host reads before it opens the library.
        #[unsafe(no_mangle)]
        pub static UNIRL_PLUGIN_STAMP: [u8; 512] =
            $crate::__private::stamp(env!("CARGO_CRATE_NAME"), env!("CARGO_PKG_VERSION"));

        // The name that abi_stable looks for. Its own attribute would require a dependency of the plugin on abi_stable.
        #[unsafe(export_name = "_1as_0lib_1header_0root_bmodule_bloader")]
        static UNIRL_PLUGIN_ROOT: $crate::__private::LibHeader = $crate::__private::lib_header();
    };
}

/// Items that the macros use.
pub mod private {
    pub use super::super::stamp::stamp;
    pub use super::{DetectorEntry, ModelEntry, RewardEntry, config, lib_header, schema};
    pub use abi_stable::library::LibHeader;
    pub use inventory;
}

/// A registered model.
pub struct ModelEntry {
    /// Its name.
    pub name: &'static str,
    /// The schema of its configuration.
    pub schema: fn() -> Value,
    /// Its constructor.
    pub new: fn(&Value, &ModelSource) -> Result<Box<dyn UnifiedModel>>,
}

/// A registered reward function.
pub struct RewardEntry {
    /// Its name.
    pub name: &'static str,
    /// The schema of its configuration.
    pub schema: fn() -> Value,
    /// Its constructor.
    pub new: fn(&Value) -> Result<Box<dyn RewardFunction>>,
}

/// A registered detector.
pub struct DetectorEntry {
    /// Its name.
    pub name: &'static str,
    /// The schema of its configuration.
    pub schema: fn() -> Value,
    /// Its constructor.
    pub new: fn(&Value) -> Result<Box<dyn Detector>>,
}

inventory::collect!(ModelEntry);
inventory::collect!(RewardEntry);
inventory::collect!(DetectorEntry);

/// The header through which `abi_stable` finds the functions of a plugin.
pub const fn lib_header() -> LibHeader {
    // SAFETY: `construct` returns a `PluginModule_Ref`.
    unsafe { LibHeader::from_constructor::<PluginModule_Ref>(construct, CheckTypeLayout::Yes) }
}

extern "C" fn construct() -> RootModuleResult {
    __call_root_module_loader::<PluginModule_Ref>(|| PluginModule { init, entries, make }.leak_into_prefix())
}

extern "C" fn init(host: HostApi) {
    install_hook();
    // Fails if a process has two plugin registries; the host is the same.
    let _ = tracing::subscriber::set_global_default(log::Forward(host));
}

extern "C" fn entries() -> RResult<RVec<FfiEntry>, FfiError> {
    catch_unwind_to_ffi_error(|| {
        let entry = |kind: &str, name: &str, schema: fn() -> Value| FfiEntry {
            kind: kind.into(),
            name: name.into(),
            schema: schema().to_string().into(),
        };
        let models = inventory::iter::<ModelEntry>.into_iter().map(|e| entry("model", e.name, e.schema));
        let rewards = inventory::iter::<RewardEntry>.into_iter().map(|e| entry("reward", e.name, e.schema));
        let detectors =
            inventory::iter::<DetectorEntry>.into_iter().map(|e| entry("detector", e.name, e.schema));
        Ok(models.chain(rewards).chain(detectors).collect())
    })
}

/// Makes a registered model, reward or detector: `json` is a message of [`wire::make`].
pub extern "C" fn make(kind: RStr<'_>, name: RStr<'_>, json: RStr<'_>) -> RResult<ComponentBox, FfiError> {
    catch_unwind_to_ffi_error(|| {
        let unknown = || Error::new(Code::Unsupported, format!("the plugin has no {kind} `{name}`"));
        let (config, source) = wire::read_make(&json)?;
        match (kind.as_str(), source) {
            ("model", Some(source)) => {
                let mut models = inventory::iter::<ModelEntry>.into_iter();
                let entry = models.find(|entry| entry.name == name).ok_or_else(unknown)?;
                Ok(adapt::model((entry.new)(&config, &source)?))
            }
            ("reward", _) => {
                let mut rewards = inventory::iter::<RewardEntry>.into_iter();
                let entry = rewards.find(|entry| entry.name == name).ok_or_else(unknown)?;
                Ok(adapt::reward((entry.new)(&config)?))
            }
            ("detector", _) => {
                let mut detectors = inventory::iter::<DetectorEntry>.into_iter();
                let entry = detectors.find(|entry| entry.name == name).ok_or_else(unknown)?;
                Ok(adapt::detector((entry.new)(&config)?))
            }
            _ => Err(unknown()),
        }
    })
}

/// Returns the schema of a configuration.
pub fn schema<C: JsonSchema>() -> Value {
    schema::schema::<C>()
}

/// Parses a configuration, whose path in the settings is `place`. An absent or empty one is the default.
pub fn config<C: DeserializeOwned + JsonSchema + Default>(place: &str, json: &Value) -> Result<C> {
    match json {
        Value::Null => Ok(C::default()),
        Value::Object(keys) if keys.is_empty() => Ok(C::default()),
        json => schema::read_json(place, json),
    }
}

const _: () = assert!(stamp::ABI == 1, "update the ABI number in `stamp::stamp`");
