//! The reward rule sets `paper` (the paper's Table 2), `bound` (the same points, each only where it belongs) and `exact`
//! (all of `bound`'s points or nothing).

pub mod bound;
pub mod exact;
pub mod paper;

pub use bound::BoundConfig;
pub use exact::ExactConfig;
pub use paper::PaperConfig;

unirl::register_reward!("paper", PaperConfig, paper::new);
unirl::register_reward!("bound", BoundConfig, bound::new);
unirl::register_reward!("exact", ExactConfig, exact::new);

#[cfg(feature = "dynamic")]
unirl::export_plugin!();

#[cfg(test)]
mod tests;
