//! The benchmark of a run, by name.

use std::path::Path;

use serde_json::json;
use unirl::error::{Error, Result};
use unirl::model::ModelCard;
use unirl_benchmarks::Benchmark;
use unirl_benchmarks::geneval::{self, Geneval, GenevalJudge, Thresholds};
use unirl_benchmarks::tiles::{self, Tiles};

use crate::config::BenchmarkOptions;
use crate::image_io;
use crate::plugin::Plugins;

/// Returns the benchmark that `options` name, or that of the model; `None` if there is neither. Errors if it does not fit the
/// model, or if its files or its detector cannot be loaded.
pub fn open(
    options: &BenchmarkOptions,
    card: &ModelCard,
    plugins: &mut Plugins,
) -> Result<Option<Box<dyn Benchmark>>> {
    let benchmark: Box<dyn Benchmark> = match options.name.as_deref().or(card.benchmark.as_deref()) {
        Some(tiles::NAME) => Box::new(Tiles),
        Some(geneval::NAME) => Box::new(open_geneval(options, card, plugins)?),
        _ => return Ok(None),
    };
    benchmark.check_fits(card)?;
    Ok(Some(benchmark))
}

fn open_geneval(options: &BenchmarkOptions, card: &ModelCard, plugins: &mut Plugins) -> Result<Geneval> {
    let (Some(metadata), Some(name)) = (&options.metadata, &options.detector) else {
        return Err(Error::usage(format!(
            "benchmark `{}` needs `benchmark.metadata` and `benchmark.detector`",
            geneval::NAME
        )));
    };
    let metadata = Path::new(metadata);
    let detector = plugins.detector(name, &json!({}))?;
    let thresholds = Thresholds::new(options.threshold, options.counting_threshold)?;
    let mut judge = GenevalJudge::new(metadata, (name.clone(), detector), thresholds)?;
    if let (Some(images), Some(results)) = (&options.references, &options.results) {
        let read = image_io::reader(card);
        let read = move |path: &Path| Ok(read(path)?.squeeze_dim(0));
        judge = judge.with_references(images.as_ref(), results.as_ref(), Box::new(read))?;
    }
    Geneval::new(metadata, judge)
}
