//! Show-o (Phi and MAGVIT-v2) as a unirl plugin.

pub mod checkpoint;
pub mod clip;
pub mod config;
mod footprint;
pub mod magvit;
pub mod mask;
pub mod maskgit;
pub mod model;
pub mod phi;
pub mod prompt;

use config::ShowoConfig;
use model::Showo;

unirl::register_model!("showo", ShowoConfig, Showo::new);

#[cfg(feature = "dynamic")]
unirl::export_plugin!();

#[cfg(test)]
mod tests {
    unirl_testing::check_model!("showo");
}
