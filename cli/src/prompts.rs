//! `unirl prompts`.

use unirl::error::{Error, Result};
use unirl_benchmarks::tiles;
use unirl_engine::atomic_fs;
use unirl_prompts::{Exclusion, Mix, ObjectList, PromptTemplates, Split};

use crate::args::PromptsArgs;
use crate::{io, progress};

pub(crate) fn run(args: &PromptsArgs) -> Result<()> {
    if args.count == 0 {
        return Err(Error::usage("`--count`: expected at least 1, got 0"));
    }
    if let Some(out) = &args.out {
        io::check_output(out)?;
    }
    let mix: Mix = args.mix.as_deref().map_or(Ok(Mix::default()), str::parse)?;
    let objects = match args.objects.as_str() {
        "everyday" => ObjectList::everyday(),
        "tiles" => tiles::object_list(),
        path => ObjectList::read(path.as_ref())
            .map_err(|error| error.hint("`--objects` expects `everyday`, `tiles` or the path of a file"))?,
    };
    let default = if args.objects == "tiles" { "tiles" } else { "paper" };
    let templates = PromptTemplates::find(args.wording.as_deref().unwrap_or(default))?;
    // The tiles benchmark holds out some prompts for evaluation.
    let split = if args.objects == "tiles" { "train" } else { "all" };
    let split: Split = args.split.as_deref().unwrap_or(split).parse()?;
    let mut exclusion = Exclusion::default();
    for path in &args.exclude {
        exclusion.add(&unirl_prompts::read_jsonl(path)?);
    }
    let generated =
        unirl_prompts::generate(&objects, &templates, mix, (split, &exclusion), args.count, args.seed)?;
    for (category, different) in &generated.repeated {
        progress::note(&format!(
            "category `{}` has only {different} distinct prompts; some are repeated",
            category.name()
        ));
    }
    let text = unirl_prompts::write_jsonl(&generated.tasks)?;
    match &args.out {
        Some(out) => atomic_fs::write(out, &text),
        None => io::print(&text),
    }
}
