//! The lines of README.md, compiled.

use crate::support::root;
use cltlab::prelude::*;

// README.md's lines begin below.
#[allow(dead_code)]
fn lines() -> Result<()> {
    let model = Model::load("states", &Default::default())?;    // comes with the library; or a hub name, a folder, a .gguf file
    let (train, test) = Corpus::load("states", &Default::default())?.split(0.95)?;
    let activations = Activations::stream(&model, &train, &StreamConfig { context: 64, ..Default::default() })?;
    let mut trainer = Trainer::new(&activations, &CltConfig::for_model(&model), &Default::default())?;
    trainer.run()?;                                             // live curve; interrupt keeps everything
    let clt = trainer.clt()?;
    display(evaluate(&model, &clt, &test, &Default::default())?); // FVU, L0, dead, CE, KL, top-1
    let replacement = Replacement::new(&model, &clt)?;
    let graph = replacement.attribute("The capital of the state containing Dallas is", &Default::default())?;
    display(graph.prune(&Default::default())?);                 // the picture, and graph.save("graph.json", ..) for viewers
    Ok(())
}

#[test]
fn the_lines_of_the_readme_are_those_compiled_here() {
    let trimmed = |text: &str| text.lines().map(|line| line.trim().to_string()).filter(|line| !line.is_empty()).collect::<Vec<_>>();
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let shown = trimmed(readme.split("```rust\n").nth(1).unwrap().split("```").next().unwrap());
    let own = std::fs::read_to_string(root().join("tests/suite/readme.rs")).unwrap();
    let compiled = trimmed(own.split("fn lines() -> Result<()> {\n").nth(1).unwrap().split("    Ok(())\n").next().unwrap());
    assert!(shown.len() >= 10, "{shown:?}");
    assert_eq!(shown, compiled);
}
