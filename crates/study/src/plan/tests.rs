//! Plans that are compiled in, and what a plan comes to.

use super::*;

#[test]
fn the_plans_that_are_compiled_in_can_be_used() {
    for name in names() {
        let plan = Plan::load(name, &[]).unwrap_or_else(|error| panic!("{error}"));
        // As the folder keeps it, it says the same.
        let again = Plan::parse(name, &toml::to_string_pretty(&plan).unwrap(), &[]).unwrap();
        assert_eq!(plan.trials(), again.trials());
        assert_eq!(plan.changes(), again.changes());
    }
    let plan = Plan::load("tiny", &[]).unwrap();
    let methods: Vec<Method> = plan.trials().into_iter().map(|(method, _)| method).collect();
    assert_eq!(methods, Method::PAPER);
    assert!(plan.seeds.len() >= 5);
    assert!(plan.trials().iter().all(|(_, trials)| trials.len() >= 4));
}

#[test]
fn a_line_adds_a_method() {
    let text = |line: &str| {
        format!("recipe = 'tiny'\nseeds = [3]\nlearning_rates = [1e-4, 1e-3]\n[methods]\n{line}")
    };
    let trials = |line: &str| -> Vec<String> {
        let plan = Plan::parse("test", &text(line), &[]).unwrap();
        let all = plan.trials().into_iter();
        all.flat_map(|(_, trials)| trials).map(|trial| trial.folder()).collect()
    };
    let cases: [(&str, &[&str]); 4] = [
        ("ipo = {}", &["learning_rate=0.0001", "learning_rate=0.001"]),
        (
            "ipo = { beta = [1, 0.5] }",
            &[
                "learning_rate=0.0001,beta=1",
                "learning_rate=0.0001,beta=0.5",
                "learning_rate=0.001,beta=1",
                "learning_rate=0.001,beta=0.5",
            ],
        ),
        ("ipo = { learning_rate = [2e-4] }", &["learning_rate=0.0002"]),
        (
            "cdpo = { label_smoothing = [0.2], learning_rate = [2e-4] }",
            &["learning_rate=0.0002,label_smoothing=0.2"],
        ),
    ];
    for (line, expected) in cases {
        assert_eq!(trials(line), expected, "{line}");
    }
    let plan = Plan::parse("test", &text("cdpo = { label_smoothing = [0.2] }"), &[]).unwrap();
    let (method, trials) = plan.trials().remove(0);
    let settings = plan.settings(Some((method, &trials[1])), 3, &[]).unwrap();
    assert_eq!(settings.align.method.name(), "cdpo");
    assert_eq!(settings.align.optimizer.learning_rate, 1e-3);
    assert_eq!(settings.align.options.label_smoothing, Some(0.2));
    assert_eq!(settings.seed, 3);
}

/// All methods are measured alike, and start from the same model.
#[test]
fn what_all_runs_of_a_study_share() {
    let text =
        "recipe = 'tiny'\nset = ['sft.epochs=1']\nseeds = [4]\n[methods]\ndpo = {}\nfpo = {}";
    let settings = |text: &str| -> Vec<Settings> {
        let plan = Plan::parse("test", text, &[]).unwrap();
        let of = plan.trials();
        let runs = of.iter().map(|(method, trials)| Some((*method, &trials[0])));
        runs.chain([None]).map(|of| plan.settings(of, 4, &[]).unwrap()).collect()
    };
    let all = settings(text);
    assert!(all.iter().all(|s| s.evaluate.features && s.sft == all[0].sft && s.seed == 4));
    // Without a method that needs them, no autoencoder is trained.
    assert!(settings(&text.replace("\nfpo = {}", "")).iter().all(|s| !s.features()));
    let seeds: Vec<u64> = {
        let text = text.replace("seeds", "each_seed = 'alignment'\nseeds");
        settings(&text).iter().map(|s| s.seed).collect()
    };
    assert_eq!(seeds, [4, 4, 0]);
}
