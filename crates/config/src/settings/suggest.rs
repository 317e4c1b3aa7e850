//! What a mistyped key may have meant.

/// Keys of other trainers, by ours or its last part.
const ELSEWHERE: [(&str, &str); 36] = [
    ("adam_beta1", "align.optimizer.betas"),
    ("adam_beta2", "align.optimizer.betas"),
    ("base_model", "model.path"),
    ("bf16", "model.precision"),
    ("cpo_alpha", "align.nll_weight"),
    ("dtype", "model.precision"),
    ("eval_steps", "evaluate.every"),
    ("gradient_accumulation_steps", "align.batch_size"),
    ("hook_name", "sae.site"),
    ("jumprelu_sparsity_loss_mode", "sae.training.penalty"),
    ("l0_coefficient", "sae.training.sparsity"),
    ("l1_coefficient", "sae.training.sparsity"),
    ("load_best_model_at_end", "align.keep_best"),
    ("metric_for_best_model", "align.keep_best"),
    ("model_name_or_path", "model.path"),
    ("optim", "align.optimizer.kind"),
    ("report_to", "track"),
    ("rl", "align.method"),
    ("save_total_limit", "align.keep_last"),
    ("torch_dtype", "model.precision"),
    ("val_set_size", "data.hold_out"),
    ("lr", "learning_rate"),
    ("wd", "weight_decay"),
    ("warmup", "warmup_steps"),
    ("num_warmup_steps", "warmup_steps"),
    ("lr_scheduler_type", "schedule"),
    ("lr_scheduler", "schedule"),
    ("num_train_epochs", "epochs"),
    ("num_epochs", "epochs"),
    ("per_device_train_batch_size", "micro_batch_size"),
    ("gradient_checkpointing", "checkpoint_activations"),
    ("optimizer_in_bwd", "optimizer_in_backward"),
    ("save_steps", "checkpoint_every"),
    ("sequence_len", "max_length"),
    ("loss_type", "method"),
    ("lora_r", "rank"),
];

/// How alike the last parts of two keys are that may mean the same (Jaro-Winkler).
const ALIKE: f64 = 0.9;
/// How alike whole keys are, where no last part is alike.
const SOMEWHAT_ALIKE: f64 = 0.8;
/// Suggestions, at most.
const MOST: usize = 3;

/// Such as `; did you mean `align.method`?`
pub(super) fn suffix(key: &str, known: &[String]) -> String {
    let found: Vec<String> = nearest(key, known).iter().map(|key| format!("`{key}`")).collect();
    match found.split_last() {
        None => String::new(),
        Some((only, [])) => format!("; did you mean {only}?"),
        Some((last, others)) => format!("; did you mean {} or {last}?", others.join(", ")),
    }
}

/// Keys whose last part is alike, in the same table if there is one; else the one that is most alike as a whole.
fn nearest<'a>(key: &str, known: &'a [String]) -> Vec<&'a str> {
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    let written = last(key);
    let elsewhere = ELSEWHERE.iter().find(|(theirs, _)| *theirs == written);
    let meant = elsewhere.map_or(written.as_str(), |(_, ours)| ours);
    if let Some(ours) = known.iter().find(|ours| *ours == meant) {
        return vec![ours];
    }
    let alike = |k: &str| strsim::jaro_winkler(&last(k), meant);
    let whole = |k: &str| strsim::jaro_winkler(k, key);
    let best = known.iter().map(|k| alike(k)).fold(0.0, f64::max);
    let mut found: Vec<&str> =
        known.iter().map(String::as_str).filter(|k| alike(k) == best && best >= ALIKE).collect();
    if found.is_empty() {
        let most = known.iter().max_by(|a, b| whole(a).total_cmp(&whole(b)));
        let most = most.filter(|most| whole(most) >= SOMEWHAT_ALIKE);
        return most.into_iter().map(String::as_str).collect();
    }
    let shared = |k: &str| k.split('.').zip(key.split('.')).take_while(|(a, b)| a == b).count();
    let most_shared = found.iter().map(|k| shared(k)).max().unwrap_or(0);
    found.retain(|k| shared(k) == most_shared);
    // No part of the key is right, but most of its letters are.
    found.sort_by(|a, b| whole(b).total_cmp(&whole(a)));
    found.truncate(if key.contains('.') && most_shared == 0 { 1 } else { MOST });
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_by_their_ends() {
        let known = [
            "align.optimizer.learning_rate",
            "sft.optimizer.learning_rate",
            "align.method",
            "align.epochs",
            "sft.epochs",
            "align.lora.rank",
            "align.keep_best",
            "align.k",
            "data.max_length",
        ]
        .map(str::to_owned);
        for (key, expected) in [
            ("align.metod", "; did you mean `align.method`?"),
            ("algin.method", "; did you mean `align.method`?"),
            ("align.lr", "; did you mean `align.optimizer.learning_rate`?"),
            ("sft.learning_rate", "; did you mean `sft.optimizer.learning_rate`?"),
            ("align.num_train_epochs", "; did you mean `align.epochs`?"),
            ("align.lora.r", "; did you mean `align.lora.rank`?"),
            ("max_len", "; did you mean `data.max_length`?"),
            ("load_best_model_at_end", "; did you mean `align.keep_best`?"),
            ("align.rl", "; did you mean `align.method`?"),
            ("algin.k", "; did you mean `align.k`?"),
            ("completely_unknown", ""),
        ] {
            assert_eq!(suffix(key, &known), expected, "{key}");
        }
        let both = suffix("lr", &known);
        for key in ["`sft.optimizer.learning_rate`", "`align.optimizer.learning_rate`", " or "] {
            assert!(both.contains(key), "{both}");
        }
        assert_eq!(suffix("x", &[]), "");
    }
}
