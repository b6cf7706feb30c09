//! The reward rule sets `paper` (the paper's Table 2) and `bound` (the same points, each only where it belongs).

pub mod bound;
pub mod paper;

pub use bound::BoundConfig;
pub use paper::PaperConfig;

unirl::register_reward!("paper", PaperConfig, paper::new);
unirl::register_reward!("bound", BoundConfig, bound::new);

#[cfg(feature = "dynamic")]
unirl::export_plugin!();

#[cfg(test)]
mod tests;
