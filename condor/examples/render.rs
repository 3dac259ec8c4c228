//! Prints the plan for given arguments (see `support`), or writes it below `--root DIR`.

mod support;

use std::path::Path;

use aerie_condor::Plan;
use anyhow::Context;

fn main() -> anyhow::Result<()> {
    let (intent, options) = support::intent()?;
    let root = options.get("--root").and_then(|values| values.first());
    let plan = Plan::new(&intent)?;
    for (path, file) in &plan.files {
        match root {
            Some(root) => {
                let path = Path::new(root).join(path.strip_prefix("/")?);
                std::fs::create_dir_all(path.parent().context("a file has a folder")?)?;
                std::fs::write(path, &file.bytes)?;
            }
            None => println!("=== {}\n{}", path.display(), String::from_utf8_lossy(&file.bytes)),
        }
    }
    Ok(())
}
