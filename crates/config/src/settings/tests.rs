//! How settings resolve, and what is refused.

use fpo_track::Direction;
use fpo_transformer::Projection;

use super::*;

fn resolve(assignments: &[&str]) -> Result<Settings> {
    let assignments: Vec<String> = assignments.iter().map(|s| s.to_string()).collect();
    Settings::resolve("tiny", None, &assignments)
}

#[test]
fn later_layers_win() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("mine.toml");
    std::fs::write(&config, "seed = 7\n[align]\nmethod = \"dpo\"\nalpha = 0.25\n").unwrap();
    let set = ["align.alpha=2".to_owned(), "data.train=x y.jsonl".to_owned()];
    let settings = Settings::resolve("tiny", Some(&config), &set).unwrap();
    assert_eq!(settings.seed, 7);
    assert_eq!(settings.align.method, Method::DPO);
    assert_eq!(settings.align.alpha, 2.0);
    assert_eq!(settings.data.train.as_deref(), Some(Path::new("x y.jsonl")));
    let again: Settings = toml::from_str(&settings.to_toml().unwrap()).unwrap();
    assert_eq!(again, settings);
}

/// Keys that aren't written where they have no value are known all the same, and so are names of modules.
#[test]
fn adapters_take_the_keys_of_peft() {
    let set = [
        "model.save_dtype=bfloat16",
        "align.lora.rank_pattern={q_proj=3}",
        "align.lora.alpha_pattern={'.*layers\\.0\\..*'=8.0}",
        "align.lora.exclude_modules=[\"v_proj\"]",
        "align.lora.layers_to_transform=[1]",
        "align.lora.use_dora=true",
        "sft.lora.modules_to_save=[\"norm\"]",
    ];
    let settings = resolve(&set).unwrap();
    assert_eq!(settings.model.save_dtype, Some(WeightType::Bfloat16));
    let lora = settings.align.lora.clone().unwrap();
    let ranks = [Projection::Q, Projection::V, Projection::Up].map(|p| lora.rank(1, p));
    assert_eq!((ranks, lora.rank(0, Projection::Q)), ([Some(3), None, Some(16)], None));
    assert!(lora.use_dora && settings.sft.lora.clone().unwrap().saves("model.norm.weight"));
    let again: Settings = toml::from_str(&settings.to_toml().unwrap()).unwrap();
    assert_eq!(again, settings);
}

#[test]
fn setting_a_key_creates_its_table() {
    assert_eq!(resolve(&[]).unwrap().align.lora, None);
    let set = ["align.lora.rank=4", "align.lora.target_modules=[\"q_proj\", \"v_proj\"]"];
    let settings = resolve(&set).unwrap();
    let lora = settings.align.lora.clone().unwrap();
    assert_eq!((lora.rank, lora.alpha), (4, 32.0));
    assert_eq!(lora.target_modules.to_string(), "q_proj, v_proj");
    let again: Settings = toml::from_str(&settings.to_toml().unwrap()).unwrap();
    assert_eq!(again, settings);
    let all = resolve(&["sft.lora.target_modules=all-linear"]).unwrap().sft.lora.unwrap();
    assert_eq!(all, LoraConfig::default());
}

#[test]
fn methods_accept_their_names_in_trl() {
    let settings = resolve(&["align.method=sigmoid_norm"]).unwrap();
    assert_eq!(settings.align.method.name(), "sigmoid-norm");
    let cdpo = resolve(&["align.method=cdpo", "align.label_smoothing=0.2"]).unwrap().align;
    let robust = cdpo.for_method("robust".parse().unwrap());
    assert_eq!(robust.options.label_smoothing, Some(0.2));
    assert_eq!(cdpo.for_method(Method::DPO).options.label_smoothing, None);
    for method in Method::all() {
        cdpo.for_method(method).objective().check().unwrap();
    }
}

/// Fingerprints of runs hash these keys in this order, with null for an option that isn't set.
#[test]
fn options_are_keys_of_the_alignment() {
    let align = serde_json::to_value(resolve(&[]).unwrap().align).unwrap();
    let keys: Vec<&str> = align.as_object().unwrap().keys().map(String::as_str).collect();
    let options = [
        "label_smoothing",
        "discopop_tau",
        "nll_weight",
        "reward_shift",
        "ada_rho",
        "ada_tau",
        "ld_alpha",
        "use_weighting",
    ];
    assert_eq!(keys[..5], ["method", "beta", "alpha", "gamma", "stop_gradient"]);
    assert_eq!(keys[5..13], options);
    assert_eq!(keys[13..15], ["token_statistics", "k"]);
    assert!(options.iter().all(|key| align[key].is_null()));
}

/// What decides while training is a metric with a direction that an evaluation has.
#[test]
fn what_can_t_be_decided_is_refused() {
    let every = "evaluate.every=10";
    let cases: [(&[&str], &str); 12] = [
        (&["align.keep_best=eval_loss"], "needs evaluate.every: nothing is measured"),
        (&[every, "align.keep_best=loss"], "no metric `loss`: there are eval_loss, eval_accuracy,"),
        (&[every, "align.keep_best=eval_kl/chosen"], "neither high nor low"),
        (
            &[every, "align.keep_best=eval_right", "evaluate.samples=0"],
            "\"eval_right\" needs evaluate.samples",
        ),
        (
            &[every, "align.keep_best=eval_mean_token_accuracy"],
            "needs align.token_statistics = true",
        ),
        (&["align.early_stopping={metric='eval_loss',patience=2}"], "early_stopping.metric = "),
        (&[every, "align.early_stopping={metric='eval_loss',patience=0}"], "at least 1"),
        (&[every, "align.early_stopping={metric='eval_loss'}"], "patience"),
        (
            &[every, "align.early_stopping={metric='eval_loss',patience=1,threshold=-1}"],
            "must not be negative",
        ),
        (
            &[every, "align.early_stopping.patence=3"],
            "did you mean `align.early_stopping.patience`",
        ),
        (&[every, "data.train=x.jsonl", "data.hold_out=0"], "set data.eval or data.hold_out"),
        (&["track=[\"wandb\"]"], "tensorboard"),
    ];
    for (set, says) in cases {
        let error = format!("{:#}", resolve(set).unwrap_err());
        assert!(error.contains(says) && !error.contains('\n'), "{set:?}: {error}");
    }
}

#[test]
fn what_decides_is_read_and_written() {
    let set = [
        "evaluate.every=10",
        "track=[\"tensorboard\", \"csv\"]",
        "align.keep_best=eval_rewards/margins",
        "align.keep_last=2",
        "align.early_stopping.metric=eval_rewards/rejected",
        "align.early_stopping.patience=3",
    ];
    let settings = resolve(&set).unwrap();
    let rules = settings.align.rules();
    let best = rules.keep_best.unwrap();
    assert_eq!((&*best.key, best.better), ("eval_rewards/margins", Direction::Higher));
    let stop = rules.early_stopping.unwrap();
    assert_eq!((&*stop.rule.key, stop.rule.better), ("eval_rewards/rejected", Direction::Lower));
    assert_eq!((stop.evaluations, stop.threshold), (3, 0.0));
    assert_eq!(settings.track, [Tracker::TensorBoard, Tracker::Csv]);
    let again: Settings = toml::from_str(&settings.to_toml().unwrap()).unwrap();
    assert_eq!(again, settings);
}

/// A saved `run.toml` is read directly, not as layers.
#[test]
fn an_unknown_key_in_a_saved_file_is_refused() {
    let text = resolve(&["align.method=cdpo", "align.label_smoothing=0.2"]).unwrap();
    let text = text.to_toml().unwrap();
    assert!(toml::from_str::<Settings>(&text).is_ok());
    let text = text.replace("label_smoothing", "label_smothing");
    let error = toml::from_str::<Settings>(&text).unwrap_err();
    assert!(error.to_string().contains("label_smothing"), "{error}");
}

#[test]
fn every_recipe_resolves() {
    for name in recipes::names() {
        Settings::resolve(name, None, &[]).unwrap_or_else(|e| panic!("{name}: {e:#}"));
    }
}

#[test]
fn refused_settings_say_what_to_do() {
    for (method, set, says) in [
        ("cdpo", "align.label_smoothing=0.6", "label_smoothing = 0.6 must be from 0 to ½"),
        ("robust", "align.label_smoothing=0.5", "below ½"),
        ("exo-pair", "align.label_smoothing=0", "above 0"),
        ("discopop", "align.discopop_tau=2", "at most 1"),
        ("cpo", "align.nll_weight=-1", "at least 0"),
        ("ada-dpo", "align.ada_rho=0.7", "below log 2"),
        ("ada-dpo", "align.ada_tau=[2.0, 1.0]", "ascending"),
        ("dpo", "align.ld_alpha=1.5", "from 0 to 1"),
        ("dpo", "align.ld_alpha=nan", "from 0 to 1"),
        ("dpo", "align.feature_weights=x.toml", "dpo doesn't use features"),
        ("aot", "align.use_weighting=true", "aot has no use_weighting"),
    ] {
        let method = format!("align.method={method}");
        let message = format!("{:#}", resolve(&[&method, set]).unwrap_err());
        assert!(message.contains(says), "{set}: {message:?} does not say {says:?}");
    }
    for (set, says) in [
        ("align.metod=dpo", "align.method"),
        ("algin.method=dpo", "align.method"),
        ("align=3", "is a table"),
        ("align.method=ppo", "ppo"),
        ("align.beta=-1", "beta = -1"),
        ("align.beta=nan", "beta = NaN"),
        ("align.optimizer.max_grad_norm=-1", "max_grad_norm = -1 must be at least 0"),
        ("sft.optimizer.max_grad_norm=inf", "max_grad_norm = inf must be at least 0 and finite"),
        ("sft.optimizer_in_backward=true", "sft.checkpoint_activations = true"),
        ("align.optimizer_in_bwd=true", "`align.optimizer_in_backward`"),
        ("align.label_smoothing=0.1", "fpo has no label_smoothing"),
        ("align.label_smoothing=much", "label_smoothing: got the text"),
        ("align.ld_alpha=0.5", "choose one of dpo, cdpo"),
        ("align.discopop_tau=0.05", "choose one of discopop"),
        ("align.feature_selection=none", "except"),
        ("align.more_sites=[{ site = \"resid_post:2\", sae = \"x\" }]", "repeats"),
        ("align.more_sites=[{ site = \"blocks.3.hook_resid_pre\", sae = \"x\" }]", "repeats"),
        ("align.more_sites=[{ site = \"resid_post:9\", sae = \"x\" }]", "resid_post:9"),
        ("align.more_sites=[{ sight = \"resid_post:1\", sae = \"x\" }]", "sight"),
        ("align.k=0", "align.k"),
        ("align.k=100000", "align.k = 100000"),
        ("data.hold_out=1.5", "[0, 1)"),
        ("data.max_length=64", "after data.max_prompt_length = 64"),
        ("data.max_prompt_length=0", "1 ≤ data.max_prompt_length"),
        ("sae.site=resid_post:9", "resid_post:9"),
        ("sae.training.target_l0=-3", "target_l0"),
        ("sae.training.activation=relu", "l1"),
        ("sae.training.activation=gated", "sae.training.activation"),
        ("sft.optimizer.learning_rate=0", "learning_rate"),
        ("align.lora.rnk=4", "align.lora.rank"),
        ("align.lora.rank=0", "align.lora: rank = 0"),
        ("sft.lora.alpha=-1", "sft.lora: alpha = -1"),
        ("align.lora.target_modules=[\"q\"]", "`q`"),
        ("align.lora.target_modules=all_linear", "all-linear"),
        ("align.lora.target_modules=.*(proj", "regular expression"),
        ("nonsense", "KEY=VALUE"),
        ("align.epochs=-1", "align.epochs = -1"),
        ("align.max_steps=0", "at least 1"),
        ("sft.optimizer.warmup_ratio=1.5", "warmup_ratio = 1.5"),
        ("align.optimizer.betas=[0.9, 1.0]", "betas = [0.9, 1.0]"),
        ("data.sft=x.jsonl", "data.sft has no effect"),
        ("data.built_in.pairs=9223372036854775807", "data.built_in.pairs = 9223372036854775807"),
        ("sae.training.d_sae=9223372036854775807", "exceeds 16777216"),
    ] {
        let message = format!("{:#}", resolve(&[set]).unwrap_err());
        assert!(message.contains(says), "{set}: {message:?} does not say {says:?}");
    }
}

#[test]
fn settings_of_features_are_checked_where_features_are_used() {
    let resolve = |set: &[&str]| {
        let set: Vec<String> = set.iter().map(|s| (*s).to_owned()).collect();
        Settings::resolve("tiny", None, &set)
    };
    assert!(resolve(&[]).unwrap().features());
    let dpo = ["align.method=dpo", "sae.site=resid_post:9", "align.k=0"];
    assert!(!resolve(&dpo).unwrap().features());
    let error = resolve(&[&dpo[..], &["evaluate.features=true"]].concat()).unwrap_err();
    assert!(error.to_string().contains("align.k"), "{error}");
}

/// Oracle: the arithmetic of transformers' `Trainer`, by hand.
#[test]
fn the_length_of_a_training() {
    let length = |epochs, max_steps| Length {
        epochs,
        max_steps: NonZeroUsize::new(max_steps),
        batch_size: NonZeroUsize::new(4).unwrap(),
    };
    for (epochs, max_steps, rows, steps, begun) in [
        (2.0, 0, 10, 6, 2),
        (0.5, 0, 40, 5, 1),
        (1.25, 0, 40, 13, 2),
        (0.01, 0, 40, 1, 1),
        (2.0, 5, 40, 5, 2),
        (0.0, 5, 40, 0, 0),
    ] {
        let found = length(epochs, max_steps);
        assert_eq!((found.steps(rows), found.begun()), (steps, begun), "{found:?}");
    }
    let whole = resolve(&[]).unwrap().to_toml().unwrap();
    assert!(whole.contains("epochs = 2\n"), "whole epochs are whole numbers");
    let part = resolve(&["align.epochs=0.5", "align.optimizer.warmup_ratio=0.1"]).unwrap();
    assert_eq!((part.align.epochs, part.align.optimizer.warmup(31)), (0.5, 4));
    let again: Settings = toml::from_str(&part.to_toml().unwrap()).unwrap();
    assert_eq!(again, part);
}

#[test]
fn a_saved_file_is_a_base() {
    let folder = tempfile::tempdir().unwrap();
    let saved = folder.path().join("run.toml");
    let first = Settings::resolve("smoke", None, &["align.alpha=0.7".into()]).unwrap();
    std::fs::write(&saved, first.to_toml().unwrap()).unwrap();
    assert_eq!(Settings::resolve_on(Base::Saved(&saved), None, &[]).unwrap(), first);
    let set = ["align.k=3".to_owned(), "align.lora.rank=2".to_owned()];
    let second = Settings::resolve_on(Base::Saved(&saved), None, &set).unwrap();
    let changes = second.changes(&first);
    assert!(changes.contains(&"align.k is 3, was 10".to_owned()), "{changes:?}");
    assert!(changes.contains(&"align.lora.rank is 2, was not set".to_owned()), "{changes:?}");
    assert_eq!(first.changes(&first), Vec::<String>::new());
    // A file from before a setting existed has what held then.
    let mut table: Table = toml::from_str(&first.to_toml().unwrap()).unwrap();
    let of_sft = table["sft"]["optimizer"].as_table_mut().unwrap();
    assert!(of_sft.remove("betas").is_some());
    std::fs::write(&saved, toml::to_string(&table).unwrap()).unwrap();
    assert_eq!(Settings::resolve_on(Base::Saved(&saved), None, &[]).unwrap(), first);
}
